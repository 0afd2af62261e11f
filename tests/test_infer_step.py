"""Whole training steps: what is excluded, who may judge, what is frozen, repeated or remembered."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dln.errors import ContextLengthError, InputError, RunFailed
from dln.infer import vi
from dln.infer.calibrate import PenalisedLikelihood
from dln.infer.estep import EStep, Weighting
from dln.infer.hidden import PriorProposal
from dln.infer.memory import Reservoir, Snapshot, labelled_examples, layer_feedback, worked_examples
from dln.infer.objective import ExpectedLogProb
from dln.infer.prompts import DemonstrationProposal, Proposal
from dln.lm.base import TokenLogProbs, Wrapper
from dln.lm.meter import Meter, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, Prompt, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " a b", " c d")
LABELS = ("yes", "no")
X = ("one", "two", "three", "four")
Y = ("yes", "no", "yes", "yes")
BATCH = vi.Batch(X, Y)


class Holes(Wrapper):
    """Scores NaN where the context holds a given word; refuses contexts beyond its length, in words."""

    def __init__(self, inner, *words, context_length=None):
        super().__init__(inner)
        self.words, self.length = words, context_length

    @property
    def capabilities(self):
        return replace(self.inner.capabilities, context_length=self.length)

    def sample(self, contexts, sampling, seeds):
        self.check(contexts, sampling.max_tokens)
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        self.check(contexts, 1)
        rows = self.inner.log_prob(contexts, targets)
        return [
            TokenLogProbs(r.values * math.nan, r.text_tokens) if self.hit(c) else r
            for c, r in zip(contexts, rows, strict=True)
        ]

    def choice_log_probs(self, contexts, labels):
        self.check(contexts, 1)
        rows = self.inner.choice_log_probs(contexts, labels)
        rows[[self.hit(c) for c in contexts]] = math.nan
        return rows

    def count_tokens(self, text):
        return len(text.split())

    def hit(self, context):
        return any(word in context for word in self.words)

    def check(self, contexts, more):
        for context in contexts:
            if self.length is not None and self.count_tokens(context) + more > self.length:
                raise ContextLengthError("too long", got=self.count_tokens(context))


class Instructions:
    """Fixed candidates, others at each repetition."""

    def __init__(self, *texts):
        self.texts = texts

    def __call__(self, key, layer, feedback, num):
        offset = key.integer() % 1000
        return [Proposal(Prompt(f"{text} {offset + i}"), "fixed") for i, text in enumerate(self.texts[:num])]


def network(depth=2, seed=0, *, holes=(), length=None):
    hidden = Holes(TableLM.random(HIDDEN, seed=seed), *holes, context_length=length)
    output = Holes(TableLM.random([" yes", " no"], seed=seed + 1), *holes, context_length=length)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    return Sequential(*layers, ChoiceLayer(output, "classify_residual" if depth > 1 else "classify", "out", LABELS))


def step(net, batch=BATCH, seed=0, **choices):
    choices = {"q_prompt": Instructions("try", "again", "more"), "num_prompts": 3} | choices
    return vi.update(vi.init(net), batch, Key(seed), vi.build(**choices))


# ---------------------------------------------------------------- excluded


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_model_that_returns_only_nan_ends_the_run_with_one_clear_error(depth):
    with pytest.raises(RunFailed, match="not one example"):
        step(network(depth, holes=("",)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_cannot_be_scored_is_counted_and_changes_nothing_else(depth):
    """A step on four examples of which one has no scores equals the step on the other three."""
    holed, whole = network(depth, 3, holes=("Input: four\n",)), network(depth, 3)
    state, info = step(holed)
    assert info.excluded == 1
    assert np.isfinite(info.elbo)
    for layer in info.layers:
        assert layer.used.tolist() == [True, True, True, False]
        assert np.isfinite(layer.scores).all()
    other, less = step(whole, vi.Batch(X[:3], Y[:3]))
    assert info.elbo != 0
    if depth == 1:  # deeper networks draw their hidden texts by place in the batch
        assert info.elbo == pytest.approx(less.elbo)
        assert state.network.parameters() == other.network.parameters()


def test_a_candidate_that_cannot_be_scored_does_not_end_the_run():
    """It is the candidate that is unusable, not the examples: the others are still compared."""
    _, info = step(network(1, holes=("again",)))
    (layer,) = info.layers
    assert layer.used.all()
    assert [math.isnan(s) for s in layer.scores] == [p.prompt.instruction.startswith("again") for p in layer.proposals]
    assert info.excluded == 0


# ---------------------------------------------------------------- who may judge


def test_an_example_that_a_candidate_shows_is_not_a_judge():
    shows = Prompt("shows", (Demonstration("two", "two", "no"),))
    _, info = step(network(1), q_prompt=lambda key, layer, feedback, num: [Proposal(shows, "d")])
    (layer,) = info.layers
    assert len(layer.proposals) == 2
    assert layer.used.tolist() == [True, False, True, True]
    assert info.excluded == 0


def test_what_the_incumbent_shows_is_no_judge_either():
    net = network(1)
    shown = net.with_layer(0, net.layers[0].with_prompt(Prompt("p", (Demonstration("one", "one", "yes"),))))
    _, info = step(shown)
    assert info.layers[0].used.tolist() == [False, True, True, True]


def test_an_incumbent_that_shows_the_whole_batch_stays_as_it_is():
    """Nobody is left to judge: prompt, bias and temperature must survive."""
    top = network(1).layers[0].with_calibration([0.5, -0.5], 2.0)
    prompt = Prompt("p", tuple(Demonstration(x, x, y) for x, y in zip(X, Y, strict=True)))
    fitted = ExpectedLogProb("log_prob", PenalisedLikelihood())
    state, info = step(Sequential(top.with_prompt(prompt)), output_objective=fitted)
    kept = state.network.layers[0]
    assert (kept.prompt, kept.bias.tolist(), kept.readout.temperature) == (prompt, [0.5, -0.5], 2.0)
    assert not info.layers[0].used.any()


def test_a_candidate_beyond_the_context_is_dropped_and_counted():
    """Long demonstrations must not end a run: the model refuses such a context."""
    long = tuple((" ".join(["word"] * 60) + f" {i}", "yes") for i in range(30))
    choices = {"q_prompt": DemonstrationProposal((1, 16), room=100.0), "num_prompts": 8}
    _, info = step(network(1, length=300), vi.Batch(X, Y, long), **choices)
    (layer,) = info.layers
    assert layer.dropped["over-long"] > 0
    sizes = [len(p.prompt.demonstrations) for p in layer.proposals]
    assert max(sizes) == 1
    assert np.isfinite(layer.scores).all()


# ---------------------------------------------------------------- feedback


def posterior_of(net):
    trace = net.sample(Key(0), X)
    return trace, EStep(PriorProposal(), Weighting(), 3, "log_prob")(Key(0), net, trace, Y)


def test_feedback_is_what_a_layer_saw_wrote_and_should_have_written():
    net = network(3)
    trace, posterior = posterior_of(net)
    for position in range(3):
        feedback = layer_feedback(Key(0), position, trace, posterior, [True] * 4, (), Reservoir())
        assert list(feedback.inputs) == trace.inputs(position)
        assert list(feedback.outputs) == [c.text for c in trace.outputs(position)]
        assert list(feedback.wanted) == [str(t) for t in posterior.mode(position + 1)]
    assert feedback.wanted == Y


def test_one_layer_takes_its_examples_from_outside_the_batch():
    net = network(1)
    trace, posterior = posterior_of(net)
    pool = (("else", "no"), ("other", "yes"))
    labelled = labelled_examples(Key(0), (), pool, 1)
    feedback = layer_feedback(Key(0), 0, trace, posterior, [True] * 4, labelled, Reservoir())
    assert feedback.pool == (Demonstration("else", "else", "no"), Demonstration("other", "other", "yes"))


def test_the_last_layer_shows_labelled_examples_with_what_the_layers_below_write_about_them():
    net = network(3)
    pool = tuple((f"else {i}", ("yes", "no")[i % 2]) for i in range(9))
    labelled = labelled_examples(Key(0), net.layers[:2], pool, 5)
    assert len(set(labelled)) == 5
    assert {(d.x, d.y) for d in labelled} < set(pool)
    written = Sequential(net.layers[:2]).sample(Key(7), [d.x for d in labelled], temperature=0.0)
    assert [d.h for d in labelled] == list(written.predictions)
    assert labelled_examples(Key(0), net.layers[:2], pool, 99) != labelled  # all of them
    assert labelled_examples(Key(0), net.layers[:2], (), 5) == ()
    trace, posterior = posterior_of(net)
    older = Demonstration("older", "older", "a")
    reservoir = Reservoir().add([(older,)] * 3, 99)
    pools = [layer_feedback(Key(0), i, trace, posterior, [True] * 4, labelled, reservoir).pool for i in range(3)]
    assert pools == [(older,), (older,), labelled]


@pytest.mark.parametrize(("layer_steps", "read"), [(1, 6), ((0, 1), 6), ((1, 0), 0)])
def test_nothing_is_read_for_a_last_layer_that_is_not_trained(layer_steps, read):
    net = network(2)
    pool = tuple((f"else {i}", "yes") for i in range(9))

    def calls(worked):
        meter = Meter()
        metered = net.with_layer(0, replace(net.layers[0], lm=Metered(net.layers[0].lm, meter=meter)))
        algorithm = vi.build(q_prompt=Instructions("a"), num_prompts=1, layer_steps=layer_steps, worked=worked)
        vi.update(vi.init(metered), replace(BATCH, pool=pool), Key(0), algorithm)
        return meter.snapshot().calls

    assert calls(6) - calls(0) == read


def test_examples_that_the_last_layer_shows_leave_the_whole_batch_to_judge():
    batch = replace(BATCH, pool=tuple((f"else {i}", ("yes", "no")[i % 2]) for i in range(9)))
    vi_ = vi.build(q_prompt=DemonstrationProposal((4,)), num_prompts=3, worked=6)
    _, info = vi.update(vi.init(network(2)), batch, Key(0), vi_)
    first, last = info.layers
    assert [int(step.used.sum()) for step in (first, last)] == [2, 4]
    shown = [p.prompt.demonstrations for p in last.proposals[1:]]
    assert all(len(examples) == 4 and {d.x for d in examples} <= {x for x, _ in batch.pool} for examples in shown)


def test_a_hidden_layer_takes_its_examples_from_earlier_batches():
    net = network(2)
    trace, posterior = posterior_of(net)
    rows = worked_examples(trace, posterior)
    assert [d.x for d in rows[0]] == list(X)
    assert [d.y for d in rows[1]] == list(Y)
    assert [d.h for d in rows[1]] == [c.text for c in trace.hidden[0]]
    older = Demonstration("older", "older", "a")
    reservoir = Reservoir().add(rows, 99).add([(older,), ()], 99)
    feedback = layer_feedback(Key(0), 0, trace, posterior, [True] * 4, (), reservoir)
    assert feedback.pool == (older,)


def test_with_nothing_from_elsewhere_half_of_the_batch_is_shown():
    for depth in (1, 2):
        net = network(depth)
        trace, posterior = posterior_of(net)
        feedback = layer_feedback(Key(0), 0, trace, posterior, [True] * 4, (), Reservoir())
        assert len(feedback.pool) == 2
        assert {d.x for d in feedback.pool} < set(X)


def test_an_example_that_was_not_scored_is_no_worked_example():
    net = network(2, holes=("Input: two\n",))
    trace, posterior = posterior_of(net)
    for row in worked_examples(trace, posterior):
        assert [d.x for d in row] == ["one", "three", "four"]


# ---------------------------------------------------------------- steps per layer, memory


@pytest.mark.parametrize("steps", [(1,), (1, 1, 1), ()])
def test_one_number_of_steps_per_layer_is_needed(steps):
    with pytest.raises(InputError, match="layer_steps"):
        step(network(2), layer_steps=steps)


def test_several_steps_per_layer_go_on_from_each_other():
    state, info = step(network(2), layer_steps=(2, 3))
    assert [layer.position for layer in info.layers] == [0, 0, 1, 1, 1]
    for before, after in zip(info.layers, info.layers[1:], strict=False):
        if before.position == after.position:
            assert after.layers[0].prompt == before.layers[before.winner].prompt
            assert after.scores[after.winner] >= after.scores[0]
    for position, last in ((0, info.layers[1]), (1, info.layers[4])):
        assert state.network.layers[position].prompt == last.layers[last.winner].prompt


def test_all_frozen_still_measures():
    net = network(2)
    state, info = step(net, layer_steps=0)
    assert info.layers == ()
    assert state.network.state_dict() == net.state_dict()
    assert np.isfinite(info.elbo)
    assert state.step == 1


def test_prompts_of_the_memory_are_candidates_too():
    net = network(2)
    remembered = net.with_prompts(["from memory 0", "from memory 1"])
    state = replace(vi.init(net), memory=(Snapshot(remembered, 1.0, 0), Snapshot(net, 0.5, 0)))
    _, info = vi.update(state, BATCH, Key(0), vi.build(q_prompt=Instructions("a"), num_prompts=1))
    for layer in info.layers:
        assert [p.source for p in layer.proposals] == ["incumbent", "memory", "fixed"]
        assert layer.proposals[1].prompt.instruction == f"from memory {layer.position}"


def test_a_step_leaves_the_state_it_came_from_alone():
    state = vi.init(network(2))
    before = state.network.state_dict()
    after, _ = vi.update(state, BATCH, Key(0), vi.build(q_prompt=Instructions("a", "b"), num_prompts=2))
    assert (state.step, after.step) == (0, 1)
    assert state.network.state_dict() == before
    assert state.reservoir == Reservoir()
    assert [d.x for d in after.reservoir.outside(0, ())] == list(X)


def test_the_reservoir_has_its_size():
    state, _ = step(network(2), reservoir=2)
    assert [len(row) for row in state.reservoir.layers] == [2, 2]
    state, _ = step(network(2), reservoir=0)
    assert [len(row) for row in state.reservoir.layers] == [0, 0]


def test_one_example_is_a_batch():
    for depth in (1, 2):
        _, info = step(network(depth), vi.Batch(X[:1], Y[:1]))
        assert info.excluded == 0
        assert np.isfinite(info.elbo)
