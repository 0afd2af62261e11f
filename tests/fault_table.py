"""Measuring what a fault does: fault × when it is played × what is asked of the model.

One `Cell` is one experiment on a server and an engine of its own: the engine is loaded in good weather (or, for
"start", in bad), the fault begins, something is asked, and the answer is compared with the exact model.
"""

from __future__ import annotations

import math
import time
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
from dln.lm.metered import Metered
from fault_language import Language, LanguageLM
from fault_replies import Manners
from fault_scripts import FAULTS, When, always, first_of_each
from fault_server import FaultServer

__all__ = ["ASKED", "DOOR", "FAULT_NAMES", "PLAYED", "Asked", "Cell", "Played", "engine", "measure", "measure_row"]

Asked = Literal["start", "sample", "log_prob", "choice_log_probs"]
Played = Literal["once", "always"]

ASKED: tuple[Asked, ...] = ("start", "sample", "log_prob", "choice_log_probs")
PLAYED: dict[Played, When] = {"once": first_of_each, "always": always}
DOOR = {"connect time-out": "no connection is made in time", "connection refused": "nothing listens"}
"""Faults before there is a request; "once": for half a second."""

FAULT_NAMES = (*DOOR, *FAULTS)

PATIENCE: dict[str, Any] = {
    "connect_seconds": 0.3,
    "read_seconds": 0.5,
    "deadline_seconds": 3.0,
    "unreachable_seconds": 1.5,
    "max_retries": 2,
}

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
        outcome: "survived" (the numbers of an undisturbed run), "unusable" (some values are NaN or −inf and say
            so, the others are right), "by <rung>" (right numbers by a lower rung), "WRONG", or the error's class.
        message: the error's first line; the numbers that are wrong; else empty.
        seconds: to the outcome.
        requests: sent while the fault was played, per request that an undisturbed run sends.
        counted: whether the meter counted what it counts in an undisturbed run.
    """

    outcome: str
    message: str = ""
    seconds: float = 0.0
    requests: float = 1.0
    counted: bool = True


def engine(server: FaultServer, **options: Any) -> LanguageModel:
    """The engine for a test server, with little patience."""
    return load_lm("vllm/tiny", base_url=server.base_url, **{**PATIENCE, **options})


def measure_row(fault: str, played: Played) -> dict[Asked, Cell]:
    """All that is asked, at the same time on servers of their own: most of the time is waiting."""
    with ThreadPoolExecutor(len(ASKED)) as pool:
        return dict(zip(ASKED, pool.map(lambda asked: measure(fault, played, asked), ASKED), strict=True))


def measure(fault: str, played: Played, asked: Asked, **options: Any) -> Cell:
    """One experiment.

    Args:
        fault: one of `FAULT_NAMES`.
        played: on each request when it comes first, or on all.
        asked: what the model is asked; "start" is everything, from loading on.
        options: of the engine.
    """
    with FaultServer(Manners(language=LANGUAGE), keep_alive=fault not in DOOR) as server:
        if asked == "start":
            with _weather(server, fault, played, ()):
                return _observe(server, lambda: engine(server, **options), ("sample", "log_prob", "choice_log_probs"))
        lm = engine(server, **options)
        assert lm.capabilities.scores_targets  # the probe is over before the fault begins
        with _weather(server, fault, played, None):
            return _observe(server, lambda: lm, (asked,))


@contextmanager
def _weather(server: FaultServer, fault: str, played: Played, paths: tuple[str, ...] | None) -> Iterator[None]:
    if fault not in DOOR:
        server.play(fault, PLAYED[played], **({} if paths is None else {"paths": paths}))
        yield
        return
    close, mend = (
        (server.close_door, server.open_door)
        if fault == "connect time-out"
        else (server.stop_listening, server.listen_again)
    )
    close()
    timer = Timer(0.5, mend)
    if played == "once":
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
    rungs = ""
    try:
        lm = load()
        metered = Metered(lm)
        for what in asked:
            faults += answers(metered, what)
        rungs = "" if lm.capabilities.rung == "target scoring" else lm.capabilities.rung
        used = metered.meter.snapshot().to_dict() | {"seconds": 0.0}
        outcome, message = ("WRONG", next(f for f in faults if f)) if any(faults) else (None, "")
        outcome = outcome or ("unusable" if faults else f"by {rungs}" if rungs else "survived")
    except DlnError as error:
        outcome, message = type(error).__name__, str(error).splitlines()[0].replace(server.root, "http://…")
    seconds, requests = time.monotonic() - began, len(server.asked()) - before
    calm = undisturbed(tuple(asked))
    return Cell(
        outcome, message, seconds, round(requests / calm[0], 2), not used or outcome != "survived" or used == calm[1]
    )


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


def answers(lm: LanguageModel, asked: Asked) -> list[str]:
    """What is amiss with the answers: "" for each that says itself that it is unusable, a text for each wrong one."""
    if asked == "sample":
        return [message for i, draw in enumerate(lm.sample(CONTEXTS, SAMPLING, SEEDS)) for message in _draw(i, draw)]
    if asked == "log_prob":
        scores = lm.log_prob(CONTEXTS, TARGETS)
        truth = [score.values for score in TRUTH.log_prob(CONTEXTS, TARGETS)]
        return [m for s, t in zip(scores, truth, strict=True) for m in _values(s.values, t, all_or_none=s.finite)]
    rows, truth = lm.choice_log_probs(CONTEXTS, LABELS), TRUTH.choice_log_probs(CONTEXTS, LABELS)
    return [m for row, right in zip(rows, truth, strict=True) for m in _values(row, right)]


def _values(got: Any, truth: Any, *, all_or_none: bool = True) -> Iterator[str]:
    if len(got) != len(truth):
        yield f"{len(got)} values for {len(truth)}"
        return
    amiss = [
        "" if not math.isfinite(value) or value > 1e-6 else f"{value:.6f} for {right:.6f}"
        for value, right in zip(got, truth, strict=True)
        if not abs(value - right) < 1e-9
    ]
    if amiss and all_or_none and any(not m for m in amiss) and _would_be_used(got):
        yield "a value that cannot be right is not marked as such"
    yield from amiss


def _would_be_used(values: Any) -> bool:
    return bool(np.isfinite(values).all() and (np.asarray(values) <= 1e-6).all())


def _draw(i: int, draw: Completion) -> Iterator[str]:
    """A draw must be the undisturbed one; its kept scores are the model's own, or are not there."""
    expected = _good_draws()[i]
    if (draw.text, draw.token_ids, draw.finish_reason) != (expected.text, expected.token_ids, expected.finish_reason):
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
