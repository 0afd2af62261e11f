"""The lowest rungs: label masses from what the model answers, when it tells no log-probabilities.

    mass(y) = (n_y + α) / (n + α (C + 1))

n draws per context, n_y of them read as label y; the one more than C is "none of them". Dirichlet smoothing keeps a
label that was not drawn from being impossible. With one greedy answer the same formula is the rung "accuracy".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dln.errors import InputError
from dln.keys import Key
from dln.lm.base import Rung, Sampling
from dln.lm.remote.engine_session import Session
from dln.numerics import Floats

__all__ = ["AnsweredLabels", "labels_in"]

ALPHA = 0.5


@dataclass(frozen=True)
class AnsweredLabels:
    """Frequencies of the labels among draws.

    Args:
        session: the server.
        draws: n per context; 0 takes the one greedy answer instead.
    """

    session: Session
    draws: int

    @property
    def name(self) -> Rung:
        """The rung's name."""
        return "Monte-Carlo" if self.draws else "accuracy"

    def log_masses(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """One call per context and draw; the seeds depend on the context alone."""
        if not labels or any(not label.strip() for label in labels) or len(set(labels)) != len(labels):
            raise InputError("labels must be distinct and not empty", where="labels", got=list(labels))
        dialect = self.session.dialect
        longest = max(len(label.encode()) for label in labels)
        sampling = Sampling(temperature=1.0 if self.draws else 0.0, max_tokens=8 + longest // 2)
        count = self.draws or 1
        calls = [
            dialect.draw(prompt, sampling, Key(0).integer("label", context, i) if self.draws else None, None)
            for context, prompt in zip(contexts, self.session.prompts(contexts), strict=True)
            for i in range(count)
        ]
        texts = iter([drawn.text for drawn in self.session.send(calls, dialect.read_draw)])
        masses = np.zeros((len(contexts), len(labels)))
        for row in masses:
            for _ in range(count):
                read = labels_in(next(texts), labels)
                row[list(read)] += 1 / max(1, len(read))
        return np.log((masses + ALPHA) / (count + ALPHA * (len(labels) + 1)))


def labels_in(text: str, labels: Sequence[str]) -> tuple[int, ...]:
    """Which labels an answer names, as positions: usually one, none if it says no label or several.

    The answer must begin with the label, or else name exactly one somewhere, as whole words and in any case. Of
    labels that begin alike the longest counts. Labels that differ in case only share an answer unless one of them
    is spelled exactly so.
    """
    words = [label.strip() for label in labels]
    folded = [word.casefold() for word in words]
    answer = text.strip().lstrip("\"'`*([")
    opening = [word for word in folded if _begins(answer.casefold(), word)]
    if not opening:
        at = [i for i in range(len(answer)) if i == 0 or not answer[i - 1].isalnum()]
        named = {w for i in at for w in folded if _begins(answer[i:].casefold(), w)}
        opening = [word for word in named if not any(word != other and word in other for other in named)]
        if len(opening) != 1:
            return ()
    best = max(opening, key=len)
    alike = tuple(i for i, word in enumerate(folded) if word == best)
    exact = tuple(i for i in alike if answer.startswith(words[i]))
    return exact or alike


def _begins(text: str, word: str) -> bool:
    return text.startswith(word) and not text[len(word) : len(word) + 1].isalnum()
