"""Data that a model cannot read is refused before any model works, by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import cli_fake_engine
from cli_shell import Shell, mail_csv
from dln.data import Dataset, Example
from dln.errors import ContextLengthError
from dln.lm.base import Capabilities, Sampling
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.numerics import Floats
from dln.train.estimate import check_room

LIMIT = 200


class NarrowLM(TableLM):
    """A table model that reads only so many words."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, context_length=LIMIT)


def network(labels: tuple[str, ...] = ("yes", "no")) -> Sequential:
    lm = NarrowLM.random([*labels, "a thought"], 1)
    return Sequential(
        LanguageLayer(lm, prompt="Think.", sampling=Sampling(max_tokens=20)), ChoiceLayer(lm, labels=labels)
    )


def dataset(*inputs: str, labels: tuple[str, ...] = ("yes", "no")) -> Dataset:
    examples = tuple(Example(x, labels[i % 2], f"mail.csv:{i + 2}") for i, x in enumerate(inputs))
    return Dataset(examples, labels)


def test_data_that_fits_passes():
    check_room(network(), dataset("short", "word " * 50))


def test_an_input_that_does_not_fit_is_named_with_its_place():
    with pytest.raises(ContextLengthError, match=r"^mail\.csv:3: .* as are 1 more") as caught:
        check_room(network(), dataset("short", "word " * LIMIT, "fine"), dataset("word " * LIMIT))
    assert f"at most {LIMIT} tokens" in str(caught.value)


def test_room_is_kept_for_what_the_layer_below_writes():
    narrow = network()
    wide = Sequential(replace(narrow.layers[0], sampling=Sampling(max_tokens=130)), narrow.layers[1])
    check_room(narrow, dataset("word " * 10))
    with pytest.raises(ContextLengthError):
        check_room(wide, dataset("word " * 10))


def test_a_label_that_is_a_text_is_named_with_its_row():
    labels = ("yes", "word " * LIMIT + "end")
    with pytest.raises(ContextLengthError, match=r"^mail\.csv:3: this label"):
        check_room(network(labels), dataset("a", "b", labels=labels))


def test_a_huge_cell_stops_training_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli = Shell(monkeypatch, tmp_path, capsys)
    open_ended = Capabilities(scores_targets=True, scores_labels=True, token_ids=True, chat=False, context_length=8192)
    monkeypatch.setattr(cli_fake_engine.FakeLM, "capabilities", open_ended)
    path = mail_csv(tmp_path / "mail.csv")
    path.write_text(path.read_text("utf-8") + f'"{"word " * 200_000}",order\n', "utf-8")
    done = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a")
    assert done.code == 2
    assert "mail.csv:62: this input is too long" in done.err
    assert not (tmp_path / "runs").exists()


def test_a_prompt_that_is_learnt_leaves_room_for_the_longest_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cli = Shell(monkeypatch, tmp_path, capsys)
    narrow = Capabilities(scores_targets=True, scores_labels=True, token_ids=True, chat=False, context_length=400)
    monkeypatch.setattr(cli_fake_engine.FakeLM, "capabilities", narrow)
    asked = cli_fake_engine.FakeLM.choice_log_probs

    def refuse(lm: cli_fake_engine.FakeLM, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        if max(map(lm.count_tokens, contexts)) > 400:
            raise ContextLengthError("too long", where="request")
        return asked(lm, contexts, labels)

    monkeypatch.setattr(cli_fake_engine.FakeLM, "choice_log_probs", refuse)
    rows = [f"{i} {'word ' * (250 if i % 12 == 0 else 20)},{('order', 'return')[i % 2]}" for i in range(60)]
    (tmp_path / "mail.csv").write_text("\n".join(["message,kind", *rows]) + "\n", "utf-8")
    few = ("--set", "batch_size=4", "--set", "inference.demonstrations=[3,9]", "--steps", 4)
    done = cli("train", "--csv", "mail.csv", "--lm", "fake/1", "--run-dir", "runs/a", *few)
    assert done.code == 0, done.err
