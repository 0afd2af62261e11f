"""The search over training options, and the check of headroom."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.cli.tune import answer
from dln.data import load_task
from dln.data.splits import subsample
from dln.errors import InputError
from dln.experiments.encoders import WordVectors
from dln.experiments.headroom import Measured, measure_headroom, spread
from dln.experiments.tuning import PAPER_SPACE, paper_space, read_space, search, size
from dln.lm.table import TableLM
from dln.train.options import merge_options, nested, resolve_options

SPACE = {"memory": [0, 2], "inference.exploration": [0.0, 0.5, 2.0], "tolerance": [None, 1]}
CHANGES = (
    {"steps": 3},
    {"inference": {"num_hidden": 2}},
    {"inference": {"num_hidden": 3, "prompt_proposals": {"rewrite": 2.0}}},
    {"inference": {"prompt_proposals": {"demonstrations": 1.0}}},
    {"tolerance": None, "inference": {}},
)


def test_a_small_space_is_searched_once_each_and_a_stopped_study_goes_on(tmp_path):
    seen = []

    def train(options):
        seen.append(str(options))
        return options["memory"] + options["inference"]["exploration"]

    first = search(train, SPACE, 5, seed=1, journal=tmp_path / "study.log")
    assert len(first) == len(seen) == 5
    found = search(train, SPACE, 50, seed=1, journal=tmp_path / "study.log")
    assert len(found) == len(set(seen)) == len(seen) == size(SPACE) == 12
    assert found[0].score == 4.0
    assert found[0].settings["memory"] == 2
    with pytest.raises(InputError, match="another search space"):
        search(train, {"memory": [1]}, 1, seed=1, journal=tmp_path / "study.log")


def test_an_interrupted_trial_is_not_taken_for_a_result(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(interrupted, SPACE, 3, seed=1, journal=tmp_path / "study.log")
    assert len(search(lambda _: 1.0, SPACE, 12, seed=1, journal=tmp_path / "study.log")) == 12


def test_the_papers_space_holds_possible_options():
    for depth in (1, 2, 5):
        for name, values in paper_space(depth).items():
            for value in values:
                resolve_options("paper", nested({name: value}))
    assert size(PAPER_SPACE[1]) == 2 * 3 * 2 * 2


@given(st.lists(st.sampled_from(CHANGES), max_size=4), st.sampled_from(["default", "paper"]))
@settings(deadline=None)
def test_changes_that_are_merged_first_are_the_changes_one_after_another(changes, preset):
    together = functools.reduce(merge_options, changes, {})
    assert resolve_options(preset, together) == resolve_options(preset, *changes)


def test_merging_changes_neither_side_and_shares_are_one_value():
    base = {"steps": 3, "inference": {"race": True, "prompt_proposals": {"rewrite": 1.0}}}
    change = {"inference": {"prompt_proposals": {"demonstrations": 2.0}}}
    before = copy.deepcopy((base, change))
    merged = merge_options(base, change)
    assert merged == {"steps": 3, "inference": {"race": True, "prompt_proposals": {"demonstrations": 2.0}}}
    assert (base, change) == before


def test_dotted_names_are_nested_without_touching_what_was_given():
    given_settings = {"inference": {"num_hidden": 2}, "inference.prune": 0.0, "memory": 0, "memory.x": 1}
    before = copy.deepcopy(given_settings)
    assert nested(given_settings) == {"inference": {"num_hidden": 2, "prune": 0.0}, "memory": {"x": 1}}
    assert given_settings == before
    shares = {"inference.prompt_proposals.rewrite": 1.0, "inference.prompt_proposals.demonstrations": 2.0}
    assert nested(shares) == {"inference": {"prompt_proposals": {"rewrite": 1.0, "demonstrations": 2.0}}}


def test_a_file_of_the_space_is_checked(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"inference.num_hidden": [2, 3]}))
    assert read_space(path) == {"inference.num_hidden": [2, 3]}
    for text, message in (
        ("[1, 2]", "not a mapping"),
        ("memory: 2", "list of values"),
        ("memori: [1]", "memori"),
        ("inference.num_hidden: [-1]", "num_hidden"),
        (": [", "cannot read the search space"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_space(path)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_noise_alone_is_not_taken_for_a_spread_of_prompts(seed):
    rng = np.random.default_rng(seed)
    right = np.ones(200, dtype=bool)
    rows = [Measured("", right, rng.normal(-1, 1, 200)) for _ in range(8)]
    sigma, noise = spread(rows)
    assert sigma < 3 * noise
    shifted = [Measured("", right, m.per_example + shift) for m, shift in zip(rows, range(8), strict=True)]
    assert spread(shifted)[0] == pytest.approx(np.std(range(8), ddof=1), rel=0.25)


def informed(strength):
    """A model whose answer depends on how the prompt begins, as strongly as asked."""
    task = load_task("questions")
    answers = {e.input: e.target for e in (*task.train, *task.dev)}
    labels = task.label_names or ()

    def conditional(context):
        if not context.endswith("Label:"):
            return {" a thought": 1.0}
        question = context.rpartition("Input: ")[2].split("\n")[0]
        first = context.count("\nLabel: person") > 1  # prompts that show persons twice know better
        weight = strength if first else 0.0
        p = {label: (1 - weight) / len(labels) for label in labels}
        p[answers[question]] += weight
        return {f" {label}": value for label, value in p.items()}

    return task, TableLM(conditional, name="informed")


@pytest.mark.slow
def test_headroom_is_seen_where_prompts_matter_and_not_where_they_do_not():
    task, lm = informed(0.6)
    found = measure_headroom(task, lm, prompts=8, shots=10, draws=0, dev_size=100)
    assert found.pays
    assert found.depth_pays is None
    task, lm = informed(0.0)
    found = measure_headroom(task, lm, prompts=8, shots=10, draws=2, dev_size=100)
    assert not found.pays
    assert found.depth_pays is False


def test_the_baseline_to_beat_is_the_most_accurate_one_and_a_ceiling_is_said():
    task, lm = informed(0.0)
    found = measure_headroom(task, lm, prompts=2, shots=4, dev_size=40, encoder=WordVectors())
    names = [one.name for one in found.baselines]
    assert names[:3] == ["majority class", "TF-IDF + logistic regression", "sentence encoder + logistic regression"]
    assert found.to_beat.accuracy == max(one.accuracy for one in found.baselines)
    assert found.to_beat.name == "TF-IDF + logistic regression"
    assert not found.at_ceiling
    assert f"Training has to beat {found.to_beat.name}" in answer(found)
    for one in found.baselines:
        assert len(one.correct) == len(one.per_example) == 40
        assert one.interval.low <= one.accuracy <= one.interval.high
    sure = replace(found, instruction=Measured("label words, fitted", np.ones(40, dtype=bool), np.zeros(40)))
    assert sure.at_ceiling
    assert "Nothing to gain: label words, fitted is right on 100 %" in answer(sure)


def test_the_majority_class_is_that_of_the_train_examples():
    task, lm = informed(0.0)
    skewed = replace(
        task, train=task.train.select([i for i, e in enumerate(task.train) if e.target != "time" or i % 9])
    )
    common = [i for i, e in enumerate(skewed.train) if e.target == "person"]
    skewed = replace(skewed, train=skewed.train.select([*range(len(skewed.train)), *common]))
    found = measure_headroom(skewed, lm, prompts=2, shots=4, dev_size=40).majority
    scored = subsample(task.dev, 40, 13)
    assert found.accuracy == sum(target == "person" for target in scored.targets) / 40
    counts = skewed.train.counts()
    shares = [counts[target] / len(skewed.train) for target in scored.targets]
    assert found.log_likelihood == pytest.approx(np.log(shares).mean())
