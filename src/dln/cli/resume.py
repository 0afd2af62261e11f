"""`dln resume`: go on with a run that was stopped, from what its directory says."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import typer

from dln.cli import flags
from dln.cli.config import RunConfig, parse_config
from dln.cli.endpoints import moved, with_secrets
from dln.cli.flags import examples
from dln.cli.seeds import is_series, read_series, run_series, with_seed
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
    "dln resume runs/questions-seeds",
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
    """Go on with a run, or with one run per seed; it ends exactly as if it had never been stopped."""
    limits = {"max_calls": max_calls, "max_tokens": max_tokens, "max_minutes": max_minutes, "max_usd": max_usd}

    def present(config: RunConfig) -> RunConfig:
        # what the record leaves out, keys above all, comes from the settings of now
        models = with_secrets(config.lm, load_config({}, config_file).lm)
        changes = {name: value for name, value in limits.items() if value is not None}
        budget = config.budget.model_copy(update=changes)
        return config.model_copy(update={"lm": moved(models, base_url, api_key_env), "budget": budget})

    if not is_series(run):
        _resume(run, recorded_config(run), present, as_json=as_json)
        return
    shared, seeds = read_series(run)

    def one(seed: int, path: Path) -> None:
        if (path / "run.yaml").exists():
            _resume(path, recorded_config(path), present, as_json=as_json)
        else:
            run_training(with_seed(present(shared), seed), path, as_json=as_json)

    run_series(run, seeds, one, as_json=as_json)


def _resume(run: Path, recorded: RunConfig, present: Callable[[RunConfig], RunConfig], *, as_json: bool) -> None:
    """Go on with one run.

    Raises:
        typer.Exit: its budget is spent and no higher limit is given (4).
    """
    config = present(recorded)
    state = _state(run, config)
    changes = config.budget != recorded.budget
    if state == "budget" and not changes:
        command = f"dln resume {shlex.quote(str(run))} --max-tokens …"
        note(f"the budget of this run is spent; go on with a higher limit: {command}")
        raise typer.Exit(BUDGET_EXIT)
    if state == "finished":
        note(f"this run is finished; see: dln report {shlex.quote(str(run))}")
        return
    run_training(config, run, resume=True, as_json=as_json)


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
