"""The ablation: variants of a preset, judged on half of the dev set and on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cli_fake_engine
from cli_shell import Shell
from dln.data import Dataset, load_task
from dln.errors import InputError
from dln.experiments.cells import Bench, CellResult, Cells, Spent
from dln.experiments.method import DevelopmentProtocol, Setup
from dln.experiments.methods import BASE, builtin_variants, read_variants, variants, with_base
from dln.experiments.summary import summarize
from dln.experiments.tables import ablation_markdown, frontier
from dln.lm.meter import Metered
from dln.nn import ChoiceLayer, Sequential
from dln.train import resolve_options

SMALL = DevelopmentProtocol(
    train_size=40, dev_size=30, test_size=25, options={"steps": 1, "inference": {"num_prompts": 2}}
)
WORDS = ["bench", "ablation", "--lm", "fake/1", "--tasks", "questions", "--seeds", "1,2", "--train-size", 40]
WORDS += ["--judge-size", 20, "--dev-size", 20, "--set", "steps=1", "--set", "inference.num_prompts=2"]


@pytest.fixture(scope="module")
def task():
    return load_task("questions")


@pytest.fixture
def fake():
    return cli_fake_engine.load("1", "fake/1", {})


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, tmp_path, capsys)


def quiet(*_: object) -> None:
    return None


def cell(method, likelihood, tokens, seed=1, task="a", right=2):
    return CellResult(
        task=task,
        method=method,
        seed=seed,
        correct=[i < right for i in range(4)],
        accuracy=right / 4,
        balanced_accuracy=None,
        log_likelihood=likelihood,
        log_probs=None if likelihood is None else [likelihood] * 4,
        tested=["p", "q", "r", "s"],
        unscored=0,
        train=Spent(prompt_tokens=tokens),
        test=Spent(),
    )


@given(seed=st.integers(0, 10**6))
def test_the_halves_are_disjoint_and_of_the_dev_set_alone(task, seed):
    seen = replace(SMALL, dev_size=10**6, test_size=10**6).examples(task, seed)
    selects, judges = set(seen.dev.inputs), set(seen.test.inputs)
    assert not selects & judges
    assert selects | judges == set(task.dev.inputs)
    assert abs(len(selects) - len(judges)) <= 1
    assert not (selects | judges) & set(task.test.inputs)
    assert set(seen.train.inputs) <= set(task.train.inputs)
    for label, count in seen.test.counts().items():
        assert abs(count - task.dev.counts()[label] / 2) <= 1


def test_no_test_example_reaches_the_model_or_a_method(fake, task, tmp_path):
    marked = Dataset.from_pairs([(f"TEST ONLY {e.input}", e.target) for e in task.test], labels=task.labels)
    poisoned = replace(task, test=replace(task.test, examples=marked.examples))
    asked: list[str] = []

    class Listening(Metered):
        def choice_log_probs(self, contexts, labels):
            asked.extend(contexts)
            return super().choice_log_probs(contexts, labels)

        def sample(self, contexts, sampling, seeds):
            asked.extend(contexts)
            return super().sample(contexts, sampling, seeds)

        def next_token_log_probs(self, contexts, tokens=(), top=0):
            asked.extend(contexts)
            return super().next_token_log_probs(contexts, tokens, top)

    methods, _ = with_base(variants("k6,untrained"), SMALL.options, poisoned)
    cells = Cells(tmp_path, SMALL.record("fake/1"))
    results = Bench(Listening(fake), [poisoned], methods, [1], SMALL, cells).run(quiet)
    assert [r.method for r in results] == [BASE, "k6", "untrained"]
    assert asked
    assert not [context for context in asked if "TEST ONLY" in context]
    assert len(results[0].correct) == 25


def test_a_dev_set_that_cannot_be_halved_is_refused(task):
    with pytest.raises(InputError, match="too small"):
        SMALL.examples(replace(task, dev=task.dev.select(range(3))), 1)


def test_every_builtin_variant_is_possible_and_both_sides_of_each_choice_are_there(task):
    known = builtin_variants()
    names = [variant.name for variant in known]
    assert len(set(names)) == len(names)
    by_name = {variant.name: variant for variant in known}
    for options in (
        *("k6", "k12", "k24", "k48", "line", "inline", "output-fitted", "output-fixed", "race", "no-race"),
        *("output-words", "memory-0", "memory-2", "batch-10", "batch-20", "batch-40", "best", "margin", "rewrite-only"),
        *("demonstrations-only", "rewrite-demonstrations", "evidence-0", "evidence-100", "ensemble-1", "ensemble-5"),
    ):
        assert options in by_name
    assert dict(by_name["k48"].changes) == {"inference": {"demonstrations": [48]}}
    for variant in known:
        resolve_options("default", dict(variant.changes))
        assert variant.about
    # of each choice one side is what the base does: it is named there and not measured twice
    methods, same = with_base(known, {}, task)
    assert methods[0].name == BASE
    assert {"race", "best", "line", "output-words"} <= set(same)
    assert not set(same) & {method.name for method in methods}
    assert all(name in methods[0].about for name in same)


def test_a_change_of_the_base_changes_which_variant_does_the_same(task):
    _, same = with_base(variants("k6,k24"), {"inference": {"demonstrations": [24]}}, task)
    assert same == ["k24"]
    methods, same = with_base(variants("race,no-race"), {"inference": {"race": False}}, task)
    assert same == ["no-race"]
    assert [m.name for m in methods] == [BASE, "race"]


def test_a_file_of_variants_has_options_templates_and_depth(tmp_path, fake, task):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "one: {template: classify_inline, inference.demonstrations: [3]}\n"
        "two: {depth: 2, inference: {num_hidden: 2}}\n",
        encoding="utf-8",
    )
    one, two = variants(str(path))
    assert (one.template, dict(one.changes)) == ("classify_inline", {"inference": {"demonstrations": [3]}})
    assert two.depth == 2
    assert "inference.demonstrations = [3]" in one.about
    seen = SMALL.examples(task, 1)
    learnt = one(Setup(seen, Metered(fake), 1, options=SMALL.options, workspace=tmp_path))
    assert isinstance(learnt.predictor, Sequential)
    last = learnt.predictor.layers[-1]
    assert isinstance(last, ChoiceLayer)
    assert last.template.name == "classify_inline"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "not a mapping"),
        ("", "not a mapping"),
        ("a: {b", "not YAML"),
        ("base: {steps: 3}", "not a name"),
        ("a/b: {steps: 3}", "not a name"),
        ("1: {steps: 3}", "not a name"),
        ("a: 3", "must change something"),
        ("a: {}", "must change something"),
        ("a: {stepps: 3}", "stepps"),
        ("a: {inference: {demonstrations: [-1]}}", "demonstrations.0"),
        ("a: {template: clasify}", "clasify"),
        ("a: {template: 3}", "template"),
        ("a: {template: backward}", "another kind"),
        ("a: {depth: 0}", "depth"),
        ("a: {preset: paper}", "--preset"),
    ],
)
def test_what_is_wrong_with_a_file_of_variants_is_named(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_variants(path)
    assert says in str(refused.value)
    assert "mine.yaml" in str(refused.value)


def test_unknown_names_and_files_are_named():
    with pytest.raises(InputError, match="did you mean 'k24'"):
        variants("k25")
    with pytest.raises(InputError, match="cannot read the variants"):
        variants("none.yaml")
    with pytest.raises(InputError, match="no variant"):
        variants(",")


@given(st.lists(st.tuples(st.integers(-20, 0), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_frontier_is_what_nothing_else_beats_at_its_price(pairs):
    cells = [cell(f"v{i}", float(value), 100 * tokens) for i, (value, tokens) in enumerate(pairs)]
    best = frontier(summarize(cells, ()))
    for i, (value, tokens) in enumerate(pairs):
        beaten = any(v >= value and t <= tokens and (v, t) != (value, tokens) for v, t in pairs)
        assert (f"v{i}" in best) == (not beaten)
    assert best


def test_the_table_has_differences_costs_and_a_verdict():
    cells = []
    for seed in (1, 2):
        for name in ("a", "b"):
            cells += [cell(BASE, -1.0, 100, seed, name), cell("good", -0.5, 50, seed, name, right=3)]
            cells += [cell("bad", -2.0, 200, seed, name), cell("same", -1.0, 100, seed, name)]
    pairs = [(BASE, name) for name in ("good", "bad", "same")]
    text = ablation_markdown(summarize(cells, pairs), {"good": "steps = 3"})
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")] for line in text.splitlines() if "|" in line
    }
    assert lines["good \\*"][2].startswith("75.0")
    assert "| 50 | 0.50 |" in text
    assert "| 200 | 2.00 |" in text
    assert "+0.500 [+0.500, +0.500]" in text
    assert "Significantly better than *base*: good. Significantly worse: bad." in text
    assert "By task." in text


@pytest.mark.slow
def test_the_command_makes_cells_once_and_writes_its_files(cli: Shell):
    first = cli(*WORDS, "--variants", "k6,race,memory-0", "--json")
    assert first.code == 0, first.err
    begin, *cells, table = first.records
    assert begin == {"kind": "begin", "cells": 6, "known": 0, "missing": 6, "seconds_left": None}
    assert [c["method"] for c in cells] == [BASE, "k6", "memory-0"] * 2
    assert all(c["log_likelihood"] < 0 for c in cells)
    assert {row["method"] for row in table["rows"]} == {BASE, "k6", "memory-0"}
    names = {path.name for path in (cli.folder / "ablation").iterdir()}
    assert {"table.md", "table.csv", "table.json", "accuracy.svg", "cells"} <= names
    again = cli(*WORDS, "--variants", "k6,race,memory-0,batch-10", "--json")
    assert again.records[0]["known"] == 6
    assert [r for r in again.records if r["kind"] == "cell"][:3] == cells[:3]
    shown = (cli.folder / "ablation" / "table.md").read_text()
    assert "| batch-10" in shown
    assert "the same as race" in shown
    assert "half of the dev set is for selection" in shown
    document = json.loads((cli.folder / "ablation" / "table.json").read_text())
    assert {c["after"] for c in document["comparisons"]} == {"k6", "memory-0", "batch-10"}
    assert np.isfinite([c["log_likelihood"]["mean"] for c in document["comparisons"]]).all()


def test_a_variant_of_another_meaning_is_not_taken_for_the_old_one(cli: Shell):
    path = cli.folder / "mine.yaml"
    path.write_text("mine: {memory: 0}", encoding="utf-8")
    assert cli(*WORDS, "--variants", "mine.yaml").code == 0
    path.write_text("mine: {memory: 1}", encoding="utf-8")
    done = cli(*WORDS, "--variants", "mine.yaml")
    assert done.code == 2
    assert "settings of mine have changed" in done.err
    assert "options.memory" in done.err
