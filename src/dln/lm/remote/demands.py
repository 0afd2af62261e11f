"""What a model demands of a draw: found by reading refusals, and by one short question.

Models behind one kind of server differ in the fields that they take. Reasoning models want `max_completion_tokens`
instead of `max_tokens`, draw at one temperature only, refuse stop strings, and use tokens for thoughts before the
answer begins. A refusal names the field; the request is changed accordingly and sent again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from dln.errors import DlnError
from dln.lm.base import Sampling
from dln.lm.remote.call import BadRequest
from dln.lm.remote.checks import speaks_of_the_server
from dln.lm.remote.dialect import Demands, Drawn, Prompt, TokensField
from dln.lm.remote.session import Session

__all__ = ["QUESTION", "THINKING_TOKENS", "amended", "settle_demands"]

T = TypeVar("T")

QUESTION = "What is the capital of France? Answer with one word."

SHORT = 32
"""Tokens within which a model that does not reason has answered the question."""

THINKING_TOKENS = (1024, 4096, 16384)
"""Tried in this order; the first that leaves room for an answer is kept."""


def amended(session: Session, ask: Callable[[], T]) -> T:
    """The answer of `ask`, with the session's dialect changed as its refusals demand.

    Raises:
        ProviderError: a refusal that names nothing that can be changed.
    """
    while True:
        try:
            return ask()
        except BadRequest as refusal:
            speaks_of_the_server(refusal)
            demands = after_refusal(session, refusal)
            if demands is None:
                raise
            session.dialect = replace(session.dialect, demands=demands)


def after_refusal(session: Session, refusal: DlnError) -> Demands | None:
    """The demands that explain a refusal; None if it names nothing that has not been changed already."""
    demands, words = session.dialect.demands, f"{refusal.message} {refusal.got}"
    here: TokensField = demands.tokens_field or session.dialect.chat_tokens_field
    other: TokensField = "max_completion_tokens" if here == "max_tokens" else "max_tokens"
    smallest = re.search(
        r"(?:>=|at least|greater than or equal to|minimum(?: value)?(?: of| is)?:?) *`?(\d+)", words, re.IGNORECASE
    )
    if smallest and "token" in words and int(smallest[1]) > demands.min_tokens:
        return replace(demands, min_tokens=int(smallest[1]))
    if session.chat and demands.tokens_field is None and re.search(rf"\b{here}\b", words):
        return replace(demands, tokens_field=other)
    if not demands.fixed_temperature and re.search(r"\b(?:temperature|top_p)\b", words):
        return replace(demands, fixed_temperature=True)
    for name in ("stop", "seed"):
        if name not in demands.left_out and re.search(rf"\b{name}\b", words):
            return replace(demands, left_out=demands.left_out | {name})
    return None


def settle_demands(session: Session, thinking: int | None) -> None:
    """Ask a chat one question at temperature 0 with a stop string, and let thoughts have room if there are any.

    Args:
        session: its dialect is set to what is found.
        thinking: tokens for thoughts; None to find how many are needed.

    Raises:
        ProviderError: the question is refused for another reason than one of these demands.
    """
    if thinking is not None:
        session.dialect = replace(session.dialect, demands=replace(session.dialect.demands, thinking_tokens=thinking))
    if not session.chat:
        return
    answer = amended(session, lambda: _answer(session, SHORT))
    if thinking is not None or not (answer.thought or answer.finish == "length"):
        return
    room = THINKING_TOKENS[-1] if session.context_length is None else max(SHORT, session.context_length // 2)
    limits = [min(most, room) for most in THINKING_TOKENS]
    if not answer.thought and answer.text.strip() and not _answer(session, limits[0]).thought:
        return  # a long answer, not a thought
    for most in dict.fromkeys(limits):
        session.dialect = replace(session.dialect, demands=replace(session.dialect.demands, thinking_tokens=most))
        if _answer(session, SHORT).text.strip():
            return


def _answer(session: Session, max_tokens: int) -> Drawn:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, stop=("\n###\n",))
    call = session.dialect.draw(Prompt(QUESTION, None, True), sampling, None, None)
    return session.send([call], session.dialect.read_draw)[0]
