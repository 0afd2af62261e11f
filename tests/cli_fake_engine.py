"""An instant language model for tests of the command line: `fake/<seed>`, and `dln` with it as a process.

    python tests/cli_fake_engine.py train --lm fake/1 …

Every context has its own fixed distribution over a few labels and thoughts. `fake/<seed>/slow` in a process waits a
moment at every request, so that a signal can meet it at work; `fake/<seed>/words` tells the probabilities of words,
which output layers then read (the others read label words, which is quick); `fake/hostile` writes terminal escapes;
`fake/broken` raises what no user can cause.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dln.lm.base import Capabilities, Completion, Sampling, Target, TokenLogProbs
from dln.lm.load import ENGINES, Engine
from dln.lm.table import TableLM
from dln.numerics import Floats
from dln.random import Key

__all__ = ["HOSTILE", "LABELS", "install"]

LABELS = (
    *("order", "return", "question", "yes", "no", "好", "bad | worse", "ärger"),
    *("definition", "method", "number", "object", "person", "place", "reason", "time"),
    *(f"class {i}" for i in range(40)),
)
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]look[/bold red]\x9b31m here"
THOUGHTS = tuple(f"{a} thought {n}" for n in range(8) for a in ("deep", "quick", "strange"))


class FakeLM(TableLM):
    """A table model that may wait a moment before it answers, and tells next tokens or not."""

    def __init__(self, spec: str, texts: Sequence[str], seed: int, delay: float, words: bool = False) -> None:
        def conditional(context: str) -> Mapping[str, float]:
            row = Key(seed).child("context", context).generator().dirichlet([0.5] * len(texts))
            # templates with a label on a line of its own ask for it without the space in front
            space = "" if context.endswith("\n") else " "
            return {space + text: p for text, p in zip(texts, row.tolist(), strict=True)}

        super().__init__(conditional, name=spec)
        self._delay, self._words = delay, words

    @property
    def capabilities(self) -> Capabilities:
        """Of a table, without next tokens where these are not told."""
        return replace(super().capabilities, next_tokens="all" if self._words else "none")

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        time.sleep(self._delay)
        return super().sample(contexts, sampling, seeds)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        time.sleep(self._delay)
        return super().log_prob(contexts, targets)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        time.sleep(self._delay)
        return super().choice_log_probs(contexts, labels)


def load(rest: str, spec: str, options: dict[str, Any]) -> TableLM:
    """The model of a `fake/…` spec."""
    kind, _, speed = rest.partition("/")
    if kind == "broken":
        raise ZeroDivisionError("nobody can cause this")
    thoughts = (HOSTILE,) if kind == "hostile" else THOUGHTS
    delay = 0.02 if speed == "slow" and __name__ == "__main__" else 0.0
    return FakeLM(spec, (*LABELS, *thoughts), int(kind) if kind.isdigit() else 0, delay, speed == "words")


def install() -> None:
    """Make `fake/…` a known model of this process."""
    ENGINES["fake"] = Engine("fake/<seed>", load)


if __name__ == "__main__":
    from dln.cli.main import run

    install()
    sys.exit(run(sys.argv[1:]))
