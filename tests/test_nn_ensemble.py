"""Networks that answer together: laws of the mixture, what is left out, and files that give it back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import CorruptDataError, InputError
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Prediction, Sequential, load_network, save_network
from dln.nn.ensemble import Ensemble, average, best_of, members_of
from dln.nn.saving import OtherModelWarning, network_from_json, network_to_json
from dln.random import Key

LABELS = ("yes", "no", "perhaps")
TEXTS = [" yes", " no", " perhaps", " a b", " c"]
X = ["one", "two", "drei ü\n", ""]
WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=4).filter(lambda w: sum(w) > 0)


class Unscoring(TableLM):
    """A table that gives no number wherever the context has a word."""

    def __init__(self, word: str, seed: int = 0) -> None:
        row = TableLM.random(TEXTS, seed)
        super().__init__(lambda context: dict(zip(TEXTS, _row(row, context), strict=True)), name=f"but-{word}-{seed}")
        self._word = word

    def choice_log_probs(self, contexts, labels):
        masses = np.array(super().choice_log_probs(contexts, labels))
        masses[[self._word in context for context in contexts]] = math.nan
        return masses


def _row(lm: TableLM, context: str) -> list[float]:
    return [lm.probability(context, text) for text in TEXTS]


def network(seed=0, *, depth=1, labels=LABELS, lm=None, prompt=None):
    lm = lm or TableLM.random(TEXTS, seed)
    name = "classify_residual" if depth > 1 else "classify"
    below = [LanguageLayer(lm, "think", f"think {seed}")] * (depth - 1)
    return Sequential(*below, ChoiceLayer(lm, name, prompt or f"prompt {seed}", labels, temperature=0.5 + seed / 3))


def writer(*answers):
    """Networks that write one fixed text each."""
    return [Sequential(LanguageLayer(TableLM.from_table({}, {a: 1.0}), "answer", "write")) for a in answers]


def said(label, **probabilities):
    return Prediction(label, probabilities)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("options", [{}, {"samples": 3, "seed": 5}], ids=["greedy", "sampled"])
def test_one_member_is_itself(depth, options):
    member = network(depth=depth)
    together = Ensemble((member,), [7.0])
    assert together.predict_many(X, **options) == member.predict_many(X, **options)
    assert together.predict(X[0], **options) == member.predict(X[0], **options)
    assert (together.labels, together.parameters(), len(together)) == (member.labels, member.parameters(), depth)


@given(WEIGHTS)
def test_equal_members_are_one_whatever_their_weights(weights):
    member = network(2)
    for ours, theirs in zip(
        Ensemble([member] * len(weights), weights).predict_many(X), member.predict_many(X), strict=True
    ):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-12)
        assert ours.label_mass == pytest.approx(theirs.label_mass)


@given(WEIGHTS)
def test_probabilities_are_the_weighted_mean_and_sum_to_one(weights):
    members = [network(seed) for seed in range(len(weights))]
    q = np.array(weights) / sum(weights)
    columns = zip(*(member.predict_many(X) for member in members), strict=True)
    for ours, column in zip(Ensemble(members, weights).predict_many(X), columns, strict=True):
        assert math.fsum(ours.probabilities.values()) == pytest.approx(1, abs=1e-12)
        for label in LABELS:
            mean = sum(w * p.probabilities[label] for w, p in zip(q, column, strict=True))
            assert ours.probabilities[label] == pytest.approx(mean, abs=1e-12)
        assert ours.probabilities[ours.label] == pytest.approx(max(ours.probabilities.values()), abs=1e-12)


def test_weights_are_scaled_and_equal_by_default():
    members = [network(0), network(1)]
    assert Ensemble(members, [3, 1]).weights.tolist() == [0.75, 0.25]
    assert Ensemble(members).weights.tolist() == [0.5, 0.5]
    assert Ensemble(members, [1e308, 1e308]).weights.tolist() == [0.5, 0.5]
    assert Ensemble(members, [5e-324, 0]).weights.tolist() == [1.0, 0.0]


@given(WEIGHTS)
def test_scaled_weights_stay_what_they_are(weights):
    members = [network(seed) for seed in range(len(weights))]
    once = Ensemble(members, weights).weights
    assert math.fsum(once) == pytest.approx(1, abs=1e-12)
    assert Ensemble(members, once).weights.tolist() == once.tolist()


def test_all_weight_on_one_member_is_that_member_and_asks_nobody_else():
    class Silent(TableLM):
        def choice_log_probs(self, contexts, labels):
            raise AssertionError("a member without weight was asked")

    silent = network(lm=Silent(lambda _: {" yes": 1.0}, name="silent"))
    assert Ensemble([silent, network(1)], [0, 1]).predict_many(X) == network(1).predict_many(X)


def test_who_cannot_score_an_input_is_left_out_there_and_there_only():
    members = [network(lm=Unscoring("two"), prompt="a"), network(1), network(2)]
    whole, rest = Ensemble(members, [0.6, 0.3, 0.1]), Ensemble(members[1:], [0.3, 0.1])
    one, two = whole.predict_many(["one", "two"])
    assert two.probabilities == pytest.approx(rest.predict("two").probabilities)
    assert two.label == rest.predict("two").label
    assert two.scored
    assert [vote.label for vote in two.members] == ["", *(m.predict("two").label for m in members[1:])]
    assert one.probabilities != pytest.approx(rest.predict("one").probabilities)


def test_what_nobody_can_score_is_unscored_as_for_one_network():
    members = [network(lm=Unscoring("two", seed), depth=2) for seed in (1, 2)]
    found, alone = Ensemble(members, [0.2, 0.8]).predict("two"), members[1].predict("two")
    assert not found.scored
    assert (found.label, found.probabilities, found.label_mass) == ("", {}, None)
    assert found == alone


def test_hidden_texts_and_parameters_are_the_heaviest_members():
    members = [network(seed, depth=2) for seed in range(3)]
    together = Ensemble(members, [0.3, 0.5, 0.2])
    assert together.heaviest is members[1]
    assert together.parameters() == members[1].parameters()
    for ours, theirs in zip(together.predict_many(X, samples=2), members[1].predict_many(X, samples=2), strict=True):
        assert (ours.hidden, ours.draws) == (theirs.hidden, theirs.draws)


def test_votes_name_every_member_with_its_weight():
    members = [network(seed) for seed in range(2)]
    (found,) = Ensemble(members, [0.25, 0.75]).predict_many(["one"])
    assert [(v.member, v.weight, v.label) for v in found.members] == [
        (0, 0.25, members[0].predict("one").label),
        (1, 0.75, members[1].predict("one").label),
    ]
    assert members[0].predict("one").members == ()


@pytest.mark.parametrize(
    ("weights", "answer"),
    [
        ([0.5, 0.2, 0.3], "left"),  # a tie: the heaviest member's text
        ([0.3, 0.1, 0.2], "left"),  # the same tie, though 0.1 + 0.2 > 0.3 in floating point
        ([0.2, 0.3, 0.5], "right"),
        ([0.4, 0.3, 0.31], "right"),  # the many against the heaviest
    ],
)
def test_free_texts_are_voted_for(weights, answer):
    found = Ensemble(writer("left", "right", "right"), weights).predict("where")
    assert found.label == answer
    total = sum(weights)
    assert found.probabilities == pytest.approx({"left": weights[0] / total, "right": sum(weights[1:]) / total})


def test_a_member_that_writes_nothing_has_no_vote():
    found = Ensemble(writer("", "right"), [0.9, 0.1]).predict("where")
    assert (found.label, found.probabilities) == ("right", {"right": 1.0})


def test_averages_by_hand():
    a, b, c = said("x", x=0.6, y=0.4, z=0.0), said("y", x=0.1, y=0.5, z=0.4), said("z", x=0.0, y=0.45, z=0.55)
    found = average([0.4, 0.3, 0.3], [a, b, c])
    assert found.probabilities == pytest.approx({"x": 0.27, "y": 0.445, "z": 0.285})
    assert found.label == "y"
    assert average([0.5, 0.5], [said("x", x=0.6, y=0.4), said("y", x=0.4, y=0.6)]).label == "x"
    assert average([0.5, 0.5], [said("y", x=0.4, y=0.6), said("x", x=0.6, y=0.4)]).label == "y"


def test_members_are_drawn_with_their_weights():
    members = [network(seed) for seed in range(3)]
    together = Ensemble(members, [0.0, 0.25, 0.75])
    drawn = [members.index(together.pick(Key(seed))) for seed in range(400)]
    assert 0 not in drawn
    assert abs(drawn.count(1) / 400 - 0.25) < 0.1
    assert together.pick(Key(3)) is together.pick(Key(3))


def test_one_network_or_several_are_handled_alike():
    one, together = network(0), Ensemble([network(1), network(2)], [1, 3])
    assert (members_of(one), best_of(one)) == ((one,), one)
    assert (members_of(together), best_of(together)) == (together.members, together.members[1])
    other = TableLM.random(TEXTS, 9)
    moved = together.each(lambda member: Sequential(replace(layer, lm=other) for layer in member.layers))
    assert all(layer.lm is other for member in moved.members for layer in member.layers)
    assert moved.weights.tolist() == together.weights.tolist()


@pytest.mark.parametrize(
    ("members", "weights", "message"),
    [
        ([], [], "at least one member"),
        ([], None, "at least one member"),
        (["a prompt"], [1], "expected: a Sequential"),
        ([network(), network(labels=("yes", "no"))], [1, 1], "different labels"),
        ([network(), *writer("a")], [1, 1], "free text"),
        ([network()], [1, 1], "one weight per member"),
        ([network(), network(1)], [1, -1], "none below 0"),
        ([network(), network(1)], [1, math.nan], "finite"),
        ([network(), network(1)], [1, math.inf], "finite"),
        ([network(), network(1)], [0, 0], "not all 0"),
    ],
)
def test_what_cannot_answer_together_is_refused(members, weights, message):
    with pytest.raises(InputError, match=message):
        Ensemble(members, weights)


@pytest.fixture
def together():
    return Ensemble([network(seed, depth=2) for seed in range(3)], [0.2, 0.7, 0.1])


@pytest.fixture
def saved(tmp_path, together):
    path = tmp_path / "network.json"
    save_network(together, path, {"task": "t"})
    return path


def by_seed(seeds=range(3)):
    models = {}
    for seed in seeds:
        lm = TableLM.random(TEXTS, seed)
        models[lm.name] = lm
    return models.__getitem__


def test_several_networks_come_back_from_their_file(saved, together):
    lm = TableLM.random(TEXTS, 0)
    with pytest.warns(OtherModelWarning, match="trained with the model"):
        again = load_network(saved, lm)
    assert isinstance(again, Ensemble)
    assert again.state_dict() == together.state_dict()
    moved = together.each(lambda member: Sequential(replace(layer, lm=lm) for layer in member.layers))
    assert again.predict_many(X) == moved.predict_many(X)
    assert network_to_json(again) == network_to_json(moved)


@given(WEIGHTS)
@settings(max_examples=30)
def test_weights_survive_json_to_the_last_bit(weights):
    lm = TableLM.random(TEXTS, 0)
    before = Ensemble([network(lm=lm, prompt=f"p{i}") for i in range(len(weights))], weights)
    after = network_from_json(json.loads(json.dumps(network_to_json(before))), lm)
    assert isinstance(after, Ensemble)
    assert after.weights.tolist() == before.weights.tolist()
    assert [m.parameters() for m in after.members] == [m.parameters() for m in before.members]


def test_the_file_of_one_network_is_what_it_was_and_that_of_several_says_so(saved, tmp_path):
    save_network(network(), tmp_path / "one.json")
    one, several = (json.loads(path.read_text("utf-8")) for path in (tmp_path / "one.json", saved))
    assert (one["schema"], set(one)) == (1, {"schema", "sha256", "layers", "provenance"})
    assert (several["schema"], set(several)) == (2, {"schema", "sha256", "members", "provenance"})
    assert [set(member) for member in several["members"]] == [{"weight", "layers"}] * 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d["members"][0].update(weight=0.9), CorruptDataError, "does not match its hash"),
        (lambda d: d["members"].pop(), CorruptDataError, "does not match its hash"),
        (lambda d: d.update(schema=1), InputError, "another schema"),
        (lambda d: d.update(schema=3), InputError, "another schema"),
    ],
)
def test_a_changed_file_is_refused(saved, change, error, message):
    document = json.loads(saved.read_text("utf-8"))
    change(document)
    saved.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(error, match=message):
        load_network(saved, TableLM.random(TEXTS, 0))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda body: body["members"].clear(), "net.json"),
        (lambda body: body.update(members=None), "members"),
        (lambda body: body["members"][1].update(weight="much"), "members.1.weight"),
        (lambda body: body["members"][1].pop("weight"), "members.1.weight"),
        (lambda body: body["members"][0].update(weight=-1), "net.json"),
    ],
)
def test_a_file_with_an_impossible_member_is_named(together, change, place):
    body = json.loads(json.dumps(network_to_json(together)))
    change(body)
    with pytest.raises(InputError) as refused:
        network_from_json(body, TableLM.random(TEXTS, 0), "net.json")
    assert place in str(refused.value)
    assert "net.json" in str(refused.value)
