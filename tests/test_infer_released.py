"""Choices of the released code that are options here: each does what it says, and off it changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.data import Dataset
from dln.errors import InputError
from dln.infer import vi
from dln.infer.estep import EStep, Likelihood, MinusProposal, MutualInformation, Prior, Weighting
from dln.infer.hidden import LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.memory import Feedback, Snapshot
from dln.infer.mstep import Exploration
from dln.infer.objective import ExpectedLogProb, NoiseContrastive
from dln.infer.prompts import RewriteProposal, SequenceProposal
from dln.infer.rewards import Correctness
from dln.lm.base import TokenLogProbs, Wrapper
from dln.lm.meter import Meter, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, Ensemble, LanguageLayer, LayerInput, Prompt, Sequential, load_network
from dln.nn.context import without_options
from dln.nn.layers import score_pairs
from dln.nn.template import load_template
from dln.random import Key
from dln.train import evaluate, fit
from dln.train.build import algorithm
from dln.train.estimate import LayerSize, estimate
from dln.train.events import StepDone
from dln.train.options import resolve_options
from dln.train.run import of_kind, read_events

LABELS = ("yes", "no")
X = ("one", "two", "three", "four")
Y = ("yes", "no", "yes", "yes")
BATCH = vi.Batch(X, Y)
LONG = tuple(" " + " ".join(f"{first}{i}" for i in range(40)) for first in "abc")


class Recording(Wrapper):
    """Remembers the contexts that draws were asked for."""

    def __init__(self, inner):
        super().__init__(inner)
        self.contexts = []

    def sample(self, contexts, sampling, seeds):
        self.contexts.extend(contexts)
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        return self.inner.choice_log_probs(contexts, labels)


def network(hidden, output=None):
    return Sequential(
        LanguageLayer(hidden, "think", "p0"),
        ChoiceLayer(output or TableLM.random([" yes", " no"], seed=1), "classify_residual", "p1", LABELS),
    )


def correct(prediction, target):
    return prediction == target


def built(preset="default", *, hidden_lm=None, **inference):
    return algorithm(resolve_options(preset, {"inference": inference}), correct, hidden_lm=hidden_lm)


# ---------------------------------------------------------------- burn-in


@given(
    st.lists(st.floats(-30, 0), min_size=1, max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 2),
)
def test_the_mean_behind_the_burn_in_is_that_of_the_remaining_tokens(values, burn_in, terminators):
    scores = TokenLogProbs(np.array([*values, *[-1.0] * terminators]), len(values))
    kept = values[int(burn_in * len(values)) :]
    assert scores.mean_after(burn_in) == pytest.approx(np.mean(kept))
    assert scores.mean_after(0.0) == scores.mean_token_log_prob
    assert scores.log_prob == pytest.approx(sum(values) - terminators)


def test_a_burn_in_leaves_the_first_tokens_out_of_every_mean_of_a_hidden_text():
    lm = TableLM.random([f"{a}{b}" for a in LONG for b in LONG], seed=0)
    net = network(lm)
    trace = net.sample(Key(0), X)
    e_step = EStep(PriorProposal(1.0), Weighting(burn_in=0.05), 3, "mean_token_log_prob")
    posterior = e_step(Key(1), net, trace, Y)
    level, layer = posterior.hidden[0], net.layers[0]
    for i, x in enumerate(X):
        for k, h in enumerate(level.proposals[i]):
            values = layer.log_prob([LayerInput(x, x)], [h])[0].values[: h.text_tokens]
            assert len(values) == 80
            assert level.alpha[i, k] == pytest.approx(values[4:].mean())
            assert level.alpha[i, k] != pytest.approx(values.mean())
    # sums stay likelihoods
    inputs, outputs = trace.inputs(0), trace.outputs(0)
    whole, cut = score_pairs([layer], inputs, outputs), score_pairs([layer], inputs, outputs, 0.05)
    assert (whole.log_prob == cut.log_prob).all()
    assert not np.allclose(whole.mean_token_log_prob, cut.mean_token_log_prob)


def test_the_burn_in_reaches_every_part_of_a_step_that_scores_hidden_texts():
    found = built("paper", burn_in=0.25, exploration=1.0, posterior_terms=["likelihood", "mutual_information"])
    weighting = found.e_step.weighting
    assert weighting.reward == Correctness(correct)
    assert weighting == Weighting((Likelihood(), MutualInformation(1.0)), burn_in=0.25, reward=Correctness(correct))
    assert isinstance(found.m_step.hidden_objective, ExpectedLogProb)
    assert found.m_step.hidden_objective.burn_in == 0.25
    (penalty,) = found.m_step.penalties
    assert isinstance(penalty, Exploration)
    assert penalty.burn_in == 0.25
    contrastive = built("paper", burn_in=0.25, hidden_objective="nce").m_step.hidden_objective
    assert isinstance(contrastive, NoiseContrastive)
    assert contrastive.burn_in == 0.25
    lm = TableLM.random(LONG, seed=0)
    _, with_burn_in = vi.update(vi.init(network(lm)), BATCH, Key(0), found)
    _, without = vi.update(vi.init(network(lm)), BATCH, Key(0), built("paper", burn_in=0.0, exploration=1.0))
    assert with_burn_in.layers[0].objective[0] != pytest.approx(without.layers[0].objective[0])


def test_a_burn_in_needs_the_mean():
    with pytest.raises(InputError, match="burn_in leaves tokens out of a mean"):
        resolve_options("default", {"inference": {"burn_in": 0.05}})
    with pytest.raises(InputError, match="inference: burn_in"):
        resolve_options("paper", {"inference": {"burn_in": 1.0}})
    with pytest.raises(InputError, match="burn_in must lie"):
        Weighting(burn_in=-0.1)
    assert resolve_options("paper").inference.burn_in == 0.05
    assert resolve_options("default").inference.burn_in == 0


# ---------------------------------------------------------------- hidden texts drawn by another model


HIDDEN = (" a", " b", " c d", " e")  # none begins another: what a text alone scores is the probability of that text


def test_hidden_lm_draws_all_proposals_where_it_is_said_and_none_where_not():
    own, other = Recording(TableLM.random(HIDDEN, seed=0)), Recording(TableLM.random(HIDDEN, seed=5))
    for writer in ("layer", "hidden_lm"):
        own.contexts.clear()
        other.contexts.clear()
        chosen = built(hidden_lm=other, hidden_writer=writer, num_hidden=3, prompt_proposals={"demonstrations": 1})
        vi.update(vi.init(network(own)), BATCH, Key(0), chosen)
        drawn = 3 * len(X)
        greedy = len(set(own.contexts[: len(X)]))
        assert greedy == len(X)
        assert len(other.contexts) == (drawn if writer == "hidden_lm" else 0)
        assert len(own.contexts) == len(X) + (0 if writer == "hidden_lm" else drawn)
    assert resolve_options("paper").inference.hidden_writer == "hidden_lm"
    chosen = built("paper", hidden_lm=None, num_hidden=3)
    assert chosen.e_step.proposal == MixtureProposal((PriorProposal(0.7), LabelledPriorProposal(0.7)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [200, pytest.param(6000, marks=pytest.mark.slow)])
def test_log_q_is_of_the_model_that_drew_and_alpha_of_the_layers(seed, count):
    """Importance weights are p(h, y) / q(h), so they converge to the exact posterior of the layer, whoever drew."""
    own, other = TableLM.random(HIDDEN, seed=seed), TableLM.random(HIDDEN, seed=seed + 50)
    net = network(own, TableLM.random([" yes", " no"], seed=seed + 1))
    step = EStep(
        PriorProposal(1.0, other),
        Weighting((Likelihood(), Prior(), MinusProposal())),
        count,
        "log_prob",
        include_forward=False,
    )
    posterior = step(Key(seed), net, net.sample(Key(0), X[:1]), Y[:1])
    level = posterior.hidden[0]
    first, last = net.layers
    (context,) = first.contexts([LayerInput(X[0], X[0])])
    joint = {
        h: own.probability(context, h) * np.exp(last.log_prob([LayerInput(X[0], h.strip())], [Y[0]])[0].log_prob)
        for h in HIDDEN
    }
    drawn = [f" {text.text}" for text in level.proposals[0]]
    assert len(drawn) == count
    ratios = np.array([joint[h] / other.probability(context, h) for h in drawn])
    assert level.weights[0] == pytest.approx(ratios / ratios.sum())
    assert level.alpha[0] == pytest.approx([np.log(own.probability(context, h)) for h in drawn])
    assert {text.model for text in level.proposals[0]} == {other.fingerprint()}
    if count == 6000:
        posterior = {h: joint[h] / sum(joint.values()) for h in HIDDEN}
        weights = {h: level.weights[0, [k for k, text in enumerate(drawn) if text == h]].sum() for h in HIDDEN}
        assert weights == pytest.approx(posterior, abs=0.05)


# ---------------------------------------------------------------- rewrites that start from memory


class Writer(Wrapper):
    """Writes the number of the request; remembers what it read."""

    def __init__(self):
        super().__init__(TableLM.random(HIDDEN, seed=0))
        self.contexts = []

    def sample(self, contexts, sampling, seeds):
        self.contexts.extend(contexts)
        draws = self.inner.sample(contexts, sampling, seeds)
        return [d.with_text(f"written {i}") for i, d in enumerate(draws)]


OLD = (
    Prompt("the first remembered instruction", (Demonstration("x", "x", "yes"),)),
    Prompt("the second remembered instruction"),
)


def feedback(memory=OLD):
    inputs = tuple(LayerInput(x, x) for x in X)
    return Feedback(inputs, Y, Y, (True,) * len(X), memory=memory)


@pytest.mark.parametrize("kind", [RewriteProposal, SequenceProposal])
def test_a_rewrite_may_start_from_a_prompt_in_memory(kind):
    layer = LanguageLayer(TableLM.random(HIDDEN, seed=0), "think", "the present instruction")
    bases = (layer.prompt, *OLD)
    writer = Writer()
    choices = {"count": 1} if kind is SequenceProposal else {}
    proposals = kind(writer, from_memory=True, **choices)(Key(0), layer, feedback(), 12)
    for context, proposal in zip(writer.contexts, proposals, strict=True):
        (base,) = [base for base in bases if base.instruction in context]
        assert proposal.prompt.demonstrations == base.demonstrations
        assert ("from memory" in proposal.detail) == (base is not layer.prompt)
    starts = [next(b.instruction for b in bases if b.instruction in context) for context in writer.contexts]
    assert {start: starts.count(start) for start in starts} == dict.fromkeys((b.instruction for b in bases), 4)
    # not asked for, or with nothing in memory, the present prompt is all there is
    for from_memory, memory in ((False, OLD), (True, ())):
        writer = Writer()
        kind(writer, from_memory=from_memory, **choices)(Key(0), layer, feedback(memory), 4)
        assert all("the present instruction" in context for context in writer.contexts)


def test_a_training_step_gives_its_memory_to_the_rewrites():
    net = network(TableLM.random(HIDDEN, seed=0))
    other = net.with_prompts([Prompt("remembered below"), Prompt("remembered above")])
    state = replace(vi.init(net), memory=(Snapshot(other, 0.5, 0),))
    seen = {}
    for on in (False, True):
        writer = Writer()
        options = resolve_options(
            "paper", {"inference": {"rewrite_memory": on, "num_prompts": 4, "score": "log_prob", "burn_in": 0}}
        )
        vi.update(state, BATCH, Key(0), algorithm(options, correct, prompt_lm=writer))
        seen[on] = [sum(text in c for c in writer.contexts) for text in ("remembered below", "remembered above")]
    assert seen == {False: [0, 0], True: [2, 2]}
    assert resolve_options("paper").inference.rewrite_memory
    assert not resolve_options("default").inference.rewrite_memory


@pytest.mark.parametrize("num_memory", [0, 1, 2, 3])
def test_every_base_meets_every_meta_instruction(num_memory):
    messages = load_template("backward").messages
    layer = LanguageLayer(TableLM.random(HIDDEN, seed=0), "think", "base 0")
    memory = tuple(Prompt(f"base {i}") for i in range(1, num_memory + 1))
    num = len(messages) * (num_memory + 1)
    proposals = RewriteProposal(Writer(), from_memory=True)(Key(0), layer, feedback(memory), num)
    assert len({(proposal.prompt.wording, proposal.detail) for proposal in proposals}) == len(messages) * min(
        2, num_memory + 1
    )
    writer = Writer()
    RewriteProposal(writer, from_memory=True)(Key(0), layer, feedback(memory), num)
    pairs = {
        (base, message)
        for context in writer.contexts
        for base in range(num_memory + 1)
        for message in messages
        if f"base {base}" in context and message in context
    }
    assert len(pairs) == num


# ---------------------------------------------------------------- batches without an error


def certain():
    """A model that always says yes."""
    return TableLM.from_table({}, {" yes": 1.0})


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_batch_without_an_error_changes_nothing_and_costs_a_forward_pass(depth):
    meter = Meter()
    hidden = Metered(TableLM.random(HIDDEN, seed=0), meter=meter)
    output = Metered(certain(), meter=meter)
    below = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    net = Sequential(*below, ChoiceLayer(output, "classify_residual" if below else "classify", "out", LABELS))
    batch = vi.Batch(X, ("yes",) * len(X), (("else", "yes"),))
    state, info = vi.update(vi.init(net), batch, Key(0), built(skip_correct=True))
    used = meter.snapshot().calls
    assert used == depth * len(X)
    assert state.network.state_dict() == net.state_dict()
    assert (state.step, info.layers, info.accuracy) == (1, (), 1.0)
    assert np.isnan(info.elbo)
    # with one error the step is the usual one, and so it is where nothing is skipped
    wrong = replace(batch, y=("no", *batch.y[1:]))
    for changed, skip in ((wrong, True), (batch, False)):
        _, info = vi.update(vi.init(net), changed, Key(0), built(skip_correct=skip))
        assert len(info.layers) == depth


def test_a_run_of_skipped_steps_is_recorded_and_can_be_resumed(tmp_path):
    data = Dataset.from_pairs([(f"toy {i}", "yes") for i in range(12)] + [("other", "no")], labels=LABELS)
    train = data.select([i for i, y in enumerate(data.targets) if y == "yes"])
    options = {"batch_size": 4, "balanced": False, "inference": {"skip_correct": True}}
    net = network(TableLM.random(HIDDEN, seed=0), certain())
    fit(net, train, data, steps=3, options=options, run_dir=tmp_path / "whole")

    def stop(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, train, data, steps=3, options=options, run_dir=tmp_path / "cut", callbacks=[stop])
    fit(net, train, data, steps=3, options=options, run_dir=tmp_path / "cut", resume=True)
    runs = [of_kind(read_events(tmp_path / name / "events.jsonl"), StepDone) for name in ("whole", "cut")]
    for steps in runs:
        assert [event.layers for event in steps[:3]] == [[], [], []]
        assert all(event.elbo is None and not event.hidden for event in steps)
    assert runs[0][-1].parameters == runs[1][-1].parameters


# ---------------------------------------------------------------- the forward pass's temperature


def test_a_warm_forward_pass_draws_by_its_address():
    net = network(TableLM.random(HIDDEN, seed=3))
    batch = vi.Batch(tuple(f"input {i}" for i in range(30)), ("yes",) * 30)
    greedy = net.sample(Key(9), batch.x, temperature=0.0)
    infos = [
        vi.update(vi.init(net), batch, key, built(forward_temperature=t, num_hidden=1))[1]
        for key, t in ((Key(1), 0.0), (Key(1), 1.0), (Key(1), 1.0), (Key(2), 1.0))
    ]
    cold, warm, again, other = [[h.text for h in info.trace.hidden[0]] for info in infos]
    assert cold == [h.text for h in greedy.hidden[0]]
    assert warm != cold
    assert warm == again
    assert warm != other
    assert infos[1].trace.predictions != infos[0].trace.predictions
    # as a particle it carries the density that it was drawn with
    drawn = infos[1].trace.hidden[0][0]
    assert drawn.sampling_log_probs is not None
    assert sum(drawn.sampling_log_probs) == pytest.approx(sum(drawn.log_probs))
    assert infos[1].posterior.hidden[0].proposals[0][0].text == drawn.text
    with pytest.raises(InputError, match="inference: forward_temperature"):
        resolve_options("default", {"inference": {"forward_temperature": -0.1}})


# ---------------------------------------------------------------- exploration without annealing


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 50), st.floats(0.01, 5))
def test_an_exploration_reward_that_is_not_annealed_has_its_strength_at_every_step(step, total, weight):
    constant = Exploration(weight, total, "log_prob", annealed=False)
    falling = Exploration(weight, total, "log_prob")
    assert constant.at(step) == weight
    assert falling.at(step) == pytest.approx(weight * max(0.0, 1 - step / total))


def test_the_reward_at_the_last_step_depends_on_the_option():
    net = network(TableLM.random(HIDDEN, seed=0))
    late = replace(vi.init(net), step=20)
    batch = replace(BATCH, y=tuple("no" if p == "yes" else "yes" for p in net.sample(Key(0), X).predictions))
    for annealed in (True, False):
        chosen = built(exploration=1.0, exploration_annealed=annealed, num_hidden=2)
        _, info = vi.update(late, batch, Key(0), chosen)
        assert (info.layers[0].penalties != 0).any() != annealed


# ---------------------------------------------------------------- questions without their options


ASKED = tuple(f"What is {x}?\nOptions:\n(A) yes\n(B) no" for x in X)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_text_without_options_has_none_and_one_that_had_none_is_unchanged(question, rest):
    text = f"{question}\nOptions:{rest}"
    cut = without_options(text)
    assert cut == without_options(cut)
    if question.strip():
        assert text.startswith(cut) or text.strip().startswith(cut)
        assert not any(line.lstrip(" \t").startswith("Options:") for line in cut.split("\n")) or cut == text
    for untouched in ("a plain text", "These are our options: none", "Options:\n- yes"):
        assert without_options(untouched) == untouched


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hidden_layers_read_no_options_and_the_last_layer_reads_them(depth, tmp_path):
    """In training, in every proposal and in prediction, and so it is saved and resumed."""
    hidden, output = Recording(TableLM.random(HIDDEN, seed=0)), Recording(TableLM.random([" yes", " no"], seed=1))
    seen = {"output": []}

    class Reading(Recording):
        def choice_log_probs(self, contexts, labels):
            seen["output"].extend(contexts)
            return self.inner.choice_log_probs(contexts, labels)

    top = "classify_residual" if depth > 1 else "classify"
    net = Sequential(
        *(LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)),
        ChoiceLayer(Reading(output), top, "out", LABELS),
    )
    shown = "Shown before?\nOptions:\n- yes"
    if depth > 1:
        first = net.layers[0].with_prompt(Prompt("p0", (Demonstration(shown, shown, "a"),)))
        net = net.with_layer(0, first)
    data = Dataset.from_pairs([(f"{x} Number {i}", Y[i % 4]) for i, x in enumerate(ASKED * 3)], labels=LABELS)
    data = Dataset.from_pairs([(f"Number {i}. {e.input}", e.target) for i, e in enumerate(data)], labels=LABELS)
    options = {
        "batch_size": 4,
        "strip_options_for_hidden": True,
        "inference": {
            "hidden_proposals": ["prior", "labelled_prior", "edit"],
            "num_hidden": 6,
            "num_prompts": 4,
            "demonstrations": [2],
        },
    }
    result = fit(net, data, data, steps=2, options=options, run_dir=tmp_path / "run")
    again = load_network(tmp_path / "run" / "network.json", lambda name: hidden if name == hidden.name else output)
    assert [layer.strip_options for layer in again.layers[:-1]] == [True] * (depth - 1)
    result.network.predict("Is it so?\nOptions:\n- yes")
    below = [c for c in hidden.contexts if "Number" in c or "Is it so" in c]
    assert len(below) > 0 or depth == 1
    assert not any("Options:" in context for context in hidden.contexts)
    assert seen["output"]
    assert all("Options:" in context for context in seen["output"])
    # not asked for, the hidden layers read everything
    if depth > 1:
        hidden.contexts.clear()
        fit(net, data, data, steps=1, options={**options, "strip_options_for_hidden": False})
        assert all("Options:" in context for context in hidden.contexts if "Number" in context)


@pytest.mark.slow
def test_a_run_with_stripped_options_and_free_answers_resumes_to_the_same_end(tmp_path):
    lm = TableLM.random([" yes", " no", " maybe so"], seed=2)
    net = Sequential(LanguageLayer(lm, "think", "p0"), ChoiceLayer(lm, "classify_residual", "p1", LABELS))
    data = Dataset.from_pairs([(f"{i}. {ASKED[i % 4]}", Y[i % 4]) for i in range(16)], labels=LABELS)
    options = {
        "batch_size": 4,
        "strip_options_for_hidden": True,
        "answers": "free",
        "inference": {"num_hidden": 2, "num_prompts": 3, "forward_temperature": 0.5, "skip_correct": True},
    }
    whole = fit(net, data, data, steps=4, options=options, run_dir=tmp_path / "whole")

    def stop(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net, data, data, steps=4, options=options, run_dir=tmp_path / "cut", callbacks=[stop])
    resumed = fit(net, data, data, steps=4, options=options, run_dir=tmp_path / "cut", resume=True)
    assert resumed.network.state_dict() == whole.network.state_dict()
    assert resumed.score == whole.score
    assert resumed.network.layers[-1].answers == "free"
    with pytest.raises(InputError):
        fit(net, data, data, steps=4, options={**options, "answers": "scored"}, run_dir=tmp_path / "cut", resume=True)


# ---------------------------------------------------------------- free answers


def test_a_free_answer_is_the_label_that_the_greedy_text_begins_with():
    says = {"one": " Yes, it is", "two": " no", "three": " who knows", "four": " Option (no)"}
    rows = {f"{x}": {text: 0.6, " no": 0.4} if text != " no" else {text: 1.0} for x, text in says.items()}

    def answer(context):
        return next(row for x, row in rows.items() if x in context)

    layer = ChoiceLayer(TableLM(answer, name="says"), "classify", "p", ["yes|Sure", "no"])
    net = Sequential(layer)
    free = net.with_answers("free")
    predictions = free.predict_many(list(X))
    assert [p.label for p in predictions] == ["yes", "no", "who knows", "no"]
    assert predictions[2].probabilities == {"yes": 0.0, "no": 0.0, "who knows": 1.0}
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in predictions)
    # scored, the same model has no mass on "yes" where it writes "Yes"
    assert [p.label for p in net.predict_many(list(X))] == ["no"] * 4
    assert list(free.sample(Key(0), X).predictions) == [p.label for p in predictions]
    data = Dataset.from_pairs(list(zip(X, ("yes", "no", "yes", "no"), strict=True)), labels=LABELS)
    assert evaluate(free, data).accuracy.mean == 0.75
    assert evaluate(net, data).accuracy.mean == 0.5
    # what is no label is counted as such, in one place
    assert evaluate(free, data).confusion == {"yes": {"yes": 1, "": 1}, "no": {"no": 2}}
    assert free.with_answers("scored").predict_many(list(X)) == net.predict_many(list(X))


def test_free_answers_are_what_training_judges_validates_and_keeps():
    says = TableLM(lambda context: {" Yes indeed": 0.6, " no": 0.4}, name="says")
    net = Sequential(ChoiceLayer(says, "classify", "p", LABELS))
    data = Dataset.from_pairs([(f"toy {i}", LABELS[i % 2]) for i in range(12)], labels=LABELS)
    seen = []
    for answers in ("scored", "free"):
        options = {"answers": answers, "batch_size": 4, "select_by": "accuracy", "inference": {"num_prompts": 2}}
        events = []
        result = fit(net, data, data, steps=1, options=options, callbacks=[events.append])
        (step,) = of_kind(events, StepDone)
        seen.append({example.prediction for example in step.examples})
        assert result.network.layers[-1].answers == answers
    assert seen == [{"no"}, {"yes"}]


def test_free_answers_vote_over_hidden_draws_and_in_ensembles():
    hidden = TableLM.random(HIDDEN, seed=0)
    output = TableLM.random([" yes", " no", " never mind"], seed=1)
    net = network(hidden, output).with_answers("free")
    (one,) = net.predict_many(["one"], samples=20)
    answers = [
        net.layers[-1].write(net.layers[-1].contexts([LayerInput("one", c[0])]), [0])[0].text for c in one.hidden
    ]
    assert one.draws == 20
    assert one.probabilities == dict.fromkeys(LABELS, 0.0) | {a: answers.count(a) / 20 for a in answers}
    assert answers.count(one.label) == max(map(answers.count, answers))
    other = network(hidden, TableLM.random([" yes", " no"], seed=7))
    together = Ensemble([net.with_answers("scored"), other]).with_answers("free")
    (voted,) = together.predict_many(["one"])
    assert {vote.label for vote in voted.members} >= {voted.label}
    assert set(voted.probabilities.values()) <= {0.0, 0.5, 1.0}


def test_free_answers_need_labels_and_a_known_name():
    writes = Sequential(LanguageLayer(TableLM.random(HIDDEN, seed=0), "think", "p"))
    with pytest.raises(InputError, match="only an output layer over labels"):
        writes.with_answers("free")
    with pytest.raises(InputError, match="one of 'scored', 'free'"):
        network(TableLM.random(HIDDEN, seed=0)).with_answers("greedy")
    with pytest.raises(InputError, match="answers"):
        resolve_options("default", {"answers": "greedy"})


def test_free_answers_are_part_of_the_estimate():
    layers = [
        LayerSize(context=50, demonstration=20, written=30),
        LayerSize(context=60, demonstration=20, written=1, labels=4),
    ]
    costs = {}
    for answers in ("scored", "free"):
        options = resolve_options("default", {"answers": answers, "steps": 4})
        costs[answers] = estimate(layers, options, train_size=40, dev_size=10, test_size=10).phases
    examples = 4 * 20  # in each step the half of the train set that is not shown
    assert costs["free"]["forward"].completion_tokens == costs["scored"]["forward"].completion_tokens + 20 * examples
    # a word readout reads one position, whatever the labels
    assert costs["free"]["forward"].prompt_tokens == costs["scored"]["forward"].prompt_tokens - examples
    assert costs["free"]["forward"].calls == costs["scored"]["forward"].calls
    # a validation scores the labels and draws the answer
    assert costs["free"]["validation"].prompt_tokens > costs["scored"]["validation"].prompt_tokens
