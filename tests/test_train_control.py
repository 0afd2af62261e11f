"""Requests of a person to a running training; resumed and repeated runs do the same again."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dln.data import Dataset
from dln.errors import InputError
from dln.infer.memory import Opinion
from dln.infer.prompts import Proposal
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.train import fit
from dln.train.control import CONTROLS, LONGEST, Controls, Request, request
from dln.train.control import OPINIONS as SHOWN
from dln.train.events import Backtracked, Controlled, Finished, StepDone, Validated
from dln.train.run import current, of_kind, read_events

LABELS = ("yes", "no")
OPTIONS = {
    "batch_size": 6,
    "val_every": 2,
    "inference": {"num_hidden": 2, "num_prompts": 3, "prompt_tokens": 8, "output_layer": "fitted"},
}
ASKED = "Think about the number at the end."


def train(run_dir: Path, *, steps=4, resume=False, callbacks=(), **more):
    lm = TableLM.random([" yes", " no", " yes no", " maybe so", ""], seed=0, name="random-0")
    network = Sequential(
        LanguageLayer(lm, "think", "think"), ChoiceLayer(lm, "classify_residual", "decide", list(LABELS))
    )
    train_set, dev = (
        Dataset.from_pairs([(f"{name} {i}", LABELS[i % 3 == 0]) for i in range(n)], labels=LABELS)
        for name, n in (("toy", 40), ("dev", 24))
    )
    options = {**OPTIONS, **more}
    return fit(
        network, train_set, dev, steps=steps, run_dir=run_dir, resume=resume, options=options, callbacks=callbacks
    )


class Asking:
    """Makes requests right after a step, as another process would."""

    def __init__(self, run_dir: Path, at: dict[int, list[Request]], kill_after: int | None = None) -> None:
        self.run_dir, self.at, self.kill_after, self.seen = run_dir, at, kill_after, 0

    def __call__(self, event) -> None:
        self.seen += 1
        if isinstance(event, StepDone):
            for wanted in self.at.get(event.step, ()):
                request(self.run_dir, wanted)
        if self.seen == self.kill_after:
            raise KeyboardInterrupt


def truth(run_dir: Path) -> list[dict]:
    kinds = StepDone | Validated | Backtracked | Finished
    events = current(read_events(run_dir / "events.jsonl"))
    return [e.model_dump(exclude={"time", "seconds", "usage"}) for e in events if isinstance(e, kinds)]


def controls(run_dir: Path) -> list[Controlled]:
    return of_kind(read_events(run_dir / "events.jsonl"), Controlled)


EDITS = {
    1: [Request(action="prompt", layer=0, text=ASKED), Request(action="prompt", layer=1, text="Say yes or no.")],
    2: [Request(action="prompt", layer=1, text="Decide, but for the end of the sentence.")],
}


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("edited") / "run"
    train(path, callbacks=[Asking(path, EDITS)])
    return path


def test_an_instruction_is_a_candidate_of_the_next_step_scored_like_the_others(edited: Path):
    steps = {event.step: event for event in of_kind(read_events(edited / "events.jsonl"), StepDone)}
    human = {
        (step, layer.layer, candidate.prompt["instruction"])
        for step, event in steps.items()
        for layer in event.layers
        for candidate in layer.candidates
        if candidate.source == "human"
    }
    assert human == {(s + 1, r.layer, r.text) for s, requests in EDITS.items() for r in requests}
    for event in (steps[2], steps[3]):
        for layer in event.layers:
            asked = [c for c in layer.candidates if c.source == "human"]
            assert all(c.score is not None or c.stopped is not None for c in asked)
    assert [(e.step, e.request, e.action) for e in controls(edited)] == [
        (1, 1, "prompt"),
        (1, 2, "prompt"),
        (2, 3, "prompt"),
    ]


@pytest.mark.parametrize("count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 9, 10))])
def test_a_killed_run_resumes_to_the_same_result(tmp_path: Path, edited: Path, count: int):
    """Killed at an event that records a request, or in a step that tries it."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, callbacks=[Asking(path, EDITS, kill_after=count)])
    train(path, resume=True, callbacks=[Asking(path, {2: EDITS[2]} if count < 6 else {})])
    assert truth(path) == truth(edited)


def test_a_run_repeated_from_its_start_needs_no_file(tmp_path: Path, edited: Path):
    path = tmp_path / "run"
    shutil.copytree(edited, path)
    (path / "checkpoint.json").unlink()
    (path / CONTROLS).unlink()
    train(path, resume=True)
    assert truth(path) == truth(edited)
    assert len(controls(path)) == 3


def test_without_requests_nothing_changes(tmp_path: Path, edited: Path):
    train(tmp_path / "plain")
    assert not controls(tmp_path / "plain")
    plain, human = truth(tmp_path / "plain"), truth(edited)
    assert plain[:2] == human[:2]
    assert plain != human


def test_stop_ends_the_run_after_the_step_and_it_can_go_on(tmp_path: Path):
    path = tmp_path / "run"
    result = train(path, callbacks=[Asking(path, {2: [Request(action="stop")]})])
    assert (result.reason, result.steps) == ("stopped", 2)
    assert (path / "network.json").exists()
    again = train(path, resume=True)
    assert (again.reason, again.steps) == ("steps", 4)
    train(tmp_path / "whole")
    assert truth(path) == truth(tmp_path / "whole")


def test_a_paused_run_waits_and_takes_prompts(tmp_path: Path):
    path = tmp_path / "run"
    paused = threading.Event()

    def seen(event) -> None:
        if isinstance(event, Controlled) and event.action == "pause":
            paused.set()

    def person() -> None:
        assert paused.wait(20)
        time.sleep(0.3)
        request(path, Request(action="prompt", layer=1, text=ASKED))
        request(path, Request(action="resume"))

    thread = threading.Thread(target=person)
    thread.start()
    train(path, callbacks=[Asking(path, {1: [Request(action="pause")]}), seen])
    thread.join()
    events = read_events(path / "events.jsonl")
    assert [event.action for event in controls(path)] == ["pause", "prompt", "resume"]
    held = [event for event in events if isinstance(event, Controlled)]
    assert held[-1].time - held[0].time >= 0.3
    second = next(event for event in of_kind(events, StepDone) if event.step == 2)
    assert ASKED in [c.prompt["instruction"] for layer in second.layers for c in layer.candidates]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"no json", "not a request"),
        (b'{"action":"explode"}', "not a request"),
        (b'{"action":"prompt","layer":7,"text":"a"}', "there is no layer 7"),
        (b'{"action":"prompt","layer":0,"text":"  "}', "empty"),
        (b'{"action":"like","layer":9,"text":"a"}', "there is no layer 9"),
        (b'{"action":"prompt","layer":0,"text":"' + b"a" * (LONGEST + 1) + b'"}', "longer than"),
    ],
)
def test_what_cannot_be_done_is_recorded_with_the_reason(tmp_path: Path, line: bytes, why: str):
    path = tmp_path / "run"

    def write(event) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            (path / CONTROLS).write_bytes(line + b'\n{"action":"st')  # the second line is not complete

    result = train(path, steps=2, callbacks=[write])
    assert result.steps == 2
    (event,) = controls(path)
    assert why in event.refused


def test_requests_of_several_writers_are_all_there(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("schema: 1\n")
    numbers: list[int] = []

    def write(n: int) -> None:
        numbers.extend(request(tmp_path, Request(action="prompt", layer=n, text="x" * 5000)) for _ in range(10))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 41))
    lines = (tmp_path / CONTROLS).read_text().splitlines()
    assert [Request.model_validate_json(line).text for line in lines] == ["x" * 5000] * 40


def test_a_request_needs_a_run(tmp_path: Path):
    with pytest.raises(InputError, match="no run here"):
        request(tmp_path, Request(action="pause"))


LIKED = Request(action="like", layer=0, text="Think about\nthe number.", comment="names what matters")
OPINIONS = {
    1: [
        Request(action="dislike", layer=0, text="Say something.", comment="vague"),
        Request(action="dislike", layer=0, text=LIKED.text),
        LIKED,
        Request(action="like", layer=1, text="Decide."),
    ]
}


@dataclass(frozen=True)
class Telling:
    """Proposes what it was told."""

    def __call__(self, key, layer, feedback, num):
        told = " / ".join(f"{'+' if o.liked else '-'} {o.text} ({o.comment})" for o in feedback.opinions)
        return [Proposal(layer.prompt.with_instruction(f"told: {told}"), "telling")]


TELLING = {**OPTIONS["inference"], "num_prompts": 1, "prompt_proposals": Telling()}


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "run"
    train(path, steps=3, inference=TELLING, callbacks=[Asking(path, OPINIONS)])
    return path


def told(run_dir: Path) -> dict[tuple[int, int], str]:
    return {
        (event.step, layer.layer): candidate.prompt["instruction"]
        for event in of_kind(read_events(run_dir / "events.jsonl"), StepDone)
        for layer in event.layers
        for candidate in layer.candidates
        if candidate.source == "telling"
    }


def test_proposals_are_shown_the_opinions_on_their_layer_from_the_next_step_on(judged: Path):
    first = f"told: - Say something. (vague) / + {LIKED.text} (names what matters)"
    shown = told(judged)
    assert {key: text for key, text in shown.items() if key[0] == 1} == {(1, 0): "told: ", (1, 1): "told: "}
    assert shown[2, 0] == first
    assert shown[2, 1] == "told: + Decide. ()"
    assert set(shown.values()) <= {"told: ", first, "told: + Decide. ()"}  # one that won is no proposal again
    assert not any(
        "human" in (c.source for c in layer.candidates)
        for e in of_kind(read_events(judged / "events.jsonl"), StepDone)
        for layer in e.layers
    )


@pytest.mark.parametrize("count", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_run_with_opinions_resumes_to_the_same_result(tmp_path: Path, judged: Path, count: int):
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, steps=3, inference=TELLING, callbacks=[Asking(path, OPINIONS, kill_after=count)])
    train(path, steps=3, inference=TELLING, resume=True)
    assert truth(path) == truth(judged)


def test_a_run_with_opinions_repeated_from_its_start_needs_no_file(tmp_path: Path, judged: Path):
    path = tmp_path / "run"
    shutil.copytree(judged, path)
    (path / "checkpoint.json").unlink()
    (path / CONTROLS).unlink()
    train(path, steps=3, inference=TELLING, resume=True)
    assert truth(path) == truth(judged)
    assert told(path) == told(judged)


def test_only_the_newest_opinions_are_shown():
    events = [Controlled(step=i // 2, request=i, action="like", layer=0, text=f"text {i % 20}") for i in range(1, 31)]
    opinions = Controls(None, events, 1, events.append).opinions
    assert opinions(0)[0] == (Opinion("text 1", True),)
    assert [o.text for o in opinions(99)[0]] == [f"text {i % 20}" for i in range(31 - SHOWN, 31)]
