"""Laws of splits and batches: disjoint, stratified within one, exact in size, reproducible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.data import Dataset, batch_indices, split
from dln.data.dataset import text_key
from dln.data.splits import subsample
from dln.errors import InputError
from dln.random import Key

LABELS = ("a", "b", "c", "d", "e")


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """Labelled data with repeated inputs (in other case) here and there."""
    counts = draw(st.lists(st.integers(0, 15), min_size=2, max_size=5).filter(lambda c: sum(c) >= 6))
    pairs = [(f"Text {label} {i}", label) for label, n in zip(LABELS, counts, strict=False) for i in range(n)]
    repeats = draw(st.lists(st.sampled_from(pairs), max_size=5))
    pairs += [(x.upper() + " ", y) for x, y in repeats]
    return Dataset.from_pairs(draw(st.permutations(pairs)), LABELS)


fractions = st.sampled_from([(0.5, 0.25, 0.25), (0.6, 0.2, 0.2), (0.3, 0.3), (0.5, 0.5), (0.2, 0.2, 0.2, 0.2)])


@given(datasets(), fractions, st.integers(0, 5))
@settings(deadline=None)
def test_splits_are_disjoint_stratified_exact_and_reproducible(
    data: Dataset, sizes: tuple[float, ...], seed: int
) -> None:
    parts = split(data, sizes, seed)
    keys = [{text_key(x) for x in part.inputs} for part in parts]
    for i, left in enumerate(keys):
        assert all(not left & right for right in keys[i + 1 :])
    units = {text_key(e.input): e.target for e in data}
    total = len(units)
    for distinct, fraction in zip(keys, sizes, strict=True):
        assert abs(len(distinct) - fraction * total) < 1 + 1e-9
        mine = Counter(units[k] for k in distinct)
        for label, n in Counter(units.values()).items():
            assert abs(mine[label] - n * len(distinct) / total) < 1
    for part, distinct in zip(parts, keys, strict=True):  # repeats come along
        assert len(part) == sum(text_key(x) in distinct for x in data.inputs)
    assert parts == split(data, sizes, seed)


def test_counts_are_exact_and_the_rest_is_left() -> None:
    data = Dataset.from_pairs([(f"x{i}", "ab"[i % 2]) for i in range(100)], ["a", "b"])
    train, dev = split(data, (30, 11), seed=3)
    assert (len(train), len(dev)) == (30, 11)
    assert train.counts() == {"a": 15, "b": 15}
    assert split(data, (30, 11), seed=4)[0] != train


def test_a_class_too_small_for_all_splits_is_in_the_first() -> None:
    pairs = [(f"x{i}", "common") for i in range(60)] + [("y", "rare"), ("z1", "odd"), ("z2", "odd")]
    data = Dataset.from_pairs(pairs, ["common", "rare", "odd"])
    for seed in range(5):
        train, _, _ = split(data, (0.5, 0.25, 0.25), seed)
        assert train.counts()["rare"] == 1
        assert train.counts()["odd"] >= 1


def test_unlabelled_data_is_split_at_random() -> None:
    data = Dataset.from_pairs([(f"x{i}", f"y{i}") for i in range(10)])
    parts = split(data, (0.5, 0.3, 0.2), seed=0)
    assert [len(part) for part in parts] == [5, 3, 2]
    assert {x for part in parts for x in part.inputs} == set(data.inputs)


@pytest.mark.parametrize("sizes", [(8, 3), (0, 1), (0.7, 0.4), (0.001, 0.5), (), (-1, 2), (float("nan"),)])
def test_impossible_splits_are_errors(sizes: tuple[float, ...]) -> None:
    data = Dataset.from_pairs([(f"x{i}", "ab"[i % 2]) for i in range(10)], ["a", "b"])
    with pytest.raises(InputError, match=r"split|too few"):
        split(data, sizes, seed=0)


@given(datasets(), st.integers(1, 80), st.integers(0, 5))
@settings(deadline=None)
def test_a_subsample_has_so_many_distinct_inputs_in_the_proportions_of_the_classes(
    data: Dataset, size: int, seed: int
) -> None:
    units = {text_key(e.input): e.target for e in data}
    drawn = subsample(data, size, seed)
    distinct = {text_key(x) for x in drawn.inputs}
    assert len(distinct) == min(size, len(units))
    assert Counter(drawn) == Counter(e for e in data if text_key(e.input) in distinct)  # repeats come along
    mine = Counter(units[k] for k in distinct)
    for label, n in Counter(units.values()).items():
        assert abs(mine[label] - n * len(distinct) / len(units)) < 1
    assert drawn == subsample(data, size, seed)
    if size >= len(units):
        assert drawn is data


def test_the_same_text_in_another_case_does_not_count_twice() -> None:
    pairs = [(f"text {i}", "ab"[i % 2]) for i in range(6)]
    data = Dataset.from_pairs([*pairs, *((x.upper(), y) for x, y in pairs)], ["a", "b"])
    assert subsample(data, 6, seed=0) is data
    assert subsample(data, 10, seed=0) is data
    assert len(subsample(data, 4, seed=0)) == 8


def test_subsamples_under_other_seeds_differ_and_of_nothing_are_errors() -> None:
    data = Dataset.from_pairs([(f"x{i}", "ab"[i % 2]) for i in range(100)], ["a", "b"])
    assert set(subsample(data, 50, seed=1).inputs) != set(subsample(data, 50, seed=2).inputs)
    free = Dataset.from_pairs([(f"x{i}", f"y{i}") for i in range(10)])
    assert len(subsample(free, 3, seed=0)) == 3
    for size in (0, -1):
        with pytest.raises(InputError, match="≥ 1"):
            subsample(data, size, seed=0)


@given(datasets(), st.data())
@settings(deadline=None)
def test_batches_are_balanced_without_replacement_and_a_function_of_the_key(data: Dataset, draw: st.DataObject) -> None:
    size = draw.draw(st.integers(1, len(data)))
    key = Key(draw.draw(st.integers(0, 10))).child("step", 1, "batch")
    batch = batch_indices(data, size, key)
    assert len(set(batch)) == len(batch) == size
    assert batch == batch_indices(data, size, key)
    available = Counter(data.targets)
    drawn = Counter(data[i].target for i in batch)
    unexhausted = [drawn[label] for label, n in available.items() if drawn[label] < n]
    if unexhausted:  # a class that could still give examples is never behind by more than one
        assert max(drawn.values()) - min(unexhausted) <= 1


def test_the_odd_one_out_is_shared_fairly() -> None:
    data = Dataset.from_pairs([(f"x{i}", "abc"[i % 3]) for i in range(30)], ["a", "b", "c"])
    odd = Counter[str]()
    for step in range(600):
        counts = Counter(data[i].target for i in batch_indices(data, 4, Key(0).child("step", step)))
        odd[counts.most_common(1)[0][0]] += 1
    assert min(odd.values()) > 150


def test_unbalanced_batches_are_uniform_and_every_example_is_drawn() -> None:
    data = Dataset.from_pairs([(f"x{i}", "rare" if i < 2 else "common") for i in range(20)], ["rare", "common"])
    draws = [batch_indices(data, 5, Key(1).child("step", t), balanced=False) for t in range(400)]
    frequency = np.bincount(np.concatenate(draws), minlength=20) / 400
    assert np.all(np.abs(frequency - 0.25) < 0.1)
    assert len(set(draws)) > 300


@pytest.mark.parametrize("size", [0, 5, -1])
def test_a_batch_larger_than_the_data_is_an_error(size: int) -> None:
    data = Dataset.from_pairs([(f"x{i}", "ab"[i % 2]) for i in range(4)], ["a", "b"])
    with pytest.raises(InputError, match="batch"):
        batch_indices(data, size, Key(0))
