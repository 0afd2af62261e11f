"""A workload: texts to be scored under contexts, labels to be scored under contexts, and what that costs at least.

asked  = Σ (|s| − 1)          over all pairs, s = context ⧺ target
needed = distinct non-empty prefixes of all s[:−1]        (trie nodes)
rows   = those of them after which a token is predicted  (what the output head must see)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dln.lm.base import Completion, LanguageModel, Target
from dln.lm.plan import Plan
from dln.lm.transformers import TransformersLM
from dln.numerics import Floats

__all__ = ["Labels", "Texts", "Work", "Workload", "answers", "work"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """Texts to be scored, pair by pair."""

    contexts: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Labels:
    """C label words to be scored under every context."""

    contexts: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """What one M-step of every layer asks of the model.

    Attributes:
        name: short, for tables.
        about: one sentence: data, prompts, sizes.
        parts: one request to the model each.
    """

    name: str
    about: str
    parts: tuple[Texts | Labels, ...]

    @property
    def largest(self) -> int:
        """Requests of its largest part."""
        return max(len(part.contexts) for part in self.parts)


@dataclass(frozen=True)
class Work:
    """Tokens of a workload; see the module's formulas. `pairs` counts (context, target) pairs."""

    pairs: int
    asked: int
    needed: int
    rows: int


def answers(lm: LanguageModel, workload: Workload) -> Floats:
    """All log-probabilities that the workload asks for, in one flat array, in nats."""
    values: list[Floats] = []
    for part in workload.parts:
        if isinstance(part, Texts):
            values.extend(scores.values for scores in lm.log_prob(part.contexts, part.targets))
        else:
            values.append(lm.choice_log_probs(part.contexts, part.words).ravel())
    return np.concatenate(values)


def work(lm: TransformersLM, workload: Workload) -> Work:
    """Tokens asked and needed, counted from the definition (the engine's own counts are not looked at)."""
    totals = np.zeros(4, dtype=np.int64)
    for part in workload.parts:
        totals += _of_part(_pairs(lm, part))
    return Work(*(int(value) for value in totals))


def _pairs(lm: TransformersLM, part: Texts | Labels) -> list[tuple[Ids, Ids]]:
    contexts = [lm.codec.context_ids(context, lm.chat) for context in part.contexts]
    if isinstance(part, Texts):
        return list(zip(contexts, (_target_ids(lm, target) for target in part.targets), strict=True))
    words = [_target_ids(lm, word) for word in part.words]
    return [(context, word) for context in contexts for word in words]


def _target_ids(lm: TransformersLM, target: Target) -> Ids:
    if isinstance(target, Completion) and target.token_ids is not None:
        return target.token_ids
    return lm.codec.target_ids(str(target))


def _of_part(pairs: Sequence[tuple[Ids, Ids]]) -> tuple[int, int, int, int]:
    fed = {(*context, *target[:-1]): len(context) for context, target in pairs}
    plan = Plan.of(list(fed))
    # equal sequences may have different contexts only if a context ends where another's target goes on
    starts: dict[Ids, set[int]] = {}
    for context, target in pairs:
        starts.setdefault((*context, *target[:-1]), set()).add(len(context))
    rows: set[int] = set()
    for sequence, path in plan.paths():
        rows.update(path[min(starts[sequence]) - 1 :].tolist())
    asked = sum(len(context) + len(target) - 1 for context, target in pairs)
    return len(pairs), asked, plan.size, len(rows)
