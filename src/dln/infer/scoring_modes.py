"""Which scoring modes a network's models allow, and what is lost in the weaker ones.

Inference asks two things of its models: log p of a hidden text (to weigh it, and to judge the prompts of
hidden layers) and log p of the wanted output. A model behind an API often answers only the second, or
neither. Training goes on all the same:

    hidden texts   target scoring, prompt log-probs, forced decoding
                   else: weights by the answer alone, and prompts are judged by what is drawn from them (Monte-Carlo)
    outputs        the same, top-k, Monte-Carlo
                   else: the reward of the answer

A hidden text is weighed by its own log-probability and by that of the output above it, or by what stands
for them: see `dln.infer.estep.Weighting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dln.lm.base import ScoringMode
from dln.nn.layers import Layer
from dln.nn.sequential import Sequential

__all__ = ["ScoringModes", "scores_outputs"]

CENSORED: dict[ScoringMode, str] = {
    "top-k": "labels beyond the model's most probable tokens are only known to be less probable than those",
    "Monte-Carlo": "label probabilities are frequencies among draws, and as coarse as those",
}


@dataclass(frozen=True)
class ScoringModes:
    """The scoring mode of each part of a step.

    Attributes:
        weights: how the weights of hidden texts are made: by the mode that scores the texts; by "answer
            likelihood", log p of the wanted output, or the "reward" of the answer where texts cannot be scored; by
            "prior and reward" where texts can be scored and the output cannot, or where a metric is the likelihood.
            None without hidden layers.
        hidden: how prompts of hidden layers are judged; None without hidden layers.
        output: how prompts of the output layer are judged.
        lost: what the weaker modes cost, in sentences; empty where nothing is lost.
    """

    weights: str | None = "target scoring"
    hidden: str | None = "target scoring"
    output: str = "target scoring"
    lost: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Sequential) -> ScoringModes:
        """The best scoring modes that the capabilities of the network's models allow."""
        top, output = network.layers[-1], network.layers[-1].scoring_mode
        below = [layer for layer in network.layers[:-1] if not layer.deterministic]
        unscored = [layer for layer in below if not scores_outputs(layer)]
        lost = _lost_output(top, output)
        if not below:
            return cls(None, None, output, lost)
        if not unscored and output != "accuracy":
            worst = below[0].scoring_mode
            return cls(worst, worst, output, lost)
        judged = "accuracy" if output == "accuracy" else "Monte-Carlo"
        answer = "reward" if output == "accuracy" else "answer likelihood"
        weights = answer if unscored else f"prior and {answer}"
        return cls(weights, judged, output, (*_lost_hidden(unscored, judged), *lost))

    def by_reward(self, network: Sequential) -> ScoringModes:
        """The same where a metric is the likelihood, whatever the models allow."""
        below = [layer for layer in network.layers[:-1] if not layer.deterministic]
        unscored = [layer for layer in below if not scores_outputs(layer)]
        lost = _lost_hidden(unscored, "accuracy") if unscored else ()
        if not below:
            return ScoringModes(None, None, "reward")
        if not unscored:
            return ScoringModes("prior and reward", below[0].scoring_mode, "reward")
        if len(unscored) == len(below):
            return ScoringModes("reward", "reward", "reward", lost)
        mode = next(layer.scoring_mode for layer in below if layer not in unscored)
        return ScoringModes("reward, and prior where texts can be scored", f"{mode}, else reward", "reward", lost)

    @property
    def scores_hidden(self) -> bool:
        """Whether hidden texts, if there are any, are weighed and judged by log-probabilities of their own."""
        return self.hidden not in ("Monte-Carlo", "accuracy")

    @property
    def scores(self) -> bool:
        """Whether the wanted output has a log-probability."""
        return self.output != "accuracy"

    def without(self, what: str) -> ScoringModes:
        """The same with one more thing lost."""
        return replace(self, lost=(*self.lost, what))


def scores_outputs(layer: Layer) -> bool:
    """Whether outputs of the layer have log-probabilities: its labels, or any text."""
    return layer.scoring_mode != "accuracy"


def _names(layers: Sequence[Layer]) -> str:
    return ", ".join(dict.fromkeys(m.name for layer in layers for m in layer.models)) or ", ".join(map(repr, layers))


def _lost_hidden(unscored: Sequence[Layer], judged: str) -> tuple[str, ...]:
    names = _names(unscored)
    why = f"{names} cannot score given texts" if names else "the output has no log-probability"
    rewarded = judged == "accuracy"
    answer = "the metric of the answer that they lead to, exp(R/τ)" if rewarded else "log p of the wanted output"
    how = "the mean metric of the answers" if rewarded else "log p of the wanted output"
    return (
        f"hidden texts are weighed by {answer}" + (", not by their own probability" if unscored else "") + f": {why}",
        f"prompts of hidden layers are judged by {how} after texts drawn from them, which is noisier than their scores",
        "the evidence lower bound is not known",
    )


def _lost_output(layer: Layer, mode: ScoringMode) -> tuple[str, ...]:
    if mode == "accuracy":
        return (
            f"outputs are judged by accuracy: {_names([layer])} returns no log-probability of them, "
            "and prompts tie more often",
        )
    return (CENSORED[mode],) if mode in CENSORED else ()
