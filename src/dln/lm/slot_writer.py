"""Keys and values in slots that are written in place, behind the one method that models call of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["SlotWriter"]


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
