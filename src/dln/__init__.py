"""Deep Language Networks: train the prompts of multi-stage LLM programs by variational inference.

>>> import dln
>>> dln.Prompt("Answer briefly.").instruction
'Answer briefly.'
"""

from dln.data import Dataset, Example, Metric, Task, load_metric, load_task, task_from_file
from dln.errors import DlnError
from dln.lm.base import LanguageModel, Sampling
from dln.lm.cached import Cached
from dln.lm.load import load_lm
from dln.lm.metered import Budget, Meter, Metered
from dln.lm.store import Store
from dln.lm.table import TableLM
from dln.nn import (
    ChoiceLayer,
    Demonstration,
    Ensemble,
    LanguageLayer,
    Prediction,
    Prompt,
    Sequential,
    Template,
    load_network,
    load_template,
    save_network,
)
from dln.train import Evaluation, FitResult, Options, compare, deepened, evaluate, fit, resolve_options

__all__ = [
    "Budget",
    "Cached",
    "ChoiceLayer",
    "Dataset",
    "Demonstration",
    "DlnError",
    "Ensemble",
    "Evaluation",
    "Example",
    "FitResult",
    "LanguageLayer",
    "LanguageModel",
    "Meter",
    "Metered",
    "Metric",
    "Options",
    "Prediction",
    "Prompt",
    "Sampling",
    "Sequential",
    "Store",
    "TableLM",
    "Task",
    "Template",
    "__version__",
    "compare",
    "deepened",
    "evaluate",
    "fit",
    "load_lm",
    "load_metric",
    "load_network",
    "load_task",
    "load_template",
    "resolve_options",
    "save_network",
    "task_from_file",
]

__version__ = "0.1.0"
