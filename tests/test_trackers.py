"""Experiment trackers, each against its package and a local store; without the package its tests are skipped."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import dln
from cli_shell import Shell, mail_csv
from dln.errors import InputError
from dln.integrations.trackers import FILES, PATIENCE, TRACKERS, Beginning, Tracker, TrackerWarning, tracker
from dln.train.events import StepDone, Validated
from dln.train.run import current, of_kind, read_events


def needs(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'dln[{name}]'")


def trained(folder: Path, callbacks: list[Any], steps: int = 2, resume: bool = False) -> dln.FitResult:
    data = dln.Dataset.from_pairs([(f"film {n}", "yes" if n % 3 else "no") for n in range(12)], labels=["yes", "no"])
    lm = dln.TableLM.random([" yes", " no"], seed=8)
    network = dln.Sequential(dln.ChoiceLayer(lm, "classify", "Is the review positive?", ["yes", "no"]))
    options: dict[str, Any] = {"output_layer": "fitted", "batch_size": 6, "num_prompts": 2, "val_every": 1}
    return dln.fit(
        network, data, data, run_dir=folder, resume=resume, callbacks=callbacks, steps=steps, progress=False, **options
    )


class Stopped(Exception):
    """Raised by a callback, as a machine that goes down."""


def stop_after(step: int) -> Any:
    def check(event: dln.Event) -> None:
        if isinstance(event, Validated) and event.step == step:
            raise Stopped

    return check


def interrupted_and_resumed(name: str, folder: Path) -> None:
    """A run of three steps that goes down in the second and is resumed, tracked all along."""
    with pytest.raises(Stopped), tracker(name, folder) as first:  # type: ignore[arg-type]
        trained(folder, [first, stop_after(2)], steps=3)
    with tracker(name, folder) as second:  # type: ignore[arg-type]
        trained(folder, [second], steps=3, resume=True)


def accuracies(folder: Path) -> dict[int, float]:
    steps = of_kind(current(read_events(folder / "events.jsonl")), StepDone)
    return {step.step: step.accuracy for step in steps}


@dataclass
class Recorder(Tracker):
    """A tracker that keeps what it is told, and fails where it is told to."""

    run_dir: Path | None = None
    fail: tuple[str, ...] = ()
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    name, package = "recorder", "dln"

    def __post_init__(self) -> None:
        super().__init__(self.run_dir)

    def _connect(self) -> None: ...

    def _told(self, kind: str, *what: Any) -> None: ...

    def keep(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.fail:
            raise ConnectionError("the tracker is away")

    def begin(self, run: Beginning) -> None:
        self.keep("begin", run)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.keep("metrics", dict(values), step)

    def text(self, name: str, text: str, step: int) -> None:
        self.keep("text", name, text, step)

    def artefact(self, path: Path) -> None:
        self.keep("artefact", path.name)

    def end(self, state: str) -> None:
        self.keep("end", state)

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]


def test_what_a_tracker_is_told(tmp_path: Path):
    with Recorder(tmp_path / "run") as recorder:
        result = trained(tmp_path / "run", [recorder])
    kinds = [call[0] for call in recorder.calls]
    assert kinds[0] == "begin"
    assert kinds[-1] == "end"
    ((beginning,),) = recorder.of("begin")
    assert beginning.settings["inference.num_prompts"] == 2
    assert beginning.resumed is None
    logged = {(name, step): value for values, step in recorder.of("metrics") for name, value in values.items()}
    history = {row["step"]: row for row in result.history}
    assert {step for name, step in logged if name == "dev/accuracy"} == set(history)
    for step, row in history.items():
        assert logged["dev/accuracy", step] == row["dev_accuracy"]
        assert step == 0 or logged["train/elbo", step] == pytest.approx(row["elbo"])
    texts = [(name, step) for name, _, step in recorder.of("text")]
    assert texts == [("prompt/layer-1", step) for step in (0, 1, 2)]
    assert {name for (name,) in recorder.of("artefact")} == {"run.yaml", "events.jsonl", "network.json"} <= set(FILES)
    assert recorder.of("end") == [("FINISHED",)]
    recorder.close()
    assert len(recorder.of("end")) == 1


def test_a_resumed_run_has_the_same_identifier(tmp_path: Path):
    first, second = Recorder(tmp_path / "run"), Recorder(tmp_path / "run")
    with pytest.raises(Stopped), first:
        trained(tmp_path / "run", [first, stop_after(2)], steps=3)
    with second:
        trained(tmp_path / "run", [second], steps=3, resume=True)
    ((before,),), ((after,),) = first.of("begin"), second.of("begin")
    assert (before.id, before.name, before.settings) == (after.id, after.name, after.settings)
    assert after.resumed is not None
    assert min(step for _, step in second.of("metrics")) >= after.resumed
    assert first.of("end") == [("FAILED",)]
    with Recorder(tmp_path / "other") as third:
        trained(tmp_path / "other", [third], steps=1)
    assert third.of("begin")[0][0].id != before.id


@pytest.mark.parametrize(
    "kind", ["begin", "metrics", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("text", "artefact", "end"))]
)
def test_a_tracker_that_fails_never_ends_a_training_and_says_so_once(tmp_path: Path, kind: str):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with Recorder(tmp_path / "run", (kind,)) as recorder:
            result = trained(tmp_path / "run", [recorder], steps=3)
    assert result.steps == 3
    said = [warning for warning in found if issubclass(warning.category, TrackerWarning)]
    assert [str(warning.message) for warning in said] == [
        "recorder failed, the training goes on: ConnectionError: the tracker is away"
    ]
    assert len(recorder.of(kind)) <= max(PATIENCE, 4)
    with Recorder(tmp_path / "plain") as whole:
        trained(tmp_path / "plain", [whole], steps=3)
    assert accuracies(tmp_path / "run") == accuracies(tmp_path / "plain"), "the run is the same run"


def test_a_tracker_that_is_not_there_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(InputError, match=r"dln\[mlflow\]"):
        tracker("mlflow")
    with pytest.raises(InputError, match="name"):
        tracker("nothing")  # type: ignore[arg-type]


def test_tensorboard_files_are_read_back(tmp_path: Path):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    interrupted_and_resumed("tensorboard", tmp_path / "run")
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    read.Reload()
    found = [(row.step, row.value) for row in read.Scalars("train/accuracy")]
    # the repeated step is there once: what was logged before the interruption is void
    assert [step for step, _ in found] == [1, 2, 3]
    assert dict(found) == pytest.approx(accuracies(tmp_path / "run"))
    prompts = [make_ndarray(row.tensor_proto).item().decode() for row in read.Tensors("prompt/layer-1")]
    assert "Is the review positive?" in prompts[0]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2


def test_mlflow_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("mlflow")
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    interrupted_and_resumed("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "dln"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["inference.num_prompts"] == "2"
    history = client.get_metric_history(run.info.run_id, "train/accuracy")
    assert {row.step: row.value for row in history} == pytest.approx(accuracies(tmp_path / "run"))
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"network.json", "run.yaml", "prompt"}
    (text,) = [f.path for f in client.list_artifacts(run.info.run_id, "prompt/layer-1") if "0000" in f.path]
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{text}") == "Is the review positive?"


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    interrupted_and_resumed("wandb", tmp_path / "run")
    stores = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({store.name for store in stores}) == 1, "both parts have the identifier of one run"
    assert len(stores) == 2
    assert any(b"train/accuracy" in store.read_bytes() for store in stores)


def test_trackio_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    interrupted_and_resumed("trackio", tmp_path / "run")
    (store,) = [path for path in tmp_path.rglob("*.db") if "dln" in path.name]
    with sqlite3.connect(store) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, *_ in rows}) == 1
    told = [(step, json.loads(text)) for _, step, text in rows]
    found = {step: values["train/accuracy"] for step, values in told if "train/accuracy" in values}
    assert found == pytest.approx(accuracies(tmp_path / "run"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


TRAIN = [
    *("train", "--csv", "mail.csv", "--lm", "fake/1", "--dev-size", 4, "--test-size", 4, "--run-dir", "runs/a"),
    *("--set", "batch_size=4", "--set", "inference.num_prompts=2", "--steps", 1),
]


def test_the_command_line_tracks_a_run_and_its_resumption(cli: Shell, monkeypatch: pytest.MonkeyPatch):
    made: list[Recorder] = []

    def recorder(run_dir: Path, project: str | None, tell: Any) -> Recorder:
        made.append(Recorder(run_dir))
        return made[-1]

    monkeypatch.setitem(TRACKERS, "mlflow", recorder)  # type: ignore[arg-type]
    done = cli(*TRAIN, "--track", "mlflow")
    assert done.code == 0, done.err
    assert yaml.safe_load((cli.folder / "runs/a/run.yaml").read_text("utf-8"))["config"]["track"] == ["mlflow"]
    assert cli("resume", "runs/a", "--steps", 2).code == 0
    first, second = made
    for one, step in ((first, 1), (second, 2)):
        assert {name for (name,) in one.of("artefact")} == set(FILES)
        assert any("test/accuracy" in values for values, _ in one.of("metrics"))
        assert max(step for _, step in one.of("metrics")) == step
        assert one.of("end") == [("FINISHED",)]
    assert first.of("begin")[0][0].id == second.of("begin")[0][0].id
    done = cli(*TRAIN, "--track", "nothing")
    assert (done.code, "tensorboard, mlflow" in done.err) == (2, True)
