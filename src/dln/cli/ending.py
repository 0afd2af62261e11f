"""What a user is told when a training session ends, with a result or without."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.table import Table

from dln.cli.board import Board
from dln.cli.compose import Models
from dln.cli.config import RunConfig
from dln.cli.networks import said_together
from dln.cli.show import duration, err, evaluation_table, note, out, print_record, safe
from dln.lm.metered import Usage
from dln.nn.ensemble import members_of
from dln.train import FitResult
from dln.train.event_log import current, of_kind, read_events
from dln.train.events import Evaluated, StepDone

__all__ = ["tell_interrupted", "tell_result"]


def tell_result(
    result: FitResult,
    evaluated: Evaluated | None,
    models: Models,
    board: Board,
    report: Path,
    config: RunConfig,
    *,
    as_json: bool,
) -> None:
    """The numbers of the final evaluation and what the run took; with `as_json` one record of it."""
    used = models.meter.snapshot()
    if result.reason == "budget":
        note("the budget is spent: this is the result so far, without a test evaluation")
        note(f"go on with: dln resume {shlex.quote(str(result.run_dir))} and a higher --max-usd, --max-tokens, ...")
    if as_json:
        print_record(
            {
                "kind": "result",
                "reason": result.reason,
                "steps": result.steps,
                "best_step": result.best_step,
                "members": len(members_of(result.predictor)),
                "run_dir": str(result.run_dir),
                "network": str(Path(str(result.run_dir)) / "network.json"),
                "report": str(report),
                "tokens": used.tokens,
                "calls": used.calls,
                "usd": used.usd,
                "seconds": round(board.elapsed, 3),
            }
        )
        return
    console = out()
    if evaluated is not None:
        console.print(evaluation_table(evaluated))
    facts, together = Table.grid(padding=(0, 2)), said_together(result.predictor)
    for name, value in (
        ("ended by", f"{result.reason}, after step {result.steps}"),
        ("best step", f"{result.best_step}" + (" (the initial network)" if not result.best_step else "")),
        *([("answers", together)] if together is not None else []),
        ("used", f"{used.tokens:,} tokens in {used.calls:,} calls, {_money(used, models)}{duration(board.elapsed)}"),
        ("run", safe(result.run_dir)),
        ("report", safe(report)),
    ):
        facts.add_row(name, value)
    console.print(facts, soft_wrap=True)


def tell_interrupted(directory: Path) -> None:
    """How to go on."""
    if not (directory / "run.yaml").exists():
        note("interrupted before the run began; nothing was saved")
        return
    events = current(read_events(directory / "events.jsonl"))
    done = max((event.step for event in of_kind(events, StepDone)), default=0)
    err().print(
        safe(f"interrupted after step {done}; go on with: dln resume {shlex.quote(str(directory))}"), soft_wrap=True
    )


def _money(used: Usage, models: Models) -> str:
    """What it cost, where it costs anything that is known."""
    if not any(quote is None or quote.price.usd(1, 1) for quote in models.quotes.values()):
        return ""
    return f"${used.usd:.4f}" + (" and what has no known price" if None in models.quotes.values() else "") + ", "
