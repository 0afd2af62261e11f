"""Draws by transformers' own `generate`: one left-padded batch, its key-value cache, its stopping criteria."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from dln.lm.base import Completion, Sampling
from dln.lm.transformers import TransformersLM

__all__ = ["generate"]


def generate(
    engine: TransformersLM, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, model: str
) -> list[Completion]:
    """One draw per prompt.

    Args:
        engine: whose weights and tokenizer are used.
        prompts: ids to be continued.
        sampling: options of all draws.
        seed: of torch's generator, for the whole batch.
        model: fingerprint written into the completions.
    """
    import torch
    from transformers import GenerationConfig

    network, codec = engine.network, engine.codec
    width = max(map(len, prompts))
    inputs = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for i, row in enumerate(prompts):
        inputs[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    ends = sorted(codec.terminators)
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        stop_strings=list(sampling.stop) or None,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **options,
    )
    torch.manual_seed(seed)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = network.model.generate(
            input_ids=inputs.to(network.device),
            attention_mask=mask.to(network.device),
            generation_config=config,
            tokenizer=codec.tokenizer,
        )
        drawn = output.sequences[:, width:]
        log_probs = _log_probs(output.logits, drawn)
        sampling_log_probs = _log_probs(output.scores, drawn)
    return [
        _completion(engine, drawn[i].tolist(), log_probs[i].tolist(), sampling_log_probs[i].tolist(), sampling, model)
        for i in range(len(prompts))
    ]


def _log_probs(logits: Sequence[Any], drawn: Any) -> Any:
    """[B, T] log p of the drawn tokens; logits come one step at a time."""
    import torch

    steps = [step.float().log_softmax(-1).gather(1, drawn[:, t, None])[:, 0] for t, step in enumerate(logits)]
    return torch.stack(steps, dim=1)


def _completion(
    engine: TransformersLM,
    ids: list[int],
    log_probs: list[float],
    sampling_log_probs: list[float],
    sampling: Sampling,
    model: str,
) -> Completion:
    """A draw cut behind its terminator or before its stop string."""
    codec = engine.codec
    end = next((i for i, token in enumerate(ids) if token in codec.terminators), None)
    text_ids = ids if end is None else ids[:end]
    kept = text_ids if end is None else ids[: end + 1]
    text = codec.text(text_ids)
    found = [at for at in map(text.find, sampling.stop) if at >= 0]
    if found:
        text = text[: min(found)]
        # the draw ends with the token that completes the stop string; behind it `generate` only fills up
        whole = codec.text_tokens(text_ids, text)
        while not any(stop in codec.text(text_ids[:whole]) for stop in sampling.stop):
            whole += 1
        kept = text_ids[:whole]
        text_ids = text_ids[: codec.text_tokens(kept, text)]
    reason: Literal["stop", "length"] = "stop" if end is not None or found else "length"
    return Completion(
        text,
        tuple(kept),
        tuple(log_probs[: len(kept)]),
        tuple(sampling_log_probs[: len(kept)]) if sampling.temperature > 0 else (0.0,) * len(kept),
        text_tokens=len(text_ids),
        finish_reason=reason,
        model=model,
    )
