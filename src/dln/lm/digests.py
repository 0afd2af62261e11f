"""SHA-256 of large files, remembered: a file of the same path, size and time is not read again.

What is remembered lies in the user's cache directory, one small file per path, so that two processes never
write the same bytes into each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, cast

import platformdirs

__all__ = ["cache_directory", "file_digest", "forget_digest", "write_atomically"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_directory() -> Path:
    """Where models and digests are kept: `DLN_CACHE_DIR`, or `dln` in the user's cache directory."""
    chosen = os.environ.get("DLN_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("dln", appauthor=False))


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, from memory where path, size and modification time are as before."""
    path = path.resolve()
    if _SHA256.fullmatch(path.name):
        return path.name  # the hub's cache names its large files by their digest
    stat = path.stat()
    known = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    record = _record(path)
    try:
        remembered = cast("dict[str, Any]", json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # none yet, or torn: it is only a memory, the file itself is the truth
        remembered = {}
    digest = remembered.pop("sha256", "") if remembered else ""
    if remembered == known and _SHA256.fullmatch(str(digest)):
        return str(digest)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        write_atomically(record, json.dumps({**known, "sha256": digest}))
    except OSError:  # a cache directory that cannot be written costs time at the next start, nothing else
        return digest
    return digest


def forget_digest(path: Path) -> None:
    """Drop what is remembered of a file, so that the next digest reads it whole."""
    _record(path.resolve()).unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _record(path: Path) -> Path:
    return cache_directory() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
