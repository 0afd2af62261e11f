"""The estimate of a run's cost agrees with what its meter counts, within a factor of two."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cli_fake_engine import FakeLM
from cli_shell import Shell, mail_csv
from dln.cli.config import RunConfig
from dln.cli.estimate import within_budget
from dln.data import Dataset, Task, exact_match
from dln.lm.base import Sampling
from dln.lm.meter import Meter, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.train import fit, resolve_options
from dln.train.estimate import LayerSize, Speed, estimate, layer_sizes
from dln.train.evaluate import conclude, fitted_initial
from dln.train.options import merge_options

LABELS = ("order", "return")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


THOUGHTS = [f" {a} words {b} about {c}" for a in "abcdefgh" for b in "abcd" for c in "ab"]
DATA = Dataset.from_pairs(
    [(f"text number {i} of a box of {i * 7 % 13} tiles", LABELS[i % 2]) for i in range(90)], LABELS
)
TRAIN, DEV, TEST = DATA[:50], DATA[50:70], DATA[70:]
CASES = [
    pytest.param(1, "default", {}, marks=pytest.mark.slow),
    pytest.param(2, "default", {}, marks=pytest.mark.slow),
    pytest.param(3, "default", {"inference": {"num_hidden": 2}}, marks=pytest.mark.slow),
    pytest.param(2, "paper", {"inference": {"num_prompts": 3}}, marks=pytest.mark.slow),
    pytest.param(2, "paper", {"inference": {"num_prompts": 6}}, marks=pytest.mark.slow),
    pytest.param(2, "default", {"inference": {"layer_steps": [1, 0]}}, marks=pytest.mark.slow),
    (2, "paper", {"steps": 2, "inference": {"num_prompts": 2, "num_hidden": 2}}),
    (1, "default", {"val_every": 1, "inference": {"prompt_proposals": {"demonstrations": 1}, "demonstrations": [3]}}),
]


@pytest.mark.slow
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


SMALL: dict[str, Any] = {"batch_size": 8, "inference": {"num_prompts": 3, "demonstrations": [4]}}
KINDS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "label words": (1, True, {"inference": {"output_layer": "fitted"}}),
    "fixed output layer": (1, True, {"inference": {"output_layer": "fixed"}, "steps": 3}),
    "word readout": (1, True, {}),
    "words are not told": (1, True, {}),
    "ensemble": (1, True, {"ensemble": 3, "val_every": 1}),
    "free answers": (1, True, {"answers": "free", "inference": {"output_layer": "fixed"}}),
    "texts": (1, False, {}),
    "rewritten texts": (1, False, {"inference": {"prompt_proposals": {"rewrite": 1}}}),
    "two layers": (2, True, {"batch_size": 6}),
    "two layers of texts": (2, False, {"batch_size": 6}),
}


@cache
def compared(kind: str) -> dict[str, tuple[float, float, float]]:
    """(Used, likely, at most) of a small run by what is counted."""
    depth, labelled, changes = KINDS[kind]
    options = resolve_options("default", merge_options(SMALL, changes))
    pairs = [
        (e.input + " and more" * (i % 9), e.target if labelled else THOUGHTS[i % 20].strip())
        for i, e in enumerate(DATA)
    ]
    data = Dataset.from_pairs(pairs, LABELS if labelled else None)
    train, dev, test = data[:32], data[32:44], data[44:56]
    meter = Meter()
    table = TableLM.random([*(f" {label}" for label in LABELS), *THOUGHTS], seed=3)
    lm = Metered(FakeLM("fake/3", LABELS, 3, 0.0) if kind == "words are not told" else table, meter=meter)
    short = Sampling(max_tokens=8)
    hidden = [LanguageLayer(lm, "think", "Think first:", short)] * (depth - 1)
    if labelled:
        top: Any = ChoiceLayer(lm, "classify" if depth == 1 else "classify_residual", "Which is it?", LABELS)
    else:
        top = LanguageLayer(lm, "answer" if depth == 1 else "answer_residual", "Say it:", short)
    network = Sequential([*hidden, top])
    sizes = {"train_size": len(train), "dev_size": len(dev), "test_size": len(test)}
    likely = estimate(layer_sizes(network, train), options, **sizes).total
    most = estimate(layer_sizes(network, train, most=True), options, **sizes, most=True).total
    result = fit(network, train, dev, options=options, meter=meter)
    fitted = fitted_initial(result.initial, dev, exact_match, options) if labelled else None
    conclude(result.initial, result.network, test, fitted=fitted, meter=meter)
    used = meter.snapshot()
    return {
        n: (getattr(used, n), getattr(likely, n), getattr(most, n)) for n in ("calls", "tokens", "completion_tokens")
    }


QUICK = ("label words", "ensemble", "words are not told", "two layers of texts")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_no_run_uses_more_than_the_upper_bound(kind: str):
    for name, (used, likely, most) in compared(kind).items():
        assert used <= most, name
        assert likely <= most, name


@pytest.mark.parametrize(
    "kinds", [pytest.param(QUICK, id="a few kinds"), pytest.param(tuple(KINDS), id="all kinds", marks=pytest.mark.slow)]
)
def test_the_likely_cost_is_within_a_factor_of_two_in_the_median(kinds: tuple[str, ...]):
    for name in ("calls", "tokens"):
        ratios = [likely / used for used, likely, _ in (compared(kind)[name] for kind in kinds)]
        assert 0.5 <= median(ratios) <= 2, (name, ratios)
        assert all(0.25 <= ratio <= 4 for ratio in ratios), (name, ratios)


def test_no_networks_are_expected_beside_the_best_where_words_are_not_told():
    used, likely, _ = compared("words are not told")["tokens"]
    assert used / 1.5 <= likely <= 1.5 * used


def test_shared_prefixes_are_evaluated_once_and_the_time_of_an_engine_that_does_so_follows_them():
    layers = [LayerSize(50, 20, 1, labels=4, shared=30)]
    options = resolve_options("default", {})
    cost = estimate(layers, options, train_size=100, dev_size=20, test_size=20).total
    assert cost.evaluated < cost.prompt_tokens / 3, "twenty-four demonstrations are read once for many inputs"
    alone = estimate([replace(layers[0], shared=0)], options, train_size=100, dev_size=20, test_size=20).total
    assert alone.prompt_tokens == cost.prompt_tokens
    assert cost.evaluated < alone.evaluated <= alone.prompt_tokens
    assert cost.seconds(Speed(10, 10, shares=True)) < cost.seconds(Speed(10, 10)) / 3


def test_the_prefix_that_contexts_share_is_measured():
    lm = TableLM.random([f" {label}" for label in LABELS], seed=3)
    network = Sequential([ChoiceLayer(lm, "classify", "Is it order or return?", LABELS)])
    (size,) = layer_sizes(network, TRAIN)
    assert lm.count_tokens("Is it order or return?") < size.shared < size.context


def test_more_of_anything_costs_more():
    layers = [LayerSize(50, 20, 10), LayerSize(60, 30, 1, labels=4)]
    options = resolve_options("default", {"steps": 4})
    sizes = {"train_size": 300, "dev_size": 40, "test_size": 60}
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


def test_a_run_records_both_estimates_and_stays_below_the_bound(cli: Shell):
    path = mail_csv(cli.folder / "mail.csv", 36)
    words = ("--csv", path, "--lm", "fake/1/words", "--steps", 1, "--set", "batch_size=4", "--dev-size", 8)
    shown = cli("train", *words, "--dry-run", "--json")
    assert shown.code == 0, shown.err
    (record,) = [record for record in shown.records if record["kind"] == "estimate"]
    assert record["phases"]["total"]["prompt_tokens"] < record["at_most"]["prompt_tokens"]
    assert "at most" in cli("train", *words, "--dry-run").out
    assert cli("train", *words, "--run-dir", "run", "--no-cache").code == 0
    events = [json.loads(line) for line in (cli.folder / "run/events.jsonl").read_text().splitlines()]
    (most,) = [event["estimate"]["at_most"] for event in events if event["kind"] == "started"]
    used = max((event["usage"] for event in events if event.get("usage")), key=lambda usage: usage["prompt_tokens"])
    assert 0 < used["prompt_tokens"] <= most["prompt_tokens"]
    assert used["completion_tokens"] <= most["completion_tokens"]
    assert "estimated maximum" in (cli.folder / "run/report.html").read_text()
