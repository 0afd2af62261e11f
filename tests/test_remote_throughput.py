"""What the client costs per call, against a server in a process of its own that only waits."""

from __future__ import annotations

import pytest

from benchmarks.remote import memory_growth, throughput

BUDGET = 0.05 / 64 / 0.9  # seconds of one processor per call that leave room for 90 % of the ideal rate


def test_processor_time_per_call_is_of_the_order_that_the_ideal_rate_needs() -> None:
    """Processor time, not wall time; a machine shared with others makes even that longer, hence the factor."""
    costs: list[float] = []
    while len(costs) < 3 and min(costs, default=1.0) > 3 * BUDGET:
        found = throughput(600)
        assert found.requests == 600
        assert 0 < found.rate <= found.ideal * 1.05
        assert found.overhead_p50 >= 0
        costs.append(found.cpu)
    assert min(costs) <= 3 * BUDGET


def test_memory_does_not_grow_with_the_number_of_calls() -> None:
    assert memory_growth(1500, seconds=0.001, chunk=250) <= 4 * 2**20


@pytest.mark.slow
def test_rate_overhead_memory_and_replicas_at_full_length() -> None:
    """Needs a machine with nothing else to do."""
    one = throughput(10_000)
    assert one.part >= 0.9
    assert one.cpu <= BUDGET
    assert one.overhead_p95 <= 0.010
    assert memory_growth(50_000) <= 50 * 2**20
    alone, both = (throughput(2500 * n, seconds=0.2, replicas=n) for n in (1, 2))
    assert both.rate >= 1.8 * alone.rate
