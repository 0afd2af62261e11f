"""Labels that a person gives: an append-only file, the least sure inputs first, nothing of a test set."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dln.data import Dataset, Task
from dln.errors import CorruptDataError, InputError
from dln.train.labels import (
    LABELS,
    Label,
    Waiting,
    entropy,
    give_label,
    given_labels,
    least_sure_first,
    read_waiting,
    with_given_labels,
    write_waiting,
)

NAMES = ("yes", "no")


def row(x: str, p: float) -> Waiting:
    return Waiting(x=x, probabilities={"yes": p, "no": 1 - p})


def task() -> Task:
    parts = {
        part: Dataset.from_pairs([(f"{part} {i}", NAMES[i % 2]) for i in range(4)], labels=NAMES)
        for part in ("train", "dev", "test")
    }
    return Task("toy", "Answer.", NAMES, **parts, metric="exact")


def test_the_least_sure_come_first_each_once():
    rows = [row("sure", 0.99), row("open", 0.5), row("half", 0.7), row(" Sure", 0.5), row("other", 0.3)]
    assert [r.x for r in least_sure_first(rows)] == ["open", "half", "other", "sure"]
    assert entropy([0.25] * 4) == pytest.approx(math.log(4))


def test_what_waits_is_read_as_it_was_written(tmp_path: Path):
    assert read_waiting(tmp_path) == []
    rows = [row("a\u2028\ud800", 0.5), row("b", 0.1)]
    write_waiting(tmp_path, rows)
    assert read_waiting(tmp_path) == rows
    (tmp_path / "to_label.json").write_text('[{"x": 1}]')
    with pytest.raises(CorruptDataError):
        read_waiting(tmp_path)


def test_the_last_label_holds_and_can_be_taken_back_and_no_line_is_ever_lost(tmp_path: Path):
    file = tmp_path / LABELS
    for x, y in (("a", "yes"), ("b", "no"), ("a", "no"), ("c", "yes"), ("b", None)):
        before = file.read_bytes() if file.exists() else b""
        give_label(tmp_path, Label(x=x, y=y), NAMES)
        assert file.read_bytes().startswith(before)
    assert list(given_labels(file).items()) == [("a", "no"), ("c", "yes")]
    with file.open("ab") as torn:
        torn.write(b'{"x": "d"')
    assert list(given_labels(file)) == ["a", "c"]  # what is not complete was never given
    with pytest.raises(InputError, match="no such label"):
        give_label(tmp_path, Label(x="d", y="maybe"), NAMES)


def test_a_file_of_something_else_is_corrupt(tmp_path: Path):
    (tmp_path / LABELS).write_text("a,yes\n")
    with pytest.raises(CorruptDataError, match="no label"):
        given_labels(tmp_path / LABELS)
    with pytest.raises(InputError, match="no labels here"):
        given_labels(tmp_path / "other.jsonl")


def test_labels_join_the_training_set_and_never_touch_dev_and_test():
    before = task()
    given = {"new": "no", "train 0": "no", "dev 1": "yes", " TEST  2": "no", "newer": "yes"}
    after, left_out = with_given_labels(before, given, "labels.jsonl")
    assert left_out == 2
    assert (after.dev, after.test) == (before.dev, before.test)
    pairs = [(e.input, e.target) for e in after.train]
    assert pairs == [
        ("train 0", "no"),
        *((e.input, e.target) for e in before.train[1:]),
        ("new", "no"),
        ("newer", "yes"),
    ]
    assert with_given_labels(before, {}, "labels.jsonl") == (before, 0)
    with pytest.raises(InputError, match="no such label"):
        with_given_labels(before, {"x": "maybe"}, "labels.jsonl")


def test_lines_are_json_objects_with_what_the_network_said(tmp_path: Path):
    give_label(tmp_path, Label(x="a", y="yes", predicted="no", time=1.0), NAMES)
    assert json.loads((tmp_path / LABELS).read_text()) == {"x": "a", "y": "yes", "predicted": "no", "time": 1.0}
