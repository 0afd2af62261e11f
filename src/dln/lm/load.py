"""One string names a model: `load_lm("smollm2")`, `load_lm("hf/org/name:chat")`, `load_lm("model.gguf")`.

| spec                  | model                                                              |
|-----------------------|--------------------------------------------------------------------|
| `smollm2`             | the embedded SmolLM2-135M-Instruct                                 |
| `hf/<id or folder>`   | a hub id, with `@revision` if wanted, or a folder of safetensors   |
| `gguf/<path>`, `*.gguf` | a GGUF file                                                      |
| `vllm/<model>`        | a model on a server, see below                                     |

Other packages register more prefixes: `name/<model>` calls their function (model, **options).

Servers are `openai`, `azure`, `vllm`, `sglang`, `together`, `fireworks`, `ollama`, and `openai-compatible` for all
others; their address is an option.

A model is used for completion; `:chat` at the end gives its chat sibling, which wraps each context as one
user turn and shares the weights. Hosted chat models are chat models without it; `:completion` asks for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from dln import extensions
from dln.arguments import Count, check_options, checked, did_you_mean
from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.lm.remote.dialects import DIALECTS

if TYPE_CHECKING:
    from dln.lm.local.checkpoint import Checkpoint

__all__ = ["ENGINES", "Engine", "as_lm", "load_lm"]


@dataclass(frozen=True, slots=True)
class Engine:
    """How the models of one prefix are loaded.

    Args:
        form: how a spec looks, for messages.
        load: (what follows the prefix, the whole spec, options) → model.
    """

    form: str
    load: Callable[[str, str, dict[str, Any]], LanguageModel]
    in_process: bool = False
    """Whether the model computes in the process that loads it."""


def as_lm(lm: LanguageModel | str) -> LanguageModel:
    """A model as it is, or the one that a name means (see `load_lm`)."""
    return load_lm(lm) if isinstance(lm, str) else lm


@checked
def load_lm(
    spec: str,
    *,
    executor: Executor | None = None,
    workers: Count | None = None,
    item_tokens: Count | None = None,
    **options: Any,
) -> LanguageModel:
    """The language model that `spec` names; the same spec twice in one process shares the weights.

    Args:
        spec: see the module's table.
        executor: computes the model in its workers (see `dln.lm.pool`), each with `threads` threads, 1 by default:
            of `concurrent.futures`, Dask's `Client.get_executor()`, `dln.integrations.ray.RayExecutor`, …
        workers: computes the model in so many processes of this machine, in place of an executor.
        item_tokens: size of the work items that workers get, in tokens, about.
        options: of the engine. In-process: `chat`, `device`, `dtype`, `batch_tokens`, `batch_rows`,
            `threads` (of the whole process, on the CPU; default: measured). On a server:
            `base_url` (one address, or several replicas), `api_key`, `chat`, `timeout`, `max_concurrency` and the
            rest of `dln.lm.remote.engine.OPTIONS`; nothing is sent before the first use.

    Raises:
        InputError: an unknown spec or option.
        DlnError: the model is not available; the message says what to do.
    """
    spec = spec.strip()
    engine, rest = _engine(spec)
    if executor is None and workers is None:
        if item_tokens is not None:
            raise InputError("items are for workers", where="load_lm", got="item_tokens", fix="workers=2")
        return engine.load(rest, spec, options)
    if executor is not None and workers is not None:
        raise InputError("workers are given twice", where="load_lm", got="executor and workers", fix="leave out one")
    return _load_pooled(engine, rest, spec, options, executor or workers, item_tokens)


def _engine(spec: str) -> tuple[Engine, str]:
    """The engine of a model, and what follows its prefix."""
    prefix, slash, rest = spec.partition("/")
    if spec.removesuffix(":chat").endswith(".gguf") and prefix not in ("gguf", *DIALECTS):
        return ENGINES["gguf"], spec
    if not slash:
        prefix, colon, variant = spec.partition(":")
        rest = colon + variant
    engine = ENGINES.get(prefix) or _registered(prefix)
    if engine is None or bool(slash) != engine.form.startswith(f"{prefix}/") or (slash and not rest):
        close = did_you_mean(prefix, ENGINES)
        raise InputError(
            f"there is no model {spec!r}",
            where="lm",
            got=repr(spec),
            expected=", ".join(known.form for known in ENGINES.values()),
            fix=f"did you mean {ENGINES[close].form}?" if close else "the embedded model is called smollm2",
        )
    return engine, rest


def _load_pooled(
    engine: Engine,
    rest: str,
    spec: str,
    options: dict[str, Any],
    executor: Executor | int | None,
    item_tokens: int | None,
) -> LanguageModel:
    from dln.lm.pool import ITEM_TOKENS, Loading, Pooled, PooledTokens
    from dln.lm.workers import Processes

    own = isinstance(executor, int)
    chosen = Processes(executor) if isinstance(executor, int) else cast("Executor", executor)
    size = item_tokens or ITEM_TOKENS
    if not engine.in_process:
        return Pooled(Loading(load_lm, spec, options), chosen, item_tokens=size, own=own)
    from dln.lm.local.checkpoint import load_codec
    from dln.lm.smollm2 import embedded_location

    # the number of threads must not depend on the machine: it decides the last bits of every answer
    loading = Loading(load_lm, spec, {"threads": 1, **options}, alone=True)
    codec = load_codec(rest.removesuffix(":chat") or embedded_location())
    return PooledTokens(loading, chosen, codec, item_tokens=size, own=own)


def _registered(prefix: str) -> Engine | None:
    """The engine that another package registers under this name (see `dln.extensions`)."""
    if not any(one.name == prefix for one in extensions.registered("engine")):
        return None
    function = extensions.load("engine", prefix)

    def load(rest: str, spec: str, options: dict[str, Any]) -> LanguageModel:
        try:
            return function(rest, **options)
        except TypeError as error:
            got = f"load_lm({spec!r}): {error}"
            raise InputError(
                "this engine cannot be made", where="lm", got=got, expected="(model, **options)"
            ) from error

    return Engine(f"{prefix}/<model>", load)


_loaded: WeakValueDictionary[tuple[str, str, str], Checkpoint] = WeakValueDictionary()


def _in_process(
    *,
    chat: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: Count | None = None,
    batch_rows: Count | None = None,
    threads: Count | None = None,
) -> None:
    """What `load_lm` takes for a model in this process."""


def _load_in_process(location: str, spec: str, options: dict[str, Any]) -> LanguageModel:
    from dln.lm.local.checkpoint import Source, load_checkpoint, resolve_device
    from dln.lm.local.engine import TransformersLM
    from dln.lm.local.threads import use_threads
    from dln.lm.smollm2 import load_embedded

    check_options(options, _in_process, f"load_lm({spec!r})")
    chat = options.pop("chat", None)
    chat = spec.endswith(":chat") if chat is None else bool(chat)
    device, dtype = str(options.pop("device", "auto")), str(options.pop("dtype", "auto"))
    threads = options.pop("threads", None)
    if threads is not None:
        use_threads(threads)
    location = location.removesuffix(":chat")
    key = (location, *resolve_device(device, dtype))
    checkpoint = _loaded.get(key)
    if checkpoint is None:
        checkpoint = load_checkpoint(Source(location, device, dtype)) if location else load_embedded(device, dtype)
        _loaded[key] = checkpoint
    return TransformersLM(spec.removesuffix(":chat"), checkpoint, **options).with_chat(chat)


def _load_smollm2(rest: str, spec: str, options: dict[str, Any]) -> LanguageModel:
    if rest not in ("", ":chat"):
        raise InputError(
            "unknown variant of the embedded model", where="lm", got=spec, expected="smollm2, smollm2:chat"
        )
    return _load_in_process("", spec, options)


def _load_remote(kind: str) -> Engine:
    def load(rest: str, spec: str, options: dict[str, Any]) -> LanguageModel:
        from dln.lm.remote.engine import open_remote

        return open_remote(kind, rest, spec, options)

    return Engine(f"{kind}/<model>", load)


ENGINES: dict[str, Engine] = {
    "smollm2": Engine("smollm2", _load_smollm2, in_process=True),
    "hf": Engine("hf/<id or folder>", _load_in_process, in_process=True),
    "gguf": Engine("gguf/<path>", _load_in_process, in_process=True),
    **{kind: _load_remote(kind) for kind in DIALECTS},
}
"""Known prefixes; another engine is one more entry."""
