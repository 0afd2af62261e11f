"""What training returns: the networks, why it ended, and its history as a table."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from dln.errors import InputError
from dln.nn import Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.train.events import Event, StepDone, Validated
from dln.train.run import current

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "FitResult", "History", "html_table"]

COLUMNS = (
    "step",
    "elbo",
    "batch_accuracy",
    "dev_score",
    "dev_accuracy",
    "best",
    "calls",
    "tokens",
    "usd",
    "seconds",
)
"""Of a history; `calls`, `tokens` and `usd` are since the start of the run, None without a meter."""


class History(Sequence[dict[str, Any]]):
    """One record per step, step 0 being the validation of the initial network; None where something is not known.

    >>> History([{"step": 1, "elbo": -2.5}])[0]["elbo"]
    -2.5
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._rows = list(rows)

    @classmethod
    def of(cls, events: Iterable[Event]) -> History:
        """The history that the events of a run tell; steps that a resumed run repeated are told once."""
        rows: dict[int, dict[str, Any]] = {}
        for event in current(list(events)):
            if not isinstance(event, StepDone | Validated):
                continue
            row = rows.setdefault(event.step, {**dict.fromkeys(COLUMNS), "step": event.step, "seconds": 0.0})
            row["seconds"] += event.seconds
            if event.usage:
                row["calls"], row["usd"] = event.usage.get("calls"), event.usage.get("usd")
                row["tokens"] = event.usage.get("prompt_tokens", 0.0) + event.usage.get("completion_tokens", 0.0)
            if isinstance(event, StepDone):
                row["elbo"], row["batch_accuracy"] = event.elbo, event.accuracy
            else:
                row["dev_score"], row["dev_accuracy"], row["best"] = event.score, event.result.accuracy, event.best
        return cls(rows.values())

    def to_pandas(self) -> pd.DataFrame:
        """The table as a DataFrame, with the step as its index.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise InputError("pandas is not installed", where="History.to_pandas", fix="pip install pandas") from error
        return pd.DataFrame(self._rows, columns=list(COLUMNS)).set_index("step")

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> History: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | History:
        return History(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self._rows == other._rows

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"History({len(self)} rows: {', '.join(self._known())})"

    def to_html(self) -> str:
        """The table as HTML, without the columns in which nothing is known."""
        columns = self._known()
        return html_table(columns, [[row[name] for name in columns] for row in self._rows])

    def _repr_html_(self) -> str:
        return self.to_html()

    def _known(self) -> list[str]:
        """The columns in which anything is known."""
        return [name for name in COLUMNS if any(row.get(name) is not None for row in self._rows)]


@dataclass(frozen=True)
class FitResult:
    """What training returns.

    Attributes:
        network: the best network by validation (the last one without a dev set).
        initial: the network that training started from.
        best_step: the step it is from; 0 means that nothing better was found.
        score: its validation score, NaN without a dev set.
        reason: why training ended: "steps", "nothing to gain", "early stopping", "stopper", "stopped" (by a person) or
            "budget".
        steps: updates done.
        run_dir: the run directory, if there is one.
        ensemble: the best networks by validation, where several answer together (option `ensemble`); None where
            one answers.
        history: one record per step.
    """

    network: Sequential
    initial: Sequential
    best_step: int
    score: float
    reason: str
    steps: int
    run_dir: Path | None = None
    ensemble: Ensemble | None = None
    history: History = field(default_factory=History, compare=False)

    @property
    def predictor(self) -> AnyNetwork:
        """What answers: the ensemble where there is one, else the network. A run's network.json holds it."""
        return self.network if self.ensemble is None else self.ensemble

    def view(self) -> Any:
        """The report of the run, for a notebook's cell; `dln view` shows it live.

        Raises:
            InputError: the run was not saved.
        """
        # by name: the pages of `dln.view` are made from what is here
        return import_module("dln.view.notebook").embedded(self.run_dir)

    def __repr__(self) -> str:
        score = "" if self.score != self.score else f", score={self.score:.4g}"
        place = "" if self.run_dir is None else f", run_dir={str(self.run_dir)!r}"
        return f"FitResult({self.steps} steps, stopped: {self.reason}, best step {self.best_step}{score}{place})"

    def _repr_html_(self) -> str:
        prompts = [[number, str(prompt)] for number, prompt in enumerate(self.network.parameters(), 1)]
        return f"<p>{html.escape(repr(self))}</p>{html_table(['layer', 'prompt'], prompts)}{self.history.to_html()}"


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A small table for notebooks; every value is escaped, numbers have four digits."""

    def cell(value: object) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<td style='white-space: pre-wrap; text-align: left'>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
