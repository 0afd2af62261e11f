"""Metrics: what counts as the same answer, and the aggregates over examples."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.data import (
    ExactMatch,
    NamedMetric,
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    exact_match,
    load_metric,
    number_presence,
    scores,
)
from dln.errors import InputError


@given(st.text(max_size=30))
def test_every_text_matches_itself(text: str) -> None:
    assert exact_match(text, text) == 1.0


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("Positive.", "positive", 1),
        ("  positive because it is good", "positive", 1),
        ("1. positive", "positive", 1),
        ("Option (A)", "(A)", 1),
        ("(a)", "(A)", 1),
        ("A", "(A)", 1),
        ("(B)", "(A)", 0),
        ("option", "option", 1),
        ("The answer is positive", "positive", 0),
        ("", "positive", 0),
        ("none", "no", 0),
        ("very good", "very bad", 0),
        ("Very bad, sorry", "very bad", 1),
        ("3", "3", 1),
        ("4", "3", 0),
        ("+", "-", 0),
        ("ÉTÉ!", "été", 1),
    ],
)
def test_exact_match(prediction: str, target: str, score: float) -> None:
    assert exact_match(prediction, target) == score


def test_among_labels_the_longest_match_counts() -> None:
    metric = ExactMatch(("new", "new york", "yes|Yep"))
    assert metric("New York!", "new york") == 1
    assert metric("New York!", "new") == 0
    assert metric("new shoes", "new") == 1
    assert metric("yep, sure", "yes") == 1
    assert metric("something", "yes") == 0


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("The answer is 42.", "42", 1),
        ("#### 42", "42", 1),
        ("so 6*7=42", "42", 1),
        ("$1,000 in total", "1000", 1),
        ("1000", "1,000", 1),
        ("she has 18.0 left", "18", 1),
        ("007", "7", 1),
        ("18.5", "18", 0),
        ("142", "42", 0),
        ("42nd street", "42", 0),
        ("x42", "42", 0),
        ("3/4", "3", 0),
        ("at 10:30", "10", 0),
        ("-5", "-5", 1),
        ("-5", "5", 0),
        ("5", "-5", 0),
        ("she lost -$5", "-5", 1),
        ("\u22125", "-5", 1),
        ("16 -3 = 13", "3", 1),
        ("16-3", "3", 1),
        ("50%", "50", 1),
        ("I bought 5, then 6.", "5", 1),
        ("1,2345", "12345", 0),
        ("no idea", "3", 0),
        ("", "3", 0),
    ],
)
def test_number_presence(prediction: str, target: str, score: float) -> None:
    assert number_presence(prediction, target) == score


@given(st.integers(-(10**9), 10**9))
def test_a_number_is_found_however_it_is_written(number: int) -> None:
    for text in (f"{number}", f"it is {number:,}.", f"= {number}.00", f"#### {number}\n"):
        assert number_presence(text, str(number)) == 1.0
    assert number_presence(f"it is {number + 1}", str(number)) == 0.0


def test_number_presence_needs_a_number_to_look_for() -> None:
    with pytest.raises(InputError, match="a number as target"):
        number_presence("3", "three")


@given(st.lists(st.tuples(st.sampled_from("abx"), st.sampled_from("ab")), min_size=1, max_size=30))
def test_the_aggregates_agree_with_the_confusion_matrix(pairs: list[tuple[str, str]]) -> None:
    predictions, targets = [p for p, _ in pairs], [t for _, t in pairs]
    matrix = confusion_matrix(predictions, targets, ["a", "b"])
    assert matrix.shape == (2, 3)
    assert matrix.sum() == len(pairs)
    assert accuracy(predictions, targets) == pytest.approx(np.trace(matrix) / len(pairs))
    rows = matrix.sum(axis=1)
    recall = [matrix[i, i] / rows[i] for i in range(2) if rows[i]]
    assert balanced_accuracy(predictions, targets) == pytest.approx(np.mean(recall))
    assert scores(predictions, targets).shape == (len(pairs),)


def test_aggregates_need_one_prediction_per_target() -> None:
    for predictions, targets in ([["a"], []], [[], []]):
        with pytest.raises(InputError, match="one prediction per target"):
            accuracy(predictions, targets)
    with pytest.raises(InputError, match="not one of the labels"):
        confusion_matrix(["a"], ["z"], ["a", "b"])


def test_metrics_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_metric_of_length.py").write_text(
        "def same_length(prediction, target):\n    return len(prediction) == len(target)\n"
        "def seven(prediction, target):\n    return 7\n"
        "def nothing(prediction, target):\n    return None\n"
    )
    metric = load_metric("my_metric_of_length:same_length")
    assert isinstance(metric, NamedMetric)
    assert (metric("abc", "xyz"), metric("abc", "x")) == (1.0, 0.0)
    assert metric.name == "my_metric_of_length:same_length"
    assert accuracy(["aa", "b"], ["xx", "yy"], metric) == 0.5
    for name in ("seven", "nothing"):
        with pytest.raises(InputError, match="from 0 to 1"):
            load_metric(f"my_metric_of_length:{name}")("a", "b")
    assert load_metric("exact_match", ["new", "new york"])("new york", "new") == 0
    assert load_metric("number_presence") == number_presence
    assert load_metric(number_presence) is number_presence
    assert load_metric(lambda prediction, target: 0.5)("a", "b") == 0.5


@pytest.mark.parametrize("name", ["acuracy", "no.such.module:f", "json:no_such", "json:", ":f", "os.path:sep"])
def test_an_unknown_metric_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="metric"):
        load_metric(name)


NAMED = [
    ("numeric", "-5", "5", 0.0),
    ("numeric", "5", "-5", 0.0),
    ("numeric", "1,000.50", "1000.5", 1.0),
    ("numeric", "1.234,50", "1234.5", 1.0),
    ("numeric", "50 %", "0.5", 1.0),
    ("numeric", "3/4", "0.75", 1.0),
    ("numeric", "The answer is −5.", "-5", 1.0),
    ("numeric", "$5", "€5", 0.0),
    ("numeric", "no number", "5", 0.0),
    ("normalized", "C#", "C++", 0.0),
    ("normalized", "C", "C#", 0.0),
    ("normalized", " Paris. ", "paris", 1.0),
    ("normalized", "Paris, France", "Paris", 0.0),
    ("normalized", "1,000", "1000", 1.0),
    ("normalized", "👍", "👍🏽", 0.0),
    ("exact", "Paris", "paris", 0.0),
    ("exact", "nai\u0308ve ", "na\u00efve", 1.0),
    ("exact_match", "-5 degrees", "5", 0.0),
    ("exact_match", "5 degrees", "5", 1.0),
    ("exact_match", "北京大学", "北京", 0.0),
    ("exact_match", "好评。", "好评", 1.0),
    ("exact_match", "हिन्दी", "हि", 0.0),
    ("contains", "it is C++ today", "C++", 1.0),
    ("contains", "it is C++ today", "C", 0.0),
    ("contains", "答案是北京。", "北京", 1.0),
    ("contains", "cats", "cat", 0.0),
    ("contains", "15 and -5", "5", 0.0),
    ("token_f1", "the red box", "red box", 1.0),
    ("token_f1", "red", "red box", 2 / 3),
    ("json", '{"b": 2.0, "a": [1]}', '{"a": [1], "b": 2}', 1.0),
    ("json", 'Sure: ```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
    ("json", '{"a": true}', '{"a": 1}', 0.0),
    ("json", "not json", '{"a": 1}', 0.0),
    ("paper", "-5", "5", 1.0),
    ("paper", "Option (A).", "(A)", 1.0),
]


@pytest.mark.parametrize(("name", "prediction", "target", "wanted"), NAMED)
def test_metrics_mean_what_they_say(name: str, prediction: str, target: str, wanted: float) -> None:
    assert load_metric(name)(prediction, target) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["exact", "normalized", "exact_match", "contains", "token_f1", "paper"])
@given(text=st.text(min_size=1).filter(str.strip))
def test_a_text_matches_itself(name: str, text: str) -> None:
    assert load_metric(name)(text, text) == 1.0


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3))
def test_a_number_is_equal_to_itself_in_other_forms_and_to_no_negative(value: Decimal) -> None:
    numeric = load_metric("numeric")
    forms = (f"{value}", f"{value:,}", f"{value:.4f}", f"the answer is {value}")
    assert all(numeric(form, str(value)) == 1.0 for form in forms)
    if value:
        assert all(numeric(form, str(-value)) == 0.0 for form in forms)


def test_targets_that_a_metric_cannot_compare_are_errors() -> None:
    for name in ("numeric", "json"):
        with pytest.raises(InputError, match=f"metric {name} needs"):
            load_metric(name)("a", "a word")
