"""Scoring in bounded memory: answers to one window of queries after another.

Where the model supports tree masks, each distinct prefix of a window is fed once and a window continues where the one
before it ended. Otherwise a window is fed in length-bucketed batches, in which equal queries are computed once.

Beyond requests and results, memory is that of one window of ids and of one forward, whatever the number of requests.
With b = `batch_tokens`, L = the longest sequence, V = vocabulary, d bytes per weight:

    ids, top  ≤ 2 × 512 b tokens                     (about 36 bytes each, 100 of a top list)
    cache     ≤ 3 (L + b) tokens of keys and values  (the last pack's, the path taken from it, the new pack's)
    mask      ≤ b (L + b) (1 + d) bytes
    logits    ≤ 8192 b values, or V if that is more  (4 bytes each; three copies while they are read)

**Tree masks.** A pack (see `plan`) is one row of tokens with explicit positions and a mask: a node sees its ancestors
and itself. Ancestors from earlier packs are cached keys and values of one path; the path to the last node is passed
on to the next plan. Sliding windows, recurrent and hybrid layers do not support such masks: `why_plain` compares with
a plain forward once after loading, and the engine uses plain batches where the two differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dln.lm.base import bucket
from dln.lm.local.attention import additive_mask, attending, blocks_of
from dln.lm.local.plan import Integers, Plan
from dln.lm.local.query import Answer, Found, Ids, Query, Question, read, stream

if TYPE_CHECKING:
    import torch

    from dln.lm.local.model import CausalModel

__all__ = ["Feed", "Held", "Scoring", "answer", "why_plain"]


@dataclass(frozen=True, eq=False)
class Held:
    """A path whose keys and values are still there.

    Attributes:
        ids: its tokens.
        cache: keys and values of these tokens and others.
        where: [len(ids)] where in the cache each token's keys and values are.
    """

    ids: Ids
    cache: Any
    where: Integers


NOTHING = Held((), None, np.zeros(0, dtype=np.int64))


@dataclass(eq=False)
class Feed:
    """Feeds plans to a model; afterwards, `held` is the path to begin the next plan with.

    Args:
        model: gives the logits.
        budget: tokens per pack.
        held: where the last plan ended.
    """

    model: CausalModel
    budget: int
    held: Held = NOTHING
    largest_pack: int = 0
    largest_cache: int = 0

    def __call__(self, plan: Plan, wanted: Sequence[int]) -> Iterator[tuple[Integers, torch.Tensor]]:
        """Feed the packs of `plan`, made after `held.ids[: len(plan.before)]`.

        Yields:
            Numbers of some wanted nodes, and the logits [R, V] after them. All wanted nodes come once.
        """
        import torch

        model = self.model
        nodes = np.asarray(wanted, dtype=np.int64)
        slice_rows = model.head_rows(self.budget)
        cache = self.held.cache
        where, ids = self.held.where[: len(plan.before)], np.array(plan.before, dtype=np.int64)
        first = len(plan.before)
        for pack in plan.packs(self.budget, nodes, None if model.head_alone else slice_rows):
            past = _carried(cache, where[pack.carry], model.device)
            ids = np.concatenate([ids[pack.carry], pack.tokens])
            end = first + len(pack.tokens)
            here = nodes[np.searchsorted(nodes, first) : np.searchsorted(nodes, end)]
            rows = torch.as_tensor(here - first, device=model.device)
            with attending(model.model, blocks_of(pack.mask, model.mask_dtype, model.device)):
                cache, slices = model.forward(
                    (torch.zeros_like(rows), rows),
                    slice_rows,
                    input_ids=torch.from_numpy(pack.tokens)[None].to(model.device),
                    position_ids=torch.from_numpy(pack.positions)[None].to(model.device),
                    attention_mask=additive_mask(pack.mask, model.mask_dtype, model.device),
                    cache=past,
                    use_cache=True,
                )
            where = np.arange(len(ids))  # `carry` of the next pack counts in (past ⧺ tokens)
            first = end
            self.largest_pack = max(self.largest_pack, len(pack.tokens))
            self.largest_cache = max(self.largest_cache, len(ids))
            self.held = Held(tuple(ids[pack.path].tolist()), cache, pack.path)
            done = 0
            for logits in slices:
                yield here[done : done + len(logits)], logits
                done += len(logits)


def plan_after(held: Held, queries: Sequence[Query], following: Ids = ()) -> Plan:
    """The plan for `queries` that goes on from `held`, as far as no distribution is wanted inside of it.

    `following` is what will be asked next, near which the plan ends.
    """
    known = len(held.ids)
    for query in queries:
        first = min(query.positions, default=len(query.ids))
        if first < known and query.ids[: first + 1] == held.ids[: first + 1]:
            known = first
    return Plan.of([query.ids for query in queries], held.ids[:known], following)


def answer_packed(feed: Feed, plan: Plan, queries: Sequence[Query]) -> list[Answer]:
    """Answers to the queries whose sequences `plan` was made of; equal questions are answered once."""
    paths = dict(plan.paths())
    asked = [
        [(int(paths[query.ids][p]), question) for p, question in zip(query.positions, query.questions, strict=True)]
        for query in queries
    ]
    by_node: dict[int, dict[Question, None]] = {}
    for node, question in (one for questions in asked for one in questions):
        by_node.setdefault(node, {})[question] = None
    found: dict[tuple[int, Question], Found] = {}
    for nodes, logits in feed(plan, sorted(by_node)):
        here = [(row, node, question) for row, node in enumerate(nodes.tolist()) for question in by_node[node]]
        values = read(logits, [row for row, _, _ in here], [question for _, _, question in here])
        found.update(zip([(node, question) for _, node, question in here], values, strict=True))
    return [Answer.of([found[one] for one in questions]) for questions in asked]


def why_plain(model: CausalModel) -> str | None:
    """Why this model is scored in plain batches; None where shared prefixes are evaluated once."""
    if "why_plain" not in model.fallbacks:
        with model.inference():
            model.fallbacks["why_plain"] = _probe(model, model.vocabulary, 2.5 * model.noise)
    return model.fallbacks["why_plain"]


def _probe(model: CausalModel, vocabulary: int, tolerance: float) -> str | None:
    """Why packs cannot be used with this model, or None: branching sequences, packed in two plans, and plain."""
    import torch

    rng = np.random.default_rng(0)
    stem = tuple(int(t) for t in rng.integers(vocabulary, size=12))
    sequences = [(*stem[:cut], *(int(t) for t in rng.integers(vocabulary, size=9))) for cut in (12, 7, 3, 12)]
    try:
        packed: dict[Ids, torch.Tensor] = {}
        feed = Feed(model, 16)
        for part in (sequences[:3], sequences[3:]):
            plan = Plan.of(part, feed.held.ids)
            ends = {int(path[-1]): sequence for sequence, path in plan.paths()}
            for nodes, logits in feed(plan, sorted(ends)):
                packed.update(zip([ends[node] for node in nodes.tolist()], logits, strict=True))
        for sequence in sequences:
            last = torch.tensor([len(sequence) - 1], device=model.device)
            _, plain = model.forward(
                (torch.zeros_like(last), last),
                input_ids=torch.tensor([sequence], device=model.device),
                attention_mask=None,
                position_ids=torch.arange(len(sequence), device=model.device)[None],
                use_cache=False,
            )
            difference = float((next(plain)[0] - packed[sequence]).abs().max())
            if not difference <= tolerance:
                return f"packed and plain logits differ by {difference:.2g}"
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError, KeyError) as error:
        # Whatever an architecture does with a mask or a cache it does not know, plain batches still work.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def _carried(cache: Any, where: Integers, device: torch.device) -> Any:
    """A cache with the keys and values at `where`, of the path to the pack's first node."""
    import torch
    from transformers import DynamicCache

    carried: Any = DynamicCache()
    if cache is not None and len(where):
        index = torch.from_numpy(where).to(device)
        for number, layer in enumerate(cache.layers):
            carried.update(layer.keys.index_select(2, index), layer.values.index_select(2, index), number)
    return carried


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
