"""Several networks that answer together, served as one model."""

from __future__ import annotations

from typing import Any

import pytest

from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.nn.ensemble import Ensemble
from dln.random import Key
from serve_clients import refused, running

X = "it snows"
LABELS = ("good", "bad")


def member(seed: int) -> Sequential:
    lm = TableLM.random(["a light day", "rain again", " good", " bad", "good", "bad"], seed)
    return Sequential(
        LanguageLayer(lm, "think", f"Think of the weather, {seed}."),
        ChoiceLayer(lm, "classify_residual", "Good or bad?", LABELS),
    )


TOGETHER = Ensemble([member(1), member(2), member(3)], [0.2, 0.5, 0.3])


def writers(*answers: str) -> Ensemble:
    one = [Sequential(LanguageLayer(TableLM.from_table({}, {a: 1.0}), "answer", "Count.")) for a in answers]
    return Ensemble(one, [0.3, 0.3, 0.4])


def test_answers_are_the_predictions_of_all_together():
    with running(TOGETHER, "weather") as client:
        answer = client.completions.create(model="weather", prompt=["sun", X], logprobs=2)
        sampled: Any = client.completions.create(model="weather", prompt=X, seed=4, extra_body={"samples": 3})
        listed: Any = client.models.list().data[0]
    for choice, expected in zip(answer.choices, TOGETHER.predict_many(["sun", X]), strict=True):
        told: Any = choice
        assert choice.text == expected.label
        assert told.dln["probabilities"] == pytest.approx(expected.probabilities)
        assert told.dln["hidden"] == list(expected.hidden[0])
        assert [(m["weight"], m["label"]) for m in told.dln["members"]] == [
            (vote.weight, vote.label) for vote in expected.members
        ]
    expected = TOGETHER.predict(X, samples=3, seed=4)
    assert sampled.choices[0].dln["probabilities"] == pytest.approx(expected.probabilities)
    assert "an ensemble of 3 networks of 2 layers" in str(listed)


def test_a_temperature_draws_a_member_by_its_weight_and_then_its_layers():
    with running(TOGETHER, "weather") as client:
        answer: Any = client.completions.create(model="weather", prompt=X, temperature=1.0, seed=3, n=6)
    for i, choice in enumerate(answer.choices):
        drawn = TOGETHER.pick(Key(3 + i).child("member"))
        trace = drawn.sample(Key(3 + i), [X], 1.0)
        assert (choice.text, choice.dln["hidden"]) == (trace.predictions[0], [trace.hidden[0][0].text])


def test_free_texts_are_voted_for_and_cut_for_every_member():
    with running(writers("one two three", "one two four", "five six seven"), "count") as client:
        whole = client.completions.create(model="count", prompt=X, max_tokens=9).choices[0].text
        cut = client.completions.create(model="count", prompt=X, max_tokens=2).choices[0].text
        error = refused(client.completions.create, model="count", prompt=X, max_tokens=0)
    assert whole == "five six seven"  # the heaviest of three different answers
    assert cut == "one two"  # cut, two of them say the same
    assert (error.status_code, error.param) == (400, "max_tokens")


def test_a_label_is_not_cut():
    with running(TOGETHER, "weather") as client:
        assert client.completions.create(model="weather", prompt=X, max_tokens=1).choices[0].text in LABELS
        error = refused(client.completions.create, model="weather", prompt=X, max_tokens=0)
    assert (error.status_code, error.param) == (400, "max_tokens")
