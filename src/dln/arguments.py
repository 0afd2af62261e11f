"""Check the arguments of public functions against their annotations: the one place where a wrong call is refused.

`checked` decorates a function, or a class (its constructor and public methods). Before every call each argument is
compared with its annotation, constraints of `Annotated` included; what does not fit is an `InputError` that names the
argument, what was got, what was expected and what to write instead. Nothing is converted.

Stricter than Python where Python's leniency hides mistakes: a text is no sequence of texts, True is no number, NaN
and infinity are none either, and a class is not an instance of a protocol that its instances satisfy.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen

from dln.errors import InputError

__all__ = [
    "Count",
    "Fraction",
    "NonNegative",
    "Positive",
    "Seed",
    "Size",
    "Steps",
    "check_options",
    "checked",
    "did_you_mean",
    "shown",
    "unknown_name",
]

T = TypeVar("T")

Count = Annotated[int, Ge(1)]
"""A whole number of at least one: samples, rows, sizes of batches."""
Size = Annotated[int, Ge(0)]
"""A whole number of at least zero."""
Steps = Size
Seed = Annotated[int, Ge(0)]
"""A seed, as numpy takes it."""
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Gt(0), Lt(1)]
"""A share that is neither nothing nor all."""

_MARK = "__checked__"

_SECRET = ("api_key", "headers", "base_url")
"""Arguments that hold keys, or may."""

_MAKE: dict[str, str] = {
    "LanguageModel": 'dln.load_lm("smollm2"), or the name alone: "smollm2"',
    "Dataset": 'dln.Dataset.from_pairs([("an input", "its target"), …]), or dln.Dataset.from_csv(path)',
    "Example": 'dln.Example("an input", "its target")',
    "Sequential": "dln.Sequential(layer, …)",
    "Ensemble": "dln.Ensemble([network, …])",
    "Prompt": 'dln.Prompt("an instruction"), or the text alone',
    "Demonstration": 'dln.Demonstration(x="input", h="input", y="output")',
    "Sampling": "dln.Sampling(temperature=0.7)",
    "Options": 'dln.resolve_options("default"), or a dict of changes: {"steps": 5}',
    "Template": 'a name such as "classify", or dln.load_template(name)',
    "Task": 'dln.load_task("questions")',
    "Evaluation": "dln.evaluate(network, dataset)",
    "Store": 'dln.Store("cache.sqlite")',
    "Meter": "dln.Meter()",
    "Budget": "dln.Budget(max_calls=1000)",
    "Metric": 'a name such as "exact_match", or a function (prediction, target) -> number from 0 to 1',
    "Key": "dln.random.Key(13)",
    "LayerInput": "dln.nn.LayerInput(x=text, h=text)",
}
"""How objects of a class are made, for the last line of a message."""


def checked(target: T) -> T:
    """Refuse arguments that do not fit the annotations of `target`, a function or a class.

    Of a class, the constructor and the public methods are checked (its own, not inherited ones). Annotations are
    resolved at the first call, so that decorating costs nothing when the package is imported.

    Raises:
        InputError: (at a call) an argument is missing, unknown, or of another kind than annotated.
    """
    if not isinstance(target, type):
        return cast(T, _wrapped(cast("Callable[..., Any]", target)))
    for name, member in list(vars(cast(type, target)).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, classmethod | staticmethod):
            kind = cast("Callable[..., Any]", type(cast(object, member)))
            setattr(target, name, kind(_wrapped(cast("Callable[..., Any]", member.__func__))))
        elif inspect.isfunction(member):
            setattr(target, name, _wrapped(member))
    return target


def check_options(options: Mapping[str, object], function: Callable[..., Any], where: str) -> None:
    """Refuse options, given as a mapping, that are not keyword arguments of `function` or do not fit them.

    Raises:
        InputError: naming `where` and the option.
    """
    _Plan(function, where).refuse((), dict(options))


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that is closest to `word`, or None if none is close.

    >>> did_you_mean("step", ["steps", "seed"])
    'steps'
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return close[0] if close else None


def unknown_name(what: str, name: object, known: Iterable[str], *, where: object, expected: str = "{}") -> InputError:
    """The error for a name that is none of `known`.

    Args:
        what: what is named ("task", "preset").
        name: what was given.
        known: the names there are.
        where: the argument or option.
        expected: a sentence with `{}` for the list of names, where more than these is possible.
    """
    names = list(known)
    close = did_you_mean(str(name), names)
    return InputError(
        f"there is no {what} {shown(name)}",
        where=where,
        got=shown(name),
        expected=expected.replace("{}", f"one of {', '.join(names)}"),
        fix=f"did you mean {close!r}?" if close else f"for example {names[0]!r}" if names else f"the {what} itself",
    )


def shown(value: object, length: int = 80) -> str:
    """A value for a message: its repr, abridged, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - whatever is wrong with this object, the message is about the argument
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is wrong with a value, and at which place inside it."""

    got: object
    expected: str
    place: str = ""
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class _Check:
    """How values of one annotation are recognised; `find` gives None for a value that fits."""

    expected: str
    plural: str
    find: Callable[[object], _Problem | None]
    fix: str | None = None
    item: _Check | None = None


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    check: _Check | None
    needed: bool


class _Plan:
    """The parameters of one function with their checks."""

    def __init__(self, function: Callable[..., Any], where: str | None = None) -> None:
        self.where = function.__qualname__.removesuffix(".__init__") if where is None else where
        # what a function returns may be named in its own body only
        wanted = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
        hints = typing.get_type_hints(
            types.SimpleNamespace(__annotations__=wanted), globalns=function.__globals__, include_extras=True
        )
        self.positional: list[_Parameter] = []
        self.by_name: dict[str, _Parameter] = {}
        self.more: _Check | None = None
        self.more_name = ""
        self.more_positional = self.more_named = False
        for position, parameter in enumerate(inspect.signature(function).parameters.values()):
            known = parameter.name in hints and not (position == 0 and parameter.name in ("self", "cls"))
            check = _of(hints[parameter.name]) if known else None
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.more_positional, self.more, self.more_name = True, check, parameter.name
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.more_named = True
            else:
                row = _Parameter(parameter.name, check, parameter.default is parameter.empty)
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    self.positional.append(row)
                if parameter.kind is not parameter.POSITIONAL_ONLY:
                    self.by_name[parameter.name] = row
        every = {**{row.name: row for row in self.positional}, **self.by_name}
        self.needed = [row for row in every.values() if row.needed]
        # so many arguments by position are all that must be given
        self.complete = len(self.positional) + (1 if any(row not in self.positional for row in self.needed) else 0)
        while self.complete and self.complete <= len(self.positional) and not self.positional[self.complete - 1].needed:
            self.complete -= 1

    def refuse(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Raise the error for the first argument that does not fit."""
        for value, row in zip(args, self.positional, strict=False):
            if row.check is not None and (problem := row.check.find(value)) is not None:
                self._fail(row.name, row.check, value, problem)
        if len(args) > len(self.positional):
            self._refuse_more(args)
        for name, value in kwargs.items():
            row = self.by_name.get(name)
            if row is None:
                if not self.more_named:
                    self._unknown(name)
            elif row.check is not None and (problem := row.check.find(value)) is not None:
                self._fail(name, row.check, value, problem)
        if not kwargs and len(args) >= self.complete:
            return  # the usual call, and the dearest part of a check is what follows
        given = {row.name for row in self.positional[: len(args)]}
        self._refuse_twice(given & set(kwargs))
        for row in self.needed:
            if row.name not in given and row.name not in kwargs:
                self._missing(row)

    def _refuse_more(self, args: tuple[object, ...]) -> None:
        if not self.more_positional:
            self._too_many(args)
        for position, value in enumerate(args[len(self.positional) :] if self.more is not None else ()):
            if self.more is not None and (problem := self.more.find(value)) is not None:
                self._fail(f"{self.more_name}[{position}]", self.more, value, problem)

    def _refuse_twice(self, names: set[str]) -> None:
        for name in names:
            raise InputError(
                f"the argument {name!r} is given twice",
                where=self.where,
                got="a value by position and one by name",
                expected="one value",
                fix="leave one of the two out",
            )

    def _missing(self, row: _Parameter) -> None:
        expected = "a value" if row.check is None else row.check.expected
        made = None if row.check is None else row.check.fix
        raise InputError(
            f"the argument {row.name!r} is missing",
            where=self.where,
            got="nothing",
            expected=expected,
            fix=f"{row.name}={made or f'<{expected}>'}",
        )

    def _fail(self, name: str, check: _Check, value: object, problem: _Problem) -> None:
        raise InputError(
            f"the argument {name!r} cannot be used",
            where=self.where,
            # a key must not be seen, not even where it is of the wrong kind
            got=f"a {type(value).__name__}"
            if name in _SECRET
            else _described(problem.got) + (f" at {name}{problem.place}" if problem.place else ""),
            expected=problem.expected,
            fix=_fix(name, check, value, problem),
        )

    def _too_many(self, args: tuple[object, ...]) -> None:
        names = [row.name for row in self.positional if row.name not in ("self", "cls")]
        raise InputError(
            f"the argument {shown(args[len(self.positional)])} is one too many",
            where=self.where,
            got=f"{len(args) - len(self.positional) + len(names)} arguments by position",
            expected=f"at most {len(names)}: {', '.join(names)}",
            fix=f"name the arguments; there are {', '.join(n for n in self.by_name if n not in ('self', 'cls'))}",
        )

    def _unknown(self, name: str) -> None:
        names = [known for known in self.by_name if known not in ("self", "cls")]
        close = did_you_mean(name, names)
        raise InputError(
            f"there is no argument {name!r}",
            where=self.where,
            got=f"{name}=…",
            expected=f"one of {', '.join(names)}" if names else "no arguments",
            fix=f"did you mean {close!r}?" if close else "leave it out",
        )


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    plan: _Plan | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal plan
        if plan is None:
            plan = _Plan(function)
        plan.refuse(args, kwargs)
        return function(*args, **kwargs)

    setattr(call, _MARK, True)
    return call


def _described(value: object) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{shown(value)} ({type(value).__name__})"


def _fix(name: str, check: _Check, value: object, problem: _Problem) -> str:
    """What to write instead, as concretely as can be said."""
    fix = f"{name}={check.fix}" if check.fix else f"give {name} as {check.expected}"
    item = check.item
    if problem.fix is not None:
        fix = problem.fix
    elif isinstance(value, type) and not problem.place:
        fix = f"an object and not its class: {value.__name__}(…)"
    elif item is not None and not problem.place and item.find(value) is None:
        fix = f"put it into a list: {name}=[{shown(value)}]"
    elif item is not None and (isinstance(value, abc.Iterator) or callable(getattr(value, "tolist", None))):
        fix = f"make it a list: {name}=list({name})"
    elif isinstance(value, str) and "number" in problem.expected and (number := _number_in(value)) is not None:
        fix = f"write it without quotes: {name}={number}"
    return fix


def _number_in(text: str) -> str | None:
    try:
        return text.strip() if math.isfinite(float(text)) else None
    except ValueError:
        return None


def _of(annotation: Any) -> _Check | None:
    """The check of an annotation; None where any value fits."""
    if isinstance(annotation, TypeVar):
        annotation = object if annotation.__bound__ is None else annotation.__bound__
    if annotation in (Any, object):
        return None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _constrained(_of(arguments[0]), arguments[1:])
    if origin in (Union, types.UnionType):
        return _union([_of(argument) for argument in arguments])
    if origin is Literal:
        return _literal(arguments)
    return _plain(origin or annotation) if origin in (None, abc.Callable) else _container(origin, arguments)


def _plain(kind: Any) -> _Check | None:
    if kind in (abc.Callable, Callable):
        return _simple("a function", "functions", callable)
    kind = type(None) if kind is None else kind
    if kind in _PLAIN:
        return _simple(*_PLAIN[kind])
    if not isinstance(kind, type) or kind.__module__ == "typing":
        return None  # no class: nothing can be an instance of it
    kind = cast(Any, kind)
    name = str(kind.__name__)
    if issubclass(kind, abc.Mapping) or kind in (list, tuple, dict, set, frozenset):
        return _container(kind, ())
    test = _protocol_test(kind) if getattr(kind, "_is_protocol", False) else _instance_test(kind)
    return _simple(f"a {name}" if name[0] not in "AEIO" else f"an {name}", f"{name} objects", test, _MAKE.get(name))


def _simple(expected: str, plural: str, test: Callable[[Any], bool], fix: str | None = None) -> _Check:
    def find(value: object) -> _Problem | None:
        return None if test(value) else _Problem(value, expected)

    return _Check(expected, plural, find, fix)


def _is_int(value: object) -> bool:
    return type(value) is int or (not isinstance(value, bool) and isinstance(value, numbers.Integral))


def _is_float(value: object) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(float(value))


_PLAIN: dict[object, tuple[str, str, Callable[[Any], bool], str | None]] = {
    str: ("a text (str)", "texts (str)", lambda value: isinstance(value, str), None),
    bool: ("True or False", "truth values", lambda value: isinstance(value, bool | np.bool_), "True"),
    int: ("a whole number (int)", "whole numbers", _is_int, None),
    float: ("a finite number", "finite numbers", _is_float, None),
    type(None): ("None", "None", lambda value: value is None, None),
    Path: ("a path", "paths", lambda value: isinstance(value, Path), None),
}


_NUMBERS = {_PLAIN[int][1], _PLAIN[float][1]}


def _instance_test(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _protocol_test(kind: type) -> Callable[[object], bool]:
    """Whether an object is meant to satisfy a protocol: it has half of its members or more.

    A model that only draws, or only scores, is of use to what asks no more of it. Properties are looked up and not
    computed.
    """
    parents = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False) and base is not typing.Protocol]
    names = {n for base in parents for n in vars(base) if not n.startswith("_") or n == "__call__"}

    def test(value: object) -> bool:
        if isinstance(value, type):
            return False
        own = getattr(value, "__dict__", {})
        return 2 * sum(hasattr(type(value), n) or n in own or hasattr(value, n) for n in names) >= len(names)

    return callable if names == {"__call__"} else test


def _literal(choices: tuple[object, ...]) -> _Check:
    expected = f"one of {', '.join(map(repr, choices))}"
    words = [choice for choice in choices if isinstance(choice, str)]

    def find(value: object) -> _Problem | None:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        close = did_you_mean(value, words) if isinstance(value, str) else None
        return _Problem(value, expected, fix=f"did you mean {close!r}?" if close else None)

    return _Check(expected, expected, find, repr(choices[0]))


def _union(members: list[_Check | None]) -> _Check | None:
    checks = [member for member in members if member is not None]
    if len(checks) < len(members):
        return None
    # an optional number is asked for as a number: nobody who wrote it wrongly meant None
    words = dict.fromkeys(check.expected for check in checks)
    expected = " or ".join(words)
    fix = next((check.fix for check in checks if check.fix is not None), None)
    item = next((check.item for check in checks if check.item is not None), None)

    def find(value: object) -> _Problem | None:
        problems: list[_Problem] = []
        for check in checks:
            problem = check.find(value)
            if problem is None:
                return None
            problems.append(problem)
        inside = [problem for problem in problems if problem.place]
        hinted = next((problem.fix for problem in problems if problem.fix), None)
        return inside[0] if inside else _Problem(value, expected, fix=hinted)

    return _Check(expected, " or ".join(check.plural for check in checks), find, fix, item)


def _container(origin: Any, arguments: tuple[Any, ...]) -> _Check | None:
    if origin is type:
        return _simple("a class", "classes", lambda value: isinstance(value, type))
    if isinstance(origin, type) and issubclass(origin, np.ndarray):
        return _simple("a numpy array", "numpy arrays", lambda value: isinstance(value, np.ndarray))
    if isinstance(origin, type) and issubclass(origin, abc.Mapping):
        return _mapping(arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return _tuple(arguments)
    if isinstance(origin, type) and issubclass(origin, abc.Iterable):
        return _sequence(cast(type, origin), arguments)
    return _plain(origin)


def _sequence(origin: type, arguments: tuple[Any, ...]) -> _Check:
    item = _of(arguments[0]) if arguments else None
    expected = "a list" + (f" of {item.plural}" if item is not None else "")
    # a tuple of any length may be given as a list: values that keep it make a tuple of it
    wide = abc.Sequence if origin in (list, tuple) else origin

    # numbers come as arrays and columns of tables too, which iterate and index as a sequence does
    numeric = wide is abc.Sequence and item is not None and item.plural in _NUMBERS

    def find(value: object) -> _Problem | None:
        if numeric and isinstance(value, np.ndarray) and value.ndim == 1:
            value = cast("list[object]", value.tolist())
        if isinstance(value, str | bytes | bytearray | abc.Mapping) or not isinstance(value, wide):
            return _Problem(cast(Any, value), expected)
        # an iterator would be used up by looking at its items
        items = cast("Iterable[object]", value if isinstance(value, abc.Sequence | abc.Set) else ())
        if item is not None:
            for position, one in enumerate(items):
                if (problem := item.find(one)) is not None:
                    return _Problem(problem.got, problem.expected, f"[{position}]{problem.place}", problem.fix)
        return None

    return _Check(expected, f"lists of {item.plural}" if item is not None else "lists", find, None, item)


def _tuple(arguments: tuple[Any, ...]) -> _Check:
    checks = [_of(argument) for argument in arguments if argument != ()]
    words = ", ".join("anything" if check is None else check.expected for check in checks)
    kind = {2: "a pair", 3: "a triple"}.get(len(checks), f"{len(checks)} values")
    expected = f"{kind} ({words})"

    def find(value: object) -> _Problem | None:
        items = cast("list[object]", value if isinstance(value, tuple | list) else [])
        if len(items) != len(checks):
            return _Problem(cast(Any, value), expected)
        for position, (one, check) in enumerate(zip(items, checks, strict=True)):
            if check is not None and (problem := check.find(one)) is not None:
                return _Problem(problem.got, problem.expected, f"[{position}]{problem.place}", problem.fix)
        return None

    return _Check(expected, f"{kind.removeprefix('a ')}s ({words})", find)


def _mapping(arguments: tuple[Any, ...]) -> _Check:
    key, item = (_of(argument) for argument in arguments) if len(arguments) == 2 else (None, None)
    parts = [part.plural for part in (key, item) if part is not None]
    expected = "a dict" + (f" of {' to '.join(parts)}" if parts else "")

    def find(value: object) -> _Problem | None:
        if not isinstance(value, abc.Mapping):
            return _Problem(cast(Any, value), expected)
        for name, one in cast("Mapping[object, object]", value).items():
            if key is not None and (problem := key.find(name)) is not None:
                return _Problem(problem.got, f"{expected}: every key {problem.expected}", f" key {shown(name, 30)}")
            if item is not None and (problem := item.find(one)) is not None:
                return _Problem(problem.got, problem.expected, f"[{shown(name, 30)}]{problem.place}", problem.fix)
        return None

    return _Check(expected, f"dicts{expected.removeprefix('a dict')}", find)


def _constrained(check: _Check | None, metadata: tuple[object, ...]) -> _Check | None:
    """A check with the bounds that `Annotated` names; other metadata is not ours."""
    if check is None:
        return None
    flat: list[object] = []
    for one in metadata:
        flat.extend(cast("Iterable[object]", one) if isinstance(one, GroupedMetadata) else [one])
    tests: list[Callable[[Any], bool]] = []
    words: list[str] = []
    for bound in flat:
        if isinstance(bound, Ge):
            tests.append(lambda value, bound=bound: value >= bound.ge)
            words.append(f"≥ {bound.ge}")
        elif isinstance(bound, Gt):
            tests.append(lambda value, bound=bound: value > bound.gt)
            words.append(f"> {bound.gt}")
        elif isinstance(bound, Le):
            tests.append(lambda value, bound=bound: value <= bound.le)
            words.append(f"≤ {bound.le}")
        elif isinstance(bound, Lt):
            tests.append(lambda value, bound=bound: value < bound.lt)
            words.append(f"< {bound.lt}")
        elif isinstance(bound, MinLen):
            tests.append(lambda value, bound=bound: not hasattr(value, "__len__") or len(value) >= bound.min_length)
            words.append("that is not empty" if bound.min_length == 1 else f"with {bound.min_length} or more items")
    expected = f"{check.expected.removesuffix(' (int)')} {' and '.join(words)}" if words else check.expected

    def find(value: object) -> _Problem | None:
        problem = check.find(value)
        if problem is not None:
            return problem if problem.place else _Problem(value, expected, fix=problem.fix)
        return None if all(test(value) for test in tests) else _Problem(value, expected)

    plural = f"{check.plural} {' and '.join(words)}" if words else check.plural
    return _Check(expected, plural, find, check.fix, check.item)
