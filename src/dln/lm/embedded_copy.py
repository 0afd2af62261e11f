"""The embedded model unpacked: a safetensors copy beside the GGUF, because unpacking takes ten times longer.

Reading the GGUF (parsing its vocabulary twice and de-quantising in Python) takes 20 to 30 seconds of one
core; the copy loads in 2. It holds the same float32 numbers, so nothing else changes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from dln.lm.checkpoint import Checkpoint, Source, load_checkpoint
from dln.lm.digests import cache_directory, file_digest
from dln.lm.embedded import SMOLLM2, embedded_model_path
from dln.lm.file_lock import file_lock

__all__ = ["load_embedded"]

MANIFEST = "manifest.json"
COPY_VERSION = 1

_log = logging.getLogger("dln")


def load_embedded(device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Load the embedded model, from its unpacked copy if that is intact; otherwise (re)write the copy.

    Raises:
        DlnError: as `embedded_model_path` and `load_checkpoint`.
    """
    path = embedded_model_path()
    folder = cache_directory() / "models" / f"{SMOLLM2.sha256[:12]}-float32-{COPY_VERSION}"
    if not _intact(folder):
        try:
            with file_lock(folder.with_name(f".{folder.name}.lock")):
                if not _intact(folder):
                    _write(folder, load_checkpoint(Source(str(path), "cpu", "float32", SMOLLM2.sha256)))
        except OSError as error:
            _log.warning("no unpacked copy of the model is kept (%s): every start takes longer", error)
            return load_checkpoint(Source(str(path), device, dtype, SMOLLM2.sha256))
    return load_checkpoint(Source(str(folder), device, dtype, SMOLLM2.sha256))


def _intact(folder: Path) -> bool:
    """Whether every file has the size and digest that were written down when the copy was made."""
    try:
        manifest = cast("dict[str, str]", json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        return bool(manifest) and all(file_digest(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):  # no copy, or not a whole one: it is written again
        return False


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    import safetensors.torch

    model = checkpoint.network.model
    shared: set[int] = set()
    tensors: dict[str, Any] = {}
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: "lm_head" in item[0]):
        if tensor.data_ptr() not in shared:  # the head is the embedding again
            shared.add(tensor.data_ptr())
            tensors[name] = tensor.contiguous()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
        part = Path(scratch) / "copy"
        part.mkdir()
        cast(Any, safetensors.torch).save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        config["architectures"] = [type(model).__name__]
        (part / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        cast(Any, checkpoint.codec.tokenizer).save_pretrained(str(part))
        for file in part.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        digests = {file.name: file_digest(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
