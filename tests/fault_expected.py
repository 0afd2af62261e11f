"""What must come of every fault, written by hand: fault → (played once, played always), each for all that is asked.

A word stands for all four columns; a tuple gives them one by one: at the start, drawing, scoring texts, scoring
labels. "survived" are the numbers of an undisturbed run; "unusable" are values that cannot be log-probabilities,
seen to be none and left out; "by …" names the weaker scoring modes (labels; texts) that the probe has gone down to.
"""

from __future__ import annotations

from fault_table import ASKED, Asked, Played

__all__ = ["EXPECTED", "GROUPS", "NOT_CAUGHT", "expected"]

Columns = str | tuple[str, str, str, str]

OK, LOST = "survived", "unusable"
COUNTED = "unusable, by Monte-Carlo; accuracy"
FORCED = "survived, by forced decoding"
MODEL = "ProviderError"

NETWORK: dict[str, tuple[Columns, Columns]] = {
    "connect time-out": (OK, "ServerUnreachable"),
    "connection refused": (OK, "ServerUnreachable"),
    "read time-out": (OK, "ServerFailed"),
    "reset before the reply": (OK, "ServerFailed"),
    "reset in the body": (OK, "ServerFailed"),
    "body breaks off": (OK, "ServerFailed"),
    "body stalls": (OK, "ServerFailed"),
    "slow body": (OK, OK),
    "body drips for ever": ("DeadlinePassed", "DeadlinePassed"),
}
STATUSES: dict[str, tuple[Columns, Columns]] = {
    "429 with Retry-After in seconds": (OK, "RateLimited"),
    "429 with Retry-After as a date": (OK, "RateLimited"),
    "429 without Retry-After": (OK, "RateLimited"),
    "429 quota exhausted": ("QuotaExhausted", "QuotaExhausted"),
    "500": (OK, "ServerFailed"),
    "500 that repeats our headers": (OK, "ServerFailed"),
    "502": (OK, "ServerFailed"),
    "503": (OK, "ServerFailed"),
    "400": ("BadRequest", "BadRequest"),
    "400 over-long context": ("ContextLengthError", "ContextLengthError"),
    "401": ("AuthenticationFailed", "AuthenticationFailed"),
    "403": ("AuthenticationFailed", "AuthenticationFailed"),
    "404": ("ModelNotFound", "ModelNotFound"),
}
BODIES: dict[str, tuple[Columns, Columns]] = {
    "truncated JSON": (OK, "MalformedReply"),
    "malformed JSON": (OK, "MalformedReply"),
    "JSON of another kind": (OK, "MalformedReply"),
    "HTML with status 200": (OK, "MalformedReply"),
    "HTML that repeats our headers": (OK, "MalformedReply"),
    "empty body": (OK, "MalformedReply"),
    "empty choices": (OK, "MalformedReply"),
    "no choices": (OK, "MalformedReply"),
    "fewer choices than asked": (OK, "MalformedReply"),
    "choices twice": (OK, "MalformedReply"),
    "choices in wrong order": (OK, OK),
    "reply delivered twice": (OK, OK),
    # only a draw needs a text: scores come without
    "null content": (OK, ("MalformedReply", "MalformedReply", OK, OK)),
    # a proxy that names another model from the first reply on is taken at its word, and recorded
    "another model answers": (MODEL, (OK, MODEL, MODEL, MODEL)),
}
VALUES: dict[str, tuple[Columns, Columns]] = {
    "log-probs NaN": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs +inf": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs -inf": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs -9999": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs null": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs positive": (LOST, (COUNTED, LOST, LOST, LOST)),
    "log-probs text": (OK, (COUNTED, "MalformedReply", "MalformedReply", "MalformedReply")),
    # the entry of the scored token is there, and empty: null by another name
    "log-probs missing": ((LOST, OK, LOST, OK), (COUNTED, "MalformedReply", LOST, "MalformedReply")),
    # what is shifted has a log-probability where there is none, and none where there is one
    "log-probs shifted by one": ((LOST, LOST, OK, OK), (COUNTED, LOST, "MalformedReply", "MalformedReply")),
    # labels and draws need no echo
    "echo ignored": (OK, (FORCED, OK, "MalformedReply", OK)),
}
NOT_CAUGHT: frozenset[str] = frozenset()
"""Faults without an expectation: none."""

GROUPS = {"network": NETWORK, "statuses": STATUSES, "bodies": BODIES, "values": VALUES}
EXPECTED = {fault: row for group in GROUPS.values() for fault, row in group.items()}


def expected(fault: str, played: Played, asked: Asked) -> str:
    """The outcome that is expected of one experiment."""
    columns = EXPECTED[fault][0 if played == "once" else 1]
    return columns if isinstance(columns, str) else columns[ASKED.index(asked)]
