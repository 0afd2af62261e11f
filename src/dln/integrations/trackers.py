"""Experiment trackers as callbacks: TensorBoard, MLflow, Weights & Biases and trackio.

    with dln.integrations.trackers.tracker("mlflow", run_dir) as mlflow:
        dln.fit(network, train, dev, run_dir=run_dir, callbacks=[mlflow])

On the command line: `dln train --track mlflow`. A tracker logs metrics, the prompts of every step as text, and at its
end the files of the run directory. A resumed run continues the run of the tracker, which is found by the identifier in
`tracker.json` of the run directory. What a tracker raises never ends a training: it is told once, and after three
failures in a row the tracker is not asked any more.

A tracker is configured as usual: by `MLFLOW_TRACKING_URI`, `WANDB_MODE=offline`, `TRACKIO_DIR` and so on.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, cast

from dln.arguments import checked
from dln.errors import InputError
from dln.io import write_atomically
from dln.train.events import Evaluated, Event, Finished, Interrupted, Resumed, Started, StepDone, Validated
from dln.train.run import of_kind, read_events

__all__ = ["TRACKERS", "Beginning", "Tracker", "TrackerName", "TrackerWarning", "tracker"]

PATIENCE = 3
"""Failures in a row after which a tracker is not asked any more."""
FILES = ("run.yaml", "events.jsonl", "network.json", "report.html")
"""Files of a run directory that are logged at the end."""

IDENTIFIER = "tracker.json"
"""File of a run directory with the identifier that trackers know the run by."""

TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class TrackerWarning(UserWarning):
    """A tracker failed; the training goes on."""


@dataclass(frozen=True)
class Beginning:
    """What a tracker is told of a run at its beginning.

    Attributes:
        id: of the run; the same when it is resumed.
        name: for people.
        settings: options with dotted names, task and models.
        resumed: the step that the run goes on from; None of a new run.
    """

    id: str
    name: str
    settings: Mapping[str, str | int | float | bool | None]
    resumed: int | None = None


class Tracker(ABC):
    """A callback that writes to a tracker; a context manager, whose end closes the tracker's run.

    Args:
        run_dir: the run directory: of its files, and of its beginning when it is resumed.
        project: name of the project or experiment; default `$DLN_PROJECT`, else `dln`.
        tell: called with a text when the tracker fails; default a `TrackerWarning`.

    Raises:
        InputError: the tracker's package is not installed.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    def __init__(
        self,
        run_dir: str | Path | None = None,
        project: str | None = None,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.project = project or os.environ.get("DLN_PROJECT") or "dln"
        self._tell = tell
        self._begun = self._closed = self._told = False
        self._failures = self._step = 0
        self._resumed: int | None = None
        self._state = "FINISHED"
        try:
            self._connect()
        except ImportError as error:
            raise InputError(
                f"{self.name} is not installed",
                where="tracker",
                got=str(error),
                fix=f"pip install 'dln[{self.name}]'",
            ) from error

    def on_event(self, event: Event) -> None:
        """Log an event; never raises."""
        self._try(self._see, event)

    def close(self, failed: bool = False) -> None:
        """Log the files of the run and end the tracker's run; a second call does nothing."""
        if self._begun and not self._closed:
            self._closed = True
            for path in self._files():
                self._try(self.artefact, path)
            self._try(self.end, "FAILED" if failed and self._state == "FINISHED" else self._state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _see(self, event: Event) -> None:
        if isinstance(event, Resumed):
            self._resumed = self._step = max(0, event.step)
        if not self._begun:
            started = event if isinstance(event, Started) else self._recorded()
            self.begin(_beginning(started, self.run_dir, self._resumed))
            self._begun = True
            if self._resumed is None:
                self._prompts(started.network, 0)
        if isinstance(event, StepDone | Validated):
            self._step = event.step
        if isinstance(event, Interrupted):
            self._state = "KILLED"
        if isinstance(event, Finished):
            self._state = "FINISHED"
        values = dict(_scalars(event))
        if values:
            self.metrics(values, self._step)
        if isinstance(event, StepDone):
            self._prompts(event.parameters, event.step)

    def _prompts(self, parameters: Mapping[str, Any], step: int) -> None:
        layers = cast("list[Mapping[str, Any]]", parameters.get("layers", []))
        for number, layer in enumerate(layers, 1):
            if "prompt" in layer:
                self.text(f"prompt/layer-{number}", _prompt_text(layer["prompt"]), step)

    def _recorded(self) -> Started:
        """The beginning of a resumed run."""
        found = [] if self.run_dir is None else of_kind(read_events(self.run_dir / "events.jsonl"), Started)
        if not found:
            raise InputError("a resumed run is tracked by its directory", where="tracker", fix="run_dir=…")
        return found[0]

    def _files(self) -> list[Path]:
        return [] if self.run_dir is None else [p for name in FILES if (p := self.run_dir / name).is_file()]

    def _try(self, function: Callable[..., object], *arguments: object) -> None:
        if self._failures >= PATIENCE:
            return
        try:
            function(*arguments)
            self._failures = 0
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, the training goes on
            self._failures += 1
            if not self._told:
                self._told = True
                text = f"{self.name} failed, the training goes on: {type(error).__name__}: {error}"
                if self._tell is None:
                    warnings.warn(text, TrackerWarning, stacklevel=3)
                else:
                    self._tell(text)

    @abstractmethod
    def _connect(self) -> None:
        """Import the package."""

    @abstractmethod
    def begin(self, run: Beginning) -> None:
        """Open the tracker's run, or the one of this run that is there already."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""

    @abstractmethod
    def text(self, name: str, text: str, step: int) -> None:
        """Log a text."""

    @abstractmethod
    def artefact(self, path: Path) -> None:
        """Log a file."""

    @abstractmethod
    def end(self, state: str) -> None:
        """End the tracker's run: FINISHED, FAILED or KILLED."""


class TensorBoard(Tracker):
    """Event files in `tensorboard/` of the run directory; no torch or TensorFlow is needed.

    A resumed run writes another file there, which begins by voiding the steps that are repeated. Files of the run are
    not copied: they are beside.
    """

    name, package = "tensorboard", "tensorboard"

    def _connect(self) -> None:
        self._writer_class: Any = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
        self._events: Any = import_module("tensorboard.compat.proto.event_pb2")
        self._summary: Any = import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._text: Any = import_module("tensorboard.plugins.text.summary_v2").text_pb

    def begin(self, run: Beginning) -> None:
        """Open an event file."""
        folder = Path("runs") / run.name if self.run_dir is None else self.run_dir
        self._writer = self._writer_class(str(folder / "tensorboard"))
        if run.resumed is not None:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            # readers drop what was logged at this step and later
            self._writer.add_event(self._events.Event(wall_time=time.time(), step=run.resumed + 1, session_log=start))
        rows = "\n".join(f"| {name} | {value} |" for name, value in run.settings.items())
        if run.resumed is None:
            self.text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)

    def _add(self, summary: object, step: int) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One summary of all numbers."""
        self._add(self._summary(value=[self._summary.Value(tag=n, simple_value=v) for n, v in values.items()]), step)
        self._writer.flush()

    def text(self, name: str, text: str, step: int) -> None:
        """A text summary; TensorBoard shows Markdown, prompts as a block of code."""
        self._add(self._text(name, text if name == "settings" else "    " + text.replace("\n", "\n    ")), step)

    def artefact(self, path: Path) -> None:
        """Nothing: the file is beside the event files."""

    def end(self, state: str) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow(Tracker):
    """A run of an MLflow experiment, with the tag `dln.run`, by which a resumed run is found."""

    name, package = "mlflow", "mlflow"

    def _connect(self) -> None:
        self._client: Any = None
        self._make: Any = import_module("mlflow").MlflowClient
        self._metric: Any = import_module("mlflow.entities").Metric

    def begin(self, run: Beginning) -> None:
        """Create the run, or set the present one to running."""
        self._client = self._make()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.project
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        known = self._client.search_runs([place], f"tags.`dln.run` = '{run.id}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(place, run_name=run.name, tags={"dln.run": run.id}).info.run_id
        for key, value in run.settings.items():
            self._client.log_param(self._run, key, value)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """All numbers with one request."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[self._metric(k, v, now, step) for k, v in values.items()])

    def text(self, name: str, text: str, step: int) -> None:
        """A file per step and layer."""
        self._client.log_text(self._run, text, f"{name}/step-{step:04d}.txt")

    def artefact(self, path: Path) -> None:
        """Copy the file."""
        self._client.log_artifact(self._run, str(path))

    def end(self, state: str) -> None:
        """Terminate the run."""
        self._client.set_terminated(self._run, status=state)


class WandB(Tracker):
    """A run of Weights & Biases, whose identifier is the run's: a resumed run continues it."""

    name, package = "wandb", "wandb"

    def _connect(self) -> None:
        self._wandb: Any = import_module("wandb")
        self._rows: list[list[object]] = []

    def begin(self, run: Beginning) -> None:
        """Open the run."""
        self._rows = [] if run.resumed is None else self._past()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.project,
            id=run.id,
            name=run.name,
            resume="allow",
            config=dict(run.settings),
            dir=None if self.run_dir is None else str(self.run_dir),
        )
        # a resumed run repeats steps, and W&B's own counter only grows
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _past(self) -> list[list[object]]:
        """The prompts of the steps before a resumed run, for the table is logged as a whole."""
        found: list[list[object]] = []
        for event in [] if self.run_dir is None else read_events(self.run_dir / "events.jsonl"):
            if isinstance(event, StepDone) and event.step <= (self._resumed or 0):
                layers = cast("list[Mapping[str, Any]]", event.parameters.get("layers", []))
                rows = [(n, _prompt_text(layer["prompt"])) for n, layer in enumerate(layers, 1) if "prompt" in layer]
                found.extend([event.step, f"prompt/layer-{n}", text] for n, text in rows)
        return found

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers on the axis `step`."""
        self._run.log({**values, "step": step})

    def text(self, name: str, text: str, step: int) -> None:
        """The table of all texts so far."""
        self._rows.append([step, name, text])
        table = self._wandb.Table(columns=["step", "name", "text"], data=self._rows)
        self._run.log({"prompts": table, "step": step})

    def artefact(self, path: Path) -> None:
        """An artefact named by run and file."""
        artefact = self._wandb.Artifact(f"{self._run.id}-{path.stem}", type=path.stem)
        artefact.add_file(str(path))
        self._run.log_artifact(artefact)

    def end(self, state: str) -> None:
        """Finish the run."""
        self._run.finish(exit_code=0 if state == "FINISHED" else 1)


class Trackio(Tracker):
    """A run of a trackio project, whose name contains the run's identifier: a resumed run continues it."""

    name, package = "trackio", "trackio"

    def _connect(self) -> None:
        self._trackio: Any = import_module("trackio")

    def begin(self, run: Beginning) -> None:
        """Open the run."""
        self._run = self._trackio.init(
            project=self.project,
            name=f"{run.name}-{run.id[:8]}",
            config=dict(run.settings),
            resume="allow",
            embed=False,
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        self._run.log(dict(values), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        """A text at a step."""
        self._run.log({name: self._trackio.Markdown(text)}, step=step)

    def artefact(self, path: Path) -> None:
        """Copy the file into the project."""
        self._trackio.save(str(path), self.project)

    def end(self, state: str) -> None:
        """Finish the run."""
        self._run.finish()


TRACKERS: Mapping[str, type[Tracker]] = {one.name: one for one in (TensorBoard, MLflow, WandB, Trackio)}
"""By name."""


@checked
def tracker(
    name: TrackerName,
    run_dir: str | Path | None = None,
    project: str | None = None,
    tell: Callable[[str], object] | None = None,
) -> Tracker:
    """The tracker of that name (see `Tracker`).

    Raises:
        InputError: there is none of that name, or its package is not installed.
    """
    return TRACKERS[name](run_dir, project, tell)


def _beginning(started: Started, run_dir: Path | None, resumed: int | None) -> Beginning:
    settings: dict[str, Any] = {"task": started.task, "train_size": started.train_size, "dev_size": started.dev_size}
    layers = cast("list[Mapping[str, Any]]", started.network.get("layers", []))
    settings |= {"layers": len(layers), "models": ", ".join(dict.fromkeys(str(one.get("model")) for one in layers))}
    settings |= dict(_flat(started.options))
    return Beginning(_identifier(run_dir), f"{started.task}-{started.run}", settings, resumed)


def _identifier(run_dir: Path | None) -> str:
    """A random name, kept in the run directory for when the run is resumed and for other trackers."""
    made = secrets.token_hex(8)
    if run_dir is None:
        return made
    file = run_dir / IDENTIFIER
    if not file.exists():
        write_atomically(file, json.dumps({"id": made}) + "\n")
    return str(json.loads(file.read_text(encoding="utf-8"))["id"])


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool | None]]:
    for name, value in options.items():
        if name == "inference" and isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), "inference.")
        else:
            yield prefix + name, value if isinstance(value, str | int | float | bool | None) else str(value)


def _scalars(event: Event) -> Iterator[tuple[str, float]]:
    """The numbers of an event; what is not known is left out."""
    found: dict[str, float | None] = {}
    if isinstance(event, StepDone):
        found = {"train/elbo": event.elbo, "train/accuracy": event.accuracy, "train/seconds": event.seconds}
        found |= {f"usage/{name}": value for name, value in event.usage.items()}
        if event.hidden:
            found["train/effective_sample_size"] = sum(record.ess for record in event.hidden) / len(event.hidden)
    elif isinstance(event, Validated):
        found = {f"dev/{event.select_by}": event.score, "dev/accuracy": event.result.accuracy}
        found["dev/log_likelihood"] = event.result.log_likelihood
    elif isinstance(event, Evaluated):
        after, place = event.after, event.split
        found = {f"{place}/accuracy": after.accuracy, f"{place}/accuracy_low": after.low}
        found |= {f"{place}/accuracy_high": after.high, f"{place}/p_value": event.p_value}
        found[f"{place}/accuracy_before"] = None if event.before is None else event.before.accuracy
    for name, value in found.items():
        if value is not None and math.isfinite(value):
            yield name, float(value)


def _prompt_text(prompt: Mapping[str, Any]) -> str:
    """Instruction and demonstrations of a prompt in a state."""
    shown = [f"{one['h']} → {one['y']}" for one in prompt.get("demonstrations") or ()]
    return "\n".join([str(prompt.get("instruction", "")), *shown])
