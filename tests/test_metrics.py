"""Metrics as users write them: their forms, failures, concurrency, memory, and a process killed between calls."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dln
from cli_shell import Shell, mail_csv
from dln.data import Answer, Example, Grade, Grader, SetMetric, load_metric
from dln.errors import BudgetReached, InputError
from dln.lm.table import TableLM
from dln.train.events import Evaluated, Validated
from dln.train.grades import GradeFile
from dln.train.run import of_kind, read_events

DATA = dln.Dataset.from_pairs([("one", "yes"), ("two", "no"), ("three", "yes"), ("four", "no")], ["yes", "no"])
EXAMPLES = [Answer(example, "yes", ("a hidden text",)) for example in DATA]
SECONDS = 0.3


def of_example(example: Any, prediction: str) -> float:
    return float(example.target == prediction)


def of_gold(gold: Any, answer: str) -> bool:
    return gold.target == answer


def of_annotated(one: Example, answer: str) -> bool:
    return one.target == answer


def of_texts(prediction: str, target: str) -> float:
    return float(prediction == target)


def of_trace(example: Any, prediction: str, trace: Any = None) -> dln.Score:
    return dln.Score(float(example.target == prediction and tuple(trace) == ("a hidden text",)), example.input)


def of_three(a: Any, b: str, c: Any) -> float:
    return float(a.target == b and len(c) == 1)


async def of_coroutine(example: Any, prediction: str) -> float:
    await asyncio.sleep(0)
    return float(example.target == prediction)


class Callable_:  # noqa: N801
    async def __call__(self, example: Any, prediction: str) -> bool:
        return bool(example.target == prediction)


FORMS: list[Callable[..., Any]] = [
    *(of_example, of_gold, of_annotated, of_texts, of_trace, of_three, of_coroutine, Callable_()),
    lambda p, t: p == t,
    lambda x, pred: x.target == pred,
]


@pytest.mark.parametrize("metric", FORMS)
@pytest.mark.parametrize("workers", [1, 3])
def test_every_form_of_a_metric_gives_the_same_grades(metric: Callable[..., Any], workers: int) -> None:
    grades = Grader(load_metric(metric), workers=workers)(EXAMPLES)
    assert [grade.value for grade in grades] == [1.0, 0.0, 1.0, 0.0]
    assert all(grade.known for grade in grades)


@pytest.mark.parametrize(
    "metric", [lambda: 1.0, lambda one: 1.0, lambda a, b, c, d: 1.0, Grader, lambda *, prediction, target: 1.0]
)
def test_a_wrong_signature_is_one_error_before_anything_is_computed(metric: Any) -> None:
    with pytest.raises(InputError, match="metric") as found:
        dln.evaluate(free_network(), DATA, metric=metric)
    assert "example, prediction" in str(found.value)


def failing(example: Any, prediction: str) -> float:
    match example.input:
        case "one":
            raise ValueError("no such judge")
        case "two":
            return math.nan
        case "three":
            return math.inf
    return 1.0


@pytest.mark.parametrize("workers", [1, 4])
def test_what_has_no_value_is_excluded_and_says_why(workers: int) -> None:
    grades = Grader(load_metric(failing), workers=workers)(EXAMPLES)
    assert [grade.problem for grade in grades] == ["ValueError: no such judge", "returned nan", "returned inf", ""]
    assert all(math.isnan(grade.value) for grade in grades[:3])
    assert grades[3] == Grade(1.0)


def test_a_budget_that_is_reached_is_no_failure_of_the_metric() -> None:
    def spent(example: Any, prediction: str) -> float:
        raise BudgetReached("the budget was spent", where="metric")

    with pytest.raises(BudgetReached):
        Grader(load_metric(spent))(EXAMPLES)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_slow_call_is_given_up_and_the_others_count(asynchronous: bool) -> None:
    async def later(example: Any, prediction: str) -> float:
        await asyncio.sleep(30 if example.input == "two" else 0)
        return 0.75

    hang = threading.Event()

    def blocked(example: Any, prediction: str) -> float:
        if example.input == "two":
            hang.wait(30)
        return 0.75

    start = time.monotonic()
    grades = Grader(load_metric(later if asynchronous else blocked), timeout=SECONDS)(EXAMPLES)
    hang.set()
    assert time.monotonic() - start < 10
    assert [grade.value for grade in grades if grade.known] == [0.75] * 3
    assert grades[1].problem == "no result within 0.3 s"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_at_most_so_many_calls_run_at_the_same_time(asynchronous: bool) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def change(by: int) -> None:
        nonlocal running, most
        with lock:
            running += by
            most = max(most, running)

    async def gently(example: Any, prediction: str) -> float:
        change(1)
        await asyncio.sleep(0.01)
        change(-1)
        return 1.0

    def plainly(example: Any, prediction: str) -> float:
        change(1)
        time.sleep(0.01)
        change(-1)
        return 1.0

    answers = [Answer(example, f"prediction {i}") for i in range(5) for example in DATA]
    Grader(load_metric(gently if asynchronous else plainly), workers=3)(answers)
    assert 1 < most <= 3


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_questions_are_asked_once(workers: int) -> None:
    asked: list[tuple[str, str]] = []

    def counting(example: Any, prediction: str) -> float:
        asked.append((example.input, prediction))
        return 0.5

    graded = Grader(load_metric(counting), workers=workers)
    graded(EXAMPLES + EXAMPLES)
    graded(EXAMPLES)
    graded.grade(DATA[0], "other")
    assert sorted(asked) == sorted({*((e.input, "yes") for e in DATA), ("one", "other")})


def test_examples_of_any_kind_are_told_apart_by_their_content() -> None:
    class Row:
        def __init__(self, **fields: str) -> None:
            self._store = fields

    def first(example: Any, prediction: Any) -> float:
        return float(example._store["question"] == prediction["answer"])

    graded = Grader(load_metric(first))
    rows = [Row(question=text) for text in "ab"]
    assert [graded.grade(row, {"answer": "a"}).value for row in rows] == [1.0, 0.0]


def test_a_grader_works_within_an_event_loop() -> None:
    async def notebook() -> list[Grade]:
        return Grader(load_metric(of_coroutine))(EXAMPLES)

    assert [grade.value for grade in asyncio.run(notebook())] == [1.0, 0.0, 1.0, 0.0]


def free_network() -> dln.Sequential:
    lm = TableLM(lambda context: {"yes": 0.7, "no": 0.3})
    return dln.Sequential(dln.LanguageLayer(lm, template="answer", prompt="Say it."))


def test_the_evaluation_counts_what_is_excluded() -> None:
    found = dln.evaluate(free_network(), DATA, metric=failing)
    assert found.excluded == 3
    assert found.accuracy.mean == 1.0
    record = found.to_record()
    assert record.excluded == 3
    assert record.metric == "failing"
    assert record.problems == ["ValueError: no such judge", "returned nan", "returned inf"]
    assert "3 without a score" in str(found)
    final = dln.train.conclude(free_network(), free_network(), DATA, metric=failing)
    assert (final.p_value, final.after.excluded) == (1.0, 3)
    assert [row.after_score for row in final.examples][3] == 1.0
    line = Evaluated.model_validate_json(final.model_dump_json())
    assert line.examples[0].after_score is None


def test_a_metric_that_never_gives_a_value_is_an_error_with_the_reason() -> None:
    with pytest.raises(InputError, match="no value for any example") as found:
        dln.evaluate(free_network(), DATA, metric=lambda e, p: e.target == p)  # names that say nothing: texts
    assert "AttributeError" in str(found.value)


def test_a_metric_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def right(example, prediction):\n    return example.target == prediction\n")
    metric = load_metric(f"{tmp_path}/mine.py:right")
    assert [grade.value for grade in Grader(metric)(EXAMPLES)] == [1.0, 0.0, 1.0, 0.0]
    for name, wanted in ((f"{tmp_path}/mine.py:wrong", "no 'wrong'"), (f"{tmp_path}/none.py:right", "does not exist")):
        with pytest.raises(InputError, match=wanted):
            load_metric(name)


def test_grades_on_disk_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "grades.jsonl"
    with GradeFile(path) as store:
        Grader(load_metric(of_trace), store=store)(EXAMPLES)
        Grader(load_metric(failing), store=store)(EXAMPLES)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # what failed is tried again
    path.write_bytes(b"".join(lines)[:-7])
    with GradeFile(path) as store:
        calls: list[str] = []

        def again(example: Any, prediction: str, trace: Any) -> float:
            calls.append(example.input)
            return 0.0

        metric = load_metric(again)
        again.__name__ = "of_trace"
        grades = Grader(load_metric(again), store=store)(EXAMPLES)
        assert [(grade.value, grade.feedback) for grade in grades[:2]] == [(1.0, "one"), (0.0, "two")]
        assert not calls
        Grader(metric, store=store).grade(DATA[0], "fresh")
    assert len(path.read_bytes().splitlines()) == 5


SCRIPT = """
import sys, time
import dln
from dln.lm.table import TableLM

def slow(example, prediction):
    with open("calls", "a") as file:
        file.write(f"{example.input} {prediction}\\n")
    time.sleep(0.05)
    return 0.5

data = dln.Dataset.from_pairs([(f"input {i}", "yes") for i in range(12)])
lm = TableLM(lambda context: {"yes": 0.7, "no": 0.3}, name="table")
network = dln.Sequential(dln.LanguageLayer(lm, template="answer", prompt="Say it."))
dln.fit(network, data, data, steps=0, metric=slow, run_dir="run", resume=len(sys.argv) > 1, progress=False)
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_killed_evaluation_pays_no_call_twice(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "script.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 60
        calls = tmp_path / "calls"
        while time.monotonic() < deadline and (not calls.exists() or len(calls.read_text().splitlines()) < 5):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = calls.read_text().splitlines()
    assert 5 <= len(before) < 12
    subprocess.run([*command, "again"], cwd=tmp_path, env=environment, check=True, timeout=120)
    after = calls.read_text().splitlines()
    # the call that was under way when the process was killed had not returned
    repeated = [line for line in set(after) if after.count(line) > 1]
    assert repeated in ([], [before[-1]])
    assert len(set(after)) == 12


# ---------------------------------------------------------------- metrics of all predictions together

GRADES = ("1", "2", "3", "4")


def by_sklearn(name: str, targets: list[str], predictions: list[str]) -> float:
    from sklearn import metrics

    if name == "macro_f1":
        return float(metrics.f1_score(targets, predictions, average="macro", zero_division=0.0))
    if name == "mcc":
        return float(metrics.matthews_corrcoef(targets, predictions))
    if name == "qwk":
        return float(metrics.cohen_kappa_score(targets, predictions, labels=list(GRADES), weights="quadratic"))
    return float(
        np.mean([metrics.recall_score(targets, predictions, labels=[t], average="macro") for t in sorted(set(targets))])
    )


@pytest.mark.filterwarnings("ignore")  # scikit-learn warns of degenerate cases
@pytest.mark.parametrize("name", ["macro_f1", "mcc", "balanced_accuracy", "qwk"])
@given(st.lists(st.tuples(st.sampled_from(GRADES), st.sampled_from(GRADES)), min_size=2, max_size=40))
def test_metrics_of_sets_are_those_of_scikit_learn(name: str, pairs: list[tuple[str, str]]) -> None:
    targets, predictions = [t for t, _ in pairs], [p for _, p in pairs]
    metric = load_metric(name, GRADES)
    assert isinstance(metric, SetMetric)
    value, low, high = metric.over(predictions, targets, resamples=200)
    wanted = by_sklearn(name, targets, predictions)
    assert value == pytest.approx(0.0 if math.isnan(wanted) else wanted)  # kappa of one value alone is not defined
    assert low <= high
    assert metric.over(predictions, targets, resamples=200) == (value, low, high)


def test_an_answer_that_is_no_label_is_wrong_for_every_metric_of_sets() -> None:
    targets = ["1", "2", "3", "4"] * 3
    for name in ("macro_f1", "mcc", "balanced_accuracy", "qwk"):
        metric = load_metric(name, GRADES)
        assert isinstance(metric, SetMetric)
        right, some = metric.over(targets, targets)[0], metric.over(["", *targets[1:]], targets)[0]
        assert right == pytest.approx(1.0)
        assert some < right


def test_the_interval_of_a_metric_of_sets_covers_its_value() -> None:
    """In samples of a population with a known value, about 95 % of the intervals hold it."""
    generator = np.random.default_rng(0)
    metric, covered, n = SetMetric("balanced_accuracy", ("a", "b")), 0, 200
    for _ in range(150):
        targets = generator.choice(["a", "b"], n, p=[0.8, 0.2])
        right = generator.random(n) < np.where(targets == "a", 0.9, 0.6)
        predictions = np.where(right, targets, np.where(targets == "a", "b", "a"))
        _, low, high = metric.over(predictions.tolist(), targets.tolist(), resamples=300)
        covered += low <= 0.75 <= high
    assert 0.88 <= covered / 150 <= 0.99


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_metric_of_sets_selects_and_is_reported(tmp_path: Path) -> None:
    lm = TableLM(lambda context: {" yes": 0.7, " no": 0.3}, name="table")
    network = dln.Sequential(dln.ChoiceLayer(lm, labels=("yes", "no")))
    options = {"inference": {"output_layer": "fixed"}}
    dln.fit(network, DATA, DATA, steps=0, metric="macro_f1", options=options, run_dir=tmp_path / "run")
    (validated,) = of_kind(read_events(tmp_path / "run" / "events.jsonl"), Validated)
    assert (validated.select_by, validated.score) == ("macro_f1", pytest.approx(1 / 3))
    assert validated.result.overall is not None
    assert validated.result.accuracy == 0.5
    found = dln.evaluate(network, DATA, metric="macro_f1")
    assert found.overall is not None
    assert found.overall.low <= 1 / 3 <= found.overall.high
    assert "macro_f1 0.333" in str(found)


# ---------------------------------------------------------------- a judge


def judging(context: str) -> dict[str, float]:
    """Likes answers that say please, and more so where the rubric asks for it."""
    kind = "please" in context.split("Answer: ")[1]
    likes = 0.8 if kind and "polite" in context else 0.6 if kind else 0.1
    return {" 1": 0.5 * (1 - likes), " 3": 0.3 * (1 - likes), " 5": likes, " or so": 0.2 * (1 - likes)}


JUDGE = TableLM(judging, name="judging")


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.floats(0, 0.9))
@settings(deadline=None)
def test_a_judge_gives_the_expected_grade(weights: list[float], rest: float) -> None:
    p = np.array(weights) / sum(weights)
    lm = TableLM(
        lambda context: {" 0": p[0] * (1 - rest), " 2": p[1] * (1 - rest), " 10": p[2] * (1 - rest), "!": rest}
    )
    score = dln.Judge(lm, "Good?", ("0", "2", "10"))(DATA[0], "an answer")
    assert isinstance(score, dln.Score)
    assert score.value == pytest.approx((2 * p[1] + 10 * p[2]) / 10)


def test_a_judge_reads_rubric_request_answer_and_the_reference_where_asked() -> None:
    contexts: list[str] = []

    def noted(context: str) -> dict[str, float]:
        contexts.append(context)
        return {" bad": 0.5, " fair": 0.25, " good": 0.25}

    for reference in (False, True):
        judge = dln.Judge(TableLM(noted), "Be strict.", ("bad", "fair", "good"), reference=reference)
        score = judge(DATA[0], "perhaps")
        assert isinstance(score, dln.Score)
        assert score == dln.Score(0.375, "judge: 0.75 on a scale from bad to good")
        assert all(text in contexts[-1] for text in ("Be strict.", "one", "perhaps"))
        assert ("Reference: yes" in contexts[-1]) == reference


def test_a_judge_is_a_metric_like_any_other(tmp_path: Path) -> None:
    judge = dln.Judge(JUDGE, "Is it polite?", ("1", "3", "5"))
    grades = Grader(load_metric(judge), workers=2)([Answer(DATA[0], "yes, please"), Answer(DATA[0], "yes")])
    assert grades[0].value > grades[1].value
    found = dln.evaluate(free_network(), DATA, metric=judge)
    assert found.metric == "judge"
    assert found.excluded == 0
    with pytest.warns(UserWarning, match="dev inputs"):
        result = dln.fit(free_network(), DATA, DATA, steps=0, metric=judge, run_dir=tmp_path / "run")
    assert result.score == pytest.approx(found.accuracy.mean)


@pytest.mark.parametrize("scale", [("5", "1"), ("1",), ("1", "1"), ("1", "inf")])
def test_a_scale_that_does_not_rise_is_refused(scale: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        dln.Judge(JUDGE, "Good?", scale)


# ---------------------------------------------------------------- the command line


def test_a_metric_from_a_file_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Shell(monkeypatch, tmp_path, capsys)
    (tmp_path / "mine.py").write_text(
        "import math\n\ndef strict(example, prediction):\n"
        "    if '1' in example.input:\n        return math.nan\n"
        "    return 0.25 if prediction == example.target else 0.0\n"
    )
    mail_csv(tmp_path / "mail.csv")
    words = ("train", "--csv", "mail.csv", "--lm", "fake/1", "--steps", 1, "--no-cache", "--run-dir", "runs/a")
    sizes = ("--set", "batch_size=6", "--set", "inference.num_prompts=2")
    done = cli(*words, *sizes, "--metric", "mine.py:strict")
    assert done.code == 0, done.err
    events = read_events(tmp_path / "runs/a/events.jsonl")
    (evaluated,) = of_kind(events, Evaluated)
    assert evaluated.after.metric == "mine.py:strict"
    assert evaluated.after.accuracy <= 0.25
    assert evaluated.after.excluded > 0
    assert evaluated.after.problems == ["returned nan"]
    assert (tmp_path / "runs/a/grades.jsonl").stat().st_size > 0
    again = cli("eval", "runs/a")
    assert "no value of mine.py:strict" in again.out
    for name, wanted in (
        ("mine.py:none", "no 'none'"),
        ("mine.py:math", "not a function"),
        ("no.py:f", "does not exist"),
    ):
        refused = cli(*words[:-1], "runs/b", "--metric", name)
        assert refused.code == 2
        assert wanted in refused.err
