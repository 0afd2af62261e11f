"""Training: the loop, evaluation, and the run directory."""

from dln.train.evaluate import Evaluation, compare, conclude, evaluate, fitted_initial
from dln.train.fit import FitResult, fit
from dln.train.layout import deepened
from dln.train.options import PRESETS, InferenceOptions, Options, resolve_options
from dln.train.run import Run

__all__ = [
    "PRESETS",
    "Evaluation",
    "FitResult",
    "InferenceOptions",
    "Options",
    "Run",
    "compare",
    "conclude",
    "deepened",
    "evaluate",
    "fit",
    "fitted_initial",
    "resolve_options",
]
