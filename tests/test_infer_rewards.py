"""Rewards in the place of log p(y|h): laws against exact enumeration on `TableLM`, and runs that learn by a metric."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dln
from dln.cli.main import run as main
from dln.errors import InputError
from dln.infer import vi
from dln.infer.calibrate import FixedOutput
from dln.infer.estep import Weighting
from dln.infer.hidden import LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.objective import ByLayer, DownstreamReward, ExpectedLogProb, ExpectedReward
from dln.infer.prompts import ConfusionProposal, RewriteProposal, most_confused
from dln.infer.race import Race
from dln.infer.rewards import Correctness, Outcome, Reward, reward_temperature
from dln.infer.scoring_modes import ScoringModes
from dln.lm.base import Completion
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.random import Key
from dln.train.build import algorithm as built
from dln.train.events import StepDone
from dln.train.run import of_kind, read_events
from dln.view.report import render_report
from test_data_two_steps import TURNS
from test_infer_laws import HIDDEN, LABELS, Enumerate, Instructions, X, Y, network
from test_infer_scoring_modes import Unscored

TEXTS = (" yes", " no", " yes no")


def free(depth: int, seed: int, **unscored: bool) -> Sequential:
    """A network whose output is a text."""
    lm = TableLM.random(TEXTS, seed=seed + 1)
    return Sequential(*network(depth, seed).layers[:-1], LanguageLayer(lm, "think_residual", "out"))


@dataclass(frozen=True)
class LogProb:
    """R = log p(y | h, x) of the present output layer."""

    top: LanguageLayer | ChoiceLayer

    def __call__(self, outcomes):
        items = [LayerInput(one.x, one.hidden[-1]) for one in outcomes]
        scores = self.top.score([self.top], items, [one.y for one in outcomes])
        return [Reward(float(value)) for value in scores.log_prob[0]]


@dataclass(frozen=True)
class Hashed:
    """A reward that depends on all of the outcome, without rhyme or reason."""

    seed: int = 0
    missing: float = 0.0

    def __call__(self, outcomes):
        found = []
        for one in outcomes:
            generator = Key(self.seed).child(one.x, one.y, one.answer, *one.hidden).generator()
            unknown = Key(self.seed).child("missing", one.x).generator().random() < self.missing
            found.append(Reward(math.nan if unknown else float(generator.random())))
        return found


def choices(**given_):
    return {"q_prompt": Instructions("try", "again", "more"), "num_prompts": 3, **given_}


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_log_likelihood_as_reward_gives_the_numbers_of_the_likelihood(seed, labels):
    net = network(2, seed) if labels else free(2, seed)
    proposal = MixtureProposal((PriorProposal(1.5), LabelledPriorProposal(1.0)))
    reward = LogProb(net.layers[-1])
    usual = vi.build(**choices(q_hidden=proposal))
    rewarded = vi.build(
        **choices(q_hidden=proposal), weighting=Weighting(reward=reward, reward_temp=1.0, by_reward=True)
    )
    _, a = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), usual)
    _, b = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), rewarded)
    # Σ_c p(c) R is R but for the last bits of Σ_c p(c); of a text R itself counts
    same = np.testing.assert_allclose if labels else np.testing.assert_array_equal
    for level, other in zip(a.posterior.hidden, b.posterior.hidden, strict=True):
        assert (level.tau, other.tau) == (None, 1.0)
        same(level.beta, other.beta)
        same(level.weights, other.weights)
    for layer, other in zip(a.layers, b.layers, strict=True):
        assert layer.winner == other.winner
        same(layer.scores, other.scores)
    same(a.elbo, b.elbo)


@given(st.integers(0, 10_000), st.sampled_from([None, 0.05, 1.0, 7.0]))
@settings(max_examples=20, deadline=None)
def test_posterior_weights_are_those_of_exact_enumeration(seed, tau):
    net, reward = free(2, seed), Hashed(seed)
    weighting = Weighting(reward=reward, reward_temp=tau, by_reward=True)
    made = vi.build(**choices(weighting=weighting, q_hidden=Enumerate(), include_forward=False))
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), made)
    (level,) = info.posterior.hidden
    first, last = net.layers
    rewards = []
    for x, y in zip(X, Y, strict=True):
        texts = [c.text.strip() for c in first.lm.support(first.contexts([LayerInput(x, x)])[0])]
        answers = [last.draw([LayerInput(x, h)], [0], 0.0)[0].text for h in texts]
        rewards.append([reward([Outcome(x, y, a, (h,))])[0].value for a, h in zip(answers, texts, strict=True)])
    spread = 0.1 * max(max(row) - min(row) for row in rewards)
    assert level.tau == pytest.approx(tau or spread)
    for i, (x, row) in enumerate(zip(X, rewards, strict=True)):
        support = first.lm.support(first.contexts([LayerInput(x, x)])[0])
        wanted = np.array([math.exp(sum(c.log_probs)) for c in support]) * np.exp(
            (np.array(row) - max(row)) / level.tau
        )
        assert level.weights[i] == pytest.approx(wanted / wanted.sum())


def test_the_expected_reward_of_labels_is_exact():
    net, reward = network(2, 5), Hashed(3)
    made = vi.build(**choices(output_objective=ExpectedReward(reward, FixedOutput()), reward=reward))
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(5), made)
    step = next(layer for layer in info.layers if layer.position == 1)
    for layer, objective in zip(step.layers, step.objective, strict=True):
        total = 0.0
        for i, (x, y) in enumerate(zip(X, Y, strict=True)):
            particles = info.posterior.levels[1][i]
            for h, weight in zip(particles.values, particles.weights, strict=True):
                p = np.exp(layer.label_log_probs([LayerInput(x, h.text)])[0])
                values = [reward([Outcome(x, y, name, (h.text,))])[0].value for name in LABELS]
                total += weight * float(p @ values) / len(X)
        assert objective == pytest.approx(total)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("depth", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_never_lowers_the_batch_objective(depth, labels, missing):
    reward = Hashed(1, missing)
    state = vi.init(network(depth, 7) if labels else free(depth, 7))
    made = vi.build(
        **choices(
            weighting=Weighting(reward=reward, by_reward=True),
            hidden_objective=Race(ByLayer(ExpectedLogProb("log_prob", FixedOutput()), DownstreamReward(reward))),
            output_objective=Race(ExpectedReward(reward, FixedOutput())),
            reward=reward,
        )
    )
    for step in range(3):
        state, info = vi.update(state, vi.Batch(X, Y), Key(step), made)
        for layer in info.layers:
            assert not layer.scores[layer.winner] < layer.scores[0]
            assert layer.layers[layer.winner].prompt == state.network.layers[layer.position].prompt


def test_a_deeper_reward_is_estimated_with_the_same_draws_for_all_candidates():
    """Candidates that are equal but for their number have equal scores: the draws are common random numbers."""
    net, reward = free(2, 3), Hashed(2)

    class Same(Instructions):
        def __call__(self, key, layer, feedback, num):
            prompt = layer.prompt.with_instruction("better")
            return [replace(one, prompt=prompt) for one in super().__call__(key, layer, feedback, 1)]

    made = vi.build(q_prompt=Same("a"), num_prompts=1, hidden_objective=DownstreamReward(reward, 7), reward=reward)
    scores = []
    for _ in range(2):
        _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(0), made)
        scores.append(next(layer.scores for layer in info.layers if layer.position == 0))
    np.testing.assert_array_equal(*scores)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(0.01, 3))
def test_the_temperature_follows_the_spread_of_the_rewards(rows, scale):
    rewards = np.array(rows)
    tau = reward_temperature(rewards, scale)
    spread = (rewards.max(axis=1) - rewards.min(axis=1)).max()
    assert tau == pytest.approx(scale * (spread or 1.0))
    missing = np.vstack([rewards, np.full((1, 3), np.nan)])
    assert reward_temperature(missing, scale) == tau
    if spread > 1e-6:
        assert reward_temperature(3 * rewards + 1, scale) == pytest.approx(3 * tau)


def test_right_and_wrong_answers_differ_by_ten_nats():
    assert reward_temperature(np.array([[1.0, 0.0], [1.0, 1.0]]), 0.1) == 0.1
    assert reward_temperature(np.array([[1.0, 1.0]]), 0.1) == 0.1
    assert reward_temperature(np.full((2, 2), np.nan), 0.1) == 0.1
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="reward_scale"):
            reward_temperature(np.zeros((1, 1)), value)
        with pytest.raises(InputError, match="reward_temp"):
            Weighting(reward_temp=value)


def test_in_a_mixed_network_each_layer_is_weighed_by_what_is_known_of_it():
    seed = 4
    scored = network(3, seed).layers
    hidden = LanguageLayer(Unscored(TableLM.random(HIDDEN, seed=9), labels=False), "think", "p0")
    net = Sequential(hidden, *scored[1:])
    options = dln.Options(inference={"likelihood": "reward", "race": False})
    made = built(options, str.__eq__, network=net, reward=Hashed(1))
    made = replace(made, m_step=replace(made.m_step, proposal=Instructions("try", "again"), num_prompts=2))
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), made)
    low, high = info.posterior.hidden
    assert np.isnan(low.alpha).all()
    assert np.isfinite(high.alpha).all()
    for level, prior in ((low, np.zeros(low.beta.shape)), (high, high.alpha)):
        logits = prior + level.beta
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        heavy = level.weights > 0  # light ones are pruned
        np.testing.assert_allclose(
            level.weights[heavy], (weights * heavy / (weights * heavy).sum(axis=1)[:, None])[heavy]
        )
    modes = made.scoring_modes
    assert modes.weights == "reward, and prior where texts can be scored"
    assert modes.output == "reward"
    assert modes == ScoringModes.of(net).by_reward(net)
    assert {layer.position for layer in info.layers} == {0, 1, 2}
    assert all(np.isfinite(layer.scores[layer.winner]) for layer in info.layers)


# ---------------------------------------------------------------- a metric through `fit`


WORDS = {"begin": "bad", "try": "mediocre", "again": "better"}
VALUES = {"bad": 0.1, "mediocre": 0.2, "better": 0.4, "good": 1.0}


def worded() -> dln.Sequential:
    """Answers with a word that the prompt decides."""

    def conditional(context):
        word = next((word for start, word in WORDS.items() if start in context), "bad")
        return {f" {word}": 0.9, " good": 0.1}

    return Sequential(LanguageLayer(TableLM(conditional, name="worded"), "answer", "begin"))


DATA = dln.Dataset.from_pairs([(f"input {i}", "good") for i in range(8)])


def graded(example, prediction):
    return dln.Score(VALUES[prediction.strip()], f"{prediction.strip()} is not {example.target}")


def cut(example, prediction):
    return VALUES[prediction.strip()] >= 0.5


def learnt(metric, **more):
    options = {"batch_size": 4, "val_every": 1, "shown": 0.0}
    inference = {"num_prompts": 2, "prompt_proposals": [Instructions("try", "again")]}
    return dln.fit(worded(), DATA, DATA, steps=1, metric=metric, options={**options, "inference": inference}, **more)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_graded_metric_changes_the_winner_where_a_cut_one_does_not(tmp_path):
    assert learnt(cut).network[0].prompt.instruction == "begin"
    result = learnt(graded, run_dir=tmp_path / "run")
    assert result.network[0].prompt.instruction.startswith("again")
    assert result.score == pytest.approx(0.4)
    (step,) = of_kind(read_events(tmp_path / "run" / "events.jsonl"), StepDone)
    assert step.accuracy == pytest.approx(0.1)
    assert {row.reward for row in step.examples} == {0.1}
    assert {row.feedback for row in step.examples} == {"bad is not good"}
    assert not any(row.correct for row in step.examples)
    assert step.scoring_modes.output == "reward"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_without_a_reward_are_left_out_of_a_step_and_counted(tmp_path):
    def sometimes(example, prediction):
        if example.input in ("input 1", "input 4"):
            raise OSError("no answer")
        return graded(example, prediction)

    learnt(sometimes, run_dir=tmp_path / "run", batch_size=8)
    (step,) = of_kind(read_events(tmp_path / "run" / "events.jsonl"), StepDone)
    assert (step.unrewarded, step.excluded) == (2, 2)
    assert step.layers[0].examples == 6
    page = render_report(read_events(tmp_path / "run" / "events.jsonl"), title="run")
    assert "OSError: no answer" in page


def test_labels_with_a_metric_of_the_users_are_trained_and_selected_by_it(tmp_path):
    """A metric for which one error is worse than the other moves the choice, which the likelihood does not see."""
    data = dln.Dataset.from_pairs([(x, y) for x, y in zip(X, Y, strict=True)], LABELS)

    def costly(example, prediction):
        return 1.0 if prediction == example.target else 0.8 if prediction == "no" else 0.0

    net = network(1, 3)
    options = {
        "inference": {"num_prompts": 2, "prompt_proposals": [Instructions("try", "again")], "output_layer": "fixed"}
    }
    with pytest.warns(UserWarning, match="dev inputs"):
        dln.fit(net, data, data, steps=1, metric=costly, options=options, shown=0.0, run_dir=tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")
    (step,) = of_kind(events, StepDone)
    p = np.exp(net[0].label_log_probs([LayerInput(x, x) for x in X]))
    values = np.array([[costly(dln.Example(x, y), c) for c in LABELS] for x, y in zip(X, Y, strict=True)])
    assert step.layers[0].candidates[0].objective == pytest.approx((p * values).sum(axis=1).mean())


def test_correctness_is_one_or_zero():
    assert [r.value for r in Correctness()([Outcome("x", "y", " y"), Outcome("x", "y", "z")])] == [1.0, 0.0]


# ---------------------------------------------------------------- what proposals read


class Writer(TableLM):
    """Keeps the contexts that it was asked with."""

    def __init__(self):
        super().__init__(lambda context: {" better": 1.0}, name="writer")
        self.asked = []

    def sample(self, contexts, sampling, seeds):
        self.asked.extend(contexts)
        return super().sample(contexts, sampling, seeds)


def told(targets, answers, comments=()):
    inputs = tuple(LayerInput(f"<input {i}>", f"<input {i}>") for i in range(len(targets)))
    right = tuple(y == said for y, said in zip(targets, answers, strict=True))
    return dln.Feedback(inputs, answers, targets, right, comments=comments, answers=answers, targets=targets)


@pytest.mark.parametrize("template", ["backward", "backward_student", "backward_sequence"])
def test_what_the_metric_says_stands_next_to_its_example(template):
    writer = Writer()
    feedback = told(("a", "b", "c"), ("a", "x", "c"), ("kind", "say\nplease", ""))
    RewriteProposal(template=template)(Key(0), ChoiceLayer(writer, labels=("a", "b", "c")), feedback, 3)
    for context in writer.asked:
        for example, comment in ((0, "kind"), (1, "say please")):
            own = context.split(f"<input {example}>")[1].split("<input ")[0]
            assert comment in own
        assert "kind" not in context.split("<input 2>")[1].split("<input ")[0]


def test_a_comment_is_shown_where_nothing_better_was_found():
    writer = Writer()
    feedback = replace(told(("a", "a"), ("a", "a"), ("", "too long")), correct=(False, False))
    RewriteProposal()(Key(0), ChoiceLayer(writer, labels=("a", "b")), feedback, 1)
    assert "<input 1>" in writer.asked[0]
    assert "<input 0>" not in writer.asked[0]


def test_the_labels_that_are_confused_most_often_are_told_apart():
    writer = Writer()
    layer = ChoiceLayer(writer, labels=("a", "b", "c"))
    feedback = told(("a", "b", "a", "c", "a", "c", "b"), ("b", "a", "a", "a", "b", "c", "b"))
    proposals = ConfusionProposal()(Key(0), layer, feedback, 2)
    assert {(p.source, p.detail, p.prompt.instruction) for p in proposals} == {("confusion", "a / b", "better")}
    for context in writer.asked:
        assert set(re.findall(r"<input (\d)>", context)) == {"0", "1", "2", "4", "6"}
        assert 'The outputs "a" and "b" are confused most often.' in context
    assert ConfusionProposal()(Key(0), layer, told(("a", "b"), ("a", "b")), 2) == []
    assert ConfusionProposal()(Key(0), layer, told(("a", "b"), ("x", "y")), 2) == []  # no label for another


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), max_size=12))
@settings(deadline=None)
def test_no_two_labels_are_confused_more_often(pairs):
    targets, answers = [y for y, _ in pairs], [said for _, said in pairs]
    found = most_confused(targets, answers)

    def errors(one, other):
        return sum({y, said} == {one, other} for y, said in pairs)

    known = sorted(set(targets))
    counts = [errors(one, other) for i, one in enumerate(known) for other in known[i + 1 :]]
    assert (found is None) == (max(counts, default=0) == 0)
    if found is not None:
        assert errors(*found) == max(counts)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_feedback_of_the_metric_reaches_the_writer_in_a_run():
    writer = Writer()
    options = {"batch_size": 4, "shown": 0.0, "inference": {"num_prompts": 2, "prompt_proposals": ["rewrite"]}}
    dln.fit(worded(), DATA, DATA, steps=1, metric=graded, options=options, prompt_lm=writer)
    assert all("bad is not good" in context for context in writer.asked)
    writer.asked.clear()
    net, data = network(1, 3), dln.Dataset.from_pairs(list(zip(X, Y, strict=True)), LABELS)
    labels = {"shown": 0.0, "inference": {"num_prompts": 2, "prompt_proposals": ["confusion"], "output_layer": "fixed"}}
    dln.fit(net, data, data, steps=1, options=labels, prompt_lm=writer)
    assert all('The outputs "no" and "yes" are confused most often' in context for context in writer.asked)
    assert writer.asked


# ---------------------------------------------------------------- a hosted chat model without log-probabilities


class Hosted:
    """A chat model that draws texts and tells no probability.

    As a first layer it writes down the first request of a text unless its instruction asks for the last one, as a
    second it names the kind of one request, and as a writer of prompts it has ideas, good and bad.
    """

    def __init__(self, task: dln.Task) -> None:
        self.kinds = {REQUEST.split(e.input)[-1]: e.target for part in (task.train, task.dev, task.test) for e in part}
        self.name = "hosted"

    @property
    def capabilities(self):
        can = dln.Capabilities(False, False, token_ids=False, chat=True, context_length=None)
        return replace(can, label_scoring="accuracy", text_scoring="accuracy")

    def fingerprint(self):
        return "hosted"

    def count_tokens(self, text):
        return len(text.split())

    def sample(self, contexts, sampling, seeds):
        pairs = zip(contexts, seeds, strict=True)
        return [Completion(self.answer(c, s if sampling.temperature else 0), model="hosted") for c, s in pairs]

    def answer(self, context, seed):
        if "Better instruction" in context:
            first = "Write down" in context.split("Present instruction: ")[1]
            ideas = ["Write down a request.", "Write down the last request.", "Write down all that is said."]
            return ideas[seed % 3] if first else "Name the kind of the request."
        if "Question:" in context:
            said = context.rsplit("Question: ", 1)[1].removesuffix("Answer:").strip()
            return self.kinds.get(said, "none of them")
        requests = REQUEST.split(context.rsplit("Input: ", 1)[1].removesuffix("Thoughts:").strip())
        # who is told the answer looks for the request that has it, and does not always find it
        told = re.findall(r"answer is:\n(\w+)", context)
        if told and seed % 2:
            return next((text for text in requests if self.kinds.get(text) == told[0]), requests[0])
        return requests[-1 if "last" in context else 0]

    def log_prob(self, contexts, targets):
        raise InputError("this model cannot score given texts")

    def choice_log_probs(self, contexts, labels):
        raise InputError("this model cannot score labels")


REQUEST = re.compile("|".join(f" {re.escape(turn)} " for turn in TURNS))


def test_two_layers_learn_by_rewards_where_no_probability_is_told(tmp_path, capsys):
    """The fault lies in the first layer, and only the answer of the second is seen."""
    task = dln.load_task("corrected")
    part = {name: dln.Dataset(getattr(task, name).examples[:60], name=name) for name in ("train", "dev", "test")}
    lm = Hosted(task)
    first = LanguageLayer(lm, "think", "Write down a request.")
    net = Sequential(first, LanguageLayer(lm, "answer", "Name the kind of the request."))

    def kind(example, prediction):
        return dln.Score(float(prediction == example.target), f"it is a {example.target}")

    before = dln.evaluate(net, part["test"], metric=kind).accuracy.mean
    inference = {"prompt_proposals": ["rewrite"], "num_prompts": 4, "num_hidden": 4}
    options = {"batch_size": 20, "val_every": 1, "inference": inference}
    result = dln.fit(net, part["train"], part["dev"], steps=2, metric=kind, options=options, run_dir=tmp_path / "run")
    after = dln.evaluate(result.network, part["test"], metric=kind).accuracy.mean
    assert before < 0.3
    assert after == 1.0
    assert "last" in result.network[0].prompt.instruction
    events = read_events(tmp_path / "run" / "events.jsonl")
    steps = of_kind(events, StepDone)
    assert {step.scoring_modes.weights for step in steps} == {"reward"}
    assert {row.tau for row in steps[0].hidden} == {0.1}
    taught = [row for row in steps[0].hidden if max(row.beta) > min(row.beta)]
    assert taught
    for row in taught:  # the texts that lead to the right answer have nearly all of the weight
        assert sum(w for w, b in zip(row.weights, row.beta, strict=True) if b == max(row.beta)) > 0.99
    page = render_report(events, title="run")
    assert "hidden texts: reward" in page
    assert "weighed by the metric of the answer that they lead to, exp(R/τ)" in html.unescape(page)
    assert main(["show", str(tmp_path / "run")]) == 0
    assert "hidden texts were weighed by: reward R/τ, τ = 0.1 in the last step" in capsys.readouterr().err
