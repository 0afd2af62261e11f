"""Proposals for hidden texts, and the E-step that weighs them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import InputError
from dln.infer import vi
from dln.infer.estep import EStep, Likelihood, MinusProposal, Prior, Weighting
from dln.infer.hidden import (
    EditProposal,
    HiddenDraw,
    HiddenRequest,
    LabelledPriorProposal,
    MixtureProposal,
    PriorProposal,
    draw_together,
)
from dln.lm.base import Completion, Sampling, Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, LayerInput, Prompt, Sequential
from dln.random import Key

HIDDEN = (" a", " b", " a b", " c d")
LABELS = ("yes", "no")
X = ("one", "two", "three", "four")
Y = ("yes", "no", "yes", "yes")


class Recording(Wrapper):
    """Remembers the contexts that draws were asked for."""

    def __init__(self, inner, *, anonymous=False):
        super().__init__(inner)
        self.contexts = []
        self.anonymous = anonymous

    def sample(self, contexts, sampling, seeds):
        self.contexts.extend(contexts)
        draws = self.inner.sample(contexts, sampling, seeds)
        return [replace(d, sampling_log_probs=None) for d in draws] if self.anonymous else draws

    def log_prob(self, contexts, targets):
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        return self.inner.choice_log_probs(contexts, labels)


class Fixed:
    """A proposal of given texts; remembers what it was told."""

    def __init__(self, source="fixed", texts=("a",)):
        self.source, self.texts, self.requests = source, texts, []

    def __call__(self, key, request, num):
        self.requests.append(request)
        return [
            [HiddenDraw(Completion(self.texts[k % len(self.texts)]), self.source, 0.0) for k in range(num)]
            for _ in request.inputs
        ]


def network(depth=2, seed=0, lm=None):
    hidden = lm or TableLM.random(HIDDEN, seed=seed)
    layers = [LanguageLayer(hidden, "think" if i == 0 else "think_residual", f"p{i}") for i in range(depth - 1)]
    return Sequential(
        *layers, ChoiceLayer(TableLM.random([" yes", " no"], seed=seed + 1), "classify_residual", "out", LABELS)
    )


def request_of(net, x=X, y=Y):
    trace = net.sample(Key(0), x)
    return HiddenRequest(net.layers[0], net.layers[1], tuple(trace.inputs(0)), trace.outputs(0), y, y)


PROPOSALS = {
    "prior": PriorProposal(1.3),
    "labelled prior": LabelledPriorProposal(1.3),
    "edit": EditProposal(),
}


# ---------------------------------------------------------------- proposals


@given(st.sampled_from(sorted(PROPOSALS)), st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_every_proposal_gives_k_named_draws_per_example_with_their_density(name, num, size, seed):
    request = request_of(network(seed=seed), X[:size], Y[:size])
    rows = draw_together(PROPOSALS[name](Key(seed), request, num))
    assert [len(row) for row in rows] == [num] * size
    for draw in (draw for row in rows for draw in row):
        assert draw.source == name
        assert draw.log_q == pytest.approx(sum(draw.completion.sampling_log_probs))
        assert draw.completion.text in {h.strip() for h in HIDDEN}
    assert draw_together(PROPOSALS[name](Key(seed), request, num)) == rows


def test_the_density_of_a_draw_is_that_of_its_temperature():
    net = network(seed=4)
    request = request_of(net, X[:1], Y[:1])
    draws = draw_together(PriorProposal(1.0)(Key(0), request, 50))[0]
    exact = {
        c.text.strip(): sum(c.log_probs) for c in net.layers[0].lm.support(net.layers[0].contexts(request.inputs)[0])
    }
    for draw in draws:
        assert draw.log_q == pytest.approx(exact[draw.completion.text])


def test_a_density_that_is_not_known_is_not_taken_for_certainty():
    """A model that does not say how probable its draws were must not enter importance weights."""
    net = network(lm=Recording(TableLM.random(HIDDEN, seed=0), anonymous=True))
    request = request_of(net)
    rows = draw_together(PriorProposal()(Key(0), request, 2))
    assert np.isnan([[draw.log_q for draw in row] for row in rows]).all()
    trace = net.sample(Key(0), X)
    step = EStep(PriorProposal(), Weighting((Likelihood(),)), 3, "log_prob")
    assert step(Key(0), net, trace, Y).scored.all()
    with pytest.raises(InputError, match="how probable its own draws were"):
        replace(step, weighting=Weighting((Likelihood(), MinusProposal())))(Key(0), net, trace, Y)


def test_the_labelled_prior_is_told_the_label_and_keeps_the_instruction():
    lm = Recording(TableLM.random(HIDDEN, seed=0))
    net = network(lm=lm)
    request = request_of(net)
    lm.contexts.clear()
    draw_together(LabelledPriorProposal()(Key(0), request, 2))
    assert len(lm.contexts) == 8
    for i, context in enumerate(lm.contexts):
        assert f"Given that the answer is:\n{Y[i // 2]}\n" in context
        assert "p0" in context
        assert f"Input: {X[i // 2]}\n" in context


def test_the_labelled_prior_keeps_the_worked_examples():
    lm = Recording(TableLM.random(HIDDEN, seed=0))
    net = network(lm=lm)
    shown = net.layers[0].with_prompt(Prompt("p0", (Demonstration("seen", "seen", "a"),)))
    request = replace(request_of(net), layer=shown)
    lm.contexts.clear()
    draw_together(LabelledPriorProposal()(Key(0), request, 1))
    assert all("seen" in context and "Given that the answer is" in context for context in lm.contexts)


def test_the_edit_sees_draft_target_and_both_instructions_and_another_hint_each_time():
    lm = Recording(TableLM.random(HIDDEN, seed=0))
    request = request_of(network())
    wanted = tuple(f"wanted {i}" for i in range(4))
    draw_together(EditProposal(lm)(Key(0), replace(request, wanted=wanted), 3))
    assert len(lm.contexts) == 12
    for i, context in enumerate(lm.contexts):
        for part in (X[i // 3], request.outputs[i // 3].text, wanted[i // 3], "p0", "out"):
            assert part in context
    assert len(set(lm.contexts[:3])) == 3


@pytest.mark.parametrize(("own", "edited"), [(64, 128), (128, 128), (256, 256), (512, 512)])
def test_an_edited_text_may_be_as_long_as_one_that_the_layer_writes(own, edited):
    request = request_of(network())
    longer = replace(request, layer=replace(request.layer, sampling=Sampling(max_tokens=own)))
    for row in EditProposal()(Key(0), longer, 2):
        assert [ask.writer.sampling.max_tokens for ask in row] == [edited, edited]


def test_the_edit_sees_input_and_the_text_below_where_they_differ():
    lm = Recording(TableLM.random(HIDDEN, seed=0))
    request = request_of(network())
    for below in ("the text below", None):
        lm.contexts.clear()
        inputs = tuple(LayerInput(x, below or x) for x in X)
        draw_together(EditProposal(lm)(Key(0), replace(request, inputs=inputs), 1))
        for x, context in zip(X, lm.contexts, strict=True):
            assert f"Input: {x}\n" in context
            assert ("the text below" in context) == (below is not None)


def test_texts_edited_by_another_model_can_be_weighed():
    """Their ids are not this layer's: they are scored as plain texts, with the template's separator."""
    net = network()
    editor = TableLM.random(HIDDEN[:2], seed=77, name="editor")
    posterior = EStep(EditProposal(editor), Weighting(), 4, "log_prob", include_forward=False)(
        Key(0), net, net.sample(Key(0), X), Y
    )
    assert posterior.scored.all()
    assert np.isfinite(posterior.hidden[0].alpha).all()


def test_a_mixture_draws_in_proportion():
    left, right = Fixed("left"), Fixed("right")
    request = request_of(network())
    mixture = MixtureProposal((left, right), (3.0, 1.0))
    sources = [d.source for i in range(50) for row in mixture(Key(i), request, 10) for d in row]
    assert sources.count("left") / len(sources) == pytest.approx(0.75, abs=0.04)
    equal = MixtureProposal((left, right))
    sources = [d.source for i in range(50) for row in equal(Key(i), request, 10) for d in row]
    assert sources.count("left") / len(sources) == pytest.approx(0.5, abs=0.05)


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_a_mixture_gives_every_example_its_own_draws(seed, num):
    """Draws that see the label must see that of their own example."""

    class Echo(Fixed):
        def __call__(self, key, request, num):
            return [
                [HiddenDraw(Completion(f"{item.x}/{y}"), self.source, 0.0)] * num
                for item, y in zip(request.inputs, request.y, strict=True)
            ]

    rows = MixtureProposal((Echo("l"), Echo("r"), Echo("m")))(Key(seed), request_of(network()), num)
    for x, y, row in zip(X, Y, rows, strict=True):
        assert [d.completion.text for d in row] == [f"{x}/{y}"] * num


def test_a_mixture_asks_the_model_once_and_draws_what_its_parts_would_alone():
    calls = []

    class Counting(Recording):
        def sample(self, contexts, sampling, seeds):
            calls.append(len(contexts))
            return super().sample(contexts, sampling, seeds)

    request = request_of(network(lm=Counting(TableLM.random(HIDDEN, seed=0))))
    parts = (PriorProposal(), LabelledPriorProposal(), EditProposal())
    rows = MixtureProposal(parts)(Key(1), request, 6)
    calls.clear()
    drawn = draw_together(rows)
    assert len(calls) == 2  # the layer under one temperature, and the editor with its own options
    assert sum(calls) == 24
    alone = [[draw_together([[ask]])[0][0] for ask in row] for row in rows]
    assert drawn == alone


def test_texts_that_are_known_are_not_drawn():
    known = HiddenDraw(Completion("known"), "fixed", 0.0)
    (ask,) = PriorProposal()(Key(0), request_of(network()).subset([0]), 1)[0]
    ((first, second, third),) = draw_together([[known, ask, known]])
    assert first is third is known
    assert second.source == "prior"
    assert draw_together([[], [known]]) == [[], [known]]


@pytest.mark.parametrize(
    ("proposals", "weights"),
    [((), None), ((Fixed(),), (1.0, 2.0)), ((Fixed(), Fixed()), (0.0, 0.0)), ((Fixed(), Fixed()), (2.0, -1.0))],
)
def test_a_mixture_of_nothing_is_refused(proposals, weights):
    with pytest.raises(InputError, match="mixture"):
        MixtureProposal(proposals, weights)


def test_only_a_language_layer_is_one():
    request = request_of(network())
    with pytest.raises(InputError, match="LanguageLayer"):
        _ = replace(request, layer=request.above).language_layer


# ---------------------------------------------------------------- E-step


def estep(**choices):
    return EStep(
        **(
            {"proposal": PriorProposal(1.0), "weighting": Weighting(), "num_hidden": 3, "convention": "log_prob"}
            | choices
        )
    )


@given(st.integers(0, 300))
@settings(max_examples=20, deadline=None)
def test_alpha_and_beta_are_the_exact_log_probs_of_the_layers(seed):
    net = network(seed=seed)
    trace = net.sample(Key(0), X)
    level = estep()(Key(seed), net, trace, Y).hidden[0]
    lower, top = net.layers
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        prior = {c.text.strip(): sum(c.log_probs) for c in lower.lm.support(lower.contexts([LayerInput(x, x)])[0])}
        for k, h in enumerate(level.proposals[i]):
            assert level.alpha[i, k] == pytest.approx(prior[h.text])
            assert level.beta[i, k] == pytest.approx(top.log_prob([LayerInput(x, h.text)], [y])[0].log_prob)
        assert level.sources[i] == ("forward", "prior", "prior", "prior")
    logits = level.alpha + level.beta
    assert level.weights == pytest.approx(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


def test_ends_of_the_posterior_are_what_was_observed():
    net = network(3)
    posterior = estep()(Key(0), net, net.sample(Key(0), X), Y)
    assert posterior.mode(0) == list(X)
    assert posterior.mode(3) == list(Y)
    assert len(posterior.levels) == 4
    assert len(posterior.hidden) == 2
    assert 1 <= posterior.ess(1) <= 4


def test_with_one_layer_nothing_is_hidden():
    net = Sequential(network().layers[1])
    posterior = estep(proposal=Fixed())(Key(0), net, net.sample(Key(0), X), Y)
    assert posterior.hidden == ()
    assert posterior.entropy() == 0
    assert posterior.scored.all()


def test_at_three_layers_the_lower_level_is_told_what_the_upper_one_inferred():
    net = network(3, 6)
    fixed = Fixed(texts=("a", "b"))
    posterior = estep(proposal=fixed, num_hidden=2)(Key(0), net, net.sample(Key(0), X), Y)
    upper, lower = fixed.requests
    assert upper.wanted == Y
    assert upper.layer is net.layers[1]
    assert lower.layer is net.layers[0]
    assert lower.above is net.layers[1]
    assert list(lower.wanted) == posterior.mode(2)
    assert lower.y == Y
    # and β of the lower level is log p(h*_2 | h_1)
    level = posterior.hidden[0]
    for i, x in enumerate(X):
        for k, h in enumerate(level.proposals[i]):
            score = net.layers[1].log_prob([LayerInput(x, h.text)], [posterior.mode(2)[i]])[0]
            assert level.beta[i, k] == pytest.approx(score.log_prob)


def test_right_examples_keep_their_text_where_only_wrong_ones_are_rewritten():
    net = network(3, 6)
    trace = net.sample(Key(0), X)
    right = [False, True, False, True]
    posterior = estep()(Key(0), net, trace, Y, [not r for r in right])
    for position in range(2):
        for i, keep in enumerate(right):
            sources = set(posterior.hidden[position].sources[i])
            if keep:
                assert sources == {"forward"}
                assert posterior.levels[position + 1][i].values == (trace.hidden[position][i],)
                assert posterior.levels[position + 1][i].entropy == 0
            else:
                assert "prior" in sources


def test_rewriting_only_the_wrong_in_a_whole_step():
    net = network(2, 3)
    trace = net.sample(Key(0).child("forward"), X, temperature=0.0)
    y = (trace.predictions[0], *["no" if p == "yes" else "yes" for p in trace.predictions[1:]])
    algorithm = vi.build(rewrite_only_wrong=True, num_prompts=1)
    _, info = vi.update(vi.init(net), vi.Batch(X, y), Key(0), algorithm)
    assert info.correct == (True, False, False, False)
    assert info.posterior.mode(1)[0] == info.trace.hidden[0][0]
    assert len(info.posterior.levels[1][0]) == 1


def test_equal_draws_are_one_particle_with_their_weights_added():
    net = network()
    posterior = estep(
        proposal=PriorProposal(1.0), num_hidden=40, include_forward=False, weighting=Weighting((Prior(),))
    )(Key(0), net, net.sample(Key(0), X), Y)
    for i, particles in enumerate(posterior.levels[1]):
        texts = [h.text for h in particles.values]
        assert len(set(texts)) == len(texts) <= len(HIDDEN)
        level = posterior.hidden[0]
        for text, weight in zip(texts, particles.weights, strict=True):
            whole = sum(w for h, w in zip(level.proposals[i], level.weights[i], strict=True) if h.text == text)
            assert weight == pytest.approx(whole)
