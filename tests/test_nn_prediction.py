"""Predictions that are withheld: the threshold against a search over all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dln
from dln.nn import Prediction, abstention_threshold

rows = st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]), st.booleans()), min_size=1, max_size=12)


@given(rows, st.sampled_from([0.5, 0.75, 0.9, 1.0]))
def test_the_threshold_is_the_smallest_with_the_wanted_precision(rows, precision):
    predictions = [Prediction("a", {"a": p, "b": 1 - p}) for p, _ in rows]
    targets = ["a" if hit else "b" for _, hit in rows]

    def enough(threshold):
        given = [hit for p, hit in rows if p >= threshold]
        return sum(given) >= precision * len(given)

    possible = [p for p, _ in rows if enough(p)]
    if not possible:
        with pytest.raises(dln.InputError, match="precision"):
            abstention_threshold(predictions, targets, precision)
        return
    threshold = abstention_threshold(predictions, targets, precision)
    assert threshold == min(possible)
    assert [p.above(threshold) for p in predictions] == ["a" if p >= threshold else None for p, _ in rows]


def test_an_unscored_prediction_is_withheld():
    assert Prediction("", {}).above(0.1) is None
    with pytest.raises(dln.InputError, match="0 predictions"):
        abstention_threshold([], [], 0.9)
