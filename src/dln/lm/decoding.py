"""Batched decoding: many draws side by side, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

from dln.lm.base import Completion, Sampling
from dln.lm.batches import bucket
from dln.lm.causal_model import CausalModel
from dln.lm.draws import Draw, DrawRequest, finish
from dln.lm.plain_decoding import decode_plain
from dln.lm.tokens import Codec

__all__ = ["decode"]


def decode(
    model: CausalModel,
    codec: Codec,
    requests: Sequence[DrawRequest],
    sampling: Sampling,
    *,
    batch_rows: int,
    batch_tokens: int,
    fingerprint: str,
) -> list[Completion]:
    """One completion per request; equal requests are drawn once.

    Args:
        model: gives the logits.
        codec: gives texts and terminators.
        requests: prompts and seeds.
        sampling: options of all draws.
        batch_rows: at most this many draws side by side.
        batch_tokens: at most this many padded prompt tokens in a batch.
        fingerprint: written into the completions.
    """
    if sampling.temperature == 0:
        requests = [DrawRequest(request.prompt, 0) for request in requests]
    distinct = list(dict.fromkeys(requests))
    # Draws of one prompt are put side by side, so that they share its prefill.
    distinct.sort(key=lambda request: (-len(request.prompt), request.prompt))
    done: dict[DrawRequest, Completion] = {}

    def run(batch: Sequence[DrawRequest]) -> list[Draw]:
        draws = [Draw(request, sampling, codec) for request in batch]
        decode_plain(model, draws, sampling)
        return draws

    with model.lock:
        for batch in bucket([len(request.prompt) for request in distinct], batch_tokens, batch_rows):
            for draw in model.halving(run, [distinct[i] for i in batch]):
                done[draw.request] = finish(codec, draw, sampling, fingerprint)
    return [done[request] for request in requests]
