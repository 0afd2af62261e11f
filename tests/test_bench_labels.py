"""Methods by number of training examples: protocols, calibration, tables and plots."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_shell import Shell
from dln.experiments.cells import CellResult, Spent
from dln.experiments.labels_needed import (
    LEAST_DEV,
    SIZES,
    labels_markdown,
    labels_pictures,
    protocol_of,
    reliability,
    summarize_sizes,
)
from dln.experiments.method import EvaluationProtocol, Setup
from dln.experiments.methods import METHODS
from dln.view.charts import Curve, Point, plot


def cell(method, confidences, correct, task="a", seed=1):
    return CellResult(
        **{"task": task, "method": method, "seed": seed, "correct": correct, "accuracy": float(np.mean(correct))},
        **{"balanced_accuracy": None, "unscored": 0, "train": Spent(), "test": Spent()},
        confidences=confidences,
        log_likelihood=-0.5,
    )


def test_the_dev_set_grows_with_the_train_set_up_to_the_protocol_of_the_main_table():
    largest = EvaluationProtocol()
    sizes = [protocol_of(largest, n).dev_size for n in SIZES]
    assert sizes == [LEAST_DEV, 10, 20, 41, 82, 128]
    assert protocol_of(largest, 400) == largest  # so that its cells can be used again
    assert protocol_of(EvaluationProtocol(dev_size=4), 16).dev_size == 4


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_the_weighted_gap_of_the_bins(pairs):
    found = reliability([cell("m", [c for c, _ in pairs], [r for _, r in pairs])])
    assert found is not None
    expected = 0.0
    for b in range(10):
        inside = [(c, r) for c, r in pairs if (b / 10 <= c < (b + 1) / 10) or (b == 9 and c == 1.0)]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            expected += len(inside) / len(pairs) * abs(gap)
    # a confidence on the border of a bin may be rounded to either side
    if all(abs(c * 10 - round(c * 10)) > 1e-9 or c in (0, 1) for c, _ in pairs):
        assert found.error == pytest.approx(expected)
    assert sum(n for _, _, n in found.bins) == len(pairs)
    assert 0 <= found.error <= 1


def test_calibration_is_pooled_over_seeds_and_averaged_over_tasks():
    sure = cell("m", [0.95] * 4, [True, True, True, True], "a")
    wrong = cell("m", [0.95] * 4, [False, False, False, False], "b")
    found = reliability([sure, wrong])
    assert found is not None
    assert found.error == pytest.approx((0.05 + 0.95) / 2)
    both = reliability([cell("m", [0.75] * 2, [True, True], seed=1), cell("m", [0.75] * 2, [True, False], seed=2)])
    assert both is not None
    assert both.error == pytest.approx(0.0)
    assert reliability([cell("m", None, [True])]) is None


def test_tables_and_pictures_hold_every_method_and_size():
    protocols = {n: protocol_of(EvaluationProtocol(), n) for n in (16, 400)}
    cells = {
        n: [
            cell(m, [0.6, 0.9, 0.4, 0.8], right, task, seed)
            for m, right in methods.items()
            for task in "ab"
            for seed in (1, 2)
        ]
        for n, methods in {
            16: {"dln-1": [True, False, True, True], "label-words": [False, False, True, False]},
            400: {"dln-1": [True, True, True, True], "label-words": [True, False, True, False]},
        }.items()
    }
    found = summarize_sizes(cells, protocols, [("label-words", "dln-1")])
    text = labels_markdown(found, {"dln-1": "trained"})
    assert "| method | 16 | 400 |" in text
    assert "| dln-1 | 75.0 ± " in text
    assert "8 at 16, 128 at 400" in text
    assert text.count("| dln-1 against label-words |") == 2
    assert "Calibration at 400 training examples" in text
    pictures = labels_pictures(found, "dln-1")
    assert list(pictures) == ["", "-reliability"]
    for _, svg in pictures.values():
        root = ElementTree.fromstring(svg)  # noqa: S314 - our own picture
        words = [e.text or "" for e in root.iter() if e.tag.endswith("text")]
        assert any("dln-1" in word for word in words)
        assert any("label-words" in word for word in words)


def test_a_plot_has_a_point_per_value_inside_its_frame_and_escapes_names():
    curve = Curve("<a & b>", tuple(Point(x, y, y - 0.1, y + 0.1) for x, y in ((1, 0.2), (2, 0.5), (3, 0.9))), True)
    svg = plot([curve], "title", "x", [(1, "one"), (2, "two"), (3, "three")])
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own picture
    dots = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(dots) == 3
    heights = [float(dot.attrib["cy"]) for dot in dots]
    assert heights == sorted(heights, reverse=True)
    assert all(40 <= y <= 368 for y in heights)
    assert "&lt;a &amp; b&gt;" in svg


def test_label_words_are_fitted_on_train_and_dev():
    import cli_fake_engine
    from dln.data import load_task

    small = EvaluationProtocol(train_size=30, dev_size=20, test_size=5)
    seen = small.examples(load_task("questions"), 1)
    lm = cli_fake_engine.load("1", "fake/1", {})
    asked: list[str] = []

    class Listening(type(lm)):
        def choice_log_probs(self, contexts, labels):
            asked.extend(contexts)
            return lm.choice_log_probs(contexts, labels)

    listening = Listening.__new__(Listening)
    listening.__dict__.update(vars(lm))
    learnt = METHODS["label-words"](Setup(seen, listening, 1))
    assert len(set(asked)) == len({*seen.train.inputs, *seen.dev.inputs})
    assert learnt.dev_score is not None
    assert "train and dev" in METHODS["label-words"].about


PAGE = "# Results\n\n<!-- measured: labels -->\n<!-- end of labels -->\n"


def test_the_command_writes_tables_and_pictures_and_goes_on(monkeypatch, tmp_path: Path, capsys):
    cli = Shell(monkeypatch, tmp_path, capsys)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(PAGE, encoding="utf-8")
    words = [
        "bench",
        "labels",
        "--lm",
        "fake/1",
        "--tasks",
        "questions",
        "--sizes",
        "32,16",
        "--seeds",
        "1",
        "--dev-size",
        16,
    ]
    words += ["--test-size", 20, "--methods", "label-words,tfidf-lr", "--write", "docs/results.md"]
    done = cli(*words)
    assert done.code == 0, done.err
    text = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "| method | 16 | 32 |" in text
    assert "![Test accuracy by number of training examples](images/results-labels.svg)" in text
    assert (tmp_path / "docs" / "images" / "results-labels-reliability.svg").exists()
    assert (tmp_path / "labels" / "16" / "protocol.json").exists()
    assert cli(*words, "--json").records[-1]["tokens"] == 0  # all cells are there
    assert (tmp_path / "docs" / "results.md").read_text(encoding="utf-8").count("| tfidf-lr |") == text.count(
        "| tfidf-lr |"
    )
    assert cli("bench", "labels", "--sizes", "16,many").code == 2
