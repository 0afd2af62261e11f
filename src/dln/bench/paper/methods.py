"""The rows of the table by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from dln.bench.paper.baselines import InContext, Majority, ZeroShot
from dln.bench.paper.chance import RandomDemonstrations
from dln.bench.paper.induction import Induction
from dln.bench.paper.layers import SAME_LINE
from dln.bench.paper.method import Method
from dln.bench.paper.nearest import Nearest
from dln.bench.paper.reasoning import ChainOfThought
from dln.bench.paper.trained import LayerByLayer, Trained
from dln.errors import InputError

__all__ = ["METHODS", "in_order"]

_ALL: tuple[Method, ...] = (
    Majority(),
    ZeroShot(),
    ZeroShot("0-shot-line", SAME_LINE),
    ZeroShot("0-shot-fitted", SAME_LINE, fit=True),
    InContext(5),
    InContext(5, fit=True),
    InContext(10),
    InContext(16),
    InContext(32),
    Nearest(5),
    Nearest(10),
    Nearest(32),
    ChainOfThought(),
    Induction(15),
    Induction(400),
    ChainOfThought("cot+ape", Induction(15)),
    Trained(1, "dln-1"),
    Trained(1, "dln-1-paper", "paper"),
    RandomDemonstrations(),
    LayerByLayer("dln-2-fix", tune_last=False),
    LayerByLayer("dln-2-tune", tune_last=True),
    Trained(2, "dln-2"),
    Trained(2, "dln-2-paper", "paper"),
    Trained(3, "dln-3"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Every method, in the order of the table."""


def in_order(names: Sequence[str]) -> tuple[list[Method], list[str]]:
    """The named methods and those they build upon, each after what it needs; and the names that were added.

    Raises:
        InputError: an unknown name.
    """
    wanted: dict[str, None] = {}

    def add(name: str) -> None:
        method = METHODS.get(name)
        if method is None:
            close = difflib.get_close_matches(name, METHODS, n=1)
            raise InputError(
                "there is no such method",
                where="--methods",
                got=name,
                expected=", ".join(METHODS),
                fix=f"did you mean {close[0]}?" if close else None,
            )
        for needed in method.after:
            add(needed)
        wanted[name] = None

    for name in names:
        add(name)
    return [METHODS[name] for name in wanted], [name for name in wanted if name not in names]
