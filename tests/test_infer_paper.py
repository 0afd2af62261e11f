"""The quantities of the paper's Algorithm 2 on a real model, against plain transformers calls."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from dln.infer import vi
from dln.keys import Key
from dln.lm.base import Sampling
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.nn.layer import LayerInput
from dln.train.assemble import algorithm
from dln.train.options import resolve_options

pytestmark = pytest.mark.model

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

    def label_log_prob(self, context: str, labels: list[str], label: str) -> float:
        scores = [
            self.token_log_probs(context, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])).sum()
            for text in labels
        ]
        return float(scores[labels.index(label)] - np.logaddexp.reduce(scores))


def test_algorithm_2_agrees_with_plain_transformers(smollm2):
    labels = ["subjective", "objective"]
    net = Sequential(
        LanguageLayer(smollm2, "think_steps", "Decompose the problem to make it simpler:", Sampling(max_tokens=12)),
        ChoiceLayer(smollm2, "classify_residual_answer", "Is it subjective or objective?", labels),
    )
    changes = {"inference": {"num_hidden": 2, "num_prompts": 2, "prompt_tokens": 16, "exploration": 0.0}}
    options = resolve_options("paper", changes)
    paper = algorithm(options, lambda p, y: p == y)
    _, info = vi.update(vi.init(net), vi.Batch(X, Y), Key(3), paper)
    plain = Plain(smollm2)
    first, last = net.layers
    level = info.posterior.hidden[0]

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
