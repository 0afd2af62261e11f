"""Growing evidence: what earlier steps saw judges again, with the numbers of then."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.infer import vi
from dln.infer.calibrate import FixedOutput
from dln.infer.estep import EStep, Weighting
from dln.infer.hidden import PriorProposal
from dln.infer.memory import Replay
from dln.infer.objective import Candidates, ExpectedLogProb
from dln.infer.prompts import Proposal
from dln.io import dump, parse
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " c d")
LABELS = ("yes", "no")


def noisy(texts, seed, skills=None):
    """Prompts "skill s" prefer the right text of an item by s nats, under noise of each (prompt, item)."""

    def conditional(context):
        logits = Key(seed).child(context).generator().normal(0.0, 1.0, len(texts))
        for name, skill in (skills or {}).items():
            if name in context:
                item = int(context.rsplit("item", 1)[1].split(".")[0])
                logits[item % len(texts)] += skill
        p = np.exp(logits)
        return dict(zip(texts, (p / p.sum()).tolist(), strict=True))

    return TableLM(conditional, name=f"noisy-{seed}-{len(texts)}")


def network_of(depth, seed=0):
    hidden = [LanguageLayer(noisy(HIDDEN, seed + i), "think", f"think {i}") for i in range(depth - 1)]
    return Sequential(*hidden, ChoiceLayer(noisy((" yes", " no"), seed + 9), "classify", "sort", LABELS))


def situation_of(network, numbers, step=0):
    x = tuple(f"item{i}." for i in numbers)
    trace = network.sample(Key(1).child(step), x, temperature=0.0)
    e_step = EStep(PriorProposal(), Weighting(), 3, "log_prob", include_forward=False)
    posterior = e_step(Key(2).child(step), network, trace, [LABELS[i % 2] for i in numbers])
    last = network.layers[-1]
    return Candidates(
        key=Key(3),
        layers=(last, last.with_prompt("other"), last.with_prompt(Prompt("third"))),
        position=len(network) - 1,
        depth=len(network),
        trace=trace,
        posterior=posterior,
        correct=np.ones(len(x), dtype=np.bool_),
        counted=posterior.scored,
        step=step,
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_joined_terms_are_those_of_each_step_by_itself(depth):
    network = network_of(depth)
    earlier, now = situation_of(network, range(4), 0), situation_of(network, range(4, 9), 1)
    replay = Replay().add(earlier.trace, earlier.posterior, 100)
    judge = ExpectedLogProb("log_prob", FixedOutput())
    together = judge(replay.joined(now)).per_example
    np.testing.assert_allclose(together[:, :5], judge(now).per_example, atol=1e-12)
    np.testing.assert_allclose(together[:, 5:], judge(earlier).per_example, atol=1e-9)


def test_hidden_layers_are_judged_on_the_batch_alone():
    network = network_of(2)
    earlier, now = situation_of(network, range(4), 0), situation_of(network, range(4, 9), 1)
    replay = Replay().add(earlier.trace, earlier.posterior, 100)
    below = Candidates(
        Key(3), (network.layers[0],), 0, 2, now.trace, now.posterior, now.correct, now.counted, 1, network.layers[1:]
    )
    assert replay.joined(below) is below


@given(
    batches=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True), min_size=1, max_size=5),
    limit=st.integers(0, 8),
)
def test_kept_are_the_newest_each_once(batches, limit):
    network = network_of(1)
    replay = Replay()
    for step, numbers in enumerate(batches):
        situation = situation_of(network, numbers, step)
        replay = replay.add(situation.trace, situation.posterior, limit)
    newest: dict[int, None] = {}
    for numbers in batches:
        for i in numbers:
            newest.pop(i, None)
            newest[i] = None
    expected = [f"item{i}." for i in newest]
    assert [e.x for e in replay.examples] == expected[len(expected) - min(limit, len(expected)) :]
    assert parse(Replay, dump(replay), "replay") == replay


def test_an_example_of_the_batch_judges_once():
    network = network_of(2)
    first, again = situation_of(network, range(4), 0), situation_of(network, range(2, 6), 1)
    joined = Replay().add(first.trace, first.posterior, 100).joined(again)
    assert sorted(joined.trace.x) == [f"item{i}." for i in range(6)]


class Offered:
    """Proposes the same prompts in every step."""

    def __init__(self, *prompts):
        self.prompts = prompts

    def __call__(self, key, layer, feedback, num):
        return [Proposal(Prompt(text), "offered") for text in self.prompts]


def winner_after(evidence, seed, steps=12, size=4):
    skills = {"better": 0.6, "worse": 0.0, "middle": 0.3}
    lm = noisy((" yes", " no"), seed, skills)
    network = Sequential(ChoiceLayer(lm, "classify", "worse", LABELS))
    algorithm = vi.build(q_prompt=Offered("better", "middle", "worse"), evidence=evidence)
    state = vi.init(network)
    for step in range(steps):
        numbers = range(step * size, (step + 1) * size)
        batch = vi.Batch(tuple(f"item{i}." for i in numbers), tuple(LABELS[i % 2] for i in numbers))
        state, info = vi.update(state, batch, Key(seed).child(step), algorithm)
    return state.network.parameters()[0].instruction, info


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [20, pytest.param(30, marks=pytest.mark.slow)])
def test_with_growing_evidence_luck_on_a_small_batch_does_not_decide(seeds):
    with_evidence = [winner_after(100, seed)[0] for seed in range(seeds)].count("better")
    without = [winner_after(0, seed)[0] for seed in range(seeds)].count("better")
    assert with_evidence >= without + seeds // 10
    _, info = winner_after(100, 0)
    assert info.layers[0].used.sum() == 48
    assert info.excluded == 0


def test_no_more_earlier_examples_are_asked_about_than_the_limit():
    _, info = winner_after(10, 0)
    assert info.layers[0].used.sum() == 14
