"""Outcomes of faults: fault × time of the fault × method of the model.

One `Cell` is one experiment on a server and an engine of its own: the engine is loaded in good weather (or, for
"start", in bad), the fault begins, something is asked, and the answer is compared with the exact model.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from threading import Timer
from typing import Any, Literal

import numpy as np

from dln.errors import DlnError
from dln.lm.base import Completion, LanguageModel, Sampling, Target
from dln.lm.load import load_lm
from dln.lm.meter import Metered
from fault_language import Language, LanguageLM
from fault_replies import Manners
from fault_scripts import FAULTS, When, always, every, first, first_of_each
from fault_server import FaultServer

__all__ = ["ASKED", "DOOR", "FAULT_NAMES", "PLAYED", "RETRIES", "Asked", "Cell", "Played", "engine", "measure_rows"]

Asked = Literal["start", "sample", "log_prob", "choice_log_probs"]
Played = Literal["once", "always"]

PLAYED: tuple[Played, ...] = ("once", "always")
ASKED: tuple[Asked, ...] = ("start", "sample", "log_prob", "choice_log_probs")
DOOR = {"connect time-out": "no connection is made in time", "connection refused": "nothing listens"}
"""Faults before there is a request; "once": for half a second."""

FAULT_NAMES = (*DOOR, *FAULTS)

APPROXIMATE = ("top-k", "Monte-Carlo", "accuracy")
VALUES = ("log-probs", "echo ignored")
SLOW = ("429 with Retry-After", "read time-out", "body stalls", "slow body")
"""Each takes a while to be over: not played on every request."""

PATIENCE: dict[str, Any] = {"connect_timeout": 10.0, "timeout": 30.0, "deadline": 60.0, "max_retries": 1}
"""So much that no slow machine runs out of it: what waits for the clock is in `BRIEF`."""

PERSISTENT: dict[str, Any] = {"max_retries": 8, "connect_timeout": 0.4}
BRIEF: dict[str, dict[str, Any]] = {
    "read time-out": {"timeout": 1.2},
    "body stalls": {"timeout": 1.2},
    "body drips for ever": {"deadline": 5.0},
}
"""The patience that a fault exhausts, in seconds."""

RETRIES: dict[Played, int] = {"once": 3, "always": 1}

LANGUAGE = Language()
TRUTH = LanguageLM(LANGUAGE)
CONTEXTS = [f"Input: box {i} of the tiles broke\nLabel:" for i in range(4)]
LABELS = [" yes", " yes no", " no", " deep thought of"]
TARGETS: list[Target] = [" yes sir no", " order", " deep thought", " naïve"]
SAMPLING = Sampling(temperature=1.0, max_tokens=4, stop=("\n",))
SEEDS = [3, 1, 4, 2**40 + 1]


@dataclass(frozen=True)
class Cell:
    """What came of one experiment.

    Attributes:
        outcome: "survived" (the numbers of an undisturbed run), "unusable" (some values cannot be log-probabilities
            and are seen to be none, the others are right), "WRONG", or the error's class.
        message: the error's first line; the numbers that are wrong; else empty.
        seconds: to the outcome.
        requests: sent while the fault was played, per request that an undisturbed run sends.
        counted: whether the meter counted what it counts in an undisturbed run.
        modes: by which scoring modes (labels; texts), where not by the first.
        exit_code: of the command line, for an error.
        plain: whether an error says where, what came back and what to try.
        most: how often the same request was sent, at most.
    """

    outcome: str
    message: str = ""
    seconds: float = 0.0
    requests: float = 1.0
    counted: bool = True
    modes: str = ""
    exit_code: int = 0
    most: int = 1
    plain: bool = True


def engine(server: FaultServer, **options: Any) -> LanguageModel:
    """The engine for a test server."""
    return load_lm("vllm/tiny", base_url=server.base_url, **{**PATIENCE, **options})


Row = tuple[str, Played, Asked]


def measure_rows(faults: Sequence[str], **options: Any) -> dict[Row, Cell]:
    """Every experiment with these faults, many at a time and on servers of their own: most of it is waiting."""
    rows = [
        (fault, played, asked)
        for fault in faults
        for played in PLAYED
        for asked in ASKED
        if not (asked == "start" and played == "once" and fault.startswith(VALUES))  # would depend on what it meets
    ]
    with ThreadPoolExecutor(6) as pool:
        return dict(zip(rows, pool.map(lambda row: measure(*row, **options), rows), strict=True))


def measure(fault: str, played: Played, asked: Asked, **options: Any) -> Cell:
    """One experiment.

    Args:
        fault: one of `FAULT_NAMES`.
        played: "always", or "once": on each request at its first sending, and at the start on every twelfth.
        asked: one verb of an engine that was loaded in good weather, or all three and the loading ("start").
        options: of the engine.
    """
    with _server(fault) as server:
        if asked == "start":
            with _weather(server, fault, always if played == "always" else every(12), ()):
                return _observe(server, lambda: _engine_for(fault, played, server, options), ASKED[1:])
        lm = _engine_for(fault, played, server, options)
        assert lm.capabilities.scores_targets  # the probe is over before the fault begins
        when = always if played == "always" else first(3) if fault.startswith(SLOW) else first_of_each
        with _weather(server, fault, when, None):
            return _observe(server, lambda: lm, (asked,))


def _server(fault: str) -> FaultServer:
    return FaultServer(Manners(language=LANGUAGE), keep_alive=fault not in DOOR)


def _engine_for(fault: str, played: Played, server: FaultServer, options: dict[str, Any]) -> LanguageModel:
    retries = PERSISTENT if fault in DOOR else {"max_retries": RETRIES[played]}
    return engine(server, **{**retries, **BRIEF.get(fault, {}), **options})


@contextmanager
def _weather(server: FaultServer, fault: str, when: When, paths: tuple[str, ...] | None) -> Iterator[None]:
    if fault not in DOOR:
        server.play(fault, when, **({} if paths is None else {"paths": paths}))
        yield
        return
    close, mend = (
        (server.close_door, server.open_door)
        if fault == "connect time-out"
        else (server.stop_listening, server.listen_again)
    )
    close()
    timer = Timer(0.5, mend)
    if when is not always:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()


def _observe(server: FaultServer, load: Callable[[], LanguageModel], asked: Sequence[Asked]) -> Cell:
    before, began = len(server.asked()), time.monotonic()
    used: dict[str, float] = {}
    faults: list[str] = []
    modes, code, plain = "", 0, True
    try:
        lm = load()
        metered = Metered(lm)
        can = lm.capabilities
        for what in asked:
            if what != "log_prob" or can.scores_targets:
                faults += answers(metered, what, exact=can.label_scoring not in APPROXIMATE)
        modes = "; ".join(
            dict.fromkeys(mode for mode in (can.label_scoring, can.text_scoring) if mode != "target scoring")
        )
        used = metered.meter.snapshot().to_dict() | {"seconds": 0.0}
        wrong = next((fault for fault in faults if fault), "")
        outcome, message = "WRONG" if wrong else "unusable" if faults else "survived", wrong
    except DlnError as error:
        code, plain = error.exit_code, None not in (error.where, error.got, error.fix)
        outcome, message = type(error).__name__, str(error).splitlines()[0].replace(server.root, "http://…")
    seconds, sent = time.monotonic() - began, server.asked()[before:]
    most = max(Counter(json.dumps(seen.body, sort_keys=True) for seen in sent).values(), default=0)
    calm = undisturbed(tuple(asked))
    counted = outcome not in {"survived", "unusable"} or bool(modes) or used == calm[1]
    return Cell(outcome, message, seconds, round(len(sent) / calm[0], 2), counted, modes, code, most, plain)


@cache
def undisturbed(asked: tuple[Asked, ...]) -> tuple[int, dict[str, float]]:
    """(Requests, usage) in good weather."""
    with FaultServer(Manners(language=LANGUAGE)) as server:
        lm = engine(server)
        before = 0 if len(asked) > 1 else len(server.asked()) if lm.capabilities.scores_targets else 0
        metered = Metered(lm)
        for what in asked:
            assert not answers(metered, what)
        return len(server.asked()) - before, metered.meter.snapshot().to_dict() | {"seconds": 0.0}


def answers(lm: LanguageModel, asked: Asked, *, exact: bool = True) -> list[str]:
    """What is amiss with the answers: "" for each that says itself that it is unusable, a text for each wrong one."""
    if asked == "sample":
        return [message for i, draw in enumerate(lm.sample(CONTEXTS, SAMPLING, SEEDS)) for message in _draw(i, draw)]
    if asked == "log_prob":
        scores = lm.log_prob(CONTEXTS, TARGETS)
        truth = [score.values for score in TRUTH.log_prob(CONTEXTS, TARGETS)]
        return [m for s, t in zip(scores, truth, strict=True) for m in _values(s.values, t)]
    if not exact:  # frequencies and bounds say what they are; all that can be asked is that they are probabilities
        rows = lm.choice_log_probs(CONTEXTS, LABELS)
        return [f"masses {row.tolist()}" for row in rows if not np.exp(row).sum() <= 1 + 1e-6]
    rows, truth = lm.choice_log_probs(CONTEXTS, LABELS), TRUTH.choice_log_probs(CONTEXTS, LABELS)
    return [
        m
        for row, right in zip(rows, truth, strict=True)
        for m in _values(row, right, together=bool(np.isnan(row).any()))
    ]


def _values(got: Any, truth: Any, *, together: bool = True) -> Iterator[str]:
    """What differs. Values that are only used `together` are all unusable if one is seen to be."""
    if len(got) != len(truth):
        yield f"{len(got)} values for {len(truth)}"
        return
    seen = [not math.isfinite(value) or value > 1e-6 for value in got]
    differ = [not abs(value - right) < 1e-9 for value, right in zip(got, truth, strict=True)]
    if together and any(seen):
        yield ""
        return
    for value, right, known, different in zip(got, truth, seen, differ, strict=True):
        if different:
            yield "" if known else f"{value:.6f} for {right:.6f}"


def _draw(i: int, draw: Completion) -> Iterator[str]:
    """A draw must be the undisturbed one; its kept scores are the model's own, or are not there."""
    expected = _good_draws()[i]
    ids = expected.token_ids if draw.token_ids is None else draw.token_ids
    if (draw.text, ids, draw.finish_reason) != (expected.text, expected.token_ids, expected.finish_reason):
        yield f"draw {draw.text!r} for {expected.text!r}"
    if draw.log_probs is None:
        yield ""
    else:
        rows = LANGUAGE.score([*LANGUAGE.encode(CONTEXTS[i]), *(expected.token_ids or ())])
        yield from _values(draw.log_probs, rows[len(LANGUAGE.encode(CONTEXTS[i])) :])


@cache
def _good_draws() -> tuple[Completion, ...]:
    with FaultServer(Manners(language=LANGUAGE)) as server:
        return tuple(replace(draw) for draw in engine(server).sample(CONTEXTS, SAMPLING, SEEDS))
