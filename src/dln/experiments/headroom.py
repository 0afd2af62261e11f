"""Estimate whether training prompts will help on a task with a model, before spending money.

Baselines that need no training come first: what is trained has to beat the best of them. They are fitted to train
examples and measured on dev examples; test examples are not used.

The gain from training is limited by how much prompts differ. A few random prompts are scored on dev examples, with the
output layer fitted to each, and their spread is compared with the measurement noise:

    σ² = max(0, Var_n(s_n) − mean_n(se_n²)),     expected gain of the best of N ≈ σ · E[max of N standard normals]

where s_n is the cross-fitted mean log p(y|x) of prompt n and se_n the standard error of its paired difference to the
mean prompt. A second layer can help only if the untrained intermediate texts keep and change the answer: the same
measure with random intermediate texts instead of random prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dln.data import Dataset, Task, split
from dln.data.splits import subsample
from dln.experiments.baselines import draw_examples
from dln.experiments.encoders import Encoder
from dln.experiments.linear import LinearPredictor, encoded, fit_linear, tfidf
from dln.experiments.method import Setup, output_layer, read_words
from dln.experiments.tables import table
from dln.infer.calibrate import PenalisedLikelihood
from dln.lm.base import LanguageModel
from dln.nn import ChoiceLayer, LayerInput
from dln.numerics import Floats, normal_quantile
from dln.random import Key
from dln.train.evaluate import Interval, interval
from dln.train.layout import staged, standard_network

__all__ = ["Headroom", "Measured", "headroom_markdown", "measure_headroom"]


READ = 128
"""Train examples that word readouts are fitted to."""

CEILING = 0.98
"""Accuracy of a baseline above which a better prompt could not be told from it on a hundred examples."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Scores of a prompt or a baseline on the dev examples.

    Attributes:
        name: description.
        correct: [B] whether each answer is right, cross-fitted for a prompt.
        per_example: [B] log p(y|x), likewise, in nats.
        raw_accuracy: accuracy of a prompt without a fitted output layer; None for a baseline.
    """

    name: str
    correct: npt.NDArray[np.bool_]
    per_example: Floats
    raw_accuracy: float | None = None

    @property
    def accuracy(self) -> float:
        """Mean of `correct`."""
        return float(self.correct.mean())

    @property
    def interval(self) -> Interval:
        """The accuracy with its 95 % interval."""
        return interval(self.correct.astype(np.float64).tolist())

    @property
    def log_likelihood(self) -> float:
        """Mean of `per_example`, in nats."""
        return float(self.per_example.mean())


@dataclass(frozen=True, eq=False)
class Headroom:
    """The estimate of a task.

    Attributes:
        majority: the class frequencies of the train examples.
        linear: classifiers without a language model.
        instruction: the task's instruction alone, label words fitted.
        prompts: random prompts.
        thoughts: the instruction with one intermediate text per example, one entry per draw.
        candidates: N of the expected gain.
        staged: whether the intermediate texts are those of the task's first step.
        words: the instruction with a word readout; None if the model does not tell the probabilities of words.
    """

    majority: Measured
    linear: tuple[Measured, ...]
    instruction: Measured
    prompts: tuple[Measured, ...]
    thoughts: tuple[Measured, ...]
    candidates: int
    staged: bool = False
    words: Measured | None = None

    @property
    def baselines(self) -> tuple[Measured, ...]:
        """Everything that was measured without training prompts."""
        return (self.majority, *self.linear, self.instruction, *([] if self.words is None else [self.words]))

    @property
    def to_beat(self) -> Measured:
        """The most accurate baseline; of several, the one with the highest log-likelihood."""
        return max(self.baselines, key=lambda one: (one.accuracy, one.log_likelihood))

    @property
    def at_ceiling(self) -> bool:
        """Whether a baseline leaves nothing to gain; one that is hardly better than the majority class leaves a lot."""
        wrong = 1 - self.to_beat.accuracy
        return wrong <= 1 - CEILING and wrong <= (1 - self.majority.accuracy) / 5

    @property
    def spread(self) -> float:
        """σ: spread of the random prompts beyond the measurement noise, in nats."""
        return spread(self.prompts)[0]

    @property
    def noise(self) -> float:
        """Standard error of a prompt's paired difference to the mean prompt, in nats."""
        return spread(self.prompts)[1]

    @property
    def baseline(self) -> float:
        """The best log-likelihood of the instruction, under each readout, and of the class frequencies, in nats."""
        return max(one.log_likelihood for one in (self.instruction, self.majority, self.words) if one is not None)

    @property
    def expected_gain(self) -> float:
        """Expected log-likelihood of the best of N random prompts, above the baseline, in nats."""
        return _expected_best(self.prompts, self.candidates) - self.baseline

    @property
    def pays(self) -> bool:
        """Whether training is expected to help: the expected gain is more than twice the noise."""
        return self.expected_gain > 2 * self.noise

    @property
    def depth_gain(self) -> float | None:
        """The expected gain from intermediate texts, in nats; None if not measured."""
        if len(self.thoughts) < 2:
            return None
        untrained = max(self.instruction.log_likelihood, self.majority.log_likelihood)  # label words, as with thoughts
        return _expected_best(self.thoughts, self.candidates) - untrained

    @property
    def depth_pays(self) -> bool | None:
        """Whether a second layer is expected to help; None if not measured."""
        gain = self.depth_gain
        return None if gain is None else gain > 2 * spread(self.thoughts)[1]


def measure_headroom(
    task: Task,
    lm: LanguageModel,
    *,
    prompts: int = 4,
    shots: int = 16,
    draws: int = 0,
    dev_size: int = 96,
    encoder: Encoder | None = None,
    seed: int = 13,
    candidates: int = 32,
    progress: Callable[[str], None] = lambda _: None,
) -> Headroom:
    """Estimate the headroom of a classification task.

    Args:
        task: provides train examples to show and dev examples to score.
        lm: the model.
        prompts: number of random prompts, each the instruction with `shots` random examples.
        shots: examples per prompt.
        draws: intermediate texts per example; 0 skips the second layer.
        dev_size: maximum number of dev examples.
        encoder: sentence encoder of a linear classifier; None leaves it out.
        seed: the random seed.
        candidates: N of the expected gain.
        progress: called with a description of the next measurement.

    Raises:
        InputError: the task has no labels.
    """
    setup = Setup(task, lm, seed)
    layer = output_layer(setup)
    dev = subsample(task.dev, dev_size, seed)
    rows = [LayerInput(e.input, e.input) for e in dev]
    targets = [layer.index(e.target) for e in dev]
    counts = np.array([float(n) for n in task.train.counts().values()])
    frequencies = LinearPredictor(layer.names, counts, lambda _: None, None)
    linear = _linear(task, layer.names, dev, encoder, seed, progress)
    progress("instruction only")
    instruction = _measure("label words, fitted", layer, rows, targets)
    words: Measured | None = None
    reader, read = layer, subsample(task.train, READ, seed)
    if lm.capabilities.next_tokens != "none":
        progress("word readout")
        words, reader = _words("word readout, initial prompt", layer, read, dev)
    found: list[Measured] = []
    for n in range(prompts):
        progress(f"random prompt {n + 1} of {prompts}")
        shown = reader.with_prompt(output_layer(setup, examples=draw_examples(setup, shots, draw=n)).prompt)
        name = f"{shots} random examples"
        found.append(_measure(name, shown, rows, targets) if words is None else _words(name, shown, read, dev)[0])
    return Headroom(
        majority=_baseline("majority class", frequencies, dev),
        linear=linear,
        instruction=instruction,
        prompts=tuple(found),
        thoughts=_thoughts(task, lm, rows, targets, draws, seed, progress) if draws else (),
        candidates=candidates,
        staged=staged(2, task),
        words=words,
    )


def _linear(
    task: Task, labels: Sequence[str], dev: Dataset, encoder: Encoder | None, seed: int, progress: Callable[[str], None]
) -> tuple[Measured, ...]:
    """Linear classifiers fitted to three quarters of the train set, their C chosen on the last one."""
    fits = [("TF-IDF + logistic regression", tfidf)]
    fits += [] if encoder is None else [("sentence encoder + logistic regression", encoded(encoder))]
    learnt, chooses = split(task.train, (0.75, 0.25), seed)
    found: list[Measured] = []
    for name, fit in fits:
        progress(name)
        found.append(_baseline(name, fit_linear(fit, learnt, chooses, labels)[0], dev))
    return tuple(found)


def _thoughts(
    task: Task,
    lm: LanguageModel,
    rows: list[LayerInput],
    targets: list[int],
    draws: int,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Measured, ...]:
    """The label words of a second layer that reads intermediate texts, once per draw of these texts."""
    network = standard_network(task, lm, 2, hidden=None if staged(2, task) else "think")
    last = network.layers[1].classifier
    found: list[Measured] = []
    for n in range(draws):
        progress(f"intermediate texts, draw {n + 1} of {draws}")
        written = network.layers[0].sample(Key(seed).child("thoughts", n), rows, temperature=0.7)
        seen = [LayerInput(row.x, h.text) for row, h in zip(rows, written, strict=True)]
        if last is not None:
            found.append(_measure("thoughts", last, seen, targets))
    return tuple(found)


def spread(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return σ beyond the noise, and the noise, of mean log-likelihoods on the same examples, in nats."""
    if len(measured) < 2:
        return 0.0, 0.0
    rows = np.stack([m.per_example for m in measured])
    means = rows.mean(axis=1)
    residual = rows - means[:, None] - (rows.mean(axis=0) - rows.mean())
    errors = residual.var(axis=1, ddof=1) / rows.shape[1]
    return float(np.sqrt(max(0.0, means.var(ddof=1) - errors.mean()))), float(np.sqrt(errors.mean()))


def _expected_best(measured: Sequence[Measured], n: int) -> float:
    return float(np.mean([m.log_likelihood for m in measured])) + spread(measured)[0] * _expected_maximum(n)


def _measure(name: str, layer: ChoiceLayer, rows: list[LayerInput], targets: list[int]) -> Measured:
    masses = layer.label_log_masses(layer.contexts(rows))
    index = np.array(targets, dtype=np.int64)
    usable = np.flatnonzero(np.isfinite(masses).all(axis=1))
    wanted = index[usable]
    judged = PenalisedLikelihood().cross_fitted(masses[usable], wanted, np.ones(len(usable)), usable)
    values = np.full(len(rows), -np.log(masses.shape[1]))  # unscored examples count as a uniform guess
    values[usable] = np.take_along_axis(judged, wanted[:, None], axis=1)[:, 0]
    right = np.zeros(len(rows), dtype=np.bool_)
    right[usable] = judged.argmax(axis=1) == wanted
    raw = float((masses[usable].argmax(axis=1) == wanted).sum()) / len(rows)
    return Measured(name, right, values, raw)


def _words(name: str, layer: ChoiceLayer, train: Dataset, dev: Dataset) -> tuple[Measured, ChoiceLayer]:
    """Measure a layer under a word readout; its words are chosen unless it has some."""
    fitted = read_words(layer, train, dev, {})
    found, last = fitted.evaluation, fitted.network.layers[-1].classifier
    p = [one.probabilities.get(e.target, 0.0) for one, e in zip(found.predictions, dev, strict=True)]
    least = 1.0 / len(layer.labels)  # unscored examples count as a uniform guess
    scored = [one.scored for one in found.predictions]
    log_probs = np.log(np.where(scored, np.maximum(p, 1e-300), least))
    return Measured(name, np.array(found.scores) >= 0.5, log_probs), layer if last is None else last


def _baseline(name: str, predictor: LinearPredictor, dev: Dataset) -> Measured:
    p = predictor.probabilities(dev.inputs)
    targets = np.array([predictor.labels.index(target) for target in dev.targets])
    return Measured(name, p.argmax(axis=1) == targets, np.log(p[np.arange(len(targets)), targets]))


def _expected_maximum(n: int) -> float:
    """E[max of n standard normals], by Blom's approximation."""
    return normal_quantile((n - 0.375) / (n + 0.25)) if n > 1 else 0.0


def headroom_markdown(found: Sequence[tuple[str, Headroom]]) -> str:
    """Return a table with one row per (name of the task, its estimate)."""
    heads = (
        *("task", "majority class", "TF-IDF + LR", "encoder + LR", "label words, fitted", "word readout"),
        *("random prompts, mean", "the best of them", "to beat"),
        *("spread, nats", "noise, nats", "expected gain, nats", "training pays", "gain of depth, nats", "depth pays"),
    )
    drawn, candidates = (
        " or ".join(map(str, sorted(numbers)))
        for numbers in ({len(one.prompts) for _, one in found}, {one.candidates for _, one in found})
    )
    explained = (
        "Accuracy in percent on dev examples, cross-fitted for prompts. To beat: the most accurate of the first five. "
        f"{drawn} random prompts per task, with the word readout where there is one. Spread: standard deviation of "
        "their mean log p(y|x) beyond the noise of measuring one. Expected gain: best of "
        f"{candidates} candidates, above the best of the instruction and the class frequencies. Training pays if the "
        "expected gain is more than twice the noise."
    )
    return "\n\n".join([explained, table(heads, [_row(name, headroom) for name, headroom in found])]) + "\n"


def _row(name: str, found: Headroom) -> tuple[str, ...]:
    best = max(found.prompts, key=lambda measured: measured.log_likelihood)
    mean = float(np.mean([measured.accuracy for measured in found.prompts]))
    linear = [f"{100 * one.accuracy:.1f}" for one in found.linear]
    readout = "" if found.words is None else f"{100 * found.words.accuracy:.1f}"
    return (
        name,
        f"{100 * found.majority.accuracy:.1f}",
        *[*linear, ""][:2],
        f"{100 * found.instruction.accuracy:.1f}",
        readout,
        f"{100 * mean:.1f}",
        f"{100 * best.accuracy:.1f}",
        found.to_beat.name + (" (nothing to gain)" if found.at_ceiling else ""),
        f"{found.spread:.3f}",
        f"{found.noise:.3f}",
        f"{found.expected_gain:+.3f}",
        "yes" if found.pays else "no",
        "" if found.depth_gain is None else f"{found.depth_gain:+.3f}",
        {True: "yes", False: "no", None: "not measured"}[found.depth_pays],
    )
