"""Metrics: the score of a prediction, between 0 and 1, and aggregates over examples.

A metric is any callable (function, coroutine function, lambda, `functools.partial`, object) of one of these forms

    metric(example, prediction) -> float | bool | Score(value, feedback)
    metric(example, prediction, trace)
    metric(prediction, target)

or a name ("normalized", a registered one, "package.module:function", "file.py:function"). An `example` has the
attributes `input` and `target`, and `trace` is the sequence of hidden texts that led to the prediction. A callable is
of the first forms if it has a parameter `trace`, three positional parameters, a first parameter that is called
`example` or `gold` or annotated as an `Example`, or a second one whose name begins with `pred`.

`load_metric` turns either into a `NamedMetric`, which has a name for reports and checks the values;
`dln.data.grading.Grader` applies it to many predictions.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from dln import extensions
from dln.answers import begins_with, first_words_agree, labels_said, number_of, numbers_in, tokens, words_of
from dln.arguments import checked, shown
from dln.data.labels import spelling_map
from dln.data.set_metrics import LABEL_METRICS, SET_METRICS, SetMetric
from dln.errors import InputError
from dln.numerics import Floats

__all__ = [
    "METRIC_NAMES",
    "ExactMatch",
    "FunctionMetric",
    "Metric",
    "NamedMetric",
    "NumberPresence",
    "PaperMatch",
    "Score",
    "accuracy",
    "as_score",
    "balanced_accuracy",
    "confusion_matrix",
    "exact_match",
    "load_metric",
    "number_presence",
    "scores",
    "suggested_metric",
]

METRIC_NAMES = (
    *("exact", "normalized", "numeric", "json", "json_fields", "token_f1", "contains", "paper"),
    *("exact_match", "number_presence", *SET_METRICS, *LABEL_METRICS),
)
"""The built-in metrics."""


@checked
@dataclass(frozen=True, slots=True)
class Score:
    """A score with feedback, which a metric may return instead of a number.

    Attributes:
        value: from 0 (wrong) to 1 (right).
        feedback: a comment on the prediction.

    Raises:
        InputError: the value is not between 0 and 1.
    """

    value: float
    feedback: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0:
            raise InputError(
                "the argument 'value' cannot be used",
                where="Score",
                got=self.value,
                expected="a number from 0 to 1",
                fix="divide by the largest possible score",
            )

    def __float__(self) -> float:
        return float(self.value)


class Metric(Protocol):
    """A callable that scores a prediction, from 0 (wrong) to 1 (right); see the module for its three forms."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return a number from 0 to 1, True or False, a `Score`, or an awaitable of one of these."""
        ...


@runtime_checkable
class NamedMetric(Protocol):
    """A metric with a name whose values are checked floats."""

    @property
    def name(self) -> str:
        """Name for reports."""
        ...

    def __call__(self, prediction: str, target: str, /) -> float:
        """Return the score of `prediction` for `target`."""
        ...


@checked
@dataclass(frozen=True, slots=True)
class ExactMatch:
    """1 if the prediction starts with the target, else 0.

    Words, numbers by their value, and symbols are compared (see `dln.answers.tokens`); case and punctuation are
    ignored: `"Option (A)."` matches `"(A)"`, `"1. Positive, because …"` matches `"positive"`, `"-5"` does not match
    `"5"`, and `"C++"` not `"C#"`.

    Args:
        labels: label specifications ("yes|Yes"). With them, the longest label that the prediction starts with counts,
            so that "new york" does not match "new".
    """

    labels: tuple[str, ...] = ()
    name: str = "exact_match"

    def __call__(self, prediction: str, target: str) -> float:
        """1.0 or 0.0."""
        if prediction == target:
            return 1.0
        if not self.labels:
            return float(begins_with(prediction, target))
        names = spelling_map(self.labels)
        return float(names.get(target, target) in labels_said(prediction, names))


@checked
@dataclass(frozen=True, slots=True)
class PaperMatch:
    """The paper's rule: 1 if the first words of prediction and target are equal, without case, signs and symbols.

    The paper compares the first word only; here a target of n words is compared with the first n words.

    Args:
        labels: label specifications; with them the longest label that the prediction starts with counts.
    """

    labels: tuple[str, ...] = ()
    name: str = "paper"

    def __call__(self, prediction: str, target: str) -> float:
        """1.0 or 0.0."""
        if prediction == target:
            return 1.0
        if not self.labels:
            return float(first_words_agree(prediction, target))
        names = spelling_map(self.labels)
        if prediction.strip() in names:
            return float(names[prediction.strip()] == names.get(target, target))
        said = [spelling for spelling in names if first_words_agree(prediction, spelling)]
        longest = max((len(words_of(spelling)) for spelling in said), default=0)
        found = {names[spelling] for spelling in said if len(words_of(spelling)) == longest}
        return float(names.get(target, target) in found)


@checked
@dataclass(frozen=True, slots=True)
class NumberPresence:
    """1 if the prediction contains the target number, else 0.

    `1,000`, `$1000` and `1000.0` are the same number; `-5` is not `5`. Parts of longer numbers, of fractions, of times
    and of words (`x2`, `18th`) do not count.

    Raises:
        InputError: (when called) the target does not contain exactly one number.
    """

    name: str = "number_presence"

    def __call__(self, prediction: str, target: str) -> float:
        """1.0 or 0.0."""
        wanted = _numbers(target)
        if len(wanted) != 1:
            raise InputError(
                "the metric number_presence needs a number as target",
                where="target",
                got=repr(target),
                fix="use exact_match or your own metric",
            )
        return float(wanted[0] in _numbers(prediction))


@checked
@dataclass(frozen=True, slots=True)
class FunctionMetric:
    """A named metric made of a callable.

    Args:
        function: the callable.
        name: for reports.
        reads: how it is called: with "texts" as (prediction, target), with the "example" as (example, prediction), and
            with "trace" as (example, prediction, trace).
        own: whether it is the user's, and so may fail, take time or cost money.

    Raises:
        InputError: (when called) the value is neither a number from 0 to 1 nor a `Score`, or the metric reads examples
            and is given texts alone.
    """

    function: Callable[..., object]
    name: str
    reads: Literal["texts", "example", "trace"] = "texts"
    own: bool = True

    @property
    def asynchronous(self) -> bool:
        """Whether the callable returns a coroutine."""
        function = self.function
        while isinstance(function, functools.partial):
            function = cast("functools.partial[object]", function).func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004

    def call(self, example: Any, prediction: Any, trace: object = None) -> object:
        """What the callable returns, unchecked."""
        if self.reads == "texts":
            return self.function(prediction, example.target)
        return (
            self.function(example, prediction) if self.reads == "example" else self.function(example, prediction, trace)
        )

    def __call__(self, prediction: str, target: str) -> float:
        """The value of `score`."""
        return self.score(prediction, target).value

    def score(self, prediction: str, target: str) -> Score:
        """Return the score of a prediction with its feedback."""
        if self.reads != "texts" or self.asynchronous:
            raise InputError(
                "this metric reads more than a prediction and its target",
                where=f"metric {self.name}",
                got="two texts",
                expected="a metric (prediction, target) -> number from 0 to 1",
                fix="dln.evaluate(network, dataset, metric=…)",
            )
        return as_score(self.function(prediction, target), self.name, prediction, target)


def as_score(value: object, name: str, *texts: str) -> Score:
    """What a metric returned, as a `Score`.

    Raises:
        InputError: it is neither a number from 0 to 1 nor a `Score`. `texts` (prediction, target) are for the message.
    """
    if isinstance(value, Score):
        return value
    is_number = isinstance(value, bool | int | float | np.bool_ | np.number)
    number = float(cast(float, value)) if is_number else math.nan
    if not 0.0 <= number <= 1.0:
        about = "".join(
            f" {link} {shown(text, 40)}"
            for link, text in zip(("for the prediction", "and the target"), texts, strict=False)
        )
        raise InputError(
            f"the metric {name!r} returned an invalid score",
            where=f"metric {name}",
            got=f"{shown(value)} ({type(value).__name__}){about}",
            expected="a number from 0 to 1, True or False, or dln.Score(value, feedback)",
            fix="return 1.0 for a correct prediction and 0.0 for a wrong one",
        )
    return Score(number)


exact_match = ExactMatch()
number_presence = NumberPresence()


def exact(prediction: str, target: str) -> float:
    """1 if the texts are equal but for white space at the ends."""
    return float(unicodedata.normalize("NFC", prediction).strip() == unicodedata.normalize("NFC", target).strip())


def normalized(prediction: str, target: str) -> float:
    """1 if the tokens are equal: case, white space and punctuation are ignored, numbers compared by value."""
    wanted = tokens(target)
    return float(tokens(prediction) == wanted) if wanted else exact(prediction, target)


def numeric(prediction: str, target: str) -> float:
    """1 if the prediction is the target number, or the last number that it contains is.

    Signs, decimals, thousands separators, percent and fractions are read: `-1,000.5`, `50%` = `0.5`, `3/4` = `0.75`.

    Raises:
        InputError: the target is not a number.
    """
    wanted = number_of(target)
    if wanted is None:
        found = numbers_in(target)
        wanted = found[0] if len(found) == 1 else None
    if wanted is None:
        raise InputError(
            "the metric numeric needs a number as target",
            where="target",
            got=repr(target[:60]),
            expected="a number such as -1,000.5, 50% or 3/4",
            fix="use normalized, contains or your own metric",
        )
    said = number_of(prediction)
    if said is None:
        last = numbers_in(prediction)
        said = last[-1] if last else None
    if said is None or not math.isclose(said, wanted, rel_tol=1e-9, abs_tol=0.0):
        return 0.0
    money = [{token for token in tokens(text) if token in ("$", "€", "£", "¥")} for text in (prediction, target)]
    return float(not (money[0] and money[1]) or money[0] == money[1])


def json_match(prediction: str, target: str) -> float:
    """1 if both are the same JSON value: the order of keys and the form of numbers and of white space are ignored.

    The value may stand in a fenced block or within other text.

    Raises:
        InputError: the target is not JSON.
    """
    try:
        wanted = json.loads(target)
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the metric json needs JSON as target",
            where="target",
            got=repr(target[:60]),
            expected='a JSON value such as {"item": "fan"}',
            fix="use normalized or your own metric",
        ) from error
    return float(any(_same_json(value, wanted) for value in _json_values(prediction)))


def json_fields(prediction: str, target: str) -> Score:
    """The part of the target's fields that the prediction has with the same value; the feedback names the others.

    A target that is no object is compared as a whole. The value may stand in a fenced block or within other text.

    Raises:
        InputError: the target is not JSON.
    """
    if json_match(prediction, target):
        return Score(1.0)
    wanted = json.loads(target)
    values = _json_values(prediction)
    if not values:
        return Score(0.0, "this is not JSON")
    if not isinstance(wanted, dict) or not isinstance(values[0], dict):
        return Score(0.0, "this is another JSON value")
    said, fields = cast("dict[str, object]", values[0]), cast("dict[str, object]", wanted)
    wrong = [name for name, value in fields.items() if name not in said or not _same_json(said[name], value)]
    more = [name for name in said if name not in fields]
    told = [f"wrong or missing: {', '.join(wrong)}"] * bool(wrong) + [f"not wanted: {', '.join(more)}"] * bool(more)
    return Score((len(fields) - len(wrong)) / max(1, len(fields) + len(more)), "; ".join(told))


def _json_values(text: str) -> list[object]:
    """The JSON value that a text is, or the first object or list within it."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", text, re.DOTALL)
    for candidate in (text, *([fenced[1]] if fenced else [])):
        try:
            return [json.loads(candidate)]
        except (ValueError, RecursionError):
            continue
    for start in (match.start() for match in re.finditer(r"[{\[]", text)):
        try:
            return [json.JSONDecoder().raw_decode(text, start)[0]]
        except (ValueError, RecursionError):
            continue
    return []


def _same_json(a: object, b: object) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=0.0)
    if isinstance(a, dict) and isinstance(b, dict):
        first, second = cast("dict[str, object]", a), cast("dict[str, object]", b)
        return first.keys() == second.keys() and all(_same_json(first[key], second[key]) for key in first)
    if isinstance(a, list) and isinstance(b, list):
        left, right = cast("list[object]", a), cast("list[object]", b)
        return len(left) == len(right) and all(map(_same_json, left, right))
    if isinstance(a, str) and isinstance(b, str):
        return unicodedata.normalize("NFC", a) == unicodedata.normalize("NFC", b)
    return a is None and b is None


def token_f1(prediction: str, target: str) -> float:
    """F1 of the tokens that prediction and target share, without English articles."""
    said, wanted = ([t for t in tokens(text) if t not in ("a", "an", "the")] for text in (prediction, target))
    if not said or not wanted:
        return exact(prediction, target) if not said and not wanted else 0.0
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def token_f1_with_feedback(prediction: str, target: str) -> Score:
    """`token_f1`, with the tokens that are missing and those that are too many as feedback."""
    said, wanted = Counter(tokens(prediction)), Counter(tokens(target))
    parts = (("missing", wanted - said), ("too much", said - wanted))
    told = [f"{name}: {' '.join(map(str, list(found.elements())[:12]))}" for name, found in parts if found]
    return Score(token_f1(prediction, target), "; ".join(told))


def contains(prediction: str, target: str) -> float:
    """1 if the tokens of the target occur in the prediction one after another."""
    wanted, said = tokens(target), tokens(prediction)
    if not wanted:
        return float(target.strip() in prediction)
    n = len(wanted)
    return float(any(said[i : i + n] == wanted for i in range(len(said) - n + 1)))


_NAMED: dict[str, Callable[[str, str], float | Score]] = {
    "exact": exact,
    "normalized": normalized,
    "numeric": numeric,
    "json": json_match,
    "json_fields": json_fields,
    "token_f1": token_f1_with_feedback,
    "contains": contains,
}


def suggested_metric(targets: Sequence[str]) -> str:
    """The metric for free texts of this kind: "json" for objects and lists, "numeric" for numbers, else "exact_match".

    >>> suggested_metric(["-5", "1,000"]), suggested_metric(["Paris"])
    ('numeric', 'exact_match')
    """
    sample = list(dict.fromkeys(targets))[:500]
    if sample and all(number_of(text) is not None for text in sample):
        return "numeric"
    if sample and all(text[:1] in "{[" for text in sample):
        try:
            for text in sample:
                json.loads(text)
        except (ValueError, RecursionError):
            return "exact_match"
        return "json"
    return "exact_match"


@checked
def load_metric(metric: Metric | str, labels: Sequence[str] | None = None) -> NamedMetric:
    """Return a metric with a name and checked values.

    Args:
        metric: a name of `METRIC_NAMES` or a registered one (see `dln.extensions`); "package.module:function", where
            the module may be in the working directory, or "path/file.py:function"; or a callable (see the module).
        labels: label specifications for `exact_match`, `paper` and metrics of all predictions (`dln.data.set_metrics`).

    Raises:
        InputError: no such metric, file, module or function, or a callable that takes none of the forms.
    """
    if isinstance(metric, SetMetric):
        metric = metric.name if labels and not metric.labels else metric
    if isinstance(metric, ExactMatch | NumberPresence | PaperMatch | FunctionMetric | SetMetric):
        return metric
    if not isinstance(metric, str):
        return FunctionMetric(metric, _name_of(metric), _form(metric))
    if metric in METRIC_NAMES:
        return _built_in(metric, tuple(labels or ()))
    path, _, name = metric.rpartition(":")
    if path.endswith(".py"):
        function = extensions.from_file(Path(path), name, "metric")
    else:
        function = extensions.load("metric", metric, METRIC_NAMES)
    if not callable(function):
        raise InputError(
            "the metric is not a function",
            where=f"metric {metric}",
            got=shown(function),
            expected="a function (example, prediction) -> float",
            fix="def my_metric(example, prediction): ...",
        )
    return FunctionMetric(function, metric, _form(function))


def _built_in(name: str, labels: tuple[str, ...]) -> NamedMetric:
    if name in _NAMED:
        return FunctionMetric(_NAMED[name], name, own=False)
    if name in SET_METRICS or name in LABEL_METRICS:
        return SetMetric(name, labels)
    return (
        NumberPresence() if name == "number_presence" else (ExactMatch if name == "exact_match" else PaperMatch)(labels)
    )


@checked
def scores(predictions: Sequence[str], targets: Sequence[str], metric: Metric | str = exact_match) -> Floats:
    """[N] score of each prediction.

    Raises:
        InputError: the lengths differ, or there is nothing to score.
    """
    if len(predictions) != len(targets) or not targets:
        raise InputError(
            "there must be one prediction per target, and at least one",
            where="predictions",
            got=f"{len(predictions)} predictions, {len(targets)} targets",
            expected="equal numbers of both",
            fix="give one prediction per target",
        )
    judge = load_metric(metric)
    return np.array([judge(p, t) for p, t in zip(predictions, targets, strict=True)], dtype=np.float64)


@checked
def accuracy(predictions: Sequence[str], targets: Sequence[str], metric: Metric | str = exact_match) -> float:
    """Mean score over the examples."""
    return float(scores(predictions, targets, metric).mean())


@checked
def balanced_accuracy(predictions: Sequence[str], targets: Sequence[str], metric: Metric | str = exact_match) -> float:
    """Mean over the classes that occur in `targets` of the mean score in the class."""
    values = scores(predictions, targets, metric)
    classes = np.array(targets)
    return float(np.mean([values[classes == label].mean() for label in dict.fromkeys(targets)]))


@checked
def confusion_matrix(
    predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    """[C, C + 1] counts: row = true label, column = predicted label, last column = no label.

    Raises:
        InputError: the lengths differ, or a target is not one of the labels.
    """
    names = tuple(dict.fromkeys(spelling_map(labels).values()))
    row = {name: i for i, name in enumerate(names)}
    metric = ExactMatch(tuple(labels))
    scores(predictions, targets)
    counts = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for prediction, target in zip(predictions, targets, strict=True):
        if target not in row:
            raise InputError("a target is not one of the labels", got=repr(target), expected=", ".join(names))
        said = [i for i, name in enumerate(names) if metric(prediction, name)]
        counts[row[target], said[0] if said else len(names)] += 1
    return counts


# A sign after an operand is a subtraction: "16 -3" is 16 and 3, "= -3" is −3.
_NUMBER = re.compile(
    r"(?<![\w/])(?<!\d[.,:])(?P<sign>[-\u2212])?[$€£]?(?P<body>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?![\w/]|[.,:]\d)"
)


def _numbers(text: str) -> list[Decimal]:
    """All numbers in a text, as exact decimals."""
    found: list[Decimal] = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match["body"].replace(",", ""))
        operand_before = re.search(r"[\d)]\s*[$€£]?$", text[: match.start()]) is not None
        currency_sign = re.search(r"[-\u2212]\s?[$€£]$", text[: match.start()]) is not None
        negative = (match["sign"] is not None and not operand_before) or currency_sign
        found.append(-value if negative else value)
    return found


def _form(function: Callable[..., object]) -> Literal["texts", "example", "trace"]:
    """How a callable is to be called.

    Raises:
        InputError: a class, or a callable that takes neither two nor three arguments.
    """
    if isinstance(function, type):
        raise InputError(
            "the argument 'metric' cannot be used",
            where="metric",
            got=f"the class {function.__name__}",
            expected=f"a callable {_FORMS}",
            fix=f"an object of the class: {function.__name__}(…)",
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some C functions have no signature
        return "texts"
    positional = [
        one for one in signature.parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names = [one.name.lower() for one in positional]
    if "trace" in names[2:3] or (len([one for one in positional if one.default is one.empty]) == 3):
        if _binds(signature, 3):
            return "trace"
    elif _binds(signature, 2):
        typed = str(positional[0].annotation) if positional else ""
        by_name = names[:1] in (["example"], ["gold"]) or any(name.startswith("pred") for name in names[1:2])
        return "example" if by_name or re.search(r"\bExample\b", typed) else "texts"
    raise InputError(
        "the metric cannot be called with an example and a prediction",
        where="metric",
        got=f"{_name_of(function)}{signature}",
        expected=f"a callable {_FORMS}",
        fix="def my_metric(example, prediction): ...",
    )


_FORMS = "(example, prediction), (example, prediction, trace) or (prediction, target) -> number from 0 to 1"


def _binds(signature: inspect.Signature, count: int) -> bool:
    """Whether a callable takes so many positional arguments."""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _name_of(metric: object) -> str:
    """The name of a callable: its attribute `name`, its function's name, or its class's name."""
    name = getattr(metric, "name", None)
    if isinstance(name, str) and name:
        return name
    if isinstance(metric, functools.partial):
        return _name_of(cast("functools.partial[object]", metric).func)
    return str(getattr(metric, "__name__", type(metric).__name__))
