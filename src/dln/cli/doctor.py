"""`dln doctor` checks the environment and models; `dln model` downloads, locates and lists models."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from rich.table import Table

from dln import extensions
from dln.cli import flags
from dln.cli.config import ENGINE, PRICES, ModelConfig, RunConfig
from dln.cli.flags import Json
from dln.cli.models import Wanted, price_table, remote, wanted_models
from dln.cli.output import examples, out, print_record, safe
from dln.cli.sources import configured
from dln.cli.workers import shown_workers
from dln.errors import DlnError, InputError, ProviderError
from dln.io import cache_directory
from dln.lm.base import LanguageModel, Sampling, ScoringMode
from dln.lm.load import ENGINES, load_lm
from dln.lm.local.threads import chosen_threads
from dln.lm.pool import Pooled
from dln.lm.prices import PriceTable
from dln.lm.remote.call import AuthenticationFailed, ModelNotFound, QuotaExhausted
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.probe import ProbeReport
from dln.lm.smollm2 import SMOLLM2, EmbeddedModel, embedded_model_path, pull

__all__ = ["DOCTOR_EPILOG", "Check", "app", "doctor", "environment_checks", "extension_checks", "model_checks"]

State = Literal["ok", "warning", "failed"]
EXACT: tuple[ScoringMode, ...] = ("target scoring", "prompt log-probs", "forced decoding")
"""Scoring modes that yield the log-probability of a whole text."""

CONTEXT = "Question: What is the capital of France?\nAnswer:"
ROOM = 2_000_000_000
"""Bytes for the embedded model, its unpacked copy and a response cache."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: "ok", "warning" (works with a limitation) or "failed".
        says: what was found.
        fix: what to do.
        of: the model; "" for the environment.
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
        fix = "pip install 'dln[local]' (not needed for models on servers)"
        yield Check("torch", "warning", "not installed: in-process models are not available", fix)
    else:
        yield Check("torch", "ok", metadata.version("torch"))
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Check("cache", "failed", f"{folder} is not writable: {error.strerror}", "set DLN_CACHE_DIR")
        return
    yield Check("cache", "ok", f"{folder} is writable")
    enough: State = "ok" if free >= ROOM else "warning"
    fix = None if enough == "ok" else "free some space, or set DLN_CACHE_DIR to another disk"
    yield Check("disk", enough, f"{free / 1e9:.1f} GB free", fix)
    if SMOLLM2.cached_path.is_file():
        yield Check("embedded model", "ok", str(SMOLLM2.cached_path))
    else:
        yield Check("embedded model", "warning", "not in the cache; downloaded at first use", "dln model pull")


def extension_checks() -> Iterator[Check]:
    """What other packages register with `dln`, and from where; a warning where it cannot be used."""
    for one in extensions.registered():
        name, says = f"{one.kind} {one.name}", f"{one.value}, registered by {one.package}"
        if one.kind not in extensions.KINDS:
            kinds = ", ".join(extensions.KINDS)
            yield Check(name, "warning", f"{says}: there is no such kind", f"name the entry point kind.name: {kinds}")
            continue
        try:
            extensions.load(one.kind, one.name)
        except InputError as error:
            yield Check(name, "warning", f"{says}: {_said(error)}", error.fix)
        else:
            yield Check(name, "ok", says)


def model_checks(wanted: Wanted, prices: PriceTable, config: ModelConfig) -> Iterator[Check]:
    """One model: availability, abilities, speed and price."""
    spec = wanted.spec
    try:
        lm = load_lm(spec, **wanted.options)
        checks = list(_served(lm) if isinstance(lm, RemoteLM) else _in_process(lm, config))
    except DlnError as error:
        yield Check(_culprit(error, spec), "failed", _said(error), error.fix, spec)
        return
    for check in checks:
        yield Check(check.name, check.state, check.says, check.fix, spec)
    quote = prices.find(spec)
    if quote is None:
        fix = f"--price {spec}=INPUT/OUTPUT (US dollars per million tokens), or --prices FILE"
        yield Check("price", "warning", "unknown: cost is not counted, and --max-usd is rejected", fix, spec)
    else:
        free = f"free ({quote.source})" if remote(spec) else "free (runs locally)"
        price, dated = quote.price, f", {quote.date}" if quote.date else ""
        says = f"${price.input:g} input, ${price.output:g} output per million tokens ({quote.source}{dated})"
        yield Check(
            "price",
            "ok",
            says if price.usd(1, 1) else free,
            of=spec,
        )


def _served(lm: RemoteLM) -> Iterator[Check]:
    """The findings of the probe, which sends a few dozen small requests."""
    report = lm.report
    yield Check("endpoint", "ok", f"speaks {report.dialect}")
    yield Check("key", "ok", "accepted, or none is needed")
    if report.served_model in (None, report.model):
        yield Check("model", "ok", report.model + (f", derived from {report.root}" if report.root else ""))
    else:
        yield Check(
            "model", "warning", f"served as {report.served_model}", f"check that it is the same as {report.model}"
        )
    if report.context_length is None:
        fix = "whether overlong requests are rejected depends on the server"
        yield Check("context length", "warning", "not reported by the server", fix)
    else:
        yield Check("context length", "ok", f"{report.context_length} tokens")
    yield Check("tokenizer", "ok" if "agrees" in report.tokenizer else "warning", report.tokenizer)
    yield from _scoring_modes(report)
    for line in report.requests:
        yield Check("requests", "ok", line)
    seeds: State = "ok" if report.seeds == "honoured" else "warning"
    yield Check(
        "seeds", seeds, report.seeds, None if seeds == "ok" else "keep the cache enabled: it reproduces samples exactly"
    )
    speed = f"{report.calls_per_second:.1f} calls/s and {report.tokens_per_second:.0f} tokens/s, sequentially"
    yield Check("speed", "ok", speed)


def _scoring_modes(report: ProbeReport) -> Iterator[Check]:
    """The scoring modes of labels and texts, why no better ones, and the consequences."""
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


def _in_process(lm: LanguageModel, config: ModelConfig) -> Iterator[Check]:
    """Identity, a self-test (a text scored in two ways), and speed."""
    yield Check("model", "ok", lm.fingerprint())
    threads = chosen_threads()
    if isinstance(lm, Pooled):
        yield Check("workers", "ok", shown_workers(config, lm.workers))
    elif threads is not None:
        yield Check("threads", "ok", str(threads))
    length = lm.capabilities.context_length
    yield Check("context length", "ok", "no limit" if length is None else f"{length} tokens")
    began = time.perf_counter()
    draws = lm.sample([CONTEXT] * 4, Sampling(temperature=1.0, max_tokens=16), range(4))
    drawing = time.perf_counter() - began
    drawn = sum(len(draw.token_ids or ()) or lm.count_tokens(draw.text) for draw in draws)
    writing = f"{drawn / max(drawing, 1e-9):,.0f} tokens/s output"
    if not lm.capabilities.scores_targets:
        fix = "scoring labels is enough for one layer; hidden layers need `log_prob` for posterior weights"
        yield Check("texts", "warning", "cannot be scored", fix)
        yield Check("speed", "ok", writing)
        return
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
        yield Check("self-test", "warning", "samples have no log-probabilities to compare")
    elif max(gaps) <= 0.01:  # a NaN fails
        yield Check("self-test", "ok", f"passed: two scoring methods agree to {max(gaps):.1g} nats per token")
    else:
        fix = "report it with the model and the versions of torch and transformers"
        yield Check("self-test", "failed", f"two scoring methods differ by {max(gaps):.3g} nats per token", fix)
    yield Check("speed", "ok", f"{read / max(reading, 1e-9):,.0f} tokens/s input, {writing}")


def _culprit(error: DlnError, spec: str) -> str:
    """The check that an error belongs to."""
    if isinstance(error, AuthenticationFailed | QuotaExhausted) or "key" in error.message.lower():
        return "key"
    return "model" if isinstance(error, ModelNotFound) or not remote(spec) else "endpoint"


def _said(error: DlnError) -> str:
    where = "" if error.where is None else f"{error.where}: "
    return f"{where}{error.message}" + (f" (got {error.got})" if error.got is not None else "")


DOCTOR_EPILOG = examples(
    "dln doctor",
    "dln doctor --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
    "dln doctor --lm openai/gpt-4o-mini --api-key-env MY_KEY --json",
)

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@configured("lm", ENGINE, PRICES)
def doctor(config: RunConfig, as_json: flags.Json = False) -> None:
    """Check the environment and the models: API key, endpoint, model, tokenizer, scoring, speed and price.

    A model on a server is sent a few dozen small requests. The exit code is 3 if a check failed.
    """
    found = [_show(check, as_json) for check in (*environment_checks(), *extension_checks())]
    table = price_table(config.lm)
    for wanted in wanted_models(config.lm):
        found += [_show(check, as_json) for check in model_checks(wanted, table, config.lm)]
    if not as_json:
        out().print(_summary(found))
    if any(check.state == "failed" for check in found):
        raise typer.Exit(ProviderError.exit_code)


def _show(check: Check, as_json: bool) -> Check:
    """Print a check at once: the next one may take a while."""
    if as_json:
        print_record({"kind": "check", **check.to_dict()})
        return check
    state = f"[{_COLOURS[check.state]}]{check.state:<7}[/]"
    name = f"{check.of}: {check.name}" if check.of else check.name
    out().print(f"{state}  {safe(name)}: {safe(check.says)}", soft_wrap=True)
    if check.fix is not None and check.state != "ok":
        out().print(f"         try: {safe(check.fix)}", soft_wrap=True)
    return check


def _summary(found: Sequence[Check]) -> str:
    failed, warned = (sum(check.state == state for check in found) for state in ("failed", "warning"))
    if failed:
        return f"[red]{failed} of {len(found)} checks failed[/]"
    warnings = f", {warned} warning{'s' if warned != 1 else ''}" if warned else ""
    return f"[green]all checks passed[/]{warnings}"


app = typer.Typer(
    help="Download, locate and list models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=examples("dln model pull", "dln model path", "dln model list"),
)


@app.command("pull", epilog=examples("dln model pull"))
def pull_model() -> None:
    """Download the embedded model if needed, and print its path."""
    out().print(safe(pull(SMOLLM2)), soft_wrap=True)


@app.command("path", epilog=examples("dln model path", "ls -l $(dln model path)"))
def path() -> None:
    """Print the path of the embedded model; download nothing."""
    out().print(safe(embedded_model_path(SMOLLM2, fetch=_refuse)), soft_wrap=True)


@app.command("list", epilog=examples("dln model list", "dln model list --json"))
def list_models(as_json: Json = False) -> None:
    """List the forms of model names, and whether the embedded model is downloaded."""
    try:
        embedded_model_path(SMOLLM2, fetch=_refuse)
        state = "downloaded"
    except ProviderError:
        state = "downloaded at first use"
    rows = [(engine.form, state if name == "smollm2" else "") for name, engine in ENGINES.items()]
    if as_json:
        for form, state in rows:
            print_record({"model": form, "state": state})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("--lm")
    table.add_column("")
    for form, state in rows:
        table.add_row(safe(form), state)
    out().print(table)


def _refuse(model: EmbeddedModel, folder: Path) -> Path:
    raise ProviderError(
        "the embedded model is not downloaded, or damaged", where=model.cached_path, fix="dln model pull"
    )
