"""The final word: trained against initial network on the test set, with the paired test, as an event."""

from __future__ import annotations

import time
from collections.abc import Callable

from dln.arguments import Count, checked
from dln.data import Dataset, Metric, exact_match
from dln.lm.metered import Meter
from dln.nn import Sequential
from dln.nn.choice import ChoiceLayer
from dln.nn.ensemble import AnyNetwork, members_of
from dln.train.assemble import calibrator
from dln.train.evaluate import compare, evaluate
from dln.train.events import Evaluated
from dln.train.options import Options
from dln.train.statistics import paired
from dln.train.validate import validate

__all__ = ["conclude", "fitted_initial"]


@checked
def conclude(
    before: AnyNetwork | None,
    after: AnyNetwork,
    dataset: Dataset,
    *,
    fitted: AnyNetwork | None = None,
    split: str = "test",
    metric: Metric | str = exact_match,
    samples: Count | None = None,
    meter: Meter | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluated:
    """Evaluate `after`, and `before` and `fitted` on the same examples if they are given.

    `fitted` is the initial network with its output layer fitted (see `fitted_initial`): the difference
    between `before` and `fitted` is what bias and temperature give, the rest is what the prompts give.
    """
    started = time.perf_counter()
    old = None if before is None else evaluate(before, dataset, metric=metric, samples=samples, progress=progress)
    new = evaluate(after, dataset, metric=metric, samples=samples, progress=progress)
    middle = None if fitted is None else evaluate(fitted, dataset, metric=metric, samples=samples, progress=progress)
    test, rows = compare(old, new)
    against = None if middle is None else paired(middle.scores, new.scores)
    return Evaluated(
        split=split,
        members=len(members_of(after)),
        before=None if old is None else old.to_record(),
        after=new.to_record(),
        fixed=0 if test is None else test.better,
        broken=0 if test is None else test.worse,
        p_value=None if test is None else test.p_value,
        difference=None if test is None else (test.difference.mean, test.difference.low, test.difference.high),
        examples=rows,
        fitted=None if middle is None else middle.to_record(),
        fitted_p_value=None if against is None else against.p_value,
        usage={} if meter is None else {k: float(v) for k, v in meter.snapshot().to_dict().items()},
        seconds=time.perf_counter() - started,
    )


@checked
def fitted_initial(
    initial: Sequential, dev: Dataset | None, metric: Metric | str, options: Options
) -> Sequential | None:
    """The initial network with its output layer fitted on the dev set, or None where nothing is fitted."""
    if dev is None or options.inference.output_layer == "fixed" or not isinstance(initial.layers[-1], ChoiceLayer):
        return None
    return validate(initial, dev, metric, calibrator(options.inference)).network
