"""Models that cannot score: training goes on in weaker scoring modes, and says so."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dln
from dln.data import Dataset, Example
from dln.errors import InputError
from dln.infer.estep import EStep, Weighting
from dln.infer.hidden import LabelledPriorProposal, PriorProposal
from dln.infer.memory import Reservoir, layer_feedback
from dln.infer.mstep import TrustRegion
from dln.infer.objective import Candidates, DownstreamLogProb, DownstreamReward, ExpectedLogProb, ExpectedReward
from dln.infer.prompts import RewriteProposal
from dln.infer.race import Race
from dln.infer.rewards import Correctness
from dln.infer.scoring_modes import ScoringModes
from dln.lm.base import Sampling, Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.numerics import logsumexp
from dln.random import Key
from dln.train import resolve_options
from dln.train.build import algorithm
from dln.train.events import LayerRecord, StepDone, Validated
from dln.train.run import read_events
from dln.view.report import render_report, write_report

LABELS = ("yes", "no")
SIZE = 12


class Unscored(Wrapper):
    """A model behind an API that draws texts, may score labels, and cannot score a given text."""

    def __init__(self, inner, *, labels=True, mode="top-k"):
        super().__init__(inner)
        self.can_score_labels, self.mode = labels, mode

    @property
    def capabilities(self):
        return replace(
            self.inner.capabilities,
            scores_targets=False,
            scores_labels=self.can_score_labels,
            label_scoring=self.mode if self.can_score_labels else "accuracy",
            text_scoring="accuracy",
            next_tokens="none",
        )

    def sample(self, contexts, sampling, seeds):
        draws = self.inner.sample(contexts, sampling, seeds)
        return [replace(d, token_ids=None, log_probs=None, sampling_log_probs=None) for d in draws]

    def log_prob(self, contexts, targets):
        raise InputError("this model cannot score given texts", got=len(targets))

    def choice_log_probs(self, contexts, labels):
        if not self.can_score_labels:
            raise InputError("this model cannot score labels")
        return self.inner.choice_log_probs(contexts, labels)


def teachable(texts, name):
    """A toy world: item n belongs to text n mod C, a prompt has a skill, and the text below may hold a hint.

    Who is told the answer writes the hint that belongs to it.
    """

    def conditional(context):
        skill = [int(s) for s in re.findall(r"skill (\d)", context)]
        hints = [int(h) for h in re.findall(r"hint(\d)", context)]
        items = [int(i) for i in re.findall(r"item(\d+)", context)]
        told = re.findall(r"answer is:\n(\w+)", context)
        logits = np.zeros(len(texts))
        logits[-1] = 0.5  # without skill it is rather the last one
        if told:
            logits[LABELS.index(told[0])] += 4.0
        if skill and items:
            logits[items[-1] % len(texts)] += 1.0 * skill[0]
        if skill and hints:
            logits[hints[-1] % len(texts)] += 1.5 * skill[0]
        p = np.exp(logits - logits.max())
        return dict(zip(texts, (p / p.sum()).tolist(), strict=True))

    return TableLM(conditional, name=name)


def dataset(name):
    return Dataset(tuple(Example(f"item{i}", LABELS[i % 2]) for i in range(SIZE)), LABELS, name=name)


def network(depth, *, labels=True, mode="top-k", hidden_scores=False):
    writer = teachable((" hint0", " hint1"), f"writer-{depth}")
    below = writer if hidden_scores else Unscored(writer, labels=labels)
    top_lm = Unscored(teachable((" yes", " no"), f"top-{depth}"), labels=labels, mode=mode)
    layers = [LanguageLayer(below, "think" if i == 0 else "think_residual", "skill 0") for i in range(depth - 1)]
    template = "classify_residual" if depth > 1 else "classify"
    top = ChoiceLayer(top_lm, template, "skill 0", LABELS) if labels else LanguageLayer(top_lm, template, "skill 0")
    return Sequential(*layers, top)


class Teacher(Wrapper):
    """Writes prompts of as much skill as the backward prompt that it reads allows.

    Of an example that went wrong it must see the item, the wanted text, and that this is another text than the
    one that was written. Without such an example it knows of no better instruction than those without skill.
    """

    def __init__(self):
        super().__init__(TableLM(self.instructions, name="teacher"))

    @staticmethod
    def lessons(context):
        """(item, what was written, what was wanted) of each example under "wrong", in either template."""
        inline = re.findall(r"- Input: (.*) => Output: (.*) \(should be: (.*)\)", context)
        wrong = context.partition("got wrong")[2]
        blocks = re.findall(r"## Input\n> ((?:.|\n)*?)\n## Student's output\n> (.*)\n## Right output\n> (.*)", wrong)
        return [
            (int(item.group(1)), written.strip(), wanted.strip())
            for shown, written, wanted in (*inline, *blocks)
            if (item := re.search(r"item(\d+)", shown))
        ]

    @classmethod
    def instructions(cls, context):
        names = {0: ("hint0", "yes"), 1: ("hint1", "no")}
        told = [wanted in names[item % 2] for item, written, wanted in cls.lessons(context) if wanted != written]
        able = bool(told) and sum(told) > len(told) / 2
        return {f"skill {s}": 1 / 3 for s in (1, 2, 4)} if able else {"skill 0": 1.0}

    def sample(self, contexts, sampling, seeds):
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        raise InputError("not asked")

    def choice_log_probs(self, contexts, labels):
        raise InputError("not asked")


def fit(net, tmp_path=None, **changes):
    inference = {
        "prompt_proposals": {"rewrite": 1.0},
        "num_prompts": 4,
        "num_hidden": 3,
    } | changes
    return dln.fit(
        net,
        dataset("train"),
        dataset("dev"),
        preset=inference.pop("preset", "default"),
        steps=4,
        seed=3,
        options={"batch_size": 8, "val_every": 1, "inference": inference},
        prompt_lm=Teacher(),
        run_dir=tmp_path,
    )


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("preset", ["default", pytest.param("paper", marks=pytest.mark.slow)])
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("depth", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_networks_that_cannot_score_texts_train_to_the_end_and_get_better(tmp_path, depth, labels, preset):
    net = network(depth, labels=labels)
    before = dln.evaluate(net, dataset("test")).accuracy.mean
    result = fit(net, tmp_path / "run", preset=preset)
    assert (result.steps, result.reason) == (4, "steps") or result.reason == "nothing to gain"
    after = dln.evaluate(result.network, dataset("test")).accuracy.mean
    # four steps are few for three layers that each begin without any skill
    assert after > before if depth < 3 else after >= before
    events = read_events(tmp_path / "run" / "events.jsonl")
    steps = [event for event in events if isinstance(event, StepDone)]
    lost = " ".join(steps[0].scoring_modes.lost)
    assert len(steps) == result.steps
    if depth > 1:
        made = "answer likelihood" if labels else "reward"
        assert all(step.scoring_modes.weights == made and step.elbo is None for step in steps)
        assert "hidden texts are weighed by" in lost
        for step in steps:
            for row in step.hidden:
                assert set(row.alpha) == {None}
                assert None not in row.beta
                order = np.argsort(row.beta, kind="stable")
                assert (np.diff(np.array(row.weights)[order]) >= 0).all()
    assert ("accuracy" in lost) == (not labels)
    assert steps[0].scoring_modes.output == ("top-k" if labels else "accuracy")
    names = {event.select_by for event in events if isinstance(event, Validated)}
    assert names == {"log_likelihood" if labels and preset == "default" else "accuracy"}
    meta = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert meta["scoring_modes"]["lost"] == steps[0].scoring_modes.lost
    page = render_report(events, title="run")
    for sentence in steps[0].scoring_modes.lost:
        assert sentence in html.unescape(page)


def test_a_run_in_a_weaker_scoring_mode_can_be_repeated(tmp_path):
    whole = fit(network(2), tmp_path / "whole")
    again = fit(network(2), tmp_path / "again")
    assert again.network.state_dict() == whole.network.state_dict()


def test_a_fully_scoring_network_loses_nothing():
    net = Sequential(
        LanguageLayer(TableLM.random((" a", " b"), 0)),
        ChoiceLayer(TableLM.random((" yes", " no"), 1), "classify_residual", "p", LABELS),
    )
    assert ScoringModes.of(net) == ScoringModes()
    assert ScoringModes.of(Sequential(net.layers[1])) == ScoringModes(None, None, "target scoring")


# ---------------------------------------------------------------- which mode


@pytest.mark.parametrize(
    ("net", "weights", "hidden", "output"),
    [
        (network(2), "answer likelihood", "Monte-Carlo", "top-k"),
        (network(2, labels=False), "reward", "accuracy", "accuracy"),
        (network(2, hidden_scores=True), "target scoring", "target scoring", "top-k"),
        (network(2, hidden_scores=True, labels=False), "prior and reward", "accuracy", "accuracy"),
        (network(1, mode="Monte-Carlo"), None, None, "Monte-Carlo"),
        (network(1, labels=False), None, None, "accuracy"),
        (network(3, mode="forced decoding"), "answer likelihood", "Monte-Carlo", "forced decoding"),
    ],
)
def test_scoring_modes_follow_the_capabilities(net, weights, hidden, output):
    modes = ScoringModes.of(net)
    assert (modes.weights, modes.hidden, modes.output) == (weights, hidden, output)
    chosen = algorithm(resolve_options("default", {"inference": {"race": False}}), lambda p, y: p == y, network=net)
    assert chosen.scoring_modes == modes
    judge = {"target scoring": ExpectedLogProb, "Monte-Carlo": DownstreamLogProb, "accuracy": DownstreamReward}
    if hidden:
        assert isinstance(chosen.m_step.hidden_objective, judge[hidden])
    assert isinstance(chosen.m_step.output_objective, ExpectedReward if output == "accuracy" else ExpectedLogProb)


def test_an_exploration_reward_that_cannot_be_had_is_named():
    net = network(2)
    chosen = algorithm(resolve_options("paper"), lambda p, y: p == y, network=net)
    assert chosen.m_step.penalties == ()
    assert any("exploration" in sentence for sentence in chosen.scoring_modes.lost)
    whole = algorithm(resolve_options("paper"), lambda p, y: p == y, network=network(2, hidden_scores=True))
    assert len(whole.m_step.penalties) == 1


def test_the_paper_preset_has_a_trust_region_in_deep_networks_only_and_says_so():
    options = resolve_options("paper", {"inference": {"trust_factor": 5.0, "exploration": 0.0}})
    for depth, applied in ((1, False), (2, True), (3, True)):
        chosen = algorithm(options, lambda p, y: p == y, network=network(depth, hidden_scores=True))
        assert chosen.m_step.penalties == (TrustRegion(5.0, min_depth=2),)
        assert any("trust region" in sentence for sentence in chosen.scoring_modes.lost) is not applied
    one = algorithm(resolve_options("default", {"inference": {"trust_factor": 5.0}}), str.__eq__, network=network(1))
    assert one.m_step.penalties == (TrustRegion(5.0, min_depth=1),)
    assert not any("trust region" in sentence for sentence in one.scoring_modes.lost)


# ---------------------------------------------------------------- weights of texts that cannot be scored


def inferred(net, proposal=None, seed=0, size=40, **choices):
    x = tuple(f"item{i}" for i in range(size))
    y = tuple(LABELS[i % 2] for i in range(size))
    trace = net.sample(Key(seed), x, 0.0)
    e_step = EStep(proposal or LabelledPriorProposal(1.0), Weighting(**choices), 5, "log_prob")
    return trace, y, e_step(Key(seed), net, trace, y)


def answers(net, position, x, h):
    """What the layers above `position` make of a text, greedily."""
    item = LayerInput(x, h)
    for layer in net.layers[position + 1 :]:
        (text,) = layer.sample(Key(0), [item], 0.0)
        item = LayerInput(x, text.text)
    return item.h


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_wanted_text_leads_to_the_right_answer_wherever_a_proposal_does(depth, labels):
    """Not to the text that was written: that led astray."""
    net = network(depth, labels=labels).with_prompts(["skill 0"] * (depth - 1) + ["skill 4"])
    net = net if depth == 2 else net.with_layer(1, net.layers[1].with_prompt("skill 4"))
    trace, y, posterior = inferred(net)
    helped = 0
    for position, level in enumerate(posterior.hidden):
        for i, row in enumerate(level.proposals):
            right = [answers(net, position, trace.x[i], h.text) == y[i] for h in row]
            assert level.weights[i].sum() == pytest.approx(1)
            if any(right):
                wanted = str(posterior.levels[position + 1][i].mode)
                assert answers(net, position, trace.x[i], wanted) == y[i]
                helped += not right[0]  # the forward text is the first
    assert helped > 5


def test_the_likelihood_of_the_answer_makes_the_weights_where_labels_are_scored():
    net = network(2).with_prompts(["skill 1", "skill 2"])
    trace, y, posterior = inferred(net, size=6, temperature=0.5)
    (level,) = posterior.hidden
    top = net.layers[1]
    for i, row in enumerate(level.proposals):
        beta = [top.label_log_probs([LayerInput(trace.x[i], h.text)])[0][top.index(y[i])] for h in row]
        assert level.beta[i] == pytest.approx(beta)
        assert level.weights[i] == pytest.approx(np.exp(2 * np.array(beta)) / np.exp(2 * np.array(beta)).sum())
        assert np.isnan(level.alpha[i]).all()


def test_texts_that_can_be_scored_are_weighed_by_prior_and_correctness():
    net = network(2, hidden_scores=True, labels=False).with_prompts(["skill 1", "skill 4"])
    trace, y, posterior = inferred(net, size=8)
    (level,) = posterior.hidden
    for i, row in enumerate(level.proposals):
        right = np.array([answers(net, 0, trace.x[i], h.text) == y[i] for h in row])
        assert level.beta[i] == pytest.approx(right / 0.1)
        assert np.isfinite(level.alpha[i]).all()
        logits = level.alpha[i] + level.beta[i]
        assert level.weights[i] == pytest.approx(np.exp(logits - logsumexp(logits)))


def test_a_scale_of_rewards_that_is_no_scale_is_refused():
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="reward_scale"):
            Weighting(reward_scale=value)


@pytest.mark.parametrize("labels", [True, False])
def test_a_teacher_learns_the_hidden_layers_task_from_what_is_wanted_of_it(labels):
    """From "wanted: what you wrote" it could not."""
    lm = Teacher()
    contexts = []
    lm.sample = lambda c, sampling, seeds: contexts.extend(c) or lm.inner.sample(c, sampling, seeds)
    net = network(2, labels=labels).with_prompts(["skill 0", "skill 4"])
    trace, y, posterior = inferred(net, size=12)
    correct = [p == t for p, t in zip(trace.predictions, y, strict=True)]
    assert not all(correct)
    told = layer_feedback(Key(0), 0, trace, posterior, correct, (), Reservoir())
    proposals = RewriteProposal(lm)(Key(0), net.layers[0], told, 6)
    assert {p.prompt.instruction for p in proposals} <= {"skill 1", "skill 2", "skill 4"}
    lessons = [lesson for context in contexts for lesson in Teacher.lessons(context)]
    assert lessons
    assert all(written != wanted for _, written, wanted in lessons)


# ---------------------------------------------------------------- what a hidden layer leads to


def situation(net, position, prompts, seed=0):
    x = tuple(f"item{i}" for i in range(6))
    y = tuple(LABELS[i % 2] for i in range(6))
    trace = net.sample(Key(seed), x)
    posterior = EStep(PriorProposal(1.0), Weighting(), 3, "log_prob")(Key(seed), net, trace, y)
    layer = net.layers[position]
    return Candidates(
        key=Key(seed).child("m"),
        layers=(layer, *(layer.with_prompt(p) for p in prompts)),
        position=position,
        depth=len(net),
        trace=trace,
        posterior=posterior,
        correct=np.ones(6, dtype=bool),
        counted=np.ones(6, dtype=bool),
        step=0,
        above=net.layers[position + 1 :],
    )


@pytest.mark.slow
def test_the_estimate_converges_to_the_log_likelihood():
    net = network(2)
    at = situation(net, 0, ["skill 2"])
    top = net.layers[1]
    many = DownstreamLogProb(samples=1500)(at).per_example
    for n, layer in enumerate(at.layers):
        for i, item in enumerate(at.trace.inputs(0)):
            support = layer.lm.inner.support(layer.contexts([item])[0])
            joint = [
                sum(h.log_probs)
                + top.label_log_probs([LayerInput(item.x, h.text.strip())])[0][top.index(LABELS[i % 2])]
                for h in support
            ]
            assert many[n, i] == pytest.approx(float(logsumexp(joint)), abs=0.05)


@given(st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_equal_prompts_have_equal_draws_and_the_rest_of_the_batch_does_not_matter(seed):
    net = network(3)
    at = situation(net, 0, ["skill 1", "skill 0"], seed)
    for judge in (DownstreamLogProb(4), DownstreamReward(Correctness(str.__eq__), 4)):
        terms = judge(at).per_example
        np.testing.assert_array_equal(terms[0], terms[2])
        few = replace(at, counted=np.array([True, False, True, False, False, True]))
        np.testing.assert_array_equal(judge(few).per_example[:, few.counted], terms[:, few.counted])
        assert np.isnan(judge(few).per_example[:, ~few.counted]).all()
        assert np.nanmax(terms) <= (0 if isinstance(judge, DownstreamLogProb) else 1)


def test_a_skilled_hidden_prompt_wins_and_its_race_too():
    net = network(2).with_prompts(["skill 0", "skill 4"])
    at = situation(net, 0, ["skill 4", "skill 1"])
    for judge in (DownstreamLogProb(20), DownstreamReward(Correctness(str.__eq__), 20)):
        assert int(np.nanargmax(judge(at).scores)) == 1
        assert int(np.nanargmax(Race(judge)(at).scores)) == 1


def test_a_text_after_which_nothing_can_be_scored_is_left_out():
    class Holes(Unscored):
        def choice_log_probs(self, contexts, labels):
            rows = super().choice_log_probs(contexts, labels)
            rows[["hint0" in context for context in contexts]] = math.nan
            return rows

    net = network(2)
    top = ChoiceLayer(Holes(teachable((" yes", " no"), "holes")), "classify_residual", "skill 4", LABELS)
    at = replace(situation(net, 0, ["skill 1"]), above=(top,))
    terms = DownstreamLogProb(40)(at).per_example
    alone = top.label_log_probs([LayerInput(x, "hint1") for x in at.trace.x])
    for i in range(6):
        assert terms[:, i] == pytest.approx(alone[i][i % 2])


def test_an_output_layer_leads_to_nothing():
    net = network(2)
    with pytest.raises(InputError, match="below the output layer"):
        DownstreamLogProb()(situation(net, 1, ["skill 1"]))
    with pytest.raises(InputError, match="draw"):
        DownstreamLogProb(samples=0)
    with pytest.raises(InputError, match="temperature"):
        DownstreamReward(Correctness(str.__eq__), temperature=-1.0)


# ---------------------------------------------------------------- records


def test_events_without_the_new_fields_are_still_read(tmp_path):
    fit(network(2), tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    old = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        event.pop("scoring_modes", None)
        for layer in event.get("layers", []) if event["kind"] == "step" else []:
            layer.pop("share")
            for candidate in layer["candidates"]:
                candidate.pop("stopped")
        old.append(json.dumps(event))
    log.write_text("\n".join(old) + "\n")
    events = read_events(log)
    layers = [layer for event in events if isinstance(event, StepDone) for layer in event.layers]
    assert all(isinstance(layer, LayerRecord) and layer.share == 1.0 for layer in layers)
    assert "scoring modes" not in write_report(tmp_path / "run").read_text()


def test_a_model_that_cannot_score_is_drawn_from_alone():
    """The fake is one: a guard for the tests above."""
    silent = Unscored(teachable((" yes", " no"), "guard"), labels=False)
    with pytest.raises(InputError):
        silent.log_prob(["item1"], [" yes"])
    (draw,) = silent.sample(["item1"], Sampling(), [0])
    assert draw.token_ids is None
