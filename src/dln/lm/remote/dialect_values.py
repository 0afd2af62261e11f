"""What goes into a dialect and comes out of it: prompts, draws, and what is known of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dln.lm.remote.read import TokenRow

__all__ = ["Drawn", "Forcing", "Ids", "ModelCard", "Prompt"]

Ids = tuple[int, ...]
Forcing = Literal["allowed_token_ids", "logit_bias"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: ids if known, else a text, which with `chat` is the user's turn."""

    text: str
    ids: Ids | None = None
    chat: bool = False

    @property
    def weight(self) -> int:
        """Tokens, or an estimate of them."""
        return len(self.text.encode()) // 4 + 1 if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw as the server tells it; `ids` None where it does not tell them."""

    text: str
    finish: str
    row: TokenRow
    ids: Ids | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the server's list of models says; None where it says nothing."""

    name: str
    root: str | None = None
    context_length: int | None = None
