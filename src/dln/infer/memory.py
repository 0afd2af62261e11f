"""What training remembers: the best networks by validation, and worked examples of each layer.

What flows backward: for each layer, what it saw, what it wrote, and what it should have written.

Growing evidence: candidates of the output layer are judged on examples of earlier steps as well.

    s^n = (1 / (B + E)) [ Σ_{i in batch} + Σ_{i of earlier steps} ]  Σ_k w_i^k log p(y_i | F(h_i^k, x_i, π^n))

A winner picked on twenty examples by luck is not progress. The hidden texts of earlier examples keep the
posterior weights of the step they were inferred in, and each step renews those of its own batch: incremental
EM (Neal and Hinton, 1998), whose partial E-steps climb the same bound. With one layer nothing is hidden and
the terms are exact. What an unchanged prompt says of an earlier example is the same question as before, which
a cached model does not evaluate again.

No prompt can win by containing the answer: an example that any candidate shows judges none of them
(`dln.infer.mstep`). Where batches and demonstrations are drawn from different examples that costs no judges.

The posterior over prompts that validation gives, and the networks that answer together under it.

    q(π_m) ∝ exp(n · ℓ_m / T),    Σ_m q(π_m) = 1

ℓ_m is the mean log-likelihood of network m on n held-out examples, in nats per example, so n · ℓ_m is the log
evidence of its prompts and T = 1 is Bayes' rule under equal priors. But the networks were chosen by these very
examples, and ℓ of two good prompts differs by less than its standard error, which n magnifies: a large T keeps
weights nearly equal among prompts whose difference is noise. T → ∞ gives equal weights, T → 0 the best one alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dln.errors import InputError
from dln.infer.estep import Posterior
from dln.infer.objective import Candidates
from dln.lm.base import Completion, Target, text_of
from dln.nn.context import LayerInput, parts_of
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.nn.layers import Layer
from dln.nn.prompt import Demonstration, Prompt
from dln.nn.sequential import Sequential, Trace, forward
from dln.numerics import Floats, softmax
from dln.particles import Particles
from dln.random import Key

T = TypeVar("T")

__all__ = [
    "Earlier",
    "Feedback",
    "Opinion",
    "Replay",
    "Reservoir",
    "Snapshot",
    "answering",
    "labelled_examples",
    "layer_feedback",
    "posterior_weights",
    "remember",
    "worked_examples",
]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at a validation.

    Attributes:
        network: with its prompts, bias and temperature.
        score: the validation score (higher is better).
        step: updates done by then.
    """

    network: Sequential
    score: float
    step: int

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """π_1 … π_L."""
        return self.network.parameters()


def remember(memory: Sequence[Snapshot], snapshot: Snapshot, size: int) -> tuple[Snapshot, ...]:
    """The `size` best snapshots, best first, each set of prompts once; the earlier of equals stays ahead.

    A score that is not a number is worse than any other.
    """
    kept = [s for s in memory if s.prompts != snapshot.prompts]
    same = [s for s in memory if s.prompts == snapshot.prompts]
    best = min([*same, snapshot], key=_rank)
    return tuple(sorted([*kept, best], key=_rank)[:size])


def _rank(snapshot: Snapshot) -> tuple[float, int]:
    return (math.inf if math.isnan(snapshot.score) else -snapshot.score, snapshot.step)


@dataclass(frozen=True)
class Reservoir:
    """Worked examples per layer, newest last: where deep networks take their demonstrations from."""

    layers: tuple[tuple[Demonstration, ...], ...] = ()

    def add(self, rows: Sequence[Sequence[Demonstration]], limit: int) -> Reservoir:
        """With the examples of one batch; an input's newest version replaces older ones."""
        if not rows:
            return self
        present = self.layers or ((),) * len(rows)
        merged: list[tuple[Demonstration, ...]] = []
        for old, row in zip(present, rows, strict=True):
            latest = {d.x: d for d in row}
            together = [*(d for d in old if d.x not in latest), *latest.values()]
            merged.append(tuple(together[max(0, len(together) - limit) :]))
        return Reservoir(tuple(merged))

    def outside(
        self, position: int, inputs: Collection[str], branch: int = 0, count: int = 1
    ) -> tuple[Demonstration, ...]:
        """Examples of one layer, or of one of its `count` branches, whose input is none of `inputs`."""
        if not self.layers:
            return ()
        excluded = set(inputs)
        kept = (d for d in self.layers[position] if d.x not in excluded)
        return tuple(replace(d, y=text_of(parts_of(d.y, count)[branch])) for d in kept)


@dataclass(frozen=True)
class Opinion:
    """What a person thinks of an instruction.

    Attributes:
        text: the instruction.
        liked: False where it is disliked.
        comment: why; may be empty.
    """

    text: str
    liked: bool
    comment: str = ""


@dataclass(frozen=True)
class Feedback:
    """What a layer saw, wrote and should have written, per example of the batch.

    Attributes:
        inputs: [B] what the layer saw.
        outputs: [B] its own texts.
        wanted: [B] the target, or the heaviest hidden text for a hidden layer.
        correct: [B] whether the network's prediction was right.
        pool: worked examples of this layer that are not scored in this step.
        memory: the prompts in memory of this layer, which rewrites may start from.
        comments: [B] what the metric says of each prediction; empty where it says nothing.
        answers: [B] the network's predictions, and `targets` what they should have been.
        targets: [B] likewise.
        opinions: of a person about instructions of this layer, the newest last.
    """

    inputs: tuple[LayerInput, ...]
    outputs: tuple[str, ...]
    wanted: tuple[str, ...]
    correct: tuple[bool, ...]
    pool: tuple[Demonstration, ...] = ()
    memory: tuple[Prompt, ...] = ()
    comments: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    opinions: tuple[Opinion, ...] = ()

    def subset(self, members: Sequence[int]) -> Feedback:
        """The same for some of the examples; the pool stays whole."""

        def some(row: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(row[i] for i in members) if row else row

        return Feedback(
            inputs=some(self.inputs),
            outputs=some(self.outputs),
            wanted=some(self.wanted),
            correct=some(self.correct),
            pool=self.pool,
            memory=self.memory,
            comments=some(self.comments),
            answers=some(self.answers),
            targets=some(self.targets),
            opinions=self.opinions,
        )


def layer_feedback(
    key: Key,
    position: int,
    trace: Trace,
    posterior: Posterior,
    correct: Sequence[bool],
    labelled: Sequence[Demonstration],
    reservoir: Reservoir,
    branch: int = 0,
    count: int = 1,
    comments: Sequence[str] = (),
) -> Feedback:
    """The triples {h below, ĥ, h*} of one layer, with worked examples that are not scored in this step.

    Args:
        key: randomness of the step.
        position: the layer, 0-based.
        trace: the forward pass.
        posterior: the inferred hidden texts.
        correct: [B] whether each prediction was right.
        labelled: examples outside the batch as the last layer sees them (see `labelled_examples`).
        reservoir: worked examples of earlier batches, for all but a last layer that has labelled ones.
        branch: of parallel layers, which one; trace and posterior hold its texts.
        count: how many layers are side by side.
        comments: [B] what the metric says of each prediction.
    """
    items = trace.inputs(position)
    wanted = [text_of(target) for target in posterior.mode(position + 1)]
    last = position == len(trace.hidden) - 1
    examples = (tuple(labelled) if last else ()) or reservoir.outside(position, trace.x, branch, count)
    if not examples:
        # nothing from elsewhere yet: half of the batch is shown and not scored, the other half judges
        order = key.child("pool", position).generator().permutation(len(trace))
        half = [int(i) for i in order[: len(trace) // 2]]
        examples = tuple(Demonstration(items[i].x, items[i].h, wanted[i]) for i in half if wanted[i])
    outputs = tuple(completion.text for completion in trace.outputs(position))
    return Feedback(
        inputs=tuple(items),
        outputs=outputs,
        wanted=tuple(wanted),
        correct=tuple(correct),
        pool=examples,
        comments=tuple(comments),
        answers=trace.predictions,
        targets=tuple(text_of(target) for target in posterior.mode(len(trace.hidden))),
    )


def labelled_examples(
    key: Key, below: Sequence[Layer], pool: Sequence[tuple[str, str]], size: int
) -> tuple[Demonstration, ...]:
    """Labelled pairs as the layer above `below` sees them: (x, what `below` writes about x, y).

    With nothing below that text is x itself, and all of the pool is given. Otherwise `below` reads and writes,
    greedily as in a prediction, and so it does for `size` of the pool, drawn at random.
    """
    if not below:
        return tuple(Demonstration(x, x, y) for x, y in pool)
    order = key.child("labelled").generator().permutation(len(pool))[:size]
    chosen = [pool[int(i)] for i in order]
    if not chosen:
        return ()
    written = forward(key.child("labelled"), below, [x for x, _ in chosen], 0.0).predictions
    return tuple(Demonstration(x, h, y) for (x, y), h in zip(chosen, written, strict=True))


def worked_examples(trace: Trace, posterior: Posterior) -> list[tuple[Demonstration, ...]]:
    """Per layer of a deep network, the batch as examples of what the layer should write."""
    return [
        tuple(
            Demonstration(item.x, item.h, text_of(target))
            for item, target, scored in zip(
                trace.inputs(position), posterior.mode(position + 1), posterior.scored, strict=True
            )
            if scored and text_of(target)
        )
        for position in range(len(trace.hidden))
    ]


@dataclass(frozen=True, slots=True)
class Earlier:
    """An example of an earlier step.

    Attributes:
        x: the network's input.
        y: the wanted output.
        below: what the output layer reads, with posterior weights: hidden texts, or x itself with one layer.
    """

    x: str
    y: str
    below: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Replay:
    """Examples of earlier steps, the newest last; an input's newest version replaces older ones."""

    examples: tuple[Earlier, ...] = ()

    def add(self, trace: Trace, posterior: Posterior, limit: int) -> Replay:
        """With the scored examples of a step; at most `limit`, the newest."""
        if limit <= 0:
            return self
        depth = len(trace.hidden)
        fresh: dict[str, Earlier] = {}
        for i in np.flatnonzero(posterior.scored):
            x, below = trace.x[int(i)], posterior.levels[depth - 1][int(i)]
            texts = tuple((text_of(h), float(w)) for h, w in zip(below.values, below.weights, strict=True) if w > 0)
            fresh[x] = Earlier(x, text_of(posterior.levels[depth][int(i)].mode), texts)
        together = [*(e for e in self.examples if e.x not in fresh), *fresh.values()]
        return Replay(tuple(together[max(0, len(together) - limit) :]))

    def joined(self, candidates: Candidates) -> Candidates:
        """The output layer's candidates with the earlier examples behind those of the batch."""
        batch = set(candidates.trace.x)
        earlier = [example for example in self.examples if example.x not in batch]
        if not earlier or not candidates.is_output:
            return candidates
        trace, posterior, depth = candidates.trace, candidates.posterior, candidates.depth
        levels: list[tuple[Particles[Target], ...]] = []
        hidden: list[tuple[Completion, ...]] = []
        for level in range(depth + 1):
            added = tuple(_particles(example, level, depth) for example in earlier)
            levels.append((*posterior.levels[level], *added))
            if level:
                hidden.append((*trace.hidden[level - 1], *(Completion(text_of(p.mode)) for p in added)))
        yes = np.ones(len(earlier), dtype=np.bool_)
        return replace(
            candidates,
            trace=Trace((*trace.x, *(example.x for example in earlier)), tuple(hidden)),
            posterior=replace(posterior, levels=tuple(levels), scored=np.concatenate([posterior.scored, yes])),
            correct=np.concatenate([candidates.correct, yes]),
            counted=np.concatenate([candidates.counted, yes]),
        )


def _particles(example: Earlier, level: int, depth: int) -> Particles[Target]:
    """Levels below the one that the output layer reads are not looked at: x stands for them."""
    if level == depth:
        return Particles[Target].point(example.y)
    if level < depth - 1:
        return Particles[Target].point(example.x)
    texts: tuple[Target, ...] = tuple(text for text, _ in example.below)
    return Particles[Target](texts, np.log([weight for _, weight in example.below]))


def posterior_weights(log_likelihoods: Sequence[float] | Floats, examples: int, temperature: float) -> Floats:
    """[M] q(π_m) = softmax_m(n · ℓ_m / T).

    Args:
        log_likelihoods: [M] ℓ_m, mean log p(y|x) per held-out example, in nats. What is −∞ or not a number has no
            weight, unless that is so of all: then nothing is known and all weigh the same.
        examples: n ≥ 0, how many examples ℓ is a mean over.
        temperature: T > 0; ∞ is allowed.

    Raises:
        InputError: no log-likelihood, one of +∞, n < 0, or T not above 0.
    """
    values = np.asarray(log_likelihoods, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isposinf(values).any():
        raise InputError("finite log-likelihoods are needed, one per network", got=values.tolist())
    if examples < 0:
        raise InputError("a number of examples cannot be negative", where="examples", got=examples, expected="≥ 0")
    if not temperature > 0:
        raise InputError("the temperature of an ensemble must be above 0", where="temperature", got=temperature)
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), 1.0 / len(values))
    with np.errstate(over="ignore"):  # what overflows is −∞: no weight
        differences = np.where(known, values, np.nan) - values[known].max()
        return softmax(np.where(known, examples * differences / temperature, -np.inf))


def answering(snapshots: Sequence[Snapshot], size: int, *, examples: int | None, temperature: float) -> AnyNetwork:
    """The best `size` networks of the memory, answering together with their posterior weights; one is itself.

    Args:
        snapshots: best first, each set of prompts once (see `dln.infer.memory.remember`); at least one.
        size: M ≥ 1; fewer snapshots are all taken.
        examples: n, how many held-out examples the scores are mean log-likelihoods over; None where the scores
            are something else (an accuracy has no evidence in it): then the weights are equal.
        temperature: T > 0.

    Raises:
        InputError: no snapshot, or a size or temperature that is not possible.
    """
    if not snapshots or size < 1:
        raise InputError("one network or more must answer", got=f"{len(snapshots)} networks, size {size}")
    chosen = snapshots[:size]
    if examples is None:
        weights = posterior_weights([0.0] * len(chosen), 0, math.inf)
    else:
        weights = posterior_weights([snapshot.score for snapshot in chosen], examples, temperature)
    heavy = [(s.network, float(w)) for s, w in zip(chosen, weights, strict=True) if w > 0]
    if len(heavy) == 1:
        return heavy[0][0]
    return Ensemble((network for network, _ in heavy), [weight for _, weight in heavy])
