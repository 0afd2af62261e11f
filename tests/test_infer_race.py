"""Racing: the winner of full scoring wins, survivors have its numbers, and less is asked."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import InputError
from dln.infer import vi
from dln.infer.calibrate import FixedOutput, PenalisedLikelihood
from dln.infer.estep import EStep, Weighting
from dln.infer.hidden import PriorProposal
from dln.infer.mstep import Best
from dln.infer.objective import Accuracy, Candidates, ExpectedLogProb, NoiseContrastive
from dln.infer.prompts import Proposal
from dln.infer.race import BehindLeader, Race, Recall, balanced_order
from dln.lm.base import Wrapper
from dln.lm.laws import LAWS, LawCase
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.random import Key
from dln.train import resolve_options
from dln.train.build import algorithm
from dln.train.events import CandidateRecord, LayerRecord, StepDone, StoppedRecord, step_event
from dln.view.format import Limits, why_chosen
from dln.view.steps import steps

HIDDEN = (" a", " b", " c d")
LABELS = ("yes", "no")
SIZE = 16
X = tuple(f"item{i}." for i in range(SIZE))
Y = tuple(LABELS[i % 2] for i in range(SIZE))
BATCH = vi.Batch(X, Y)


def skilled(texts, seed):
    """A model whose prompts have a skill: how strongly the right text of an item is preferred, under noise."""

    def conditional(context):
        generator = Key(seed).child(context).generator()
        logits = generator.normal(0.0, 1.0, len(texts))
        skill = re.findall(r"skill (-?\d+\.\d)", context)
        item = re.findall(r"item(\d+)\.", context)
        logits[int(item[-1]) % len(texts)] += float(skill[0]) if skill else 0.0
        p = np.exp(logits)
        return dict(zip(texts, (p / p.sum()).tolist(), strict=True))

    return TableLM(conditional, name=f"skilled-{seed}-{len(texts)}")


class Counting(Wrapper):
    """Counts what the model itself is asked."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked, self.questions = 0, []

    def sample(self, contexts, sampling, seeds):
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        self.asked += len(contexts)
        self.questions += [(c, str(t)) for c, t in zip(contexts, targets, strict=True)]
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        self.asked += len(contexts)
        self.questions += [(c, tuple(labels)) for c in contexts]
        return self.inner.choice_log_probs(contexts, labels)


def random_skills(key, layer, feedback, num):
    """Candidates of random skill."""
    skills = key.generator().uniform(-2.0, 3.0, num)
    return [Proposal(Prompt(f"skill {skill:.1f} of {i}"), "random") for i, skill in enumerate(skills)]


def network(depth, seed):
    hidden, output = Counting(skilled(HIDDEN, seed)), Counting(skilled((" yes", " no"), seed + 1))
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", "skill 0.5") for i in range(depth - 1)]
    top = ChoiceLayer(output, "classify_residual" if depth > 1 else "classify", "skill 0.5", LABELS)
    return Sequential(*layers, top)


def objective(name):
    return ExpectedLogProb("log_prob", PenalisedLikelihood(folds=2) if name == "fitted" else FixedOutput())


def step(net, seed, hidden, output, num_prompts=5):
    choices = vi.build(
        q_prompt=random_skills,
        num_prompts=num_prompts,
        num_hidden=2,
        q_hidden=PriorProposal(1.0),
        hidden_objective=hidden,
        output_objective=output,
    )
    return vi.update(vi.init(net), BATCH, Key(seed), choices)


def candidates(net, position, seed=0, num=8, counted=None):
    trace = net.sample(Key(seed), X)
    posterior = EStep(PriorProposal(1.0), Weighting(), 3, "log_prob")(Key(seed), net, trace, Y)
    layer = net.layers[position]
    drawn = random_skills(Key(seed).child("q"), layer, None, num)
    return Candidates(
        key=Key(seed).child("layer", position),
        layers=(layer, *(layer.with_prompt(p.prompt) for p in drawn)),
        position=position,
        depth=len(net),
        trace=trace,
        posterior=posterior,
        correct=np.array([p == y for p, y in zip(trace.predictions, Y, strict=True)]),
        counted=posterior.scored if counted is None else np.array(counted),
        step=0,
        above=net.layers[position + 1 :],
    )


# ---------------------------------------------------------------- the same winner, for less


class Compared:
    """Full scoring, with a race over the same candidates beside it."""

    def __init__(self, plain):
        self.plain, self.same, self.shares = plain, [], []

    def __call__(self, situation):
        full, raced = self.plain(situation), Race(self.plain)(situation)
        self.same.append(Best()(full.scores, full.per_example) == Best()(raced.scores, raced.per_example))
        self.shares.append(raced.share)
        return full


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("fixed", 15),
        ("fitted", 6),
        pytest.param("fixed", 150, marks=pytest.mark.slow),
        pytest.param("fitted", 60, marks=pytest.mark.slow),
    ],
)
def test_racing_chooses_as_full_scoring_does_in_95_of_100_steps(name, runs):
    steps, shares = [], []
    for seed in range(runs):
        hidden, output = Compared(objective("fixed")), Compared(objective(name))
        step(network(1 + seed % 3, seed), seed, hidden, output)
        steps.append(all(hidden.same + output.same))
        shares += hidden.shares + output.shares
    assert np.mean(steps) >= 0.95
    assert np.mean(shares) < 0.85


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_raced_step_is_the_step_of_full_scoring_for_less(depth):
    """The same prompts go on, and the models are asked for less."""
    nets = [network(depth, depth) for _ in range(2)]
    (full, _), (raced, info) = (
        step(net, 5, wrap(objective("fixed")), wrap(objective("fixed")))
        for net, wrap in zip(nets, (lambda plain: plain, Race), strict=True)
    )
    assert raced.network.parameters() == full.network.parameters()
    assert all(layer.lm is net_layer.lm for layer, net_layer in zip(raced.network.layers, nets[1].layers, strict=True))
    assert any(stopped for layer in info.layers for stopped in layer.stopped)
    asked = [sum({id(lm): lm.asked for lm in (layer.lm for layer in net.layers)}.values()) for net in nets]
    assert asked[1] < asked[0]
    everything = [q for lm in {id(layer.lm): layer.lm for layer in nets[1].layers}.values() for q in lm.questions]
    assert len(set(everything)) == len(everything)  # not in the E-step, the M-step and the bound again


@given(st.integers(0, 10_000), st.integers(1, 3), st.data())
@settings(max_examples=20, deadline=None)
def test_survivors_have_the_numbers_of_full_scoring_and_nobody_else_has_any(seed, depth, data):
    position = data.draw(st.integers(0, depth - 1))
    plain = objective(data.draw(st.sampled_from(["fixed", "fitted"])))
    counted = data.draw(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).filter(any))
    situation = candidates(network(depth, seed), position, seed, counted=counted)
    full, raced = plain(situation), Race(plain, BehindLeader(0.3))(situation)
    alive = [n for n, stopped in enumerate(raced.stopped) if stopped is None]
    assert alive[0] == 0  # the incumbent's score is always complete
    for n, row in enumerate(raced.per_example):
        if n in alive:
            np.testing.assert_array_equal(row, full.per_example[n])
            assert raced.layers[n].prompt == full.layers[n].prompt
            if situation.is_output:
                np.testing.assert_array_equal(raced.layers[n].bias, full.layers[n].bias)
                assert raced.layers[n].readout.temperature == full.layers[n].readout.temperature
        else:
            assert np.isnan(row).all()
    assert int(np.nanargmax(raced.scores)) in alive
    assert all(layer.lm is situation.layers[0].lm for layer in raced.layers)
    np.testing.assert_array_equal(raced.used, full.used)


def test_each_pair_is_asked_once_and_the_share_says_how_many():
    for position in (0, 1):
        net = network(2, 3)
        situation = candidates(net, position, 3)
        model = net.layers[position].lm
        model.asked, model.questions = 0, []
        raced = Race(objective("fixed"), BehindLeader(0.3))(situation)
        everything = len(situation.layers) * len(situation.pairs.inputs)
        assert len(set(model.questions)) == len(model.questions) == model.asked
        assert 0 < raced.share < 1
        if position == 0:  # two hidden texts may give the output layer one context, but not the hidden layer
            assert model.asked == round(raced.share * everything)
        assert any(stopped is not None for stopped in raced.stopped)


def test_a_stopped_candidate_carries_its_partial_score():
    situation = candidates(network(1, 5), 0, 5)
    race = Race(objective("fixed"), BehindLeader(0.3))
    raced, full = race(situation), objective("fixed")(situation)
    order, rounds = balanced_order(situation), race.rounds(SIZE)
    assert any(raced.stopped)
    for n, stopped in enumerate(raced.stopped):
        if stopped is None:
            continue
        assert stopped.examples == rounds[stopped.round - 1] < SIZE
        assert stopped.score == pytest.approx(full.per_example[n][order[: stopped.examples]].mean())


@pytest.mark.parametrize("build", [lambda: NoiseContrastive("log_prob"), lambda: objective("fixed")])
def test_hidden_objectives_can_be_raced(build):
    situation = candidates(network(3, 2), 1, 2)
    full, raced = build()(situation), Race(build())(situation)
    assert int(np.nanargmax(full.scores)) == int(np.nanargmax(raced.scores))


def test_accuracy_can_be_raced():
    agree = 0
    for seed in range(20):
        situation = candidates(network(1, seed), 0, seed)
        judge = Accuracy(lambda p, y: p == y, FixedOutput())
        full, raced = judge(situation), Race(judge)(situation)
        agree += int(np.nanargmax(full.scores)) == int(np.nanargmax(raced.scores))
    assert agree >= 19


def test_alone_the_incumbent_is_scored_as_ever():
    situation = replace(candidates(network(1, 0), 0), layers=(network(1, 0).layers[0],))
    raced = Race(objective("fixed"))(situation)
    assert raced.stopped == (None,)
    assert raced.share == 1.0
    np.testing.assert_array_equal(raced.per_example, objective("fixed")(situation).per_example)


def test_without_a_judge_nothing_is_raced():
    situation = candidates(network(2, 0), 1, counted=[False] * SIZE)
    raced = Race(objective("fitted"))(situation)
    assert np.isnan(raced.per_example).all()
    assert not any(raced.stopped)


# ---------------------------------------------------------------- rounds and their order


@given(st.integers(0, 300), st.floats(0.01, 1.0), st.integers(2, 20), st.floats(1.01, 4.0))
def test_rounds_grow_to_the_whole(total, start, fewest, growth):
    rounds = Race(objective("fixed"), start=start, fewest=fewest, growth=growth).rounds(total)
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == total
    assert all(size >= min(fewest, total) for size in rounds)


@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
def test_the_order_is_of_the_counted_examples_and_balanced(seed, counted):
    situation = replace(candidates(network(1, 0), 0), key=Key(seed), counted=np.array(counted))
    order = balanced_order(situation)
    assert sorted(order) == np.flatnonzero(counted).tolist()
    assert order == balanced_order(situation)
    total = {label: sum(Y[i] == label for i in order) for label in LABELS}
    for end in range(len(order) + 1):
        for label in LABELS:
            share = end * total[label] / max(1, len(order))
            assert abs(sum(Y[i] == label for i in order[:end]) - share) <= 1 + 1e-9


def test_another_key_is_another_order():
    situation = candidates(network(1, 0), 0)
    orders = {tuple(balanced_order(replace(situation, key=Key(seed)))) for seed in range(30)}
    assert len(orders) == 30
    first = {order[0] for order in orders}
    assert len(first) > 5


# ---------------------------------------------------------------- the rule


def test_the_error_of_the_rule_is_what_it_promises():
    """Normal differences without any true lead, the hardest case: the winner is stopped in at most δ of races."""
    error, n, num, sizes = 0.2, 20, 6, (5, 8, 12, 18)
    generator = np.random.default_rng(1)
    lost, races = 0, 1000
    for _ in range(races):
        terms = generator.normal(size=(num, n))
        winner = int(np.argmax(terms.mean(axis=1)))
        alive = list(range(num))
        for size in sizes:
            seen = np.full((len(alive), n), np.nan)
            seen[:, :size] = terms[alive][:, :size]
            out = BehindLeader(error)(seen, n, num - 1, len(sizes))
            alive = [m for m, stops in zip(alive, out, strict=True) if not stops]
        lost += winner not in alive
    assert lost / races <= error


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 19))
def test_the_leader_never_stops_and_a_larger_error_stops_more(seed, num, size):
    generator = np.random.default_rng(seed)
    terms = np.full((num, 20), np.nan)
    terms[:, :size] = generator.normal(size=(num, size)) + generator.normal(0, 2, (num, 1))
    strict, loose = (BehindLeader(e)(terms, 20, num - 1, 3) for e in (0.01, 0.4))
    assert not loose[int(np.argmax(np.nanmean(terms, axis=1)))]
    assert (strict <= loose).all()


def test_nobody_stops_where_nothing_is_known_of_the_spread():
    """Differences that agree to the last digit are no proof."""
    terms = np.full((3, 10), np.nan)
    terms[:, :4] = np.array([0.0, -1.0, -2.0])[:, None]
    assert not BehindLeader()(terms, 10, 2, 2).any()


def test_a_candidate_without_scores_stays_for_the_others_to_judge():
    terms = np.full((3, 10), np.nan)
    terms[0, :6] = np.linspace(0, 1, 6)
    terms[1, :6] = np.linspace(0, 1.1, 6) - 50
    assert BehindLeader()(terms, 10, 2, 2).tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": 1.5}, {"fewest": 1}, {"growth": 1.0}])
def test_impossible_races_are_named(wrong):
    with pytest.raises(InputError):
        Race(objective("fixed"), **wrong)
    with pytest.raises(InputError, match="error"):
        BehindLeader(1.0)


# ---------------------------------------------------------------- options


def races(options):
    m_step = algorithm(resolve_options(*options), lambda p, y: p == y).m_step
    return isinstance(m_step.hidden_objective, Race), isinstance(m_step.output_objective, Race)


def test_racing_is_on_by_default_off_in_the_paper_and_never_under_a_penalty():
    assert races(("default",)) == (True, True)
    assert races(("paper",)) == (False, False)
    assert races(("default", {"inference": {"race": False}})) == (False, False)
    assert races(("default", {"inference": {"exploration": 0.5}})) == (False, True)
    assert races(("default", {"inference": {"trust_factor": 1.0}})) == (True, False)


def test_a_fitted_output_layer_is_raced_on_two_examples_per_label_at_least():
    net = network(2, 0)
    for layer, fewest in (("fitted", 4), ("fixed", 4)):
        options = resolve_options("default", {"inference": {"output_layer": layer}})
        assert algorithm(options, lambda p, y: p == y, network=net).m_step.output_objective.fewest == fewest
    many = Sequential(ChoiceLayer(net.layers[0].lm, "classify", "p", tuple("abcdefg")))
    chosen = algorithm(resolve_options(), lambda p, y: p == y, network=many)
    assert chosen.m_step.output_objective.fewest == 14


# ---------------------------------------------------------------- records and the report


def test_the_report_says_where_a_candidate_stopped():
    state, info = step(network(2, 7), 7, Race(objective("fixed")), Race(objective("fixed")))
    written = step_event(state, info, Y)
    read = StepDone.model_validate_json(written.model_dump_json())
    assert read == written
    (shown,) = steps([read], Limits())
    for layer, record, choice in zip(info.layers, read.layers, shown.choices, strict=True):
        assert choice.share == record.share == layer.share < 1
        for stopped, candidate in zip(layer.stopped, record.candidates, strict=True):
            assert (candidate.stopped is None) == (stopped is None)
            assert (candidate.score is None) == (stopped is not None)
            if stopped is not None:
                assert candidate.stopped.score == pytest.approx(stopped.score)
        ranked = {c.prompt.instruction: c for c in choice.candidates}
        for stopped, proposal in zip(layer.stopped, layer.proposals, strict=True):
            seen = ranked[proposal.prompt.instruction]
            assert (seen.rank is None) == (seen.stopped is not None) == (stopped is not None)


def test_who_is_left_alone_is_explained():
    candidate = CandidateRecord(prompt={}, source="incumbent", objective=-1.0, penalty=0.0, score=-1.0)
    stopped = StoppedRecord(round=1, examples=4, score=-3.0)
    other = CandidateRecord(prompt={}, source="x", objective=None, penalty=0.0, score=None, stopped=stopped)
    record = LayerRecord(layer=0, candidates=[candidate, other], winner=0, examples=9, dropped={})
    assert "clearly worse" in why_chosen(record)


class CountingNext(Counting):
    def next_token_log_probs(self, contexts, tokens=(), top=0):
        self.asked += len(contexts)
        return self.inner.next_token_log_probs(contexts, tokens, top)


def test_next_tokens_are_asked_for_once_per_context_list_of_tokens_and_top():
    inner = CountingNext(skilled(HIDDEN, 3))
    memory = Recall(inner)
    tokens = [token for token, _ in inner.inner.next_token_log_probs(["item1."], (), 2).top[0]]
    first = memory.next_token_log_probs(["item1.", "item2.", "item1."], tokens, 1)
    assert inner.asked == 2
    again = memory.next_token_log_probs(["item3.", "item2."], tokens, 1)
    assert inner.asked == 3
    assert again.log_probs[1].tobytes() == first.log_probs[1].tobytes()
    assert again.top[1] == first.top[1]
    memory.next_token_log_probs(["item1."], tokens[:1], 1)
    memory.next_token_log_probs(["item1."], tokens, 2)
    assert inner.asked == 5
    assert memory.next_token_log_probs([], tokens).log_probs.shape == (0, 2)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_memory_of_a_step_keeps_the_laws(law):
    case = LawCase(["item1.", "item2."], [" yes", " no"], [" yes", " no"])
    assert law(Recall(skilled((" yes", " no", " maybe"), 1)), case) in ("holds", "skipped")
