"""`dln resume`: go on with a run that was stopped, from what its directory says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import typer

from dln.cli import flags
from dln.cli.config import RunConfig, parse_config
from dln.cli.endpoints import moved, with_secrets
from dln.cli.flags import examples
from dln.cli.session import BUDGET_EXIT, run_training
from dln.cli.show import note
from dln.cli.sources import load_config
from dln.errors import InputError
from dln.train.event_log import current, of_kind, read_events
from dln.train.events import Evaluated, Finished
from dln.train.run import read_meta

__all__ = ["EPILOG", "recorded_config", "resume"]

EPILOG = examples(
    "dln resume runs/questions",
    "dln resume runs/questions --max-tokens 5000000",
    "dln resume runs/mail --max-usd 10 --api-key-env MY_KEY",
)


def resume(
    run: flags.RunDirectory,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    config_file: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Go on with a run; it ends exactly as if it had never been stopped."""
    config = recorded_config(run)
    # what the record leaves out, keys above all, comes from the settings of now
    models = with_secrets(config.lm, load_config({}, config_file).lm)
    config = config.model_copy(update={"lm": moved(models, base_url, api_key_env)})
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd}
    changes = {n: value for n, value in limits.items() if value is not None and value != getattr(config.budget, n)}
    budget = config.budget.model_copy(update=changes)
    state = _state(run, config)
    if state == "budget" and not changes:
        command = f"dln resume {shlex.quote(str(run))} --max-tokens …"
        note(f"the budget of this run is spent; go on with a higher limit: {command}")
        raise typer.Exit(BUDGET_EXIT)
    if state == "finished":
        note(f"this run is finished; see: dln report {shlex.quote(str(run))}")
        return
    run_training(config.model_copy(update={"budget": budget}), run, resume=True, as_json=as_json)


def recorded_config(run: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
        InputError: there is no run, or it was not started from the command line.
    """
    recorded = cast(dict[str, Any], read_meta(run).get("config") or {})
    if not recorded:
        raise InputError(
            "this run was not started by `dln train`: its run.yaml does not say with what",
            where=run,
            fix="go on with it from Python: dln.fit(..., run_dir=..., resume=True)",
        )
    return parse_config(recorded, str(run / "run.yaml"))


def _state(run: Path, config: RunConfig) -> str:
    log = run / "events.jsonl"
    events = current(read_events(log)) if log.exists() else []
    finished = of_kind(events, Finished)
    if not finished:
        return "unfinished"
    if finished[-1].reason == "budget":
        return "budget"
    tested = any(event.split == "test" for event in of_kind(events, Evaluated))
    complete = (tested or not config.test) and all((run / name).exists() for name in ("report.html", "network.json"))
    return "finished" if complete else "unfinished"
