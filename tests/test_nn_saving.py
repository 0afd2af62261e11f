"""A network file gives back the same network, holds only data, and says when it was damaged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import CorruptDataError, DlnError, InputError
from dln.lm.base import Sampling
from dln.lm.table import TableLM
from dln.nn import (
    ChoiceLayer,
    Demonstration,
    LanguageLayer,
    Prompt,
    Sequential,
    Template,
    load_network,
    load_state_dict,
    save_network,
)
from dln.nn.saving import network_from_json, network_to_json

LM = TableLM.random([" yes", " Yes", " no", " a b", " c"], seed=3, name="the-model")
MINE = Template("mine", 4, "forward", "{{ prompt }}~{{ h }}~", target_prefix=" ", stop=("!",), about="own")
X = ["one", "two", "drei ü\n"]


def network(instruction="think well", y="out"):
    prompt = Prompt(y, (Demonstration("x1", "h1", "yes"), Demonstration("{{ x }}", "ü", "no")))
    return Sequential(
        LanguageLayer(LM, MINE, instruction, Sampling(0.4, 0.9, 12)),
        ChoiceLayer(LM, "classify_residual", prompt, ("yes|Yes", "no"), bias=[0.7, -0.7], temperature=2.5),
    )


def rewrite(path, change):
    """Change a file's document and leave the rest, its hash too, as it was."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "network.json"
    save_network(network(), path, {"task": "t", "dev": 0.5})
    return path


def test_a_network_comes_back_whole(saved):
    before, after = network(), load_network(saved, LM)
    assert after.state_dict() == before.state_dict()
    assert network_to_json(after) == network_to_json(before)
    assert after.predict_many(X) == before.predict_many(X)
    assert after.predict_many(X, samples=5) == before.predict_many(X, samples=5)
    assert after.layers[0].template == MINE
    assert after.layers[0].sampling == before.layers[0].sampling
    assert after.layers[1].labels == ("yes|Yes", "no")


@given(st.text(), st.text(alphabet='"\\\n\t{}%é漢\u2028😀 a'))
def test_any_text_survives_the_way_through_json(instruction, y):
    net = network(instruction, y)
    again = network_from_json(json.loads(json.dumps(network_to_json(net))), LM)
    assert again.parameters() == net.parameters()


def test_the_model_may_be_looked_up_by_its_name(saved):
    asked = []

    def find(name):
        asked.append(name)
        return LM

    assert load_network(saved, find).state_dict() == network().state_dict()
    assert asked == [LM.name]


def test_the_file_is_plain_data_and_names_no_endpoint(saved):
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert set(document) == {"schema", "sha256", "layers", "provenance"}
    assert document["provenance"] == {"task": "t", "dev": 0.5}
    keys = {key for layer in document["layers"] for key in layer}
    assert keys == {
        *("kind", "model", "fingerprint", "template", "prompt"),
        *("sampling", "strip_options", "labels", "readout", "answers"),
    }
    assert "~{{ h }}~" in saved.read_text(encoding="utf-8")


def test_writing_leaves_no_draft_behind_and_replaces_as_a_whole(saved):
    save_network(network("other"), saved)
    assert [p.name for p in saved.parent.iterdir()] == ["network.json"]
    assert load_network(saved, LM).parameters()[0] == Prompt("other")


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        save_network(network(), tmp_path / "missing" / "network.json")


@given(st.data())
def test_no_changed_byte_goes_unnoticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "network.json"
    save_network(network(), path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    old = content[position]
    content[position] = data.draw(st.integers(0, 255).filter(lambda b: b != old))
    path.write_bytes(content)
    try:
        loaded = load_network(path, LM)
    except DlnError:
        return
    # white space between fields carries nothing
    assert chr(old).isspace()
    assert network_to_json(loaded) == network_to_json(network())


def test_a_changed_value_is_corrupt(saved):
    rewrite(saved, lambda d: d["layers"][0]["prompt"].update(instruction="evil"))
    with pytest.raises(CorruptDataError, match=r"network\.json"):
        load_network(saved, LM)


def test_half_a_file_is_corrupt(saved):
    saved.write_bytes(saved.read_bytes()[:200])
    with pytest.raises(CorruptDataError, match="not JSON"):
        load_network(saved, LM)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"not json"])
def test_what_is_not_json_is_corrupt(tmp_path, content):
    path = tmp_path / "n.json"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match="not JSON"):
        load_network(path, LM)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"schema": 1}'])
def test_json_that_is_no_network_is_bad_input(tmp_path, content):
    path = tmp_path / "n.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="not a network file"):
        load_network(path, LM)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(saved, schema):
    rewrite(saved, lambda d: d.update(schema=schema))
    with pytest.raises(InputError, match="another schema"):
        load_network(saved, LM)


def test_a_missing_file_is_bad_input(tmp_path):
    for path, what in ((tmp_path / "none.json", "cannot be read"), (tmp_path, "no trained network")):
        with pytest.raises(InputError, match=what):
            load_network(path, LM)


def label_readout(**fields):
    return {"kind": "labels", "bias": [0.0, 0.0], "temperature": 1.0} | fields


def change_layer(position, **fields):
    body = network_to_json(network())
    body["layers"][position] |= fields
    return body


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (change_layer(0, kind="dense"), r"layers\.0.*dense"),
        (change_layer(1, readout=label_readout(bias=["a", 1])), r"layers\.1.*bias\.0"),
        (change_layer(1, readout=label_readout(bias=[0.0])), "number of labels"),
        (change_layer(1, readout=label_readout(temperature=0)), "temperature"),
        (change_layer(1, readout=None), "readout is missing"),
        (change_layer(1, labels=["yes"]), "two labels"),
        (change_layer(0, sampling={"temperature": -1}), "temperature"),
        (change_layer(0, template={"name": "t", "version": 1, "kind": "forward", "text": "{{ key }}"}), "key"),
        (change_layer(0, template={"name": "t", "version": 1, "kind": "backward", "text": ""}), "another kind"),
        ({"layers": []}, "at least one layer"),
        ({}, "layers"),
    ],
)
def test_a_layout_that_does_not_fit_names_what_is_wrong(body, what):
    with pytest.raises(InputError, match=what):
        network_from_json(body, LM, "net.json")


# ---------------------------------------------------------------- state_dict


def test_a_state_carries_all_that_training_changes():
    trained = network("better", "other")
    fresh = Sequential(
        trained.layers[0].with_prompt(""), trained.layers[1].with_prompt("").with_calibration([0.0, 0.0], 1.0)
    )
    state = json.loads(json.dumps(trained.state_dict()))
    assert load_state_dict(fresh, state).state_dict() == trained.state_dict()
    assert load_state_dict(fresh, state).predict_many(X) == trained.predict_many(X)


def changed(position, **fields):
    state = network().state_dict()
    state["layers"][position] |= fields
    return state


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"layers": network().state_dict()["layers"][:1]}, "another number of layers"),
        ({"layers": []}, "another number of layers"),
        ({}, "layers"),
        (changed(1, readout=label_readout(bias=[1.0, 2.0, 3.0])), "number of labels"),
        (changed(1, readout=label_readout(bias=["a", 2.0])), r"layers\.1.*bias\.0"),
        (changed(1, readout=label_readout(temperature=-1.0)), "temperature"),
        (changed(1, prompt=3), r"layers\.1.*prompt"),
        (changed(0, bias=[0.0, 0.0]), r"layers\.0"),
        (changed(1, bais=[0.0, 0.0]), r"layers\.1.*bais"),
        ({"layers": list(reversed(network().state_dict()["layers"]))}, r"layers\.0"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, what):
    with pytest.raises(InputError, match=what):
        load_state_dict(network(), state)
