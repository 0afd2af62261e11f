"""Deep Language Networks: train the prompts of multi-stage LLM programs by variational inference.

>>> import dln
>>> dln.Prompt("Answer briefly.").instruction
'Answer briefly.'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dln.data import Dataset, DataSpec, Example, Metric, Score, Task, load_metric, load_task, task_from_file
    from dln.errors import DlnError, InputError
    from dln.infer.calibrate import Calibration, Calibrator, FixedOutput
    from dln.infer.estep import Evidence, WeightTerm
    from dln.infer.hidden import HiddenDraw, HiddenProposal, HiddenRequest
    from dln.infer.memory import Feedback
    from dln.infer.mstep import Penalty, Selector
    from dln.infer.objective import Candidates, ExpectedLogProb, Objective, Scored
    from dln.infer.prompts import PromptProposal, Proposal
    from dln.integrations.sklearn import DLNClassifier
    from dln.lm.base import Capabilities, Completion, LanguageModel, NextTokens, Sampling, Token
    from dln.lm.cache import Cached, Store
    from dln.lm.load import load_lm
    from dln.lm.meter import Budget, Meter, Metered
    from dln.lm.table import TableLM
    from dln.nn import (
        ChoiceLayer,
        Demonstration,
        Ensemble,
        FunctionLayer,
        LabelReadout,
        LanguageLayer,
        Layer,
        Parallel,
        Prediction,
        Prompt,
        Readout,
        Sequential,
        Template,
        WordReadout,
        function_layer,
        load_network,
        load_template,
        save_network,
    )
    from dln.programs.optimize import ProgramResult, load_parameters, optimize
    from dln.programs.trace import Rollout, Stage, Trace
    from dln.random import Key
    from dln.train import (
        Callback,
        Evaluation,
        FitResult,
        History,
        Judge,
        Options,
        Progress,
        Stopper,
        compare,
        deepened,
        evaluate,
        fit,
        resolve_options,
    )
    from dln.train.events import Event, Finished, Started, StepDone, Validated

__all__ = [
    "Budget",
    "Cached",
    "Calibration",
    "Calibrator",
    "Callback",
    "Candidates",
    "Capabilities",
    "ChoiceLayer",
    "Completion",
    "DLNClassifier",
    "DataSpec",
    "Dataset",
    "Demonstration",
    "DlnError",
    "Ensemble",
    "Evaluation",
    "Event",
    "Evidence",
    "Example",
    "ExpectedLogProb",
    "Feedback",
    "Finished",
    "FitResult",
    "FixedOutput",
    "FunctionLayer",
    "HiddenDraw",
    "HiddenProposal",
    "HiddenRequest",
    "History",
    "InputError",
    "Judge",
    "Key",
    "LabelReadout",
    "LanguageLayer",
    "LanguageModel",
    "Layer",
    "Meter",
    "Metered",
    "Metric",
    "NextTokens",
    "Objective",
    "Options",
    "Parallel",
    "Penalty",
    "Prediction",
    "ProgramResult",
    "Progress",
    "Prompt",
    "PromptProposal",
    "Proposal",
    "Readout",
    "Rollout",
    "Sampling",
    "Score",
    "Scored",
    "Selector",
    "Sequential",
    "Stage",
    "Started",
    "StepDone",
    "Stopper",
    "Store",
    "TableLM",
    "Task",
    "Template",
    "Token",
    "Trace",
    "Validated",
    "WeightTerm",
    "WordReadout",
    "__version__",
    "compare",
    "deepened",
    "evaluate",
    "fit",
    "function_layer",
    "load_lm",
    "load_metric",
    "load_network",
    "load_parameters",
    "load_task",
    "load_template",
    "optimize",
    "resolve_options",
    "save_network",
    "task_from_file",
]

__version__ = "0.2.0"

# A name is imported when it is first asked for: `import dln` alone takes milliseconds.
_HOMES = {
    "dln.data": (
        "DataSpec",
        "Dataset",
        "Example",
        "Metric",
        "Score",
        "Task",
        "load_metric",
        "load_task",
        "task_from_file",
    ),
    "dln.errors": ("DlnError", "InputError"),
    "dln.infer.calibrate": ("Calibration", "Calibrator", "FixedOutput"),
    "dln.infer.estep": ("Evidence", "WeightTerm"),
    "dln.infer.hidden": ("HiddenDraw", "HiddenProposal", "HiddenRequest"),
    "dln.infer.memory": ("Feedback",),
    "dln.infer.mstep": ("Penalty", "Selector"),
    "dln.infer.objective": ("Candidates", "ExpectedLogProb", "Objective", "Scored"),
    "dln.infer.prompts": ("PromptProposal", "Proposal"),
    "dln.integrations.sklearn": ("DLNClassifier",),
    "dln.lm.base": ("Capabilities", "Completion", "LanguageModel", "NextTokens", "Sampling", "Token"),
    "dln.lm.cache": ("Cached", "Store"),
    "dln.lm.load": ("load_lm",),
    "dln.lm.meter": ("Budget", "Meter", "Metered"),
    "dln.lm.table": ("TableLM",),
    "dln.nn": (
        "ChoiceLayer",
        "Demonstration",
        "Ensemble",
        "FunctionLayer",
        "LabelReadout",
        "LanguageLayer",
        "Layer",
        "Parallel",
        "Prediction",
        "Prompt",
        "Readout",
        "Sequential",
        "Template",
        "WordReadout",
        "function_layer",
        "load_network",
        "load_template",
        "save_network",
    ),
    "dln.programs.optimize": ("ProgramResult", "load_parameters", "optimize"),
    "dln.programs.trace": ("Rollout", "Stage", "Trace"),
    "dln.random": ("Key",),
    "dln.train.events": ("Event", "Finished", "Started", "StepDone", "Validated"),
    "dln.train": (
        "Callback",
        "Evaluation",
        "FitResult",
        "History",
        "Judge",
        "Options",
        "Progress",
        "Stopper",
        "compare",
        "deepened",
        "evaluate",
        "fit",
        "resolve_options",
    ),
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
