"""How scoring time grows as N, B, K and the model's depth double, one at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dln.bench.clock import measure
from dln.bench.models import with_layers
from dln.bench.scoring import sample_of
from dln.bench.subject import Subject
from dln.bench.two_layers import two_layers
from dln.bench.workload import Labels, Texts, Workload, answers, work
from dln.lm.base import text_of
from dln.lm.transformers import TransformersLM

__all__ = ["Growth", "measure_scaling"]


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
