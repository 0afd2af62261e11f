"""What a layer reads: its input, rendered by a template together with a prompt.

The output of several layers side by side (`dln.nn.Parallel`) is one text whose parts are joined by a separator that
no part contains. So every place that holds a hidden text (traces, checkpoints, demonstrations, events) holds the
output of a `Parallel` as well, and a template gets the parts as the list `hs`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from dln.arguments import checked
from dln.errors import InputError
from dln.lm.base import Completion, Target, text_of
from dln.nn.prompt import Prompt
from dln.nn.template import Template, names_of

__all__ = ["SEPARATOR", "Joint", "LayerInput", "join", "parts_of", "render", "without_options"]

T = TypeVar("T")

SEPARATOR = "\n\x1e\n"
"""Between the texts of parallel layers: the record separator of ASCII on a line of its own."""


@checked
@dataclass(frozen=True, slots=True)
class LayerInput:
    """The input of a layer: the network's input x and the previous layer's output h (h_0 = x)."""

    x: str
    h: str

    @property
    def hs(self) -> list[str]:
        """The texts of the parallel layers below; of any other layer below, its only text."""
        return self.h.split(SEPARATOR)

    @property
    def text(self) -> str:
        """`h` for people and templates: the texts of parallel layers separated by blank lines."""
        return self.h.replace(SEPARATOR, "\n\n")


@dataclass(frozen=True, slots=True)
class Joint(Completion):
    """One draw of each of several parallel layers, as one completion.

    Attributes:
        parts: the draws, with the ids they were drawn as.
    """

    parts: tuple[Completion, ...] = ()


def join(parts: Sequence[Completion]) -> Joint:
    """Several draws as one; its log-probabilities are those of all parts, so that their sum is log p of the tuple."""
    text = SEPARATOR.join(part.text.replace("\x1e", " ") for part in parts)
    return Joint(
        text,
        token_ids=_chained([part.token_ids for part in parts]),
        log_probs=_chained([part.log_probs for part in parts]),
        sampling_log_probs=_chained([part.sampling_log_probs for part in parts]),
        parts=tuple(parts),
    )


def _chained(rows: Sequence[tuple[T, ...] | None]) -> tuple[T, ...] | None:
    known = [row for row in rows if row is not None]
    return tuple(value for row in known for value in row) if len(known) == len(rows) else None


def parts_of(target: Target, count: int) -> tuple[Target, ...]:
    """The `count` texts of parallel layers in one target, as they were drawn where that is known.

    Raises:
        InputError: the target has another number of parts.
    """
    if count == 1:
        return (target,)
    parts = target.parts if isinstance(target, Joint) else tuple(text_of(target).split(SEPARATOR))
    if len(parts) != count:
        raise InputError(
            "the text has another number of parts than there are parallel layers",
            where="Parallel, argument 'outputs'",
            got=f"{len(parts)} parts",
            expected=f"{count} parts joined by dln.nn.SEPARATOR",
        )
    return parts


def render(template: Template, prompt: Prompt, item: LayerInput) -> str:
    """One context: the instruction, the demonstrations in the template's own form, then the input.

    A demonstration is the same template without prompt, followed by its output, so that it has the form of the
    question behind it. A chat model reads demonstrations within its user's turn, so the template's own separator
    stands before the output there too.

    Raises:
        InputError: the prompt names input and output, and the template has no place for the names.
    """
    if template.wording is None and prompt.wording is not None:
        raise InputError(
            "this template has no place for a prompt's names of input and output",
            where=f"template {template.name}",
            got=" → ".join(prompt.wording),
            fix="a template with field names (classify), or a prompt without them",
        )
    return _filled(template, _shown(template, prompt), item, names_of(prompt.wording))


@lru_cache(maxsize=256)  # a prompt is shown with every input of a batch
def _shown(template: Template, prompt: Prompt) -> str:
    names = names_of(prompt.wording)
    demonstrations = [
        _filled(template, "", LayerInput(d.x, d.h), names).lstrip("\n") + template.target_prefix + d.y
        for d in prompt.demonstrations
    ]
    return "\n\n".join(part for part in (prompt.instruction, *demonstrations) if part)


def _filled(template: Template, prompt: str, item: LayerInput, names: dict[str, str]) -> str:
    return template.render(prompt=prompt, x=item.x, h=item.text, hs=item.hs, **names)


_OPTIONS = re.compile(r"^[ \t]*Options:", re.MULTILINE)


def without_options(text: str) -> str:
    r"""The question of a multiple-choice text: what stands before the first line that begins with "Options:".

    A text without such a line, or with nothing before it, stays as it is.

    >>> without_options("Is it late?\nOptions:\n- yes\n- no")
    'Is it late?'
    """
    found = _OPTIONS.search(text)
    question = text[: found.start()].strip() if found else ""
    return question or text
