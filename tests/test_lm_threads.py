"""The number of CPU threads: the measurement, the record of a run, resuming, and the flag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from cli_shell import Shell, mail_csv
from dln.data import Dataset
from dln.errors import InputError
from dln.lm.load import load_lm
from dln.lm.local import threads
from dln.lm.local.checkpoint import Source, load_checkpoint
from dln.lm.local.threads import chosen_threads, fastest, restore_threads, settle_threads, use_threads
from dln.nn import ChoiceLayer, Sequential
from dln.train import fit


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has chosen nothing yet, on two cores, in which two threads are measured to be best."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_settled", [])
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "fastest", lambda counts, work: (2, dict(zip(counts, (0.2, 0.1), strict=True))))
    yield
    torch.set_num_threads(before)


class Machine:
    """Work whose time depends on the number of threads, with a clock of its own."""

    def __init__(self, costs: dict[int, float], drift: float = 1.0) -> None:
        self.costs, self.drift, self.now = costs, drift, 0.0
        self.calls: list[int] = []

    def work(self, count: int) -> None:
        self.calls.append(count)
        self.now += self.costs[count] * self.drift ** len(self.calls)


@pytest.mark.parametrize(
    ("costs", "best"),
    [
        ({1: 0.02, 2: 0.012}, 2),
        ({1: 0.02, 2: 0.15}, 1),  # a busy machine
        ({1: 0.02, 2: 0.019}, 1),  # a gain too small to pay for a second core
        ({1: 0.04, 2: 0.02, 8: 0.03}, 2),
        ({1: 0.04, 2: 0.03, 8: 0.01}, 8),
        ({1: 3.0, 2: 1.0}, 2),  # one trial is longer than the measurement
    ],
)
def test_the_fastest_number_is_chosen_and_a_larger_one_only_for_a_real_gain(costs: dict[int, float], best: int):
    machine = Machine(costs)
    chosen, times = fastest(sorted(costs), machine.work, seconds=1.0, clock=lambda: machine.now)
    assert chosen == best
    assert times == pytest.approx(costs)
    assert machine.now < 1.0 + 3 * sum(costs.values())


def test_a_machine_that_slows_down_during_the_measurement_does_not_change_the_choice():
    machine = Machine({1: 0.02, 2: 0.012}, drift=1.03)
    assert fastest((1, 2), machine.work, seconds=1.0, clock=lambda: machine.now)[0] == 2
    assert machine.calls[:6] == [1, 2, 1, 2, 1, 2]


def test_loading_on_the_cpu_measures_once_per_process(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    measured: list[object] = []

    def measure(counts: tuple[int, ...], work: object) -> tuple[int, dict[int, float]]:
        measured.append(counts)
        return 2, {1: 0.2, 2: 0.1}

    monkeypatch.setattr(threads, "fastest", measure)
    for _ in range(2):
        load_checkpoint(Source(str(tiny_folder), "cpu"))
    assert measured == [(1, 2)]
    assert torch.get_num_threads() == 2
    assert str(chosen_threads()) == "2 (measured: 2e+02 ms with 1, 1e+02 ms with 2)"


@pytest.mark.parametrize(("variable", "cores", "reason"), [("1", 2, "OMP_NUM_THREADS"), (None, 1, "one core")])
def test_nothing_is_measured_where_the_number_is_known(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, cores: int, reason: str
):
    monkeypatch.setattr(threads, "_cores", lambda: cores)
    monkeypatch.setattr(threads, "fastest", lambda counts, work: pytest.fail("measured"))
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        torch.set_num_threads(1)
    assert (settle_threads().count, settle_threads().reason) == (1, reason)


def test_the_real_measurement_ends_and_chooses_one_of_the_candidates():
    best, times = fastest((1, 2), threads._work(), seconds=0.0)
    assert best in (1, 2)
    assert all(seconds > 0 for seconds in times.values())


def test_a_given_number_wins_over_a_recorded_one_and_a_recorded_one_over_a_measured_one(tiny_folder: Path):
    settle_threads()
    restore_threads(None)
    assert torch.get_num_threads() == 2
    restore_threads(1)
    assert torch.get_num_threads() == 1
    load_lm(f"hf/{tiny_folder}", device="cpu", threads=2)
    restore_threads(1)
    assert torch.get_num_threads() == 2
    with pytest.raises(InputError, match="positive"):
        use_threads(0)


def test_a_run_records_the_number_and_a_resumed_run_uses_it(tiny_folder: Path, tmp_path: Path):
    data = Dataset.from_pairs([(f"text {i}", "yes" if i % 2 else "no") for i in range(4)])

    def train(**more: object) -> None:
        network = Sequential(ChoiceLayer(load_lm(f"hf/{tiny_folder}", device="cpu"), labels=["yes", "no"]))
        fit(network, data, steps=0, run_dir=tmp_path / "run", **more)  # pyright: ignore[reportArgumentType]

    use_threads(1)
    train()
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text("utf-8"))["threads"] == 1
    threads._settled.clear()
    settle_threads()  # another process, in which two threads are faster
    train(resume=True)
    assert torch.get_num_threads() == 1
    use_threads(2)
    train(resume=True)
    assert torch.get_num_threads() == 2


def test_the_flag_sets_the_number_and_resume_restores_or_overrides_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    mail_csv(tmp_path / "mail.csv")
    cli = Shell(monkeypatch, tmp_path, capsys)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = ["train", "--csv", "mail.csv", "--lm", f"hf/{tiny_folder}", "--steps", "0", "--run-dir", "run"]
    words += ["--train-size", "4", "--dev-size", "4", "--test-size", "4", "--no-cache"]
    assert cli("train", *words[1:], "--threads", "1", "--max-calls", "1").code == 4
    assert torch.get_num_threads() == 1
    threads._settled.clear()
    settle_threads()
    assert cli("resume", "run", "--max-calls", "1000", "--threads", "2").code == 0
    assert torch.get_num_threads() == 2
    threads._settled.clear()
    found = cli("doctor", "--lm", f"hf/{tiny_folder}", "--threads", "1")
    assert "threads: 1 (given)" in found.out
    assert cli("train", *words[1:], "--threads", "0").code == 2
