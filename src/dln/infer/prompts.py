"""Proposals for prompts: q(π | what went right and wrong), and the screening of what they give.

The language model's own rewrites are the paper's backward pass. Demonstrations are there because
small models write poor instructions but use examples well. A new idea is one new class with
`__call__(key, layer, feedback, num) -> list of proposals`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dln.errors import InputError
from dln.infer.feedback import Feedback
from dln.keys import Key
from dln.nn.choice import ChoiceLayer
from dln.nn.layer import LayerInput
from dln.nn.prompt import Prompt
from dln.nn.sequential import AnyLayer
from dln.nn.template import Template

__all__ = ["MixturePrompts", "PromptProposal", "Proposal", "fixed_lines", "screen"]


@dataclass(frozen=True)
class Proposal:
    """A candidate prompt and where it comes from.

    Attributes:
        prompt: the candidate.
        source: the proposal's name, shown in events and reports.
        detail: the meta-instruction, move or other detail.
        echoes: fixed lines of the backward template; a prompt that repeats one is dropped.
    """

    prompt: Prompt
    source: str
    detail: str = ""
    echoes: tuple[str, ...] = ()


class PromptProposal(Protocol):
    """q(π | feedback)."""

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """About `num` proposals (fewer where there is nothing to propose from)."""
        ...


@dataclass(frozen=True)
class MixturePrompts:
    """Shares the proposals of a step out among several ways of proposing.

    Args:
        proposals: the ways.
        shares: their parts; by default equal. A way that gives fewer than its part leaves the rest
            to the first one.
    """

    proposals: tuple[PromptProposal, ...]
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.proposals or (self.shares is not None and len(self.shares) != len(self.proposals)):
            raise InputError("a mixture needs proposals, and one share for each", got=self.shares)
        if self.shares is not None and not (min(self.shares) >= 0 and 0 < sum(self.shares) < float("inf")):
            raise InputError("the shares of a mixture must be ≥ 0 and not all 0", got=self.shares)

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """Proposals of all ways, `num` together."""
        shares = self.shares or (1.0,) * len(self.proposals)
        total = sum(shares)
        ends = [round(num * sum(shares[: i + 1]) / total) for i in range(len(shares))]
        counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        found: list[Proposal] = []
        for index in reversed(range(len(counts))):
            count = counts[index] if index else num - len(found)
            if count > 0:
                found.extend(self.proposals[index](key.child("way", index), layer, feedback, count))
        return found


def screen(
    proposals: Sequence[Proposal], layer: AnyLayer, max_tokens: int, inputs: Sequence[LayerInput] = ()
) -> tuple[list[Proposal], Counter[str]]:
    """Drop what cannot be a prompt, and count why.

    Dropped are proposals that are `empty`, `over-long` (an instruction of more than `max_tokens` tokens that is also
    longer than the incumbent's, or with one of `inputs` more than the model's context), an `echo` of the backward
    template, or a `duplicate` of the incumbent or of an earlier one.
    """
    longest = max(max_tokens, layer.lm.count_tokens(layer.prompt.instruction))
    kept: list[Proposal] = []
    dropped: Counter[str] = Counter()
    seen = {layer.prompt}
    for proposal in proposals:
        prompt = proposal.prompt
        if prompt in seen:
            reason = "duplicate"
        elif not prompt.instruction.strip() and not prompt.demonstrations and prompt.wording is None:
            reason = "empty"
        elif any(line in prompt.instruction for line in proposal.echoes):
            reason = "echo"
        elif layer.lm.count_tokens(prompt.instruction) > longest or not _fits(layer.with_prompt(prompt), inputs):
            reason = "over-long"
        else:
            seen.add(prompt)
            kept.append(proposal)
            continue
        dropped[reason] += 1
    return kept, dropped


def _fits(layer: AnyLayer, inputs: Sequence[LayerInput]) -> bool:
    """Whether the longest input, the prompt and the output together fit the model's context."""
    limit = layer.lm.capabilities.context_length
    if limit is None or not inputs:
        return True
    (context,) = layer.contexts([max(inputs, key=lambda item: len(item.x) + len(item.h))])
    if isinstance(layer, ChoiceLayer):
        output = max(layer.lm.count_tokens(word) for label in layer.labels for word in label.split("|"))
    else:
        output = layer.sampling.max_tokens
    # the chat frame around the text is not counted by count_tokens: 64 tokens are left for it
    return layer.lm.count_tokens(context) + output + 64 <= limit


def fixed_lines(template: Template, shortest: int = 24) -> tuple[str, ...]:
    """Lines of a template without variables, long enough that nobody writes them by chance."""
    lines = (line.strip() for line in template.text.splitlines())
    return tuple(line for line in lines if len(line) >= shortest and "{" not in line)
