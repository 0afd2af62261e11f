"""Scoring: the engine against plain padded batches, the same deduplicated, and the limit, in one process.

How scoring time grows as N, B, K and the model's depth double, one at a time.

Work that cannot matter is not done: both M-steps under the default rules against the same in full.

Under the rules hidden texts of little posterior weight are left out and candidates race (see `dln.infer.race`);
in full every candidate is scored on every hidden text of every input, which is what plain batches do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.measure import Machine, Measured, measure, measure_machine
from benchmarks.models import with_layers
from benchmarks.plain import PlainLM
from benchmarks.workload import Labels, Subject, Texts, TwoLayers, Work, Workload, answers, two_layers, work
from dln.infer.objective import Scored
from dln.infer.vi import VariationalInference
from dln.lm.base import text_of
from dln.lm.local.engine import TransformersLM
from dln.train import Options, resolve_options
from dln.train.build import algorithm

__all__ = [
    "BATCH_ROWS",
    "IN_FULL",
    "Growth",
    "SavingResult",
    "ScoringResult",
    "Seconds",
    "best_rows",
    "in_full",
    "measure_saving",
    "measure_scaling",
    "measure_scoring",
    "sample_of",
]

BATCH_ROWS = {"cpu": (1, 4, 8, 16), "cuda": (8, 16, 32, 64)}
"""Batch sizes that the plain ways choose their fastest from."""


@dataclass(frozen=True)
class Seconds:
    """Best and median of some runs, least processor time of one, and the memory that a run took on top, in bytes."""

    best: float
    median: float
    runs: int
    cpu: float
    memory: float

    @classmethod
    def of(cls, measured: Measured[Any], scale: float = 1.0) -> Seconds:
        """Without the values; times `scale` where only a part was measured."""
        seconds = (measured.best * scale, measured.median * scale)
        return cls(*seconds, len(measured.seconds), measured.cpu * scale, measured.memory)


@dataclass(frozen=True)
class ScoringResult:
    """One workload, three ways.

    Attributes:
        name: of the workload.
        about: what it is made of.
        work: tokens asked, needed, rows for the head.
        evaluated: tokens that the engine fed.
        engine: its seconds and memory.
        plain: padded batches.
        deduplicated: the same with equal pairs once, sorted by length.
        plain_rows: batch size that was fastest for `plain`.
        deduplicated_rows: and for `deduplicated`.
        machine: the speed of matrix products around the engine's runs.
        plain_part: of the tokens asked, how much the plain ways scored; their seconds are scaled up.
        largest_difference: of a log-probability between engine and `plain`, in nats.
    """

    name: str
    about: str
    work: Work
    evaluated: int
    engine: Seconds
    plain: Seconds
    deduplicated: Seconds
    plain_rows: int
    deduplicated_rows: int
    machine: Machine
    plain_part: float
    largest_difference: float

    @property
    def limit(self) -> float:
        """Seconds; see `benchmarks.measure`."""
        return self.machine.limit(self.work)

    @property
    def strict_limit(self) -> float:
        """Seconds; likewise."""
        return self.machine.strict_limit(self.work)

    @property
    def speed_up(self) -> float:
        """Best seconds of plain batches over the engine's best."""
        return self.plain.best / self.engine.best

    @property
    def speed_up_deduplicated(self) -> float:
        """The same for deduplicated plain batches."""
        return self.deduplicated.best / self.engine.best

    @property
    def planner_efficiency(self) -> float:
        """Tokens needed over tokens evaluated."""
        return self.work.needed / self.evaluated

    @property
    def hardware_efficiency(self) -> float:
        """Limit over the engine's median seconds: both at the speed that the machine kept up."""
        return self.limit / self.engine.median

    @property
    def strict_efficiency(self) -> float:
        """Strict limit over the engine's median seconds."""
        return self.strict_limit / self.engine.median


def measure_scoring(
    lm: TransformersLM, workload: Workload, repeat: int, plain_tokens: int | None = None
) -> ScoringResult:
    """Score `workload` with the engine and with both plain ways, and compare the numbers.

    Args:
        lm: the engine.
        workload: what is scored.
        repeat: runs of each way.
        plain_tokens: the plain ways score requests that ask for about so many tokens, evenly spread over all, and
            their seconds are multiplied by the tokens asked in all requests over those asked in these: what they
            cost is a sum over batches. None is all.
    """
    device = lm.network.device
    counted = work(lm, workload)
    small = sample_of(workload, max(BATCH_ROWS[device.type]))
    if plain_tokens is not None:  # the batch size is chosen from less than is measured
        small = sample_of(workload, min(small.largest, _requests(workload, counted, plain_tokens // 4)))
    answers(lm, small)  # warms up
    before = lm.diagnostics["tokens"]
    machine = measure_machine(lm)
    engine = measure(lambda: answers(lm, workload), device, repeat, name=f"{workload.name}, engine")
    machine = machine.joined(measure_machine(lm))
    evaluated = (lm.diagnostics["tokens"] - before) // len(engine.seconds)
    plain_lm, sorted_lm = (best_rows(PlainLM(lm, deduplicate=once), small) for once in (False, True))
    part = workload
    if plain_tokens is not None and plain_tokens < counted.asked:
        part = sample_of(workload, _requests(workload, counted, plain_tokens))
    scale = counted.asked / work(lm, part).asked
    plain = measure(lambda: answers(plain_lm, part), device, repeat, name=f"{workload.name}, (a)")
    deduplicated = measure(lambda: answers(sorted_lm, part), device, repeat, name=f"{workload.name}, (b)")
    own = engine.value if part is workload else answers(lm, part)
    return ScoringResult(
        name=workload.name,
        about=workload.about,
        work=counted,
        evaluated=evaluated,
        engine=Seconds.of(engine),
        plain=Seconds.of(plain, scale),
        deduplicated=Seconds.of(deduplicated, scale),
        plain_rows=plain_lm.rows,
        deduplicated_rows=sorted_lm.rows,
        machine=machine,
        plain_part=1 / scale,
        largest_difference=float(np.abs(own - plain.value).max()),
    )


def _requests(workload: Workload, counted: Work, tokens: int) -> int:
    """How many requests of the largest part ask for about so many tokens."""
    return max(1, -(-workload.largest * tokens // counted.asked))


def best_rows(lm: PlainLM, sample: Workload) -> PlainLM:
    """The plain way with the batch size that scores `sample` fastest."""
    device = lm.engine.network.device
    choices = [lm.with_rows(rows) for rows in BATCH_ROWS[device.type]]
    answers(lm, sample_of(sample, 2))  # warms up
    seconds = [measure(lambda lm=lm: answers(lm, sample), device, repeat=1).best for lm in choices]
    return choices[int(np.argmin(seconds))]


def sample_of(workload: Workload, count: int) -> Workload:
    """`count` requests of every part (or all, where there are fewer), evenly spread over it."""
    parts: list[Texts | Labels] = []
    for part in workload.parts:
        size = len(part.contexts)
        chosen = [int(i) for i in np.linspace(0, size - 1, min(count, size)).round()]
        contexts = tuple(part.contexts[i] for i in chosen)
        if isinstance(part, Texts):
            parts.append(Texts(contexts, tuple(part.targets[i] for i in chosen)))
        else:
            parts.append(Labels(contexts, part.words))
    return replace(workload, parts=tuple(parts))


@dataclass(frozen=True)
class Growth:
    """One point: a size, what it asks for and how long the engine takes, best run, in seconds."""

    what: str
    size: int
    asked: int
    needed: int
    seconds: float


def measure_scaling(
    lm: TransformersLM, subject: Subject, *, base: tuple[int, int, int], hidden_tokens: int, repeat: int
) -> list[Growth]:
    """Full scoring of the DLN-2 workload at (N, B, K) = `base`, with each doubled, and on deeper copies of the model.

    The copies have half as many layers as the model, as many, and twice as many, all with random weights.
    """
    prompts, batch, hidden = base
    setting = two_layers(lm, subject, 2 * prompts, 2 * batch, 2 * hidden, hidden_tokens)
    start = setting.workload(prompts, batch, hidden)
    answers(lm, sample_of(start, 4))  # warms up
    at_base = _point("N", prompts, lm, start, repeat)
    points = [at_base, _point("N", 2 * prompts, lm, setting.workload(2 * prompts, batch, hidden), repeat)]
    points += [replace(at_base, what="B", size=batch)]
    points += [_point("B", 2 * batch, lm, setting.workload(prompts, 2 * batch, hidden), repeat)]
    points += [replace(at_base, what="K", size=hidden)]
    points += [_point("K", 2 * hidden, lm, setting.workload(prompts, batch, 2 * hidden), repeat)]
    layers = int(lm.network.model.config.get_text_config().num_hidden_layers)
    words = _as_words(start)
    for depth in (max(1, layers // 2), layers, 2 * layers):
        copy = with_layers(lm, depth)
        answers(copy, sample_of(words, 4))
        points.append(_point("layers", depth, copy, words, repeat))
    return points


def _point(what: str, size: int, lm: TransformersLM, workload: Workload, repeat: int) -> Growth:
    measured = measure(lambda: answers(lm, workload), lm.network.device, repeat, name="growth")
    counted = work(lm, workload)
    return Growth(what, size, counted.asked, counted.needed, measured.best)


def _as_words(workload: Workload) -> Workload:
    """Targets as plain texts: ids that one model drew are not another model's."""
    parts: list[Texts | Labels] = [
        Texts(part.contexts, tuple(map(text_of, part.targets))) if isinstance(part, Texts) else part
        for part in workload.parts
    ]
    return replace(workload, parts=tuple(parts))


IN_FULL: dict[str, Any] = {"prune": 0.0, "race": False}
"""The work-saving rules, off."""


@dataclass(frozen=True)
class SavingResult:
    """The M-steps of a two-layer network under the default rules and in full.

    Attributes:
        name: of the workload.
        saving: seconds of both M-steps under the rules.
        full: the same in full, both with the engine.
        plain_seconds: plain batches in full, best run.
        particles: hidden texts whose weight is kept, as a part of all.
        share: (candidate, pair) scores asked for in the races, as a part of all, per layer.
        same_winner: per layer, whether the winner is that of full scoring.
        winners: per layer, (under the rules, in full).
    """

    name: str
    saving: Seconds
    full: Seconds
    plain_seconds: float
    particles: float
    share: tuple[float, ...]
    same_winner: tuple[bool, ...]
    winners: tuple[tuple[int, int], ...]

    @property
    def speed_up(self) -> float:
        """Plain batches in full over the engine under the rules."""
        return self.plain_seconds / self.saving.best


def measure_saving(lm: TransformersLM, setting: TwoLayers, plain_seconds: float, repeat: int) -> SavingResult:
    """Score both layers' candidates under the default rules and in full.

    Args:
        lm: the engine, as in `setting`.
        setting: a network with hidden texts and candidates, nothing pruned.
        plain_seconds: what plain batches took for the same pairs in full.
        repeat: runs.
    """
    options = resolve_options("default", {"inference": {"hidden_objective": "log_prob"}})
    rules, everything = (
        algorithm(o, lambda p, y: p == y, network=setting.network) for o in (options, in_full(options))
    )
    kept = setting.weighed(rules.e_step.weighting)
    device = lm.network.device
    saving = measure(lambda: _judge(rules, kept), device, repeat, name="work-saving rules")
    full = measure(lambda: _judge(everything, setting), device, repeat, name="both M-steps in full")
    winners = tuple(
        (rules.m_step.select(s.scores, s.per_example), everything.m_step.select(f.scores, f.per_example))
        for s, f in zip(saving.value, full.value, strict=True)
    )
    weights = np.concatenate([particles.weights for particles in kept.posterior.levels[1]])
    return SavingResult(
        name=setting.workload().name,
        saving=Seconds.of(saving),
        full=Seconds.of(full),
        plain_seconds=plain_seconds,
        particles=float(np.mean(weights > 0)),
        share=tuple(scored.share for scored in saving.value),
        same_winner=tuple(a == b for a, b in winners),
        winners=winners,
    )


def in_full(options: Options) -> Options:
    """The same options with the work-saving rules off."""
    return options.model_copy(update={"inference": options.inference.model_copy(update=IN_FULL)})


def _judge(vi: VariationalInference, setting: TwoLayers) -> list[Scored]:
    objectives = (vi.m_step.hidden_objective, vi.m_step.output_objective)
    return [objective(setting.situation(l)) for l, objective in enumerate(objectives)]  # noqa: E741
