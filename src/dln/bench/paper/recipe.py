"""What a cell was made with: the method's own settings and, where it trains, all options that these come to.

A default that is changed later changes what a method is, though not its name. Cells carry their recipe, so that
those of the old method are not taken for those of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from dln.bench.paper.method import Method
from dln.train import resolve_options

__all__ = ["changed_settings", "recipe_of"]


def recipe_of(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data: the method's settings and, of a method with a preset, the resolved training options.

    Args:
        method: a row of the table.
        options: changes to the presets that all methods share.

    Raises:
        InputError: an option that is not possible.
    """
    plain: dict[str, Any] = asdict(method) if is_dataclass(method) and not isinstance(method, type) else {}
    for said in ("name", "what"):
        plain.pop(said, None)
    preset = plain.get("preset")
    if isinstance(preset, str):
        changes = cast(dict[str, Any], plain.pop("changes", {}))
        resolved = resolve_options(preset, dict(options), changes).model_dump(mode="json")
        plain["options"] = {name: value for name, value in resolved.items() if name not in ("preset", "seed")}
    # as it comes back from a file: tuples are lists there
    return json.loads(json.dumps({"method": type(method).__name__, **plain}, default=str))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings whose value is another one, as in "inference.race"; what only one side has is left out.

    >>> changed_settings({"k": 5, "options": {"steps": 3}}, {"k": 5, "options": {"steps": 4, "race": True}})
    ['options.steps']
    """
    found: list[str] = []
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping) and name != "prompt_proposals":
            inner = cast(Mapping[str, Any], old), cast(Mapping[str, Any], new)
            found += changed_settings(*inner, f"{prefix}{name}.")
        elif old != new:
            found.append(prefix + name)
    return sorted(found)
