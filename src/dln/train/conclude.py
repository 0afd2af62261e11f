"""The final word: trained against initial network on the test set, with the paired test, as an event."""

from __future__ import annotations

import time
from collections.abc import Callable

from dln.data import Dataset, Metric, exact_match
from dln.lm.metered import Meter
from dln.nn import Sequential
from dln.train.evaluate import compare, evaluate
from dln.train.events import Evaluated

__all__ = ["conclude"]


def conclude(
    before: Sequential | None,
    after: Sequential,
    dataset: Dataset,
    *,
    split: str = "test",
    metric: Metric = exact_match,
    samples: int | None = None,
    meter: Meter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Evaluate `after`, and `before` on the same examples if it is given."""
    started = time.perf_counter()
    old = None if before is None else evaluate(before, dataset, metric=metric, samples=samples, progress=progress)
    new = evaluate(after, dataset, metric=metric, samples=samples, progress=progress)
    test, rows = compare(old, new)
    return Evaluated(
        split=split,
        before=None if old is None else old.to_record(),
        after=new.to_record(),
        fixed=0 if test is None else test.better,
        broken=0 if test is None else test.worse,
        p_value=None if test is None else test.p_value,
        difference=None if test is None else (test.difference.mean, test.difference.low, test.difference.high),
        examples=rows,
        usage={} if meter is None else {k: float(v) for k, v in meter.snapshot().to_dict().items()},
        seconds=time.perf_counter() - started,
    )
