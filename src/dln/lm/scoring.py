"""Scoring in bounded memory: answers to one window of queries after another.

Where the model takes tree masks (see `packed`), each distinct prefix of a window is fed once, and a window
goes on where the one before it ended. Otherwise a window is fed in plain length-bucketed batches, in which
equal queries are computed once.

Beyond requests and results, memory is that of one window of ids and of one forward, whatever the number of
requests. With b = `batch_tokens`, L = the longest sequence, V = vocabulary, d bytes per weight:

    ids       ≤ 2 × 512 b tokens                     (about 36 bytes each)
    cache     ≤ 3 (L + b) tokens of keys and values  (the last pack's, the path taken from it, the new pack's)
    mask      ≤ b (L + b) (1 + d) bytes
    logits    ≤ 8192 b values, or V if that is more  (4 bytes each; three copies while they are read)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dln.lm.batches import bucket
from dln.lm.packed import Feed, answer_packed, plan_after, why_plain
from dln.lm.plan import Plan
from dln.lm.query import Answer, Ids, Query, Question, read
from dln.lm.stream import stream

if TYPE_CHECKING:
    import torch

    from dln.lm.causal_model import CausalModel

__all__ = ["Scoring", "answer"]

MAX_BATCH_ROWS = 4096


@dataclass(eq=False)
class Scoring:
    """Answers windows of queries; what the last one left is used by the next.

    Args:
        model: gives the logits.
        batch_tokens: tokens per forward, which bounds memory.
    """

    model: CausalModel
    batch_tokens: int

    def __post_init__(self) -> None:
        self._feed = Feed(self.model, self.batch_tokens)

    @property
    def shares(self) -> bool:
        """Whether prefixes are shared; if not, only requests of like length gain from one another."""
        return why_plain(self.model) is None

    def answer(self, queries: Sequence[Query], following: Ids = ()) -> list[Answer]:
        """Answers to one window of queries; `following` is the first sequence of the next one.

        Raises:
            InputError: one query alone does not fit the accelerator's memory.
        """
        counters = self.model.counters
        with self.model.inference():
            counters.asked += sum(len(query.ids) for query in queries)
            if self.shares:
                return self._packed(queries, following)
            counters.needed += Plan.of([query.ids for query in queries]).size
            distinct = list(dict.fromkeys(queries))
            answers: dict[Query, Answer] = {}
            for batch in bucket([len(query.ids) for query in distinct], self.batch_tokens, MAX_BATCH_ROWS):
                chosen = [distinct[i] for i in batch]
                answers.update(zip(chosen, self.model.halving(self._batch, chosen), strict=True))
        return [answers[query] for query in queries]

    def _packed(self, queries: Sequence[Query], following: Ids) -> list[Answer]:
        """Answers from the prefix trie; with smaller packs where the accelerator's memory does not suffice."""
        import torch

        feed, counters = self._feed, self.model.counters
        plan = plan_after(feed.held, queries, following)
        try:
            answers = answer_packed(feed, plan, queries)
        except torch.OutOfMemoryError as error:
            if feed.budget < 64:
                raise self.model.too_large() from error
        else:
            counters.needed += plan.size
            counters.tokens += plan.size
            counters.reached(pack_tokens=feed.largest_pack, cached_tokens=feed.largest_cache)
            return answers
        # Outside the handler, or the traceback would hold the memory of the failed attempt.
        self._feed = Feed(self.model, feed.budget // 2)
        del feed
        self.model.after_shortage()
        return self._packed(queries, following)

    def _batch(self, batch: Sequence[Query]) -> list[Answer]:
        import torch

        model = self.model
        width = max(len(query.ids) for query in batch)
        inputs = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for i, query in enumerate(batch):
            inputs[i, : len(query.ids)] = torch.tensor(query.ids)
            mask[i, : len(query.ids)] = 1
        rows = [(i, position) for i, query in enumerate(batch) for position in query.positions]
        questions = [question for query in batch for question in query.questions]
        _, slices = model.forward(
            cast(Any, tuple(torch.tensor(rows, device=model.device).T)),
            model.head_rows(self.batch_tokens),
            input_ids=inputs.to(model.device),
            attention_mask=None if bool(mask.all()) else mask.to(model.device),
            position_ids=torch.arange(width, device=model.device).expand(len(batch), width),
            use_cache=False,
        )
        model.counters.tokens += int(mask.sum())
        model.counters.reached(pack_tokens=inputs.numel())
        found = iter([one for part, asked in _sliced(slices, questions) for one in read(part, range(len(part)), asked)])
        return [Answer.of([next(found) for _ in query.positions]) for query in batch]


def answer(model: CausalModel, queries: Sequence[Query], batch_tokens: int) -> list[Answer]:
    """Answer the queries, every distinct prefix evaluated once (see `Scoring`)."""
    answers: list[Answer | None] = [None] * len(queries)
    lengths = [len(query.ids) for query in queries]
    keys = [query.ids for query in queries]
    for index, found in stream(Scoring(model, batch_tokens), keys, lengths, lambda i: [queries[i]]):
        answers[index] = found[0]
    return cast("list[Answer]", answers)


def _sliced(slices: Iterator[torch.Tensor], questions: list[Question]) -> Iterator[tuple[torch.Tensor, list[Question]]]:
    done = 0
    for part in slices:
        yield part, questions[done : done + len(part)]
        done += len(part)
