"""Decoding of models whose caches know no tree masks: fixed batches, padded on the left.

Sliding windows and recurrent states belong to a whole row, so that nothing can join a running batch. Draws
of one prompt still branch from one prefill, and finished draws leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dln.lm.base import Sampling
from dln.lm.draws import Draw, take_tokens

if TYPE_CHECKING:
    import torch

    from dln.lm.causal_model import CausalModel

__all__ = ["decode_plain"]


def decode_plain(model: CausalModel, draws: Sequence[Draw], sampling: Sampling) -> list[Draw]:
    """Take all `draws` of one batch to their end, from wherever they are; returns those that were not there yet."""
    draws = [draw for draw in draws if not draw.ended]  # after a shortage of memory, some may be
    if not draws:
        return []
    with model.inference() as torch:
        prompts = list(dict.fromkeys(draw.prefix for draw in draws))
        cache, mask, logits = _prefill(model, prompts)
        # One prefill per prompt, copied to its draws.
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        source = torch.tensor([numbers[draw.prefix] for draw in draws], device=model.device)
        cache.reorder_cache(source)
        mask, logits = mask[source], logits[source]
        active = list(draws)
        while True:
            take_tokens(model, active, logits, sampling)
            keep = [i for i, draw in enumerate(active) if not draw.ended]
            if not keep:
                return list(draws)
            if len(keep) < len(active):
                source = torch.tensor(keep, device=model.device)
                cache.reorder_cache(source)
                active, mask = [active[i] for i in keep], mask[source]
            mask = torch.cat([mask, mask.new_ones((len(active), 1))], dim=1)
            inputs = torch.tensor([[draw.ids[-1]] for draw in active], device=model.device)
            model.counters.tokens += len(active)
            cache, logits = _step(model, inputs, mask, cache)


def _prefill(model: CausalModel, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Feed prompts of unequal length; (cache, mask [B, T], logits [B, V] after each).

    Padding is on the left because sliding-window caches count slots: those of a row's last tokens must be
    neighbours of the tokens to come.
    """
    import torch

    width = max(len(prompt) for prompt in prompts)
    inputs = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for i, prompt in enumerate(prompts):
        inputs[i, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, width - len(prompt) :] = 1
    mask = mask.to(model.device)
    model.counters.tokens += sum(len(prompt) for prompt in prompts)
    cache, logits = _step(model, inputs.to(model.device), mask, None)
    return cache, mask, logits


def _step(model: CausalModel, inputs: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[Any, torch.Tensor]:
    """Feed the next ids [B, t]; `mask` [B, past + t] says which slots hold tokens. (cache, logits [B, V])."""
    import torch

    size, new = inputs.shape
    cache, slices = model.forward(
        (torch.arange(size, device=model.device), torch.full((size,), new - 1, device=model.device)),
        input_ids=inputs,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, -new:],
        cache=cache,
        use_cache=True,
    )
    model.counters.reached(cached_tokens=int(mask.numel()))
    return cache, next(slices)
