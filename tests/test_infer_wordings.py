"""Wordings: names of input and output are a part of the prompt, chosen like the rest."""

from __future__ import annotations

import pytest

from dln.errors import InputError
from dln.infer import vi
from dln.infer.memory import Feedback
from dln.infer.prompts import WORDINGS, WordingProposal, read_wording
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LayerInput, Prompt, Sequential, load_network, save_network
from dln.nn.template import load_template
from dln.random import Key

NOTHING = Feedback((), (), (), ())


def knows_reviews(context):
    good = "fine" in context.rsplit("Review:", 1)[-1] if "Sentiment:" in context else True
    return {" yes": 0.9, " no": 0.1} if good else {" yes": 0.1, " no": 0.9}


def layer(template="classify", prompt=""):
    return ChoiceLayer(TableLM(knows_reviews), template, prompt, ("yes", "no"))


@pytest.mark.parametrize("template", ["classify", "classify_inline", "classify_residual"])
def test_a_wording_names_the_input_and_the_output_everywhere(template):
    prompt = Prompt("Sort.", (Demonstration("a", "b", "yes"),), ("Review", "Sentiment"))
    (context,) = layer(template, prompt).contexts([LayerInput("x1", "h1")])
    assert context.count("Review: ") == context.count("Sentiment:") == 2
    assert "Input" not in context and "Label" not in context
    (usual,) = layer(template, prompt.with_wording(None)).contexts([LayerInput("x1", "h1")])
    assert usual == context.replace("Review", "Input").replace("Sentiment", "Label")


def test_a_template_without_names_refuses_a_wording():
    with pytest.raises(InputError, match="no place"):
        layer("classify_answer", Prompt("", (), ("Review", "Sentiment"))).contexts([LayerInput("x", "x")])
    assert WordingProposal()(Key(0), layer("classify_answer"), NOTHING, 4) == []


def test_every_other_wording_is_proposed_once_and_the_usual_one_by_no_name():
    found = WordingProposal()(Key(0), layer(), NOTHING, 100)
    assert {p.prompt.wording for p in found} == set(WORDINGS[1:])
    assert len(found) == len(WORDINGS) - 1
    renamed = layer(prompt=Prompt("", (), WORDINGS[2]))
    again = WordingProposal()(Key(0), renamed, NOTHING, 100)
    assert {p.prompt.wording for p in again} == {None, *WORDINGS[1:]} - {WORDINGS[2]}
    assert len(WordingProposal()(Key(0), layer(), NOTHING, 3)) == 3


def test_training_finds_the_wording_that_the_model_understands(tmp_path):
    network = Sequential(layer())
    algorithm = vi.build(q_prompt=WordingProposal(), num_prompts=7)
    x = ("fine day", "dull day", "fine film", "bad film")
    state, info = vi.update(vi.init(network), vi.Batch(x, ("yes", "no", "yes", "no")), Key(0), algorithm)
    (prompt,) = state.network.parameters()
    assert prompt.wording == ("Review", "Sentiment")
    assert info.layers[0].proposals[info.layers[0].winner].source == "wording"
    save_network(state.network, tmp_path / "network.json")
    assert load_network(tmp_path / "network.json", network.layers[0].lm).parameters() == (prompt,)
    assert "Review → Sentiment" in str(prompt)


@pytest.mark.parametrize("text", ["", "Review", "a/b/c", "/b", "a/"])
def test_what_is_no_wording_is_refused(text):
    with pytest.raises(InputError, match="two names"):
        read_wording(text)
    assert read_wording("Review → Sentiment") == read_wording(" Review/Sentiment ") == ("Review", "Sentiment")


def test_a_template_and_its_wording_belong_together():
    source = load_template("classify")
    with pytest.raises(InputError, match="wording"):
        type(source)("mine", 1, "forward", "{{ input_name }}: {{ h }}")
    with pytest.raises(InputError, match="wording"):
        type(source)("mine", 1, "forward", "{{ h }}", wording=("A", "B"))
