"""A causal language model in torch: forwards, the output head on chosen rows only, and what they cost.

The model's own forward is used as it is, so that whatever it does to its logits (scaling, soft capping) is
kept; only the rows that predict a wanted token are let through to its output head, because for a whole batch
tokens × vocabulary would be far larger than all the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

from dln.errors import InputError
from dln.lm.batches import bucket
from dln.lm.packed import answer_packed, probe
from dln.lm.plan import Plan
from dln.lm.query import Answer, Query, read
from dln.numerics import Floats

if TYPE_CHECKING:
    import torch

__all__ = ["CausalModel", "Counters"]

T = TypeVar("T")
MAX_BATCH_ROWS = 4096

# Largest difference of a logit between two batch shapes, with a margin: 7e-5 was measured in float32 (SmolLM2).
NOISE = {"float32": 4e-4, "float64": 1e-9, "bfloat16": 0.1, "float16": 0.02}


@dataclass(slots=True)
class Counters:
    """What a model did so far: forwards, tokens asked and tokens fed (padding aside), and rare events."""

    forwards: int = 0
    asked: int = 0
    tokens: int = 0
    choices: int = 0
    close_choices: int = 0
    out_of_memory_splits: int = 0


@dataclass(eq=False)
class CausalModel:
    """A loaded model: forwards from ids to logits, no text.

    Args:
        model: a transformers causal language model in evaluation mode.
        identity: digest of its configuration, weights and tokenizer.
    """

    model: Any
    identity: str
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.lock = RLock()
        parameter = next(iter(self.model.parameters()))
        self.device: torch.device = parameter.device
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.noise = NOISE.get(self.dtype, 0.1)
        config = self.model.config.get_text_config()
        length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        self.context_length = int(length) if length else None
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None
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
        """Draws side by side."""
        return 32 if self.device.type == "cpu" else 128

    def answer(self, queries: Sequence[Query], batch_tokens: int) -> list[Answer]:
        """Answer the queries, every distinct prefix evaluated once.

        A model that does not take tree masks (see `why_plain`) gets length-bucketed batches instead, in
        which equal queries are computed once.
        """
        with self.lock:
            self.counters.asked += sum(len(query.ids) for query in queries)
            if self.why_plain is None:
                return self._answer_packed(queries, batch_tokens)
            distinct = list(dict.fromkeys(queries))
            answers: dict[Query, Answer] = {}
            for batch in bucket([len(query.ids) for query in distinct], batch_tokens, MAX_BATCH_ROWS):
                chosen = [distinct[i] for i in batch]
                answers.update(zip(chosen, self.halving(self._answer_batch, chosen), strict=True))
        return [answers[query] for query in queries]

    @cached_property
    def why_plain(self) -> str | None:
        """Why this model is scored in plain batches; None where shared prefixes are evaluated once."""
        with self._inference():
            return probe(self._forward, self.vocabulary, self.device, self.model.dtype, 2.5 * self.noise)

    def next_logits(self, ids: Sequence[int]) -> Floats:
        """[V] logits after `ids`, from a forward of this sequence alone: a function of `ids` only."""
        with self._inference() as torch:
            inputs = torch.tensor([list(ids)], device=self.device)
            rows = (torch.tensor([0], device=self.device), torch.tensor([len(ids) - 1], device=self.device))
            positions = torch.arange(len(ids), device=self.device)[None]
            output = self._forward(rows, input_ids=inputs, attention_mask=None, position_ids=positions, use_cache=False)
            self.counters.tokens += len(ids)
            return _float64(output.logits[0, 0].float())

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Feed prompts of unequal length, padded on the left; (cache, mask [B, T], logits [B, V] after each).

        Padding is on the left because sliding-window caches count slots: those of a row's last tokens
        must be neighbours of the tokens to come.
        """
        with self._inference() as torch:
            width = max(len(prompt) for prompt in prompts)
            inputs = torch.zeros((len(prompts), width), dtype=torch.long)
            mask = torch.zeros_like(inputs)
            for i, prompt in enumerate(prompts):
                inputs[i, width - len(prompt) :] = torch.tensor(list(prompt))
                mask[i, width - len(prompt) :] = 1
            mask = mask.to(self.device)
            cache, logits = self.step(inputs.to(self.device), mask, None)
            self.counters.tokens += sum(len(prompt) for prompt in prompts) - len(prompts) * width
            return cache, mask, logits

    def step(self, inputs: torch.Tensor, mask: torch.Tensor, cache: Any) -> tuple[Any, torch.Tensor]:
        """Feed the next ids [B, t]; `mask` [B, past + t] says which slots hold tokens. (cache, logits [B, V])."""
        with self._inference() as torch:
            size, new = inputs.shape
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
            rows = (torch.arange(size, device=self.device), torch.full((size,), new - 1, device=self.device))
            output = self._forward(
                rows,
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            self.counters.tokens += size * new
            return output.past_key_values, output.logits[0].float()

    def halving(self, run: Callable[[Sequence[Any]], list[T]], batch: Sequence[Any]) -> list[T]:
        """`run(batch)`; where the accelerator's memory does not suffice, in two halves, and so on."""
        import torch

        try:
            return run(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) < 2:
                raise self._too_large() from error
        # Outside the handler, or the traceback would hold the memory of the failed attempt.
        torch.cuda.empty_cache()
        self.counters.out_of_memory_splits += 1
        middle = len(batch) // 2
        return [*self.halving(run, batch[:middle]), *self.halving(run, batch[middle:])]

    def _answer_packed(self, queries: Sequence[Query], budget: int) -> list[Answer]:
        """Answers from the prefix trie; with smaller packs where the accelerator's memory does not suffice."""
        import torch

        plan = Plan.of([query.ids for query in queries])
        try:
            with self._inference():
                answers = answer_packed(self._forward, plan, queries, budget, self.device, self.model.dtype)
        except torch.OutOfMemoryError as error:
            if budget < 64:
                raise self._too_large() from error
        else:
            self.counters.tokens += plan.size
            return answers
        # Outside the handler, or the traceback would hold the memory of the failed attempt.
        torch.cuda.empty_cache()
        self.counters.out_of_memory_splits += 1
        return self._answer_packed(queries, budget // 2)

    def _too_large(self) -> InputError:
        return InputError(
            "one request alone does not fit the accelerator's memory",
            where=self.device,
            fix="use a smaller model, dtype='bfloat16', a shorter context, or device='cpu'",
        )

    def _answer_batch(self, batch: Sequence[Query]) -> list[Answer]:
        with self._inference() as torch:
            width = max(len(query.ids) for query in batch)
            inputs = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros_like(inputs)
            for i, query in enumerate(batch):
                inputs[i, : len(query.ids)] = torch.tensor(query.ids)
                mask[i, : len(query.ids)] = 1
            rows = [(i, position) for i, query in enumerate(batch) for position in query.positions]
            output = self._forward(
                cast(Any, tuple(torch.tensor(rows, device=self.device).T)),
                input_ids=inputs.to(self.device),
                attention_mask=None if bool(mask.all()) else mask.to(self.device),
                position_ids=torch.arange(width, device=self.device).expand(len(batch), width),
                use_cache=False,
            )
            self.counters.tokens += sum(len(query.ids) for query in batch)
            questions = [question for query in batch for question in query.questions]
            found = iter(read(output.logits[0].float(), range(len(rows)), questions))
            return [Answer.of([next(found) for _ in query.positions]) for query in batch]

    @contextmanager
    def _inference(self) -> Generator[Any]:
        import torch

        with self.lock, torch.inference_mode():
            yield torch

    def _forward(self, rows: tuple[torch.Tensor, torch.Tensor], **inputs: Any) -> Any:
        if not self._takes_positions:
            inputs.pop("position_ids")
        self._rows = rows
        try:
            return self.model(**inputs, return_dict=True)
        finally:
            self._rows = None
            self.counters.forwards += 1

    def _keep_rows(self, _module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Let only the wanted rows [R, D] of the hidden states [B, T, D] through to the head, as [1, R, D]."""
        return inputs if self._rows is None else (inputs[0][self._rows][None], *inputs[1:])


def _float64(values: torch.Tensor) -> Floats:
    return cast(Floats, values.double().cpu().numpy())
