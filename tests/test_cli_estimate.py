"""The estimate of a run's cost agrees with what its meter counts, within a factor of two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dln.cli.config import RunConfig
from dln.cli.estimate import within_budget
from dln.data import Dataset, Task, exact_match
from dln.lm.meter import Meter, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.train import fit, resolve_options
from dln.train.estimate import LayerSize, estimate, layer_sizes
from dln.train.evaluate import conclude, fitted_initial

LABELS = ("order", "return")
THOUGHTS = [f" {a} words {b} about {c}" for a in "abcdefgh" for b in "abcdefgh" for c in "ab"]
DATA = Dataset.from_pairs(
    [(f"text number {i} of a box of {i * 7 % 13} tiles", LABELS[i % 2]) for i in range(90)], LABELS
)
TRAIN, DEV, TEST = DATA[:50], DATA[50:70], DATA[70:]
CASES = [
    pytest.param(1, "default", {}, marks=pytest.mark.slow),
    pytest.param(2, "default", {}, marks=pytest.mark.slow),
    pytest.param(3, "default", {"inference": {"num_hidden": 2}}, marks=pytest.mark.slow),
    (2, "paper", {"inference": {"num_prompts": 3}}),
    pytest.param(2, "paper", {"inference": {"num_prompts": 6}}, marks=pytest.mark.slow),
    pytest.param(2, "default", {"inference": {"layer_steps": [1, 0]}}, marks=pytest.mark.slow),
    (1, "default", {"val_every": 1, "inference": {"prompt_proposals": {"demonstrations": 1}, "demonstrations": [3]}}),
]


@pytest.mark.parametrize(("depth", "preset", "changes"), CASES)
def test_the_estimate_is_right_within_a_factor_of_two(depth: int, preset: str, changes: dict[str, Any]):
    options = resolve_options(preset, {"steps": 3, "batch_size": 6, **changes})
    meter = Meter()
    lm = Metered(TableLM.random([*(f" {label}" for label in LABELS), *THOUGHTS], seed=3), meter=meter)
    hidden = [LanguageLayer(lm, "think" if i == 0 else "think_residual", "Think first:") for i in range(depth - 1)]
    top = ChoiceLayer(lm, "classify" if depth == 1 else "classify_residual", "Is it order or return?", LABELS)
    network = Sequential([*hidden, top])
    written = lm.count_tokens(THOUGHTS[0]) + 1.0
    expected = estimate(
        layer_sizes(network, TRAIN, written), options, train_size=len(TRAIN), dev_size=len(DEV), test_size=len(TEST)
    ).total
    result = fit(network, TRAIN, DEV, options=options, meter=meter)
    fitted = fitted_initial(result.initial, DEV, exact_match, options)
    conclude(result.initial, result.network, TEST, fitted=fitted, meter=meter)
    used = meter.snapshot()
    assert used.calls / 2 <= expected.calls <= 2 * used.calls
    assert used.prompt_tokens / 2 <= expected.prompt_tokens <= 2 * used.prompt_tokens


def test_more_of_anything_costs_more():
    layers = [LayerSize(50, 20, 10), LayerSize(60, 30, 1, labels=4)]
    options = resolve_options("default", {"steps": 4})
    sizes = {"train_size": 100, "dev_size": 40, "test_size": 60}
    base = estimate(layers, options, **sizes).total.tokens
    assert estimate(layers, options, **{**sizes, "dev_size": 41}).total.tokens > base
    assert estimate(layers, options, **{**sizes, "test_size": 61}).total.tokens > base
    for change in (
        {"steps": 5},
        {"batch_size": 81},
        {"inference": {"num_hidden": 6}},
        {"inference": {"num_prompts": 9}},
    ):
        assert estimate(layers, resolve_options("default", {"steps": 4, **change}), **sizes).total.tokens > base
    longer = [replace(layers[0], context=51), layers[1]]
    assert estimate(longer, options, **sizes).total.tokens > base


@pytest.mark.parametrize(("output_layer", "networks"), [("fitted", 3), ("fixed", 2)])
def test_the_final_test_counts_every_network_that_is_evaluated(output_layer: str, networks: int):
    layers = [LayerSize(50, 20, 1, labels=4)]
    options = resolve_options("default", {"steps": 0, "inference": {"output_layer": output_layer}})
    phases = estimate(layers, options, train_size=9, dev_size=5, test_size=7).phases
    assert phases["test"].calls == 7 * networks + (5 if networks == 3 else 0)


def test_nothing_costs_nothing():
    options = resolve_options("default", {"steps": 0})
    assert estimate([LayerSize(5, 2, 1, labels=2)], options, train_size=9, dev_size=0, test_size=0).total.calls == 0


TASK = Task("boxes", "Is it order or return?", LABELS, TRAIN, DEV, TEST, exact_match)


def budgeted(limit: dict[str, int], **options: Any) -> tuple[RunConfig, tuple[str, ...]]:
    config = RunConfig.model_validate({"budget": limit, "lm": {"spec": "vllm/some-model"}, "options": options})
    lm = TableLM.random([f" {label}" for label in LABELS], seed=3)
    network = Sequential([ChoiceLayer(lm, "classify", "Is it order or return?", LABELS)])
    return within_budget(config, TASK, layer_sizes(network, TRAIN))


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_tokens": 300}, "300 tokens"),
        ({"max_calls": 7}, "7 calls"),
        ({"max_tokens": 10**9, "max_calls": 10**6}, None),
        ({}, None),
    ],
)
def test_a_budget_that_ends_before_anything_can_be_learnt_is_told(limit: dict[str, int], said: str | None):
    config, told = budgeted(limit)
    if said is None:
        assert told == ()
        assert config.options == {}
    else:
        assert said in told[-1]
        assert "--set inference.num_prompts=" in told[-1]
    assert budgeted(limit, steps=0) == (config.model_copy(update={"options": {"steps": 0}}), ())


def test_a_small_budget_makes_steps_smaller_and_says_which_options_insist():
    config, (told, *_) = budgeted({"max_tokens": 9_000})
    assert config.options["val_every"] == 1
    assert config.options["inference"]["demonstrations"] == [6]
    assert "inference.demonstrations [6] instead of [24]" in told
    assert "--set 'inference.demonstrations=[24]'" in told
    insisting, _ = budgeted({"max_tokens": 9_000}, val_every=2, inference={"demonstrations": [24, 48]})
    assert insisting.options["val_every"] == 2
    assert insisting.options["inference"]["demonstrations"] == [24, 48]
