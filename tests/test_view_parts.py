"""The parts of a report: cleaned texts, differences, charts, reasons, costs and summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import InputError
from dln.nn.prompt import Demonstration, Prompt
from dln.train.events import CandidateRecord, Evaluated, Interrupted, LayerRecord, Resumed, StepDone, Validated
from dln.view.charts import Point, Series, line_chart, ticks
from dln.view.format import MISSING, number, p_value, percent, prompt_difference, why_chosen, word_difference
from dln.view.report import render_report
from dln.view.summary import class_rows, cost, holding, summarize
from dln.view.text import clean, clip
from report_events import synthetic_run


@given(st.text())
def test_clean_text_is_encodable_and_cleaning_it_again_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    clean(text).encode()


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cf"])))
def test_clean_keeps_what_is_no_control(text: str) -> None:
    assert clean(text) == text


@given(st.text(), st.integers(0, 20))
def test_a_clipped_text_states_its_full_length(text: str, limit: int) -> None:
    shown = clip(text, limit)
    assert clean(text).startswith(shown.text)
    assert shown.length == len(clean(text))
    assert shown.shortened == (shown.length > limit)


WORDS = st.lists(st.sampled_from(["the", "a", " ", "\n", "word.", "日本", "語", "x-y", "<b>"]), max_size=25).map(
    " ".join
)


@given(WORDS, WORDS)
def test_a_difference_contains_both_texts(old: str, new: str) -> None:
    segments = word_difference(old, new)
    assert "".join(s.text for s in segments if s.kind != "insert") == old
    assert "".join(s.text for s in segments if s.kind != "delete") == new
    assert all(s.kind == "same" for s in word_difference(old, old))


def test_a_repetitive_text_is_compared_in_no_time() -> None:
    old, new = "no " * 4000 + "yes", "yes " + "no " * 4001 + "no"
    segments = word_difference(old, new)
    assert "".join(s.text for s in segments if s.kind != "insert") == old
    assert "".join(s.text for s in segments if s.kind != "delete") == new


DEMONSTRATIONS = st.lists(st.sampled_from([Demonstration(x, x, "y") for x in "abcde"]), max_size=6).map(tuple)


@given(DEMONSTRATIONS, DEMONSTRATIONS)
def test_demonstrations_added_and_removed_lead_from_one_prompt_to_the_other(
    old: tuple[Demonstration, ...], new: tuple[Demonstration, ...]
) -> None:
    found = prompt_difference(Prompt("p", old), Prompt("p", new))
    key = lambda d: d.x  # noqa: E731
    left = list(old)
    for demonstration in found.removed:
        left.remove(demonstration)
    assert sorted([*left, *found.added], key=key) == sorted(new, key=key)
    assert found.kept == len(left)
    assert found.changed == (old != new)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=40)
def test_recall_has_wilsons_interval(counts: tuple[int, int]) -> None:
    """The ends are the roots of (p − p̂)² = z² p (1 − p) / n."""
    correct, n = counts
    evaluation = synthetic_run(1)[-1]
    assert isinstance(evaluation, Evaluated)
    per_class = {"yes": {"n": n, "correct": correct, "predicted": 0}}
    after = evaluation.after.model_copy(update={"per_class": per_class})
    (row,) = class_rows(evaluation.model_copy(update={"before": None, "after": after}), None)
    found = row.after
    assert found is not None and found.low is not None and found.high is not None
    assert found.recall == correct / n
    for p in (found.low, found.high):
        assert (p - correct / n) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / n, abs=1e-9)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_what_they_are_for_with_few_marks(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    distance = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * distance
    assert marks[-1] >= low + width - 1e-6 * distance
    assert 2 <= len(marks) <= 8


def test_missing_values_are_gaps_and_dashes_and_never_zeros() -> None:
    points = (Point(1, 0.5), Point(2, math.nan), Point(3, None), Point(4, 0.7), Point(5, 0.8))
    chart = line_chart("c", "t", [Series("s", "main", points)], y_label="y", show=number)
    assert chart is not None
    assert [len(path.split()) for path in chart.lines[0].paths] == [2]  # 4 and 5; 1 stands alone as a dot
    assert len(chart.lines[0].dots) == 3
    assert [row[1] for row in chart.rows] == ["0.500", MISSING, MISSING, "0.700", "0.800"]
    assert line_chart("c", "t", [Series("s", "main", (Point(1, math.inf),))], y_label="y", show=number) is None
    assert {number(math.nan), percent(None), p_value(math.nan)} == {MISSING}


def record(scores: Sequence[float | None], winner: int, dropped: dict[str, int] | None = None) -> LayerRecord:
    candidates = [CandidateRecord(prompt={}, source="s", objective=s, penalty=0.0, score=s) for s in scores]
    return LayerRecord(layer=0, candidates=candidates, winner=winner, examples=3, dropped=dropped or {})


@pytest.mark.parametrize(
    ("scores", "winner", "words"),
    [
        (
            [-1.0, -0.5, -0.75],
            1,
            "the winner scored −0.500, 0.500 higher than the incumbent (−1.000) and 0.250 higher",
        ),
        ([-1.0, -0.5], 1, "the incumbent was second"),
        ([None, -0.5], 1, "the incumbent could not be scored"),
        ([-1.0, -0.5, -0.25], 1, "another candidate scored 0.250 higher"),
        ([-1.0, -1.25], 0, "no candidate beat the incumbent; the best one scored 0.250 lower"),
        ([-1.0, -1.0], 0, "ties keep the incumbent"),
        ([-1.0, -0.5], 0, "the selection rule did not accept"),
        ([-1.0, None], 0, "no other candidate could be scored"),
        ([None, math.nan], 0, "no candidate could be scored"),
        ([-1.0], 0, "there were no other candidates"),
    ],
)
def test_the_reason_of_a_choice(scores: list[float | None], winner: int, words: str) -> None:
    assert words in why_chosen(record(scores, winner))
    assert "all proposals were dropped" in why_chosen(record([-1.0], 0, {"echo": 2}))


@pytest.mark.parametrize("end", ["running?", "finished", "interrupted"])
def test_a_summary_knows_how_a_run_stands(end: str) -> None:
    events = synthetic_run(2, steps=5, finished=end == "finished", test=end == "finished")
    if end == "interrupted":
        events.append(Interrupted(step=5, reason="budget"))
    summary = summarize(events)
    assert summary.state == end
    assert (summary.run, summary.task, summary.models) == ("2026-02-02-quiet-heron", "questions", ("smollm2",))
    assert (summary.steps_done, summary.steps_planned, summary.best_step, summary.depth) == (5, 5, 5, 2)
    scores = [e.score for e in events if isinstance(e, Validated)]
    assert summary.best_score == max(scores)
    assert (summary.test is not None) == (end == "finished")
    counted = [e.usage for e in events if isinstance(e, StepDone | Validated | Evaluated)]
    assert summary.tokens == counted[-1]["prompt_tokens"] + counted[-1]["completion_tokens"]
    if end == "interrupted":
        assert summarize([*events, Resumed(step=5)]).state == "running?"


def test_costs_add_up_also_when_a_counter_begins_anew() -> None:
    events = synthetic_run(1, steps=3)
    whole = cost(events)
    last = events[-1]
    assert isinstance(last, Evaluated)
    assert whole.total.used[1] == last.usage["prompt_tokens"]
    again = cost([*events, last.model_copy(update={"usage": {"prompt_tokens": 7.0}, "split": "more.csv"})])
    assert again.total.used[1] == last.usage["prompt_tokens"] + 7
    assert whole.total.excluded == sum(e.excluded for e in events if isinstance(e, StepDone))


def test_a_run_without_a_start_is_an_error_that_says_so() -> None:
    for call in (lambda: render_report([], title="t"), lambda: summarize([])):
        with pytest.raises(InputError, match="did not start"):
            call()


def test_a_step_and_its_validation_are_one_row() -> None:
    events = synthetic_run(1, steps=2)
    assert [row.step for row in cost(events).rows] == [0, 1, 2, None]
    assert cost(events).rows[1].wall == next(e.seconds for e in events if isinstance(e, StepDone))


def test_a_run_that_began_again_before_its_first_checkpoint_is_one_run() -> None:
    events = synthetic_run(1, steps=2)
    assert holding([*events[:2], *events]) == events
    assert summarize([*events[:2], *events]) == summarize(events)
