"""The rival: plain padded batches through transformers, as most users write it.

Scoring tokenises each (context, target) pair, pads a batch on the right, takes the logits of every token
and the log-softmax at the target's. Sampling pads on the left and calls transformers' own `generate`, with its
key-value cache within the call. Nothing is shared between rows, nothing is kept between calls. `deduplicate`
gives the variant that computes nothing twice that is equal as a whole: equal pairs once, and all labels of one token
from one forward of their context; it batches rows of like length.

Draws by transformers' own `generate`: one left-padded batch, its key-value cache, its stopping criteria.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dln.errors import InputError
from dln.lm.base import (
    Capabilities,
    Completion,
    NextRow,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
)
from dln.lm.local.engine import TransformersLM
from dln.lm.local.tokenizer import Codec
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["PlainLM", "generate"]


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


Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PlainLM:
    """The weights and tokenizer of an engine, used without its planner, cache and sampler.

    Args:
        engine: whose weights and tokenizer are used; labels and texts get the same ids.
        rows: pairs per scoring batch.
        deduplicate: compute equal rows once, sorted by length.
        sampling_rows: draws per call of `generate`; None takes as many as the engine has side by side.
    """

    engine: TransformersLM
    rows: int = 8
    deduplicate: bool = False
    sampling_rows: int | None = None

    @property
    def name(self) -> str:
        """Says that this is not the engine."""
        return f"plain batches of {self.engine.name}"

    @property
    def capabilities(self) -> Capabilities:
        """The engine's: the model is the same."""
        return self.engine.capabilities

    @property
    def codec(self) -> Codec:
        """The engine's tokenizer."""
        return self.engine.codec

    def with_rows(self, rows: int) -> PlainLM:
        """The same with another batch size."""
        return replace(self, rows=rows)

    def fingerprint(self) -> str:
        """The engine's: it is the same model, and what one draws the other scores on its ids."""
        return self.engine.fingerprint()

    def count_tokens(self, text: str) -> int:
        """As the engine counts."""
        return self.engine.count_tokens(text)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context by `generate`, some at a time, each batch seeded with its first seed."""
        prompts = [self._context(context) for context in contexts]
        draws: list[Completion] = []
        rows = self.sampling_rows or self.engine.batch_rows or self.engine.network.usual_batch_rows
        for start in range(0, len(prompts), rows):
            part = slice(start, start + rows)
            draws.extend(generate(self.engine, prompts[part], sampling, seeds[start], self.fingerprint()))
        return draws

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens, pair by pair."""
        pairs = [(self._context(c), self._target(t)) for c, t in zip(contexts, targets, strict=True)]
        scores = self._each(pairs, self._score)
        counts = [t.text_tokens if isinstance(t, Completion) else None for t in targets]
        return [
            TokenLogProbs(values, len(values) if count is None else count)
            for values, count in zip(scores, counts, strict=True)
        ]

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C]: a row per (context, label) pair; deduplicated, one per context where labels have one token each.

        Raises:
            InputError: a label begins another one, which plain batches would score as if it did not.
        """
        words = [self._target(label) for label in labels]
        for word in words:
            if any(other != word and other[: len(word)] == word for other in words):
                raise InputError("a label begins another label", where="labels", got=self.codec.text(word))
        encoded = [self._context(context) for context in contexts]
        if self.deduplicate and all(len(word) == 1 for word in words):
            first = [word[0] for word in words]
            return np.stack(self._each([(context, ()) for context in encoded], lambda part: self._last(part, first)))
        pairs = [(context, word) for context in encoded for word in words]
        return np.array([v.sum() for v in self._each(pairs, self._score)]).reshape(len(encoded), len(words))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """log p of the given tokens and the most probable ones, from the whole distribution of each context."""
        ids = list(self.engine.token_ids(tokens))
        whole = list(range(self.engine.network.vocabulary))
        rows: list[NextRow] = []
        for values in self._each([(self._context(c), ()) for c in contexts], lambda part: self._last(part, whole)):
            ranked = ((self.codec.token(i), float(values[i])) for i in np.argsort(-values, kind="stable").tolist())
            best = islice(((token, value) for token, value in ranked if token is not None), top)
            rows.append(NextRow(values[ids], -np.inf, tuple(best)))
        return NextTokens.of(rows, len(ids))

    def _context(self, context: str) -> Ids:
        return self.engine.codec.context_ids(context, self.engine.chat)

    def _target(self, target: Target) -> Ids:
        if isinstance(target, Completion) and target.token_ids is not None:
            return target.token_ids
        return self.codec.target_ids(str(target))

    def _each(
        self, pairs: list[tuple[Ids, Ids]], score: Callable[[list[tuple[Ids, Ids]]], list[Floats]]
    ) -> list[Floats]:
        chosen = pairs
        if self.deduplicate:
            chosen = sorted(set(pairs), key=lambda pair: len(pair[0]) + len(pair[1]))
        found: list[Floats] = []
        for start in range(0, len(chosen), self.rows):
            found.extend(score(chosen[start : start + self.rows]))
        if not self.deduplicate:
            return found
        known = dict(zip(chosen, found, strict=True))
        return [known[pair] for pair in pairs]

    def _score(self, pairs: list[tuple[Ids, Ids]]) -> list[Floats]:
        """log p of the target tokens of one batch."""
        import torch

        with torch.inference_mode():
            logits = self._logits([context + target for context, target in pairs])
            found: list[Floats] = []
            for row, (context, target) in zip(logits, pairs, strict=True):
                at = slice(len(context) - 1, len(context) + len(target) - 1)
                index = torch.tensor(target, dtype=torch.long, device=logits.device)[:, None]
                values = row[at].float().log_softmax(-1).gather(1, index)[:, 0]
                found.append(values.double().cpu().numpy())
            return found

    def _last(self, pairs: list[tuple[Ids, Ids]], tokens: list[int]) -> list[Floats]:
        """log p of `tokens` after each context of one batch."""
        import torch

        with torch.inference_mode():
            logits = self._logits([context for context, _ in pairs])
            last = torch.tensor([len(context) - 1 for context, _ in pairs], device=logits.device)
            rows = logits[torch.arange(len(pairs), device=logits.device), last].float().log_softmax(-1)
            return list(rows[:, tokens].double().cpu().numpy())

    def _logits(self, sequences: list[Ids]) -> torch.Tensor:
        import torch

        width = max(map(len, sequences))
        inputs = torch.zeros((len(sequences), width), dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for i, row in enumerate(sequences):
            inputs[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        device = self.engine.network.device
        return self.engine.network.model(
            input_ids=inputs.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits
