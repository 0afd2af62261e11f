"""A causal language model in torch: forwards, the output head on chosen rows only, and what they cost.

The model's own forward is used as it is, so that whatever it does to its logits (scaling, soft capping) is
kept; only the rows that predict a wanted token are let through to its output head, and of these no more at a
time than `head_rows` says, because for a whole pack tokens × vocabulary would be far larger than all the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dln.errors import InputError
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["CausalModel", "Counters"]

T = TypeVar("T")
Rows = tuple["torch.Tensor", "torch.Tensor"]

# Largest difference of a logit between two batch shapes, with a margin: 7e-5 was measured in float32 (SmolLM2).
NOISE = {"float32": 4e-4, "float64": 1e-9, "bfloat16": 0.1, "float16": 0.02}

HEAD_VALUES_PER_TOKEN = 8192
"""Logits that are held at a time, per token of a scoring forward: 17 MB in float32 for forwards of 512 tokens."""


@dataclass(slots=True)
class Counters:
    """What a model did so far, padding aside.

    Attributes:
        forwards: calls of the model.
        asked: tokens of all scored sequences, as they were asked for.
        needed: distinct prefixes among them, counted within each window of requests.
        tokens: tokens fed, in scoring and sampling.
        choices: tokens drawn.
        close_choices: those that were settled by a forward of their prefix alone.
        out_of_memory_splits: how often a batch was halved.
        peak_pack_tokens: tokens of the largest scoring forward.
        peak_cached_tokens: tokens of the largest key-value cache, scoring or sampling.
        peak_head_rows: rows of the largest piece of logits.
    """

    forwards: int = 0
    asked: int = 0
    needed: int = 0
    tokens: int = 0
    choices: int = 0
    close_choices: int = 0
    out_of_memory_splits: int = 0
    peak_pack_tokens: int = 0
    peak_cached_tokens: int = 0
    peak_head_rows: int = 0

    def reached(self, *, pack_tokens: int = 0, cached_tokens: int = 0) -> None:
        """Note sizes that were reached."""
        self.peak_pack_tokens = max(self.peak_pack_tokens, pack_tokens)
        self.peak_cached_tokens = max(self.peak_cached_tokens, cached_tokens)


@dataclass(eq=False)
class CausalModel:
    """A loaded model: forwards from ids to logits, no text.

    Args:
        model: a transformers causal language model in evaluation mode.
        identity: digest of its configuration, weights and tokenizer.
        counters: what it did so far.
        fallbacks: why the shared-prefix methods cannot be used with this architecture, by method, once it was
            tried; None where they can (`scoring.why_plain`, `kv_cache.why_fixed_batches`).
    """

    model: Any
    identity: str
    counters: Counters = field(default_factory=Counters)
    fallbacks: dict[str, str | None] = field(default_factory=dict[str, "str | None"])

    def __post_init__(self) -> None:
        self.lock = RLock()
        parameter = next(iter(self.model.parameters()))
        self.device: torch.device = parameter.device
        self.mask_dtype: torch.dtype = parameter.dtype
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.noise = NOISE.get(self.dtype, 0.1)
        config = self.model.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        self.context_length = int(length) if length else None
        parameters = inspect.signature(self.model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # the argument has two spellings: releases of transformers and a checkpoint's own code differ in it
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._rows: Rows | None = None
        self._shown = 0  # how many of the wanted rows the model's own forward takes to its head
        self._hidden: torch.Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_rows)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def usual_batch_tokens(self) -> int:
        """Tokens per scoring forward: a CPU's caches like them small (measured), an accelerator large."""
        return 512 if self.device.type == "cpu" else 8192

    @property
    def usual_batch_rows(self) -> int:
        """Draws side by side: a step of 64 takes little longer than one of 32 (measured)."""
        return 64 if self.device.type == "cpu" else 128

    def head_rows(self, batch_tokens: int) -> int:
        """Rows of logits at a time: rows × vocabulary ≤ 8192 × batch_tokens, but at least one row."""
        return max(1, HEAD_VALUES_PER_TOKEN * batch_tokens // self.vocabulary)

    @cached_property
    def head_alone(self) -> bool:
        """Whether the model's logits are what its output head gives, without scaling or capping behind it."""
        with self.inference() as torch:
            size = min(8, self.vocabulary)
            rows = (torch.zeros(size, dtype=torch.long, device=self.device), torch.arange(size, device=self.device))
            inputs = torch.arange(size, device=self.device)[None]
            logits = self._call(rows, size, input_ids=inputs, use_cache=False).logits
            hidden, self._hidden = self._hidden, None
            return hidden is not None and bool(torch.equal(self._head(hidden), logits[0]))

    def next_logits(self, ids: Sequence[int]) -> Floats:
        """[V] logits after `ids`, from a forward of this sequence alone: a function of `ids` only."""
        with self.inference() as torch:
            _, slices = self.forward(
                (torch.tensor([0], device=self.device), torch.tensor([len(ids) - 1], device=self.device)),
                input_ids=torch.tensor([list(ids)], device=self.device),
                attention_mask=None,
                position_ids=torch.arange(len(ids), device=self.device)[None],
                use_cache=False,
            )
            self.counters.tokens += len(ids)
            return cast(Floats, next(slices)[0].double().cpu().numpy())

    def forward(
        self, rows: Rows, slice_rows: int | None = None, *, cache: Any = None, **inputs: Any
    ) -> tuple[Any, Iterator[torch.Tensor]]:
        """One forward: (key-value cache, float32 logits [r, V] of the wanted rows).

        Args:
            rows: batch and time indices [R] of the rows whose logits are wanted.
            slice_rows: the logits come in slices of at most this many rows; in one if None. A model whose head
                cannot be run alone is called once per slice, which only a forward without a cache allows.
            cache: key-value cache of the tokens before, which the model's own argument for it gets.
            inputs: what else the model takes.
        """
        count = len(rows[0])
        size = max(1, count if slice_rows is None else min(slice_rows, count))
        if size < count and not self.head_alone:
            if cache is not None:
                raise ValueError("this model's logits cannot be computed in slices with a cache")
            parts = [(rows[0][start : start + size], rows[1][start : start + size]) for start in range(0, count, size)]
            return None, (self._call(part, size, **inputs).logits[0].float() for part in parts)
        if cache is not None:
            inputs[self._cache_argument] = cache
        output = self._call(rows, 1 if size < count else count, **inputs)
        after = _cache_of(output) if inputs.get("use_cache") else None
        hidden, self._hidden = self._hidden, None
        self.counters.peak_head_rows = max(self.counters.peak_head_rows, size if count else 0)
        if size >= count or hidden is None:
            return after, iter([output.logits[0].float()])
        slices = (self._head(hidden[start : start + size]).float() for start in range(0, count, size))
        return after, slices

    def halving(self, run: Callable[[Sequence[Any]], list[T]], batch: Sequence[Any]) -> list[T]:
        """`run(batch)`; where the accelerator's memory does not suffice, in two halves, and so on."""
        import torch

        try:
            return run(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) < 2:
                raise self.too_large() from error
        # Outside the handler, or the traceback would hold the memory of the failed attempt.
        self.after_shortage()
        middle = len(batch) // 2
        return [*self.halving(run, batch[:middle]), *self.halving(run, batch[middle:])]

    def after_shortage(self) -> None:
        """Give freed memory back before a smaller attempt."""
        import torch

        torch.cuda.empty_cache()
        self.counters.out_of_memory_splits += 1

    def too_large(self) -> InputError:
        """What to raise where one request alone does not fit."""
        return InputError(
            "one request alone does not fit the accelerator's memory",
            where=self.device,
            fix="use a smaller model, dtype='bfloat16', a shorter context, or device='cpu'",
        )

    @contextmanager
    def inference(self) -> Generator[Any]:
        """The model's lock, without gradients."""
        import torch

        with self.lock, torch.inference_mode():
            yield torch

    def _call(self, rows: Rows, shown: int, **inputs: Any) -> Any:
        if not self._takes_positions:
            inputs.pop("position_ids", None)
        self._rows, self._shown = rows, shown
        try:
            return self.model(**inputs, return_dict=True)
        finally:
            self._rows = None
            self.counters.forwards += 1

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.get_output_embeddings()(hidden[None])[0]

    def _keep_rows(self, _module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Let only wanted rows [R, D] of the hidden states [B, T, D] through to the head, as [1, R, D]."""
        if self._rows is None:
            return inputs
        self._hidden = inputs[0][self._rows]
        return (self._hidden[None, : self._shown], *inputs[1:])


def _cache_of(output: Any) -> Any:
    """The key-value cache in a model's output, under either of its names."""
    cache = getattr(output, "cache", None)
    return getattr(output, "past_key_values", None) if cache is None else cache
