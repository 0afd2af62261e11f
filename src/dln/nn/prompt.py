"""The learnable parameter of a layer: an instruction and, optionally, verbatim worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dln.arguments import Count, checked
from dln.io import dump, parse

__all__ = ["Demonstration", "Prompt", "as_prompt"]


@checked
@dataclass(frozen=True, slots=True)
class Demonstration:
    """One worked example for a layer.

    Attributes:
        x: the network's input.
        h: the layer's own input (equal to `x` at the first layer).
        y: the output that is shown as right for this layer.
    """

    x: str
    h: str
    y: str


@checked
@dataclass(frozen=True, slots=True)
class Prompt:
    """π = (instruction, demonstrations, wording); a layer's template decides how they are shown.

    Attributes:
        instruction: what the model is told to do.
        demonstrations: worked examples, in this order.
        wording: what the template is to call input and output ("Review", "Sentiment"), where it lets itself be
            told; None is the template's own.

    >>> str(Prompt("Answer briefly."))
    'Answer briefly.'
    """

    instruction: str = ""
    demonstrations: tuple[Demonstration, ...] = ()
    wording: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "demonstrations", tuple(self.demonstrations))
        if self.wording is not None:
            object.__setattr__(self, "wording", tuple(self.wording))

    def with_instruction(self, instruction: str) -> Prompt:
        """The same demonstrations under another instruction."""
        return replace(self, instruction=instruction)

    def with_demonstrations(self, demonstrations: Sequence[Demonstration]) -> Prompt:
        """The same instruction with other demonstrations."""
        return replace(self, demonstrations=tuple(demonstrations))

    def with_wording(self, wording: tuple[str, str] | None) -> Prompt:
        """The same prompt with other names for input and output."""
        return replace(self, wording=wording)

    def abridged(self, length: Count = 80) -> str:
        """`str(prompt)` on one line, with at most `length` characters of the instruction."""
        flat = " ".join(self.instruction.split())
        shown = flat if len(flat) <= length else flat[: length - 1] + "…"
        return " ".join(str(self.with_instruction(shown)).split())

    def __str__(self) -> str:
        notes = [f"{len(self.demonstrations)} demonstrations"] if self.demonstrations else []
        notes += [f"{self.wording[0]} → {self.wording[1]}"] if self.wording else []
        return f"{self.instruction}\n[{', '.join(notes)}]".strip() if notes else self.instruction

    def to_json(self) -> dict[str, Any]:
        """Plain data for files and events."""
        data = dump(self)
        if self.wording is None:
            del data["wording"]
        return data

    @classmethod
    def from_json(cls, data: object, where: str = "prompt") -> Prompt:
        """The inverse of `to_json`; a bare string is an instruction.

        Raises:
            InputError: naming the field that is wrong, missing or unknown.
        """
        return cls(data) if isinstance(data, str) else parse(cls, data, where)


def as_prompt(prompt: Prompt | str) -> Prompt:
    """A text is an instruction without demonstrations."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt
