"""The paper's comparison: cells that are made once, methods under one protocol, honest summaries."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cli_fake_engine
from dln.data import load_task
from dln.data.paper import with_published_rule
from dln.errors import BudgetReached, CorruptDataError, InputError
from dln.experiments.baselines import InContext, Nearest, ZeroShot, draw_examples
from dln.experiments.cells import Bench, Cell, CellResult, Cells, Spent
from dln.experiments.encoders import WordVectors, sentence_encoder
from dln.experiments.method import EvaluationProtocol, Learnt, Setup
from dln.experiments.methods import METHODS, Trained, in_order
from dln.experiments.summary import summarize
from dln.experiments.tables import markdown, write_table
from dln.lm.meter import Budget, Metered
from dln.nn import ChoiceLayer, Sequential

SMALL = EvaluationProtocol(
    train_size=40, dev_size=30, test_size=20, options={"steps": 1, "inference": {"num_prompts": 2}}
)


def quiet(*_: object) -> None:
    return None


@pytest.fixture(scope="module")
def task():
    return load_task("questions")


@pytest.fixture
def fake():
    return cli_fake_engine.load("1", "fake/1", {})


def bench(lm, task, methods, directory, protocol=SMALL, seeds=(13,), jobs=1):
    chosen, _ = in_order(methods)
    return Bench(lm, [task], chosen, seeds, protocol, Cells(directory, protocol.record("fake/1")), jobs)


def cell(method, seed, correct, task="a", tokens=100):
    return CellResult(
        task=task,
        method=method,
        seed=seed,
        correct=correct,
        accuracy=float(np.mean(correct)),
        balanced_accuracy=None,
        unscored=0,
        train=Spent(prompt_tokens=tokens),
        test=Spent(),
    )


@pytest.mark.parametrize(
    "others",
    [
        (),
        pytest.param(
            ("icl-5-fitted", "kate-5", "cot", "ape-15", "cot+ape", "dln-2-fix", "dln-2"),
            marks=pytest.mark.slow,
            id="and all others",
        ),
    ],
)
def test_every_method_answers_every_test_example_and_its_cell_says_what_it_cost(fake, task, tmp_path, others):
    methods = ["majority", "0-shot", "0-shot-fitted", "icl-5", "dln-1", "random-demonstrations", *others]
    results = {r.method: r for r in bench(fake, task, methods, tmp_path).run(quiet)}
    assert set(results) == set(methods)
    for result in results.values():
        assert len(result.correct) == 20
        assert result.accuracy == pytest.approx(np.mean(result.correct))
    assert results["majority"].test.tokens == results["0-shot"].train.tokens == 0
    assert results["icl-5"].test.tokens > results["0-shot"].test.tokens > 0
    assert results["dln-1"].train.tokens > results["0-shot-fitted"].train.tokens > 0
    assert results["random-demonstrations"].train.tokens >= results["dln-1"].train.tokens
    assert results["dln-1"].prompts


def test_finished_cells_are_not_made_again_and_a_stopped_bench_goes_on(fake, task, tmp_path):
    first = bench(fake, task, ["0-shot", "icl-5"], tmp_path).run(quiet)

    counting = Metered(fake)
    told = []
    again = bench(counting, task, ["0-shot", "icl-5"], tmp_path).run(lambda what, *_: told.append(what))
    assert again == first
    assert told == ["known", "known"]
    assert counting.meter.snapshot().calls == 0


def test_a_budget_of_all_cells_stops_between_them_and_keeps_what_is_done(fake, task, tmp_path):
    free = bench(fake, task, ["0-shot", "dln-1"], tmp_path / "free").run(quiet)
    spent = free[0].test.tokens + free[1].train.tokens // 2
    with pytest.raises(BudgetReached):
        bench(Metered(fake, Budget(max_tokens=spent)), task, ["0-shot", "dln-1"], tmp_path / "b").run(quiet)
    cells = Cells(tmp_path / "b", SMALL.record("fake/1"))
    assert cells.load(Cell("questions", "0-shot", 13)) == replace_times(free[0], cells)
    assert cells.load(Cell("questions", "dln-1", 13)) is None
    rest = bench(fake, task, ["0-shot", "dln-1"], tmp_path / "b").run(quiet)
    assert [r.correct for r in rest] == [r.correct for r in free]


def replace_times(result, cells):
    """The same cell with the seconds that the other run took."""
    other = cells.load(Cell(result.task, result.method, result.seed))
    assert other is not None
    return result.model_copy(update={"train": other.train, "test": other.test})


def test_equal_tokens_hold_for_training_and_do_not_touch_the_test(fake, task, tmp_path):
    protocol = replace(SMALL, equal_tokens=30_000)
    results = bench(fake, task, ["ape-15", "dln-1"], tmp_path, protocol).run(quiet)
    for result in results:
        assert result.train.tokens <= 30_000
        assert len(result.correct) == 20
    assert results[1].train.tokens > 15_000  # training goes on until the tokens are used


def test_steps_are_made_smaller_where_the_tokens_are_few_and_the_cell_says_so(fake, task, tmp_path):
    protocol = replace(SMALL, equal_tokens=7_000)
    (result,) = bench(fake, task, ["dln-1"], tmp_path, protocol).run(quiet)
    assert any(note.startswith("inference.demonstrations = ") for note in result.notes)
    assert "0 steps" not in result.notes[0]


def test_few_tokens_do_not_change_what_a_variant_is(fake, task):
    lm = Metered(fake, Budget(max_tokens=7_000))
    setup = Setup(SMALL.examples(task, 13), lm, 13, SMALL.options, budget=7_000)
    learnt = Trained(1, "k24", changes={"inference": {"demonstrations": [24]}})(setup)
    assert [note for note in learnt.notes if "for the budget" in note] == ["val_every = 1 instead of 2 for the budget"]


@pytest.mark.slow
def test_side_by_side_gives_the_same_cells(fake, task, tmp_path):
    one = bench(fake, task, ["0-shot", "icl-5", "dln-1"], tmp_path / "1", seeds=(1, 2)).run(quiet)
    two = bench(fake, task, ["0-shot", "icl-5", "dln-1"], tmp_path / "2", seeds=(1, 2), jobs=4).run(quiet)
    assert [(r.method, r.seed, r.correct) for r in one] == [(r.method, r.seed, r.correct) for r in two]


def test_a_damaged_cell_is_named_and_another_protocol_is_not_mixed_in(fake, task, tmp_path):
    bench(fake, task, ["0-shot"], tmp_path).run(quiet)
    with pytest.raises(InputError, match="another protocol") as refused:
        Cells(tmp_path, replace(SMALL, dev_size=31).record("fake/1"))
    assert "dev_size" in str(refused.value)
    path = Cells(tmp_path, SMALL.record("fake/1")).path(Cell("questions", "0-shot", 13))
    document = json.loads(path.read_text())
    document["result"]["accuracy"] = 1.0
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match="damaged"):
        bench(fake, task, ["0-shot"], tmp_path).run(quiet)


def test_methods_come_after_what_they_build_upon():
    chosen, added = in_order(["dln-2-fix", "random-demonstrations"])
    assert [m.name for m in chosen] == ["dln-1", "dln-2-fix", "random-demonstrations"]
    assert added == ["dln-1"]
    with pytest.raises(InputError, match="did you mean 'icl-5'"):
        in_order(["icl5"])
    assert all(m.about for m in METHODS.values())


def test_the_protocol_draws_train_and_dev_by_seed_in_natural_proportions_and_one_test_set(task):
    a, b = SMALL.examples(task, 1), SMALL.examples(task, 2)
    assert a.test == b.test
    assert a.train != b.train
    assert not set(a.train.inputs) & set(a.test.inputs)
    for label, count in a.dev.counts().items():
        assert abs(count - 30 * task.dev.counts()[label] / len(task.dev)) <= 1


def test_fitted_and_plain_in_context_learning_show_the_same_examples(fake, task):
    setup = Setup(SMALL.examples(task, 3), fake, 3)
    plain, fitted = InContext(5)(setup), InContext(5, fit=True)(setup)
    assert plain.prompts == fitted.prompts
    assert draw_examples(setup, 5) == draw_examples(setup, 5)
    assert draw_examples(setup, 5) != draw_examples(setup, 5, draw=1)
    counts = {e.target for e in draw_examples(setup, 8)}
    assert len(counts) == 8  # eight classes, one each
    assert isinstance(plain.predictor, Sequential)
    last = plain.predictor.layers[-1]
    assert isinstance(last, ChoiceLayer)
    assert not last.bias.any()


def test_kate_shows_the_nearest_examples_the_most_similar_last(fake, task):
    seen = SMALL.examples(task, 1)
    contexts = []

    class Listening(Metered):
        def choice_log_probs(self, given, labels):
            contexts.extend(given)
            return super().choice_log_probs(given, labels)

    setup = Setup(seen, Listening(fake), 1, encoder=sentence_encoder("words"))
    asked = seen.train[7].input
    learnt = Nearest(3)(setup)
    assert isinstance(learnt, Learnt)
    learnt.predictor.predict_many([asked])
    shown = [line.removeprefix("Input: ") for line in contexts[-1].splitlines() if line.startswith("Input: ")]
    assert shown[-2:] == [asked, asked]  # the example itself is the most similar, then the question


def test_word_vectors_are_unit_vectors_and_unknown_words_are_nothing():
    encoder = WordVectors()
    vectors = encoder(["the cat sat", "the dog sat", "a red car"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not encoder(["xyzzy"]).any()


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=5))
def test_the_interval_over_seeds_covers_their_mean_and_costs_are_per_seed(rows):
    summary = summarize([cell("m", seed, row, tokens=10 * seed) for seed, row in enumerate(rows)])
    (row,) = summary.rows
    assert row.low <= row.accuracy + 1e-9 and row.accuracy <= row.high + 1e-9
    assert row.accuracy == pytest.approx(np.mean(rows))
    assert row.train_tokens == pytest.approx(10 * np.mean(range(len(rows))))


def test_paired_tests_count_each_test_example_once_however_many_seeds_there_are():
    worse, better = [False] * 12, [True] * 12
    cells = [cell("0-shot", s, worse) for s in (1, 2)] + [cell("dln-1", s, better) for s in (1, 2)]
    (found,) = summarize(cells).comparisons
    assert (found.before, found.after) == ("0-shot", "dln-1")
    assert found.result.difference.mean == 1.0
    assert found.result.better + found.result.worse == 12
    assert found.result.p_value == pytest.approx(2 * 0.5**12)


def test_the_mean_over_tasks_is_only_there_for_methods_that_have_all_of_them():
    cells = [cell("a", 1, [True, False]), cell("a", 1, [True, True], task="b"), cell("b", 1, [True, True])]
    summary = summarize(cells)
    found = summary.row("mean", "a")
    assert found is not None
    assert found.accuracy == pytest.approx(0.75)
    assert summary.row("mean", "b") is None


def test_the_files_hold_the_table(tmp_path):
    cells = [cell(m, s, [True, s == 1, False]) for m in ("0-shot", "dln-1") for s in (1, 2)]
    summary = summarize(cells)
    files = write_table(summary, tmp_path, "heading")
    assert {path.name for path in files} == {"table.md", "table.csv", "table.json", "accuracy.svg"}
    with (tmp_path / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["0-shot", "dln-1"]
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 2
    root = ElementTree.fromstring((tmp_path / "accuracy.svg").read_text())  # noqa: S314 - our own file
    assert root.tag.endswith("svg")
    assert "| 0-shot | 50.0 ±" in markdown(summary)


def test_a_task_without_labels_is_refused_with_the_reason(fake, task):
    free = replace(
        task,
        labels=None,
        **{p: replace(getattr(task, p), labels=None) for p in ("train", "dev", "test")},
    )
    with pytest.raises(InputError, match="classification only"):
        ZeroShot()(Setup(free, fake, 1))


def test_answers_to_the_papers_tasks_are_judged_by_the_papers_rule(task):
    assert with_published_rule(replace(task, name="trec")).metric.name == "paper"
    assert with_published_rule(task).metric == task.metric
    assert with_published_rule(replace(task, name="gsm8k")).metric == task.metric
    record = replace(SMALL, rule="paper").record("fake/1")
    assert record["rule"] == "paper"
    assert "rule" not in SMALL.record("fake/1"), "cells of version 0.1 stay valid elsewhere"
