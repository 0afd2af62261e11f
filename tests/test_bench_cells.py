"""Cells over time: old files, changed settings, likelihoods, what remains to be done, and being stopped."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import threading
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cli_fake_engine
from cli_shell import Shell
from dln.data import load_task
from dln.errors import InputError
from dln.experiments.baselines import Majority
from dln.experiments.cells import Bench, Cell, CellResult, Cells, Spent, outcome
from dln.experiments.method import EvaluationProtocol, Learnt, Setup, changed_settings, recipe_of
from dln.experiments.methods import Trained, in_order, method_named
from dln.experiments.summary import ALL, GROUPS, MEAN, summarize
from dln.experiments.tables import markdown, picture, remaining, write_table
from dln.lm.prices import Price
from dln.nn import Prediction

SMALL = EvaluationProtocol(
    train_size=40, dev_size=30, test_size=20, options={"steps": 1, "inference": {"num_prompts": 2}}
)
FLAGS = [
    "--train-size",
    "40",
    "--dev-size",
    "20",
    "--test-size",
    "20",
    "--set",
    "steps=1",
    "--set",
    "inference.num_prompts=2",
]


@pytest.fixture(scope="module")
def task():
    return load_task("questions")


@pytest.fixture
def fake():
    return cli_fake_engine.load("1", "fake/1", {})


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def quiet(*_: object) -> None:
    return None


def cell(method="m", seed=1, correct=(True, False), task="a", seconds=1.0, **more):
    return CellResult(
        task=task,
        method=method,
        seed=seed,
        correct=list(correct),
        accuracy=float(np.mean(correct)),
        balanced_accuracy=None,
        unscored=0,
        train=Spent(prompt_tokens=more.pop("tokens", 100), seconds=seconds),
        test=Spent(),
        **more,
    )


def bench(lm, task, methods, directory, seeds=(13,), protocol=SMALL, **more):
    chosen = in_order(methods)[0] if isinstance(methods[0], str) else methods
    return Bench(lm, [task], chosen, seeds, protocol, Cells(directory, protocol.record("fake/1")), **more)


def test_a_cell_of_before_the_newer_fields_still_loads(tmp_path):
    body = {
        **{"task": "a", "method": "icl-5", "seed": 1, "correct": [True, False], "accuracy": 0.5},
        **{"balanced_accuracy": 0.5, "unscored": 0, "train": {"calls": 1}, "test": {"calls": 2}},
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    cells = Cells(tmp_path, {})
    digest = hashlib.sha256(text.encode()).hexdigest()
    cells.path(Cell("a", "icl-5", 1)).write_text(json.dumps({"sha256": digest, "result": body}), encoding="utf-8")
    found = cells.load(Cell("a", "icl-5", 1), recipe_of(method_named("icl-5"), {}))
    assert found is not None
    assert (found.log_likelihood, found.tested, found.recipe) == (None, [], None)
    newer = cell("icl-5", 2, log_likelihood=-0.5, log_probs=[-0.5, None], tested=["p", "q"], recipe={"k": 5})
    cells.save(newer)
    assert cells.load(Cell("a", "icl-5", 2)) == newer
    row = summarize([found, newer]).rows[0]
    assert row.log_likelihood is None  # of one cell it is not known


def test_cells_of_other_settings_are_refused_before_any_work(fake, task, tmp_path):
    bench(fake, task, [Trained(1, "t", changes={"memory": 0})], tmp_path).run(quiet)
    told = []
    later = bench(fake, task, [Majority(), Trained(1, "t", changes={"memory": 1})], tmp_path)
    with pytest.raises(InputError, match=r"options\.memory"):
        later.run(lambda what, *_: told.append(what))
    assert told == []
    again = bench(fake, task, [Trained(1, "t", changes={"memory": 0}, what="said otherwise")], tmp_path)
    assert len(again.known()) == 1


options = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2))


@given(options, options)
def test_only_settings_that_both_know_can_have_changed(before, now):
    changed = changed_settings({"options": before}, {"options": now})
    assert changed == [f"options.{k}" for k in sorted(before.keys() & now.keys()) if before[k] != now[k]]
    assert changed_settings(before, before) == []


def test_the_log_likelihood_is_that_of_the_right_label_and_unscored_examples_are_left_out(task, fake):
    seen = SMALL.examples(task, 1)
    labels = seen.label_names
    share = {name: 1 / len(labels) for name in labels}
    predictions = [Prediction(labels[0], share)] * 19 + [Prediction("", {})]

    def result(predictions):
        return outcome(
            Cell("a", "m", 1),
            seen,
            Learnt(Majority()(Setup(seen, fake, 1)).predictor),
            predictions,
            (Spent(), Spent()),
            {},
        )

    found = result(predictions)
    assert found.log_likelihood == pytest.approx(-math.log(len(labels)), abs=1e-6)
    assert found.log_probs is not None and found.log_probs[-1] is None
    assert found.unscored == 1
    assert len(set(found.tested)) == 20
    certain = Prediction(labels[0], {name: float(name == labels[0]) for name in labels})
    assert result([certain] * 20).log_likelihood is None  # a right label without any probability


def test_the_majority_row_gives_the_classes_their_shares(task, fake):
    seen = SMALL.examples(task, 1)
    answer = Majority()(Setup(seen, fake, 1)).predictor.predict_many(["x"])[0]
    assert math.fsum(answer.probabilities.values()) == pytest.approx(1)
    assert min(answer.probabilities.values()) > 0
    assert answer.probabilities[answer.label] == max(answer.probabilities.values())


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("mno"), st.floats(0.1, 99)), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_what_remains_is_between_the_fastest_and_the_slowest_and_shared_by_jobs(done, jobs):
    finished = [cell(method, i, task=t, seconds=s) for i, (t, method, s) in enumerate(done)]
    same = [Cell("unknown task", "unknown method", 1)] * 6
    one = remaining(same, finished)
    assert one is not None
    slowest = max(s for *_, s in done)
    assert 6 * min(s for *_, s in done) * (1 - 1e-9) <= one <= 6 * slowest * (1 + 1e-9)
    assert remaining(same, finished, jobs) == pytest.approx(one / jobs)
    assert remaining(same, []) is None
    assert remaining([], finished) == 0


def test_what_remains_knows_slow_methods_and_slow_tasks():
    finished = [cell("slow", 1, task="a", seconds=100), cell("fast", 1, task="a", seconds=1)]
    finished += [cell("slow", 1, task="b", seconds=300)]
    slow, fast = (remaining([Cell("a", method, 2)], finished) for method in ("slow", "fast"))
    assert slow is not None and fast is not None and slow > 20 * fast
    a, b = (remaining([Cell(t, "slow", 2)], finished) for t in "ab")
    assert a is not None and b is not None and b > 1.5 * a


def test_examples_are_paired_by_what_they_are_and_not_by_their_place():
    cells = [
        *(cell("0-shot", 1, [True, False], tested=["p", "q"]), cell("dln-1", 1, [True, True], tested=["p", "q"])),
        *(cell("0-shot", 2, [False, False], tested=["q", "r"]), cell("dln-1", 2, [True, True], tested=["q", "r"])),
    ]
    (found,) = summarize(cells).comparisons
    assert (found.result.better, found.result.worse) == (2, 0)  # q and r; p is the same
    assert found.result.difference.mean == pytest.approx(2 / 3)


def test_all_tasks_together_are_compared_too_and_kinds_of_tasks_have_means():
    nine = [task for tasks in GROUPS.values() for task in tasks]
    cells = [cell(m, 1, [m == "dln-1"] * 8, task=t) for m in ("0-shot", "dln-1") for t in nine]
    summary = summarize(cells)
    whole = next(c for c in summary.comparisons if c.task == ALL)
    assert whole.result.better == 8 * 9
    assert summary.columns == (*nine, *GROUPS, MEAN)
    for name in (*GROUPS, MEAN):
        row = summary.row(name, "dln-1")
        assert row is not None and row.accuracy == 1.0
    partial = summarize([c for c in cells if not (c.task == "trec" and c.method == "dln-1")])
    assert partial.row("NLU mean", "dln-1") is None
    assert partial.row("BIG-bench mean", "dln-1") is not None
    assert all(c.task != ALL for c in partial.comparisons)


def test_the_table_has_every_column_and_what_was_unscored(tmp_path):
    cells = [
        cell("0-shot", 1, log_likelihood=-0.25, log_probs=[-0.2, -0.3], tested=["p", "q"]),
        cell("dln-1", 1, [True, True], tokens=12345, seconds=77.0),
    ]
    cells[1] = cells[1].model_copy(update={"unscored": 1, "train": cells[1].train.model_copy(update={"usd": 1.5})})
    summary = summarize(cells)
    text = markdown(summary)
    for part in ("-0.250", "12,345", "77", "1.50", "n per seed: a 2", "Seeds: 1.", "1 of a with dln-1", "balanced"):
        assert part in text
    write_table(summary, tmp_path, text)
    head = (tmp_path / "table.csv").read_text().splitlines()[0].split(",")
    assert {"n", "seeds", "balanced_accuracy", "log_likelihood", "usd", "calls", "seconds", "unscored"} <= set(head)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**7)), min_size=1, max_size=30))
def test_every_name_in_the_picture_is_inside_it_and_none_covers_another(points):
    cells = [cell(f"v{i}", 1, tokens=tokens, correct=[True]) for i, (_, tokens) in enumerate(points)]
    cells = [c.model_copy(update={"accuracy": a}) for c, (a, _) in zip(cells, points, strict=True)]
    root = ElementTree.fromstring(picture(summarize(cells), "A & B"))  # noqa: S314 - our own file
    height = float(root.attrib["viewBox"].split()[3])
    names = [n for n in root if n.tag.endswith("text") and re.match(r"v\d+ ", n.text or "")]
    places = sorted(float(name.attrib["y"]) for name in names)
    assert len(places) == len(points)
    assert places[0] > 0
    assert places[-1] < height
    assert all(b - a > 12 for a, b in pairwise(places))


def test_families_of_methods_take_any_number():
    methods, added = in_order(["icl-7", "icl-7-fitted", "kate-3", "ape-20"])
    assert [m.name for m in methods] == ["icl-7", "icl-7-fitted", "kate-3", "ape-20"]
    assert added == []
    for wrong in ("icl-0", "icl-", "icl-05", "kate-x"):
        with pytest.raises(InputError, match="no method"):
            in_order([wrong])


def test_the_price_of_the_user_is_the_price_of_the_table(fake, task, tmp_path):
    (result,) = bench(fake, task, ["0-shot"], tmp_path, price=Price(input=1e6)).run(quiet)
    assert result.test.usd == pytest.approx(result.test.prompt_tokens)


@dataclass(frozen=True)
class Failing:
    """Fails at one seed, and is slow at the others."""

    name: str = "failing"
    about: str = "fails"
    after: tuple[str, ...] = ()
    seed: int = 1

    def __call__(self, setup):
        if setup.seed == self.seed:
            raise InputError("it cannot work")
        time.sleep(0.05)
        return Majority()(setup)


def test_side_by_side_an_error_is_seen_soon_and_what_is_being_made_is_finished(fake, task, tmp_path):
    methods = [Failing(seed=2), *(replace(Majority(), name=f"m{i}") for i in range(50))]
    made = []
    table = bench(fake, task, methods, tmp_path, seeds=(1, 2), jobs=2)
    with pytest.raises(InputError, match="cannot work"):
        table.run(lambda what, cell, _: made.append((what, cell)))
    done = [c for what, c in made if what == "done"]
    assert set(table.known()) == set(done)
    assert len(done) < 51  # seed 1 did not go on to its end


def test_an_interruption_reaches_the_workers_at_their_next_request(fake, task, tmp_path, monkeypatch):
    begun = threading.Event()

    class Endless:
        name, about, after = "endless", "asks for ever", ()

        def __call__(self, setup):
            begun.set()
            while True:
                setup.lm.choice_log_probs(["x"], ["yes", "no"])
                time.sleep(0.001)

    table = bench(fake, task, [Endless()], tmp_path, seeds=(1, 2), jobs=2)

    class Interrupted:
        def __init__(self, future):
            self._future = future

        def result(self):
            assert begun.wait(20)
            raise KeyboardInterrupt

    from concurrent.futures import ThreadPoolExecutor

    submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda self, *a: Interrupted(submit(self, *a)))
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        table.run(quiet)
    assert time.perf_counter() - started < 20


def test_a_budget_of_all_cells_ends_the_command_with_the_table_so_far(cli: Shell):
    words = ["bench", "paper", "--lm", "fake/1", "--tasks", "questions", "--methods", "majority,0-shot,dln-1"]
    words += ["--seeds", "1", *FLAGS]
    done = cli(*words, "--max-tokens", "2000")
    assert done.code == 4
    assert "2 of 3 cells are finished and stored in bench" in done.err
    assert "the same command resumes" in done.err
    partial = (cli.folder / "bench" / "table.md").read_text(encoding="utf-8")
    assert "| 0-shot |" in partial
    assert "| dln-1 |" not in partial
    rest = cli(*words)
    assert rest.code == 0
    assert "3 cells, 2 of them done, 1 to compute" in rest.err
    assert "| dln-1 |" in rest.out


def test_ctrl_c_keeps_finished_cells_and_says_how_to_go_on(cli: Shell):
    words = ["bench", "paper", "--lm", "fake/1/slow", "--tasks", "questions", "--methods", "0-shot,dln-1"]
    process = cli.process(*words, "--seeds", "1", *FLAGS, "--set", "steps=500")
    path = cli.folder / "bench" / "cells" / "questions.0-shot.1.json"
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 of 2 cells are finished and stored in bench" in said
    assert "the same command resumes" in said
    assert "Traceback" not in said


def test_answers_that_no_seed_changes_are_as_uncertain_as_those_of_one_seed():
    answers = [True] * 15 + [False] * 5
    one = summarize([cell("a", 1, answers), cell("a", 1, answers, task="b")])
    three = summarize([cell("a", s, answers, task=t) for s in (1, 2, 3) for t in "ab"])
    for task in ("a", "b", MEAN):
        first, second = one.row(task, "a"), three.row(task, "a")
        assert first is not None and second is not None
        assert (first.low, first.high) == (second.low, second.high)
        assert second.high - second.low > 0.1
    other = [*answers[:-1], True]
    scattered = summarize([cell("a", 1, answers), cell("a", 2, answers), cell("a", 3, other)]).rows[0]
    assert 0 < scattered.high - scattered.low < 0.2
