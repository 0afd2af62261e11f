r"""The trace of a program: its named intermediate texts, and how one of them is replaced.

A program is a callable `program(example, parameters, trace)`, sync or async. It reads its texts from `parameters` and
hands every intermediate text to `trace`, which returns the text to go on with:

    topic = trace("find", lambda: ask(f"{parameters['find']}\n{example.input}"), reads=example.input)
    return trace("answer", lambda: ask(f"{parameters['answer']}\n{topic}"), reads=topic)

The trace usually returns the text as it was written. During inference it returns another value h of this latent
variable, and what follows shows the reward of h; the callable is not called then.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, cast, overload

import numpy as np

from dln.arguments import checked, shown, unknown_name
from dln.errors import InputError
from dln.lm.base import LanguageModel, Sampling, Target, text_of
from dln.lm.meter import Usage
from dln.lm.prices import PriceTable

__all__ = [
    "Parameters",
    "Program",
    "Request",
    "Rollout",
    "Stage",
    "Trace",
    "content",
    "plain",
    "run",
    "text_view",
    "usage_of",
]

Program = Callable[..., Any]
"""program(example, parameters, trace) -> output, or an awaitable of it."""


@dataclass(frozen=True)
class Stage:
    """One intermediate text of a rollout.

    Attributes:
        name: of the stage; the second text of one name is "name#2".
        parameters: names of the parameters that it used.
        reads: what it read, for the models that propose.
        text: h.
        log_prob: log p(h | what it read, its parameters), in nats; None where it is not known.
        given: whether the text was given in place of the stage's own.
    """

    name: str
    parameters: tuple[str, ...]
    reads: str
    text: str
    log_prob: float | None = None
    given: bool = False


@dataclass(frozen=True)
class Rollout:
    """One run of a program on one example.

    Attributes:
        stages: in the order of their texts.
        used: names of the parameters that were read, whether for a stage or not.
        usage: what its language models used.
    """

    stages: tuple[Stage, ...]
    used: tuple[str, ...]
    usage: Usage

    def find(self, name: str) -> Stage | None:
        """The stage of this name."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def position(self, name: str) -> int:
        """The place of the stage of this name; −1 if there is none."""
        return next((i for i, stage in enumerate(self.stages) if stage.name == name), -1)


class GivenText(str):
    """A text that an async program can await, as it awaits its own texts."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, str]:
        yield from ()
        return str(self)


class Parameters(Mapping[str, str]):
    """The texts of a program by name. It remembers which were read, so that each stage is known to depend on them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> str:
        if name not in self._values:
            raise InputError(
                f"the program reads a parameter {name!r} that it was not given",
                where="parameters",
                got=", ".join(self._values),
                expected=f"a text named {name!r}",
                fix=f"parameters={{…, {name!r}: 'a text'}}",
            )
        self.read.append(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Trace:
    """Records the intermediate texts of one rollout, and replaces those that are given.

    Args:
        parameters: of the program.
        seed: of this rollout; candidates are compared under equal seeds.
        given: texts by stage name that replace the stages' own.
        default_reads: what a first stage is said to read where the program does not say it.
    """

    def __init__(
        self, parameters: Parameters, seed: int = 0, given: Mapping[str, str] | None = None, default_reads: str = ""
    ) -> None:
        self.seed = seed
        self._parameters = parameters
        self._given = dict(given or {})
        self._default_reads = default_reads
        self._attributed = 0
        self._counts: dict[str, int] = {}
        self._stages: list[Stage] = []
        self._spent: Usage | None = None
        self._calls = 0

    @overload
    def __call__(
        self,
        name: str,
        text: str,
        *,
        reads: object = None,
        uses: str | Sequence[str] | None = None,
        log_prob: float | None = None,
    ) -> str: ...

    @overload
    def __call__(
        self,
        name: str,
        text: Callable[[], str],
        *,
        reads: object = None,
        uses: str | Sequence[str] | None = None,
        log_prob: float | None = None,
    ) -> str: ...

    @overload
    def __call__(
        self,
        name: str,
        text: Callable[[], Awaitable[str]],
        *,
        reads: object = None,
        uses: str | Sequence[str] | None = None,
        log_prob: float | None = None,
    ) -> Awaitable[str]: ...

    @checked
    def __call__(
        self,
        name: str,
        text: Any,
        *,
        reads: object = None,
        uses: str | Sequence[str] | None = None,
        log_prob: float | None = None,
    ) -> str | Awaitable[str]:
        """Record the text of stage `name`, and return the text to go on with.

        Args:
            name: of the stage.
            text: the text, or a callable (sync or async) that writes it. A callable is better: it is not called where
                another text is given.
            reads: what the stage reads, as a text or a mapping of names to values; by default the text of the stage
                before.
            uses: names of its parameters; by default the one with the stage's name, else those read since the stage
                before.
            log_prob: log p(text | …), in nats, where the program knows it.

        Raises:
            InputError: the text is no `str`.
        """
        occurrence = self._occurrence(name)
        given = self._given.get(occurrence)
        if given is not None:
            return self._record(occurrence, GivenText(given), reads, uses, log_prob, given=True)
        self._calls += callable(text)
        written: object = text() if callable(text) else text
        if inspect.isawaitable(written):
            return self._later(occurrence, cast("Awaitable[object]", written), reads, uses, log_prob)
        return self._record(occurrence, written, reads, uses, log_prob)

    @checked
    def draw(
        self,
        name: str,
        lm: LanguageModel,
        context: str,
        sampling: Sampling | None = None,
        *,
        reads: object = None,
        uses: str | Sequence[str] | None = None,
    ) -> str:
        """Draw the text of stage `name` from a language model of dln, and record it with log p(text | context).

        The draw has the rollout's seed; calls and tokens are counted; a given text is scored where the model can.
        """
        occurrence = self._occurrence(name)
        target: Target | None = self._given.get(occurrence)
        given = target is not None
        if target is None:
            (target,) = lm.sample([context], sampling or Sampling(), [self.seed])
            self.spend(usage_of(lm, context, target.text))
        scores = lm.log_prob([context], [target]) if lm.capabilities.scores_targets else []
        log_prob = scores[0].log_prob if scores and scores[0].finite else None
        return self._record(occurrence, text_of(target), reads, uses, log_prob, given)

    @checked
    def spend(self, usage: Usage) -> None:
        """Count what a language model used; without it every text that a callable wrote counts as one call."""
        self._spent = usage if self._spent is None else self._spent + usage

    def rollout(self) -> Rollout:
        """What was recorded."""
        usage = Usage(calls=self._calls) if self._spent is None else self._spent
        return Rollout(tuple(self._stages), tuple(dict.fromkeys(self._parameters.read)), usage)

    def _occurrence(self, name: str) -> str:
        self._counts[name] = count = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    async def _later(
        self,
        name: str,
        written: Awaitable[object],
        reads: object,
        uses: str | Sequence[str] | None,
        log_prob: float | None,
    ) -> str:
        return self._record(name, await written, reads, uses, log_prob)

    def _record(
        self,
        name: str,
        text: object,
        reads: object,
        uses: str | Sequence[str] | None,
        log_prob: float | None,
        given: bool = False,
    ) -> str:
        if not isinstance(text, str):
            raise InputError(
                "an intermediate text must be a text",
                where=f"stage {name!r}",
                got=f"{shown(text)} ({type(text).__name__})",
                expected="a text (str)",
                fix="json.dumps(value) for a value that is no text",
            )
        since = self._parameters.read[self._attributed :]
        self._attributed = len(self._parameters.read)
        base = name.split("#", 1)[0]
        if uses is None:
            own = (base,) if base in self._parameters else tuple(dict.fromkeys(since))
        else:
            own = (uses,) if isinstance(uses, str) else tuple(uses)
        for parameter in own:
            if parameter not in self._parameters:
                raise unknown_name("parameter", parameter, self._parameters, where=f"stage {name!r}")
        before = self._stages[-1].text if self._stages else self._default_reads
        said = before if reads is None else text_view(reads)
        self._stages.append(Stage(name, own, said, text, log_prob, given))
        return text


def usage_of(lm: LanguageModel, context: str, text: str) -> Usage:
    """What one draw used, at the list price where there is one."""
    quote = PriceTable().find(lm.name)
    read, drawn = lm.count_tokens(context), lm.count_tokens(text)
    return Usage(1, read, drawn, usd=0.0 if quote is None else quote.price.usd(read, drawn))


@dataclass(frozen=True)
class Request:
    """A rollout to be run.

    Attributes:
        example: its position in the data.
        parameters: (name, text) of all parameters.
        given: (stage, text) of the stages whose texts are given.
        draw: number of the draw; equal numbers have equal seeds.
    """

    example: int
    parameters: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...] = field(default=())
    draw: int = 0

    @classmethod
    def of(cls, example: int, parameters: Mapping[str, str], given: Mapping[str, str] | None = None) -> Request:
        """From mappings."""
        return cls(example, tuple(sorted(parameters.items())), tuple(sorted((given or {}).items())))


def run(
    program: Program, example: object, request: Request, seed: int, wait: Callable[[Awaitable[Any]], Any]
) -> tuple[object, Rollout]:
    """The output of a program and its rollout.

    Args:
        program: what to run.
        example: of the data.
        request: parameters, and texts that are given.
        seed: of the rollout.
        wait: runs an awaitable to its end, for async programs.
    """
    parameters = Parameters(dict(request.parameters))
    trace = Trace(parameters, seed, dict(request.given), text_view(example))
    output = program(example, parameters, trace)
    if inspect.isawaitable(output):
        output = wait(output)
    return output, trace.rollout()


def plain(value: object) -> object:
    """A value as plain data, for JSON: mappings, dataclasses and what has `toDict` or `model_dump` as dicts."""
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    verb = next((name for name in ("toDict", "model_dump", "to_dict") if callable(getattr(value, name, None))), None)
    found: Any = value
    if isinstance(value, np.generic):
        found = cast(object, value.item())
    elif verb is not None and not isinstance(value, type):
        found = plain(getattr(value, verb)())
    elif is_dataclass(value) and not isinstance(value, type):
        found = plain(asdict(value))
    elif isinstance(value, Mapping):
        found = {str(name): plain(one) for name, one in cast("Mapping[object, object]", value).items()}
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        found = [plain(one) for one in cast("Sequence[object]", value)]
    else:
        found = repr(found)
    return cast(object, found)


def content(value: object) -> str:
    """A value as one line of JSON; equal values give equal lines."""
    return json.dumps(plain(value), sort_keys=True, ensure_ascii=False)


def text_view(value: object) -> str:
    """A value for a language model to read: a text as it is, a mapping as one line "name: value" for each entry."""
    data = plain(value)
    if isinstance(data, str):
        return data
    if isinstance(data, dict):
        rows = cast("dict[str, object]", data)
        return "\n".join(
            f"{name}: {one if isinstance(one, str) else content(one)}" for name, one in rows.items() if one is not None
        )
    return content(data)
