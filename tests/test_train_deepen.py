"""A network deepened by a layer that copies says what it said."""

from __future__ import annotations

import pytest

from dln.errors import InputError
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.train.layout import COPY, deepened

TEXTS = ("a fine film", "dull", " a long evening of very little ", "dull", "well made and well played")


def copies_and_judges(context: str) -> dict[str, float]:
    """A model that does what it is shown; how sure it is of a label depends on the length of what it reads."""
    read = context.replace("Input again: ", "Input: ").rpartition("Input: ")[2].partition("\n")[0]
    if context.endswith("Output:"):
        return {f" {read}": 1.0}
    return {" positive": 1 / (1 + len(read)), " negative": len(read) / (1 + len(read))}


@pytest.fixture
def network() -> Sequential:
    return Sequential(ChoiceLayer(TableLM(copies_and_judges), "classify", Prompt("Which?"), ("positive", "negative")))


def test_it_says_what_the_shallower_network_says(network: Sequential):
    texts = ["not seen before", *map(str.strip, TEXTS)]
    before, after = (n.predict_many(texts) for n in (network, deepened(network, TEXTS)))
    for x, one, two in zip(texts, before, after, strict=True):
        assert two.hidden == ((x,),)
        assert two.label == one.label
        assert two.probabilities == pytest.approx(one.probabilities)
    assert len({p.probabilities["positive"] for p in after}) > 3


def test_what_the_copying_layer_shows_and_how_much_it_may_write(network: Sequential):
    deeper = deepened(network, TEXTS, shown=3)
    first = deeper.layers[0]
    assert isinstance(first, LanguageLayer)
    assert deeper.layers[1:] == network.layers
    assert first.prompt.instruction == COPY
    copied = ("a fine film", "dull", "well made and well played")  # "a long evening" begins like the first one
    assert [(d.x, d.h, d.y) for d in first.prompt.demonstrations] == [(t, t, t) for t in copied]
    assert first.sampling.max_tokens >= max(map(first.lm.count_tokens, TEXTS))


def test_it_can_be_deepened_again(network: Sequential):
    twice = deepened(deepened(network, TEXTS), TEXTS)
    assert len(twice.layers) == 3
    assert twice.predict("dull").label == network.predict("dull").label


@pytest.mark.parametrize(
    ("texts", "got"), [((), "no inputs"), ((" ",), "no inputs"), (("one", "two\nlines"), "several")]
)
def test_inputs_that_cannot_be_copied_are_refused(network: Sequential, texts: tuple[str, ...], got: str):
    with pytest.raises(InputError, match=got):
        deepened(network, texts)
