"""Reading replies strictly: a number that a server sent is kept as it is, and what is not there is never made up.

    null, "NaN" → NaN        −9999 and below → −inf        ±inf, positive numbers → as they are

Callers exclude and count what cannot be a log-probability. What has not the form of an answer at all (choices
missing, fewer than asked, in no order, lists that do not match) raises `MalformedReply`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from dln.lm.remote.call import MalformedReply

__all__ = [
    "Token",
    "TokenRow",
    "choices_of",
    "finish_of",
    "ids_of",
    "integer",
    "malformed",
    "mapping",
    "model_of",
    "number",
    "sequence",
    "string",
    "token_row",
]

LOWEST = -9999.0
"""What servers write for −inf, which JSON does not have."""

TOKEN_ID = "token_id:"  # noqa: S105 - a prefix of a token of text
SHOWN = 200

SCORELESS = "no log-probabilities of some tokens"


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its log-probability in nats; `id` or `text` is None where the server does not say."""

    id: int | None
    text: str | None
    log_prob: float


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The tokens of one choice.

    Attributes:
        tokens: what stands there, in order.
        tops: for each of them, the likeliest tokens at its place; empty where not asked.
        offsets: where each begins in the text, in characters; None where the server does not say.
        sampling: log q of each under the distribution drawn from; None where the server does not say.
    """

    tokens: tuple[Token, ...] = ()
    tops: tuple[tuple[Token, ...], ...] = ()
    offsets: tuple[int, ...] | None = None
    sampling: tuple[float, ...] | None = None


def malformed(message: str, *, where: str, got: object = None, expected: object = None) -> MalformedReply:
    """The error for an answer that is none; what was got is cut to a readable length."""
    shown = "nothing" if got is None else repr(got)
    if len(shown) > SHOWN:
        shown = f"{shown[:SHOWN]}…"
    return MalformedReply(
        message,
        where=where,
        got=shown,
        expected=expected,
        fix="look at the server's log and version; `dln doctor` says what it can do",
    )


def mapping(value: object, where: str) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise malformed("no JSON object", where=where, got=value)
    return cast("dict[str, Any]", value)


def sequence(value: object, where: str) -> list[Any]:
    """`value`, which must be a JSON list."""
    if not isinstance(value, list):
        raise malformed("no list", where=where, got=value)
    return cast("list[Any]", value)


def string(value: object, where: str) -> str:
    """`value`, which must be a text; null is none."""
    if not isinstance(value, str):
        raise malformed("no text", where=where, got=value)
    return value


def integer(value: object, where: str) -> int:
    """`value`, which must be a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise malformed("no whole number", where=where, got=value)
    return value


def number(value: object, where: str) -> float:
    """A log-probability as the server sent it: null is NaN, −9999 and below is −inf."""
    if value is None:
        return float("nan")
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed("no number", where=where, got=value)
    return float("-inf") if value <= LOWEST else float(value)


def model_of(reply: object) -> str | None:
    """The name of the model that answered, if the server says it."""
    name = cast("dict[str, Any]", reply).get("model") if isinstance(reply, dict) else None
    return name if isinstance(name, str) and name else None


def choices_of(reply: object, count: int = 1) -> list[dict[str, Any]]:
    """The choices in the order they were asked for, whatever order they came in.

    Raises:
        MalformedReply: none, fewer or more than `count`, or indices that are not 0 … count − 1.
    """
    choices = [mapping(choice, "choices") for choice in sequence(mapping(reply, "reply").get("choices"), "choices")]
    if len(choices) != count:
        raise malformed("not as many choices as were asked for", where="choices", got=len(choices), expected=count)
    if count == 1 and choices[0].get("index") in (None, 0):
        return choices
    places = [integer(choice.get("index"), "choices.index") for choice in choices]
    if sorted(places) != list(range(count)):
        raise malformed(
            "the choices' indices do not fit", where="choices.index", got=places, expected=f"0 … {count - 1}"
        )
    return [choice for _, choice in sorted(zip(places, choices, strict=True), key=lambda pair: pair[0])]


def finish_of(choice: dict[str, Any]) -> str:
    """Why the text ends: "length" or "stop".

    Raises:
        MalformedReply: the server filtered or broke off the text, so that it is no draw of the model.
    """
    reason = choice.get("finish_reason")
    if reason in ("content_filter", "error", "abort"):
        raise malformed("the text was not finished by the model", where="finish_reason", got=reason)
    return "length" if reason in ("length", "max_tokens") else "stop"


def ids_of(value: object, where: str) -> tuple[int, ...]:
    """A list of token ids."""
    return tuple(integer(token, where) for token in sequence(value, where))


def token_row(logprobs: object, where: str = "logprobs") -> TokenRow:
    """The tokens of a choice, from the list of entries (`content`) or from parallel lists (`tokens`, …)."""
    if logprobs is None:
        return TokenRow()
    fields = mapping(logprobs, where)
    if fields.get("content") is not None:
        return _from_entries(
            [mapping(entry, where) for entry in sequence(fields["content"], f"{where}.content")], where
        )
    return _from_lists(fields, where)


def _from_entries(entries: list[dict[str, Any]], where: str) -> TokenRow:
    offsets = [entry.get("text_offset") for entry in entries]
    sampling = [entry.get("sampling_logprob") for entry in entries]
    return TokenRow(
        tokens=tuple(_entry(entry, where) for entry in entries),
        tops=tuple(
            tuple(_entry(mapping(top, where), where) for top in sequence(entry.get("top_logprobs") or [], where))
            for entry in entries
        ),
        offsets=None if None in offsets or not entries else tuple(integer(offset, where) for offset in offsets),
        sampling=None if None in sampling or not entries else tuple(number(value, where) for value in sampling),
    )


def _entry(entry: dict[str, Any], where: str) -> Token:
    token_id = entry.get("token_id", entry.get("id"))
    token = _named(string(entry.get("token"), f"{where}.token"), number(entry.get("logprob"), f"{where}.logprob"))
    return token if token_id is None else Token(integer(token_id, f"{where}.token_id"), token.text, token.log_prob)


def _from_lists(fields: dict[str, Any], where: str) -> TokenRow:
    texts = [string(text, f"{where}.tokens") for text in sequence(fields.get("tokens"), f"{where}.tokens")]

    def beside(name: str) -> list[Any] | None:
        values = fields.get(name)
        if values is None or (values == [] and texts):
            return None
        rows = sequence(values, f"{where}.{name}")
        if len(rows) != len(texts):
            what = SCORELESS if name == "token_logprobs" else "lists of different lengths"
            raise malformed(what, where=f"{where}.{name}", got=len(rows), expected=len(texts))
        return rows

    values, ids = beside("token_logprobs"), beside("token_ids")
    if values is None:
        raise malformed(SCORELESS, where=f"{where}.token_logprobs", got=fields.get("token_logprobs"))
    tops, offsets, sampling = beside("top_logprobs"), beside("text_offset"), beside("sampling_logprobs")
    tokens = [_named(text, number(value, where)) for text, value in zip(texts, values, strict=True)]
    if ids is not None:
        tokens = [Token(integer(i, where), t.text, t.log_prob) for i, t in zip(ids, tokens, strict=True)]
    return TokenRow(
        tokens=tuple(tokens),
        tops=tuple(
            tuple(_named(text, number(value, where)) for text, value in mapping(top or {}, where).items())
            for top in tops or []
        ),
        offsets=None if offsets is None else tuple(integer(offset, where) for offset in offsets),
        sampling=None if sampling is None else tuple(number(value, where) for value in sampling),
    )


def _named(text: str, log_prob: float) -> Token:
    if text.startswith(TOKEN_ID) and text[len(TOKEN_ID) :].isdigit():
        return Token(int(text[len(TOKEN_ID) :]), None, log_prob)
    return Token(None, text, log_prob)
