"""What is searched: for each option a list of values. The paper's own space is the default."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from dln.errors import InputError
from dln.train.options import nested, resolve_options

__all__ = ["PAPER_SPACE", "Space", "paper_space", "read_space", "size"]

Space = Mapping[str, Sequence[Any]]
"""Option, as in `inference.held_out_half`, to the values that are tried."""

PAPER_SPACE: dict[int, Space] = {
    1: {
        "inference.backward_template": ["backward_student", "backward"],
        "tolerance": [None, 1, 2],
        "memory": [0, 2],
        "inference.held_out_half": [True, False],
    },
    2: {
        "inference.num_hidden": [5, 10],
        "inference.backward_template": ["backward_student", "backward"],
        "inference.exploration": [0.0, 0.5, 2.0],
        "inference.trust_factor": [0.0, 1.0, 5.0],
        "inference.posterior_temp": [1.0, 0.75],
    },
}
"""The paper's appendix: one layer, and two layers trained end to end."""


def paper_space(depth: int) -> Space:
    """The paper's space for a network of `depth` layers; deeper ones take that of two."""
    return PAPER_SPACE[min(depth, 2)]


def read_space(path: Path) -> Space:
    """A YAML mapping of options to lists of values.

    Raises:
        InputError: it is not such a mapping, names an unknown option, or has a value that is not possible.
    """
    try:
        data: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("the search space cannot be read", where=path, got=str(error)) from error
    if not isinstance(data, dict) or not data:
        raise InputError("the search space is not a mapping", where=path, expected="option: [value, value, …]")
    space = cast(dict[str, Any], data)
    for name, values in space.items():
        if not isinstance(values, list) or not values:
            raise InputError("a list of values is needed", where=f"{path}: {name}", got=str(cast(object, values)))
        for value in cast(list[Any], values):
            resolve_options("default", nested({name: value}))
    return space


def size(space: Space) -> int:
    """How many settings there are altogether."""
    return sum(1 for _ in itertools.product(*space.values()))
