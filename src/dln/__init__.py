"""Deep Language Networks: train the prompts of multi-stage LLM programs by variational inference.

>>> import dln
>>> dln.Prompt("Answer briefly.").instruction
'Answer briefly.'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dln.data import Dataset, Example, Metric, Score, Task, load_metric, load_task, task_from_file
    from dln.errors import DlnError, InputError
    from dln.lm.base import LanguageModel, Sampling
    from dln.lm.cache import Cached, Store
    from dln.lm.load import load_lm
    from dln.lm.meter import Budget, Meter, Metered
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
    "InputError",
    "LanguageLayer",
    "LanguageModel",
    "Meter",
    "Metered",
    "Metric",
    "Options",
    "Prediction",
    "Prompt",
    "Sampling",
    "Score",
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

# A name is imported when it is first asked for: `import dln` alone takes milliseconds.
_HOMES = {
    "dln.data": ("Dataset", "Example", "Metric", "Score", "Task", "load_metric", "load_task", "task_from_file"),
    "dln.errors": ("DlnError", "InputError"),
    "dln.lm.base": ("LanguageModel", "Sampling"),
    "dln.lm.cache": ("Cached", "Store"),
    "dln.lm.load": ("load_lm",),
    "dln.lm.meter": ("Budget", "Meter", "Metered"),
    "dln.lm.table": ("TableLM",),
    "dln.nn": (
        "ChoiceLayer",
        "Demonstration",
        "Ensemble",
        "LanguageLayer",
        "Prediction",
        "Prompt",
        "Sequential",
        "Template",
        "load_network",
        "load_template",
        "save_network",
    ),
    "dln.train": ("Evaluation", "FitResult", "Options", "compare", "deepened", "evaluate", "fit", "resolve_options"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # a type checker sees the imports above, and that there is nothing else

    def __getattr__(name: str) -> Any:
        if name in _HOME_OF:
            globals()[name] = value = getattr(import_module(_HOME_OF[name]), name)
            return value
        from importlib.util import find_spec

        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
