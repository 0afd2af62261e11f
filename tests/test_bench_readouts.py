"""Rows with readouts: what other words than the labels tell, and where they are not told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dln.cli.tune import answer
from dln.data import Dataset, Task
from dln.errors import InputError
from dln.experiments.baselines import WordRegression, draw_examples
from dln.experiments.headroom import measure_headroom
from dln.experiments.linear import cheap_evaluations
from dln.experiments.method import Setup, recipe_of
from dln.experiments.methods import METHODS, method_named
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LabelReadout, Sequential, WordReadout
from dln.train.evaluate import evaluate
from dln.train.layout import standard_network

LABELS = ("cat", "dog")


def conditional(context: str) -> dict[str, float]:
    """Words besides the labels tell the class of the last input; the label words tell nothing."""
    p = 0.15 if "odd" in context.rpartition("Input:")[2] else 0.45
    noise = 0.01 * (sum(map(ord, context)) % 7)
    return {" cat": 0.1 + noise, " dog": 0.1, " meow": p, " woof": 0.6 - p, " well": 0.2 - noise}


def animals(n: int, start: int) -> Dataset:
    """Inputs "number i" and "odd number i"."""
    rows = [(f"{'odd ' if i % 2 else ''}number {start + i}", LABELS[i % 2]) for i in range(n)]
    return Dataset.from_pairs(rows, LABELS)


@pytest.fixture
def setup() -> Setup:
    task = Task("animals", "Which?", LABELS, animals(40, 0), animals(24, 100), animals(30, 200), "exact_match")
    return Setup(task, TableLM(conditional, name="animals"), 13, {"inference": {"words": 5}})


def test_a_word_readout_reads_what_the_label_words_do_not_tell(setup):
    words, labels = METHODS["word-readout"](setup), METHODS["label-words"](setup)
    assert isinstance(words.predictor, Sequential)
    assert isinstance(words.predictor.layers[-1].classifier.readout, WordReadout)
    assert isinstance(labels.predictor.layers[-1].classifier.readout, LabelReadout)
    scores = {name: evaluate(one.predictor, setup.task.test) for name, one in (("words", words), ("labels", labels))}
    assert scores["words"].accuracy.mean == 1.0
    assert scores["labels"].accuracy.mean < 0.9
    assert words.dev_score > labels.dev_score


def test_the_readout_is_fitted_to_train_and_dev_and_to_no_example_that_it_shows(setup):
    asked: list[str] = []

    class Listening(TableLM):
        def next_token_log_probs(self, contexts, *args):
            asked.extend(contexts)
            return super().next_token_log_probs(contexts, *args)

    listening = replace(setup, lm=Listening(conditional, name="animals"))
    learnt = method_named("icl-6-words")(listening)
    shown = draw_examples(setup, 6)
    inputs = {context.rpartition("Input: ")[2].partition("\n")[0] for context in asked}
    assert {*setup.task.dev.inputs} <= inputs <= {*setup.task.train.inputs, *setup.task.dev.inputs}
    assert not inputs & set(setup.task.test.inputs)
    assert len(learnt.predictor.layers[-1].prompt.demonstrations) == len(shown) == 6
    plain = method_named("icl-6-fitted")(setup)
    assert plain.prompts == learnt.prompts  # the same examples


def test_a_model_that_tells_no_words_is_refused_by_name(setup):
    class Silent(TableLM):
        @property
        def capabilities(self):
            return replace(super().capabilities, next_tokens="none")

    silent = replace(setup, lm=Silent(conditional, name="silent"))
    with pytest.raises(InputError, match="label-words"):
        METHODS["word-readout"](silent)
    found = measure_headroom(setup.task, silent.lm, prompts=2, shots=3, dev_size=20)
    assert found.words is None
    assert len(found.baselines) == 3


def test_probe_task_measures_the_word_readout_on_dev_examples(setup):
    found = measure_headroom(setup.task, setup.lm, prompts=2, shots=3, dev_size=20)
    assert found.words is not None
    assert found.words.accuracy == 1.0
    assert len(found.words.per_example) == 20
    assert (found.words.per_example <= 0).all()
    assert np.isfinite(found.words.per_example).all()
    assert found.at_ceiling
    assert "Nothing to gain" in answer(found)


def test_names_of_readout_rows():
    assert WordRegression().name == "word-readout"
    assert method_named("icl-7-words") == WordRegression(7)
    assert METHODS["dln-1-labels"].name == "dln-1-labels"
    options = recipe_of(METHODS["dln-1-labels"], {})["options"]
    assert options["inference"]["output_layer"] == "fitted"
    assert recipe_of(METHODS["dln-1"], {})["options"]["inference"]["output_layer"] == "words"


def test_label_words_are_a_baseline_of_a_run_with_a_word_readout(setup):
    initial = standard_network(setup.task, setup.lm)
    assert isinstance(initial.layers[-1], ChoiceLayer)
    found = cheap_evaluations(setup.task, initial)
    assert list(found)[-1] == "initial prompt, label words fitted"
    assert len(found) == 3
    assert list(cheap_evaluations(setup.task)) == list(found)[:2]
