"""Selection, memory, and the reservoir of worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.infer.memory import Reservoir, Snapshot, remember
from dln.infer.mstep import Best, BestByMargin
from dln.lm.table import TableLM
from dln.nn import Demonstration, LanguageLayer, Sequential

LM = TableLM.random(["a"], seed=0)
SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(math.nan)), min_size=1, max_size=6)


def snapshot(name, score, step=0):
    return Snapshot(Sequential(LanguageLayer(LM, "answer", name)), score, step)


def names(memory):
    return [s.prompts[0].instruction for s in memory]


@given(SCORES)
def test_the_best_wins_a_tie_keeps_the_incumbent_and_nan_never_wins(scores):
    winner = Best()(np.array(scores), np.array(scores)[:, None])
    if all(map(math.isnan, scores)):
        assert winner == 0
    else:
        assert scores[winner] == max(s for s in scores if not math.isnan(s))
        assert all(math.isnan(s) or s < scores[winner] for s in scores[:winner])


@given(st.integers(0, 1000), st.floats(0, 3))
def test_by_margin_a_lead_must_be_larger_than_its_noise(seed, z):
    per_example = np.random.default_rng(seed).normal(0, 1, (4, 12))
    scores = per_example.mean(axis=1)
    winner = BestByMargin(z)(scores, per_example)
    leads = {
        n: (per_example[n] - per_example[0]).mean() - z * (per_example[n] - per_example[0]).std(ddof=1) / math.sqrt(12)
        for n in range(1, 4)
    }
    clear = [n for n, lead in leads.items() if lead > 0]
    assert winner == (max(clear, key=lambda n: scores[n]) if clear else 0)


def test_by_margin_a_lead_on_every_example_is_clear_and_equality_is_none():
    base = np.linspace(-3, -1, 10)
    assert BestByMargin(1.0)(np.array([base.mean(), base.mean() + 0.1]), np.stack([base, base + 0.1])) == 1
    assert BestByMargin(0.0)(np.array([base.mean()] * 2), np.stack([base, base])) == 0


def test_by_margin_penalties_are_part_of_the_lead():
    per_example = np.stack([np.full(5, -1.0), np.full(5, -0.9)])
    assert BestByMargin()(np.array([-1.0, -0.9]), per_example) == 1
    assert BestByMargin()(np.array([-1.0, -1.1]), per_example) == 0


@pytest.mark.parametrize("used", [0, 1])
def test_by_margin_too_few_examples_keep_the_incumbent(used):
    per_example = np.full((2, 5), np.nan)
    per_example[0, :used], per_example[1, :used] = -2.0, -1.0
    scores = np.array([-2.0, -1.0]) if used else np.full(2, np.nan)
    assert BestByMargin()(scores, per_example) == 0


# ---------------------------------------------------------------- memory


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(-3, 3)), max_size=12), st.integers(0, 4))
def test_memory_holds_the_best_of_all_each_prompt_once_best_first(validations, size):
    memory = ()
    for step, (name, score) in enumerate(validations):
        memory = remember(memory, snapshot(name, float(score), step), size)
        scores = [s.score for s in memory]
        assert scores == sorted(scores, reverse=True)
        assert len(set(names(memory))) == len(memory) <= size
    if memory:
        assert memory[0].score == max(score for _, score in validations)


def test_the_earlier_of_equals_stays_ahead():
    memory = remember((snapshot("old", 1.0, 0),), snapshot("new", 1.0, 5), 2)
    assert names(memory) == ["old", "new"]
    assert names(remember((snapshot("old", 1.0, 0),), snapshot("new", 1.0, 5), 1)) == ["old"]


def test_a_score_that_is_no_number_is_the_worst():
    memory = ()
    for step, score in enumerate([math.nan, -5.0, math.nan, 3.0]):
        memory = remember(memory, snapshot(f"s{step}", score, step), 4)
    assert names(memory)[:2] == ["s3", "s1"]
    assert remember((snapshot("same", math.nan),), snapshot("same", -1.0, 1), 2)[0].score == -1.0


# ---------------------------------------------------------------- reservoir


def examples(*names, y="y"):
    return tuple(Demonstration(name, name, y) for name in names)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=6), st.integers(0, 5))
def test_a_reservoir_keeps_the_newest_each_input_once(batches, limit):
    reservoir = Reservoir()
    for step, batch in enumerate(batches):
        rows = examples(*dict.fromkeys(batch), y=str(step))
        reservoir = reservoir.add([rows, rows], limit)
        kept = reservoir.outside(0, ())
        assert len(kept) <= limit
        assert len({d.x for d in kept}) == len(kept)
        newest = {name: str(i) for i, b in enumerate(batches[: step + 1]) for name in b}
        assert all(d.y == newest[d.x] for d in kept)
        assert {d.x for d in kept[-len(rows) :]} <= set(batch) or not rows


def test_examples_of_the_batch_are_never_given_back():
    reservoir = Reservoir().add([examples("a", "b", "c")], 10)
    assert [d.x for d in reservoir.outside(0, ["b"])] == ["a", "c"]
    assert Reservoir().outside(0, []) == ()
    assert Reservoir().add([], 3) == Reservoir()
