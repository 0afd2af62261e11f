"""The runs that the dashboard shows, by id: those of a folder, one run, or a file of the original code.

An id is made from the name of a run by a hash and looked up in a table, so that nothing that a browser sends becomes a
path.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dln.errors import DlnError, InputError
from dln.train.run import read_meta
from dln.view.follow import FollowedRun, Source
from dln.view.original import is_original, read_original
from dln.view.records import listing

__all__ = ["Folder", "Named", "run_id"]

Command = Callable[[Path], str | None]
"""The shell command that repeats the run of a directory; None where it is not known."""


def run_id(name: str) -> str:
    """The id of a run in addresses: 12 hexadecimal digits."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


class Named:
    """A run with its id and name."""

    def __init__(self, source: Source, name: str, command: Command) -> None:
        self.source, self.name, self.id = source, name, run_id(name)
        self._command = command
        self._known: tuple[str | None] | None = None

    @property
    def command(self) -> str | None:
        """The shell command that repeats it; asked for once."""
        if self._known is None:
            folder = self.source.folder
            try:
                self._known = (self._command(folder) if folder and read_meta(folder).get("config") else None,)
            except DlnError:
                self._known = (None,)
        return self._known[0]


class Folder:
    """The runs below a path; they are looked for anew on every listing.

    Args:
        root: a folder of runs, a run directory, or a file of the original code.
        command: of a run directory.

    Raises:
        InputError: there is nothing there.
        CorruptDataError: a file that holds something else.
    """

    def __init__(self, root: Path, command: Command = lambda folder: None) -> None:
        if not root.exists():
            raise InputError(
                "there is no such file or folder", where=root, fix="dln train --task questions makes a run"
            )
        self.root = root.resolve()
        self._command = command
        self._lock = threading.Lock()
        self._runs: dict[str, Named] = {}
        self._files: set[Path] = set()
        if root.is_file():
            self._read_file(self.root, strict=True)
        self.look()

    def look(self) -> list[Named]:
        """All runs, those found just now included."""
        with self._lock:
            if self.root.is_dir():
                for place in self._directories():
                    name = self.root.name if place == self.root else place.relative_to(self.root).as_posix()
                    if run_id(name) not in self._runs:
                        self._keep(Named(FollowedRun(place, name), name, self._command))
                for file in sorted(self.root.glob("*.json")):
                    if file not in self._files and is_original(file):
                        self._read_file(file, strict=False)
            gone = [key for key, run in self._runs.items() if run.source.folder and not run.source.folder.is_dir()]
            for key in gone:
                del self._runs[key]
            return list(self._runs.values())

    def get(self, key: str) -> Named | None:
        """The run of an id; None where there is none."""
        if key not in self._runs:
            self.look()
        return self._runs.get(key)

    def rows(self) -> list[dict[str, Any]]:
        """The list of runs, the newest first; of one that cannot be read the reason."""
        found: list[dict[str, Any]] = []
        for run in self.look():
            try:
                run.source.refresh()
                row = listing(run.source, run.name)
            except DlnError as error:
                row = {"name": run.name, "state": "unreadable", "reason": error.message}
            found.append({"id": run.id, **row})
        return sorted(found, key=lambda row: (-(row.get("started") or 0.0), row["name"]))

    def _directories(self) -> Iterator[Path]:
        if (self.root / "run.yaml").is_file():
            yield self.root
            return
        series = [file.parent for file in self.root.glob("*/seeds.yaml")]
        for place in (self.root, *series):
            yield from (file.parent for file in sorted(place.glob("*/run.yaml")))

    def _read_file(self, file: Path, *, strict: bool) -> None:
        self._files.add(file)
        try:
            runs = read_original(file)
        except DlnError:
            if strict:
                raise
            return
        for run in runs:
            self._keep(Named(run, f"{file.stem}/{run.name}", self._command))

    def _keep(self, run: Named) -> None:
        self._runs[run.id] = run
