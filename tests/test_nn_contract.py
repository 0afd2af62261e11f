"""Laws of layers, which every kind keeps, and training of networks with layers of all kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

import dln
from dln.errors import InputError
from dln.infer import vi
from dln.infer.hidden import HiddenDraw
from dln.infer.prompts import Proposal
from dln.lm.base import Completion, Sampling, text_of
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Layer, LayerInput, Parallel, Prompt, Sequential, function_layer
from dln.nn.context import SEPARATOR, join, parts_of
from dln.nn.layers import score_pairs
from dln.nn.saving import layer_from_json, network_from_json, network_to_json
from dln.numerics import logsumexp
from dln.random import Key

LM = TableLM.random([" yes", " no", " a b", " c"], seed=3)
INPUTS = [LayerInput("one", "one"), LayerInput("two", "a b"), LayerInput("one", "c")]


@function_layer
def shout(x: str, h: str) -> str:
    """A function as a layer."""
    return f"{h.upper()} of {x}"


@dataclass(frozen=True)
class Suffix(Layer):
    """A layer of a user: deterministic, with one parameter, saved by its qualified name."""

    suffix: str = "!"
    deterministic = True

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        return [Completion(item.h + self.suffix) for item in inputs]


@dataclass(frozen=True)
class Coin(Layer):
    """A layer of a user that draws at random and cannot score."""

    sides: tuple[str, ...] = ("heads", "tails")

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        greedy = temperature == 0
        return [Completion(self.sides[0 if greedy else seed % len(self.sides)]) for seed in seeds]


def writer(prompt: str = "p", template: str = "think") -> LanguageLayer:
    return LanguageLayer(LM, template, prompt, Sampling(max_tokens=2))


def chooser(template: str = "classify_several") -> ChoiceLayer:
    return ChoiceLayer(LM, template, "decide", ["yes", "no"])


LAYERS: dict[str, Layer] = {
    "language": writer(),
    "choice": chooser(),
    "parallel": Parallel(writer("p"), writer("q", "analyse")),
    "function": shout,
    "own": Suffix("?"),
    "beside a function": Parallel(shout, writer()),
    "coin": Coin(),
}
SCORED = [name for name in LAYERS if name != "coin"]


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request):
    return request.param


def test_a_draw_depends_on_its_input_and_seed_alone(layer):
    seeds = [3, 4, 5]
    together = [h.text for h in layer.draw(INPUTS, seeds, 1.0)]
    alone = [layer.draw([item], [seed], 1.0)[0].text for item, seed in zip(INPUTS, seeds, strict=True)]
    assert together == alone
    assert [h.text for h in layer.draw(INPUTS, [0, 1, 2], 0.0)] == [h.text for h in layer.draw(INPUTS, seeds, 0.0)]


@pytest.mark.parametrize("name", SCORED)
def test_the_score_of_a_draw_is_the_log_probability_it_was_drawn_with(name):
    layer = LAYERS[name]
    draws = layer.draw(INPUTS, [1, 2, 3], 1.0)
    scores = [score.log_prob for score in layer.log_prob(INPUTS, draws)]
    assert all(value <= 0 for value in scores)
    known = [0.0 if layer.deterministic else sum(draw.log_probs) for draw in draws]
    assert scores == pytest.approx(known, abs=1e-9)
    pairs = score_pairs([layer, layer], INPUTS, draws)
    np.testing.assert_allclose(pairs.log_prob, [scores, scores], atol=1e-9)


def test_a_deterministic_layer_gives_every_other_text_no_probability():
    assert shout.log_prob(INPUTS[:1], ["another"])[0].log_prob == -np.inf
    assert shout("x", "h") == "H of x"


def test_a_layer_that_cannot_score_says_so():
    assert Coin().scoring_mode == "accuracy"
    with pytest.raises(InputError, match="cannot score"):
        Coin().log_prob(INPUTS, ["heads"] * 3)


def test_the_way_through_json_and_state_keeps_a_layer(layer):
    data = json.loads(json.dumps(layer.to_json()))
    again = layer_from_json(data, lambda _: LM, "test")
    assert again.to_json() == layer.to_json()
    assert again.with_state(layer.state(), "test").to_json() == layer.to_json()
    assert again.draw(INPUTS, [1, 2, 3], 1.0) == layer.draw(INPUTS, [1, 2, 3], 1.0)


def test_prompts_are_exchanged_one_by_one(layer):
    fresh = [f"new {i}" for i in range(len(layer.prompts))]
    changed = layer.with_prompts(fresh)
    assert [p.instruction for p in changed.prompts] == fresh
    assert changed.with_prompts(layer.prompts).to_json() == layer.to_json()


def test_a_file_can_name_functions_and_layers_only():
    for kind in ({"kind": "function", "function": "os:system"}, {"kind": "os:system"}, {"kind": "builtins:dict"}):
        with pytest.raises(InputError, match="layer"):
            layer_from_json(kind, lambda _: LM, "test")
    with pytest.raises(InputError, match="cannot be saved"):
        function_layer(lambda x, h: h).to_json()


def test_the_parts_of_a_joint_text_come_back():
    parts = [Completion("a"), Completion(""), Completion("b \x1e c")]
    assert parts_of(join(parts), 3) == tuple(parts)
    assert [text_of(p) for p in parts_of(join(parts).text, 3)] == ["a", "", "b   c"]
    with pytest.raises(InputError, match="number of parts"):
        parts_of("a" + SEPARATOR + "b", 3)


def test_a_template_lists_the_texts_of_parallel_layers():
    (context,) = chooser().contexts([LayerInput("x", join([Completion("a"), Completion("b")]).text)])
    assert "Thought 1: a\nThought 2: b\n" in context


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Parallel(writer(), writer())], "cannot be the last layer"),
        ([writer(), Parallel(shout, writer()), chooser()], "only stand in the first layer"),
        ([chooser(), writer()], "only be the last layer"),
    ],
)
def test_an_order_that_cannot_be_trained_is_refused(layers, message):
    with pytest.raises(InputError, match=message):
        Sequential(layers)


def test_parallel_layers_write_text():
    for layers in ([writer()], [writer(), chooser()]):
        with pytest.raises(InputError, match="two or more layers that write text"):
            Parallel(layers)


# ---------------------------------------------------------------- inference


class Product:
    """All tuples of texts of two branches, each once: with prior × likelihood weights the exact posterior."""

    def __call__(self, key, request, num):
        layer, size = request.language_layer, len(LM.support("x"))
        rows = [layer.lm.support(context) for context in layer.contexts(request.inputs)]
        first = layer.prompt.instruction == "p"
        orders = [[row[i // size if first else i % size] for i in range(size * size)] for row in rows]
        return [[HiddenDraw(c.with_text(c.text.strip()), "all", 0.0) for c in row] for row in orders]


class Fixed:
    """Candidates without asking a model."""

    def __call__(self, key, layer, feedback, num):
        return [Proposal(Prompt(f"{layer.prompt.instruction} {i}"), "fixed") for i in range(num)]


X, Y = ("one", "two", "three"), ("yes", "no", "yes")


def wide() -> Sequential:
    return Sequential(Parallel(writer("p"), writer("q", "analyse")), chooser())


def exact(net: Sequential, x: str, y: str) -> float:
    """log Σ_{h, g} p(h|x) p(g|x) p(y|h, g) by enumeration."""
    (first, second), last = net[0].branches, net[1].classifier
    item, terms = LayerInput(x, x), []
    for h in LM.support(first.contexts([item])[0]):
        for g in LM.support(second.contexts([item])[0]):
            joint = join([h.with_text(h.text.strip()), g.with_text(g.text.strip())])
            above = last.label_log_probs([LayerInput(x, joint.text)])[0][last.index(y)]
            terms.append(sum(h.log_probs) + sum(g.log_probs) + above)
    return float(logsumexp(terms))


def step(net: Sequential, seed: int = 0, **choices):
    algorithm = vi.build(q_prompt=Fixed(), num_prompts=3, **choices)
    return vi.update(vi.init(net), vi.Batch(X, Y), Key(seed), algorithm)


def test_the_exact_posterior_over_tuples_makes_the_elbo_the_log_likelihood():
    net = wide()
    _, info = step(net, q_hidden=Product(), include_forward=False)
    wanted = np.mean([exact(net, x, y) for x, y in zip(X, Y, strict=True)])
    assert info.elbo == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_the_elbo_of_drawn_tuples_is_a_bound(seed):
    net = wide()
    _, info = step(net, seed, num_hidden=3)
    assert info.elbo <= np.mean([exact(net, x, y) for x, y in zip(X, Y, strict=True)]) + 1e-9


def test_every_branch_is_improved_by_its_own_objective():
    state, info = step(wide(), num_hidden=3)
    assert [(i.position, i.branch, i.row) for i in info.layers] == [(0, 0, 0), (0, 1, 1), (1, 0, 2)]
    for i in info.layers:
        assert i.scores[i.winner] >= i.scores[0]
    winners = [i.proposals[i.winner].prompt for i in info.layers]
    assert list(state.network.parameters()) == winners


def test_a_branch_is_scored_by_the_marginal_of_its_texts():
    net = wide()
    _, info = step(net, q_hidden=Product(), include_forward=False)
    branch = net[0].branches[1].prompted
    total = []
    for i, x in enumerate(X):
        particles = info.posterior.levels[1][i]
        parts = [parts_of(value, 2)[1] for value in particles.values]
        scores = score_pairs([branch], [LayerInput(x, x)] * len(parts), parts).log_prob[0]
        total.append(float(particles.weights @ scores))
    assert info.layers[1].objective[0] == pytest.approx(np.mean(total), abs=1e-9)


def test_a_function_between_layers_leaves_bound_and_posterior_exact():
    net = Sequential(writer("p"), shout, chooser("classify_residual"))
    last = net[2].classifier

    def likelihood(x: str, y: str) -> float:
        terms = []
        for h in LM.support(net[0].prompted.contexts([LayerInput(x, x)])[0]):
            read = LayerInput(x, shout(x, h.text.strip()))
            terms.append(sum(h.log_probs) + last.label_log_probs([read])[0][last.index(y)])
        return float(logsumexp(terms))

    class All:
        def __call__(self, key, request, num):
            rows = [LM.support(context) for context in request.language_layer.contexts(request.inputs)]
            return [[HiddenDraw(c.with_text(c.text.strip()), "all", 0.0) for c in row] for row in rows]

    _, info = step(net, q_hidden=All(), include_forward=False)
    assert info.elbo == pytest.approx(np.mean([likelihood(x, y) for x, y in zip(X, Y, strict=True)]), abs=1e-9)


NETWORKS = {
    "parallel": [LAYERS["parallel"], chooser()],
    "function": [shout, chooser("classify")],
    "own": [writer(), Suffix(), chooser("classify_residual")],
    "function beside a layer": [LAYERS["beside a function"], chooser()],
    "coin": [writer(), Coin(), chooser("classify_residual")],
    "parallel above": [writer(), Parallel(writer("p", "think_residual"), writer("q")), chooser()],
}


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(layers, id=name, marks=() if name in {"function", "own"} else pytest.mark.slow)
        for name, layers in NETWORKS.items()
    ],
)
def test_training_saves_and_resumes_every_kind_of_network(layers, tmp_path):
    net = Sequential(layers)
    pairs = [(f"item {i}", "yes" if i % 3 else "no") for i in range(24)]
    train, dev = dln.Dataset.from_pairs(pairs[:14]), dln.Dataset.from_pairs(pairs[14:])
    readout = "words" if layers is NETWORKS["function"] else "fitted"
    choices = {"batch_size": 5, "inference": {"num_hidden": 2, "num_prompts": 3, "output_layer": readout}}

    class Killed(Exception):
        pass

    def kill(event):
        if event.kind == "step" and event.step == 2:
            raise Killed

    whole = dln.fit(net, train, dev, steps=2, run_dir=tmp_path / "a", options=choices)
    with pytest.raises(Killed):
        dln.fit(net, train, dev, steps=2, run_dir=tmp_path / "b", options=choices, callbacks=[kill])
    again = dln.fit(net, train, dev, steps=2, run_dir=tmp_path / "b", options=choices, resume=True)
    assert again.network.state_dict() == whole.network.state_dict()
    loaded = dln.load_network(tmp_path / "a", LM)
    assert network_to_json(loaded) == network_to_json(whole.network)
    assert loaded.predict(["item 1", "item 2"]) == whole.network.predict(["item 1", "item 2"])
    assert network_from_json(network_to_json(loaded), LM).labels == ("yes", "no")


def test_a_network_is_a_sequence_of_its_layers():
    net = wide()
    assert len(net) == 2
    assert list(net) == [net[0], net[1]]
    assert net[-1] is net.layers[1]
    assert "Parallel" in net._repr_html_()
