"""`DLNClassifier` keeps scikit-learn's contract: alone, in meta-estimators, and in another process."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - what a pickle of an estimator holds is tested here
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from dln import DLNClassifier, InputError, TableLM
from dln.integrations.sklearn import row_texts
from dln.lm.load import ENGINES, Engine
from dln.nn import Ensemble
from dln.nn.ensemble import members_of

KNOWS_NOTHING = "label words of random probability say nothing, so that no accuracy can be asked of them"
EXPECTED_FAILURES = {
    "fitted": {"check_classifiers_train": KNOWS_NOTHING},
    "words": dict[str, str](),  # many words of random probability are features enough to learn the train set by heart
}


def by_keyword(context: str) -> dict[str, float]:
    """A model that reads the last input: "good" speaks for positive, with a preference for negative."""
    p = 0.45 if "good" in context.rpartition("Input:")[2] else 0.05
    return {" positive": p, " negative": 0.9 - p, " something else": 0.1}


TEXTS = [f"{'good' if i % 2 else 'bad'} film number {i}" for i in range(40)]
LABELS = ["positive" if i % 2 else "negative" for i in range(40)]


@pytest.fixture
def lm() -> TableLM:
    return TableLM(by_keyword, name="by-keyword")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, lm: TableLM) -> str:
    monkeypatch.setitem(ENGINES, "keyword", Engine("keyword", lambda rest, spec, options: lm))
    return "keyword"


def small(lm, **more):
    return DLNClassifier(lm, steps=1, options={"num_prompts": 2, "batch_size": 4}, **more)


@pytest.mark.parametrize("readout", ["fitted", pytest.param("words", marks=pytest.mark.slow)])
def test_it_keeps_the_contract_that_scikit_learn_checks(monkeypatch: pytest.MonkeyPatch, readout: str):
    words = ("-1", "0", "1", "2", "3", "4", "5", "one", "two", "three", "a", "b", "c", "true", "false")
    table = TableLM.random([f" {word}" for word in words], 3)
    monkeypatch.setitem(ENGINES, "digits", Engine("digits", lambda rest, spec, options: table))
    estimator = DLNClassifier("digits", steps=0, options={"output_layer": readout})
    expected = EXPECTED_FAILURES[readout]
    found = check_estimator(estimator, on_skip=None, on_fail="raise", expected_failed_checks=expected)
    ran = [one for one in found if one["status"] == "passed"]
    assert len(ran) > 40
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(expected)


def test_training_helps_and_probabilities_follow_the_classes(lm):
    classifier = small(lm).fit(TEXTS, LABELS)
    assert classifier.classes_.tolist() == ["negative", "positive"]
    # the model alone calls "good" negative and positive equally often; the fitted bias decides
    assert classifier.score(TEXTS, LABELS) == 1.0
    p = classifier.predict_proba(["a good film", "a bad film"])
    assert p.sum(axis=1) == pytest.approx(1)
    assert p[0, 1] > 0.5 > p[1, 1]
    assert np.exp(classifier.predict_log_proba(["a good film"]))[0] == pytest.approx(p[0])
    assert classifier.dev_score_ < 0
    assert len(classifier.history_) >= 1
    assert classifier.prompts_


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 0], {0: "negative", 1: "positive"}),
        ([True, False], {False: "negative", True: "positive"}),
        ([2.0, -1.0], {-1.0: "negative", 2.0: "positive"}),
        (["good ones", "bad|ones"], {"bad|ones": "negative", "good ones": "positive|good"}),
    ],
    ids=["integers", "truth values", "whole floats", "texts that are no words"],
)
def test_classes_keep_their_type_whatever_the_label_words_are(lm, labels, words):
    y = np.array([labels[0] if one == "positive" else labels[1] for one in LABELS])
    classifier = small(lm, labels=words).fit(TEXTS, y)
    assert classifier.classes_.dtype == y.dtype
    assert (classifier.predict(TEXTS) == y).all()


def test_the_words_of_classes_are_their_texts(lm):
    table = TableLM.random([" true", " false", " 3", " 7"], 0)
    assert small(table).fit(TEXTS, np.arange(40) % 2 == 1).network_.labels == ("false", "true")
    assert small(table).fit(TEXTS, [3, 7] * 20).network_.labels == ("3", "7")
    with pytest.raises(InputError, match=r"labels=\{'a\|b'"):
        small(table).fit(TEXTS, ["a|b", "c"] * 20)
    with pytest.raises(InputError, match="a class has no label"):
        small(table, labels={3: "x"}).fit(TEXTS, [3, 7] * 20)


@pytest.mark.parametrize("make", [list, np.array, pd.Series, tuple, lambda t: pd.DataFrame({"text": t})])
def test_texts_come_in_any_container(lm, make):
    expected = small(lm).fit(TEXTS, LABELS).predict_proba(TEXTS[:5])
    classifier = small(lm).fit(make(TEXTS), pd.Series(LABELS))
    assert classifier.predict_proba(make(TEXTS[:5])) == pytest.approx(expected)


def test_columns_become_named_lines(lm):
    frame = pd.DataFrame({"title": TEXTS, "price": [1.5, None] * 20, "sold": [True, False] * 20})
    classifier = small(lm).fit(frame, LABELS)
    assert classifier.feature_names_in_.tolist() == ["title", "price", "sold"]
    assert row_texts(frame[:2]) == [
        "title: bad film number 0\nprice: 1.5\nsold: true",
        "title: good film number 1\nsold: false",
    ]
    assert row_texts(np.array([["a", 1], ["b", 2]], dtype=object)) == ["x0: a\nx1: 1", "x0: b\nx1: 2"]
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame[["price", "title", "sold"]])


@pytest.mark.parametrize(
    ("X", "match"),
    [
        ("one text", "one text"),
        ([1.0, 2.0], "Reshape your data"),
        ([], "no rows"),
        (["a", None], "row has no value"),
        (["a", object()], "string or a number"),
    ],
)
def test_inputs_that_are_no_texts_are_refused(lm, X, match):
    with pytest.raises(InputError, match=match):
        small(lm).fit(X, ["positive", "negative"])


def test_settings_are_checked_when_fitting(lm):
    for wrong, match in (
        ({"steps": -1}, "steps"),
        ({"preset": "fast"}, "preset"),
        ({"options": {"batchsize": 3}}, "batch_size"),
        ({"dev_size": 40}, "dev_size"),
        ({"dev_size": 0.0}, "dev_size"),
        ({"layers": 0}, "layers"),
        ({"lm": 3}, "lm"),
    ):
        with pytest.raises(InputError, match=match):
            DLNClassifier(**{"lm": lm, **wrong}).fit(TEXTS, LABELS)
    with pytest.raises(InputError, match="two classes"):
        small(lm).fit(TEXTS, ["positive"] * 40)
    with pytest.raises(NotFittedError):
        small(lm).predict(TEXTS)


def test_the_same_seed_gives_the_same_network_and_another_seed_another_split(lm):
    one, two = (small(lm, random_state=5).fit(TEXTS, LABELS) for _ in range(2))
    assert one.prompts_ == two.prompts_
    assert one.dev_score_ == two.dev_score_
    generator = [small(lm, random_state=np.random.RandomState(1)).fit(TEXTS, LABELS).prompts_ for _ in range(2)]
    assert generator[0] == generator[1]


def test_two_layers_and_a_run_directory(lm, tmp_path: Path):
    hidden = TableLM.random([" positive", " negative", " a thought"], 1)
    classifier = small(hidden, layers=2, run_dir=tmp_path / "run", dev_size=10).fit(TEXTS[:20], LABELS[:20])
    assert len(members_of(classifier.network_)[0]) == 2
    assert (tmp_path / "run" / "network.json").exists()


def test_a_clone_shares_the_model_and_no_result(lm):
    fitted = small(lm, random_state=3).fit(TEXTS, LABELS)
    other = clone(fitted)
    assert other.lm is lm
    assert other.get_params() == fitted.get_params()
    assert other.options is not fitted.options
    assert not hasattr(other, "classes_")
    again = copy.deepcopy(fitted)
    assert again.lm is lm
    assert again.predict_proba(TEXTS) == pytest.approx(fitted.predict_proba(TEXTS))
    again.set_params(steps=0, options=None).fit(TEXTS, LABELS)
    assert fitted.steps == 1


def test_meta_estimators_take_it(lm):
    scores = cross_val_score(small(lm), TEXTS, LABELS, cv=2)
    assert scores == pytest.approx([1.0, 1.0])
    upper = FunctionTransformer(lambda X: [text.replace("GOOD", "good") for text in X])
    pipeline = make_pipeline(upper, small(lm)).fit([t.upper() for t in TEXTS], LABELS)
    assert pipeline.score([t.upper() for t in TEXTS], LABELS) == 1.0
    search = GridSearchCV(small(lm), {"steps": [0, 1], "instruction": ["Is it good?"]}, cv=2).fit(TEXTS, LABELS)
    assert set(search.best_params_) == {"steps", "instruction"}
    assert search.predict(["a good film"]) == ["positive"]
    calibrated = CalibratedClassifierCV(small(lm), cv=2).fit(TEXTS, LABELS)
    assert calibrated.predict(["a good film", "a bad film"]).tolist() == ["positive", "negative"]


def test_a_pickle_holds_prompts_and_the_name_of_the_model_alone(lm, named, monkeypatch):
    class Heavy(TableLM):
        def __reduce__(self):
            raise AssertionError("a model is in the pickle")

    heavy = Heavy(by_keyword, name=named)
    fitted = small(heavy).fit(TEXTS, LABELS)
    kept = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert kept.lm == named
    loaded = []
    monkeypatch.setitem(ENGINES, "keyword", Engine("keyword", lambda *_: loaded.append(1) or lm))
    assert kept.classes_.tolist() == fitted.classes_.tolist()
    assert not loaded
    assert kept.predict_proba(TEXTS) == pytest.approx(fitted.predict_proba(TEXTS))
    assert kept.predict_proba(TEXTS[:3]).shape == (3, 2)
    assert loaded == [1]
    assert kept.network_.parameters() == fitted.network_.parameters()


def test_no_pickle_holds_a_key():
    secret = DLNClassifier("vllm/x", lm_options={"api_key": "sk-secret", "headers": {"x": "sk-secret"}, "timeout": 3.0})
    kept = pickle.dumps(secret)
    assert b"sk-secret" not in kept
    assert pickle.loads(kept).lm_options == {"timeout": 3.0}  # noqa: S301


@pytest.mark.slow
def test_an_ensemble_is_kept_as_one(lm, named):
    fitted = DLNClassifier(named, steps=2, options={"num_prompts": 3, "ensemble": 3, "stop_at_accuracy": None}).fit(
        TEXTS, LABELS
    )
    kept = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert type(kept.network_) is type(fitted.network_)
    assert isinstance(fitted.network_, Ensemble)
    assert kept.predict_proba(TEXTS) == pytest.approx(fitted.predict_proba(TEXTS))


def test_texts_without_a_score_get_the_class_frequencies_and_a_warning():
    silent = TableLM(
        lambda context: {" no label": 1.0} if "mute" in context.rpartition("Input:")[2] else by_keyword(context)
    )
    classifier = DLNClassifier(silent, steps=0, options={"output_layer": "fitted"}).fit(
        TEXTS[:30] + TEXTS[:10:2], LABELS[:30] + LABELS[:10:2]
    )
    with pytest.warns(UserWarning, match="1 of 2 texts could not be scored"):
        p = classifier.predict_proba(["mute", "a good film"])
    assert p[0] == pytest.approx(classifier.class_prior_)
    assert classifier.class_prior_ == pytest.approx([20 / 35, 15 / 35])


CHILD = """
import pickle, sys
classifier = pickle.loads(sys.stdin.buffer.read())
assert "torch" not in sys.modules
print(classifier.predict_proba(["a cat", "a dog"]).tolist())
"""


@pytest.mark.slow
def test_another_process_loads_the_model_by_its_name(tiny_folder: Path):
    words = {"a": "yes", "b": "no"}
    fitted = DLNClassifier(f"hf/{tiny_folder}", steps=0, labels=words).fit(["a cat", "a dog"] * 4, ["a", "b"] * 4)
    sent = pickle.dumps(fitted)
    done = subprocess.run([sys.executable, "-c", CHILD], input=sent, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert np.array(eval(done.stdout)) == pytest.approx(fitted.predict_proba(["a cat", "a dog"]), abs=1e-5)  # noqa: S307


@pytest.mark.slow
def test_joblib_with_processes(tiny_folder: Path):
    classifier = DLNClassifier(f"hf/{tiny_folder}", steps=0, labels={"a": "yes", "b": "no"})
    texts, y = [f"a {animal} {i}" for i in range(6) for animal in ("cat", "dog")], ["a", "b"] * 6
    alone, together = (cross_val_score(classifier, texts, y, cv=2, n_jobs=n, scoring="neg_log_loss") for n in (1, 2))
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_is_the_default(smollm2):
    texts = ["a thriller without thrills", "a wonderful film", "dull and slow", "funny and warm"] * 3
    classifier = DLNClassifier(steps=0, dev_size=0.5).fit(texts, ["negative", "positive"] * 6)
    assert classifier.get_params()["lm"] == "smollm2"
    assert classifier.predict_proba(texts[:2]).shape == (2, 2)
