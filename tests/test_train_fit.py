"""The training loop and the run directory: resumption, interruption, damage. All on `TableLM`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dln.data import Dataset
from dln.errors import BudgetReached, CorruptDataError, InputError
from dln.lm.cache import Cached, Store
from dln.lm.meter import Budget, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential, load_network
from dln.train import Run, fit, resolve_options
from dln.train.events import Backtracked, Finished, Interrupted, Resumed, StepDone, Validated
from dln.train.run import current, of_kind, read_events

LABELS = ("yes", "no")


def table(seed: int = 0):
    return TableLM.random([" yes", " no", " yes no", " maybe so", ""], seed=seed, name=f"random-{seed}")


def network(lm=None, depth: int = 2) -> Sequential:
    lm = lm or table()
    layers = [LanguageLayer(lm, "think" if i == 0 else "think_residual", "think") for i in range(depth - 1)]
    return Sequential(*layers, ChoiceLayer(lm, "classify_residual" if depth > 1 else "classify", "decide", LABELS))


def data(n: int = 40, name: str = "toy") -> Dataset:
    return Dataset.from_pairs([(f"{name} {i}", LABELS[i % 3 == 0]) for i in range(n)], labels=LABELS)


OPTIONS = {
    "batch_size": 6,
    "val_every": 2,
    "inference": {"num_hidden": 2, "num_prompts": 3, "prompt_tokens": 8, "output_layer": "fitted"},
}


def train(run_dir, *, steps=6, resume=False, callbacks=(), net=None, **more):
    return fit(
        net or network(),
        data(),
        data(24, "dev"),
        steps=steps,
        run_dir=run_dir,
        resume=resume,
        options=OPTIONS,
        callbacks=callbacks,
        **more,
    )


def truth(run_dir) -> list[dict]:
    """What the run says, without times and costs."""
    return [
        event.model_dump(exclude={"time", "seconds", "usage"}, mode="json")
        for event in current(read_events(Path(run_dir) / "events.jsonl"))
        if isinstance(event, StepDone | Validated | Backtracked | Finished)
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, train(path)


class StopAt:
    """Ctrl-C after a number of events."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, event) -> None:
        self.count -= 1
        if self.count == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("count", [n if n == 4 else pytest.param(n, marks=pytest.mark.slow) for n in range(1, 11)])
def test_resumed_equals_uninterrupted(tmp_path, uninterrupted, count):
    run_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, callbacks=[StopAt(count)])
    result = train(run_dir, resume=True)
    assert truth(run_dir) == truth(uninterrupted[0])
    assert result.network.state_dict() == uninterrupted[1].network.state_dict()
    assert result.score == uninterrupted[1].score


def test_events_name_interruption_and_resumption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callbacks=[StopAt(4)])
    train(tmp_path / "run", resume=True)
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert len(of_kind(events, Interrupted)) == 1
    assert len(of_kind(events, Resumed)) == 1


def test_torn_last_event_is_cut_off(tmp_path, uninterrupted):
    run_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, callbacks=[StopAt(5)])
    with (run_dir / "events.jsonl").open("ab") as log:
        log.write(b'{"kind":"step","step":4,"elbo":-0.1,"exam')
    train(run_dir, resume=True)
    assert truth(run_dir) == truth(uninterrupted[0])


def test_same_seed_same_run_other_seed_other_run(tmp_path, uninterrupted):
    train(tmp_path / "again")
    assert truth(tmp_path / "again") == truth(uninterrupted[0])
    train(tmp_path / "other", seed=14)
    assert truth(tmp_path / "other") != truth(uninterrupted[0])


@pytest.mark.slow
def test_a_cache_changes_nothing_and_repeats_nothing(tmp_path, uninterrupted):
    store = Store(tmp_path / "cache.sqlite")
    inner = Metered(table())
    train(tmp_path / "first", net=network(Cached(inner, store)))
    calls = inner.meter.snapshot().calls
    train(tmp_path / "second", net=network(Cached(inner, store)))
    assert inner.meter.snapshot().calls == calls
    assert truth(tmp_path / "first") == truth(tmp_path / "second") == truth(uninterrupted[0])


def test_the_network_file_is_the_result(uninterrupted):
    path, result = uninterrupted
    assert load_network(path / "network.json", table()).state_dict() == result.network.state_dict()


def test_best_is_never_worse_than_the_start_and_never_changes_the_start(uninterrupted):
    path, result = uninterrupted
    scores = [v.score for v in of_kind(read_events(path / "events.jsonl"), Validated)]
    assert result.score == max(scores)
    assert result.initial.state_dict() == network().state_dict()


def test_zero_steps_returns_the_initial_prompts(tmp_path):
    result = train(tmp_path / "run", steps=0)
    assert result.best_step == 0
    assert result.network.parameters() == network().parameters()


def test_without_dev_set_the_last_network_is_returned():
    result = fit(network(depth=1), data(), steps=3, options=OPTIONS)
    assert result.best_step == 3
    assert result.score != result.score


def test_budget_keeps_the_result_so_far(tmp_path):
    lm = Metered(table(), Budget(max_calls=600))
    result = train(tmp_path / "run", net=network(lm), steps=50, meter=lm.meter)
    assert result.reason == "budget"
    assert 0 < result.steps < 50
    assert (tmp_path / "run" / "network.json").exists()
    with pytest.raises(BudgetReached):
        lm.sample(["x"] * 1000, network(lm).layers[0].sampling, range(1000))


def test_patience_stops_early(tmp_path):
    changes = OPTIONS | {"patience": 1, "tolerance": None}
    result = fit(network(), data(), data(24, "dev"), steps=40, options=changes, run_dir=tmp_path / "run")
    assert result.reason == "early stopping"
    assert result.steps < 40


def knowing(context):
    """A model that is right about the last input: a number with a 7 is "yes"."""
    right = " yes" if "7" in context.rsplit("Input:", 1)[-1] else " no"
    return {" yes": 0.9, " no": 0.1} if right == " yes" else {" yes": 0.1, " no": 0.9}


@pytest.mark.parametrize(
    ("changes", "dev_size", "reason", "steps"),
    [
        ({}, 20, "nothing to gain", 0),
        ({}, 7, "steps", 3),
        pytest.param({"stop_at_accuracy": None}, 20, "steps", 3, marks=pytest.mark.slow),
        pytest.param({"inference": {"output_layer": "fixed"}}, 20, "nothing to gain", 0, marks=pytest.mark.slow),
    ],
)
def test_training_ends_where_every_dev_example_is_right(tmp_path, changes, dev_size, reason, steps):
    pairs = [(f"item {i}{'7' if i % 2 else ''}x", "yes" if i % 2 else "no") for i in range(120) if "7" not in f"{i}"]
    rows = Dataset.from_pairs(pairs, ("yes", "no"))
    net = Sequential([ChoiceLayer(TableLM(knowing), "classify", "Is there a seven?", ("yes", "no"))])
    result = fit(
        net, rows[:60], rows[60 : 60 + dev_size], steps=3, options=changes, run_dir=tmp_path / "run", batch_size=8
    )
    assert (result.reason, result.steps) == (reason, steps)
    assert (tmp_path / "run" / "network.json").exists()
    assert result.network.predict("item 57x").label == "yes"
    again = fit(
        net, rows[:60], rows[60 : 60 + dev_size], steps=3, options=changes, run_dir=tmp_path / "run", batch_size=8,
        resume=True,
    )  # fmt: skip
    assert (again.reason, again.steps) == (reason, steps)


def test_backtracking_returns_to_the_best_parameters(tmp_path):
    changes = OPTIONS | {"tolerance": 1, "val_every": 1, "memory": 0}
    fit(network(), data(), data(24, "dev"), steps=8, options=changes, run_dir=tmp_path / "run")
    events = read_events(tmp_path / "run" / "events.jsonl")
    assert of_kind(events, Backtracked)
    best = {v.step: v.score for v in of_kind(events, Validated)}
    for event in of_kind(events, Backtracked):
        assert best[event.to_step] == max(score for step, score in best.items() if step <= event.step)
    # a run that ends there goes back as well: extended, it is the longer run
    first = of_kind(events, Backtracked)[0].step
    fit(network(), data(), data(24, "dev"), steps=first, options=changes, run_dir=tmp_path / "short")
    short = truth(tmp_path / "short")[:-1]
    assert short[-1]["kind"] == "backtracked"
    assert short == truth(tmp_path / "run")[: len(short)]


def test_a_run_cannot_be_started_twice_or_resumed_when_it_is_not_there(tmp_path, uninterrupted):
    with pytest.raises(InputError, match="already"):
        train(uninterrupted[0])
    with pytest.raises(InputError, match="no run here"):
        train(tmp_path / "nowhere", resume=True)


def test_one_process_at_a_time(uninterrupted):
    with Run.open(uninterrupted[0]), pytest.raises(InputError, match="another process"):
        Run.open(uninterrupted[0])


@pytest.mark.parametrize(
    "changed", [{"net": network(table(1))}, {"steps": 7}, {"metric": None}], ids=["model", "options", "data"]
)
def test_what_has_changed_is_named(tmp_path, uninterrupted, changed):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run_dir)
    if "metric" in changed:
        with pytest.raises(InputError, match="data hash has changed"):
            fit(network(), data(39), data(24, "dev"), steps=6, run_dir=run_dir, resume=True, options=OPTIONS)
    else:
        with pytest.raises(InputError, match="has changed"):
            train(run_dir, resume=True, **changed)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 3])
def test_lost_events_are_noticed(tmp_path, uninterrupted, kept):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run_dir)
    path = run_dir / "events.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(CorruptDataError, match=r"events\.jsonl: events are missing"):
        train(run_dir, resume=True)
    (run_dir / "checkpoint.json").unlink()
    assert train(run_dir, resume=True).network.state_dict() == uninterrupted[1].network.state_dict()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, uninterrupted, damage):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run_dir)
    path = run_dir / "checkpoint.json"
    text = path.read_text()
    flipped = text.replace('"stale": ', '"stale": 1', 1)
    assert flipped != text
    path.write_text({"truncate": text[:-30], "flip": flipped, "empty": ""}[damage])
    with pytest.raises(CorruptDataError, match=r"checkpoint\.json"):
        train(run_dir, resume=True)


def test_unknown_options_and_values_are_named(tmp_path):
    for options, match in (
        ({"stepz": 3}, "stepz"),
        ({"inference": {"num_hidden": 0}}, "num_hidden"),
        ({"inference": {"posterior_terms": ["likelyhood"]}}, "posterior_terms"),
    ):
        with pytest.raises(InputError, match=match):
            fit(network(), data(), options=options)
    with pytest.raises(InputError, match="preset"):
        fit(network(), data(), preset="papr")


def test_targets_that_the_network_does_not_know():
    strange = Dataset.from_pairs([("a", "perhaps"), ("b", "yes")])
    with pytest.raises(InputError, match="does not know"):
        fit(network(), strange)


def test_run_files_hold_no_secrets_and_are_valid(uninterrupted):
    path, _ = uninterrupted
    assert sorted(p.name for p in path.iterdir()) == ["checkpoint.json", "events.jsonl", "network.json", "run.yaml"]
    for name in ("checkpoint.json", "network.json"):
        json.loads((path / name).read_text())


@pytest.mark.parametrize("depth", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_every_depth_trains_and_resumes(tmp_path, depth):
    whole = train(tmp_path / "whole", net=network(depth=depth), steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", net=network(depth=depth), steps=3, callbacks=[StopAt(3)])
    again = train(tmp_path / "cut", net=network(depth=depth), steps=3, resume=True)
    assert again.network.state_dict() == whole.network.state_dict()
    assert truth(tmp_path / "cut") == truth(tmp_path / "whole")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_example_seen_so_far_judges_the_output_layer_at_any_depth(tmp_path, depth):
    train(tmp_path / "run", net=network(depth=depth), steps=3)
    seen: set[str] = set()
    for event in truth(tmp_path / "run"):
        if event["kind"] == "step":
            seen |= {example["x"] for example in event["examples"]}
            last = event["layers"][-1]
            shown = {d["x"] for c in last["candidates"] for d in c["prompt"]["demonstrations"]}
            assert last["examples"] == len(seen)
            assert shown and not shown & seen


def test_paper_preset_trains():
    changes = {"batch_size": 6, "inference": {"num_prompts": 4, "num_hidden": 2}}
    result = fit(network(), data(), data(20, "dev"), preset="paper", steps=3, options=changes)
    last = result.network.layers[-1]
    assert isinstance(last, ChoiceLayer)
    assert last.bias.tolist() == [0.0, 0.0]
    assert last.readout.temperature == 1.0


def test_a_dev_set_of_training_examples_is_a_warning():
    with pytest.warns(UserWarning, match="20 of 20 dev inputs are training inputs too"):
        fit(network(depth=1), data(), data(20), steps=0, options=OPTIONS)


@pytest.mark.parametrize("none", [0, [0], (0,)])
def test_no_demonstrations_means_none(none):
    options = {**OPTIONS, "inference": {**OPTIONS["inference"], "num_prompts": 6, "demonstrations": none}}
    resolved = resolve_options("default", options)
    assert "demonstrations" not in resolved.inference.prompt_proposals
    result = fit(network(depth=1), data(), data(24, "dev"), steps=2, options=options)
    assert not any(prompt.demonstrations for prompt in result.network.parameters())


@pytest.mark.parametrize(("preset", "expected"), [("paper", "paper"), ("default", "exact_match")])
def test_the_papers_preset_has_the_papers_rule(tmp_path, preset, expected):
    fit(network(depth=1), data(), data(24, "dev"), preset=preset, steps=0, run_dir=tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["metric"] == expected
