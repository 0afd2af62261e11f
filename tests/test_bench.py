"""The benchmark measures what it says."""

from __future__ import annotations

import pytest

from dln.bench.scoring import measure_scoring

pytestmark = pytest.mark.model


def test_both_ways_agree_and_no_prefix_is_evaluated_twice(smollm2):
    result = measure_scoring(smollm2, prompts=2, batch=3)
    assert result.tokens_needed <= result.tokens_evaluated < result.tokens_asked
    assert result.planner_efficiency > 0.95
    assert result.largest_difference < 1e-3
