"""The paper's backward pass: a language model reads successes and errors and writes a better instruction."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from dln.errors import ContextLengthError
from dln.infer.feedback import Feedback
from dln.infer.prompts import Proposal, fixed_lines
from dln.keys import Key
from dln.lm.base import LanguageModel, Sampling
from dln.nn.layer import LanguageLayer
from dln.nn.prompt import Prompt
from dln.nn.sequential import AnyLayer
from dln.nn.template import Template, load_template

__all__ = ["RewriteProposal", "SequenceProposal"]


@dataclass(frozen=True)
class Student:
    """One example as a backward template shows it.

    Attributes:
        input: what the layer below wrote (x for a first layer), or x where the layer's template reads x alone.
        x: the network's input, where the layer reads it beside `input`; else empty.
        output: what the layer wrote.
        target: what it should have written.
    """

    input: str
    x: str
    output: str
    target: str


@dataclass(frozen=True)
class RewriteProposal:
    """π ~ p(π | B_π({input, own output, wanted output}, present π)), one answer per candidate.

    Each candidate sees another random subset and another meta-instruction. The layer's demonstrations
    are kept; the instruction is rewritten.

    Args:
        lm: the model that writes; default the layer's own.
        sampling: how it writes (paper: temperature 0.7); the template's stop strings are used. An answer takes a
            quarter of the model's context at most.
        template: of kind `backward`.
        subset: part of the batch that each candidate sees; 0.5 is the paper's held-out ranking.
        max_examples: at most this many examples are shown.
        from_memory: start from the present prompt and from those in memory in turn, as the released code does,
            and not from the present prompt alone.
    """

    lm: LanguageModel | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_tokens=96))
    template: Template | str = "backward"
    subset: float = 1.0
    max_examples: int = 20
    from_memory: bool = False

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """`num` rewritten instructions."""
        template = load_template(self.template, "backward")
        return [
            Proposal(base.with_instruction(_clean(text)), "rewrite", detail, fixed_lines(template))
            for text, base, detail in _ask(self, template, key, layer, feedback, num, count=1)
        ]


@dataclass(frozen=True)
class SequenceProposal(RewriteProposal):
    """Several candidates from one answer: a numbered list (the released code's "seq" variant).

    Args:
        count: how many instructions each answer is asked for.
    """

    template: Template | str = "backward_sequence"
    count: int = 3

    def __call__(self, key: Key, layer: AnyLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """`num` rewritten instructions from about num / count answers."""
        template = load_template(self.template, "backward")
        answers = _ask(self, template, key, layer, feedback, -(-num // self.count), count=self.count)
        lines = [
            (re.sub(r"^\s*(\d+[.)](?!\d)|[-*](?=\s))\s*", "", line), base, detail)
            for text, base, detail in answers
            for line in text.splitlines()
            if line.strip()
        ]
        return [
            Proposal(base.with_instruction(_clean(line)), "sequence", detail, fixed_lines(template))
            for line, base, detail in lines[:num]
        ]


def _ask(
    proposal: RewriteProposal,
    template: Template,
    key: Key,
    layer: AnyLayer,
    feedback: Feedback,
    num: int,
    count: int,
) -> list[tuple[str, Prompt, str]]:
    """`num` answers of the model, each with the prompt it rewrites, and the meta-instruction it was given."""
    lm = proposal.lm or layer.lm
    messages = template.messages or ("",)
    sampling = replace(proposal.sampling, stop=proposal.sampling.stop or template.stop)
    if lm.capabilities.context_length is not None:
        # the rest of a short context is for the examples that the answer is made from
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, lm.capabilities.context_length // 4))
    bases = (layer.prompt, *feedback.memory) if proposal.from_memory else (layer.prompt,)
    # both go round; the shift pairs every base with every message, also where their numbers have a common factor
    period, shifts = math.lcm(len(bases), len(messages)), math.gcd(len(bases), len(messages))
    plans = [(bases[i % len(bases)], messages[(i + i // period % shifts) % len(messages)]) for i in range(num)]
    contexts = [
        _context(
            lm, sampling, template, layer.with_prompt(base), feedback, _pick(proposal, key, feedback, i), message, count
        )
        for i, (base, message) in enumerate(plans)
    ]
    writer = LanguageLayer(lm, sampling=sampling)
    draws = writer.sample_contexts(key.child("rewrite"), contexts)
    return [
        (draw.text, base, message if base is layer.prompt else f"{message} (from memory)".strip())
        for draw, (base, message) in zip(draws, plans, strict=True)
    ]


def _pick(proposal: RewriteProposal, key: Key, feedback: Feedback, index: int) -> list[int]:
    """The random subset that candidate number `index` sees."""
    order = key.child("subset", index).generator().permutation(len(feedback.inputs))
    size = max(1, round(len(order) * proposal.subset))
    return [int(i) for i in order[: min(size, proposal.max_examples)]]


def _context(
    lm: LanguageModel,
    sampling: Sampling,
    template: Template,
    layer: AnyLayer,
    feedback: Feedback,
    chosen: list[int],
    message: str,
    count: int,
) -> str:
    """The backward prompt, with examples left out from the end until it fits the model's context."""
    limit = lm.capabilities.context_length
    students_of = _students(layer, feedback)
    for size in range(len(chosen), -1, -1):
        students = [(feedback.correct[i], students_of[i]) for i in chosen[:size] if _tells(feedback, i)]
        text = template.render(
            prompt=layer.prompt.instruction,
            examples=[student for _, student in students],
            successes=[student for right, student in students if right],
            failures=[student for right, student in students if not right],
            message=message,
            count=count,
        )
        # the chat frame around the text is not counted by count_tokens: 64 tokens are left for it
        if limit is None or lm.count_tokens(text) + sampling.max_tokens + 64 <= limit:
            return text
    raise ContextLengthError(
        "the backward prompt does not fit the model's context even without examples",
        where=f"template {template.name}",
        got=f"{lm.count_tokens(layer.prompt.instruction)} tokens of instruction",
        expected=f"at most {limit} tokens altogether",
        fix="a shorter instruction, or --set inference.max_prompt_tokens=…",
    )


def _tells(feedback: Feedback, example: int) -> bool:
    """Whether there is something to learn from an example.

    Where the network was wrong and nothing better than ĥ was found, the wanted text would be what the layer wrote.
    """
    return feedback.correct[example] or feedback.outputs[example].strip() != feedback.wanted[example].strip()


def _students(layer: AnyLayer, feedback: Feedback) -> list[Student]:
    """[B] the examples with all that the layer reads."""
    reads = layer.template.variables
    # a first layer's h is x itself: nothing is shown twice
    both = layer.template.residual and any(item.h != item.x for item in feedback.inputs)
    inputs = [layer.reads(item) if isinstance(layer, LanguageLayer) else item for item in feedback.inputs]
    return [
        Student(item.h if "h" in reads else item.x, item.x if both else "", output, wanted)
        for item, output, wanted in zip(inputs, feedback.outputs, feedback.wanted, strict=True)
    ]


def _clean(text: str) -> str:
    """The instruction without the quotation that models put around it."""
    stripped = text.strip().removeprefix(">").strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        return stripped[1:-1].strip()
    return stripped
