"""The rows of the table by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

from dln.bench.paper.baselines import InContext, Majority, ZeroShot
from dln.bench.paper.chance import RandomDemonstrations
from dln.bench.paper.induction import Induction
from dln.bench.paper.layers import SAME_LINE
from dln.bench.paper.method import Method
from dln.bench.paper.nearest import Nearest
from dln.bench.paper.reasoning import ChainOfThought
from dln.bench.paper.trained import LayerByLayer, Trained
from dln.errors import InputError

__all__ = ["METHODS", "in_order", "method_named"]

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
    Trained(1, "dln-1-ensemble", changes={"ensemble": 5}, what="dln-1 with its five best prompts answering together"),
    Trained(1, "dln-1-paper", "paper"),
    RandomDemonstrations(),
    LayerByLayer("dln-2-fix", tune_last=False),
    LayerByLayer("dln-2-tune", tune_last=True),
    Trained(2, "dln-2"),
    Trained(2, "dln-2-think", hidden="think", what="dln-2 whose first layer begins with thoughts, as in the paper"),
    Trained(2, "dln-2-paper", "paper"),
    Trained(3, "dln-3"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""The methods that have a name of their own, in the order of the table."""

_SIZED: dict[str, Callable[[int], Method]] = {
    r"icl-([1-9]\d*)": InContext,
    r"icl-([1-9]\d*)-fitted": lambda k: InContext(k, fit=True),
    r"kate-([1-9]\d*)": Nearest,
    r"ape-([1-9]\d*)": Induction,
}
"""Families with a number in the name."""


def method_named(name: str) -> Method:
    """A row of the table: one of `METHODS`, or one of a family with any number, as in icl-7.

    Raises:
        InputError: an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    for form, make in _SIZED.items():
        found = re.fullmatch(form, name)
        if found:
            return make(int(found[1]))
    close = difflib.get_close_matches(name, METHODS, n=1)
    raise InputError(
        "there is no such method",
        where="--methods",
        got=name,
        expected=f"{', '.join(METHODS)}; and icl-K, kate-K, ape-M",
        fix=f"did you mean {close[0]}?" if close else None,
    )


def in_order(names: Sequence[str]) -> tuple[list[Method], list[str]]:
    """The named methods and those they build upon, each after what it needs; and the names that were added.

    Raises:
        InputError: an unknown name.
    """
    wanted: dict[str, Method] = {}

    def add(name: str) -> None:
        method = method_named(name)
        for needed in method.after:
            add(needed)
        wanted[method.name] = method

    for name in names:
        add(name)
    return list(wanted.values()), [name for name in wanted if name not in names]
