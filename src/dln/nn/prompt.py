"""The learnable parameter of a layer: an instruction and, optionally, verbatim worked examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dln.schema import dump, parse

__all__ = ["Demonstration", "Prompt", "as_prompt"]


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """π = (instruction, demonstrations); a layer's template decides how both are shown.

    >>> str(Prompt("Answer briefly."))
    'Answer briefly.'
    """

    instruction: str = ""
    demonstrations: tuple[Demonstration, ...] = ()

    def with_instruction(self, instruction: str) -> Prompt:
        """The same demonstrations under another instruction."""
        return replace(self, instruction=instruction)

    def with_demonstrations(self, demonstrations: tuple[Demonstration, ...]) -> Prompt:
        """The same instruction with other demonstrations."""
        return replace(self, demonstrations=demonstrations)

    def __str__(self) -> str:
        if not self.demonstrations:
            return self.instruction
        return f"{self.instruction}\n[{len(self.demonstrations)} demonstrations]".strip()

    def to_json(self) -> dict[str, Any]:
        """Plain data for files and events."""
        return dump(self)

    @classmethod
    def from_json(cls, data: object, where: str = "prompt") -> Prompt:
        """The inverse of `to_json`; a bare string is an instruction.

        Raises:
            InputError: naming the field that is wrong.
        """
        return cls(data) if isinstance(data, str) else parse(cls, data, where)


def as_prompt(prompt: Prompt | str) -> Prompt:
    """A text is an instruction without demonstrations."""
    return Prompt(prompt) if isinstance(prompt, str) else prompt
