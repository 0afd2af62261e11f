"""A key-value cache in which draws branch: every distinct prefix of all running draws is stored once.

All tokens of all draws lie in one row of slots. A forward of one new token per draw is a row of tokens too, with a
mask that says which slots each of them sees: its own prefix. A draw joins or leaves without copying or padding, and
prompts with a common prefix read the same keys and values.

`SlotTrie` is the bookkeeping, without a model: a trie of prefixes with reference counts. Every token has one slot,
found from its parent's; a slot is free again when nothing is below it and no draw holds it. Slots are written in
place; when most of them are empty, the others are moved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dln.lm.local.attention import ROWS, additive_mask, attending, blocks_of
from dln.lm.local.plan import Integers
from dln.lm.local.query import Ids
from dln.lm.local.scoring import why_plain

if TYPE_CHECKING:
    import torch

    from dln.lm.local.model import CausalModel

__all__ = ["ROOT", "Branch", "BranchingCache", "SlotTrie", "why_fixed_batches"]

ROOT = -1
"""The parent of a first token."""


class SlotTrie:
    """Slots of tokens, each below the one of the token before it."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._name: list[int | None] = []
        self._references: list[int] = []
        self._free: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    @property
    def used(self) -> int:
        """How many slots hold a token."""
        return len(self._parent) - len(self._free)

    @property
    def height(self) -> int:
        """All slots in use are below this number."""
        return len(self._parent)

    def walk(self, ids: Sequence[int]) -> list[int]:
        """The slots of the longest known prefix of `ids`."""
        path: list[int] = []
        slot = ROOT
        for token in ids:
            below = self._children.get((slot, token))
            if below is None:
                break
            path.append(below)
            slot = below
        return path

    def add(self, parent: int, token: int | None) -> int:
        """A slot below `parent`, the lowest that is free; one without a token is found by no walk.

        It is held by whoever asked for it, until `release`.
        """
        if self._free:
            slot = heappop(self._free)
            self._parent[slot], self._name[slot], self._references[slot] = parent, token, 1
        else:
            slot = len(self._parent)
            self._parent.append(parent)
            self._name.append(token)
            self._references.append(1)
        if token is not None:
            self._children[parent, token] = slot
        if parent != ROOT:
            self._references[parent] += 1
        return slot

    def hold(self, slot: int) -> None:
        """Keep `slot` and all above it until it is released once more."""
        self._references[slot] += 1

    def release(self, slot: int) -> None:
        """End one hold; what nobody needs any more is free."""
        while slot != ROOT:
            self._references[slot] -= 1
            if self._references[slot]:
                return
            parent, name = self._parent[slot], self._name[slot]
            if name is not None:
                del self._children[parent, name]
            heappush(self._free, slot)
            slot = parent

    def compact(self) -> Integers:
        """Move all tokens to the lowest slots, in their order.

        Returns:
            [used] the slots they were in; slot i is now that of what was in `result[i]`.
        """
        free = set(self._free)
        kept = [slot for slot in range(len(self._parent)) if slot not in free]
        new = {ROOT: ROOT} | {slot: i for i, slot in enumerate(kept)}
        self._parent = [new[self._parent[slot]] for slot in kept]
        self._name = [self._name[slot] for slot in kept]
        self._references = [self._references[slot] for slot in kept]
        self._free = []
        self._children = {(self._parent[i], name): i for i, name in enumerate(self._name) if name is not None}
        return np.array(kept, dtype=np.int64)


class SlotWriter:
    """Stands for a cache's `update`: writes new keys and values into their slots, gives back what is attended to.

    Args:
        layers: keys and values [1, heads, slots, size] per layer, made and enlarged here.
        slots: where the new tokens go.
        visible: slots that the new tokens see besides each other, in the order of the mask; None for all slots.
        height: number of slots.
        device: of the model.
    """

    def __init__(
        self,
        layers: dict[int, tuple[torch.Tensor, torch.Tensor]],
        slots: Sequence[int],
        visible: Sequence[int] | None,
        height: int,
        device: torch.device,
    ) -> None:
        import torch

        self._layers = layers
        self._height = height
        self._slots = torch.tensor(list(slots), device=device, dtype=torch.long)
        self._visible = None if visible is None else torch.tensor(list(visible), device=device, dtype=torch.long)

    def __call__(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of layer `layer` that the mask speaks of."""
        import torch

        old = self._layers.get(layer)
        pair = tuple(self._room(new, None if old is None else old[i]) for i, new in enumerate((keys, values)))
        self._layers[layer] = (pair[0], pair[1])
        found: list[torch.Tensor] = []
        for slots, new in zip(pair, (keys, values), strict=True):
            slots.index_copy_(2, self._slots, new)
            if self._visible is None:
                found.append(slots[:, :, : self._height])
            else:
                found.append(torch.cat([slots.index_select(2, self._visible), new], 2))
        return found[0], found[1]

    def _room(self, new: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
        if old is not None and old.shape[2] >= self._height:
            return old
        # Zeros, for what is masked is multiplied by 0 and must be finite.
        size = max(self._height, 2 * old.shape[2] if old is not None else 256)
        larger = new.new_zeros((*new.shape[:2], size, new.shape[3]))
        if old is not None:
            larger[:, :, : old.shape[2]] = old
        return larger


SLACK = 64

DRAWS = 16
"""Draws that attend together, to the slots that one of them sees: draws of one prompt stand side by side."""


@dataclass(eq=False)
class Branch:
    """A sequence whose keys and values are in the cache: the slots of its tokens, first token first."""

    slots: list[int]


class BranchingCache:
    """Keys and values of a growing set of sequences.

    Args:
        model: whose they are.
        chunk: tokens per forward when prompts are fed.
    """

    def __init__(self, model: CausalModel, chunk: int) -> None:
        self._model = model
        self._chunk = chunk
        self._trie = SlotTrie()
        self._branches: set[Branch] = set()
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def used(self) -> int:
        """Tokens in the cache."""
        return self._trie.used

    def known(self, ids: Ids) -> int:
        """How many tokens at the beginning of `ids` are in the cache."""
        return len(self._trie.walk(ids))

    def hold(self, ids: Ids) -> Branch | None:
        """A branch of what is known of `ids`, so that it stays; None if nothing is. It has to leave, too."""
        path = self._trie.walk(ids)
        if not path:
            return None
        self._trie.hold(path[-1])
        branch = Branch(path)
        self._branches.add(branch)
        return branch

    def enter(self, prompts: Sequence[Ids]) -> tuple[list[Branch], torch.Tensor]:
        """A branch for each prompt, and the logits [N, V] after it; each distinct prefix is fed once."""
        pieces: list[tuple[list[int], int]] = []  # the path of a sequence, and from which depth on it is to be fed
        branches: list[Branch] = []
        tokens: dict[int, int] = {}
        for prompt in prompts:
            path = self._trie.walk(prompt)
            # A last token that is known from before is fed again, for the sake of its logits.
            start = min(len(path), len(prompt) - 1)
            if len(path) == len(prompt):
                self._trie.hold(path[-1])
            else:
                path = [*path, *self._grow(path[-1] if path else ROOT, prompt[len(path) :])]
            if path[-1] not in tokens:
                pieces.append((path, start))
                tokens.update(zip(path[start:], prompt[start:], strict=True))
            branches.append(Branch(path))
        self._branches.update(branches)
        logits = self._feed(pieces, tokens, {branch.slots[-1] for branch in branches})
        return branches, _stacked([logits[branch.slots[-1]] for branch in branches])

    def _grow(self, slot: int, tokens: Sequence[int]) -> list[int]:
        """New slots below `slot`, of which the last is held."""
        added: list[int] = []
        for token in tokens:
            below = self._trie.add(slot, token)
            if added:
                self._trie.release(slot)  # what is below keeps it
            added.append(below)
            slot = below
        return added

    def step(self, branches: Sequence[Branch], tokens: Sequence[int]) -> torch.Tensor:
        """Feed one more token of each branch; the logits [B, V] after them."""
        import torch

        model, trie = self._model, self._trie
        if trie.height > 2 * trie.used + SLACK:
            self._compact()
        slots: list[int] = []
        for branch in branches:
            slot = trie.add(branch.slots[-1], None)
            trie.release(branch.slots[-1])
            branch.slots.append(slot)
            slots.append(slot)
        seen = np.zeros((len(branches), trie.height), dtype=np.bool_)
        for row, branch in zip(seen, branches, strict=True):
            row[branch.slots] = True
        rows = torch.arange(len(branches), device=model.device)
        positions = [len(branch.slots) - 1 for branch in branches]
        writer = SlotWriter(self._layers, slots, None, trie.height, model.device)
        return self._forward(writer, tokens, positions, seen, rows, DRAWS)

    def leave(self, branch: Branch) -> None:
        """Give up a branch; what only it needed is free."""
        self._branches.remove(branch)
        self._trie.release(branch.slots[-1])

    def _feed(
        self, pieces: Sequence[tuple[list[int], int]], tokens: dict[int, int], ends: set[int]
    ) -> dict[int, torch.Tensor]:
        """Feed the new part of each path, parents before children, `chunk` tokens at a time; logits after `ends`."""
        logits: dict[int, torch.Tensor] = {}
        pack: list[tuple[list[int], int, int]] = []
        size = 0
        for path, start in pieces:
            done = start
            while done < len(path):
                end = min(len(path), done + self._chunk - size)
                pack.append((path, done, end))
                size += end - done
                done = end
                if size == self._chunk:
                    logits.update(self._feed_pack(pack, tokens, ends))
                    pack, size = [], 0
        if pack:
            logits.update(self._feed_pack(pack, tokens, ends))
        return logits

    def _feed_pack(
        self, pack: Sequence[tuple[list[int], int, int]], tokens: dict[int, int], ends: set[int]
    ) -> dict[int, torch.Tensor]:
        import torch

        model = self._model
        slots = [slot for path, start, end in pack for slot in path[start:end]]
        inside = set(slots)
        visible = sorted({slot for path, start, _ in pack for slot in path[:start]} - inside)
        column = {slot: i for i, slot in enumerate([*visible, *slots])}
        seen = np.zeros((len(slots), len(column)), dtype=np.bool_)
        row = 0
        for path, start, end in pack:
            columns = np.array([column[slot] for slot in path[:end]])
            for depth in range(start, end):
                seen[row, columns[: depth + 1]] = True
                row += 1
        positions = [depth for _, start, end in pack for depth in range(start, end)]
        wanted = [i for i, slot in enumerate(slots) if slot in ends]
        writer = SlotWriter(self._layers, slots, visible, self._trie.height, model.device)
        rows = torch.tensor(wanted, device=model.device, dtype=torch.long)
        logits = self._forward(writer, [tokens[slot] for slot in slots], positions, seen, rows, ROWS)
        return {slots[i]: values for i, values in zip(wanted, logits, strict=True)}

    def _forward(
        self,
        writer: SlotWriter,
        tokens: Sequence[int],
        positions: Sequence[int],
        seen: npt.NDArray[np.bool_],
        rows: torch.Tensor,
        block_rows: int,
    ) -> torch.Tensor:
        import torch
        from transformers import DynamicCache

        model = self._model
        cache: Any = DynamicCache()
        cache.update = writer
        cache.get_seq_length = lambda layer_idx=0: seen.shape[1] - len(tokens)  # pyright: ignore[reportUnknownLambdaType]
        with attending(model.model, blocks_of(seen, model.mask_dtype, model.device, block_rows)):
            _, slices = model.forward(
                (torch.zeros_like(rows), rows),
                input_ids=torch.tensor([list(tokens)], device=model.device),
                position_ids=torch.tensor([list(positions)], device=model.device),
                attention_mask=additive_mask(seen, model.mask_dtype, model.device),
                cache=cache,
                use_cache=True,
            )
        model.counters.tokens += len(tokens)
        model.counters.reached(cached_tokens=self._trie.used)
        return next(slices)

    def _compact(self) -> None:
        import torch

        kept = self._trie.compact()
        new = {int(slot): i for i, slot in enumerate(kept)}
        source = torch.from_numpy(kept).to(self._model.device)
        for keys, values in self._layers.values():
            for tensor in (keys, values):
                tensor[:, :, : len(kept)] = tensor.index_select(2, source)
        for branch in self._branches:
            branch.slots = [new[slot] for slot in branch.slots]


def why_fixed_batches(model: CausalModel) -> str | None:
    """Why draws run in fixed batches; None where they branch from one cache and join and leave at any time."""
    if "why_fixed_batches" not in model.fallbacks:
        with model.inference():
            model.fallbacks["why_fixed_batches"] = why_plain(model) or _probe(model)
    return model.fallbacks["why_fixed_batches"]


def _probe(model: CausalModel) -> str | None:
    """Why draws cannot branch from one cache with this model, or None: a few of them, there and plain."""
    rng = np.random.default_rng(1)
    stem = tuple(int(t) for t in rng.integers(model.vocabulary, size=9))
    prompts = [(*stem[:cut], *(int(t) for t in rng.integers(model.vocabulary, size=5))) for cut in (9, 9, 4)]
    try:
        cache = BranchingCache(model, 8)
        branches, logits = cache.enter(prompts[:2])
        grown, rows = list(prompts[:2]), list(logits)
        cache.leave(branches.pop(0))
        more, logits = cache.enter(prompts[2:])
        found = [*zip(grown, rows, strict=True), (prompts[2], logits[0])]
        ids = [(*prompt, 1 % model.vocabulary) for prompt in prompts[1:]]
        found += zip(ids, cache.step([*branches, *more], [one[-1] for one in ids]), strict=True)
        difference = max(float(np.abs(model.next_logits(one) - values.cpu().numpy()).max()) for one, values in found)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError, KeyError) as error:
        # Whatever an architecture does with a cache it does not know, fixed batches still work.
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None if difference <= 2.5 * model.noise else f"branching and plain logits differ by {difference:.2g}"


def _stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(rows))
