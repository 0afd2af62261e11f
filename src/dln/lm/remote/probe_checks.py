"""The probe's single checks: each asks a few small questions and says what the answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dln.errors import DlnError, InputError
from dln.lm.base import Sampling
from dln.lm.remote.call import MalformedReply
from dln.lm.remote.dialect_values import Drawn, ModelCard, Prompt
from dln.lm.remote.engine_session import Session
from dln.lm.remote.faults import BadRequest, ModelNotFound, ServerFailed
from dln.lm.remote.ladder import Pair, TargetRung
from dln.lm.remote.ladder_labels import PickedLabels
from dln.lm.remote.probe_report import Densities, Seeds
from dln.lm.remote.read import Token, malformed
from dln.numerics import logsumexp

__all__ = [
    "REFUSALS",
    "Unfit",
    "check_picked",
    "check_targets",
    "check_top",
    "first_draw",
    "kept_densities",
    "model_card",
    "said",
    "seeds_matter",
    "settle_ids",
    "top_tokens",
]

CONTEXT = "Question: What is the capital of France, and what is it known for?\nAnswer:"
PLAIN = " It is Paris, which is known for its art."
LABELS = (" Paris", " London")
KNOWN = Sampling(temperature=1.0, max_tokens=8)
AGREEMENT = 0.1
"""Mean difference of two log-probabilities of one token, in nats, that rounding can explain (bfloat16)."""

REFUSALS = (BadRequest, ModelNotFound, ServerFailed, MalformedReply, InputError)
"""What speaks against one way of asking; anything else speaks against the server, and is raised."""


class Unfit(Exception):
    """The server answers, but not rightly."""


def said(refusal: DlnError) -> str:
    """A refusal as a reason."""
    return refusal.message if refusal.got is None else f"{refusal.message}: {refusal.got}"


def model_card(session: Session) -> ModelCard:
    """What the server lists of the model; an empty card if it lists nothing."""
    try:
        card = session.send([session.dialect.list_models()], session.dialect.read_models)[0]
    except REFUSALS:
        return ModelCard(session.dialect.model)
    session.context_length = card.context_length
    return card


def first_draw(session: Session) -> tuple[Drawn, bool]:
    """A known draw at temperature 1, and whether draws come with log-probabilities.

    The dialect is cut down to the plain form where the server refuses more.

    Raises:
        ProviderError: the server cannot draw at all.
    """
    plain = replace(session.dialect, extras=False)
    ways = [(session.dialect, 1), *([(plain, 1)] if session.dialect.extras else []), (plain, None)]
    for at, (dialect, top) in enumerate(ways):
        session.dialect = dialect
        try:
            drawn = known_draw(session, top)
        except REFUSALS:
            if at == len(ways) - 1:
                raise
        else:
            return drawn, bool(drawn.row.tokens)
    raise AssertionError("the last way returns or raises")


def known_draw(session: Session, top: int | None) -> Drawn:
    """The first of a few draws that has two tokens or more."""
    prompt = session.prompts([CONTEXT])[0]
    drawn: list[Drawn] = []
    for seed in range(4):
        call = session.dialect.draw(prompt, KNOWN, seed, top)
        drawn += session.send([call], session.dialect.read_draw)
        if len(drawn[-1].row.tokens) > 1 or (top is None and drawn[-1].text):
            return drawn[-1]
    return drawn[-1]


def settle_ids(session: Session) -> str:
    """Let prompts go as ids if the server encodes texts and continues ids as it continues the text."""
    if not session.dialect.has_tokenizer:
        return "not reachable: lengths are estimated"
    greedy = Sampling(max_tokens=4)

    def draw() -> str:
        call = session.dialect.draw(session.prompts([CONTEXT])[0], greedy, None, None)
        return session.send([call], session.dialect.read_draw)[0].text

    try:
        plain = session.encode([CONTEXT, PLAIN], alone=True)
        by_text = None if session.chat else draw()
        session.takes_ids = True
        by_ids = draw()
    except REFUSALS as refusal:
        session.takes_ids = False
        return f"not reachable ({said(refusal)}): lengths are estimated"
    if by_text is not None and by_text != by_ids:
        session.takes_ids = False
        return "disagrees with what the server makes of a text: ids are not used"
    session.tokens_per_byte = sum(map(len, plain)) / len((CONTEXT + PLAIN).encode())
    return f"the server's own, agrees ({len(plain[0])} and {len(plain[1])} tokens of two known texts)"


def check_targets(session: Session, rung: TargetRung, known: Drawn) -> str:
    """Score a draw's tokens, and a text in one piece and in two.

    Raises:
        Unfit: the numbers disagree, or are none.
    """
    prompt = session.prompts([CONTEXT])[0]
    reason = "the chain rule holds"
    if session.takes_ids:
        if known.ids and known.row.tokens:
            _agree([token.log_prob for token in known.row.tokens], _row(rung, Pair(prompt, "", known.ids)), "a draw's")
            reason = "a draw's own log-probabilities are met, and the chain rule holds"
        ids = session.encode([PLAIN], alone=True)[0]
        half = len(ids) // 2
        later = Prompt(prompt.text, (*(prompt.ids or ()), *ids[:half]), prompt.chat)
        whole = _row(rung, Pair(prompt, "", ids))
        parts = [*_row(rung, Pair(prompt, "", ids[:half])), *_row(rung, Pair(later, "", ids[half:]))]
    else:
        if known.row.tokens and known.text.strip() and CONTEXT + known.text == (CONTEXT + known.text).rstrip():
            scored = rung.rows([Pair(prompt, known.text)])[0]
            pairs = [(a, b) for a, b in zip(known.row.tokens, scored or (), strict=False) if a.text == b.text]
            if pairs:
                _agree([a.log_prob for a, _ in pairs], [b.log_prob for _, b in pairs], "a draw's")
                reason = "a draw's own log-probabilities are met, and the chain rule holds"
        words = PLAIN.split(" is ", 1)
        middle = f"{words[0]} is"
        whole = _row(rung, Pair(prompt, PLAIN))
        later = Prompt(CONTEXT + middle)
        parts = [*_row(rung, Pair(prompt, middle)), *_row(rung, Pair(later, PLAIN.removeprefix(middle)))]
    _agree(whole, parts, "the chain rule's")
    return reason


def check_picked(session: Session, rung: PickedLabels, targets: TargetRung | None, known: Drawn) -> str:
    """Compare the log-probabilities of asked-for tokens with those of a draw and of scored texts.

    Raises:
        Unfit: they disagree.
    """
    dialect, prompt = session.dialect, session.prompts([CONTEXT])[0]
    masses = rung.log_masses([CONTEXT], LABELS)
    if not logsumexp(masses)[0] <= 1e-3:
        raise Unfit(f"the masses of two labels are {masses[0].tolist()}")
    if known.ids and known.row.tokens:
        row = session.send([dialect.next_tokens(prompt, 1, known.ids[:1])], dialect.read_next)[0]
        picked = next(token.log_prob for token in row.tops[0] if token.id == known.ids[0])
        _agree([known.row.tokens[0].log_prob], [picked], "a draw's")
    if targets is not None:
        ids = session.encode(LABELS, alone=True)
        scored = [sum(_row(targets, Pair(prompt, "", row))) for row in ids]
        if not any(a != b and a == b[: len(a)] for a in ids for b in ids):
            _agree(scored, masses[0].tolist(), "scored labels'")
    return "asked-for tokens come with the log-probabilities that they have elsewhere"


def check_top(top: int, session: Session) -> str:
    """Look whether the likeliest tokens are probabilities.

    Raises:
        Unfit: they are not.
    """
    values = [token.log_prob for token in _next(session, top)]
    if not all(value <= 1e-3 for value in values) or not logsumexp(values) <= 1e-2:
        raise Unfit(f"impossible log-probabilities {values}")
    return f"the {top} likeliest tokens"


def top_tokens(session: Session) -> int:
    """How many likeliest next tokens the server gives; 0 for none."""
    for top in session.dialect.top_choices:
        try:
            given = len(_next(session, top))
        except REFUSALS:
            continue
        return min(given, top) if given > 1 else 0
    return 0


def seeds_matter(session: Session) -> Seeds:
    """Draw with the same seed twice, and with others."""
    sampling = Sampling(temperature=1.0, max_tokens=12)
    prompt = session.prompts([CONTEXT])[0]
    texts: list[tuple[str, ...]] = []
    for _ in range(2):  # one after the other: equal calls in flight would be one call
        calls = [session.dialect.draw(prompt, sampling, seed, None) for seed in (11, 12, 13, 14)]
        texts.append(tuple(drawn.text for drawn in session.send(calls, session.dialect.read_draw)))
    if texts[0] != texts[1]:
        return "ignored"
    return "honoured" if len(set(texts[0])) > 1 else "unknown"


def kept_densities(session: Session, targets: TargetRung | None) -> Densities:
    """Whether a draw at another temperature comes with the model's log-probabilities or with those drawn from."""
    if targets is None or not session.takes_ids:
        return "unknown"
    prompt = session.prompts([CONTEXT])[0]
    call = session.dialect.draw(prompt, Sampling(temperature=2.0, max_tokens=8), 5, 1)
    try:
        drawn = session.send([call], session.dialect.read_draw)[0]
    except REFUSALS:
        return "unknown"
    if not drawn.ids or not drawn.row.tokens:
        return "none"
    session.tells_densities = drawn.row.sampling is not None
    try:
        _agree([t.log_prob for t in drawn.row.tokens], _row(targets, Pair(prompt, "", drawn.ids)), "")
    except Unfit:
        return "sampling"
    return "model"


def _next(session: Session, top: int) -> tuple[Token, ...]:
    prompt = Prompt(CONTEXT, None, True) if session.chat else Prompt(CONTEXT)
    row = session.send([session.dialect.next_tokens(prompt, top, ())], session.dialect.read_next)[0]
    return row.tops[0] if row.tops else ()


def _row(rung: TargetRung, pair: Pair) -> list[float]:
    row = rung.rows([pair])[0]
    if row is None:
        raise Unfit("a token reaches across the boundary of context and target")
    if pair.prompt.ids is not None and len(row) != len(pair.ids):
        raise malformed("not one log-probability per token", where="scores", got=len(row), expected=len(pair.ids))
    return [token.log_prob for token in row]


def _agree(expected: Sequence[float], got: Sequence[float], whose: str) -> None:
    one, two = np.array(expected), np.array(got)
    if len(one) != len(two):
        raise Unfit(f"{len(two)} log-probabilities where {whose} are {len(one)}")
    if np.isnan(one).any() or np.isnan(two).any():
        raise Unfit("a log-probability is missing")
    if (one > 1e-3).any() or (two > 1e-3).any():
        raise Unfit("a log-probability is positive")
    apart = np.abs(np.where(one == two, 0.0, one) - np.where(one == two, 0.0, two))
    if not len(apart) or not apart.mean() <= AGREEMENT:
        raise Unfit(f"scored {_shown(two)} where {whose} are {_shown(one)}")


def _shown(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values[:4]) + (", …]" if len(values) > 4 else "]")
