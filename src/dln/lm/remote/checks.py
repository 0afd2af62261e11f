"""Checks of a server's numbers against each other; `probe` chooses the scoring mode by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dln.errors import DlnError, InputError
from dln.lm.base import Sampling
from dln.lm.remote.call import BadRequest, MalformedReply, ModelNotFound, ServerFailed, passing
from dln.lm.remote.dialect import Drawn, Prompt
from dln.lm.remote.read import ScoredToken, malformed
from dln.lm.remote.scoring import Pair, PickedLabels, TextScorer
from dln.lm.remote.session import Session
from dln.numerics import logsumexp

__all__ = [
    "CONTEXT",
    "PLAIN",
    "REFUSALS",
    "Densities",
    "Seeds",
    "Unfit",
    "check_picked",
    "check_targets",
    "check_top",
    "kept_densities",
    "next_top",
    "seeds_matter",
    "speaks_of_the_server",
]

Seeds = Literal["honoured", "ignored", "unknown"]

Densities = Literal["model", "sampling", "unknown", "none"]

LABELS = (" Paris", " London")

DRAWN = "a draw's"

AGREEMENT = 0.1
"""Mean difference of two log-probabilities of one token, in nats, that rounding can explain (bfloat16)."""


class Unfit(Exception):
    """The server answers, but not rightly."""


def check_targets(session: Session, scorer: TextScorer, known: Drawn) -> str:
    """Score a draw's tokens, and a text in one piece and in two.

    Raises:
        Unfit: the numbers disagree, or are none.
    """
    prompt = session.prompts([CONTEXT])[0]
    reason = "the chain rule holds"
    if session.takes_ids:
        if known.ids and known.row.tokens:
            scored = _rows(scorer, [Pair(prompt, "", known.ids)])[0]
            _agree([token.log_prob for token in known.row.tokens], scored, DRAWN)
            reason = "a draw's own log-probabilities are met, and the chain rule holds"
        ids = session.encode([PLAIN], alone=True)[0]
        half = len(ids) // 2
        later = Prompt(prompt.text, (*(prompt.ids or ()), *ids[:half]), prompt.chat)
        pairs = [Pair(prompt, "", ids), Pair(prompt, "", ids[:half]), Pair(later, "", ids[half:])]
    else:
        if known.row.tokens and known.text.strip() and CONTEXT + known.text == (CONTEXT + known.text).rstrip():
            row = scorer.rows([Pair(prompt, known.text)])[0]
            same = [(a, b) for a, b in zip(known.row.tokens, row or (), strict=False) if a.text == b.text]
            if same:
                _agree([a.log_prob for a, _ in same], [b.log_prob for _, b in same], DRAWN)
                reason = "a draw's own log-probabilities are met, and the chain rule holds"
        words = PLAIN.split(" is ", 1)
        middle = f"{words[0]} is"
        later = Prompt(CONTEXT + middle)
        pairs = [Pair(prompt, PLAIN), Pair(prompt, middle), Pair(later, PLAIN.removeprefix(middle))]
    whole, begin, end = _rows(scorer, pairs)
    _agree(whole, [*begin, *end], "the chain rule's")
    return reason


def check_picked(session: Session, scorer: PickedLabels, targets: TextScorer | None, known: Drawn) -> str:
    """Compare the log-probabilities of asked-for tokens with those of a draw and of scored texts.

    Raises:
        Unfit: they disagree.
    """
    dialect, prompt = session.dialect, session.prompts([CONTEXT])[0]
    masses = scorer.log_masses([CONTEXT], LABELS)
    if not logsumexp(masses)[0] <= 1e-3:
        raise Unfit(f"the masses of two labels are {masses[0].tolist()}")
    if known.ids and known.row.tokens:
        row = session.send([dialect.next_tokens(prompt, 1, known.ids[:1])], dialect.read_next)[0]
        picked = next(token.log_prob for token in row.tops[0] if token.id == known.ids[0])
        _agree([known.row.tokens[0].log_prob], [picked], DRAWN)
    if targets is not None:
        ids = session.encode(LABELS, alone=True)
        scored = [sum(row) for row in _rows(targets, [Pair(prompt, "", row) for row in ids])]
        if not any(a != b and a == b[: len(a)] for a in ids for b in ids):
            _agree(scored, masses[0].tolist(), "scored labels'")
    return "asked-for tokens come with the log-probabilities that they have elsewhere"


def check_top(top: int, session: Session) -> str:
    """Look whether the likeliest tokens are probabilities.

    Raises:
        Unfit: they are not.
    """
    values = [token.log_prob for token in next_top(session, top)]
    if not all(value <= 1e-3 for value in values) or not -5.0 <= logsumexp(values) <= 1e-2:
        raise Unfit(f"impossible log-probabilities {values}")
    return f"the {top} likeliest tokens"


def seeds_matter(session: Session) -> Seeds:
    """Draw with the same seed twice, and with others."""
    sampling = Sampling(temperature=1.0, max_tokens=8)
    prompt = session.prompts([CONTEXT])[0]
    texts: list[tuple[str, ...]] = []
    for _ in range(2):  # one after the other: equal calls in flight would be one call
        calls = [session.dialect.draw(prompt, sampling, seed, None) for seed in (11, 12, 13)]
        texts.append(tuple(drawn.text for drawn in session.send(calls, session.dialect.read_draw)))
    if texts[0] != texts[1]:
        return "ignored"
    return "honoured" if len(set(texts[0])) > 1 else "unknown"


def kept_densities(session: Session, targets: TextScorer | None, known: Drawn) -> Densities:
    """Whether a draw at another temperature comes with the model's log-probabilities or with those drawn from."""
    session.tells_densities = known.row.sampling is not None
    if session.tells_densities:
        return "model"  # the server tells both, each under its name
    if targets is None or not session.takes_ids:
        return "unknown"
    prompt = session.prompts([CONTEXT])[0]
    call = session.dialect.draw(prompt, Sampling(temperature=2.0, max_tokens=6), 5, 1)
    try:
        drawn = session.send([call], session.dialect.read_draw)[0]
    except REFUSALS as refusal:
        speaks_of_the_server(refusal)
        return "unknown"
    if not drawn.ids or not drawn.row.tokens:
        return "none"
    try:
        scored = _rows(targets, [Pair(prompt, "", drawn.ids)])[0]
        _agree([t.log_prob for t in drawn.row.tokens], scored, "")
    except Unfit:
        return "sampling"
    return "model"


def _rows(scorer: TextScorer, pairs: Sequence[Pair]) -> list[list[float]]:
    found: list[list[float]] = []
    for row, pair in zip(scorer.rows(pairs), pairs, strict=True):
        if row is None:
            raise Unfit("a token reaches across the boundary of context and target")
        if pair.prompt.ids is not None and len(row) != len(pair.ids):
            raise malformed("not one log-probability per token", where="scores", got=len(row), expected=len(pair.ids))
        found.append([token.log_prob for token in row])
    return found


def _agree(expected: Sequence[float], got: Sequence[float], whose: str) -> None:
    one, two = np.array(expected), np.array(got)
    if len(one) != len(two):
        raise Unfit(f"{len(two)} log-probabilities where {whose} are {len(one)}")
    if np.isnan(one).any() or np.isnan(two).any():
        raise Unfit("a log-probability is missing")
    if whose == DRAWN and not np.isfinite(one).all():
        raise Unfit("a drawn token has no finite log-probability")
    if (one > 1e-3).any() or (two > 1e-3).any():
        raise Unfit("a log-probability is positive")
    apart = np.abs(np.where(one == two, 0.0, one) - np.where(one == two, 0.0, two))
    if not len(apart) or not apart.mean() <= AGREEMENT:
        raise Unfit(f"scored {_shown(two)} where {whose} are {_shown(one)}")


def _shown(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values[:4]) + (", …]" if len(values) > 4 else "]")


CONTEXT = "Question: What is the capital of France, and what is it known for?\nAnswer:"

PLAIN = " It is Paris, which is known for its art."

REFUSALS = (BadRequest, ModelNotFound, ServerFailed, MalformedReply, InputError)
"""What speaks against one way of asking; anything else speaks against the server, and is raised."""


def speaks_of_the_server(refusal: DlnError) -> DlnError:
    """The refusal, if it says something of how the server may be asked.

    Raises:
        ServerFailed: the failure is transient: a weaker scoring mode for the whole run would be the wrong remedy.
    """
    if passing(refusal):
        raise refusal
    return refusal


def next_top(session: Session, top: int) -> tuple[ScoredToken, ...]:
    """The likeliest tokens after the known context; empty where the answer ended at once."""
    prompt = Prompt(CONTEXT, None, True) if session.chat else Prompt(CONTEXT)
    row = session.send([session.dialect.next_tokens(prompt, top, ())], session.dialect.read_next)[0]
    return row.tops[0] if row.tops else ()
