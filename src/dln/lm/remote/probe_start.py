"""The probe's first questions: which form of request the server takes, whether it takes ids, and a known draw."""

from __future__ import annotations

from dataclasses import replace

from dln.errors import DlnError, InputError
from dln.lm.base import Sampling
from dln.lm.remote.call import MalformedReply
from dln.lm.remote.dialect_values import Drawn, ModelCard, Prompt
from dln.lm.remote.engine_session import Session
from dln.lm.remote.faults import BadRequest, ModelNotFound, ServerFailed, passing
from dln.lm.remote.read import Token

__all__ = [
    "CONTEXT",
    "PLAIN",
    "REFUSALS",
    "first_draw",
    "known_draw",
    "model_card",
    "next_top",
    "said",
    "settle_ids",
    "speaks_of_the_server",
    "top_tokens",
]

CONTEXT = "Question: What is the capital of France, and what is it known for?\nAnswer:"
PLAIN = " It is Paris, which is known for its art."
KNOWN = Sampling(temperature=1.0, max_tokens=6)

REFUSALS = (BadRequest, ModelNotFound, ServerFailed, MalformedReply, InputError)
"""What speaks against one way of asking; anything else speaks against the server, and is raised."""


def speaks_of_the_server(refusal: DlnError) -> DlnError:
    """The refusal, if it says something of how the server may be asked.

    Raises:
        ServerFailed: it was only ill: a lower rung for the whole run would be the wrong remedy.
    """
    if passing(refusal):
        raise refusal
    return refusal


def said(refusal: DlnError) -> str:
    """A refusal as a reason."""
    return refusal.message if refusal.got is None else f"{refusal.message}: {refusal.got}"


def model_card(session: Session) -> ModelCard:
    """What the server lists of the model, whose listed name is asked for from now on; an empty card if nothing."""
    try:
        card = session.send([session.dialect.list_models()], session.dialect.read_models)[0]
    except REFUSALS as refusal:
        speaks_of_the_server(refusal)
        return ModelCard(session.dialect.model)
    session.context_length = card.context_length
    session.dialect = replace(session.dialect, model=card.name)
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
        except REFUSALS as refusal:
            speaks_of_the_server(refusal)
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
        speaks_of_the_server(refusal)
        return f"not reachable ({said(refusal)}): lengths are estimated"
    if by_text is not None and by_text != by_ids:
        session.takes_ids = False
        return "disagrees with what the server makes of a text: ids are not used"
    session.tokens_per_byte = sum(map(len, plain)) / len((CONTEXT + PLAIN).encode())
    return f"the server's own, agrees ({len(plain[0])} and {len(plain[1])} tokens of two known texts)"


def top_tokens(session: Session) -> int:
    """How many likeliest next tokens the server gives; 0 for none."""
    for top in session.dialect.top_choices:
        try:
            given = len(next_top(session, top))
        except REFUSALS as refusal:
            speaks_of_the_server(refusal)
            continue
        return min(given, top) if given > 1 else 0
    return 0


def next_top(session: Session, top: int) -> tuple[Token, ...]:
    """The likeliest tokens after the known context; empty where the answer ended at once."""
    prompt = Prompt(CONTEXT, None, True) if session.chat else Prompt(CONTEXT)
    row = session.send([session.dialect.next_tokens(prompt, top, ())], session.dialect.read_next)[0]
    return row.tops[0] if row.tops else ()
