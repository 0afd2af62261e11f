"""The paper's tasks: the original's splits in leaky mode, disjoint ones by default."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from dln.data import Task, load_task
from dln.data.dataset import text_key
from dln.data.paper import PAPER_TASKS, files_of, read_items
from dln.errors import InputError
from dln.lm.table import TableLM
from dln.train.layout import standard_network

pytestmark = pytest.mark.data
loaded = cache(load_task)

LEAKY_SIZES = {
    "mpqa": (1000, 256, 250),
    "trec": (1000, 256, 250),
    "subj": (1000, 256, 250),
    "disaster": (1000, 250, 250),
    "airline": (1000, 250, 250),
    "hyperbaton": (150, 150, 250),
    "navigate": (375, 375, 250),
    "date_understanding": (59, 119, 250),
    "logical_deduction_seven_objects": (225, 225, 250),
    "gsm8k": (3736, 3737, 1319),
}
CLEAN_SIZES = {**LEAKY_SIZES, "date_understanding": (59, 60, 250)}


def sizes(task: Task) -> tuple[int, int, int]:
    return len(task.train), len(task.dev), len(task.test)


def keys(task: Task) -> list[set[str]]:
    """What an input says, whatever the order of its options and the link in it."""

    def key(text: str) -> str:
        question, _, options = re.sub(r"https?://\S*", " ", text).partition("\nOptions:\n")
        lines = sorted(re.sub(r"^(\(.\)|-) ", "", line) for line in options.split("\n"))
        return text_key("\n".join([question, *lines]))

    return [{key(x) for x in part.inputs} for part in (task.train, task.dev, task.test)]


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_leaky_sizes_are_the_originals(paper_data: Path, name: str) -> None:
    assert sizes(loaded(name, paper_data, leaky=True)) == LEAKY_SIZES[name]


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_by_default_no_text_is_in_two_splits(paper_data: Path, name: str) -> None:
    task = loaded(name, paper_data)
    assert sizes(task) == CLEAN_SIZES[name]
    train, dev, test = keys(task)
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert task.content_hash() == load_task(name, paper_data).content_hash()
    if task.label_names is not None:
        assert set(task.test.targets) == set(task.label_names)
    if name in ("mpqa", "trec", "subj"):
        assert any("dev_subsample" in note for note in task.notes)


@pytest.mark.parametrize("name", ["mpqa", "subj"])
def test_dev_is_the_sources_where_test_has_enough_without_it(paper_data: Path, name: str) -> None:
    ours, theirs = (loaded(name, paper_data, leaky=leaky, options=False).dev for leaky in (False, True))
    assert len(set(ours.inputs) & set(theirs.inputs)) >= len(set(theirs.inputs)) - 3
    assert len(set(ours.inputs)) == len(ours) == 256


def test_mpqa_dev_has_the_class_proportions_of_test_and_not_of_train(paper_data: Path) -> None:
    task = loaded("mpqa", paper_data)
    share = {
        part: getattr(task, part).targets.count("negative") / len(getattr(task, part))
        for part in ("train", "dev", "test")
    }
    assert share["train"] > 0.7
    assert abs(share["dev"] - share["test"]) < 0.07


@pytest.mark.parametrize(("name", "in_dev", "in_train"), [("mpqa", 47, 19), ("trec", 137, 1), ("subj", 24, 0)])
def test_leaky_mode_leaks_as_the_original_does(paper_data: Path, name: str, in_dev: int, in_train: int) -> None:
    task = loaded(name, paper_data, leaky=True)
    train, dev, test = (set(part.inputs) for part in (task.train, task.dev, task.test))
    assert len(test & dev) == in_dev
    assert len(test & train) == in_train


def test_leaky_samples_are_those_of_the_legacy_generator(paper_data: Path) -> None:
    rng = np.random.RandomState(42)
    files = {
        part: [
            json.loads(line)
            for line in (paper_data / f"ordered_prompt/subj/{part}.jsonl").read_text().split("\n")
            if line
        ]
        for part in ("train", "test")
    }
    chosen = {part: rng.choice(len(files[part]), n, replace=False) for part, n in (("train", 1000), ("test", 250))}
    task = loaded("subj", paper_data, leaky=True, options=False)
    for part, dataset in (("train", task.train), ("test", task.test)):
        wanted = [files[part][i] for i in chosen[part]]
        assert list(dataset.inputs) == [record["sentence"] for record in wanted]
        assert list(dataset.targets) == [("subjective", "objective")[int(record["label"])] for record in wanted]


def test_shuffled_options_keep_the_right_answer(paper_data: Path) -> None:
    source = json.loads((paper_data / "bb_minus_bbh/logical_deduction_seven_objects.json").read_text())["examples"]
    task = loaded("logic7", paper_data)

    def answer(text: str, letter: str) -> str:
        return next(line for line in text.split("\n") if line.startswith(letter)).removeprefix(letter)

    def body(text: str) -> tuple[str, tuple[str, ...]]:
        question, _, options = text.partition("\nOptions:\n")
        return question, tuple(sorted(line[4:] for line in options.split("\n")))

    wanted = {body(e["input"]): answer(e["input"], e["target"]) for e in source}
    moved = 0
    originals = {e["input"] for e in source}
    for example in (*task.train, *task.dev):
        assert answer(example.input, example.target) == wanted[body(example.input)]
        moved += example.input not in originals
    assert moved > 400


def test_options_are_listed_on_request(paper_data: Path) -> None:
    assert not any("Options" in x for x in loaded("airline", paper_data).train.inputs)
    listed = loaded("airline", paper_data, options=True).train.inputs
    assert all(x.endswith("\nOptions:\n- positive\n- negative\n- neutral") for x in listed)
    assert "Options" in loaded("airline", paper_data, leaky=True).train[0].input


QUESTIONS = {
    "disaster": "Is the following tweet relevant to a disaster? ",
    "airline": "Is the following tweet positive, negative, or neutral? ",
}


@pytest.mark.parametrize("name", PAPER_TASKS)
def test_leaky_inputs_are_those_of_the_original_loader(paper_data: Path, name: str) -> None:
    """The question, the text of the file, the options: disaster and airline have all three."""
    task, plain = loaded(name, paper_data, leaky=True), loaded(name, paper_data, leaky=True, options=False)
    question = QUESTIONS.get(name, "")
    listed = name in ("mpqa", "trec", "subj", *QUESTIONS)
    options = "\n".join(["", "Options:", *(f"- {label}" for label in task.label_names or ())]) if listed else ""
    texts = set(raw_inputs(paper_data, name))
    for part in ("train", "dev", "test"):
        for whole, bare in zip(getattr(task, part).inputs, getattr(plain, part).inputs, strict=True):
            assert whole == bare + options
            assert bare.startswith(question)
            if name not in ("hyperbaton", "date_understanding", "logical_deduction_seven_objects"):  # options shuffled
                assert bare.removeprefix(question) in texts
    if name in QUESTIONS:
        assert not any(x.startswith(question) for x in loaded(name, paper_data).train.inputs)


def raw_inputs(data: Path, name: str) -> list[str]:
    """Every input of a task's files."""
    return [item.input for path in files_of(name, data).values() for item in read_items(path)]


def test_instructions_are_those_of_the_original(paper_data: Path) -> None:
    """dataset_info.yaml, but for logic7, whose last layer begins with Table 4's wording: its `prefix` there."""
    path = paper_data.parent / "original" / "dataset_info.yaml"
    if not path.is_file():
        pytest.skip(f"the original's dataset_info.yaml is not at {path}")
    original = yaml.safe_load(path.read_text())
    assert set(original) == set(PAPER_TASKS) - {"gsm8k"}
    for name, info in original.items():
        wanted = info["prefix" if name == "logical_deduction_seven_objects" else "instruction"]
        for leaky in (False, True):
            assert loaded(name, paper_data, leaky=leaky).instruction == wanted


def test_hidden_layers_begin_with_the_prompts_of_table_4(paper_data: Path) -> None:
    thinking = "Decompose the problem to make it simpler:"
    wanted = {"navigate": thinking, "subj": thinking, "date": "", "logic7": ""}
    lm = TableLM.random([" a"], 1)
    for name, prompt in wanted.items():
        task = loaded(name, paper_data)
        for depth in (2, 3):
            layers = standard_network(task, lm, depth, preset="paper").layers
            assert [layer.prompt.instruction for layer in layers] == [*[prompt] * (depth - 1), task.instruction]
    # a task without its own in the table has the usual one
    disaster = standard_network(loaded("disaster", paper_data), lm, 2, preset="paper")
    assert disaster.layers[0].prompt.instruction == thinking


def test_labels_verbalizers_and_metrics(paper_data: Path) -> None:
    navigate = loaded("nav", paper_data)
    assert navigate.label_names == ("Yes", "No")
    assert navigate.metric("yes.", "Yes") == 1
    assert loaded("hyperbaton", paper_data).labels == ("(A)", "(B)")
    assert loaded("date", paper_data).metric("Option (C)", "(C)") == 1
    assert loaded("disaster", paper_data).labels == ("no", "yes")


def test_gsm8k_targets_are_numbers_with_the_solution_kept(paper_data: Path) -> None:
    task = loaded("gsm8k", paper_data)
    assert task.labels is None
    for example in (*task.train, *task.dev, *task.test):
        assert task.metric(f"so {example.target}", example.target) == 1
        assert example.rationale
        assert "####" not in example.rationale


def test_synthetic_hyperbaton_has_the_original_sizes_and_says_so(paper_data: Path) -> None:
    task = loaded("hyperbaton", paper_data, synthetic=True)
    assert sizes(task) == (1000, 300, 250)
    assert any("generated" in note for note in task.notes)
    assert task.test.content_hash() == loaded("hyperbaton", paper_data).test.content_hash()
    with pytest.raises(InputError, match="only hyperbaton"):
        loaded("subj", paper_data, synthetic=True)


def test_missing_data_says_which_file_and_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gsm8k").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"gsm8k/{part}.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 4)
    with pytest.raises(InputError) as caught:
        load_task("subj", tmp_path)
    for words in ("ordered_prompt/subj/train.jsonl", "tasks found", "gsm8k"):
        assert words in str(caught.value)
    with pytest.raises(InputError, match="no directory"):
        load_task("subj", tmp_path / "absent")
    monkeypatch.delenv("DLN_PAPER_DATA", raising=False)
    with pytest.raises(InputError, match="not bundled"):
        load_task("subj")
    monkeypatch.setenv("DLN_PAPER_DATA", str(tmp_path))
    assert sizes(load_task("gsm8k")) == (2, 2, 4)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "leopard/disaster").mkdir(parents=True)
    path = tmp_path / "leopard/disaster/disaster_eval.json"
    for content, words in (
        ('[{"sentence1": "a", ', "not valid JSON"),
        ("{}", "does not contain a list"),
        ('[{"sentence1": "a", "label": "Relevant"}, {"sentence1": "b"}]', "item 2"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words) as caught:
            load_task("disaster", tmp_path)
        assert "disaster_eval.json" in str(caught.value)
