"""One step with a model in process, from the command line to the report; slow with the embedded one."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import build_tiny_model
from dln.cli.main import run


@pytest.mark.parametrize("model", ["tiny", pytest.param("smollm2", marks=[pytest.mark.model, pytest.mark.slow])])
def test_one_step_with_a_model_in_process(
    model: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if model == "tiny":
        spec = f"hf/{build_tiny_model(tmp_path / 'tiny', context_length=2048)}"
    else:
        request.getfixturevalue("smollm2")
        spec = model
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    sizes = ["--train-size", "30", "--dev-size", "6", "--test-size", "6", "--hidden-tokens", "6", "--cache", "c.sqlite"]
    options = ["--set", "batch_size=3", "--set", "inference.num_prompts=2", "--set", "inference.num_hidden=1"]
    words = [
        "train",
        "--lm",
        spec,
        "--task",
        "questions",
        "--layers",
        "2",
        "--steps",
        "1",
        "--run-dir",
        "runs/a",
        *sizes,
        *options,
    ]
    assert run([*words, "--set", "inference.demonstrations=[2]", "--set", "inference.prompt_tokens=8"]) == 0
    captured = capsys.readouterr()
    assert "paired test" in captured.out
    assert (tmp_path / "runs/a/report.html").is_file()
    assert run(["predict", "runs/a", "How tall is the tower?", "--json"]) == 0
    assert '"label"' in capsys.readouterr().out
    assert run(["resume", "runs/a"]) == 0


@pytest.mark.model
def test_the_embedded_model_is_found(smollm2: object, capsys: pytest.CaptureFixture[str]):
    assert run(["model", "path"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
