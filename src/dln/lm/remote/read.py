"""Strict reading of replies: numbers are kept as the server sent them, and missing ones are never invented.

    null, "NaN" → NaN        −9999 and below → −inf        ±inf, positive numbers → as they are

Callers exclude and count what cannot be a log-probability. What does not have the form of an answer at all (choices
missing, fewer than asked, in no order, lists that do not match, tokens other than those sent) raises `MalformedReply`.

In an echoed prompt the boundary of context and target is found by laying the tokens' own texts along the prompt: what
fits exactly needs no trust in the server's offsets. Where a token shows only a part of a character, the offsets decide,
and are checked against every token that is legible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from dln.lm.remote.call import Call, MalformedReply

__all__ = [
    "ILLEGIBLE",
    "Echo",
    "Ids",
    "ScoredToken",
    "TokenRow",
    "check_next",
    "choices_of",
    "finish_of",
    "ids_of",
    "integer",
    "keyed",
    "lay_along",
    "malformed",
    "mapping",
    "model_of",
    "number",
    "same_ids",
    "sent_ids",
    "sequence",
    "string",
    "token_row",
    "without_thoughts",
]


Ids = tuple[int, ...]

LOWEST = -9999.0
"""What servers write for −inf, which JSON does not have."""

TOKEN_ID = "token_id:"  # noqa: S105 - a prefix of a token of text

SHOWN = 200

SCORELESS = "no log-probabilities of some tokens"


@dataclass(frozen=True, slots=True)
class ScoredToken:
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

    tokens: tuple[ScoredToken, ...] = ()
    tops: tuple[tuple[ScoredToken, ...], ...] = ()
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


THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
)
"""How reasoning models open and close their thoughts."""


def without_thoughts(text: str) -> tuple[str, bool]:
    """The answer after the thoughts of a reasoning model, and whether there were any.

    Thoughts that do not end (the length limit was reached) leave an empty answer. The chat template of some models
    writes `<think>` itself, so that the text shows the end of the thoughts only.
    """
    for opening, closing in THOUGHTS:
        if text.lstrip().startswith(opening):
            return text.partition(closing)[2].lstrip(), True
    opening, closing = THOUGHTS[0]
    if closing in text and opening not in text:
        return text.partition(closing)[2].lstrip(), True
    return text, False


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


def _entry(entry: dict[str, Any], where: str) -> ScoredToken:
    token_id = entry.get("token_id", entry.get("id"))
    token = _named(string(entry.get("token"), f"{where}.token"), number(entry.get("logprob"), f"{where}.logprob"))
    return (
        token if token_id is None else ScoredToken(integer(token_id, f"{where}.token_id"), token.text, token.log_prob)
    )


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
        tokens = [ScoredToken(integer(i, where), t.text, t.log_prob) for i, t in zip(ids, tokens, strict=True)]
    return TokenRow(
        tokens=tuple(tokens),
        tops=tuple(
            tuple(_named(text, number(value, where)) for text, value in mapping(top or {}, where).items())
            for top in tops or []
        ),
        offsets=None if offsets is None else tuple(integer(offset, where) for offset in offsets),
        sampling=None if sampling is None else tuple(number(value, where) for value in sampling),
    )


def _named(text: str, log_prob: float) -> ScoredToken:
    if text.startswith(TOKEN_ID) and text[len(TOKEN_ID) :].isdigit():
        return ScoredToken(int(text[len(TOKEN_ID) :]), None, log_prob)
    return ScoredToken(None, text, log_prob)


def check_next(row: TokenRow, wanted: Ids) -> TokenRow:
    """`row`, which must say something of the next token, and of every wanted one."""
    if not row.tops or not row.tops[0]:
        raise malformed("no likeliest tokens", where="logprobs.top_logprobs")
    missing = set(wanted) - {token.id for token in row.tops[0]}
    if missing:
        raise malformed(
            "wanted tokens are missing", where="logprobs.top_logprobs", got=row.tops[0], expected=sorted(missing)
        )
    return row


def sent_ids(call: Call) -> Sequence[int]:
    """The ids of the prompt that a call sends."""
    return cast("Sequence[int]", cast("dict[str, Any]", call.body)["prompt"])


def keyed(entry: object, token: int) -> ScoredToken:
    """A token's entry among prompt log-probabilities, which are keyed by id: the one of this very token."""
    if entry is None:
        return ScoredToken(token, None, float("nan"))
    by_id = mapping(entry, "prompt_logprobs")
    if str(token) not in by_id:
        raise malformed("the entry is of another token", where="prompt_logprobs", got=by_id, expected=f"token {token}")
    value = by_id[str(token)]
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("logprob")
    return ScoredToken(token, None, number(value, "prompt_logprobs"))


def same_ids(tokens: tuple[ScoredToken, ...], sent: Sequence[int], drawn: int) -> tuple[ScoredToken, ...]:
    """The tokens of an echoed prompt, which must be the ids that were sent, the first without a number."""
    if not len(sent) <= len(tokens) <= len(sent) + drawn:
        raise malformed("not one entry per token", where="logprobs.tokens", got=len(tokens), expected=len(sent))
    for token, wanted in zip(tokens, sent, strict=False):
        if token.id is not None and integer(token.id, "tokens") != wanted:
            raise malformed("the entry is of another token", where="logprobs.tokens", got=token, expected=wanted)
    if not math.isnan(tokens[0].log_prob) and len(tokens) > 1:
        raise malformed("the first token has no log-probability", where="logprobs.token_logprobs", got=tokens[0])
    return tokens[: len(sent)]


ILLEGIBLE = ("\ufffd", "bytes:")


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a prompt, or of its end, as the server scored them.

    Attributes:
        tokens: in order; what was drawn after the prompt is not among them.
        starts: where each begins in the prompt, in characters; None where that cannot be told.
    """

    tokens: tuple[ScoredToken, ...]
    starts: tuple[int, ...] | None

    def after(self, boundary: int) -> tuple[ScoredToken, ...] | None:
        """The tokens from character `boundary` on; None if a token reaches across it, or places are unknown."""
        if self.starts is None:
            return None
        first = next((i for i, start in enumerate(self.starts) if start >= boundary), None)
        if first is None or self.starts[first] != boundary or (self.starts[0] > boundary):
            return None
        return self.tokens[first:]


def lay_along(row: TokenRow, prompt: str, drawn: int, *, last: int | None = None) -> Echo:
    """The prompt's tokens among `row`, which may end with up to `drawn` tokens of the draw.

    Args:
        row: what the server returned.
        prompt: the text that was sent.
        drawn: most tokens that can stand after the prompt.
        last: how many tokens of the prompt's end were asked for; None for all of it.

    Raises:
        MalformedReply: these are not the prompt's tokens.
    """
    texts = [token.text for token in row.tokens]
    legible = all(text is not None and not any(mark in text for mark in ILLEGIBLE) for text in texts)
    for extra in range(drawn, -1, -1):
        count = len(texts) - extra
        if count < 1:
            continue
        # As many as were asked for are the prompt's end; any other number must be all of it.
        starts = _from_texts([text or "" for text in texts[:count]], prompt, count == last) if legible else None
        if starts is not None:
            return Echo(row.tokens[:count], starts)
    if not legible:
        return _from_offsets(row, prompt, drawn, last)
    raise malformed(
        "the echoed tokens are not those of the prompt",
        where="logprobs.tokens",
        got="".join(text or "" for text in texts),
        expected=repr(prompt[-80:]),
    )


def _from_texts(texts: list[str], prompt: str, end: bool) -> tuple[int, ...] | None:
    # A token that opens the text (bos) is shown by some servers though it is not in the prompt's text.
    for skip in (0, 1):
        shown = [""] * skip + texts[skip:]
        joined = "".join(shown)
        if prompt == joined or (end and not skip and prompt.endswith(joined)):
            starts, at = list[int](), len(prompt) - len(joined)
            for text in shown:
                starts.append(at)
                at += len(text)
            return tuple(starts)
    return None


def _from_offsets(row: TokenRow, prompt: str, drawn: int, last: int | None) -> Echo:
    offsets = row.offsets
    if offsets is None or last is not None:
        return Echo(row.tokens, None)
    count = next((i for i, offset in enumerate(offsets) if offset >= len(prompt)), len(offsets))
    ordered = list(offsets) == sorted(offsets) and len(offsets) - count <= drawn
    fits = all(
        token.text is None or any(mark in token.text for mark in ILLEGIBLE) or prompt.startswith(token.text, offset)
        for token, offset in zip(row.tokens[1:count], offsets[1:count], strict=True)
    )
    return Echo(row.tokens[:count], tuple(offsets[:count]) if ordered and fits else None)
