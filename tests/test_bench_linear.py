"""Linear baselines and sentence encoders: probabilities, the choice of C, and the rows of reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cli_fake_engine
from cli_shell import Shell, mail_csv
from dln.data import Dataset, load_task
from dln.errors import InputError
from dln.experiments import encoders
from dln.experiments.cells import Bench, Cells
from dln.experiments.encoders import PACKAGE, MeanPooling, WordVectors, installed_encoder, sentence_encoder
from dln.experiments.linear import (
    GRID,
    EncoderRegression,
    TfidfRegression,
    cheap_evaluations,
    encoded,
    fit_linear,
    tfidf,
)
from dln.experiments.method import EvaluationProtocol, Setup
from dln.experiments.methods import METHODS
from dln.train.events import Evaluated
from dln.train.run import of_kind, read_events

LABELS = ("cat", "dog", "owl")
SMALL = EvaluationProtocol(train_size=60, dev_size=40, test_size=30)


def animals(n: int, seed: int, labels=LABELS) -> Dataset:
    """Sentences with a word that tells the class, and noise."""
    rng = np.random.default_rng(seed)
    words = {"cat": "meow", "dog": "woof", "owl": "hoot"}
    picked = [labels[i % len(labels)] for i in range(n)]
    return Dataset.from_pairs(
        [(f"{words[label] if rng.random() < 0.8 else 'hm'} {rng.integers(1000)}", label) for label in picked], LABELS
    )


@pytest.fixture(scope="module")
def task():
    return SMALL.examples(load_task("questions"), 13)


def test_probabilities_are_a_distribution_and_the_words_are_learnt():
    predictor, score, c = fit_linear(tfidf, animals(60, 0), animals(30, 1), LABELS)
    p = predictor.probabilities(["meow", "woof woof", "something else"])
    assert p.sum(axis=1) == pytest.approx(1)
    assert p.argmax(axis=1)[:2].tolist() == [0, 1]
    assert c in GRID
    assert score > np.log(1 / 3)
    assert [one.label for one in predictor.predict_many(["hoot"])] == ["owl"]


def test_c_has_the_highest_likelihood_on_dev_under_a_fit_to_train_and_both_are_in_the_last_fit():
    from sklearn.linear_model import LogisticRegression

    train, dev = animals(45, 2), animals(30, 3)
    features = tfidf(train.inputs)
    x, d = features(train.inputs), features(dev.inputs)

    def log_likelihood(c: float) -> float:
        model = LogisticRegression(C=c, max_iter=3000).fit(x, train.targets)
        p = model.predict_proba(d)
        return float(np.log([row[LABELS.index(y)] for row, y in zip(p, dev.targets, strict=True)]).mean())

    scores = {c: log_likelihood(c) for c in GRID}
    predictor, score, c = fit_linear(tfidf, train, dev, LABELS)
    assert scores[c] == pytest.approx(max(scores.values()), abs=1e-3)
    assert score == pytest.approx(scores[c], abs=1e-3)
    assert predictor.counts.sum() == len(train) + len(dev)


def test_permuted_labels_permute_the_probabilities():
    order = (2, 0, 1)
    permuted = tuple(LABELS[i] for i in order)
    one, _, _ = fit_linear(tfidf, animals(60, 0), animals(30, 1), LABELS)
    other, _, _ = fit_linear(tfidf, animals(60, 0), animals(30, 1), permuted)
    x = ["meow 3", "woof", "hm"]
    assert other.probabilities(x) == pytest.approx(one.probabilities(x)[:, list(order)], abs=2e-3)


def test_a_label_without_examples_has_the_mass_of_add_one_smoothing():
    two = ("cat", "dog")
    predictor, score, _ = fit_linear(tfidf, animals(40, 0, two), animals(20, 1, two), LABELS)
    p = predictor.probabilities(["meow", "hm"])
    assert p[:, 2] == pytest.approx(1 / (60 + 3))
    assert p.sum(axis=1) == pytest.approx(1)
    assert np.isfinite(score)
    # a class that dev has and train lacks
    assert np.isfinite(fit_linear(tfidf, animals(40, 0, two), animals(30, 1), LABELS)[1])


def test_one_class_gives_its_smoothed_frequency_and_signs_alone_are_features():
    predictor, _, _ = fit_linear(tfidf, animals(10, 0, ("dog",)), animals(10, 1, ("dog",)), LABELS)
    assert predictor.probabilities(["meow"])[0] == pytest.approx([1 / 23, 21 / 23, 1 / 23])
    signs = Dataset.from_pairs([("!!!" if i % 2 else "???", LABELS[i % 2]) for i in range(20)], LABELS)
    assert fit_linear(tfidf, signs, signs, LABELS)[0].predict_many(["!!!"])[0].label == "dog"


def test_sentences_are_encoded_once():
    asked: list[str] = []

    def encoder(texts):
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    train, dev = animals(20, 0), animals(10, 1)
    fit_linear(encoded(encoder), train, dev, LABELS)
    assert sorted(asked) == sorted({*train.inputs, *dev.inputs})


def test_the_rows_need_no_model_cost_no_tokens_and_have_probabilities(task, tmp_path):
    fake = cli_fake_engine.load("1", "fake/1", {})
    protocol = replace(SMALL, encoder="words")
    methods = [METHODS["tfidf-lr"], METHODS["encoder-lr"]]
    bench = Bench(fake, [load_task("questions")], methods, (13,), protocol, Cells(tmp_path, protocol.record("x")))
    for result in bench.run(lambda *_: None):
        assert result.train.tokens == result.test.tokens == 0
        assert result.accuracy > 0.3  # of eight classes
        assert result.log_likelihood is not None
        assert result.log_likelihood < 0
        assert result.dev_score is not None


def test_a_method_without_its_encoder_says_how_to_install_it(task, monkeypatch):
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    assert installed_encoder() is None
    with pytest.raises(InputError, match=r"dln\[encoder\]"):
        EncoderRegression()(Setup(task, cli_fake_engine.load("1", "fake/1", {}), 13))
    with pytest.raises(InputError, match="classification only"):
        TfidfRegression()(Setup(replace(task, labels=None, **free(task)), cli_fake_engine.load("1", "fake/1", {}), 13))


def free(task):
    return {part: getattr(task, part).with_labels(None) for part in ("train", "dev", "test")}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random sentence encoder in the layout of sentence-transformers."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(97 + i) for i in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kinds = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(kinds), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}', encoding="utf-8")
    return folder


def test_mean_pooling_is_the_normalized_mean_of_the_last_states_whatever_the_batch(bert: Path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["a cat", "b", "the owl of the night " * 9, "dog", *(f"{'xyz' * i}" for i in range(40))]
    encoder = sentence_encoder(str(bert))
    assert isinstance(encoder, MeanPooling)
    found = encoder(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, truncation=True, max_length=12, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0).numpy()
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)


def test_folders_with_another_pipeline_are_left_to_sentence_transformers(bert: Path, tmp_path: Path, monkeypatch):
    other = tmp_path / "cls"
    other.mkdir()
    for path in bert.rglob("*"):
        if path.is_file():
            target = other / path.relative_to(bert)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="sentence-transformers"):
        sentence_encoder(str(other))


@pytest.mark.skipif(installed_encoder() is None, reason=f"{PACKAGE} is not installed")
def test_the_packaged_encoder_finds_the_similar_sentence():
    vectors = sentence_encoder(PACKAGE)(["The cat sleeps.", "A kitten is asleep.", "Interest rates rose."])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_word_vectors_are_the_usual_encoder_of_kate(task):
    fake = cli_fake_engine.load("1", "fake/1", {})
    plain = METHODS["kate-5"](Setup(task, fake, 13)).predictor.predict_many(task.test.inputs[:5])
    words = METHODS["kate-5"](Setup(task, fake, 13, encoder=WordVectors())).predictor.predict_many(task.test.inputs[:5])
    assert plain == words


def test_cheap_baselines_are_measured_on_the_test_examples(task):
    found = cheap_evaluations(task)
    assert [len(one.examples) for one in found.values()] == [30, 30]
    label = max(task.train.counts(), key=lambda name: task.train.counts()[name])
    assert found["majority class"].accuracy.mean == task.test.counts()[label] / len(task.test)
    assert found["TF-IDF + logistic regression"].log_likelihood > found["majority class"].log_likelihood
    assert cheap_evaluations(replace(task, labels=None, **free(task))) == {}


def test_training_ends_with_the_baselines_in_table_record_and_report(monkeypatch, tmp_path, capsys):
    cli = Shell(monkeypatch, tmp_path, capsys)
    mail_csv(tmp_path / "mail.csv")
    done = cli(
        "train",
        "--csv",
        "mail.csv",
        "--lm",
        "fake/1/words",
        "--steps",
        1,
        "--run-dir",
        "run",
        "--set",
        "inference.num_prompts=2",
    )
    assert done.code == 0, done.err
    assert "TF-IDF + logistic regression" in done.out
    assert "gain over TF-IDF" in done.out
    (event,) = of_kind(read_events(tmp_path / "run" / "events.jsonl"), Evaluated)
    assert [one.name for one in event.baselines] == [
        *("majority class", "TF-IDF + logistic regression", "initial prompt, label words fitted")
    ]
    linear = event.baselines[1]
    assert linear.result.n == event.after.n
    assert linear.difference[0] == pytest.approx(event.after.accuracy - linear.result.accuracy)
    assert 0 <= linear.p_value <= 1
    assert "TF-IDF + logistic regression" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
