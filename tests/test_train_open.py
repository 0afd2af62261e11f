"""What `fit` takes: names or objects for every decision, the algorithm itself, options as keywords."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import dln
from dln.errors import InputError
from dln.infer import vi
from dln.infer.calibrate import FixedOutput, PenalisedLikelihood
from dln.infer.estep import Likelihood, Prior
from dln.infer.hidden import MixtureProposal, PriorProposal
from dln.infer.mstep import Best, BestByMargin
from dln.infer.objective import Candidates, ExpectedLogProb, ExpectedReward, Scored
from dln.infer.prompts import MixturePrompts, Proposal, RewriteProposal
from dln.infer.rewards import Correctness
from dln.train import History, resolve_options
from dln.train.build import algorithm
from dln.train.events import Event, StepDone
from dln.train.run import read_events, read_meta

PAIRS = [(f"film number {n}", "yes" if n % 2 else "no") for n in range(16)]
DATA = dln.Dataset.from_pairs(PAIRS, labels=["yes", "no"])
LM = dln.TableLM.random([" yes", " no"], seed=8)
NETWORK = dln.Sequential(dln.ChoiceLayer(LM, "classify", "Is it positive?", ["yes", "no"]))
SMALL = {"batch_size": 4, "num_prompts": 2, "output_layer": "fixed", "evidence": 0, "val_every": 1}


@dataclass(frozen=True)
class Hints:
    """Appends a hint."""

    hint: str = "Look at the verbs."

    def __call__(self, key, layer, feedback, num):
        return [Proposal(layer.prompt.with_instruction(f"{self.hint} {n}"), "hint") for n in range(num)]


@dataclass(frozen=True)
class Shifted:
    """An objective: the expected log-probability and a constant."""

    inner: ExpectedLogProb
    by: float = 1.0

    def __call__(self, candidates: Candidates) -> Scored:
        scored = self.inner(candidates)
        return replace(scored, per_example=scored.per_example + self.by)


def prompts(result: dln.FitResult) -> list[dln.Prompt]:
    return list(result.network.parameters())


def test_options_as_keywords_are_options():
    nested = {"batch_size": 4, "val_every": 1, "inference": {"num_prompts": 2, "output_layer": "fixed", "evidence": 0}}
    one = dln.fit(NETWORK, DATA, DATA, steps=2, options=nested)
    other = dln.fit(NETWORK, DATA, DATA, steps=2, **SMALL)
    third = dln.fit(NETWORK, DATA, DATA, options=resolve_options("default", {"steps": 9}), steps=2, **SMALL)
    assert prompts(one) == prompts(other) == prompts(third)
    assert one.history[2]["dev_score"] == other.history[2]["dev_score"] == third.history[2]["dev_score"]


@pytest.mark.parametrize(
    ("wrong", "meant"), [("btch_size", "batch_size"), ("num_prompt", "num_prompts"), ("calbacks", "callbacks")]
)
def test_an_unknown_keyword_is_one_error_with_the_name_that_was_meant(wrong: str, meant: str):
    with pytest.raises(InputError, match=f"{wrong}(?s:.)*did you mean '{meant}'"):
        dln.fit(NETWORK, DATA, **{wrong: 1})


def test_names_and_the_objects_they_stand_for_are_the_same_algorithm():
    def right(prediction: str, target: str) -> bool:
        return prediction == target

    named = {
        "hidden_proposals": ["prior"],
        "prompt_proposals": {"rewrite": 2.0},
        "posterior_terms": ["prior", "likelihood"],
        "hidden_objective": "log_prob",
        "output_objective": "accuracy",
        "select": "margin",
        "output_layer": "fixed",
    }
    rewriting = algorithm(resolve_options("default", {"inference": named}), right).m_step.proposal.proposals[0]
    objects = {
        "hidden_proposals": [PriorProposal(0.7)],
        "prompt_proposals": {rewriting: 2.0},
        "posterior_terms": [Prior(), Likelihood()],
        "hidden_objective": ExpectedLogProb("log_prob", FixedOutput()),
        "output_objective": ExpectedReward(Correctness(right), FixedOutput(), greedy=True),
        "select": BestByMargin(1.0),
        "output_layer": FixedOutput(),
    }
    made = [algorithm(resolve_options("default", {"inference": given}), right) for given in (named, objects)]
    assert made[0] == made[1]


def test_the_algorithm_itself_is_used_as_given():
    own = vi.build(num_prompts=2, q_prompt=Hints("Own."))
    result = dln.fit(NETWORK, DATA, DATA, algorithm=own, steps=2, batch_size=4, val_every=1, shown=0.0)
    by_options = dln.fit(
        NETWORK,
        DATA,
        DATA,
        steps=2,
        **{**SMALL, "prompt_proposals": Hints("Own."), "race": False, "prune": 0.0, "shown": 0.0},
    )
    assert prompts(result) == prompts(by_options)
    assert [row["elbo"] for row in result.history] == [row["elbo"] for row in by_options.history]


def test_the_algorithms_calibrator_fits_at_validations():
    fitted = vi.build(num_prompts=1, q_prompt=Hints(), calibrator=PenalisedLikelihood())
    result = dln.fit(NETWORK, DATA, DATA, algorithm=fitted, steps=1, batch_size=8)
    assert np.abs(result.network.layers[-1].bias).max() > 0


def test_a_step_that_is_described_twice_is_refused():
    for given in ({"num_prompts": 3}, {"prompt_lm": LM}):
        with pytest.raises(InputError, match="described twice"):
            dln.fit(NETWORK, DATA, algorithm=vi.build(), **given)


def run(folder: Path, *, resume: bool = False, stop: bool = False, **given: object) -> dln.FitResult:
    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2 and stop:
            raise KeyboardInterrupt

    settings = {
        **SMALL,
        "prompt_proposals": [Hints()],
        "output_objective": Shifted(ExpectedLogProb("log_prob", FixedOutput())),
    }
    return dln.fit(
        NETWORK, DATA, DATA, run_dir=folder, resume=resume, steps=3, callbacks=[interrupt], **{**settings, **given}
    )


def test_a_run_with_objects_records_them_and_resumes_only_with_the_same(tmp_path: Path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stop=True)
    recorded = read_meta(tmp_path / "run")["options"]["inference"]
    assert recorded["prompt_proposals"] == [
        {
            "proposal": {"object": f"{__name__}.Hints", "parameters": {"hint": "Look at the verbs."}},
            "share": 1.0,
        }
    ]
    assert recorded["output_objective"]["object"] == f"{__name__}.Shifted"
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    for changed, named in (
        ({"prompt_proposals": [Hints("Other.")]}, r"prompt_proposals\.0\.proposal\.parameters\.hint.*Other"),
        ({"output_objective": "log_prob"}, r"inference\.output_objective"),
        ({"select": Best()}, r"inference\.select"),
        ({"metric": lambda prediction, target: 1.0}, "metric"),
        ({"stopper": lambda progress: False}, "stopper"),
    ):
        with pytest.raises(InputError, match=f"cannot be resumed(?s:.)*{named}"):
            run(tmp_path / "run", resume=True, **changed)
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
    resumed = run(tmp_path / "run", resume=True)
    assert prompts(resumed) == prompts(whole)
    read = [json.loads((tmp_path / name / "network.json").read_text("utf-8")) for name in ("whole", "run")]
    assert read[0]["layers"] == read[1]["layers"]
    drop = {"seconds"}
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in r.history] for r in (whole, resumed)]
    assert rows[0] == rows[1]


def test_an_algorithm_is_recorded_and_must_be_the_same(tmp_path: Path):
    def train(hint: str, resume: bool = False) -> dln.FitResult:
        own = vi.build(num_prompts=2, q_prompt=Hints(hint))
        return dln.fit(NETWORK, DATA, algorithm=own, steps=1, batch_size=4, run_dir=tmp_path / "run", resume=resume)

    train("One.")
    assert read_meta(tmp_path / "run")["algorithm"]["object"] == "dln.infer.vi.VariationalInference"
    with pytest.raises(InputError, match=r"algorithm has changed(?s:.)*m_step.*hint"):
        train("Two.", resume=True)
    with pytest.raises(InputError, match="algorithm has changed"):
        dln.fit(NETWORK, DATA, steps=1, batch_size=4, run_dir=tmp_path / "run", resume=True)
    train("One.", resume=True)


def test_a_stopper_ends_training_after_a_step_at_which_it_says_so():
    result = dln.fit(NETWORK, DATA, DATA, steps=9, stopper=lambda progress: progress.state.step == 2, **SMALL)
    assert (result.steps, result.reason) == (2, "stopper")


class Collect:
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def on_event(self, event: Event) -> None:
        self.kinds.append(event.kind)


def test_callbacks_are_functions_or_objects_with_on_event(tmp_path: Path):
    collect, kinds = Collect(), []
    dln.fit(
        NETWORK,
        DATA,
        steps=1,
        run_dir=tmp_path / "run",
        callbacks=[collect, lambda event: kinds.append(event.kind)],
        **SMALL,
    )
    assert collect.kinds == kinds == [event.kind for event in read_events(tmp_path / "run" / "events.jsonl")]
    for wrong in (Collect, 5):
        with pytest.raises(InputError, match="callback"):
            dln.fit(NETWORK, DATA, callbacks=[wrong])


def test_the_history_is_a_table_of_steps(tmp_path: Path):
    meter = dln.Meter()
    layer = dln.ChoiceLayer(dln.Metered(LM, meter=meter), "classify", "Is it positive?", ["yes", "no"])
    result = dln.fit(dln.Sequential(layer), DATA, DATA, steps=2, meter=meter, run_dir=tmp_path / "run", **SMALL)
    assert [row["step"] for row in result.history] == [0, 1, 2]
    assert result.history[0]["elbo"] is None
    assert result.history[-1]["tokens"] > result.history[1]["tokens"] > 0
    frame = result.history.to_pandas()
    assert list(frame.index) == [0, 1, 2]
    assert frame["dev_accuracy"].between(0, 1).all()
    assert History.of(read_events(tmp_path / "run" / "events.jsonl")) == result.history
    assert isinstance(result.history[1:], History)
    assert len(result.history[1:]) == 2


def test_reprs_are_short_and_html_is_escaped():
    result = dln.fit(NETWORK, DATA, DATA, steps=1, **{**SMALL, "prompt_proposals": [Hints("<script>")]})
    evaluation = dln.evaluate(result.network, DATA)
    for value in (result, evaluation, result.history):
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)
        assert "<script" not in value._repr_html_()
        assert value._repr_html_().count("<table>") >= 1


def test_progress_is_shown_where_it_is_asked_for_and_silent_otherwise(capsys: pytest.CaptureFixture[str]):
    dln.fit(NETWORK, DATA, DATA, steps=1, **SMALL)
    assert capsys.readouterr() == ("", "")
    dln.fit(NETWORK, DATA, DATA, steps=1, progress=True, **SMALL)
    said = capsys.readouterr()
    assert said.out == ""
    assert "1/1" in said.err


def test_mixtures_take_objects_beside_names():
    options = resolve_options("default", {"inference": {"prompt_proposals": ["rewrite", Hints()]}})
    made = algorithm(options, lambda p, y: p == y)
    assert isinstance(made.m_step.proposal, MixturePrompts)
    assert [type(one) for one in made.m_step.proposal.proposals] == [RewriteProposal, Hints]
    assert isinstance(made.e_step.proposal, MixtureProposal)
