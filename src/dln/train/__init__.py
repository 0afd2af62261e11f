"""Training: the loop, evaluation, and the run directory."""

from dln.train.conclude import conclude
from dln.train.evaluate import Evaluation, compare, evaluate
from dln.train.fit import FitResult, fit
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
    "evaluate",
    "fit",
    "resolve_options",
]
