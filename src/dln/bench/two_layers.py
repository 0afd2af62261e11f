"""A DLN-2 step up to its M-step: a network, sampled hidden texts with posterior weights, candidate prompts.

The hidden texts are the model's own draws (K per input, up to a given length) under the paper's hidden layer, the
E-step weighs them, and both layers have N candidate prompts: plain instructions, the present one first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dln.bench.prompts import instructions
from dln.bench.subject import Subject
from dln.bench.workload import Labels, Texts, Workload
from dln.infer.candidates import Candidates
from dln.infer.hidden import HiddenRequest, PriorProposal
from dln.infer.hidden_draws import HiddenDraw, draw_together
from dln.infer.posterior import EStep, Posterior
from dln.infer.weights import Weigher
from dln.keys import Key
from dln.lm.base import LanguageModel, Sampling, Target
from dln.nn import ChoiceLayer, LanguageLayer, LayerInput, Sequential
from dln.nn.sequential import AnyLayer, Trace
from dln.train import resolve_options
from dln.train.assemble import algorithm
from dln.train.layout import DECOMPOSE

__all__ = ["TwoLayers", "two_layer_network", "two_layers"]

"""The paper's initial prompt of the hidden layer."""


@dataclass(frozen=True, eq=False)
class TwoLayers:
    """What the M-steps of a two-layer network start from.

    Attributes:
        subject: the data.
        network: with the present prompts.
        trace: the forward pass on the batch.
        targets: [B] the wanted labels.
        draws: [B][K] the hidden texts as they were drawn.
        posterior: hidden texts with their weights.
        candidates: per layer the N candidate layers, the present one first.
        hidden_tokens: mean length of the hidden texts, in tokens.
    """

    subject: Subject
    network: Sequential
    trace: Trace
    targets: tuple[str, ...]
    draws: tuple[tuple[HiddenDraw, ...], ...]
    posterior: Posterior
    candidates: tuple[tuple[AnyLayer, ...], ...]
    hidden_tokens: float

    def situation(self, position: int, batch: int | None = None, prompts: int | None = None) -> Candidates:
        """The candidates of one layer as an objective takes them, on the first `batch` examples."""
        counted = self.posterior.scored & (np.arange(len(self.trace)) < (batch or len(self.trace)))
        return Candidates(
            key=Key(0).child("bench", position),
            layers=self.candidates[position][:prompts],
            position=position,
            depth=len(self.network),
            trace=self.trace,
            posterior=self.posterior,
            correct=np.ones(len(self.trace), dtype=np.bool_),
            counted=counted,
            step=0,
            above=self.network.layers[position + 1 :],
        )

    def weighed(self, weighting: Weigher) -> TwoLayers:
        """The same hidden texts under other weights."""
        return replace(self, posterior=_weighed(self.network, self.trace, self.draws, self.targets, weighting))

    def workload(self, prompts: int | None = None, batch: int | None = None, hidden: int | None = None) -> Workload:
        """Everything both M-steps would score in full: every hidden text, whatever its weight."""
        size = batch or len(self.trace)
        proposals = [[draw.completion for draw in row[:hidden]] for row in self.draws[:size]]
        texts: list[tuple[str, Target]] = []
        below, output = (layers[:prompts] for layers in self.candidates)
        for layer in below:
            for context, row in zip(layer.contexts(self.trace.inputs(0)[:size]), proposals, strict=True):
                texts.extend((context, h) for h in row)
        read = [LayerInput(x, h.text) for x, row in zip(self.trace.x, proposals, strict=False) for h in row]
        contexts = [context for layer in output for context in layer.contexts(read)]
        last = output[0]
        words = last.labels if isinstance(last, ChoiceLayer) else ()
        labels = tuple(last.target_prefix + word for word in words)
        count = len(proposals[0])
        return Workload(
            name=f"DLN-2, C {len(labels)}",
            about=(
                f"N {len(below)} × B {size} × K {count}, {self.subject.name}; hidden texts of "
                f"{self.hidden_tokens:.0f} tokens drawn by the model, both layers' candidates are instructions"
            ),
            parts=(
                Texts(tuple(c for c, _ in texts), tuple(t for _, t in texts)),
                Labels(tuple(contexts), labels),
            ),
        )


def two_layer_network(lm: LanguageModel, subject: Subject, hidden_tokens: int) -> Sequential:
    """The paper's network of two layers: a hidden one with the prompt behind the input, a residual output layer."""
    return Sequential(
        LanguageLayer(lm, "think_steps", DECOMPOSE, Sampling(max_tokens=hidden_tokens)),
        ChoiceLayer(lm, "classify_residual", subject.instruction, subject.labels),
    )


def two_layers(
    lm: LanguageModel, subject: Subject, prompts: int, batch: int, hidden: int, hidden_tokens: int
) -> TwoLayers:
    """Draw the hidden texts and weigh them.

    Args:
        lm: the model.
        subject: the data.
        prompts: N candidates per layer, the present prompt among them.
        batch: B inputs.
        hidden: K texts per input.
        hidden_tokens: a draw ends after so many tokens.
    """
    network = two_layer_network(lm, subject, hidden_tokens)
    examples = subject.batch(batch)
    key = Key(0)
    trace = network.sample(key.child("forward"), [example.input for example in examples], temperature=0.0)
    targets = tuple(example.target for example in examples)
    request = HiddenRequest(
        network.layers[0],
        network.layers[1],
        tuple(trace.inputs(0)),
        trace.outputs(0),
        targets,
        targets,
    )
    draws = tuple(map(tuple, draw_together(PriorProposal()(key.child("hidden"), request, hidden))))
    unpruned = algorithm(
        resolve_options("default", {"inference": {"prune": 0.0}}), lambda p, y: p == y, network=network
    )
    return TwoLayers(
        subject=subject,
        network=network,
        trace=trace,
        targets=targets,
        draws=draws,
        posterior=_weighed(network, trace, draws, targets, unpruned.e_step.weighting),
        candidates=tuple(_candidates(layer, prompts) for layer in network.layers),
        hidden_tokens=float(np.mean([len(draw.completion.token_ids or ()) for row in draws for draw in row])),
    )


@dataclass(frozen=True)
class _Drawn:
    """A proposal that proposes what was drawn before."""

    draws: tuple[tuple[HiddenDraw, ...], ...]

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> list[list[HiddenDraw]]:
        del key, request, num
        return [list(row) for row in self.draws]


def _weighed(
    network: Sequential,
    trace: Trace,
    draws: tuple[tuple[HiddenDraw, ...], ...],
    targets: tuple[str, ...],
    weighting: Weigher,
) -> Posterior:
    e_step = EStep(_Drawn(draws), weighting, len(draws[0]), "log_prob", include_forward=False)
    return e_step(Key(0), network, trace, targets)


def _candidates(layer: AnyLayer, count: int) -> tuple[AnyLayer, ...]:
    others = instructions(layer.prompt.instruction, count - 1)
    return (layer, *(layer.with_prompt(prompt) for prompt in others))
