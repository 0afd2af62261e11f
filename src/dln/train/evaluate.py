"""Evaluation: a network's scores on a dataset, with intervals and paired tests.

`evaluate` measures a network, `compare` two of them on the same examples, `validate` the dev score that training
selects by, together with the final fit of the output layer. `conclude` measures the trained network against the initial
one on the test set, for the report. All intervals are at 95 %.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dln.arguments import Count, Seed, checked
from dln.data import (
    Answer,
    Dataset,
    Example,
    FunctionMetric,
    Grader,
    GradeStore,
    Metric,
    NamedMetric,
    SetMetric,
    exact_match,
    load_metric,
)
from dln.errors import InputError
from dln.infer.calibrate import Calibrator, Preparing
from dln.infer.rewards import Outcome, Reward
from dln.lm.meter import Meter
from dln.nn import ChoiceLayer, LayerInput, Prediction, Sequential
from dln.nn.ensemble import AnyNetwork, members_of
from dln.nn.prediction import text_prediction
from dln.nn.sequential import forward
from dln.numerics import Floats, normal_quantile, sign_test, student_quantile
from dln.random import Key
from dln.train.build import calibrator
from dln.train.events import BaselineRecord, ComparedRecord, Evaluated, ResultRecord
from dln.train.options import Options
from dln.train.result import html_table

__all__ = [
    "Evaluation",
    "Interval",
    "Paired",
    "Validation",
    "compare",
    "conclude",
    "evaluate",
    "evaluation_of",
    "fitted_initial",
    "grader",
    "interval",
    "judge",
    "over_runs",
    "paired",
    "run_grader",
    "validate",
]

_PROBLEMS = 5
"""Reasons that a record names."""

_DECIMALS = 9
"""Digits of a difference of scores that count; the rest is rounding."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}  95% CI [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Paired:
    """Two networks on the same examples.

    Attributes:
        difference: mean of after − before, with its 95 % interval.
        p_value: two-sided; exact McNemar for right/wrong outcomes, Wilcoxon's signed ranks for graded ones.
        better: examples on which `after` scores higher.
        worse: examples on which it scores lower.
        test: name of the test.
    """

    difference: Interval
    p_value: float
    better: int
    worse: int
    test: str


@checked
def interval(scores: Sequence[float]) -> Interval:
    """Mean of per-example scores in [0, 1]: Wilson's interval for 0/1 scores, Student's for graded ones.

    Raises:
        InputError: no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise InputError("an interval needs one score or more")
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        k, z = int(values.sum()), normal_quantile(0.975)
        p, width = k / n, 2 * (n + z**2)
        center, half = (2 * n * p + z**2) / width, z / width * float(np.sqrt(4 * n * p * (1 - p) + z**2))
        return Interval(mean, 0.0 if k == 0 else center - half, 1.0 if k == n else center + half)
    half = _student(values)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


@checked
def over_runs(values: Sequence[float]) -> Interval:
    """Mean of one number per run, with Student's 95 % interval of what another run gives; NaN bounds for one run.

    Unlike `interval`, the values may lie anywhere, and 0 and 1 are numbers like others.

    Raises:
        InputError: no values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise InputError("a mean over runs needs one run or more")
    half = _student(numbers) if len(numbers) > 1 else float("nan")
    mean = float(numbers.mean())
    return Interval(mean, mean - half, mean + half)


@checked
def paired(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Compare per-example scores of two networks on the same examples.

    For right/wrong outcomes the interval of the difference is Agresti and Min's (half a count added to
    each cell of the 2 × 2 table before the Wald formula).

    Raises:
        InputError: the two differ in length, or are empty.
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    n = len(a)
    if n == 0 or len(b) != n:
        raise InputError("a paired test needs the same examples for both", got=f"{n} and {len(b)} scores")
    # averages over seeds that are equal differ by rounding, and ranks must see the ties
    difference = (b - a).round(_DECIMALS)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    mean = float(difference.mean())
    if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        p = sign_test(better, worse)
        gained, lost, total = better + 0.5, worse + 0.5, n + 2.0
        centre = (gained - lost) / total
        half = 1.959964 * np.sqrt((gained + lost) - (gained - lost) ** 2 / total) / total
        bounds = Interval(mean, max(-1.0, float(centre - half)), min(1.0, float(centre + half)))
        return Paired(bounds, p, better, worse, "exact McNemar")
    from scipy import stats  # takes a second or two: not before a number is wanted

    p = float(cast(Any, stats).wilcoxon(difference).pvalue) if better + worse else 1.0
    half = _student(difference)
    return Paired(Interval(mean, mean - half, mean + half), p, better, worse, "Wilcoxon signed rank")


def _student(values: Any) -> float:
    n = len(values)
    if n < 2:
        return 1.0
    return float(student_quantile(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


@dataclass(frozen=True)
class Evaluation:
    """What a network did on a dataset.

    Attributes:
        examples: the dataset's examples.
        predictions: one each.
        scores: metric of each prediction, 0 to 1; an example that the network could not score counts 0. NaN where the
            metric gave no value: it failed, took too long, or returned a NaN.
        labels: label names, None for free text.
        feedback: what a metric that returns `Score` said of each prediction; empty texts from other metrics.
        problems: why the metric gave no value; empty texts where it gave one.
        metric: the metric's name.
        overall: of a metric of all predictions together (macro_f1, …), its value with its bootstrap interval.
    """

    examples: tuple[Example, ...]
    predictions: tuple[Prediction, ...]
    scores: tuple[float, ...]
    labels: tuple[str, ...] | None
    feedback: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    metric: str = exact_match.name
    overall: Interval | None = None

    @property
    def value(self) -> float:
        """What selection looks at: the metric of all predictions together, or the mean metric."""
        return self.accuracy.mean if self.overall is None else self.overall.mean

    @cached_property
    def accuracy(self) -> Interval:
        """Mean metric over the examples for which there is a value, with its 95 % interval."""
        return interval([score for score in self.scores if np.isfinite(score)])

    @property
    def excluded(self) -> int:
        """Examples for which the metric gave no value; no mean counts them."""
        return sum(not np.isfinite(score) for score in self.scores)

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
            metric=self.metric,
            excluded=self.excluded,
            overall=None if self.overall is None else (self.overall.mean, self.overall.low, self.overall.high),
            problems=list(dict.fromkeys(filter(None, self.problems)))[:_PROBLEMS],
        )

    def __str__(self) -> str:
        excluded = f"  ({self.excluded} without a score)" if self.excluded else ""
        excluded += "" if self.overall is None else f"  {self.metric} {self.overall}"
        return f"accuracy {self.accuracy}  n={len(self.examples) - self.excluded}{excluded}"

    def __repr__(self) -> str:
        return f"Evaluation({self})"

    def _repr_html_(self) -> str:
        measured = {"balanced accuracy": self.balanced_accuracy, "log-likelihood": self.log_likelihood}
        more = [(name, value) for name, value in measured.items() if value is not None]
        more += [] if self.overall is None else [(self.metric, str(self.overall))]
        rows = [("accuracy", str(self.accuracy)), ("examples", len(self.examples)), *more]
        counts = [[label, row["n"], row["correct"], row["predicted"]] for label, row in self.per_class.items()]
        classes = html_table(["label", "examples", "right", "predicted"], counts) if counts else ""
        return html_table(["metric", "value"], rows) + classes


@checked
def evaluate(
    network: AnyNetwork,
    dataset: Dataset,
    *,
    metric: Metric | Grader | str = exact_match,
    samples: Count | None = None,
    seed: Seed = 0,
    progress: Callable[[int, int], object] | None = None,
    chunk: Count = 256,
) -> Evaluation:
    """Predict every example and score it.

    Args:
        network: what to evaluate: one network, or several that answer together.
        dataset: labelled examples; of a network with labels, the targets are those labels.
        metric: a name ("exact_match", "package.module:function", "file.py:function") or a callable (example,
            prediction[, trace]) or (prediction, target) -> float, bool or `dln.Score`, from 0 to 1, async ones too (see
            `dln.data.metrics`); a `dln.data.Grader` says how it is called. Networks with labels are right when the
            label is equal, unless another metric than `exact_match` is given.
        samples: average over this many hidden draws instead of the greedy hidden text.
        seed: of those draws.
        progress: called with (done, total) after each chunk.
        chunk: examples per request to the network; each request evaluates the prefix of the prompt once.

    Raises:
        InputError: the dataset is empty, a target is not among the network's labels, the metric cannot be called with
            an example and a prediction, or it gives no value for any example.
    """
    graded = grader(metric, network.labels)
    if not len(dataset):
        raise InputError(
            "there is nothing to evaluate on",
            where=f"dataset {dataset.name}",
            got="no examples",
            expected="one example or more",
            fix='dln.Dataset.from_pairs([("an input", "its target"), …])',
        )
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
    return evaluation_of(predictions, dataset, network.labels, graded)


def evaluation_of(
    predictions: Sequence[Prediction], dataset: Dataset, labels: Sequence[str] | None, metric: Metric | Grader | str
) -> Evaluation:
    """Score the predictions for a dataset.

    Raises:
        InputError: the metric gives no value for any of them.
    """
    graded = grader(metric, labels)
    pairs = list(zip(dataset, predictions, strict=True))
    grades = graded([Answer(e, p.label, p.hidden[0] if p.hidden else ()) for e, p in pairs])
    if not any(grade.known for grade in grades):
        raise InputError(
            "the metric gave no value for any example",
            where=f"metric {graded.name}",
            got=f"{grades[0].problem} (example 1 of {len(grades)})",
            expected="a number from 0 to 1, True or False, or dln.Score(value, feedback)",
            fix="def my_metric(example, prediction): … example.target …",
        )
    return Evaluation(
        tuple(dataset),
        tuple(predictions),
        tuple(grade.value for grade in grades),
        None if labels is None else tuple(labels),
        tuple(grade.feedback for grade in grades),
        tuple(grade.problem for grade in grades),
        graded.name,
        Interval(*graded.metric.over([p.label for p in predictions], dataset.targets))
        if isinstance(graded.metric, SetMetric)
        else None,
    )


def judge(metric: Metric | str, labels: Sequence[str] | None) -> NamedMetric:
    """How a prediction is scored: closed label sets by equality, anything else by the metric."""
    if labels is not None and (metric is exact_match or (isinstance(metric, str) and metric == exact_match.name)):
        return FunctionMetric(operator.eq, exact_match.name, own=False)
    found = load_metric(metric)
    return load_metric(found, labels) if isinstance(found, SetMetric) else found


def grader(
    metric: Metric | Grader | str,
    labels: Sequence[str] | None,
    *,
    workers: int | None = None,
    timeout: float | None = None,
    store: GradeStore | None = None,
) -> Grader:
    """The metric of `judge` as it is applied to many predictions; a `Grader` stays as it is."""
    if isinstance(metric, Grader):
        return metric
    return Grader(judge(metric, labels), workers=workers, timeout=timeout, store=store)


@dataclass(frozen=True)
class GradedReward:
    """A metric as the reward of the outcomes of a network.

    Attributes:
        grader: the metric.
        examples: the examples by input and target.
    """

    grader: Grader
    examples: Mapping[tuple[str, str], Example]

    @classmethod
    def of(cls, graded: Grader, dataset: Dataset) -> GradedReward:
        """For the examples of a dataset; other outcomes get an example made of their input and target."""
        return cls(graded, {(example.input, example.target): example for example in dataset})

    def __call__(self, outcomes: Sequence[Outcome]) -> list[Reward]:
        """The grades; NaN where the metric gave no value."""
        answers = [
            Answer(self.examples.get((one.x, one.y)) or Example(one.x, one.y), one.answer, one.hidden)
            for one in outcomes
        ]
        return [Reward(grade.value, grade.feedback) for grade in self.grader(answers)]


def run_grader(
    metric: Metric | Grader | str,
    labels: Sequence[str] | None,
    options: Options | None = None,
    store: GradeStore | None = None,
) -> Grader:
    """`grader` as the options of a run say."""
    if options is None:
        return grader(metric, labels, store=store)
    return grader(metric, labels, workers=options.metric_workers, timeout=options.metric_timeout, store=store)


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
                before_score=before.scores[i] if before else None,
                after_score=score,
                feedback=after.feedback[i] if after.feedback else "",
                hidden=list(prediction.hidden[0]) if prediction.hidden else [],
                probability=prediction.probabilities.get(prediction.label),
            )
        )
    return (_paired(before, after) if before else None), rows


def _paired(before: Evaluation, after: Evaluation) -> Paired | None:
    """The paired test on the examples for which both have a value; None if there is none."""
    both = [(a, b) for a, b in zip(before.scores, after.scores, strict=True) if np.isfinite([a, b]).all()]
    return paired([a for a, _ in both], [b for _, b in both]) if both else None


@dataclass(frozen=True)
class Validation:
    """A network measured on the dev set.

    Attributes:
        network: with the output layer fitted on the dev set, where it is fitted at all.
        evaluation: its predictions there, each by numbers fitted without that example.
        log_likelihood: mean log p(y|x), each example judged by numbers fitted without it, in nats; one that could
            not be scored counts as a guess, −log C. None for free text.
    """

    network: Sequential
    evaluation: Evaluation
    log_likelihood: float | None

    def score(self, select_by: str) -> tuple[float, str]:
        """The number that selection looks at, and its name.

        Free text goes by accuracy, the mean metric, and a metric of all predictions together selects wherever it is
        given.
        """
        if select_by == "log_likelihood" and self.log_likelihood is not None and self.evaluation.overall is None:
            return self.log_likelihood, select_by
        overall = self.evaluation.overall
        return self.evaluation.value, "accuracy" if overall is None else self.evaluation.metric


Support = Sequence[tuple[LayerInput, str]]
"""Labelled inputs of the output layer, as far as the layers below have read them."""


@dataclass(frozen=True)
class FittedOutput:
    """A network with its output layer fitted, and what that says of each example.

    Attributes:
        network: with the fitted output layer.
        items: [N] what the output layer reads of the dev examples.
        hidden: [N] the hidden texts of the dev examples.
        features: [N, F] of the dev examples.
        rows: [N, C] log p(y|x) of the dev examples, by numbers fitted without that example, in nats.
        usable: [N] whether an example could be scored.
        support_rows: [M, C] the same as `rows` for the support; NaN where an example could not be scored.
    """

    network: Sequential
    items: list[LayerInput]
    hidden: list[tuple[str, ...]]
    features: Floats
    rows: Floats
    usable: npt.NDArray[np.bool_]
    support_rows: Floats


def fit_output(network: Sequential, dev: Dataset, calibrator: Calibrator, support: Support = ()) -> FittedOutput:
    """Fit the output layer on `dev`, and on `support` too if its readout is a wide one, with one forward pass.

    An example that the output layer shows has no part in the fit.

    Raises:
        InputError: the last layer has no labels.
    """
    last = network.layers[-1].classifier
    if last is None:
        raise InputError("the last layer has no labels", where="fit_output", got=repr(network.layers[-1]))
    items = [LayerInput(x, x) for x in dev.inputs]
    hidden: list[tuple[str, ...]] = [()] * len(items)
    if len(network) > 1:
        trace = forward(Key(0).child("validate"), network.layers[:-1], dev.inputs, 0.0)
        items = [LayerInput(x, h.text) for x, h in zip(dev.inputs, trace.hidden[-1], strict=True)]
        hidden = [tuple(level[i].text for level in trace.hidden) for i in range(len(items))]
    more = list(support) if last.readout.wide else []
    shown = {d.x for d in last.prompt.demonstrations}
    told = np.array([item.x not in shown for item, _ in more], dtype=np.bool_)
    unseen = [pair for pair in more if pair[0].x not in shown]
    asked = [*items, *(item for item, _ in unseen)]
    features = last.features(last.contexts(asked))
    wanted = [*dev.targets, *(target for _, target in unseen)]
    targets = np.array([last.index(target) for target in wanted], dtype=np.int64)
    usable = np.isfinite(last.readout.log_probs(features)[np.arange(len(targets)), targets])
    calibration = calibrator(
        last, features[usable], targets[usable], np.ones(int(usable.sum())), np.flatnonzero(usable).astype(np.int64)
    )
    rows = calibration.layer.readout.log_probs(features)
    rows[usable] = calibration.label_log_probs
    others = np.full((len(more), rows.shape[1]), np.nan)
    others[told] = np.where(usable[len(items) :, None], rows[len(items) :], np.nan)
    n = len(items)
    fitted = network.with_layer(len(network) - 1, calibration.layer)
    return FittedOutput(fitted, items, hidden, features[:n], rows[:n], usable[:n], others)


def validate(
    network: Sequential, dev: Dataset, metric: Metric | Grader | str, calibrator: Calibrator, support: Support = ()
) -> Validation:
    """Measure `network` on `dev`, with one forward pass; `support` is as in `fit_output`."""
    if network.layers[-1].classifier is None:
        return Validation(network, evaluate(network, dev, metric=metric), None)
    found = fit_output(network, dev, calibrator, support)
    fitted = cast(ChoiceLayer, found.network.layers[-1].classifier)
    targets = np.array([fitted.index(target) for target in dev.targets], dtype=np.int64)
    # left out, an example that cannot be scored would make the network look better than one that scores it badly
    judged = np.where(found.usable, found.rows[np.arange(len(targets)), targets], -np.log(len(fitted.labels)))
    if fitted.answers == "free":
        texts = [answer.text for answer in fitted.write(fitted.contexts(found.items), [0] * len(found.items))]
        predictions = tuple(
            text_prediction([text], (h,), fitted.names) for text, h in zip(texts, found.hidden, strict=True)
        )
    else:
        triples = zip(found.features, found.hidden, found.rows, strict=True)
        predictions = tuple(fitted.prediction(f[None], (h,), row[None]) for f, h, row in triples)
    return Validation(
        network=found.network,
        evaluation=evaluation_of(predictions, dev, network.labels, metric),
        log_likelihood=float(judged.mean()),
    )


@checked
def conclude(
    before: AnyNetwork | None,
    after: AnyNetwork,
    dataset: Dataset,
    *,
    fitted: AnyNetwork | None = None,
    baselines: Mapping[str, Evaluation] | None = None,
    split: str = "test",
    metric: Metric | Grader | str = exact_match,
    samples: Count | None = None,
    meter: Meter | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluated:
    """Evaluate `after`, and `before` and `fitted` on the same examples if they are given.

    `fitted` is the initial network with its output layer fitted (see `fitted_initial`): the difference
    between `before` and `fitted` is what bias and temperature give, the rest is what the prompts give.
    `baselines` are evaluations of other methods on `dataset`, by name.
    """
    started = time.perf_counter()
    metric = grader(metric, after.labels)  # one for all: what two networks answer alike is graded once
    old = None if before is None else evaluate(before, dataset, metric=metric, samples=samples, progress=progress)
    new = evaluate(after, dataset, metric=metric, samples=samples, progress=progress)
    middle = None if fitted is None else evaluate(fitted, dataset, metric=metric, samples=samples, progress=progress)
    test, rows = compare(old, new)
    against = None if middle is None else _paired(middle, new)
    return Evaluated(
        split=split,
        members=len(members_of(after)),
        before=None if old is None else old.to_record(),
        after=new.to_record(),
        fixed=0 if test is None else test.better,
        broken=0 if test is None else test.worse,
        p_value=None if test is None else test.p_value,
        difference=None if test is None else (test.difference.mean, test.difference.low, test.difference.high),
        examples=rows,
        fitted=None if middle is None else middle.to_record(),
        fitted_p_value=None if against is None else against.p_value,
        baselines=[row for name, one in (baselines or {}).items() if (row := _baseline(name, one, new)) is not None],
        usage={} if meter is None else {k: float(v) for k, v in meter.snapshot().to_dict().items()},
        seconds=time.perf_counter() - started,
    )


def _baseline(name: str, found: Evaluation, trained: Evaluation) -> BaselineRecord | None:
    test = _paired(found, trained)
    if test is None:
        return None
    bounds = (test.difference.mean, test.difference.low, test.difference.high)
    return BaselineRecord(name=name, result=found.to_record(), difference=bounds, p_value=test.p_value)


@checked
def fitted_initial(
    initial: Sequential,
    dev: Dataset | None,
    metric: Metric | Grader | str,
    options: Options,
    train: Dataset | None = None,
) -> Sequential | None:
    """The initial network with its output layer fitted as training fits it, or None where nothing is fitted.

    A word readout chooses its words and is fitted on `train` too.
    """
    fit = calibrator(options.inference)
    if dev is None or options.inference.output_layer == "fixed" or initial.layers[-1].classifier is None:
        return None
    examples = dev if train is None else train
    support = [(LayerInput(e.input, e.input), e.target) for e in examples][: options.fit_examples]
    ready = with_readout(initial, fit, examples.inputs)
    return validate(ready, dev, metric, fit, support if train is not None and len(initial) == 1 else ()).network


READ_BY = 64
"""Contexts of training inputs that the words of a readout are chosen by."""


def with_readout(network: Sequential, calibrator: Calibrator, inputs: Sequence[str]) -> Sequential:
    """The network with the readout that the calibrator chooses after contexts of the first inputs.

    Below an output layer that reads hidden texts, a quarter of them are read, since these texts are written for it.
    """
    last = network.layers[-1].classifier
    if last is None or not isinstance(calibrator, Preparing):
        return network
    chosen = list(inputs[: READ_BY if len(network) == 1 else READ_BY // 4])
    items = [LayerInput(x, x) for x in chosen]
    if len(network) > 1:
        written = forward(Key(0).child("readout"), network.layers[:-1], chosen, 0.0).predictions
        items = [LayerInput(x, h) for x, h in zip(chosen, written, strict=True)]
    return network.with_layer(len(network) - 1, calibrator.prepare(last, last.contexts(items)))
