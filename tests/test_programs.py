"""Programs: the posterior of intermediate texts is exact, credit divides the regret, runs find the fault and resume."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dln
from dln.errors import RunFailed
from dln.lm.meter import Usage
from dln.programs.evaluations import Evaluations, Journal, Outcome, program_metric
from dln.programs.posterior import credits_of, stage_posterior
from dln.programs.proposals import Candidate, EditText, RewriteParameter
from dln.programs.step import ProgramState, VariationalProgram, allotted, race
from dln.programs.trace import Parameters, Request, Rollout, Stage, text_view
from dln.train.events import Finished, StepDone
from program_cases import PARAMETERS, TRAIN, Writer, logged_run, metric, program

TEXTS = ("a", "b", "c")


def outcome(scores: Sequence[float], place: int) -> Outcome:
    stages = tuple(Stage(name, (name,), "", f"{name} {place}") for name in ("find", "join", "answer"))
    return Outcome(Request(place, ()), Rollout(stages, (), Usage()), score=scores[place])


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_posterior_weights_equal_exact_enumeration(temperature: float):
    """On a two-stage program of a table: w(h) = p(h|x) exp(R(h)/τ) / Σ p(h'|x) exp(R(h')/τ)."""
    prior, reward = {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 0.1, "b": 0.5, "c": 0.9}
    lm = dln.TableLM.from_table({"think: x": prior, **{f"answer: {h}": {f"y{h}": 1.0} for h in TEXTS}})

    def two_steps(example: str, parameters: Mapping[str, str], trace: dln.Trace) -> str:
        h = trace.draw("think", lm, f"{parameters['think']}: {example}")
        return trace.draw("answer", lm, f"{parameters['answer']}: {h}")

    def graded(example: str, prediction: str) -> float:
        return reward[prediction[1:]]

    key = dln.Key(3)
    with Evaluations(two_steps, ["x"], program_metric(graded), Journal(), key) as evaluations:
        parameters = {"think": "think", "answer": "answer"}
        (forward,) = evaluations([Request.of(0, parameters)])
        others = evaluations(Request.of(0, parameters, {"think": h}) for h in TEXTS)
        posterior = stage_posterior("think", forward, others, temperature)
    assert posterior.scored
    weights = dict(zip(posterior.particles.values, posterior.particles.weights, strict=True))
    total = sum(prior[h] * math.exp(reward[h] / temperature) for h in TEXTS)
    assert weights == pytest.approx({h: prior[h] * math.exp(reward[h] / temperature) / total for h in TEXTS})
    assert posterior.expected_reward == pytest.approx(sum(weights[h] * reward[h] for h in TEXTS))
    assert posterior.best[0] == "c"


def test_weights_are_of_rewards_alone_where_texts_cannot_be_scored():
    forward = outcome([0.0], 0)
    stages = tuple(Stage("find", ("find",), "", text) for text in TEXTS)
    others = [
        Outcome(Request(0, ()), Rollout((stage,), (), Usage()), score=s)
        for stage, s in zip(stages, (0.2, 0.4, math.nan), strict=True)
    ]
    posterior = stage_posterior("find", forward, others, 0.1)
    assert not posterior.scored
    assert posterior.particles.values == ("find 0", "a", "b")  # the run without a reward is left out
    assert posterior.particles.weights == pytest.approx(np.exp([0, 2, 4]) / np.exp([0, 2, 4]).sum())


@pytest.mark.parametrize("seed", range(20))
def test_credits_divide_the_regret(seed: int):
    """Whatever was inferred, the credits are never negative and sum to Σ (1 − R)."""
    rng = np.random.default_rng(seed)
    scores = rng.random(6).tolist()
    forward = [outcome(scores, i) for i in range(6)]
    posteriors = {}
    for i, one in enumerate(forward):
        posteriors[i] = [
            stage_posterior(
                name,
                one,
                [
                    Outcome(one.request, Rollout((Stage(name, (name,), "", f"{k}"),), (), Usage()), score=rng.random())
                    for k in range(int(rng.integers(0, 4)))
                ],
                0.1,
            )
            for name in ("find", "join")
        ]
    found = credits_of(forward, posteriors, ["find", "join", "answer"])
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx(sum(1 - score for score in scores))


def test_the_stage_whose_other_texts_raise_the_reward_gets_the_credit():
    forward = outcome([0.0], 0)
    better = Outcome(forward.request, Rollout((Stage("find", ("find",), "", "good"),), (), Usage()), score=1.0)
    posteriors = {0: [stage_posterior("find", forward, [better], 0.02), stage_posterior("join", forward, [], 0.02)]}
    assert credits_of([forward], posteriors, ["find", "join", "answer"]) == pytest.approx(
        {"find": 1.0, "join": 0.0, "answer": 0.0}, abs=1e-9
    )


@pytest.mark.parametrize("seed", range(10))
def test_candidates_are_allotted_in_proportion(seed: int):
    rng = np.random.default_rng(seed)
    weights = {str(i): float(w) for i, w in enumerate(rng.random(4))}
    counts = allotted(weights, 7)
    assert sum(counts.values()) == 7
    for name, count in counts.items():
        assert abs(count - 7 * weights[name] / sum(weights.values())) < 1
    assert not any(allotted({"a": 0.0, "b": 0.0}, 3).values())


def test_a_step_never_lowers_the_reward_of_the_batch():
    with Evaluations(program, TRAIN, program_metric(metric), Journal(), dln.Key(5)) as evaluations:
        choices = VariationalProgram(EditText(), (RewriteParameter(),), Writer())
        state = ProgramState(tuple(PARAMETERS.items()))
        for _ in range(4):
            state, info = choices.update(state, dln.Key(5), evaluations, range(30), lambda i: text_view(TRAIN[i]), str)
            before = np.mean([one.score for one in info.forward])
            after = np.mean(
                [one.score for one in evaluations(Request.of(i, dict(state.parameters)) for i in state.batch)]
            )
            assert after >= before
    assert dict(state.parameters)["find"] == "Take the place."


# --- runs -------------------------------------------------------------------------------------------------------------


def test_optimize_finds_the_fault_in_the_first_stage(tmp_path: Path):
    events: list[Any] = []
    result = dln.optimize(
        program,
        PARAMETERS,
        TRAIN,
        metric=metric,
        lm=Writer(),
        dev=TRAIN[20:],
        run_dir=tmp_path,
        callbacks=[events.append],
    )
    assert result.parameters == {**PARAMETERS, "find": "Take the place."}
    assert (result.score, result.initial_score, result.reason) == (1.0, 0.0, "steps")
    with pytest.raises(AttributeError):
        result.score = 0.0  # type: ignore[misc]
    result.save(tmp_path / "texts.json")
    assert dln.load_parameters(tmp_path / "texts.json") == result.parameters
    assert dln.load_parameters(tmp_path / "parameters.json") == result.parameters
    assert [row["step"] for row in result.history] == list(range(5))
    step = next(event for event in events if isinstance(event, StepDone))
    assert [layer.layer for layer in step.layers if layer.winner] == [0]
    assert step.scoring_modes is not None
    assert (step.scoring_modes.weights or "").startswith("rewards, τ")
    assert isinstance(events[-1], Finished)
    from dln.view.report import write_report

    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Take the place." in page


def test_equal_outputs_are_judged_once_and_concurrency_changes_nothing():
    calls: list[tuple[str, str]] = []

    def counted(example: Mapping[str, str], prediction: str) -> float:
        calls.append((example["who"], prediction))
        return metric(example, prediction)

    results = [
        dln.optimize(program, PARAMETERS, TRAIN, metric=counted, lm=Writer(), steps=2, concurrency=n) for n in (1, 8)
    ]
    assert len(calls) == len(set(calls)) * 2 == sum(result.metric_calls for result in results)
    assert results[0] == results[1]
    assert results[0].rollouts > results[0].metric_calls


@pytest.mark.parametrize("limit", [5, 14, 25])
def test_the_budget_of_metric_calls_is_kept(limit: int):
    result = dln.optimize(program, PARAMETERS, TRAIN, metric=metric, lm=Writer(), max_metric_calls=limit)
    assert result.metric_calls <= limit
    assert result.reason == "budget"


def test_the_budget_of_language_models_is_kept():
    result = dln.optimize(
        program, PARAMETERS, TRAIN, metric=metric, lm=Writer(), budget=dln.Budget(max_calls=60), concurrency=2
    )
    assert result.usage.calls <= 60 + 2 * 2  # of the evaluations in flight, two stages each
    assert result.reason == "budget"


def test_a_killed_run_pays_nothing_twice_and_ends_alike(tmp_path: Path):
    """kill -9 in the middle of a slow metric; the log holds every finished call of the metric."""
    whole = logged_run(tmp_path / "whole", tmp_path / "whole.log", 0.0)
    log = tmp_path / "killed.log"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("program_cases.py")), str(tmp_path / "killed"), str(log)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 12):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = log.read_text().splitlines()
    assert len(done) >= 12
    resumed = logged_run(tmp_path / "killed", log, 0.0)
    lines = log.read_text().splitlines()
    # the call that was cut off after its log line and before the journal's may be made again, no other one
    assert len(lines) - len(set(lines)) <= 1
    assert sorted(set(lines)) == sorted((tmp_path / "whole.log").read_text().splitlines())
    assert (resumed.parameters, resumed.score, resumed.metric_calls) == (
        whole.parameters,
        whole.score,
        whole.metric_calls,
    )


def test_a_run_is_resumed_with_the_same_settings_only(tmp_path: Path):
    dln.optimize(program, PARAMETERS, TRAIN, metric=metric, lm=Writer(), steps=1, run_dir=tmp_path)
    with pytest.raises(dln.InputError, match="options has changed"):
        dln.optimize(program, PARAMETERS, TRAIN, metric=metric, lm=Writer(), steps=2, run_dir=tmp_path)


def test_async_programs_and_metrics():
    async def later(example: Mapping[str, str], parameters: Mapping[str, str], trace: dln.Trace) -> str:
        async def find() -> str:
            await asyncio.sleep(0)
            return example["place"] if "place" in parameters["find"] else example["who"]

        found = await trace("find", find, reads=f"{example['who']} went to {example['place']}")
        return trace("answer", lambda: found.upper() if "upper" in parameters["answer"] else found)

    async def judged(example: Mapping[str, str], prediction: str, trace: tuple[Stage, ...]) -> dln.Score:
        await asyncio.sleep(0)
        assert [stage.name for stage in trace] == ["find", "answer"]
        return dln.Score(metric(example, prediction), "a comment")

    result = dln.optimize(later, PARAMETERS, TRAIN, metric=judged, lm=Writer(), steps=2)
    assert result.parameters["find"] == "Take the place."


def test_evaluations_without_a_reward_are_left_out_and_counted():
    def flaky(example: Mapping[str, str], prediction: str) -> float:
        if example["who"].endswith("3"):
            raise ConnectionError("no answer")
        return math.nan if example["who"].endswith("7") else metric(example, prediction)

    result = dln.optimize(program, PARAMETERS, TRAIN, metric=flaky, lm=Writer(), steps=3)
    assert result.parameters["find"] == "Take the place."
    assert result.score == 1.0
    assert set(result.failed) == {"metric flaky: ConnectionError: no answer", "metric flaky: the reward is NaN"}


def test_stages_of_one_name_are_numbered_and_parameters_are_found_by_use():
    trace = dln.Trace(parameters := Parameters({"style": "s", "other": "o"}))
    assert parameters["style"] == "s"
    assert trace("look", "one") == "one"
    assert parameters["other"] == "o"
    assert trace("look", lambda: "two") == "two"
    first, second = trace.rollout().stages
    assert (first.name, first.parameters, second.name, second.parameters) == ("look", ("style",), "look#2", ("other",))
    assert second.reads == "one"


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(match: str, **changed: Any) -> None:
    arguments: dict[str, Any] = {"program": program, "parameters": PARAMETERS, "train": TRAIN, "metric": metric}
    with pytest.raises(dln.InputError, match=match):
        dln.optimize(**{**arguments, "lm": Writer(), "steps": 1, **changed})


def test_bad_calls_are_one_clear_error():
    refused(
        "does not use a parameter\n  got: 'style' was read on none of 12", parameters={**PARAMETERS, "style": "short"}
    )
    refused("reads a parameter 'answer' that it was not given", parameters={"find": "Take the person."})
    refused("program: the program has a wrong signature", program=lambda example: "x")
    refused("metric: the metric cannot be called", metric=lambda example: 1.0)
    refused("metric <lambda>: .* invalid score", metric=lambda example, prediction: "good")
    refused("stage 'find': an intermediate text must be a text\n  got: 3", program=lambda e, p, trace: trace("find", 3))
    refused("no intermediate text", program=lambda e, p, trace: p["find"] + p["answer"])
    refused("there are no examples", train=[])
    refused("nothing to train", parameters={})
    refused("lm: no model writes the proposals", lm=None)
    refused("there is no parameter 'fnd'", program=lambda e, p, trace: trace("find", "x", uses="fnd"))


def test_a_program_that_always_fails_ends_the_run():
    def broken(example: object, parameters: Mapping[str, str], trace: dln.Trace) -> str:
        raise OSError("no server")

    with pytest.raises(RunFailed, match=r"no evaluation has a reward\n  got: program: OSError: no server"):
        dln.optimize(broken, PARAMETERS, TRAIN, metric=metric, lm=Writer())


def test_a_race_drops_no_candidate_that_is_level_with_one_that_goes_on():
    """Five right candidates and a wrong one: none of the right ones is stopped, and none counts as behind."""
    choices = VariationalProgram(EditText(), (RewriteParameter(),))
    right = [Candidate((("find", f"Take the place, way {i}."),), "test") for i in range(5)]
    wrong = Candidate((("find", "Take the person's name."),), "test")
    with Evaluations(program, TRAIN, program_metric(metric), Journal(), dln.Key(5)) as evaluations:
        found = race(evaluations, PARAMETERS, [Candidate((), "incumbent"), wrong, *right], range(16), choices)
    assert found.winner == 2
    assert [stopped is None for stopped in found.stopped[2:]] == [True] * 5
    assert found.behind == (True, True, *[False] * 5)
    assert found.stopped[1] is not None
