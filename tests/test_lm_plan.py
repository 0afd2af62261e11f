"""The planner against brute force, and packed scoring against plain batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.lm.local.plan import Plan, common_prefix
from dln.lm.local.scoring import why_plain

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=14)


def prefixes(rows) -> set[tuple[int, ...]]:
    return {row[: i + 1] for row in rows for i in range(len(row))}


@given(sequences)
def test_needed_is_the_number_of_distinct_prefixes(rows):
    plan = Plan.of(rows)
    assert plan.size == len(prefixes(rows))
    assert plan.asked == sum(map(len, rows))
    nodes = {}
    for row, path in plan.paths():
        assert list(path) == sorted(path)
        for depth, node in enumerate(path.tolist()):
            assert nodes.setdefault(node, row[: depth + 1]) == row[: depth + 1]
    assert len(nodes) == plan.size


@given(sequences, st.integers(1, 10))
def test_packs_feed_every_prefix_once_and_each_sees_just_its_ancestors(rows, budget):
    """Replays the packs symbolically: what is carried are prefixes instead of keys and values."""
    plan = Plan.of(rows)
    names = {int(node): row[: depth + 1] for row, path in plan.paths() for depth, node in enumerate(path)}
    past: list[tuple[int, ...]] = []
    packed: list[tuple[int, ...]] = []
    fed = 0
    for pack in plan.packs(budget):
        past = [[*past, *packed][i] for i in pack.carry]
        packed = [names[fed + i] for i in range(len(pack.tokens))]
        fed += len(packed)
        assert len(packed) <= budget
        assert len(past) <= max(map(len, rows))
        for i, name in enumerate(packed):
            assert (name[-1], len(name) - 1) == (pack.tokens[i], pack.positions[i])
            seen = [[*past, *packed][j] for j in np.flatnonzero(pack.mask[i])]
            assert sorted(seen, key=len) == [name[: depth + 1] for depth in range(len(name))]
    assert fed == plan.size


@given(st.lists(st.integers(0, 1)).map(tuple), st.lists(st.integers(0, 1)).map(tuple))
def test_common_prefix(a, b):
    expected = next((i for i, (p, q) in enumerate(zip(a, b, strict=False)) if p != q), min(len(a), len(b)))
    assert common_prefix(a, b) == expected


def test_packed_and_plain_scores_agree_and_packing_feeds_less(tiny_lm):
    network = tiny_lm.network
    assert why_plain(network) is None
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "one", "two"]
    stem = " ".join(rng.choice(words, 40))
    contexts = [stem + " " + " ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(30)]
    targets = [" " + " ".join(rng.choice(words, 3)) for _ in contexts]
    before = network.counters.tokens
    packed = tiny_lm.log_prob(contexts, targets)
    fed = network.counters.tokens - before
    network.fallbacks["why_plain"] = "asked for by the test"
    try:
        plain = tiny_lm.log_prob(contexts, targets)
    finally:
        del network.fallbacks["why_plain"]
    assert fed < (network.counters.tokens - before - fed) / 3
    for one, other in zip(packed, plain, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 4096])
def test_the_pack_size_changes_no_score(tiny_lm, batch_tokens):
    contexts = ["one two", "one two three", "one", "red green blue red green blue"]
    expected = tiny_lm.choice_log_probs(contexts, [" red", " red red", " blue"])
    answered = type(tiny_lm)(tiny_lm.name, tiny_lm.checkpoint, tiny_lm.chat, batch_tokens)
    assert answered.choice_log_probs(contexts, [" red", " red red", " blue"]) == pytest.approx(expected, abs=1e-5)
