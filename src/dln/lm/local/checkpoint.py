"""Reading a model from disk or hub: folders of safetensors, hub ids, GGUF files.

Loading is quiet, touches the network only for a hub id that is not in the local cache, and ends in a
`CausalModel` and a tokenizer or in one error that says what to do.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dln.arguments import unknown_name
from dln.errors import CorruptDataError, DlnError, InputError, ProviderError
from dln.io import file_digest
from dln.lm.local.model import CausalModel
from dln.lm.local.query import Query
from dln.lm.local.scoring import answer
from dln.lm.local.threads import settle_threads
from dln.lm.local.tokenizer import Codec, Tokenizer

__all__ = ["Checkpoint", "Source", "load_checkpoint", "load_codec", "resolve_device"]

IDENTITY_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.gguf")
LOCAL_EXTRA = "pip install 'dln[local]'"


@dataclass(frozen=True, slots=True)
class Source:
    """What to load.

    Args:
        location: a folder, the path of a .gguf file, or a hub id, with `@revision` if one is wanted.
        device: "cpu", "cuda", "cuda:1", or "auto": cuda where there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on the CPU, bfloat16 elsewhere.
        identity: digest that stands for the content; computed from the files if empty.
    """

    location: str
    device: str = "auto"
    dtype: str = "auto"
    identity: str = ""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model in memory: its forwards and its tokenizer, shared by siblings with and without chat."""

    network: CausalModel
    codec: Codec


def load_checkpoint(source: Source) -> Checkpoint:
    """Load a causal language model and its tokenizer; on the CPU, choose the number of threads first.

    Raises:
        ProviderError: extra `local` not installed, or a model that could not be downloaded.
        InputError: no such folder or file, an unknown device or dtype, or not a causal language model.
        CorruptDataError: the files are there and cannot be read.
    """
    torch, transformers = _engine()
    device = _device(torch, source.device)
    dtype = _dtype(torch, source.dtype, device)
    folder, options = _resolve(source.location)
    if device.type == "cpu":
        settle_threads()
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
                # Always plain weights: blocks kept packed would be computed by kernels fetched from the network.
                options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        except DlnError:
            raise
        except ImportError as error:
            message = "a package that this model needs is missing"
            raise ProviderError(message, where=source.location, got=_first_line(error), fix=LOCAL_EXTRA) from error
        except Exception as error:  # loaders raise anything; every case becomes one typed error
            raise _load_error(source.location, options, error) from error
    model = model.to(device).eval()
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise _not_causal(source.location, type(model).__name__)
    network = CausalModel(model, source.identity or _identity(source.location, model))
    _check_causal(network, source.location, type(model).__name__)
    return Checkpoint(network, Codec(cast(Tokenizer, tokenizer), _eos_ids(model)))


def load_codec(location: str) -> Codec:
    """The tokenizer of a model without its weights, to count tokens; it does not know where the model's texts end.

    Raises:
        ProviderError: extra `local` not installed, or a tokenizer that could not be downloaded.
        InputError: no such folder or file.
        CorruptDataError: the files are there and cannot be read.
    """
    _, transformers = _engine()
    folder, options = _resolve(location)
    with _quiet():
        try:
            return Codec(cast(Tokenizer, transformers.AutoTokenizer.from_pretrained(folder, **options)))
        except Exception as error:  # loaders raise anything; every case becomes one typed error
            raise _load_error(location, options, error) from error


def resolve_device(device: str, dtype: str) -> tuple[str, str]:
    """The device and dtype that two names mean on this machine: ("auto", "auto") is ("cpu", "float32") without a GPU.

    Raises:
        ProviderError: extra `local` not installed.
        InputError: an unknown device or dtype.
    """
    torch, _ = _engine()
    chosen = _device(torch, device)
    return str(chosen), str(_dtype(torch, dtype, chosen)).removeprefix("torch.")


def _engine() -> tuple[Any, Any]:
    """(torch, transformers)."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ProviderError("in-process models need the 'local' extra", got=str(error), fix=LOCAL_EXTRA) from error
    return torch, transformers


def _resolve(location: str) -> tuple[str, dict[str, Any]]:
    path = Path(location).expanduser()
    if location.endswith(".gguf"):
        if not path.is_file():
            raise InputError("there is no such model file", where=location, fix="check the path")
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError("this folder holds no model", where=location, expected="config.json, weights, tokenizer")
        return str(path), {"local_files_only": True}
    if location.startswith((".", "/", "~")) or location.count("/") > 1:
        raise InputError("there is no such model folder", where=location, fix="check the path")
    name, _, revision = location.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    folder = _cached_snapshot(name, revision or None)
    if folder and (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return str(folder), {"local_files_only": True}
    return name, options


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    import huggingface_hub

    try:
        with _quiet():
            return Path(cast(Any, huggingface_hub).snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # not in the local cache: the loader asks the hub, and reports
        return None


def _load_error(location: str, options: dict[str, Any], error: Exception) -> DlnError:
    got = f"{type(error).__name__}: {_first_line(error)}"
    if "Unrecognized configuration class" in str(error):
        return _not_causal(location, got)
    if options.get("local_files_only"):
        return CorruptDataError(
            "the model's files cannot be read", where=location, got=got, fix="fetch or convert the model again"
        )
    return ProviderError(
        "could not download the model from the Hugging Face Hub (unknown id, no access, or no network)",
        where=location,
        got=got,
        fix="check the id and the network, or give a local folder: hf/path/to/folder",
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def _not_causal(location: str, got: str) -> InputError:
    return InputError("this is not a causal language model", where=location, got=got, expected="a decoder-only model")


def _check_causal(network: CausalModel, location: str, kind: str) -> None:
    """A later token must not change an earlier prediction: some loaders turn an encoder into a `CausalLM`."""
    import numpy as np

    size = int(network.model.config.get_text_config().vocab_size)
    first, second = (Query((1 % size, 2 % size, last % size), (1,), ((0, 1),)) for last in (3, 4))
    one, two = answer(network, [first, second], batch_tokens=16)
    if not np.allclose(one.log_probs, two.log_probs, atol=network.noise, equal_nan=True):
        raise _not_causal(location, f"{kind}, which looks ahead")


def _eos_ids(model: Any) -> tuple[int, ...]:
    found: set[int] = set()
    for config in (model.config.get_text_config(), getattr(model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update(cast("list[int]", value if isinstance(value, list) else [] if value is None else [value]))
    return tuple(sorted(found))


def _identity(location: str, model: Any) -> str:
    """Digest over the content of the model's files, whatever folder they lie in."""
    path = Path(location).expanduser()
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        commit = cast("str | None", getattr(model.config, "_commit_hash", None))
        name, _, revision = location.partition("@")
        snapshot = _cached_snapshot(name, commit or revision or None)
        if snapshot is None:
            raise ProviderError("the files of this model are not in the hub's cache after loading", where=location)
        path = snapshot
    files = sorted({file for pattern in IDENTITY_FILES for file in path.glob(pattern)})
    return hashlib.sha256("\n".join(f"{file.name} {file_digest(file)}" for file in files).encode()).hexdigest()


def _device(torch: Any, name: str) -> Any:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            "unknown device", where="device", got=name, expected="auto, cpu, cuda, cuda:1 …", fix='device="cpu"'
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device that torch can use", where="device", got=name, fix="cpu")
    return device


def _dtype(torch: Any, name: str, device: Any) -> Any:
    known = ("float32", "bfloat16", "float16")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in known:
        raise unknown_name("dtype", name, ("auto", *known), where="dtype")
    return getattr(torch, name)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep loaders' progress bars and advice off the terminal; what goes wrong comes as an exception."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    transformers_logging.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        hub.setLevel(hub_level)
