"""Racing with the embedded model on real questions: the same winners, fewer pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dln
from dln.data import exact_match
from dln.infer import vi
from dln.infer.mstep import Best
from dln.infer.race import Race, Recalled
from dln.lm.base import Sampling
from dln.random import Key
from dln.train import resolve_options
from dln.train.build import algorithm
from dln.train.evaluate import judge


class Beside:
    """Full scoring, and the race that it replaces over the same candidates and answers."""

    def __init__(self, race: Race) -> None:
        self.race, self.same, self.shares = race, [], []

    def __call__(self, situation):
        # one memory for both: the race costs nothing more, and sees the very numbers that full scoring saw
        memory = Recalled.of(situation.layers)
        situation = replace(situation, layers=tuple(map(memory.remembering, situation.layers)))
        full, raced = self.race.objective(situation), self.race(situation)
        self.same.append(Best()(full.scores, full.per_example) == Best()(raced.scores, raced.per_example))
        self.shares.append(raced.share)
        return full


def race_beside_full_scoring(lm, task, depth, steps, *, batch, prompts, hidden, tokens, seed=1):
    """Steps on real data; (agreements, shares) of hidden layers and of the output layer."""
    layers = [dln.ChoiceLayer(lm, "classify_residual" if depth > 1 else "classify", task.instruction, task.labels)]
    if depth > 1:
        think = "Decompose the problem to make it simpler:"
        layers.insert(0, dln.LanguageLayer(lm, "think", think, Sampling(max_tokens=tokens)))
    net = dln.Sequential(*layers)
    options = resolve_options("default", {"inference": {"num_prompts": prompts, "num_hidden": hidden}})
    right = judge(exact_match, net.labels)
    chosen = algorithm(options, lambda p, y: right(p, y) >= 0.5, network=net)
    step = chosen.m_step
    below, above = Beside(step.hidden_objective), Beside(step.output_objective)
    chosen = replace(chosen, m_step=replace(step, hidden_objective=below, output_objective=above))
    state = vi.init(net)
    for number in range(steps):
        key = Key(seed).child("step", number)
        order = [int(i) for i in key.child("batch").generator().permutation(len(task.train))]
        shown = task.train.select(order[:batch])
        rest = task.train.select(order[batch:])
        pool = tuple((e.input, e.target) for e in rest)
        state, _ = vi.update(state, vi.Batch(shown.inputs, shown.targets, pool), key, chosen)
    return (below.same, below.shares), (above.same, above.shares)


@pytest.mark.model
@pytest.mark.slow
def test_a_step_on_questions_chooses_as_full_scoring_does(smollm2):
    """A small sample of what the next test counts; test_infer_race counts on tables."""
    task = dln.load_task("questions")
    below, above = race_beside_full_scoring(smollm2, task, 2, 1, batch=8, prompts=4, hidden=2, tokens=12)
    assert len(below[0]) == len(above[0]) == 1
    assert all(below[0] + above[0])
    assert all(0 < share <= 1 for share in below[1] + above[1])


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_many_steps_on_questions_choose_as_full_scoring_does(smollm2, depth):
    task = dln.load_task("questions")
    settings = {"batch": 20, "prompts": 8} if depth == 1 else {"batch": 10, "prompts": 10}
    below, above = race_beside_full_scoring(smollm2, task, depth, 12, hidden=5, tokens=64, **settings)
    assert np.mean(below[0] + above[0]) >= 0.95
    assert np.mean(below[1] + above[1]) < 1


@pytest.mark.model
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["subj", "trec"])
def test_many_steps_on_the_papers_data_choose_as_full_scoring_does(smollm2, paper_data, name):
    task = dln.load_task(name, data=paper_data)
    _, above = race_beside_full_scoring(smollm2, task, 1, 12, batch=20, prompts=8, hidden=1, tokens=16)
    assert np.mean(above[0]) >= 0.9  # of twelve steps one may differ
    assert np.mean(above[1]) < 1
