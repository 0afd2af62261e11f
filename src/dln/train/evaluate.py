"""Evaluation with an interval and, against another network, a paired test on the same examples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dln.arguments import Count, Seed, checked
from dln.data import Dataset, Example, FunctionMetric, Metric, NamedMetric, Score, exact_match, load_metric
from dln.errors import InputError
from dln.nn import Prediction
from dln.nn.ensemble import AnyNetwork
from dln.train.records import ComparedRecord, ResultRecord
from dln.train.statistics import Interval, Paired, interval, paired

__all__ = ["Evaluation", "compare", "evaluate", "graded", "judge"]


@dataclass(frozen=True)
class Evaluation:
    """What a network did on a dataset.

    Attributes:
        examples: the dataset's examples.
        predictions: one each.
        scores: metric of each prediction, 0 to 1; an example that could not be scored counts 0.
        labels: label names, None for free text.
        feedback: what a metric that returns `Score` said of each prediction; empty texts from other metrics.
    """

    examples: tuple[Example, ...]
    predictions: tuple[Prediction, ...]
    scores: tuple[float, ...]
    labels: tuple[str, ...] | None
    feedback: tuple[str, ...] = ()

    @cached_property
    def accuracy(self) -> Interval:
        """Mean metric with its 95 % interval."""
        return interval(self.scores)

    @property
    def unscored(self) -> int:
        """Examples without any finite score; they count as wrong."""
        return sum(not prediction.scored for prediction in self.predictions) if self.labels else 0

    @property
    def log_likelihood(self) -> float | None:
        """Mean log p(y|x) over the scored examples, in nats; None for free text or where p(y|x) = 0."""
        if self.labels is None:
            return None
        p = [pr.probabilities[e.target] for pr, e in zip(self.predictions, self.examples, strict=True) if pr.scored]
        return float(np.mean(np.log(p))) if p and min(p) > 0 else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the per-class accuracies; None for free text."""
        rows = [row for row in self.per_class.values() if row["n"]]
        return float(np.mean([row["correct"] / row["n"] for row in rows])) if rows else None

    @property
    def per_class(self) -> dict[str, dict[str, int]]:
        """Per label: examples, right ones, and how often it was predicted."""
        confusion = self.confusion
        return {
            label: {
                "n": sum(confusion[label].values()),
                "correct": confusion[label].get(label, 0),
                "predicted": sum(row.get(label, 0) for row in confusion.values()),
            }
            for label in self.labels or ()
        }

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """confusion[target][prediction]: counts; a prediction that is no label, or none at all, is ""."""
        table: dict[str, dict[str, int]] = {label: {} for label in self.labels or ()}
        if table:
            for example, prediction in zip(self.examples, self.predictions, strict=True):
                row = table[example.target]
                said = prediction.label if prediction.label in table else ""
                row[said] = row.get(said, 0) + 1
        return table

    def to_record(self) -> ResultRecord:
        """The numbers, for events and files."""
        masses = [p.label_mass for p in self.predictions if p.label_mass is not None]
        return ResultRecord(
            n=len(self.examples),
            accuracy=self.accuracy.mean,
            low=self.accuracy.low,
            high=self.accuracy.high,
            balanced_accuracy=self.balanced_accuracy,
            log_likelihood=self.log_likelihood,
            label_mass=float(np.mean(masses)) if masses else None,
            per_class=self.per_class,
            confusion=self.confusion,
            unscored=self.unscored,
        )

    def __str__(self) -> str:
        return f"accuracy {self.accuracy}  n={len(self.examples)}"


@checked
def evaluate(
    network: AnyNetwork,
    dataset: Dataset,
    *,
    metric: Metric | str = exact_match,
    samples: Count | None = None,
    seed: Seed = 0,
    progress: Callable[[int, int], object] | None = None,
    chunk: Count = 64,
) -> Evaluation:
    """Predict every example and score it.

    Args:
        network: what to evaluate: one network, or several that answer together.
        dataset: labelled examples; of a network with labels, the targets are those labels.
        metric: a name ("exact_match", "package.module:function") or a callable (prediction, target) -> float, bool
            or `dln.Score`, from 0 to 1. Networks with labels are right when the label is equal, unless another
            metric than `exact_match` is given.
        samples: average over this many hidden draws instead of the greedy hidden text.
        seed: of those draws.
        progress: called with (done, total) after each chunk.
        chunk: examples per request to the network.

    Raises:
        InputError: the dataset is empty, or a target is not among the network's labels.
    """
    if not len(dataset):
        raise InputError(
            "there is nothing to evaluate on",
            where=f"dataset {dataset.name}",
            got="no examples",
            expected="one example or more",
            fix='dln.Dataset.from_pairs([("an input", "its target"), …])',
        )
    score = graded(metric, network.labels)
    if network.labels is not None:
        unknown = sorted(set(dataset.targets) - set(network.labels))
        if unknown:
            raise InputError(
                "the data has targets that the network does not know",
                where=dataset.name,
                got=unknown[:10],
                expected=list(network.labels),
                fix="name the labels the same, or map them",
            )
    predictions: list[Prediction] = []
    for start in range(0, len(dataset), chunk):
        inputs = list(dataset.inputs[start : start + chunk])
        predictions.extend(network.predict_many(inputs, samples=samples, seed=seed))
        if progress is not None:
            progress(len(predictions), len(dataset))
    scores = tuple(score(p.label, e.target) for p, e in zip(predictions, dataset, strict=True))
    values, feedback = tuple(s.value for s in scores), tuple(s.feedback for s in scores)
    return Evaluation(tuple(dataset), tuple(predictions), values, network.labels, feedback)


def judge(metric: Metric | str, labels: Sequence[str] | None) -> NamedMetric:
    """How a prediction is scored: closed label sets by equality, anything else by the metric."""
    if labels is not None and (metric is exact_match or (isinstance(metric, str) and metric == exact_match.name)):
        return FunctionMetric(operator.eq, exact_match.name)
    return load_metric(metric)


def graded(metric: Metric | str, labels: Sequence[str] | None) -> Callable[[str, str], Score]:
    """`judge` with the feedback that the metric gives."""
    scored = judge(metric, labels)
    if isinstance(scored, FunctionMetric):
        return scored.score
    return lambda prediction, target: Score(scored(prediction, target))


@checked
def compare(before: Evaluation | None, after: Evaluation) -> tuple[Paired | None, list[ComparedRecord]]:
    """The paired test of two evaluations of the same dataset, and all examples side by side.

    Raises:
        InputError: the two are of different examples.
    """
    if before is not None and [(e.input, e.target) for e in before.examples] != [
        (e.input, e.target) for e in after.examples
    ]:
        raise InputError(
            "evaluations of different examples cannot be compared",
            where="compare, arguments 'before' and 'after'",
            got=f"{len(before.examples)} and {len(after.examples)} examples, not the same ones",
            expected="two evaluations of one dataset",
            fix="dln.evaluate both networks on the same dataset",
        )
    rows: list[ComparedRecord] = []
    for i, (example, prediction, score) in enumerate(zip(after.examples, after.predictions, after.scores, strict=True)):
        rows.append(
            ComparedRecord(
                x=example.input,
                y=example.target,
                before=before.predictions[i].label if before else None,
                after=prediction.label,
                before_correct=before.scores[i] >= 0.5 if before else None,
                after_correct=score >= 0.5,
                hidden=list(prediction.hidden[0]) if prediction.hidden else [],
                probability=prediction.probabilities.get(prediction.label),
            )
        )
    return (paired(before.scores, after.scores) if before else None), rows
