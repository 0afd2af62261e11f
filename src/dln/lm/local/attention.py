"""Attention of a pack in blocks of rows: each block looks at the keys that some row of it sees, and at no others.

A pack holds branches of a tree side by side. Under one mask for the whole pack every row is multiplied with every
key, most of which it must not see. In preorder the rows of a block share most of what they see: the path down to
them, and one another. So the keys are chosen per block, and the mask with them; the numbers are the same up to
the order of adding.

This takes the place of transformers' own `sdpa` attention for the length of a forward. A model that computes its
attention otherwise does not notice: it gets the mask of the whole pack as before.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["ROWS", "additive_mask", "attending", "blocks_of"]

NAME = "dln_blocks"
ROWS = 128
"""Rows of a block: fewer see fewer keys, more are multiplied faster."""

GATHERED = 0.7
"""Keys are copied together where they are less than this part of those up to the last one that is seen."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows of a pack and what they see.

    Attributes:
        rows: of the pack.
        keys: indices [K] into (past ⧺ pack), or a slice of it.
        mask: [1, 1, R, K] what is added to the scores: 0 for a key that a row sees, else the lowest number.
    """

    rows: slice
    keys: torch.Tensor | slice
    mask: torch.Tensor
    _repeated: dict[int, torch.Tensor] = field(default_factory=dict[int, "torch.Tensor"], repr=False)

    def mask_of(self, heads: int) -> torch.Tensor:
        """[1, 1, heads · R, K] the mask of the rows of so many heads below each other; made once for all layers."""
        if heads not in self._repeated:
            self._repeated[heads] = self.mask.repeat(1, 1, heads, 1)
        return self._repeated[heads]


_blocks: ContextVar[tuple[Block, ...] | None] = ContextVar("blocks", default=None)


def blocks_of(
    sees: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device, rows: int = ROWS
) -> tuple[Block, ...]:
    """The blocks of a pack.

    Args:
        sees: [T, P + T] True where a row sees a key; every row sees one at least.
        dtype: of the masks.
        device: of masks and indices.
        rows: per block.
    """
    import torch

    blocks: list[Block] = []
    for start in range(0, len(sees), rows):
        part = sees[start : start + rows]
        seen = np.flatnonzero(part.any(axis=0))
        end = int(seen[-1]) + 1
        keys: torch.Tensor | slice = slice(0, end)
        if len(seen) < GATHERED * end:
            keys = torch.from_numpy(seen).to(device)
            part = part[:, seen]
        else:
            part = part[:, :end]
        blocks.append(Block(slice(start, start + len(part)), keys, additive_mask(part, dtype, device)))
    return tuple(blocks)


def additive_mask(sees: npt.NDArray[np.bool_], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[1, 1, R, K] what is added to the scores: 0 where a row sees a key, else the lowest number."""
    import torch

    mask = torch.zeros(sees.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~sees), torch.finfo(dtype).min)
    return mask[None, None].to(device)


@contextmanager
def attending(model: Any, blocks: Sequence[Block]) -> Generator[None]:
    """Forwards of one row of tokens within attend block by block, if the model uses `sdpa` attention."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        yield
        return
    _register()
    token = _blocks.set(tuple(blocks))
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        _blocks.reset(token)


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """As transformers' `sdpa_attention_forward`, [1, H, T, D] → [1, T, H, D]; a bias per position needs all keys."""
    import torch
    from transformers.integrations import sdpa_attention

    whole = cast(Any, sdpa_attention).sdpa_attention_forward  # its signature is partly untyped
    blocks = _blocks.get()
    if blocks is None or options.get("position_bias") is not None:
        return whole(module, query, key, value, attention_mask, **options)
    together = query.shape[1] // key.shape[1]
    parts = [
        _one(query[:, :, block.rows], _chosen(key, block), _chosen(value, block), block.mask_of(together), options)
        for block in blocks
    ]
    return torch.cat(parts, dim=1), None


def _one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """One block, [1, H, R, D] → [1, R, H, D]: heads that share keys and values stand below each other as rows.

    transformers copies keys and values once per head wherever there is a mask. Rows below each other need no copies,
    and more rows at a time are multiplied faster: together a quarter to a half less time (measured).
    """
    import torch

    _, heads, rows, _ = query.shape
    below = query.reshape(1, key.shape[1], -1, query.shape[-1])
    output = torch.nn.functional.scaled_dot_product_attention(
        below, key, value, attn_mask=mask, scale=options.get("scaling")
    )
    return output.reshape(1, heads, rows, -1).transpose(1, 2)


def _chosen(states: torch.Tensor, block: Block) -> torch.Tensor:
    return states[:, :, block.keys] if isinstance(block.keys, slice) else states.index_select(2, block.keys)
