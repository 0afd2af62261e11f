"""`dln view` as a process, and a run in a notebook's cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import dln
from dln.cli.main import run
from dln.errors import InputError
from dln.train.result import FitResult
from dln.train.run import Run
from report_events import synthetic_run
from view_runs import TOKEN, write_run


@pytest.mark.slow  # the start of a process
def test_it_says_where_it_is_and_stops_when_asked(tmp_path: Path):
    write_run(tmp_path / "runs" / "a", synthetic_run(1, 1))
    code = "import sys; from dln.cli.main import run; sys.exit(run(['view', 'runs', '--port', '0', '--json']))"
    environment = {**os.environ, "DLN_VIEW_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        base, _, fragment = told["url"].partition("#")
        assert fragment == f"token={TOKEN}"
        request = urllib.request.Request(f"{base}api/runs", headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - on this machine
            assert [row["name"] for row in json.load(answer)["runs"]] == ["a"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("words", [["view", "nothing"], ["view", ".", "--port", "70000"]])
def test_what_cannot_be_shown_is_an_error_of_use(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2


def test_a_run_is_shown_in_a_cell_without_scripts(tmp_path: Path):
    folder = write_run(tmp_path / "a", synthetic_run(2, 2, poison="\"'><script>alert(1)</script>"))
    network = dln.Sequential(dln.LanguageLayer(dln.TableLM.random([" a"], seed=0), "think", "think"))
    result = FitResult(network, network, 0, 0.5, "steps", 2, run_dir=folder)
    html = result.view()._repr_html_()
    assert html.startswith("<iframe sandbox title=")
    assert html.count("<") == 2  # the frame; all of the page is in its attribute
    assert "<script" not in html
    with Run.open(folder) as opened:
        assert opened.view()._repr_html_() == html
    with pytest.raises(InputError, match="not saved"):
        FitResult(network, network, 0, 0.5, "steps", 2).view()
