"""`checked`: what fits an annotation passes untouched, what does not is refused with one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytest
from annotated_types import Ge, MinLen

from dln.arguments import Count, Positive, checked, unknown_name
from dln.errors import InputError


class Speaks(Protocol):
    @property
    def voice(self) -> str: ...

    def say(self, text: str) -> str: ...


class Dog:
    asked = 0

    @property
    def voice(self) -> str:
        Dog.asked += 1
        return "deep"

    def say(self, text: str) -> str:
        return text


@checked
def accept(
    text: str = "",
    count: Count = 1,
    flag: bool = False,
    rate: Positive = 1.0,
    path: str | Path = "a",
    choice: Literal["one", "two"] = "one",
    texts: Sequence[str] = (),
    pairs: Iterable[tuple[str, str]] = (),
    table: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    function: Callable[[str], str] | None = None,
    speaker: Speaks | None = None,
    names: Annotated[Sequence[str], MinLen(2)] = ("a", "b"),
    anything: Any = None,
) -> str:
    """Takes one argument of each kind."""
    return text


FITS: list[dict[str, Any]] = [
    {"text": np.str_("a")},
    {"count": np.int64(3)},
    {"flag": np.bool_(True)},
    {"rate": 2},
    {"rate": np.float32(0.5)},
    {"path": Path("b")},
    {"texts": ["a"]},
    {"texts": ("a", "b")},
    {"pairs": (pair for pair in [("a", "b")])},
    {"pairs": [["a", "b"]]},
    {"table": {"a": 0}},
    {"function": str.strip},
    {"speaker": Dog()},
    {"anything": object()},
]

MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"text": 5}, "a text"),
    ({"text": None}, "a text"),
    ({"text": b"a"}, "a text"),
    ({"count": True}, "a whole number ≥ 1"),
    ({"count": 0}, "≥ 1"),
    ({"count": "3"}, "count=3"),
    ({"count": 3.0}, "a whole number"),
    ({"flag": 1}, "True or False"),
    ({"flag": "no"}, "True or False"),
    ({"rate": float("nan")}, "a finite number > 0"),
    ({"rate": float("inf")}, "a finite number > 0"),
    ({"rate": False}, "a finite number > 0"),
    ({"rate": -1}, "> 0"),
    ({"path": 5}, "a path"),
    ({"choice": "won"}, "'one', 'two'"),
    ({"choice": "tow"}, "did you mean 'two'?"),
    ({"texts": "abc"}, "texts=['abc']"),
    ({"texts": {"a": 1}}, "a list of texts"),
    ({"texts": ["a", 5]}, "texts[1]"),
    ({"texts": np.array(["a"])}, "texts=list(texts)"),
    ({"texts": iter("a")}, "texts=list(texts)"),
    ({"pairs": [("a",)]}, "pairs[0]"),
    ({"pairs": [("a", 1)]}, "pairs[0][1]"),
    ({"pairs": "ab"}, "a list of pairs"),
    ({"table": {1: 0.5}}, "key 1"),
    ({"table": {"a": -0.5}}, "table['a']"),
    ({"table": [("a", 0.5)]}, "a dict of"),
    ({"function": "strip"}, "a function"),
    ({"speaker": Dog}, "Dog(…)"),
    ({"speaker": "dog"}, "a Speaks"),
    ({"names": ["a"]}, "with 2 or more"),
    ({"txt": "a"}, "did you mean 'text'?"),
]


def test_numbers_may_come_as_an_array():
    @checked
    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    assert mean(np.array([1.0, 2.0])) == mean([1.0, 2.0]) == 1.5
    for wrong in (np.array([[1.0]]), np.array(["a"]), np.array([np.nan])):
        with pytest.raises(InputError, match="values"):
            mean(wrong)


@pytest.mark.parametrize("arguments", FITS)
def test_what_fits_passes(arguments: dict[str, Any]):
    assert accept(**arguments) == arguments.get("text", "")


@pytest.mark.parametrize(
    ("arguments", "words"), MISFITS, ids=lambda value: value[:30] if isinstance(value, str) else None
)
def test_what_does_not_fit_is_refused_with_name_got_expected_and_fix(arguments: dict[str, Any], words: str):
    with pytest.raises(InputError) as caught:
        accept(**arguments)
    error = caught.value
    assert words in str(error)
    assert next(iter(arguments)) in error.message
    assert error.where == "accept"
    assert error.got and error.expected and error.fix


def test_the_number_of_arguments_is_checked_too():
    @checked
    def two(a: int, b: int) -> int:
        return a + b

    assert two(1, b=2) == 3
    with pytest.raises(InputError, match="'b' is missing"):
        two(1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="one too many"):
        two(1, 2, 3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="given twice"):
        two(1, 2, a=1)  # type: ignore[misc]


def test_a_class_is_checked_in_its_constructor_and_public_methods():
    @checked
    @dataclass(frozen=True, slots=True)
    class Point:
        x: int

        def plus(self, other: int) -> int:
            return self.x + other

        @classmethod
        def at(cls, x: int) -> Point:
            return cls(x)

        @staticmethod
        def double(x: int) -> int:
            return 2 * x

    assert Point.at(2).plus(3) == 5 and Point.double(2) == 4
    for call in (lambda: Point("2"), lambda: Point(2).plus("3"), lambda: Point.at("2"), lambda: Point.double("2")):  # type: ignore[arg-type]
        with pytest.raises(InputError):
            call()


def test_properties_of_a_protocol_are_not_computed():
    Dog.asked = 0
    accept(speaker=Dog())
    assert Dog.asked == 0


def test_an_unknown_name_is_answered_with_the_closest():
    error = unknown_name("task", "qestions", ["questions", "asked"], where="name")
    assert error.fix == "did you mean 'questions'?" and "questions, asked" in str(error.expected)
