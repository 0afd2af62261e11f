"""What the pages of the dashboard show, as plain data: the list of runs, one run, one step, the evaluated examples.

Every text is cleaned (`dln.view.text.clean`) and clipped; a number that is not finite is null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dln.nn.prompt import Prompt
from dln.train.events import (
    Backtracked,
    ComparedRecord,
    Controlled,
    Evaluated,
    Event,
    Finished,
    HiddenRecord,
    Interrupted,
    LayerRecord,
    Resumed,
    StepDone,
    Validated,
)
from dln.train.labels import LABELS, given_labels, read_waiting
from dln.train.run import of_kind
from dln.view.follow import Source, paused, running
from dln.view.format import Limits, date, difference_of, prompt_difference, verdict
from dln.view.steps import Choice, choices, final_network, history, parameters_of, particles
from dln.view.summary import class_rows, confusion, cost, main_evaluation, started_of, summarize
from dln.view.text import clip, plain

__all__ = ["example_rows", "growth", "label_page", "listing", "overview", "step_page", "to_json"]

LONGEST = 20_000
"""Characters of a text on a page; the events hold all of it."""
COMPARED = 8_000
"""Characters of the longest instructions that are compared word by word."""
LIMITS = Limits(prompt=LONGEST, text=LONGEST, candidates=1000, explained=10_000)


def to_json(value: object) -> bytes:
    """The data as JSON: dataclasses are objects, numbers that are not finite null, texts cleaned and clipped."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return value if value is None or isinstance(value, bool | int) else _text(str(value))


def _text(text: str) -> str:
    shown = clip(text, LONGEST)
    return f"{shown.text} … [{shown.length} characters]" if shown.shortened else shown.text


def listing(source: Source, name: str) -> dict[str, Any]:
    """A row of the list of runs."""
    events = source.events()
    summary, total = summarize(events), cost(events).total
    return {
        "name": name,
        "task": summary.task,
        "models": summary.models,
        "depth": summary.depth,
        "state": _state(source, events, summary.state),
        "reason": summary.reason,
        "steps_done": summary.steps_done,
        "steps_planned": summary.steps_planned,
        "best_score": summary.best_score,
        "best_step": summary.best_step,
        "select_by": summary.select_by,
        "test": summary.test,
        "tokens": summary.tokens,
        "usd": total.used[-1],
        "started": summary.started or None,
        "updated": max((event.time for event in events), default=0.0) or None,
    }


def _state(source: Source, events: Sequence[Event], state: str) -> str:
    """As in the events; where these simply end, whether a process works on the run."""
    if state != "running?":
        return state
    if source.folder is None:
        return "finished"
    if not running(source.folder):
        return "killed"
    return "paused" if paused(events) else "running"


@dataclass(slots=True)
class _Prompts:
    """Every prompt once; a moment names them by number."""

    known: dict[Prompt, int]
    rows: list[dict[str, Any]]

    def number(self, prompt: Prompt) -> int:
        if prompt not in self.known:
            self.known[prompt] = len(self.rows)
            self.rows.append(plain(prompt.to_json()))
        return self.known[prompt]


def overview(source: Source, name: str, command: str | None) -> dict[str, Any]:
    """All of a run but the texts of its steps and its evaluated examples."""
    events = source.events()
    started, evaluation = started_of(events), main_evaluation(events)
    prompts = _Prompts({}, [])
    moments = [
        {"name": moment.name, "layers": [prompts.number(layer.prompt) for layer in moment.layers]}
        for moment in history(events)
    ]
    at_step = {0: moments[0]["layers"]} | {
        event.step: [prompts.number(layer.prompt) for layer in parameters_of(event.parameters)]
        for event in of_kind(events, StepDone)
    }
    finished = of_kind(events, Finished)
    return {
        **listing(source, name),
        "count": source.count,
        "original": source.folder is None,
        "labels": started.labels,
        "train_size": started.train_size,
        "dev_size": started.dev_size,
        "layers": [
            {
                "number": layer.number,
                "kind": layer.kind,
                "model": layer.model,
                "template": layer.template,
                "residual": layer.residual,
                "evidence": [str(line) for line in layer.evidence],
            }
            for layer in final_network(events)[1]
        ],
        "prompts": prompts.rows,
        "at_step": sorted(at_step.items()),
        "final": moments[-1]["layers"] if finished else None,
        "turns": [turn for event in events if (turn := _turn(event)) is not None],
        **_curves(source, events),
        "evaluation": None if evaluation is None else _evaluation(evaluation, started.labels),
        "cost": cost(events),
        "command": command,
        "options": started.options,
        "versions": started.versions,
        "data_hash": started.data_hash,
        "lost": [
            line for event in of_kind(events, StepDone)[-1:] if event.scoring_modes for line in event.scoring_modes.lost
        ],
    }


def growth(source: Source, events: Sequence[Event]) -> dict[str, Any] | None:
    """What `events`, which follow those that a page has, add to it; None where the page is to be read again."""
    if not all(isinstance(event, StepDone | Validated) for event in events):
        return None
    prompts = [
        [event.step, [plain(layer.prompt.to_json()) for layer in parameters_of(event.parameters)]]
        for event in of_kind(events, StepDone)
    ]
    return {**_curves(source, events), "at_step": prompts, "updated": max(event.time for event in events)}


def _curves(source: Source, events: Sequence[Event]) -> dict[str, Any]:
    return {
        "steps": [_step_row(source, event) for event in of_kind(events, StepDone)],
        "validations": [
            {
                "step": event.step,
                "accuracy": event.result.accuracy,
                "low": event.result.low,
                "high": event.result.high,
                "log_likelihood": event.result.log_likelihood,
                "score": event.score,
                "select_by": event.select_by,
                "best": event.best,
                "n": event.result.n,
                "tokens": _tokens(event.usage),
            }
            for event in of_kind(events, Validated)
        ],
    }


def _step_row(source: Source, event: StepDone) -> dict[str, Any]:
    facts = source.facts(event.step)
    return {
        "step": event.step,
        "elbo": event.elbo,
        "accuracy": event.accuracy,
        "excluded": event.excluded,
        "seconds": event.seconds or None,
        "tokens": _tokens(event.usage),
        "calls": event.usage.get("calls"),
        "cached": event.usage.get("cached_tokens"),
        "usd": event.usage.get("usd"),
        "changed": () if facts is None else facts.changed,
        "sources": () if facts is None else facts.sources,
        "candidates": 0 if facts is None else facts.candidates,
    }


def _tokens(usage: Mapping[str, float]) -> float | None:
    return usage["prompt_tokens"] + usage.get("completion_tokens", 0.0) if "prompt_tokens" in usage else None


def _turn(event: Event) -> dict[str, Any] | None:
    if isinstance(event, Interrupted):
        text = f"interrupted after step {event.step}: {event.reason}"
    elif isinstance(event, Resumed):
        text = f"resumed after step {event.step}" if event.step >= 0 else "begun again"
    elif isinstance(event, Backtracked):
        text = f"after step {event.step} back to the prompts of step {event.to_step}: no gain"
    elif isinstance(event, Finished):
        text = f"finished after step {event.step}: {event.reason}; the result is of step {event.best_step}"
    elif isinstance(event, Controlled):
        return {
            "step": event.step,
            "human": True,
            "request": event.request,
            "action": event.action,
            "layer": None if event.layer is None else event.layer + 1,
            "text": event.text,
            "comment": event.comment,
            "refused": event.refused,
        }
    else:
        return None
    return {"step": event.step, "human": False, "text": f"{text} ({date(event.time)})" if event.time else text}


def _evaluation(event: Evaluated, labels: Sequence[str] | None) -> dict[str, Any]:
    def numbers(result: Any) -> dict[str, Any] | None:
        return None if result is None else result.model_dump(exclude={"per_class", "confusion"})

    return {
        "split": event.split,
        "before": numbers(event.before),
        "after": numbers(event.after),
        "fitted": numbers(event.fitted),
        "fixed": event.fixed,
        "broken": event.broken,
        "p_value": event.p_value,
        "difference": event.difference or difference_of(event),
        "verdict": verdict(event),
        "members": event.members,
        "baselines": [
            {"name": b.name, "accuracy": b.result.accuracy, "low": b.result.low, "high": b.result.high, "p": b.p_value}
            for b in event.baselines
        ],
        "classes": class_rows(event, labels),
        "confusion_before": confusion(event.before, labels),
        "confusion_after": confusion(event.after, labels),
        "count": len(event.examples),
    }


def example_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The examples of the main evaluation with the answers of both networks."""
    evaluation = main_evaluation(events)
    return [] if evaluation is None else [_example(row) for row in evaluation.examples]


def _example(row: ComparedRecord) -> dict[str, Any]:
    turn = {(False, True): "fixed", (True, False): "broken"}.get((row.before_correct is True, row.after_correct), "")
    return {**row.model_dump(), "turn": turn if row.before_correct is not None else ""}


def label_page(source: Source) -> dict[str, Any]:
    """The inputs that wait for a label, the least sure first, with the labels that they have by now."""
    waiting = [] if source.folder is None else read_waiting(source.folder)
    file = None if source.folder is None else source.folder / LABELS
    given = given_labels(file) if file is not None and file.exists() else {}
    rows = [
        {
            "number": number,
            "x": row.x,
            "y": given.get(row.x),
            "probabilities": sorted(row.probabilities.items(), key=lambda pair: -pair[1])[:5],
        }
        for number, row in enumerate(waiting)
    ]
    names = list(waiting[0].probabilities) if waiting else []
    return {"labels": names, "rows": rows, "given": len(given)}


def step_page(source: Source, step: int) -> dict[str, Any] | None:
    """A step with its candidates, its batch and the hidden texts; None if there is no such step."""
    event = source.step(step)
    if event is None:
        return None
    hidden: dict[int, list[dict[str, Any]]] = {}
    for record in sorted(event.hidden, key=lambda record: record.level):
        hidden.setdefault(record.example, []).append(_level(record))
    return {
        "step": step,
        "elbo": event.elbo,
        "accuracy": event.accuracy,
        "excluded": event.excluded,
        "seconds": event.seconds or None,
        "choices": [
            _choice(choice, record) for choice, record in zip(choices(event.layers, LIMITS), event.layers, strict=True)
        ],
        "examples": [
            {**example.model_dump(), "before": source.before(example, step), "hidden": hidden.get(number, [])}
            for number, example in enumerate(event.examples)
        ],
    }


def _choice(choice: Choice, record: LayerRecord) -> dict[str, Any]:
    incumbent = next(c.prompt for c in choice.candidates if c.incumbent)
    fields = {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice) if f.name != "candidates"}
    return {
        **fields,
        "incumbent_score": record.candidates[0].score,
        "candidates": [
            {
                **{f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name not in ("prompt", "stopped")},
                "stopped": None if c.stopped is None else c.stopped.model_dump(),
                "prompt": c.prompt.to_json(),
                "difference": _difference(incumbent, c.prompt),
            }
            for c in choice.candidates
        ],
    }


def _difference(old: Prompt, new: Prompt) -> dict[str, Any] | None:
    """Word by word; None where nothing differs, or the texts are too long to compare."""
    if old == new or max(len(old.instruction), len(new.instruction)) > COMPARED:
        return None
    found = prompt_difference(old, new)
    return {
        "segments": [[segment.kind, segment.text] for segment in found.segments],
        "added": len(found.added),
        "removed": len(found.removed),
        "kept": found.kept,
        "reordered": found.reordered,
    }


def _level(record: HiddenRecord) -> dict[str, Any]:
    return {"level": record.level, "forward": record.forward, "ess": record.ess, "particles": particles(record)}
