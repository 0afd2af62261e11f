"""Draws in the making: the tokens so far, whether they are at an end, and the completion that comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dln.lm.base import Completion, Sampling
from dln.lm.stop_search import StopSearch, stop_at
from dln.lm.token_choice import TokenChoice, choose, choose_each
from dln.lm.tokens import Codec

if TYPE_CHECKING:
    import torch

    from dln.lm.causal_model import CausalModel

__all__ = ["Draw", "DrawRequest", "finish", "take_tokens"]


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """One draw: the ids it continues and its seed."""

    prompt: tuple[int, ...]
    seed: int


class Draw:
    """A draw in the making.

    Args:
        request: what is drawn.
        sampling: how it is drawn.
        codec: gives texts and terminators.
    """

    def __init__(self, request: DrawRequest, sampling: Sampling, codec: Codec) -> None:
        self.request = request
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.sampling_log_probs: list[float] = []
        self.ended = False
        self._max_tokens = sampling.max_tokens
        self._terminators = codec.terminators
        self._search = StopSearch(sampling.stop, codec.text)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The prompt and the tokens so far."""
        return (*self.request.prompt, *self.ids)

    def add(self, choice: TokenChoice) -> None:
        """Take the next token."""
        self.ids.append(choice.token)
        self.log_probs.append(choice.log_prob)
        self.sampling_log_probs.append(choice.sampling_log_prob)
        self.ended = (
            choice.token in self._terminators
            or len(self.ids) >= self._max_tokens
            or self._search.add(choice.token)  # last, for a terminator is no text
        )


def take_tokens(model: CausalModel, draws: Sequence[Draw], logits: torch.Tensor, sampling: Sampling) -> None:
    """Choose the next token of each draw from its row of logits [B, V].

    What the noise of this batch's shape could have decided is chosen from the logits of a forward of the
    draw's prefix alone, which depend on nothing else.
    """
    seeds, positions = [draw.request.seed for draw in draws], [len(draw.ids) for draw in draws]
    choices = choose_each(logits, sampling, seeds, positions, model.noise)
    model.counters.choices += len(draws)
    for draw, choice in zip(draws, choices, strict=True):
        if choice.close:
            model.counters.close_choices += 1
            alone = model.next_logits(draw.prefix)
            draw.add(choose(alone, sampling, draw.request.seed, len(draw.ids), 0.0))
        else:
            draw.add(choice)


def finish(codec: Codec, draw: Draw, sampling: Sampling, model: str) -> Completion:
    """The completion of an ended draw; `model` is the fingerprint written into it."""
    terminated = draw.ids[-1] in codec.terminators
    ids = draw.ids[:-1] if terminated else draw.ids
    text = codec.text(ids)
    cut = stop_at(text, sampling.stop)
    reason: Literal["stop", "length"] = "stop" if terminated or cut is not None else "length"
    count = len(ids)
    if cut is not None:
        text = text[:cut]
        count = codec.text_tokens(ids, text)
    return Completion(
        text,
        tuple(draw.ids),
        tuple(draw.log_probs),
        tuple(draw.sampling_log_probs),
        text_tokens=count,
        finish_reason=reason,
        model=model,
    )
