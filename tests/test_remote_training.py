"""Training against a served model is training against the model: the same prompts, the same numbers, the same draws."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cli_shell import Shell, mail_csv
from conftest import build_tiny_model
from dln.lm.base import LanguageModel
from dln.train.events import Finished, StepDone, Validated
from dln.train.run import current, of_kind, read_events

pytest.importorskip("uvicorn")

CLOSE = 1e-3
"""Nats by which a log-probability may differ over HTTP."""

QUESTIONS = (
    *("--task", "questions", "--train-size", 40, "--dev-size", 24, "--steps", 2),
    *("--set", "batch_size=8", "--set", "inference.num_prompts=3"),
)
MAIL = (
    *("--csv", "mail.csv", "--dev-size", 4, "--steps", 1, "--set", "val_every=1", "--set", "batch_size=3"),
    *(
        "--set",
        "inference.num_prompts=2",
        "--set",
        "inference.prompt_tokens=8",
        "--set",
        "inference.demonstrations=[1]",
    ),
)
LABEL_WORDS = ("--set", "inference.output_layer=fitted")
"""A server tells fewer of the most probable words than an engine in process, so that word readouts differ."""
TWO_LAYERS = ("--layers", 2, "--set", "inference.num_hidden=2")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    for engine in ("OPENAI", "VLLM"):
        for what in ("API_KEY", "BASE_URL"):
            monkeypatch.delenv(f"{engine}_{what}", raising=False)
    mail_csv(tmp_path / "mail.csv", rows=30)
    return Shell(monkeypatch, tmp_path, capsys)


def parts(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of plain data, each with its address."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield from parts(inner, f"{at}.{name}")
    elif isinstance(value, list | tuple):
        items = list(cast("list[Any]", value))
        yield f"{at}.length", len(items)
        for index, inner in enumerate(items):
            yield from parts(inner, f"{at}[{index}]")
    else:
        yield at, value


def told(run: Path) -> dict[str, Any]:
    """What a run says of its training, times and use apart, leaf by leaf.

    Which of two validations with the same network is called the best hangs on the last bits of a float.
    """
    events = current(read_events(run / "events.jsonl"))
    kept = [
        *(event.model_dump(exclude={"time", "seconds", "usage"}) for event in of_kind(events, StepDone)),
        *(event.model_dump(exclude={"time", "seconds", "usage", "best"}) for event in of_kind(events, Validated)),
        *(event.model_dump(include={"step", "score", "reason"}) for event in of_kind(events, Finished)),
        json.loads((run / "network.json").read_text("utf-8"))["layers"],
    ]
    return dict(parts(kept))


def named(leaves: dict[str, Any], spec: str) -> dict[str, Any]:
    """With the model's name in the two runs made one, and without its fingerprint, which names the server."""
    kept = {at: value for at, value in leaves.items() if not at.endswith(".fingerprint")}
    return {at: "the model" if value == spec else value for at, value in kept.items()}


def compare(cli: Shell, local: str, name: str, url: str, words: tuple[object, ...]) -> None:
    common = ("train", *words, "--no-test", "--no-cache")
    here = cli(*common, "--lm", local, "--run-dir", "here")
    there = cli(*common, "--lm", f"vllm/{name}", "--base-url", url, "--run-dir", "there")
    assert (here.code, there.code) == (0, 0), here.err + there.err
    one = named(told(cli.folder / "here"), local)
    two = named(told(cli.folder / "there"), f"vllm/{name}")
    assert len([at for at in one if ".candidates" in at]) > 10  # something was chosen from
    assert one.keys() == two.keys()
    differences = [
        f"{at}: {one[at]!r} here, {two[at]!r} there"
        for at in one
        if not (
            math.isclose(one[at], two[at], rel_tol=0, abs_tol=CLOSE)
            if isinstance(one[at], float) and isinstance(two[at], float)
            else one[at] == two[at]
        )
    ]
    assert not differences, "\n".join(differences[:20])


def train_both(cli: Shell, model: LanguageModel, local: str, name: str, words: tuple[object, ...]) -> None:
    from dln.serve.models import served
    from dln.serve.server import serving

    with serving(served(model, name)) as url:
        compare(cli, local, name, url, words)


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param((), id="1 layer"),
        pytest.param((*TWO_LAYERS, "--hidden-tokens", 4), id="2 layers", marks=pytest.mark.slow),
    ],
)
def test_a_tiny_model_is_trained_the_same_over_http(cli: Shell, tmp_path: Path, layers: tuple[object, ...]):
    from dln.lm.load import load_lm

    local = f"hf/{build_tiny_model(tmp_path / 'tiny', context_length=2048)}"
    train_both(cli, load_lm(local), local, "tiny", (*MAIL, *LABEL_WORDS, *layers))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("layers", [(), (*TWO_LAYERS, "--hidden-tokens", 16)], ids=["1 layer", "2 layers"])
def test_the_embedded_model_is_trained_the_same_over_http(
    cli: Shell, smollm2: LanguageModel, layers: tuple[object, ...]
):
    train_both(cli, smollm2, "smollm2", "smollm2", (*QUESTIONS, *LABEL_WORDS, *layers))
