"""The label trie against a direct computation, and the batches that requests are split into."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.lm.base import bucket
from dln.lm.labels import LabelTrie

VOCABULARY = 5
LABEL_SETS = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True
)


def next_token(prefix: tuple[int, ...]) -> np.ndarray:
    """An arbitrary next-token distribution that depends on the whole prefix."""
    seed = int.from_bytes(hashlib.blake2b(repr(prefix).encode(), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).dirichlet(np.ones(VOCABULARY))


def masses_of(labels: list[tuple[int, ...]]) -> np.ndarray:
    trie = LabelTrie.build([str(label) for label in labels], labels)
    log_probs, log_rest = {}, {}
    for prefix, children in trie.children.items():
        p = next_token(prefix)[list(children)]
        log_probs[prefix] = np.log(p)
        with np.errstate(divide="ignore"):
            log_rest[prefix] = float(np.log(max(0.0, 1 - p.sum())))
    return np.exp(trie.log_masses(log_probs, log_rest))


@given(LABEL_SETS)
def test_masses_are_those_of_disjoint_events(labels: list[tuple[int, ...]]) -> None:
    masses = masses_of(labels)
    for label, mass in zip(labels, masses, strict=True):
        expected = np.prod([next_token(label[:t])[token] for t, token in enumerate(label)])
        longer = {other[len(label)] for other in labels if other != label and other[: len(label)] == label}
        if longer:
            expected *= 1 - sum(next_token(label)[token] for token in longer)
        assert mass == pytest.approx(expected, abs=1e-12)
    assert masses.sum() <= 1 + 1e-12


@given(LABEL_SETS)
def test_the_order_of_labels_does_not_matter(labels: list[tuple[int, ...]]) -> None:
    np.testing.assert_allclose(masses_of(labels[::-1])[::-1], masses_of(labels), atol=1e-15)


@given(LABEL_SETS)
def test_paths_cover_the_internal_prefixes_and_nothing_twice(labels: list[tuple[int, ...]]) -> None:
    trie = LabelTrie.build([str(label) for label in labels], labels)
    assert set(trie.children) == {label[:t] for label in labels for t in range(len(label))}
    for prefix in trie.children:
        assert trie.paths[trie.owner(prefix)][: len(prefix)] == prefix
    for i, path in enumerate(trie.paths):
        assert not any(other[: len(path)] == path for j, other in enumerate(trie.paths) if i != j)


def test_one_token_labels_need_only_the_distribution_after_the_context() -> None:
    assert LabelTrie.build(["a", "b", "c"], [(1,), (2,), (3,)]).paths == ((),)


@pytest.mark.parametrize(("labels", "ids"), [([], []), (["a", ""], [(1,), ()]), (["é", "e\u0301"], [(1, 2), (1, 2)])])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str], ids: list[tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="label"):
        LabelTrie.build(labels, ids)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200), st.integers(1, 10))
def test_batches_are_a_partition_within_bounds_longest_first(lengths: list[int], tokens: int, rows: int) -> None:
    batches = bucket(lengths, tokens, rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    order = [lengths[i] for batch in batches for i in batch]
    assert all(a >= b for a, b in pairwise(order))
