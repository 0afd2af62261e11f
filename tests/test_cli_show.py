"""What is shown: harmless text, the live panel, and numbers as people read them."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli_fake_engine import HOSTILE
from cli_shell import ENGINE, Shell, mail_csv
from dln.cli import flags as complete
from dln.cli.output import duration, one_line, safe, sparkline
from dln.cli.progress import Board, PanelWatch
from dln.lm.meter import Meter, Usage
from dln.train.events import StepDone

TRAIN = [
    *("train", "--csv", "mail.csv", "--steps", "2", "--layers", "2", "--set", "batch_size=4", "--dev-size", "8"),
    *("--test-size", "8", "--set", "inference.num_prompts=2", "--set", "inference.prompt_proposals={rewrite: 1}"),
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    mail_csv(tmp_path / "mail.csv")
    return Shell(monkeypatch, tmp_path, capsys)


def printed(renderable: object) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.text())
def test_no_text_can_steer_the_terminal(text: str):
    for shown in (safe(text), one_line(text)):
        plain = Console(file=io.StringIO(), width=10_000, soft_wrap=True)
        plain.print(shown, markup=True)
        assert isinstance(plain.file, io.StringIO)
        out = plain.file.getvalue()
        assert not any(ord(c) < 32 and c not in "\n\t" for c in out)
        assert not any(0x7F <= ord(c) < 0xA0 for c in out)


@given(st.from_regex(r"\[/?[a-z ]{1,12}\]", fullmatch=True))
def test_markup_is_shown_as_it_is(text: str):
    plain = Console(file=io.StringIO(), width=200)
    plain.print(safe(text))
    assert isinstance(plain.file, io.StringIO)
    assert plain.file.getvalue().strip() == text.strip()


def test_what_a_model_writes_is_harmless_everywhere(cli: Shell):
    done = cli(*TRAIN, "--lm", "fake/hostile", "--run-dir", "runs/a")
    assert done.code == 0, done.err
    shown = done.out + done.err
    shown += cli("predict", "runs/a", f"text {HOSTILE}").out + cli("runs").out
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\x07" not in shown


def test_the_panel_shows_the_run_and_cleans_prompts():
    meter = Meter()
    board = Board("mail", 10, meter, [HOSTILE, "two [3 demonstrations]"])
    panel = PanelWatch(board)
    meter.add(Usage(calls=12, prompt_tokens=3456))
    parameters = {"layers": [{"prompt": {"instruction": HOSTILE}}, {"prompt": {"instruction": "sort it"}}]}
    for step, elbo in ((1, -3.0), (2, -2.0)):
        board.see(
            StepDone(
                step=step,
                elbo=elbo,
                accuracy=0.5,
                excluded=0,
                examples=[],
                hidden=[],
                layers=[],
                parameters=parameters,
                seconds=2.0,
            )
        )
    text = printed(panel.render())
    for part in ("2/10", "-2.000", "▁█", "50.0 %", "3,456 tokens", "12 calls", "16 s", "sort it", "step 3"):
        assert part in text
    assert "\x1b[2J" not in text
    assert "\x9b" not in text
    assert "look" in text


@pytest.mark.slow
def test_on_a_terminal_there_is_a_live_panel(cli: Shell):
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    small = ["--layers", "1", "--dev-size", "4", "--test-size", "4"]
    words = [*TRAIN[: TRAIN.index("--layers")], *small, "--set", "batch_size=4", "--set", "inference.num_prompts=2"]
    command = [sys.executable, str(ENGINE), *words, "--lm", "fake/1/slow", "--run-dir", "runs/a"]
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other side is closed
                return
            seen.append(part)

    reader = threading.Thread(target=read)
    with subprocess.Popen(command, cwd=cli.folder, env=environment, stderr=side, stdout=subprocess.PIPE) as process:
        os.close(side)
        reader.start()
        out, _ = process.communicate(timeout=60)
    reader.join(10)
    os.close(main)
    text = b"".join(seen).decode("utf-8", errors="replace")
    assert process.returncode == 0, text
    for part in ("dln train mail", "ELBO", "dev accuracy", "tokens/s", "left"):
        assert part in text
    assert b"test accuracy" in out
    assert b"\x1b" not in out


@given(st.lists(st.floats(-1e6, 1e6), max_size=100))
def test_a_sparkline_has_a_bar_per_value(values: list[float]):
    line = sparkline(values)
    assert len(line) == min(40, len(values))
    if values and max(values[-40:]) > min(values[-40:]):
        assert "▁" in line
        assert "█" in line


def test_durations():
    assert [duration(s) for s in (0.4, 42, 185, 7385)] == ["0 s", "42 s", "3:05", "2:03:05"]


def test_completion_knows_names(cli: Shell):
    assert complete.tasks("ques") == ["questions"]
    assert complete.tasks("ma") == ["mail.csv"]
    assert complete.presets("") == ["default", "paper"]
    assert "classify_residual" in complete.templates("classify")
    assert complete.settings("inference.num_h") == ["inference.num_hidden="]
    (cli.folder / "runs/a").mkdir(parents=True)
    (cli.folder / "runs/a/run.yaml").touch()
    assert complete.runs("ru") == ["runs/a"]
    assert complete.runs("runs/a") == ["runs/a"]
