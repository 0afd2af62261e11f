"""A metric by name: a built-in one, or a user's function as "package.module:function"."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from dln.data.metrics import ExactMatch, FunctionMetric, Metric, NumberPresence
from dln.errors import InputError

__all__ = ["METRIC_NAMES", "load_metric"]

METRIC_NAMES = ("exact_match", "number_presence")
"""The built-in metrics."""


def load_metric(metric: str | Callable[[str, str], object] | Metric, labels: Sequence[str] | None = None) -> Metric:
    """The metric that is meant.

    Args:
        metric: a name of `METRIC_NAMES`; "package.module:function", also of a module in the working
            directory; a function (prediction, target) -> bool or float from 0 to 1; or a metric.
        labels: label specifications, which make `exact_match` prefer the longest label.

    Raises:
        InputError: no such metric, module or function.
    """
    if not isinstance(metric, str):
        if isinstance(metric, Metric):
            return metric
        return FunctionMetric(metric, getattr(metric, "__name__", type(metric).__name__))
    if metric == "exact_match":
        return ExactMatch(tuple(labels or ()))
    if metric == "number_presence":
        return NumberPresence()
    module_name, colon, function_name = metric.partition(":")
    if not (colon and function_name and all(part.isidentifier() for part in module_name.split("."))):
        raise InputError(
            f"there is no metric {metric!r}",
            where="metric",
            expected=f"one of {', '.join(METRIC_NAMES)}, or package.module:function",
        )
    function = getattr(_module(module_name, metric), function_name, None)
    if not callable(function):
        raise InputError(
            f"the module has no function {function_name!r}",
            where=f"metric {metric}",
            expected="a function (prediction: str, target: str) -> float",
        )
    return FunctionMetric(cast(Callable[[str, str], object], function), metric)


def _module(name: str, metric: str) -> object:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # a console script, unlike `python -m`, does not look in the working directory
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            "the metric's module cannot be imported",
            where=f"metric {metric}",
            got=f"{type(error).__name__}: {error}",
            fix=f"try: python -c 'import {name}' in {here}",
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
