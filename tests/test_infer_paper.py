"""The quantities of the paper's Algorithm 2 on a real model, against plain transformers calls."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import build_tiny_model
from dln.infer import vi
from dln.infer.prompts import Proposal, screen
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.nn import ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.nn.layers import LayerInput
from dln.random import Key
from dln.train.build import algorithm
from dln.train.options import resolve_options

X = (
    "the plot moves along like a tired old mule",
    "a young woman returns to her village after ten years",
    "an utterly charming little film",
)
Y = ("subjective", "objective", "subjective")


class Plain:
    """log p of given ids after a context, and label distributions, one plain forward for each distinct sequence."""

    def __init__(self, lm) -> None:
        self.model = lm.network.model
        self.tokenizer = lm.codec.tokenizer
        self.token_log_probs = functools.cache(self._token_log_probs)

    def _token_log_probs(self, context: str, ids: tuple[int, ...]) -> np.ndarray:
        start = self.tokenizer(context)["input_ids"]
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*start, *ids]])).logits[0, len(start) - 1 :].double().log_softmax(-1)
        return np.array([logits[i, token].item() for i, token in enumerate(ids)])

    def mean(self, context: str, h) -> float:
        """Mean over the text's tokens; a draw that is nothing but its terminator is that one token."""
        return float(self.token_log_probs(context, tuple(h.token_ids))[: h.text_tokens or None].mean())

    def label_log_probs(self, context: str, labels: list[str]) -> np.ndarray:
        scores = np.array(
            [
                self.token_log_probs(context, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])).sum()
                for text in labels
            ]
        )
        return scores - np.logaddexp.reduce(scores)

    def label_log_prob(self, context: str, labels: list[str], label: str) -> float:
        return float(self.label_log_probs(context, labels)[labels.index(label)])


class Written:
    """Proposes given instructions, so that each layer has candidates that differ."""

    def __call__(self, key, layer, feedback, num) -> list[Proposal]:
        written = (
            ("Name the words that show an opinion.", "Describe the tone of the sentence.")
            if isinstance(layer, LanguageLayer)
            else ("Answer subjective for an opinion, objective for a fact.", "Label:")
        )
        return [Proposal(Prompt(text), "written") for text in written[:num]]


@pytest.fixture(params=["tiny", pytest.param("smollm2", marks=[pytest.mark.model, pytest.mark.slow])])
def lm(request, tmp_path):
    """A random model that reads long contexts, or the embedded one."""
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    return load_lm(f"hf/{build_tiny_model(tmp_path, context_length=4096)}", device="cpu")


def test_algorithm_2_agrees_with_plain_transformers(lm):
    labels = ["subjective", "objective"]
    net = Sequential(
        LanguageLayer(lm, "think_steps", "Decompose the problem to make it simpler:", Sampling(max_tokens=12)),
        ChoiceLayer(lm, "classify_residual_answer", "Is it subjective or objective?", labels),
    )
    strength, trust = 0.5, 5.0
    changes = {
        "inference": {"num_hidden": 2, "num_prompts": 2, "exploration": strength, "trust_factor": trust},
    }
    options = resolve_options("paper", changes)
    paper = algorithm(options, lambda p, y: p == y)
    paper = replace(paper, m_step=replace(paper.m_step, proposal=Written()))
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(3), paper)
    plain = Plain(lm)
    first, last = net.layers
    level = info.posterior.hidden[0]

    # K draws per example and not ĥ
    assert level.alpha.shape == (len(X), 2)
    assert "forward" not in {source for row in level.sources for source in row}

    # α_k = log p(h_k | F(x, π0)), mean over the text's tokens; β_k = log p(y | F_r(h_k, x, π1)); q = softmax(α + β)
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        for k, h in enumerate(level.proposals[i]):
            context = first.contexts([LayerInput(x, x)])[0]
            assert level.alpha[i, k] == pytest.approx(plain.mean(context, h), abs=1e-3)
            beta = plain.label_log_prob(last.contexts([LayerInput(x, h.text)])[0], labels, y)
            assert level.beta[i, k] == pytest.approx(beta, abs=1e-3)
        logits = level.alpha[i] + level.beta[i]
        assert level.weights[i] == pytest.approx(np.exp(logits - np.logaddexp.reduce(logits)), abs=1e-3)

    # s0_n = Σ_k q_k log p(h_k | F(x, π0_n)),  s1_n = Σ_k q_k log p(y | F_r(h_k, x, π1_n)), mean over the batch
    for layer_info in info.layers:
        assert len(layer_info.layers) == 3
        for n, layer in enumerate(layer_info.layers):
            total = 0.0
            for i, (x, y) in enumerate(zip(X, Y, strict=True)):
                for k, h in enumerate(level.proposals[i]):
                    if layer_info.position == 0:
                        score = plain.mean(layer.contexts([LayerInput(x, x)])[0], h)
                    else:
                        score = plain.label_log_prob(layer.contexts([LayerInput(x, h.text)])[0], labels, y)
                    total += level.weights[i, k] * score
            assert layer_info.objective[n] == pytest.approx(total / len(X), abs=1e-3)

    # exploration, at step 0: λ/B Σ_{i: ŷ_i ≠ y_i} log p(ĥ_i | x_i, π0_n)
    # trust region: trust_factor times the mean over i of KL( p(·|ĥ_i, π1) ‖ p(·|ĥ_i, π1_n) )
    def answers(layer) -> np.ndarray:
        read = [LayerInput(x, h.text) for x, h in zip(X, info.trace.hidden[0], strict=True)]
        return np.stack([plain.label_log_probs(context, labels) for context in layer.contexts(read)])

    old = answers(last)
    wrong = [labels[best] != y for best, y in zip(old.argmax(axis=1), Y, strict=True)]
    assert any(wrong)
    for layer_info in info.layers:
        for n, layer in enumerate(layer_info.layers):
            if layer_info.position == 0:
                contexts = layer.contexts([LayerInput(x, x) for x in X])
                astray = [
                    plain.mean(context, h)
                    for context, h, bad in zip(contexts, info.trace.hidden[0], wrong, strict=True)
                    if bad
                ]
                penalty = strength * sum(astray) / len(X)
            else:
                penalty = trust * (np.exp(old) * (old - answers(layer))).sum(axis=1).mean()
            assert layer_info.penalties[n] == pytest.approx(penalty, abs=1e-3)
        assert layer_info.scores == pytest.approx(layer_info.objective - layer_info.penalties)
        assert layer_info.winner == int(np.argmax(layer_info.scores))
        assert np.ptp(layer_info.penalties) > 0


def test_no_published_best_prompt_is_cut_or_dropped_by_the_preset(smollm2):
    """The nine best prompts of the original's search over DLN-1, as tokens of the embedded model."""
    path = Path(__file__).resolve().parents[2] / "shared" / "original" / "one-layer-dln-hp-search-result.json"
    if not path.is_file():
        pytest.skip(f"the original's search results are not at {path}")
    best = [task["best_weights"].strip() for task in json.loads(path.read_text()).values()]
    assert len(best) == 9
    options = resolve_options("paper").inference
    layer = ChoiceLayer(smollm2, "classify_answer", "Classify.", ["yes", "no"])
    proposals = [Proposal(Prompt(text), "rewrite") for text in best]
    kept, dropped = screen(proposals, layer, options.max_prompt_tokens)
    assert kept == proposals
    assert not dropped
    assert max(map(smollm2.count_tokens, best)) < options.prompt_tokens  # with its end
