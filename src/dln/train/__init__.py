"""Training: the loop, evaluation, and the run directory."""

from dln.train.callbacks import Callback
from dln.train.evaluate import Evaluation, compare, conclude, evaluate, fitted_initial
from dln.train.fit import fit
from dln.train.judge import Judge
from dln.train.layout import deepened
from dln.train.options import PRESETS, InferenceOptions, Options, Stopper, resolve_options
from dln.train.progress import Progress
from dln.train.result import FitResult, History
from dln.train.run import Run

__all__ = [
    "PRESETS",
    "Callback",
    "Evaluation",
    "FitResult",
    "History",
    "InferenceOptions",
    "Judge",
    "Options",
    "Progress",
    "Run",
    "Stopper",
    "compare",
    "conclude",
    "deepened",
    "evaluate",
    "fit",
    "fitted_initial",
    "resolve_options",
]
