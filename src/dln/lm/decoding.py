"""Batched decoding: many draws side by side, each as if it were alone.

Rows share forwards and a key-value cache; finished rows leave the batch. What keeps neighbours from
mattering is `token_choice`: every choice that the noise of a batch could have changed is settled on the
logits of a forward of that row's prefix alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dln.lm.base import Completion, Sampling
from dln.lm.batches import bucket
from dln.lm.causal_model import CausalModel
from dln.lm.token_choice import TokenChoice, choose
from dln.lm.tokens import Codec
from dln.numerics import Floats

__all__ = ["DrawRequest", "decode"]

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """One draw: the ids it continues and its seed."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(slots=True)
class _Row:
    """A draw in the making."""

    request: DrawRequest
    prompt_row: int
    ids: list[int] = field(default_factory=list[int])
    log_probs: list[float] = field(default_factory=list[float])
    sampling_log_probs: list[float] = field(default_factory=list[float])

    def add(self, choice: TokenChoice) -> None:
        self.ids.append(choice.token)
        self.log_probs.append(choice.log_prob)
        self.sampling_log_probs.append(choice.sampling_log_prob)


def decode(
    network: CausalModel,
    codec: Codec,
    requests: Sequence[DrawRequest],
    sampling: Sampling,
    *,
    batch_rows: int,
    batch_tokens: int,
    model: str,
) -> list[Completion]:
    """One completion per request; equal requests are drawn once.

    Args:
        network: gives the logits.
        codec: gives texts and terminators.
        requests: prompts and seeds.
        sampling: options of all draws.
        batch_rows: at most this many draws side by side.
        batch_tokens: at most this many padded prompt tokens in a batch.
        model: fingerprint written into the completions.
    """
    if sampling.temperature == 0:
        requests = [DrawRequest(request.prompt, 0) for request in requests]
    distinct = list(dict.fromkeys(requests))
    # Draws of one prompt are put side by side, so that they share its prefill.
    distinct.sort(key=lambda request: (-len(request.prompt), request.prompt))
    done: dict[DrawRequest, Completion] = {}
    with network.lock:
        for batch in bucket([len(request.prompt) for request in distinct], batch_tokens, batch_rows):
            chosen = [distinct[i] for i in batch]
            rows = network.halving(lambda part: _decode_batch(network, codec, part, sampling), chosen)
            done.update((row.request, _finish(codec, row, sampling, model)) for row in rows)
    return [done[request] for request in requests]


def _decode_batch(network: CausalModel, codec: Codec, requests: Sequence[DrawRequest], sampling: Sampling) -> list[_Row]:
    import torch

    prompts = list(dict.fromkeys(request.prompt for request in requests))
    rows = [_Row(request, prompts.index(request.prompt)) for request in requests]
    cache, mask, logits = network.prefill(prompts)
    active = rows
    # One prefill per prompt, copied to its draws.
    source = torch.tensor([row.prompt_row for row in rows], device=network.device)
    cache.reorder_cache(source)
    mask, logits = mask[source], logits[source]
    while True:
        for row, values in zip(active, logits.cpu().numpy(), strict=True):
            row.add(_choice(network, row, values.astype(np.float64), sampling))
        keep = [i for i, row in enumerate(active) if not _ended(codec, row, sampling)]
        if not keep:
            return rows
        if len(keep) < len(active):
            source = torch.tensor(keep, device=network.device)
            cache.reorder_cache(source)
            active, mask = [active[i] for i in keep], mask[source]
        mask = torch.cat([mask, mask.new_ones((len(active), 1))], dim=1)
        inputs = torch.tensor([[row.ids[-1]] for row in active], device=network.device)
        cache, logits = network.step(inputs, mask, cache)


def _choice(network: CausalModel, row: _Row, logits: Floats, sampling: Sampling) -> TokenChoice:
    position = len(row.ids)
    choice = choose(logits, sampling, row.request.seed, position, network.noise)
    network.counters.choices += 1
    if not choice.close:
        return choice
    # Noise of this batch's shape could have decided: ask for the logits that depend on the prefix alone.
    network.counters.close_choices += 1
    alone = network.next_logits((*row.request.prompt, *row.ids))
    return choose(alone, sampling, row.request.seed, position, 0.0)


def _ended(codec: Codec, row: _Row, sampling: Sampling) -> bool:
    if row.ids[-1] in codec.terminators or len(row.ids) >= sampling.max_tokens:
        return True
    # A character may still lack bytes: what stands for them is no text yet.
    return bool(sampling.stop) and _stop_at(codec.text(row.ids).rstrip(REPLACEMENT), sampling.stop) is not None


def _stop_at(text: str, stop: Sequence[str]) -> int | None:
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found) if found else None


def _finish(codec: Codec, row: _Row, sampling: Sampling, model: str) -> Completion:
    terminated = row.ids[-1] in codec.terminators
    ids = row.ids[:-1] if terminated else row.ids
    text = codec.text(ids)
    cut = _stop_at(text, sampling.stop)
    reason: Literal["stop", "length"] = "stop" if terminated or cut is not None else "length"
    count = len(ids)
    if cut is not None:
        text = text[:cut]
        count = codec.text_tokens(ids, text)
    return Completion(
        text,
        tuple(row.ids),
        tuple(row.log_probs),
        tuple(row.sampling_log_probs),
        text_tokens=count,
        finish_reason=reason,
        model=model,
    )
