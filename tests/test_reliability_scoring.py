"""Servers that cannot score: networks of one and two layers still learn, and the run says in which scoring mode."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli_shell import Shell
from dln.lm.base import Sampling, ScoringMode
from dln.lm.load import load_lm
from dln.train.events import Evaluated, StepDone
from dln.train.run import current, of_kind, read_events
from fault_language import Language, LanguageLM
from fault_replies import Manners
from fault_server import FaultServer
from fault_training import STEPS, agreed, shell, train

PLAIN: dict[str, Any] = {
    "prompt_log_probs": "refused",
    "echo": "refused",
    "tokenizer": False,
    "token_ids": False,
    "chosen_ids": False,
}
SERVERS: dict[str, tuple[Manners, ScoringMode]] = {
    "likeliest tokens only": (Manners(**PLAIN, top_log_probs=5), "top-k"),
    "prompt log-probs ignored": (Manners(**{**PLAIN, "prompt_log_probs": "ignored", "echo": "ignored"}), "top-k"),
    "no log-probs at all": (Manners(**PLAIN, top_log_probs=0), "Monte-Carlo"),
}
CONTEXTS = [f"Input: box {i} of the tiles broke\nLabel:" for i in range(3)]
LABELS = [" yes", " no", " order"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return shell(monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        pytest.param(kind, layers, marks=() if layers == 1 + i % 2 else pytest.mark.slow)
        for i, kind in enumerate(SERVERS)
        for layers in (1, 2)
    ],
)
def test_networks_learn_in_weaker_scoring_modes_and_the_run_says_which_and_what_was_lost(
    cli: Shell, kind: str, layers: int
):
    manners, mode = SERVERS[kind]
    with FaultServer(manners) as server:
        words, kind_of = ("--lm-option", "label_draws=4"), "openai-compatible/tiny"
        done, again = (train(cli, server.base_url, run, *words, layers=layers, lm=kind_of) for run in ("low", "again"))
    assert (done.code, again.code) == (0, 0), done.err + again.err
    run = cli.folder / "runs/low"
    events = current(read_events(run / "events.jsonl"))
    steps = of_kind(events, StepDone)
    assert len(steps) == STEPS
    assert of_kind(events, Evaluated)
    for step in steps:
        assert step.scoring_modes is not None
        assert step.scoring_modes.output == mode
        assert step.scoring_modes.lost
        if layers == 2:
            assert step.scoring_modes.weights == "answer likelihood"
            assert any("weighed by log p of the wanted output" in line for line in step.scoring_modes.lost)
            assert step.elbo is None  # no bound is claimed where there is none
    assert any(record.candidates for step in steps for record in step.layers)
    recorded = yaml.safe_load((run / "run.yaml").read_text("utf-8"))["scoring_modes"]
    assert recorded["output"] == mode
    shown = html.unescape((run / "report.html").read_text("utf-8"))
    assert mode in shown
    for line in recorded["lost"]:
        assert line[:60] in shown
    assert agreed(run) == agreed(cli.folder / "runs/again")  # seeds are honoured, so it is reproducible


def test_label_masses_of_the_likeliest_tokens_are_right_or_censored():
    manners = Manners(**PLAIN, top_log_probs=20)
    with FaultServer(manners) as server:
        lm = load_lm("openai-compatible/tiny", base_url=server.base_url)
        assert lm.capabilities.label_scoring == "top-k"
        masses = lm.choice_log_probs(CONTEXTS, LABELS)
    truth = LanguageLM(Language()).choice_log_probs(CONTEXTS, LABELS)
    for context, got, right in zip(CONTEXTS, masses, truth, strict=True):
        row = np.sort(Language().rows(Language().encode(context))[-1])[::-1]
        for value, wanted in zip(got, right, strict=True):
            if wanted >= row[19]:
                assert abs(value - wanted) < 1e-6
            else:
                assert wanted <= value <= row[19] + 1e-9  # censored: no more is known, and no less is claimed


def test_counted_label_masses_approach_the_truth():
    with FaultServer(Manners(**PLAIN, top_log_probs=0)) as server:
        lm = load_lm("openai-compatible/tiny", base_url=server.base_url, label_draws=400)
        assert lm.capabilities.label_scoring == "Monte-Carlo"
        masses = np.exp(lm.choice_log_probs(CONTEXTS[:1], LABELS))[0]
    language, answer = Language(), Sampling(temperature=1.0, max_tokens=11)
    texts = [language.draw(language.encode(CONTEXTS[0]), answer, seed).text.strip() for seed in range(1000)]
    shares = [np.mean([label.strip() in text.split()[:1] for text in texts]) for label in LABELS]
    assert masses == pytest.approx(shares, abs=0.1)  # four standard errors of 400 draws


def test_ignored_seeds_are_noticed():
    with FaultServer(Manners(seeds=False)) as server:
        lm: Any = load_lm("vllm/tiny", base_url=server.base_url)
        assert lm.report.seeds == "ignored"
        assert any("seed" in line for line in lm.report.stays)
        assert lm.capabilities.label_scoring == "target scoring"
    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url)
        assert lm.report.seeds == "honoured"


@pytest.mark.parametrize(
    ("manners", "mode"),
    [
        (Manners(), "target scoring"),
        (Manners(zero_means_one=True), "target scoring"),
        (Manners(prompt_log_probs="refused"), "prompt log-probs"),
        (Manners(prompt_log_probs="ignored"), "prompt log-probs"),
        (Manners(prompt_log_probs="ignored", zero_means_one=True), "prompt log-probs"),
        (Manners(prompt_log_probs="refused", tokenizer=False), "prompt log-probs"),
        (Manners(prompt_log_probs="ignored", echo="ignored"), "forced decoding"),
        (Manners(prompt_log_probs="refused", echo="refused"), "forced decoding"),
        (Manners(prompt_log_probs="ignored", echo="ignored", tokenizer=False, token_ids=False), "accuracy"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_texts_are_scored_by_the_best_scoring_mode_that_tells_the_truth(manners: Manners, mode: ScoringMode):
    truth = LanguageLM(manners.language)
    targets = [" yes sir no", " deep thought", " order"]
    with FaultServer(manners) as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url)
        assert lm.capabilities.text_scoring == mode
        assert lm.capabilities.scores_targets == (mode != "accuracy")
        if lm.capabilities.scores_targets:
            got, wanted = lm.log_prob(CONTEXTS, targets), truth.log_prob(CONTEXTS, targets)
            for one, two in zip(got, wanted, strict=True):
                assert one.values == pytest.approx(two.values, abs=1e-9)
        masses = lm.choice_log_probs(CONTEXTS, LABELS)
        exact = truth.choice_log_probs(CONTEXTS, LABELS)
        assert (masses >= exact - 1e-6).all()  # what is not among the likeliest tokens is censored: never below
        if lm.capabilities.label_scoring != "top-k":
            assert masses == pytest.approx(exact, abs=1e-6)
        draws = lm.sample(CONTEXTS, Sampling(temperature=1.0, max_tokens=3), [1, 2, 3])
        if lm.capabilities.scores_targets:
            for draw, score in zip(draws, lm.log_prob(CONTEXTS, draws), strict=True):
                assert draw.log_probs is None or score.values == pytest.approx(draw.log_probs, abs=1e-9)


def test_records_of_scoring_modes_are_plain_values(cli: Shell):
    with FaultServer(Manners(**PLAIN, top_log_probs=5)) as server:
        assert train(cli, server.base_url, "low", "--no-test", layers=1, lm="openai-compatible/tiny").code == 0
    lines = (cli.folder / "runs/low/events.jsonl").read_text("utf-8").splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds[0] == "started"
    assert kinds.count("step") == STEPS
