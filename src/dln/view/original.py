"""Results of the original code of Deep Language Networks (`result_data.json`), read as runs.

A file holds several experiments. Each has, per step, the prompts of the layers after it, the candidates with their
scores (the incumbent first) and metrics, and a few examples with hidden texts and output after every step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dln.errors import CorruptDataError, InputError
from dln.train.events import (
    CandidateRecord,
    Event,
    ExampleRecord,
    HiddenRecord,
    LayerRecord,
    ResultRecord,
    Started,
    StepDone,
    Validated,
)
from dln.view.follow import Facts, Seen, brief, facts_of

__all__ = ["OriginalRun", "is_original", "read_original"]


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Candidate(_Data):
    layer: str
    score: float | None = None


class _Metrics(_Data):
    elbo: float | None = None
    acc: float | None = None
    dev_acc: float | None = None


class _Step(_Data):
    step: int
    layers: list[str] = Field(min_length=1)
    metrics: _Metrics = _Metrics()
    candidates: list[list[_Candidate]] = []


class _Trace(_Data):
    step: int
    hiddens: list[str] = []
    output: str


class _Example(_Data):
    input: str
    label: str
    trace: list[_Trace] = []


class _Experiment(_Data):
    training: list[_Step] = Field(min_length=1)
    examples: list[_Example] = []


class OriginalRun:
    """One experiment of such a file.

    Args:
        name: of the experiment.
        data: what the file says of it.
    """

    folder = None

    def __init__(self, name: str, data: _Experiment) -> None:
        self._name = name
        first, *rest = sorted(data.training, key=lambda step: step.step)
        labels = sorted({example.label for example in data.examples})
        self._steps = {first.step: self._done(first, first, data.examples)}
        previous = first
        for step in rest:
            self._steps[step.step] = self._done(step, previous, data.examples)
            previous = step
        self._events: list[Event] = [_started(name, first, labels, len(rest))]
        best = float("-inf")
        for step in (first, *rest):
            if step is not first:
                self._events.append(brief(self._steps[step.step]))
            dev = step.metrics.dev_acc
            if dev is not None:
                self._events.append(_validated(step.step, dev, dev > best))
                best = max(best, dev)

    @property
    def name(self) -> str:
        """Of the experiment."""
        return self._name

    @property
    def count(self) -> int:
        """Events; they do not grow."""
        return len(self._events)

    def refresh(self) -> bool:
        """Nothing is ever new."""
        return False

    def events(self) -> list[Event]:
        """As of a run that has ended; steps without their texts."""
        return self._events

    def facts(self, step: int) -> Facts | None:
        """Of a step; None where it is not known."""
        return facts_of(self._steps[step]) if step in self._steps else None

    def step(self, step: int) -> StepDone | None:
        """A step with all its texts; step 0 has the examples under the initial prompts."""
        return self._steps.get(step)

    def before(self, example: ExampleRecord, step: int) -> Seen | None:
        """The example one step earlier: all of them are traced after every step."""
        earlier = self._steps.get(step - 1)
        others = () if earlier is None else earlier.examples
        found = [other for other in others if (other.x, other.y) == (example.x, example.y)]
        return Seen(step - 1, found[0].prediction, found[0].correct) if found else None

    def _done(self, step: _Step, previous: _Step, examples: list[_Example]) -> StepDone:
        traces = [(example, trace) for example in examples for trace in example.trace if trace.step == step.step]
        return StepDone(
            step=step.step,
            elbo=step.metrics.elbo,
            accuracy=float("nan") if step.metrics.acc is None else step.metrics.acc,
            excluded=0,
            examples=[
                ExampleRecord(x=e.input, y=e.label, prediction=t.output, correct=says(t.output, e.label))
                for e, t in traces
            ],
            hidden=[
                HiddenRecord(
                    level=level,
                    example=i,
                    forward=text,
                    texts=[],
                    token_ids=[],
                    sources=[],
                    alpha=[],
                    beta=[],
                    weights=[],
                    ess=float("nan"),
                )
                for i, (_, trace) in enumerate(traces)
                for level, text in enumerate(trace.hiddens, 1)
            ],
            layers=[
                _layer(position, candidates, step.layers[position], previous.layers[position])
                for position, candidates in enumerate(step.candidates)
                if candidates and position < len(step.layers)
            ],
            parameters=_network(step.layers),
            scoring_modes=None,
        )


def _layer(position: int, candidates: list[_Candidate], chosen: str, incumbent: str) -> LayerRecord:
    """The candidates of a layer with the incumbent first, as in events."""
    order = sorted(candidates, key=lambda candidate: candidate.layer != incumbent)
    texts = [candidate.layer for candidate in order]
    if incumbent not in texts:
        order, texts = [_Candidate(layer=incumbent), *order], [incumbent, *texts]
    if chosen not in texts:
        order, texts = [*order, _Candidate(layer=chosen)], [*texts, chosen]
    return LayerRecord(
        layer=position,
        candidates=[
            CandidateRecord(
                prompt={"instruction": candidate.layer},
                source="proposal" if number else "incumbent",
                objective=candidate.score,
                penalty=0.0,
                score=candidate.score,
            )
            for number, candidate in enumerate(order)
        ],
        winner=texts.index(chosen),
        examples=0,
        dropped={},
    )


def _network(layers: list[str]) -> dict[str, Any]:
    last = len(layers) - 1
    return {
        "layers": [
            {"kind": "choice" if number == last else "language", "prompt": {"instruction": text}}
            for number, text in enumerate(layers)
        ]
    }


def _started(name: str, first: _Step, labels: list[str], steps: int) -> Started:
    return Started(
        run=name,
        task=name,
        labels=labels,
        train_size=0,
        dev_size=0,
        steps=steps,
        network=_network(first.layers),
        options={},
        versions={},
        data_hash="",
    )


def _validated(step: int, accuracy: float, best: bool) -> Validated:
    missing = float("nan")  # the file does not say how many examples there were
    result = ResultRecord(n=0, accuracy=accuracy, low=missing, high=missing)
    return Validated(step=step, score=accuracy, select_by="accuracy", best=best, result=result)


_EDGE = re.compile(r"^\W+|\W+$")


def says(output: str, label: str) -> bool:
    """Whether an output begins with the label, without regard to case and to punctuation around it.

    >>> says("B) the red one", "(B)"), says("Before", "(B)"), says("", "Yes")
    (True, False, False)
    """
    wanted, given = _EDGE.sub("", label).lower(), _EDGE.sub("", output).lower()
    rest = given.removeprefix(wanted)
    return bool(wanted) and given.startswith(wanted) and not rest[:1].isalnum()


def is_original(path: Path) -> bool:
    """Whether a file seems to hold such results, by its first characters."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head.lstrip().startswith("{") and '"training"' in head


def read_original(path: Path) -> list[OriginalRun]:
    """The experiments of a file.

    Raises:
        InputError: the file cannot be read.
        CorruptDataError: it holds something else.
    """
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, Mapping):
            raise ValueError("not an object of experiments")
        found = cast("Mapping[str, object]", data)
        return [OriginalRun(name, _Experiment.model_validate(value)) for name, value in found.items()]
    except OSError as error:
        raise InputError("this file cannot be read", where=path, got=error.strerror) from error
    except (ValueError, ValidationError) as error:
        raise CorruptDataError(
            "these are no results of the original code",
            where=path,
            got=str(error).splitlines()[0],
            expected='{"experiment": {"training": [{"step": 0, "layers": […], …}, …], "examples": […]}}',
        ) from error
