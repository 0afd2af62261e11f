"""The simulation of workers: what is lost is what its formula says."""

from __future__ import annotations

import pytest

from benchmarks.scale import Call, Recording, Stubs, predicted
from dln.lm.base import Sampling
from dln.lm.table import TableLM
from dln.lm.workers import run_items


def test_the_formula_counts_last_rounds_and_handing_out() -> None:
    assert predicted([64], 64, 0.0) == 1.0
    assert predicted([65], 64, 0.0) == pytest.approx(65 / 128)
    assert predicted([64, 1], 64, 0.0) == pytest.approx(65 / 128)
    assert predicted([512], 512, 0.005 / 256) == pytest.approx(0.5)


def test_stubs_return_every_item() -> None:
    with Stubs(16) as stubs:
        assert run_items(stubs, int, [()] * 40) == [None] * 40


def test_a_recording_cuts_as_workers_do_and_changes_nothing() -> None:
    lm = TableLM.random(["yes", "no"], 3)
    recording = Recording(lm)
    contexts = ["Q: a?", "Q: b?"]
    drawn = recording.sample(contexts, Sampling(temperature=1.0, max_tokens=4), [1, 2])
    assert drawn == lm.sample(contexts, Sampling(temperature=1.0, max_tokens=4), [1, 2])
    assert recording.calls == [Call(tuple(contexts), (16, 16))]
    assert (recording.calls[0].items(4), recording.calls[0].items(100)) == (2, 1)
