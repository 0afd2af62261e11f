"""Results of the original project, microsoft/deep-language-networks: read, written, and used as initial prompts.

`result_data.json` holds, per task, what training did step by step and traces of examples; a hyperparameter search holds
the best prompt of each task. A run of this package is written as a `result_data.json` too, which the original's viewer
opens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dln.arguments import checked
from dln.errors import InputError
from dln.io import read_text
from dln.nn.prompt import Prompt
from dln.train.events import Evaluated, Event, Started, StepDone, Validated
from dln.train.run import current, of_kind

__all__ = [
    "Candidate",
    "ExampleTrace",
    "TaskResult",
    "TraceStep",
    "TrainingStep",
    "original_prompts",
    "read_result_data",
    "result_data",
    "write_result_data",
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Record):
    """A prompt and its score, of one step and layer."""

    layer: str
    score: float | None


class TrainingStep(_Record):
    """The network after `step` updates, and what the last update did.

    Attributes:
        step: updates done.
        layers: instructions, first layer first.
        metrics: of the update (`elbo`, `acc`, and their running means) and of the dev set, null where not measured.
        candidates: of the update, per layer; two lists for one layer too.
    """

    step: int
    layers: list[str]
    metrics: dict[str, float | None]
    candidates: list[list[Candidate]]


class TraceStep(_Record):
    """What the network of a step made of one example."""

    step: int
    hiddens: list[str]
    output: str


class ExampleTrace(_Record):
    """One example through the steps."""

    input: str
    label: str
    trace: list[TraceStep]


class TaskResult(_Record):
    """One entry of a `result_data.json`."""

    training: list[TrainingStep]
    examples: list[ExampleTrace]


_Results = TypeAdapter(dict[str, TaskResult])


@checked
def read_result_data(path: str | Path) -> dict[str, TaskResult]:
    """The entries of a `result_data.json` by name.

    Raises:
        InputError: not such a file.
    """
    try:
        return _Results.validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(
            "this is not a result_data.json of the original project",
            where=f"{path}: {'.'.join(map(str, first['loc']))}",
            got=first["msg"],
        ) from None


def write_result_data(results: Mapping[str, TaskResult]) -> str:
    """The text of a `result_data.json`, laid out as the original does."""
    return json.dumps(_Results.dump_python(dict(results), mode="json"), indent=4)


def original_prompts(data: object, name: str, where: str) -> list[Prompt] | None:
    """The best prompts that a file of the original has for a task; None if it is not such a file.

    Of a result_data.json these are the prompts after the step of the highest dev accuracy, of the first one among
    equals, of the last step where there is none.

    Args:
        data: the content of a JSON file.
        name: of the entry: the task's, or the one named behind the file's name.
        where: the file, for messages.

    Raises:
        InputError: it is one and has no entry of that name.
    """
    entries = cast("Mapping[str, Any]", data) if isinstance(data, Mapping) else dict[str, Any]()
    if not entries or not all(
        isinstance(e, Mapping) and ("best_weights" in e or "training" in e) for e in entries.values()
    ):
        return None
    if name not in entries and len(entries) > 1:
        raise InputError(
            "this file has no prompts for the task",
            where=where,
            got=name,
            expected=f"one of {', '.join(entries)}",
            fix=f"name the entry: {where}#{next(iter(entries))}",
        )
    entry = entries[name] if name in entries else next(iter(entries.values()))
    if "best_weights" in entry:
        best: object = entry["best_weights"]
        return [
            Prompt(str(text).strip()) for text in (cast("list[object]", best) if isinstance(best, list) else [best])
        ]
    try:
        steps = TaskResult.model_validate(entry).training
    except ValidationError as error:
        raise InputError("a damaged result_data.json", where=where, got=str(error.errors()[0]["loc"])) from None
    if not steps:
        raise InputError("this result has no steps", where=where, got=name)
    scored = [step for step in steps if step.metrics.get("dev_acc") is not None]
    best_step = max(scored, key=lambda step: step.metrics["dev_acc"] or 0.0) if scored else steps[-1]
    return [Prompt(text.strip()) for text in best_step.layers]


RUNNING = 0.8
"""Part of the past in the original's running means."""


def result_data(events: Sequence[Event]) -> dict[str, TaskResult]:
    """The events of a run as an entry of a `result_data.json`, under the name of its task.

    Traces are those that a run keeps: the batch of each step under the network before the step, and the test examples
    under the initial and the trained network.

    Raises:
        InputError: the events have no beginning.
    """
    told = current(events)
    started = of_kind(told, Started)
    if not started:
        raise InputError("the events of this run have no beginning", where="result_data")
    validated = {event.step: event for event in of_kind(told, Validated)}
    steps = [
        TrainingStep(
            step=0,
            layers=_instructions(started[0].network),
            metrics=_dev(validated.get(0)),
            candidates=[[], []],
        )
    ]
    traces: dict[tuple[str, str], list[TraceStep]] = {}
    elbo: float | None = None
    accuracy: float | None = None
    for event in of_kind(told, StepDone):
        elbo, accuracy = _running(elbo, event.elbo), _running(accuracy, event.accuracy)
        by_layer = {layer.layer: layer for layer in event.layers}
        count = len(_instructions(event.parameters))
        candidates = [
            [Candidate(layer=_text(c.prompt), score=c.score) for c in by_layer[i].candidates] if i in by_layer else []
            for i in range(count)
        ]
        steps.append(
            TrainingStep(
                step=event.step,
                layers=_instructions(event.parameters),
                metrics={
                    **{"elbo": event.elbo, "acc": event.accuracy, "run_elbo": elbo, "run_acc": accuracy},
                    **(_dev(validated.get(event.step)) or {"dev_acc": None}),
                },
                candidates=[*candidates, []] if count == 1 else candidates,
            )
        )
        for i, example in enumerate(event.examples):
            hiddens = [h.forward for h in event.hidden if h.example == i]
            row = TraceStep(step=event.step - 1, hiddens=hiddens, output=example.prediction)
            traces.setdefault((example.x, example.y), []).append(row)
    for event in of_kind(told, Evaluated)[-1:]:
        for compared in event.examples:
            rows = traces.setdefault((compared.x, compared.y), [])
            if compared.before is not None:
                rows.append(TraceStep(step=0, hiddens=[], output=compared.before))
            rows.append(TraceStep(step=steps[-1].step, hiddens=list(compared.hidden), output=compared.after))
    examples = [ExampleTrace(input=x, label=y, trace=rows) for (x, y), rows in traces.items()]
    return {started[0].task: TaskResult(training=steps, examples=examples)}


def _dev(event: Validated | None) -> dict[str, float | None]:
    return {} if event is None else {"dev_acc": event.result.accuracy}


def _running(past: float | None, value: float | None) -> float | None:
    if past is None or value is None:
        return value if past is None else past
    return (1 - RUNNING) * value + RUNNING * past


def _instructions(parameters: Mapping[str, Any]) -> list[str]:
    """The prompts of a network file or a state, as texts."""
    layers = cast("Sequence[Mapping[str, Any]]", parameters["layers"])
    return [_text(cast("Mapping[str, Any]", layer["prompt"])) for layer in layers if "prompt" in layer]


def _text(prompt: Mapping[str, Any]) -> str:
    """An instruction, with its examples below it: the original's prompts are texts."""
    shown = [f"{one['h']}\n{one['y']}" for one in prompt.get("demonstrations") or ()]
    return "\n\n".join([str(prompt.get("instruction", "")), *shown]).strip()
