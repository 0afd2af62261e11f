"""The layers of the paper's comparison: thinking first is a network of two layers, a fitted layer is a validation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import cli_fake_engine
from dln.data import Dataset, Example, load_task
from dln.errors import InputError
from dln.experiments.baselines import ChainOfThought, ZeroShot, chain
from dln.experiments.method import EvaluationProtocol, Known, Setup, fitted, output_layer
from dln.experiments.methods import method_named
from dln.infer.calibrate import PenalisedLikelihood
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.nn.ensemble import Ensemble
from dln.train.layout import COPY


@pytest.fixture(scope="module")
def task():
    return load_task("questions")


@pytest.fixture
def setup(task):
    return Setup(task, cli_fake_engine.load("1", "fake/1", {}), 1)


class Blind(TableLM):
    """A model that scores only contexts that show one of these inputs; the others have no score."""

    def __init__(self, words, seen):
        super().__init__(lambda _: {f" {word}": 1 / len(words) for word in words}, name="blind")
        self._seen = tuple(seen)

    def choice_log_probs(self, contexts, labels):
        masses = super().choice_log_probs(contexts, labels)
        masses[[not any(x in context for x in self._seen) for context in contexts]] = np.nan
        return masses


def test_thinking_first_is_greedy_thoughts_under_no_prompt_then_the_tasks_instruction(setup, task):
    first, last = chain(setup, ("think_steps", "classify_residual_answer"), 48).layers
    assert isinstance(first, LanguageLayer)
    assert isinstance(last, ChoiceLayer)
    assert (first.sampling.temperature, first.sampling.max_tokens) == (0.0, 48)
    assert [str(first.prompt), str(last.prompt)] == ["", task.instruction]
    assert [first.template.name, last.template.name] == ["think_steps", "classify_residual_answer"]
    assert last.labels == task.labels
    assert first.lm is last.lm is setup.lm


@pytest.mark.parametrize("method", [ZeroShot(), ChainOfThought()])
def test_free_texts_are_refused_by_every_layout(setup, task, method):
    parts = {part: replace(getattr(task, part), labels=None) for part in ("train", "dev", "test")}
    with pytest.raises(InputError, match="classification only"):
        method(replace(setup, task=replace(task, labels=None, **parts)))


def test_a_fitted_layer_and_its_score_are_those_of_the_calibrator(setup, task):
    layer, dev = output_layer(setup), task.dev
    network, score = fitted(layer, dev)
    rows = [LayerInput(x, x) for x in dev.inputs]
    masses = layer.label_log_masses(layer.contexts(rows))
    targets = np.array([layer.index(y) for y in dev.targets])
    expected = PenalisedLikelihood()(layer, masses, targets, np.ones(len(dev)), np.arange(len(dev)))
    (last,) = network.layers
    assert isinstance(last, ChoiceLayer)
    assert last.bias == pytest.approx(expected.layer.bias)
    assert last.readout.temperature == pytest.approx(expected.layer.readout.temperature)
    assert last.prompt == layer.prompt
    assert score == pytest.approx(expected.log_prob.mean())


def test_examples_without_a_score_are_left_out_of_the_fit_and_judged_as_guesses(setup, task):
    seen = EvaluationProtocol(dev_size=40).examples(task, 1).dev
    shown = Dataset(seen.examples[:30], seen.labels)
    layer = replace(output_layer(setup), lm=Blind(task.label_names, shown.inputs))
    network, score = fitted(layer, seen)
    alone, expected = fitted(layer, shown)
    assert network.layers[0].bias == pytest.approx(alone.layers[0].bias)
    guess = -math.log(len(task.label_names))
    assert score == pytest.approx((30 * expected + 10 * guess) / 40)
    with pytest.raises(InputError, match="no example could be scored"):
        fitted(replace(layer, lm=Blind(task.label_names, ["\0"])), seen)


def test_the_ensemble_row_answers_with_several_prompts_of_one_training(setup, task):
    few = EvaluationProtocol(
        train_size=40, dev_size=30, test_size=20, options={"steps": 2, "val_every": 1, "inference": {"num_prompts": 2}}
    )
    asked = replace(setup, task=few.examples(task, 13), seed=13, options=few.options)
    alone, together = (method_named(name)(asked) for name in ("dln-1", "dln-1-ensemble"))
    assert isinstance(alone.predictor, Sequential)
    assert isinstance(together.predictor, Ensemble)
    assert len(together.prompts) == len(together.predictor.members) > 1
    assert f"{len(together.prompts)} prompts, weights" in together.notes[-1]
    assert len(together.predictor.predict_many(list(asked.task.test.inputs))) == 20
    assert together.dev_score >= alone.dev_score
    assert method_named("dln-1-ensemble").after == ()


@pytest.mark.parametrize(("several", "copies"), [(0, True), (4, True), (5, False), (40, False)])
def test_a_second_layer_begins_as_a_copy_where_nine_of_ten_inputs_have_one_line(setup, task, several, copies):
    asked = replace(setup, task=EvaluationProtocol(train_size=40, dev_size=30, test_size=20).examples(task, 13))
    rows = [
        Example(f"{row.input}\nsaid twice" if i < several else row.input, row.target)
        for i, row in enumerate(asked.task.train)
    ]
    asked = replace(
        asked,
        task=replace(asked.task, train=Dataset(rows, task.labels)),
        options={"steps": 0},
        known={"dln-1": Known(Sequential([output_layer(setup, "classify")]), 0)},
    )
    first = method_named("dln-2-fix")(asked).predictor.layers[0]
    assert (first.prompt.instruction == COPY) is copies
