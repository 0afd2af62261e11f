"""Datasets are immutable values; labels have one canonical name each; tasks check themselves."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.data import Dataset, Example, Task, exact_match
from dln.data.dataset import text_key
from dln.data.labels import label_names, label_order, label_specs, spelling_map
from dln.data.tasks import default_instruction
from dln.errors import InputError

PAIRS = [("good", "pos"), ("bad", "neg"), ("fine", "pos"), ("awful", "neg")]
texts = st.text(min_size=1, max_size=20)


def test_a_dataset_is_a_sequence_of_examples() -> None:
    data = Dataset.from_pairs(PAIRS, ["neg", "pos"])
    assert len(data) == 4
    assert data[0] == Example("good", "pos")
    assert data[-1].input == "awful"
    assert [e.target for e in data] == ["pos", "neg", "pos", "neg"]
    assert isinstance(data[1:3], Dataset)
    assert data[1:3].inputs == ("bad", "fine")
    assert data[1:3].labels == ("neg", "pos")
    assert data.labels_of() == (1, 0, 1, 0)
    assert data.counts() == {"neg": 2, "pos": 2}
    assert data.select([3, 0]).inputs == ("awful", "good")


def test_a_dataset_cannot_be_changed() -> None:
    data = Dataset.from_pairs(PAIRS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(data, "labels", ("a",))  # noqa: B010 - a plain assignment is already refused by the type checker
    assert hash(data) == hash(Dataset.from_pairs(PAIRS))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_the_content_hash_depends_on_contents_alone(pairs: list[tuple[str, str]]) -> None:
    data = Dataset.from_pairs(pairs)
    same = Dataset(tuple(Example(x, y, id="elsewhere") for x, y in pairs), name="other", notes=("a note",))
    assert data.content_hash() == same.content_hash()
    assert len(data.content_hash()) == 64
    assert data.content_hash() != Dataset.from_pairs([*pairs, ("one", "more")]).content_hash()
    changed = [(pairs[0][0] + "!", pairs[0][1]), *pairs[1:]]
    assert data.content_hash() != Dataset.from_pairs(changed).content_hash()


def test_a_target_outside_the_labels_is_an_error() -> None:
    with pytest.raises(InputError, match=r"example 2.*not one of the labels"):
        Dataset.from_pairs(PAIRS, ["pos"])


def test_labels_can_be_mapped_and_respelled() -> None:
    data = Dataset.from_pairs([("a", "0"), ("b", "1")])
    assert data.with_labels({"0": "negative", "1": "positive"}).targets == ("negative", "positive")
    shouted = Dataset.from_pairs([("a", "Yes"), ("b", "no")]).with_labels(["yes|Yes", "no"])
    assert shouted.targets == ("yes", "no")
    assert shouted.labels == ("yes", "no")


@pytest.mark.parametrize("specs", [[], ["a", "a"], ["a|b", "b"], ["a|"], ["", "b"], "ab"])
def test_a_bad_label_set_is_an_error(specs: list[str]) -> None:
    with pytest.raises(InputError, match="labels"):
        label_names(specs)


def test_prefixes_of_each_other_are_good_labels() -> None:
    assert label_names(["new", "new york", "new york city"]) == ("new", "new york", "new york city")
    assert spelling_map(["new|NEW", "news"]) == {"new": "new", "NEW": "new", "news": "news"}


def test_several_values_may_be_one_label() -> None:
    assert label_specs({"1": "bad", "2": "bad", "5": "good|great"}) == (
        ("bad", "good|great"),
        {"1": "bad", "2": "bad", "5": "good"},
    )


def test_label_order_is_numeric_where_all_are_numbers() -> None:
    assert label_order(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert label_order(["b", "A", "10"]) == ("10", "A", "b")


@given(texts)
def test_text_key_is_idempotent_and_ignores_case_and_space(text: str) -> None:
    assert text_key(f"  {text}\n") == text_key(text)
    assert text_key("Straße  X") == text_key("STRASSE x")


def test_a_task_refuses_one_class_and_empty_splits() -> None:
    one = Dataset.from_pairs([(f"text {i}", "same") for i in range(20)], ["same"])
    with pytest.raises(InputError, match="at least two classes"):
        Task.from_dataset(one)
    with pytest.raises(InputError, match="at least two classes"):
        Task.from_dataset(one, labels=["same", "other"])
    data = Dataset.from_pairs(PAIRS, ["neg", "pos"])
    with pytest.raises(InputError, match="examples in every split"):
        Task("t", "do it", data.labels, data, data[:0], data, exact_match)
    with pytest.raises(InputError, match="other labels"):
        Task("t", "do it", ("a", "b"), data, data, data, exact_match)


def test_a_task_of_a_dataset_is_divided_and_instructed() -> None:
    data = Dataset.from_pairs([(f"text {i}", "no" if i % 2 else "yes") for i in range(100)], ["no", "yes"])
    task = Task.from_dataset(data, labels=["no|No", "yes|Yes"], input_name="sentence")
    assert len(task.train) + len(task.dev) + len(task.test) == 100
    assert task.labels == ("no|No", "yes|Yes")
    assert task.label_names == ("no", "yes") == task.train.labels
    assert task.instruction == "Read the following sentence, then choose whether it is no or yes."
    assert task.metric("Yes!", "yes") == 1.0
    assert task.content_hash() == Task.from_dataset(data).content_hash()
    assert task.content_hash() != Task.from_dataset(data, seed=1).content_hash()
    for fractions in ((0.0, 0.2), (0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(InputError, match="examples to train on"):
            Task.from_dataset(data, dev_fraction=fractions[0], test_fraction=fractions[1])


def test_the_default_instruction_names_all_labels() -> None:
    assert "a, b or c" in default_instruction(["a", "b", "c"])
    assert "answer" in default_instruction(None)
