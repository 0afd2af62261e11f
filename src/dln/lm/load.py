"""One string names a model: `load_lm("smollm2")`, `load_lm("hf/org/name:chat")`, `load_lm("model.gguf")`.

| spec                  | model                                                              |
|-----------------------|--------------------------------------------------------------------|
| `smollm2`             | the embedded SmolLM2-135M-Instruct                                 |
| `hf/<id or folder>`   | a hub id, with `@revision` if wanted, or a folder of safetensors   |
| `gguf/<path>`, `*.gguf` | a GGUF file                                                      |
| `vllm/<model>`        | a model on a server, see below                                     |

Servers are `openai`, `azure`, `vllm`, `sglang`, `together`, `fireworks`, `ollama`, and `openai-compatible` for all
others; their address is an option.

A model is used for completion; `:chat` at the end gives its chat sibling, which wraps each context as one
user turn and shares the weights. Hosted chat models are chat models without it; `:completion` asks for the other.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.lm.remote.dialects import DIALECTS

if TYPE_CHECKING:
    from dln.lm.checkpoint import Checkpoint

__all__ = ["ENGINES", "Engine", "load_lm"]


@dataclass(frozen=True, slots=True)
class Engine:
    """How the models of one prefix are loaded.

    Args:
        form: how a spec looks, for messages.
        load: (what follows the prefix, the whole spec, options) → model.
    """

    form: str
    load: Callable[[str, str, dict[str, Any]], LanguageModel]


def load_lm(spec: str, **options: Any) -> LanguageModel:
    """The language model that `spec` names; the same spec twice in one process shares the weights.

    Args:
        spec: see the module's table.
        options: of the engine. In-process: `chat`, `device`, `dtype`, `batch_tokens`, `batch_rows`. On a server:
            `base_url` (one address, or several replicas), `api_key`, `chat`, `timeout`, `max_concurrency` and the
            rest of `dln.lm.remote.engine_load.OPTIONS`; nothing is sent before the first use.

    Raises:
        InputError: an unknown spec or option.
        DlnError: the model cannot be had; the message says what to do.
    """
    spec = spec.strip()
    prefix, slash, rest = spec.partition("/")
    if spec.removesuffix(":chat").endswith(".gguf") and prefix not in ("gguf", *DIALECTS):
        return ENGINES["gguf"].load(spec, spec, options)
    if not slash:
        prefix, colon, variant = spec.partition(":")
        rest = colon + variant
    engine = ENGINES.get(prefix)
    if engine is None or bool(slash) != engine.form.startswith(f"{prefix}/") or (slash and not rest):
        close = difflib.get_close_matches(prefix, ENGINES, n=1)
        raise InputError(
            "unknown model",
            where="lm",
            got=repr(spec),
            expected=", ".join(known.form for known in ENGINES.values()),
            fix=f"did you mean {ENGINES[close[0]].form}?" if close else None,
        )
    return engine.load(rest, spec, options)


_loaded: WeakValueDictionary[tuple[str, str, str], Checkpoint] = WeakValueDictionary()
IN_PROCESS_OPTIONS = ("chat", "device", "dtype", "batch_tokens", "batch_rows")


def _load_in_process(location: str, spec: str, options: dict[str, Any]) -> LanguageModel:
    from dln.lm.checkpoint import Source, load_checkpoint
    from dln.lm.embedded_copy import load_embedded
    from dln.lm.transformers import TransformersLM

    for option in options:
        if option not in IN_PROCESS_OPTIONS:
            raise InputError("unknown option", where=spec, got=option, expected=", ".join(IN_PROCESS_OPTIONS))
    chat = bool(options.pop("chat", spec.endswith(":chat")))
    device, dtype = str(options.pop("device", "auto")), str(options.pop("dtype", "auto"))
    location = location.removesuffix(":chat")
    key = (location, device, dtype)
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
        from dln.lm.remote.engine_load import open_remote

        return open_remote(kind, rest, spec, options)

    return Engine(f"{kind}/<model>", load)


ENGINES: dict[str, Engine] = {
    "smollm2": Engine("smollm2", _load_smollm2),
    "hf": Engine("hf/<id or folder>", _load_in_process),
    "gguf": Engine("gguf/<path>", _load_in_process),
    **{kind: _load_remote(kind) for kind in DIALECTS},
}
"""Known prefixes; another engine is one more entry."""
