"""Training: the loop, evaluation, and the run directory."""

from dln.train.conclude import conclude, fitted_initial
from dln.train.deepen import deepened
from dln.train.evaluate import Evaluation, compare, evaluate
from dln.train.fit import fit
from dln.train.options import PRESETS, InferenceOptions, Options, resolve_options
from dln.train.result import FitResult
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
