"""Tables into pages: which region a command fills, the command itself, and the check before any work is done."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import typer

from dln.bench.page import check_section, write_section
from dln.bench.paper.publish import REGIONS, SHORT
from dln.cli.config import RunConfig
from dln.errors import InputError

__all__ = ["Place", "checked_places", "typed", "write_places"]


@dataclass(frozen=True)
class Place:
    """A region of a page."""

    page: Path
    region: str

    @property
    def short(self) -> bool:
        """Whether it takes the short form of a table."""
        return self.region == SHORT


def checked_places(pages: Sequence[Path] | None, region: str | None, usual: str) -> list[Place]:
    """Where `--write` and `--region` say that a table shall go: README.md takes the short one.

    Raises:
        InputError: no such region, or a page without its markers.
    """
    if region is not None and region not in REGIONS:
        close = difflib.get_close_matches(region, REGIONS, n=1)
        raise InputError(
            "there is no such region",
            where="--region",
            got=region,
            expected=", ".join(REGIONS),
            fix=f"did you mean {close[0]!r}?" if close else None,
        )
    if region is not None and not pages:
        raise InputError("a region is of a page", where="--region", got=region, fix="--write docs/results.md")
    front = usual in ("paper", "equal tokens")
    places = [
        Place(page, SHORT if front and page.name == "README.md" else region or usual)
        for page in dict.fromkeys(pages or ())
    ]
    for place in places:
        if place.short and not front:
            raise InputError("the short table is that of `dln bench paper`", where="--region", got=place.region)
        check_section(place.page, place.region)
    return places


def write_places(places: Sequence[Place], full: str, short: str = "", picture: str = "") -> list[Path]:
    """Fill the regions; `picture`, an SVG, lies beside the page and is shown under the full table."""
    written: list[Path] = []
    for place in places:
        text = short if place.short else full
        if picture and not place.short:
            path = place.page.parent / "images" / f"results-{place.region.replace(' ', '-')}.svg"
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_text(picture, encoding="utf-8")
            except OSError as error:
                raise InputError("the picture cannot be written", where=path, got=error.strerror) from error
            text = f"{text.rstrip()}\n\n![Accuracy against training tokens](images/{path.name})"
            written.append(path)
        write_section(place.page, place.region, text)
        written.append(place.page)
    return written


def typed(context: typer.Context, config: RunConfig) -> str:
    """The command with the flags that were given, here or by the environment; no secret is repeated."""
    recorded = cast(dict[str, Any], config.model_dump(mode="json")["lm"])  # addresses without credentials, no keys
    words = context.command_path.split()
    for parameter in cast(Sequence[Any], context.command.params):
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name not in ("COMMANDLINE", "ENVIRONMENT"):
            continue
        value = context.params[parameter.name]
        if parameter.name == "lm_option":
            value = [f"{name}={option}" for name, option in recorded["options"].items()]
        elif parameter.name == "base_url":
            value = recorded["base_url"]
        words += _flag(parameter, value)
    return shlex.join(words)


def _flag(parameter: Any, value: Any) -> list[str]:
    flag = max(parameter.opts, key=len)
    if value is None:
        return []
    if isinstance(value, bool):
        off = list(parameter.secondary_opts)
        return [flag] if value else off[:1]
    values = cast(Sequence[object], value if isinstance(value, list | tuple) else [value])
    return [word for one in values for word in (flag, str(one))]
