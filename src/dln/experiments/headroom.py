"""Whether training prompts can be expected to pay on a task with a model, measured before money is spent.

What training can find is bounded by how far prompts differ in what they do. A handful of random prompts is
scored on dev examples, the output layer fitted to each. Their spread is compared with the noise of measuring it:

    σ² = max(0, Var_n(s_n) − mean_n(se_n²)),     expected gain of the best of N ≈ σ · E[max of N standard normals]

where s_n is the cross-fitted mean log p(y|x) of prompt n and se_n the standard error of its paired difference to
the mean prompt. A second layer can pay only if the thoughts of the model, untrained, do not hide the answer and
change it: the same measure with random thoughts instead of random prompts.

The checks of headroom as a table: whether training prompts, and depth, can be expected to pay on each task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dln.data import Task
from dln.experiments.baselines import draw_examples
from dln.experiments.method import Setup, output_layer
from dln.experiments.tables import table
from dln.infer.calibrate import PenalisedLikelihood
from dln.lm.base import LanguageModel
from dln.nn import ChoiceLayer, LayerInput
from dln.numerics import Floats
from dln.random import Key
from dln.train.layout import staged, standard_network

__all__ = ["Headroom", "Measured", "headroom_markdown", "measure_headroom"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One way of answering, on the dev examples.

    Attributes:
        name: what it is.
        accuracy: of the fitted output layer, each example judged by a fit without it.
        raw_accuracy: without the fit.
        per_example: [B] cross-fitted log p(y|x), in nats.
    """

    name: str
    accuracy: float
    raw_accuracy: float
    per_example: Floats

    @property
    def log_likelihood(self) -> float:
        """Mean of `per_example`."""
        return float(self.per_example.mean())


@dataclass(frozen=True, eq=False)
class Headroom:
    """What was found.

    Attributes:
        majority: accuracy of the most frequent class.
        majority_log_likelihood: of the class frequencies as prediction, in nats.
        instruction: the task's instruction alone.
        prompts: random prompts.
        thoughts: the instruction with one draw of thoughts per example, one entry per draw.
        candidates: N for which the gain is predicted.
        staged: whether the thoughts are those of the task's first step.
    """

    majority: float
    majority_log_likelihood: float
    instruction: Measured
    prompts: tuple[Measured, ...]
    thoughts: tuple[Measured, ...]
    candidates: int
    staged: bool = False

    @property
    def spread(self) -> float:
        """σ of the random prompts' mean log-likelihoods beyond the noise of measuring them, in nats."""
        return spread(self.prompts)[0]

    @property
    def noise(self) -> float:
        """Standard error of one prompt's paired difference to the mean prompt, in nats."""
        return spread(self.prompts)[1]

    @property
    def baseline(self) -> float:
        """The better of the instruction alone and of the class frequencies, in nats."""
        return max(self.instruction.log_likelihood, self.majority_log_likelihood)

    @property
    def expected_gain(self) -> float:
        """Log-likelihood of the best of N random prompts, expected, above the baseline, in nats."""
        return _expected_best(self.prompts, self.candidates) - self.baseline

    @property
    def pays(self) -> bool:
        """Whether training can be expected to pay: more is to be gained than measuring one prompt is noisy."""
        return self.expected_gain > 2 * self.noise

    @property
    def depth_gain(self) -> float | None:
        """The same of thoughts, above the baseline; None where they were not measured."""
        if len(self.thoughts) < 2:
            return None
        return _expected_best(self.thoughts, self.candidates) - self.baseline

    @property
    def depth_pays(self) -> bool | None:
        """Whether a second layer can be expected to pay; None where it was not measured."""
        gain = self.depth_gain
        return None if gain is None else gain > 2 * spread(self.thoughts)[1]


def measure_headroom(
    task: Task,
    lm: LanguageModel,
    *,
    prompts: int = 8,
    shots: int = 16,
    draws: int = 3,
    dev_size: int = 128,
    seed: int = 13,
    candidates: int = 32,
    progress: Callable[[str], None] = lambda _: None,
) -> Headroom:
    """Measure a task with labels.

    Args:
        task: whose train examples are shown and whose dev examples are judged.
        lm: the model.
        prompts: random prompts, each the instruction with `shots` random examples.
        shots: examples per prompt.
        draws: draws of thoughts per example; 0 leaves depth out.
        dev_size: dev examples at most.
        seed: of everything random.
        candidates: N for which the gain is predicted.
        progress: told what is measured next.

    Raises:
        InputError: the task has no labels.
    """
    setup = Setup(task, lm, seed)
    layer = output_layer(setup)
    dev = list(task.dev)[:dev_size]
    rows = [LayerInput(e.input, e.input) for e in dev]
    targets = [layer.index(e.target) for e in dev]
    counts = Counter(targets)
    frequency = np.array([counts[t] for t in targets]) / len(targets)
    progress("the instruction alone")
    instruction = _measure("instruction", layer, rows, targets)
    found: list[Measured] = []
    for n in range(prompts):
        progress(f"random prompt {n + 1} of {prompts}")
        shown = output_layer(setup, examples=draw_examples(setup, shots, draw=n))
        found.append(_measure(f"{shots} random examples", shown, rows, targets))
    thoughts: list[Measured] = []
    network = standard_network(task, lm, 2, hidden=None if staged(2, task) else "think")
    last = network.layers[1]
    for n in range(draws):
        progress(f"thoughts, draw {n + 1} of {draws}")
        written = network.layers[0].sample(Key(seed).child("thoughts", n), rows, temperature=0.7)
        if isinstance(last, ChoiceLayer):
            seen = [LayerInput(row.x, h.text) for row, h in zip(rows, written, strict=True)]
            thoughts.append(_measure("thoughts", last, seen, targets))
    return Headroom(
        majority=max(counts.values()) / len(targets),
        majority_log_likelihood=float(np.log(frequency).mean()),
        instruction=instruction,
        prompts=tuple(found),
        thoughts=tuple(thoughts),
        candidates=candidates,
        staged=staged(2, task),
    )


def spread(measured: Sequence[Measured]) -> tuple[float, float]:
    """(σ beyond noise, noise): of mean log-likelihoods of prompts on the same examples, in nats."""
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
    values = np.full(len(rows), -np.log(masses.shape[1]))  # without a score: no better than a guess
    values[usable] = np.take_along_axis(judged, wanted[:, None], axis=1)[:, 0]
    right = float((judged.argmax(axis=1) == wanted).sum()) / len(rows)
    raw = float((masses[usable].argmax(axis=1) == wanted).sum()) / len(rows)
    return Measured(name, right, raw, values)


def _expected_maximum(n: int) -> float:
    """E[max of n standard normals], by Blom's approximation."""
    from scipy import stats  # takes a second or two: not before it is needed

    return float(stats.norm.ppf((n - 0.375) / (n + 0.25))) if n > 1 else 0.0


def headroom_markdown(found: Sequence[tuple[str, Headroom]]) -> str:
    """One row per task.

    Args:
        found: names of tasks with what was measured on their dev examples.
    """
    heads = (
        *("task", "majority class", "instruction alone", "random prompts, mean", "the best of them"),
        *("spread, nats", "noise, nats", "expected gain, nats", "training pays", "gain of depth, nats", "depth pays"),
    )
    drawn = sorted({len(headroom.prompts) for _, headroom in found})
    candidates = sorted({headroom.candidates for _, headroom in found})
    explained = (
        "Accuracy in percent on dev examples, with the output layer fitted and every example judged by a fit without "
        f"it. {_numbers(drawn)} random prompts are measured per task. Spread: standard deviation of their mean "
        "log p(y|x) beyond the noise of measuring one. Expected gain: of the best of "
        f"{_numbers(candidates)} candidates above what is there without training (the instruction, or the class "
        "frequencies). It pays where the gain is more than twice the noise."
    )
    return "\n\n".join([explained, table(heads, [_row(name, headroom) for name, headroom in found])]) + "\n"


def _row(name: str, found: Headroom) -> tuple[str, ...]:
    best = max(found.prompts, key=lambda measured: measured.log_likelihood)
    return (
        name,
        _percent(found.majority),
        _percent(found.instruction.accuracy),
        _percent(float(np.mean([measured.accuracy for measured in found.prompts]))),
        _percent(best.accuracy),
        f"{found.spread:.3f}",
        f"{found.noise:.3f}",
        f"{found.expected_gain:+.3f}",
        "yes" if found.pays else "no",
        "" if found.depth_gain is None else f"{found.depth_gain:+.3f}",
        {True: "yes", False: "no", None: "not measured"}[found.depth_pays],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(map(str, values))
