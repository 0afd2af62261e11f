"""Checks of the environment and of models: each says what was found and, if need be, what to do about it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np

from dln.cli.endpoints import Wanted, remote
from dln.errors import DlnError
from dln.lm.base import LanguageModel, Sampling, ScoringMode
from dln.lm.digests import cache_directory
from dln.lm.embedded import SMOLLM2
from dln.lm.load import load_lm
from dln.lm.prices import PriceTable
from dln.lm.remote.call import AuthenticationFailed, ModelNotFound, QuotaExhausted
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.report import ProbeReport

__all__ = ["Check", "environment_checks", "model_checks"]

State = Literal["ok", "warning", "failed"]
EXACT: tuple[ScoringMode, ...] = ("target scoring", "prompt log-probs", "forced decoding")
"""Scoring modes that give the log-probability of a whole text."""

CONTEXT = "Question: What is the capital of France?\nAnswer:"
ROOM = 2_000_000_000
"""Bytes that the embedded model, its unpacked copy and a cache of answers need."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        state: "ok", "warning" (something is lost, all else works) or "failed".
        says: what was found.
        fix: what to do about it.
        of: the model that was asked; "" for the environment.
    """

    name: str
    state: State
    says: str
    fix: str | None = None
    of: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def environment_checks() -> Iterator[Check]:
    """Python, torch, the cache directory, disk space and the embedded model."""
    yield Check("python", "ok", f"{platform.python_version()} on {sys.platform}")
    if importlib.util.find_spec("torch") is None:
        fix = "pip install 'dln[local]'; models on servers do without"
        yield Check("torch", "warning", "not installed: no model runs in this process", fix)
    else:
        yield Check("torch", "ok", metadata.version("torch"))
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Check("cache", "failed", f"{folder} cannot be written: {error.strerror}", "set DLN_CACHE_DIR")
        return
    yield Check("cache", "ok", f"{folder} can be written")
    enough: State = "ok" if free >= ROOM else "warning"
    fix = None if enough == "ok" else "free some space, or set DLN_CACHE_DIR to another disk"
    yield Check("disk", enough, f"{free / 1e9:.1f} GB free", fix)
    if SMOLLM2.cached_path.is_file():
        yield Check("embedded model", "ok", str(SMOLLM2.cached_path))
    else:
        yield Check("embedded model", "warning", "not in the cache; it is fetched at first use", "dln model pull")


def model_checks(wanted: Wanted, prices: PriceTable) -> Iterator[Check]:
    """One model: that it can be had, what it can do, how fast it is and what it costs."""
    spec = wanted.spec
    try:
        lm = load_lm(spec, **wanted.options)
        checks = list(_served(lm) if isinstance(lm, RemoteLM) else _in_process(lm))
    except DlnError as error:
        yield Check(_culprit(error, spec), "failed", _said(error), error.fix, spec)
        return
    for check in checks:
        yield Check(check.name, check.state, check.says, check.fix, spec)
    quote = prices.find(spec)
    if quote is None:
        fix = f"--price {spec}=INPUT/OUTPUT (US dollars per million tokens), or --prices FILE"
        yield Check("price", "warning", "not known: money is not counted and --max-usd is refused", fix, spec)
    else:
        price, dated = quote.price, f", {quote.date}" if quote.date else ""
        says = f"${price.input:g} read, ${price.output:g} drawn per million tokens ({quote.source}{dated})"
        yield Check("price", "ok", says if price.usd(1, 1) else f"free ({quote.source})", of=spec)


def _served(lm: RemoteLM) -> Iterator[Check]:
    """What the probe found; it asks the server a few dozen small questions."""
    report = lm.report
    yield Check("endpoint", "ok", f"answers as {report.dialect}")
    yield Check("key", "ok", "accepted, or none is needed")
    if report.served_model in (None, report.model):
        yield Check("model", "ok", report.model + (f", made from {report.root}" if report.root else ""))
    else:
        yield Check("model", "warning", f"{report.served_model} answers", f"is that the same as {report.model}?")
    if report.context_length is None:
        fix = "over-long requests are refused by the server, if at all"
        yield Check("context length", "warning", "the server does not say", fix)
    else:
        yield Check("context length", "ok", f"{report.context_length} tokens")
    yield Check("tokenizer", "ok" if "agrees" in report.tokenizer else "warning", report.tokenizer)
    yield from _scoring_modes(report)
    seeds: State = "ok" if report.seeds == "honoured" else "warning"
    yield Check("seeds", seeds, report.seeds, None if seeds == "ok" else "keep the cache: it repeats draws exactly")
    speed = f"{report.calls_per_second:.1f} calls/s and {report.tokens_per_second:.0f} tokens/s, one at a time"
    yield Check("speed", "ok", speed)


def _scoring_modes(report: ProbeReport) -> Iterator[Check]:
    """Which scoring modes labels and texts have, why no better ones, and what that means."""
    server = "a server with prompt log-probabilities: vllm/…, sglang/…, or dln serve"
    for name, purpose, mode in (("labels", "labels", report.label_scoring), ("texts", "texts", report.text_scoring)):
        reasons = "; ".join(f"{t.mode}: {t.reason}" for t in report.trials if t.purpose == purpose and not t.works)
        if mode in EXACT:
            yield Check(name, "ok", f"scored by {mode}")
        else:
            how = "cannot be scored" if name == "texts" else f"scored by {mode}"
            yield Check(name, "warning", how + (f" ({reasons})" if reasons else ""), server)
    for line in report.stays:
        yield Check("what still works", "warning", line)


def _in_process(lm: LanguageModel) -> Iterator[Check]:
    """Loading, a known text scored in two ways, and speed."""
    yield Check("model", "ok", lm.fingerprint())
    length = lm.capabilities.context_length
    yield Check("context length", "ok", "no limit" if length is None else f"{length} tokens")
    began = time.perf_counter()
    draws = lm.sample([CONTEXT] * 4, Sampling(temperature=1.0, max_tokens=16), range(4))
    drawing = time.perf_counter() - began
    drawn = sum(len(draw.token_ids or ()) or lm.count_tokens(draw.text) for draw in draws)
    began = time.perf_counter()
    scores = lm.log_prob([CONTEXT] * 4, draws)
    reading = time.perf_counter() - began
    read = sum(lm.count_tokens(CONTEXT) + len(row.values) for row in scores)
    gaps = [
        float(np.abs(np.asarray(draw.log_probs) - row.values).max(initial=0.0))
        for draw, row in zip(draws, scores, strict=True)
        if draw.log_probs is not None and len(draw.log_probs) == len(row.values)
    ]
    if not gaps:
        yield Check("self-test", "warning", "draws come without log-probabilities: nothing to compare")
    elif max(gaps) <= 0.01:  # a NaN fails
        yield Check("self-test", "ok", f"draws scored in two ways agree to {max(gaps):.1g} nats a token")
    else:
        fix = "report it, with the model and the versions of torch and transformers"
        yield Check("self-test", "failed", f"draws scored in two ways differ by {max(gaps):.3g} nats a token", fix)
    per_second = f"{read / max(reading, 1e-9):,.0f} tokens/s read, {drawn / max(drawing, 1e-9):,.0f} tokens/s drawn"
    yield Check("speed", "ok", per_second)


def _culprit(error: DlnError, spec: str) -> str:
    """Which line of the list an error belongs to."""
    if isinstance(error, AuthenticationFailed | QuotaExhausted) or "key" in error.message.lower():
        return "key"
    return "model" if isinstance(error, ModelNotFound) or not remote(spec) else "endpoint"


def _said(error: DlnError) -> str:
    where = "" if error.where is None else f"{error.where}: "
    return f"{where}{error.message}" + (f" (got {error.got})" if error.got is not None else "")
