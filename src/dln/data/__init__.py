"""Examples, datasets, splits, batches, tasks and metrics."""

from __future__ import annotations

from dln.data.dataset import Dataset, Example, batch_indices
from dln.data.grading import Answer, Grade, Grader, GradeStore
from dln.data.metrics import (
    ExactMatch,
    FunctionMetric,
    Metric,
    NamedMetric,
    NumberPresence,
    Score,
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    exact_match,
    load_metric,
    number_presence,
    scores,
)
from dln.data.registry import bundled_names, load_task, task_from_file, task_names
from dln.data.resolve import ReadReport
from dln.data.set_metrics import SetMetric
from dln.data.spec import DataSpec
from dln.data.splits import split
from dln.data.tasks import Task

__all__ = [
    "Answer",
    "DataSpec",
    "Dataset",
    "ExactMatch",
    "Example",
    "FunctionMetric",
    "Grade",
    "GradeStore",
    "Grader",
    "Metric",
    "NamedMetric",
    "NumberPresence",
    "ReadReport",
    "Score",
    "SetMetric",
    "Task",
    "accuracy",
    "balanced_accuracy",
    "batch_indices",
    "bundled_names",
    "confusion_matrix",
    "exact_match",
    "load_metric",
    "load_task",
    "number_presence",
    "scores",
    "split",
    "task_from_file",
    "task_names",
]
