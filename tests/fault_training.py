"""Small training runs against a test server, and what two of them must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli_shell import Done, Shell, mail_csv
from dln.train.events import Evaluated, Finished, StepDone, Validated
from dln.train.run import current, of_kind, read_events

__all__ = ["STEPS", "agreed", "shell", "steps_of", "train", "usage_of"]

STEPS = 2
WORDS = (
    *("train", "--csv", "mail.csv", "--steps", STEPS, "--dev-size", 4, "--test-size", 4),
    *("--hidden", "think", "--hidden-tokens", 4),
    *("--set", "batch_size=4", "--set", "val_every=1", "--set", "inference.num_prompts=2"),
    *("--set", "inference.num_hidden=2", "--set", "inference.demonstrations=[1]", "--set", "inference.prompt_tokens=8"),
    *("--lm-option", "timeout=0.5", "--lm-option", "connect_timeout=0.3", "--lm-option", "max_retries=3"),
)


def shell(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """An empty folder with a small file of mail, and no key or address from outside."""
    for engine in ("OPENAI", "VLLM"):
        for what in ("API_KEY", "BASE_URL"):
            monkeypatch.delenv(f"{engine}_{what}", raising=False)
    mail_csv(folder / "mail.csv", rows=30)
    return Shell(monkeypatch, folder, capsys)


def train(
    cli: Shell,
    url: str | None,
    run: str,
    *words: object,
    layers: int = 2,
    lm: str = "vllm/tiny",
    debug: bool = False,
) -> Done:
    """`dln train` into runs/<run>, with a cache of its own; one revision makes servers of all ports the same model."""
    address = () if url is None else ("--base-url", url)
    own = ("--run-dir", f"runs/{run}", "--cache", f"{run}.sqlite", "--layers", layers)
    first = ("--debug",) if debug else ()
    return cli(*first, *WORDS, "--lm-option", "revision=1", "--lm", lm, *address, *own, *words)


def agreed(run: Path) -> tuple[Any, ...]:
    """Everything that two equal runs must agree on."""
    events = current(read_events(run / "events.jsonl"))
    network = json.loads((run / "network.json").read_text("utf-8"))
    steps = {event.step: (event.elbo, event.accuracy, event.excluded, event.parameters) for event in steps_of(run)}
    validations = {event.step: (event.score, event.best) for event in of_kind(events, Validated)}
    finished, evaluated = of_kind(events, Finished)[-1], of_kind(events, Evaluated)[-1]
    return (
        network.get("members") or network["layers"],
        steps,
        validations,
        (finished.step, finished.best_step, finished.score, finished.reason),
        (evaluated.before, evaluated.after, evaluated.p_value, evaluated.fixed, evaluated.broken),
    )


def steps_of(run: Path) -> list[StepDone]:
    """The steps of a run."""
    return of_kind(current(read_events(run / "events.jsonl")), StepDone)


def usage_of(run: Path) -> dict[str, float]:
    """What a finished run has counted, without its seconds."""
    used = of_kind(current(read_events(run / "events.jsonl")), Finished)[-1].usage
    return {name: value for name, value in used.items() if name != "seconds"}
