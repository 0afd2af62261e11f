"""Training that keeps several networks: what answers, that nothing else changes, and that it survives a stop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dln.data import Dataset
from dln.errors import InputError
from dln.infer.memory import posterior_weights
from dln.lm.meter import Budget, Metered
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential, load_network
from dln.nn.ensemble import Ensemble
from dln.nn.prompt import Prompt
from dln.train import conclude, evaluate, fit, resolve_options
from dln.train.events import Evaluated, Finished, Started, StepDone, Validated
from dln.train.run import current, of_kind, read_events, to_line

LABELS = ("yes", "no")
OPTIONS = {
    "batch_size": 6,
    "val_every": 1,
    "pool": "mean",
    "inference": {"num_hidden": 2, "num_prompts": 3, "prompt_tokens": 8, "output_layer": "fitted"},
}


def table(seed: int = 0) -> TableLM:
    return TableLM.random([" yes", " no", " yes no", " maybe so", ""], seed=seed, name=f"random-{seed}")


def network(lm=None, *, depth: int = 1, free_text: bool = False) -> Sequential:
    lm = lm or table()
    below = [LanguageLayer(lm, "think", "think")] * (depth - 1)
    suffix = "_residual" if depth > 1 else ""
    last = (
        LanguageLayer(lm, f"answer{suffix}", "decide")
        if free_text
        else ChoiceLayer(lm, f"classify{suffix}", "decide", LABELS)
    )
    return Sequential(*below, last)


def data(n: int = 40, name: str = "toy") -> Dataset:
    return Dataset.from_pairs([(f"{name} {i}", LABELS[i % 3 == 0]) for i in range(n)], labels=LABELS)


def train(run_dir=None, *, net=None, steps=5, resume=False, callbacks=(), **options):
    return fit(
        net or network(depth=2),
        data(),
        data(16, "dev"),
        steps=steps,
        run_dir=run_dir,
        resume=resume,
        callbacks=callbacks,
        options={**OPTIONS, **options},
    )


def finished(run_dir) -> Finished:
    return of_kind(read_events(Path(run_dir) / "events.jsonl"), Finished)[-1]


def steps_of(run_dir) -> list[str]:
    timeless = {"time", "seconds", "usage"}
    events = current(read_events(Path(run_dir) / "events.jsonl"))
    return [e.model_dump_json(exclude=timeless) for e in events if isinstance(e, StepDone | Validated)]


class StopAt:
    """Ctrl-C after a number of events."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, event) -> None:
        self.count -= 1
        if self.count == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, train(path, ensemble=4)


def test_the_best_validated_networks_answer_with_the_weights_of_their_evidence(whole):
    path, result = whole
    together, record = result.predictor, finished(path)
    assert isinstance(together, Ensemble)
    assert len(together.members) == 4
    assert len({member.parameters() for member in together.members}) == 4
    scores = [member.score for member in record.members]
    assert scores == sorted(scores, reverse=True)
    # every other set of prompts that was validated is no better than the last of them
    by_prompts: dict[tuple[Prompt, ...], float] = {}
    at = {0: network(depth=2).parameters()}
    for event in read_events(path / "events.jsonl"):
        if isinstance(event, StepDone):
            at[event.step] = tuple(Prompt.from_json(layer["prompt"]) for layer in event.parameters["layers"])
        elif isinstance(event, Validated):
            prompts = at[event.step]
            by_prompts[prompts] = max(event.score, by_prompts.get(prompts, -math.inf))
    # the others came close in a step without winning it
    winners = [score for score in scores if score in by_prompts.values()]
    assert sorted(by_prompts.values(), reverse=True)[: len(winners)] == winners
    assert len(winners) < len(scores)
    assert max(by_prompts.values()) <= scores[0]
    assert together.weights == pytest.approx(posterior_weights(scores, 16, 32.0))
    assert [member.weight for member in record.members] == together.weights.tolist()
    assert [member.parameters for member in record.members] == [m.state_dict() for m in together.members]


def test_the_best_of_them_is_the_result(whole):
    path, result = whole
    assert result.predictor is result.ensemble
    assert result.ensemble.heaviest.state_dict() == result.network.state_dict()
    record = finished(path)
    assert (record.members[0].step, record.members[0].score) == (result.best_step, result.score)
    assert Prompt.from_json(record.network["layers"][-1]["prompt"]) == result.network.parameters()[-1]


def test_the_network_file_holds_what_answers(whole):
    path, result = whole
    again = load_network(path / "network.json", table())
    assert isinstance(again, Ensemble)
    assert again.state_dict() == result.predictor.state_dict()
    x = ["toy 1", "something else"]
    assert again.predict_many(x) == result.predictor.predict_many(x)


@pytest.mark.parametrize("memory", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_how_many_answer_together_changes_no_step(tmp_path, memory):
    one = train(tmp_path / "one", memory=memory, steps=4)
    many = train(tmp_path / "many", memory=memory, steps=4, ensemble=5)
    assert steps_of(tmp_path / "many") == steps_of(tmp_path / "one")
    assert many.score >= one.score  # of those that were validated beside the winners one may be better
    assert (one.predictor is one.network, one.ensemble, finished(tmp_path / "one").members) == (True, None, [])


@pytest.mark.parametrize(
    "count", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(10, marks=pytest.mark.slow)]
)
def test_after_a_stop_the_same_networks_answer(tmp_path, whole, count):
    run_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run_dir, ensemble=4, callbacks=[StopAt(count)])
    result = train(run_dir, ensemble=4, resume=True)
    assert result.predictor.state_dict() == whole[1].predictor.state_dict()
    timeless = {"time", "usage"}
    assert finished(run_dir).model_dump(exclude=timeless) == finished(whole[0]).model_dump(exclude=timeless)
    files = [json.loads((path / "network.json").read_text("utf-8"))["members"] for path in (run_dir, whole[0])]
    assert files[0] == files[1]


def test_a_high_temperature_weighs_alike_and_a_low_one_takes_the_best(tmp_path):
    alike = train(net=network(), steps=6, ensemble=3, ensemble_temp=1e9).predictor
    assert alike.weights == pytest.approx([1 / len(alike.members)] * len(alike.members))
    alone = train(tmp_path / "run", net=network(), ensemble=3, ensemble_temp=1e-6)
    assert alone.predictor.predict("toy 1").label == alone.network.predict("toy 1").label
    assert isinstance(alone.predictor, Sequential) or alone.predictor.weights[0] > 0.99


@pytest.mark.parametrize("options", [{"select_by": "accuracy"}, {"free_text": True}], ids=["accuracy", "free text"])
def test_what_is_chosen_by_accuracy_weighs_alike(options):
    net = network(free_text=options.pop("free_text", False))
    objective = {"inference": {**OPTIONS["inference"], "output_objective": "accuracy"}} if not net.labels else {}
    predictor = train(net=net, steps=4, ensemble=3, **options, **objective).predictor
    assert isinstance(predictor, Ensemble)
    assert predictor.weights == pytest.approx([1 / len(predictor.members)] * len(predictor.members))


def test_fewer_networks_than_asked_for_are_all_taken_and_one_is_itself():
    assert train(steps=0, ensemble=5).ensemble is None
    few = train(steps=1, ensemble=90).predictor
    assert 1 <= len(getattr(few, "members", [few])) <= 2 + OPTIONS["inference"]["num_prompts"]


def test_without_a_dev_set_the_last_network_answers_alone():
    result = fit(network(), data(), steps=2, options={**OPTIONS, "ensemble": 3})
    assert result.predictor is result.network
    assert result.best_step == 2


def test_a_spent_budget_leaves_those_found_so_far(tmp_path):
    lm = Metered(table(), Budget(max_calls=1500))
    result = train(tmp_path / "run", net=network(lm, depth=2), steps=50, ensemble=3)
    assert result.reason == "budget"
    assert isinstance(result.predictor, Ensemble)
    assert len(finished(tmp_path / "run").members) == len(result.predictor.members)


def test_the_final_word_says_how_many_answer(whole):
    _, result = whole
    test = data(30, "test")
    event = conclude(result.initial, result.predictor, test)
    assert event.members == 4
    assert event.after == evaluate(result.predictor, test).to_record()
    assert conclude(result.predictor, result.network, test).members == 1


def test_events_of_older_versions_load(tmp_path, whole):
    path, result = whole
    lines: list[str] = []
    for event in (*read_events(path / "events.jsonl"), conclude(None, result.network, data(5))):
        row = json.loads(to_line(event))
        if isinstance(event, Finished | Evaluated):
            del row["members"]
        lines.append(json.dumps(row))
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    events = read_events(tmp_path / "events.jsonl")
    assert of_kind(events, Started)
    assert of_kind(events, Finished)[0].members == []
    assert of_kind(events, Evaluated)[0].members == 1


@pytest.mark.parametrize(("name", "value"), [("ensemble", 0), ("ensemble_temp", 0), ("ensemble_temp", math.inf)])
def test_impossible_options_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        resolve_options("default", {name: value})
