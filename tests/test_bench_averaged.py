"""The row of the comparison in which several prompts answer together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import cli_fake_engine
from dln.bench.paper.averaged import Averaged
from dln.bench.paper.cell import Cells
from dln.bench.paper.method import Known, Setup
from dln.bench.paper.protocol import Protocol
from dln.bench.paper.runner import Bench
from dln.bench.paper.trained import Trained
from dln.data import load_task
from dln.lm.metered import Metered
from dln.nn import ChoiceLayer, Sequential
from dln.nn.ensemble import Ensemble

SMALL = Protocol(
    train_size=40, dev_size=30, test_size=20, options={"steps": 6, "val_every": 1, "inference": {"num_prompts": 3}}
)


@pytest.fixture
def setup(tmp_path) -> Setup:
    task = SMALL.examples(load_task("questions"), 13)
    lm = Metered(cli_fake_engine.load("1", "fake/1", {}))
    return Setup(task=task, lm=lm, seed=13, options=SMALL.options, workspace=tmp_path, known={"dln-1": Known(None, 9)})


def test_it_trains_where_nothing_is_kept_and_answers_with_what_the_run_kept(setup):
    learnt = Averaged(3)(setup)
    together: Any = learnt.predictor
    assert isinstance(together, Ensemble)
    assert len(together.members) == len(learnt.prompts) == 3
    assert "3 prompts, weights" in " ".join(learnt.notes)
    assert len(together.predict_many(list(setup.task.test.inputs))) == 20
    assert all(member.layers[0].lm is setup.lm for member in together.members)


def test_a_place_to_work_in_is_not_needed(setup):
    assert Averaged(3)(replace(setup, workspace=None)).prompts == Averaged(3)(setup).prompts


def test_what_the_trained_network_kept_is_taken_without_training(setup):
    layers = [ChoiceLayer(setup.lm, "classify", f"prompt {i}", setup.task.labels) for i in range(2)]
    kept = Ensemble(map(Sequential, layers), [0.7, 0.3])
    learnt = Averaged()(replace(setup, known={"dln-1": Known(kept, 9)}))
    assert learnt.predictor is kept
    assert learnt.prompts == ("prompt 0", "prompt 1")
    assert setup.lm.meter.snapshot().calls == 0
    assert "dln-1" in learnt.notes[-1]


def test_it_comes_after_the_training_it_is_of():
    method = Averaged(4, "dln-1-paper-ensemble", "dln-1-paper", "paper")
    assert method.after == ("dln-1-paper",)
    assert "4 best networks of dln-1-paper" in method.about


def test_a_row_that_keeps_several_trains_and_answers_as_one_that_keeps_the_best_alone(setup):
    keeping = Trained(1, "dln-1", keeps=3)(replace(setup, workspace=None))
    alone = Trained(1, "dln-1")(replace(setup, workspace=None))
    assert isinstance(keeping.kept, Ensemble)
    assert isinstance(keeping.predictor, Sequential)
    assert keeping.prompts == alone.prompts
    assert keeping.dev_score == alone.dev_score
    x = list(setup.task.test.inputs)
    assert keeping.predictor.predict_many(x) == alone.predictor.predict_many(x)


def test_one_training_serves_both_rows(setup, tmp_path):
    task = replace(setup.task, name="questions")
    cells = Cells(tmp_path / "out", SMALL.record("fake"))
    calls: list[str] = []
    lm = cli_fake_engine.load("1", "fake/1", {})
    methods = [Trained(1, "dln-1", keeps=3), Averaged(3)]
    bench = Bench(lm, [task], methods, [13], SMALL, cells)
    one, several = bench.run(lambda what, cell, _: calls.append(f"{what} {cell.method}"))
    assert one.train.calls > 0
    assert several.train.calls == 0
    assert several.test.calls == 3 * one.test.calls
    assert len(several.prompts) == 3
    assert one.prompts[0] in several.prompts
    assert calls == ["begins dln-1", "done dln-1", "begins dln-1-ensemble", "done dln-1-ensemble"]
