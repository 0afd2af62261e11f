"""Shared-prefix scoring: a plan's packs are fed one after another, each trie node once.

A pack is one row of tokens with explicit positions and a tree mask: a node sees its ancestors and itself.
Ancestors from earlier packs are there as cached keys and values of one path (see `plan`), which bounds
memory by the pack's budget and the longest sequence, however many requests there are.

Not every architecture takes such masks (sliding windows, recurrent and hybrid layers do not): `probe`
compares with a plain forward once after loading, and the engine falls back to plain batches where the two
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dln.lm.plan import Integers, Pack, Plan
from dln.lm.query import Answer, Found, Query, Question, read

if TYPE_CHECKING:
    import torch

__all__ = ["answer_packed", "feed", "probe"]

Forward = Callable[..., Any]
"""(rows, **model inputs) → model output, with logits of the wanted rows only."""


def answer_packed(
    forward: Forward,
    plan: Plan,
    queries: Sequence[Query],
    budget: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Answer]:
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
    for nodes, logits in feed(forward, plan, sorted(by_node), budget, device, dtype):
        here = [(row, node, question) for row, node in enumerate(nodes.tolist()) for question in by_node[node]]
        values = read(logits, [row for row, _, _ in here], [question for _, _, question in here])
        found.update(zip([(node, question) for _, node, question in here], values, strict=True))
    return [Answer.of([found[one] for one in questions]) for questions in asked]


def feed(
    forward: Forward, plan: Plan, wanted: Sequence[int], budget: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Integers, torch.Tensor]]:
    """Feed the plan's packs; yields (numbers of the wanted nodes in this pack, logits [R, V] after them).

    Args:
        forward: the model.
        plan: what to feed.
        wanted: sorted numbers of the nodes after which a distribution is wanted.
        budget: tokens per pack.
        device: of the model.
        dtype: of its attention masks.
    """
    import torch

    nodes = np.asarray(wanted, dtype=np.int64)
    cache: Any = None
    first = 0
    for pack in plan.packs(budget):
        cache = _carried(cache, pack, device)
        end = first + len(pack.tokens)
        here = nodes[np.searchsorted(nodes, first) : np.searchsorted(nodes, end)]
        rows = torch.as_tensor(here - first, device=device)
        mask = torch.zeros(pack.mask.shape, dtype=dtype)
        mask.masked_fill_(torch.from_numpy(~pack.mask), torch.finfo(dtype).min)
        output = forward(
            (torch.zeros_like(rows), rows),
            input_ids=torch.from_numpy(pack.tokens)[None].to(device),
            position_ids=torch.from_numpy(pack.positions)[None].to(device),
            attention_mask=mask[None, None].to(device),
            past_key_values=cache,
            use_cache=True,
        )
        if len(here):
            yield here, output.logits[0].float()
        cache, first = output.past_key_values, end


def probe(forward: Forward, vocabulary: int, device: torch.device, dtype: torch.dtype, tolerance: float) -> str | None:
    """Why packs cannot be used with this model, or None: three branching sequences, packed and plain."""
    import torch

    rng = np.random.default_rng(0)
    stem = tuple(int(t) for t in rng.integers(vocabulary, size=12))
    sequences = [(*stem[:cut], *(int(t) for t in rng.integers(vocabulary, size=9))) for cut in (12, 7, 3)]
    plan = Plan.of(sequences)
    ends = {sequence: int(path[-1]) for sequence, path in plan.paths()}
    try:
        packed: dict[int, torch.Tensor] = {}
        for nodes, logits in feed(forward, plan, sorted(ends.values()), 16, device, dtype):
            packed.update(zip(nodes.tolist(), logits, strict=True))
        for sequence, node in ends.items():
            last = torch.tensor([len(sequence) - 1], device=device)
            plain = forward(
                (torch.zeros_like(last), last),
                input_ids=torch.tensor([sequence], device=device),
                attention_mask=None,
                position_ids=torch.arange(len(sequence), device=device)[None],
                use_cache=False,
            ).logits[0, 0]
            difference = float((plain.float() - packed[node]).abs().max())
            if not difference <= tolerance:
                return f"packed and plain logits differ by {difference:.2g}"
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError) as error:
        # Whatever an architecture does with a mask or a cache it does not know, plain batches still work.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def _carried(cache: Any, pack: Pack, device: torch.device) -> Any:
    """A cache with the keys and values of the path to the pack's first node, taken from the last pack's."""
    import torch
    from transformers import DynamicCache

    carried: Any = DynamicCache()
    if cache is not None and len(pack.carry):
        index = torch.from_numpy(pack.carry).to(device)
        for number, layer in enumerate(cache.layers):
            carried.update(layer.keys.index_select(2, index), layer.values.index_select(2, index), number)
    return carried
