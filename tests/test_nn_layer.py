"""The hidden layer: what it asks the model for, and what it makes of the answer."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.lm.base import Capabilities, Sampling, Wrapper
from dln.lm.table import TableLM
from dln.nn import Demonstration, LanguageLayer, LayerInput, Prompt, Template
from dln.random import Key

TEXTS = (" a", " b", " a b", " c d e")
SAME_LINE = Template("same", 1, "forward", "{{ prompt }}|{{ h }}:", target_prefix=" ", stop=("\n",))


class Recording(Wrapper):
    """Remembers what was asked; may pretend to be a chat model."""

    def __init__(self, inner, *, chat=False):
        super().__init__(inner)
        self.chat = chat
        self.asked = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, chat=self.chat)

    def sample(self, contexts, sampling, seeds):
        self.asked.append((tuple(contexts), sampling, tuple(seeds)))
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts, targets):
        self.asked.append((tuple(contexts), tuple(targets)))
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        self.asked.append((tuple(contexts), tuple(labels)))
        return self.inner.choice_log_probs(contexts, labels)


def items(*texts):
    return [LayerInput(text, text) for text in texts]


def test_stop_strings_come_from_the_template_unless_the_layer_has_its_own():
    lm = TableLM.random(TEXTS, seed=0)
    assert LanguageLayer(lm, SAME_LINE).sampling.stop == ("\n",)
    own = LanguageLayer(lm, SAME_LINE, sampling=Sampling(max_tokens=3, stop=("END",)))
    assert own.sampling == Sampling(max_tokens=3, stop=("END",))
    assert LanguageLayer(lm, SAME_LINE, sampling=Sampling(max_tokens=3)).sampling == Sampling(
        max_tokens=3, stop=("\n",)
    )


def test_a_template_of_another_kind_is_refused():
    with pytest.raises(InputError, match="another kind"):
        LanguageLayer(TableLM.random(TEXTS, seed=0), "backward")


def test_the_stop_string_ends_the_text():
    lm = TableLM.from_table({}, default={" one\n two": 1.0})
    layer = LanguageLayer(lm, SAME_LINE)
    assert layer.sample(Key(0), items("x"))[0].text == "one"


@given(st.integers(0, 500), st.sampled_from([None, 0.0, 0.7, 1.0]))
def test_a_shown_text_is_stripped_and_scored_as_drawn(seed, temperature):
    """log p of a draw is that of its ids, blank and terminator included, whatever is shown."""
    lm = TableLM.random(TEXTS, seed=seed)
    layer = LanguageLayer(lm, SAME_LINE, "p")
    draws = layer.sample(Key(seed), items("x", "y"), temperature)
    for item, draw, score in zip(items("x", "y"), draws, layer.log_prob(items("x", "y"), draws), strict=True):
        assert draw.text == draw.text.strip()
        support = {c.text: sum(c.log_probs) for c in lm.support(layer.contexts([item])[0])}
        assert f" {draw.text}" in support
        assert score.log_prob == pytest.approx(support[f" {draw.text}"])
        assert score.log_prob == pytest.approx(sum(draw.log_probs))


def test_a_plain_text_is_scored_behind_the_separator():
    lm = TableLM.from_table({}, default={" a": 0.25, " b": 0.75})
    layer = LanguageLayer(lm, SAME_LINE)
    assert layer.log_prob(items("x"), ["a"])[0].log_prob == pytest.approx(-1.3862943611198906)


def test_a_draw_of_another_model_is_scored_as_the_plain_text_it_is():
    """Its ids mean nothing here, and its blank was stripped: the separator must be put back."""
    other = TableLM.from_table({}, default={" a": 1.0}, name="other")
    lm = TableLM.from_table({}, default={" a": 0.25, " b": 0.75}, name="mine")
    layer = LanguageLayer(lm, SAME_LINE)
    draw = LanguageLayer(other, SAME_LINE).sample(Key(0), items("x"))[0]
    plain, foreign, bare = layer.log_prob(items("x", "x", "x"), ["a", draw, replace(draw, token_ids=None)])
    assert foreign.log_prob == bare.log_prob == plain.log_prob


def test_one_seed_per_draw_and_the_layer_passes_its_own_sampling():
    lm = Recording(TableLM.random(TEXTS, seed=0))
    layer = LanguageLayer(lm, SAME_LINE, sampling=Sampling(0.5, 0.9, 7))
    layer.sample(Key(3), items("x", "y", "x"))
    layer.sample(Key(3), items("x"), 1.0)
    (contexts, sampling, seeds), (_, other, fewer) = lm.asked
    assert contexts == ("|x:", "|y:", "|x:")
    assert sampling == Sampling(0.5, 0.9, 7, ("\n",))
    assert other == replace(sampling, temperature=1.0)
    assert seeds == tuple(Key(3).seeds(3))
    assert fewer == seeds[:1]


def test_with_prompt_leaves_the_layer_as_it_was():
    layer = LanguageLayer(TableLM.random(TEXTS, seed=0), SAME_LINE, "old", Sampling(0.3))
    new = layer.with_prompt("new")
    assert (layer.prompt, new.prompt) == (Prompt("old"), Prompt("new"))
    assert (new.lm, new.template, new.sampling) == (layer.lm, layer.template, layer.sampling)
    with pytest.raises(FrozenInstanceError):
        layer.prompt = Prompt("changed")


def test_a_chat_model_has_its_own_turn_and_gets_no_separator():
    lm = Recording(TableLM.from_table({}, default={"a": 0.5, "b": 0.5}), chat=True)
    layer = LanguageLayer(lm, SAME_LINE, Prompt("p", (Demonstration("q", "q", "r"),)))
    assert layer.target_prefix == ""
    layer.log_prob(items("x"), ["a"])
    # within the user's turn the worked example keeps the template's form
    assert lm.asked == [(("p\n\n|q: r|x:",), ("a",))]


def test_inputs_and_outputs_of_different_number_are_refused():
    layer = LanguageLayer(TableLM.random(TEXTS, seed=0), SAME_LINE)
    with pytest.raises(InputError, match="differ in number"):
        layer.log_prob(items("x", "y"), ["a"])


def test_the_sum_over_all_texts_is_one():
    lm = TableLM.random(TEXTS, seed=9)
    layer = LanguageLayer(lm, "think", "p")
    texts = lm.support(layer.contexts(items("x"))[0])
    scores = layer.log_prob(items("x") * len(texts), texts)
    assert sum(2.718281828459045**s.log_prob for s in scores) == pytest.approx(1)


@pytest.mark.parametrize("prompt", [Prompt("i"), Prompt("", (Demonstration("x", "h", "y"),)), Prompt("i\n{{ x }}")])
def test_a_prompt_survives_a_file(prompt):
    assert Prompt.from_json(prompt.to_json()) == prompt


def test_a_bare_string_is_an_instruction_and_a_bad_prompt_names_its_field():
    assert Prompt.from_json("do it") == Prompt("do it")
    with pytest.raises(InputError, match=r"layer 2.*demonstrations\.0\.y"):
        Prompt.from_json({"instruction": "i", "demonstrations": [{"x": "a", "h": "b"}]}, "layer 2")
