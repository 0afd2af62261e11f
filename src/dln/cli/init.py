"""`dln init`: a small project to start from, which trains offline with the embedded model."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from dln.cli.output import examples, note, out, safe
from dln.errors import InputError

__all__ = ["INIT_EPILOG", "init"]

INIT_EPILOG = examples("dln init", "dln init tickets")

FILES = ("dln.yaml", "tickets.csv", "README.md")


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the project; made if needed.")] = Path(),
) -> None:
    """Write a small project: settings, a table of 60 tickets, and a README."""
    existing = [name for name in FILES if (directory / name).exists()]
    if existing:
        raise InputError(
            "this folder has such a file already",
            where=directory,
            got=", ".join(existing),
            expected=f"a folder without {', '.join(FILES)}",
            fix="dln init another-folder",
        )
    source = resources.files("dln.cli") / "project"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (directory / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise InputError(
            "cannot write the project", where=directory, got=error.strerror, fix="dln init another-folder"
        ) from error
    for name in FILES:
        out().print(safe(directory / name), soft_wrap=True)
    note(f"next: {'' if directory == Path() else f'cd {shlex.quote(str(directory))} && '}dln train")
