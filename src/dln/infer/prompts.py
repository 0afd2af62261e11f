"""Proposals for prompts, q(π | feedback), and the screening of candidates.

Rewrites are the paper's backward pass: a language model reads successes and errors and writes another instruction.
Demonstrations are verbatim labelled examples, because small models write poor instructions but use examples well;
they come from a pool that is not scored in the same step. Wording proposals exchange the field names of input and
output. An own proposal is a class with `__call__(key, layer, feedback, num) -> list of proposals`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Protocol

import numpy as np

from dln.errors import ContextLengthError, InputError, RequestFailed
from dln.infer.constraints import Constraint
from dln.infer.memory import Feedback, Opinion
from dln.lm.base import LanguageModel, Sampling
from dln.nn.layers import LanguageLayer, LayerInput, PromptedLayer
from dln.nn.prompt import Demonstration, Prompt
from dln.nn.template import Template, load_template
from dln.random import Key

__all__ = [
    "WORDINGS",
    "ConfusionProposal",
    "DemonstrationProposal",
    "MixturePrompts",
    "PromptProposal",
    "Proposal",
    "RewriteProposal",
    "SequenceProposal",
    "WordingProposal",
    "fixed_lines",
    "most_confused",
    "read_wording",
    "screen",
]


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

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
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

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
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
    proposals: Sequence[Proposal],
    layer: PromptedLayer,
    max_tokens: int,
    inputs: Sequence[LayerInput] = (),
    constraints: Sequence[Constraint] = (),
    row: int = 0,
) -> tuple[list[Proposal], Counter[str]]:
    """Drop what cannot be a prompt, and count why.

    Dropped are proposals that are `empty` or lose the instruction that the incumbent has, `over-long` (an instruction
    of more than `max_tokens` tokens that is also longer than the incumbent's, or with one of `inputs` more than the
    model's context), an `echo` of the backward template, a `duplicate` of the incumbent or of an earlier one, or
    against one of the `constraints`.
    """
    longest = max(max_tokens, layer.lm.count_tokens(layer.prompt.instruction))
    kept: list[Proposal] = []
    dropped: Counter[str] = Counter()
    seen = {layer.prompt}
    for proposal in proposals:
        prompt = proposal.prompt
        if prompt in seen:
            reason = "duplicate"
        elif not prompt.instruction.strip() and (
            layer.prompt.instruction.strip() or (not prompt.demonstrations and prompt.wording is None)
        ):
            reason = "empty"
        elif any(line in prompt.instruction for line in proposal.echoes):
            reason = "echo"
        elif layer.lm.count_tokens(prompt.instruction) > longest or not _fits(layer.with_prompt(prompt), inputs):
            reason = "over-long"
        elif against := next(filter(None, (check(layer, prompt, row) for check in constraints)), None):
            reason = against
        else:
            seen.add(prompt)
            kept.append(proposal)
            continue
        dropped[reason] += 1
    return kept, dropped


def _fits(layer: PromptedLayer, inputs: Sequence[LayerInput]) -> bool:
    """Whether the longest input, the prompt and the output together fit the model's context."""
    limit = layer.lm.capabilities.context_length
    if limit is None or not inputs:
        return True
    (context,) = layer.contexts([max(inputs, key=lambda item: len(item.x) + len(item.h))])
    # the chat frame around the text is not counted by count_tokens: 64 tokens are left for it
    return layer.lm.count_tokens(context) + layer.max_output_tokens + 64 <= limit


def fixed_lines(template: Template, shortest: int = 24) -> tuple[str, ...]:
    """Lines of a template without variables, long enough that nobody writes them by chance."""
    lines = (line.strip() for line in template.text.splitlines())
    return tuple(line for line in lines if len(line) >= shortest and "{" not in line)


@dataclass(frozen=True)
class DemonstrationProposal:
    """The present instruction with k demonstrations from the pool.

    Half of the candidates are fresh draws, the other half change the present set: some of its
    examples are exchanged for others from the pool and the order is drawn anew. Long examples are fewer:
    together they take at most `room` of the model's context.

    Args:
        sizes: k is one of these, drawn at random; the most that is shown.
        balanced: outputs as equally frequent among the k as the pool allows.
        keep: part of the present demonstrations that an exchange keeps.
        room: part of the model's context that demonstrations may take, in tokens of their texts.
    """

    sizes: tuple[int, ...] = (4, 8, 16)
    balanced: bool = True
    keep: float = 0.5
    room: float = 0.25

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise InputError("demonstration counts must be 1 or more", where="demonstrations", got=self.sizes)

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """`num` candidates; none if the pool is empty."""
        if not feedback.pool:
            return []
        proposals: list[Proposal] = []
        fits = self._fitting(layer)
        for index in range(num):
            rng = key.child("demonstrations", index).generator()
            size = int(rng.choice(self.sizes))
            present = layer.prompt.demonstrations if index % 2 else ()
            kept = _some(rng, present, min(size, round(len(present) * self.keep)))
            fresh = [d for d in dict.fromkeys(feedback.pool) if d not in kept]
            chosen = fits([*kept, *self._draw(rng, fresh, size - len(kept), kept)])
            if not chosen:
                continue
            order = rng.permutation(len(chosen))
            prompt = layer.prompt.with_demonstrations(tuple(chosen[int(i)] for i in order))
            detail = f"k={len(chosen)}" + (f", {len(set(kept) & set(chosen))} kept" if kept else "")
            proposals.append(Proposal(prompt, "demonstrations", detail))
        return proposals

    def _fitting(self, layer: PromptedLayer) -> Callable[[list[Demonstration]], list[Demonstration]]:
        """Leaves out what does not fit any more, example by example."""
        length = layer.lm.capabilities.context_length
        if length is None:
            return lambda chosen: chosen
        both, most = layer.template.residual, self.room * length

        def fits(chosen: list[Demonstration]) -> list[Demonstration]:
            shown: list[Demonstration] = []
            used = 0
            for d in chosen:
                used += layer.lm.count_tokens(f"{d.x} {d.h} {d.y}" if both else f"{d.h} {d.y}")
                if used > most:
                    break
                shown.append(d)
            return shown

        return fits

    def _draw(
        self, rng: np.random.Generator, pool: Sequence[Demonstration], size: int, kept: Sequence[Demonstration]
    ) -> list[Demonstration]:
        shuffled = [pool[int(i)] for i in rng.permutation(len(pool))]
        if not self.balanced:
            return shuffled[:size]
        counts = {d.y: 0 for d in shuffled} | {d.y: 0 for d in kept}
        for demonstration in kept:
            counts[demonstration.y] += 1
        chosen: list[Demonstration] = []
        while shuffled and len(chosen) < size:
            # the next of the rarest output so far; ties fall to the shuffled order
            best = min(range(len(shuffled)), key=lambda i: counts[shuffled[i].y])
            demonstration = shuffled.pop(best)
            counts[demonstration.y] += 1
            chosen.append(demonstration)
        return chosen


def _some(rng: np.random.Generator, items: Sequence[Demonstration], size: int) -> list[Demonstration]:
    return [items[int(i)] for i in rng.permutation(len(items))[:size]]


WORDINGS: tuple[tuple[str, str], ...] = (
    ("Input", "Label"),
    ("Text", "Category"),
    ("Review", "Sentiment"),
    ("Sentence", "Type"),
    ("Question", "Type"),
    ("Question", "Answer"),
    ("Message", "Topic"),
    ("Statement", "Class"),
)
"""Names of input and output that are common in texts which models have read."""


@dataclass(frozen=True)
class WordingProposal:
    """The present instruction and demonstrations in other wordings, each wording at most once.

    Args:
        wordings: (name of the input, name of the output).
    """

    wordings: tuple[tuple[str, str], ...] = WORDINGS

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """At most `num` candidates in random order; none for a layer whose template has no names to choose."""
        usual = layer.template.wording
        if usual is None:
            return []
        present = layer.prompt.wording or usual
        others = [wording for wording in dict.fromkeys((usual, *self.wordings)) if wording != present]
        order = key.child("wordings").generator().permutation(len(others))
        return [
            Proposal(
                layer.prompt.with_wording(None if wording == usual else wording),
                "wording",
                f"{wording[0]} → {wording[1]}",
            )
            for wording in (others[int(i)] for i in order[:num])
        ]


def read_wording(text: str) -> tuple[str, str]:
    """("Review", "Sentiment") from "Review → Sentiment" or "Review/Sentiment".

    Raises:
        InputError: there are not two names.
    """
    names = [name.strip() for name in text.replace("→", "/").split("/")]
    if len(names) != 2 or not all(names):
        raise InputError(
            "a wording is two names, of the input and of the output",
            where="wordings",
            got=text,
            fix='"Review/Sentiment"',
        )
    return names[0], names[1]


@dataclass(frozen=True)
class Student:
    """One example as a backward template shows it.

    Attributes:
        input: what the layer below wrote (x for a first layer), or x where the layer's template reads x alone.
        x: the network's input, where the layer reads it beside `input`; else empty.
        output: what the layer wrote.
        target: what it should have written.
        comment: what the metric says of the answer that followed; empty where it says nothing.
    """

    input: str
    x: str
    output: str
    target: str
    comment: str = ""


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

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
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

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
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


@dataclass(frozen=True)
class ConfusionProposal(RewriteProposal):
    """Rewrites that see the two labels which the network confuses most often, with examples of both sides.

    The writer reads the examples of these labels that were answered by one of them, right and wrong, and is told which
    two labels are to be told apart. There is no candidate where no label was taken for another.
    """

    def __call__(self, key: Key, layer: PromptedLayer, feedback: Feedback, num: int) -> list[Proposal]:
        """`num` rewritten instructions."""
        pair = most_confused(feedback.targets, feedback.answers)
        if pair is None:
            return []
        both = zip(feedback.targets, feedback.answers, strict=True)
        part = feedback.subset([i for i, (y, said) in enumerate(both) if y in pair and said in pair])
        asks = (
            f'The outputs "{pair[0]}" and "{pair[1]}" are confused most often. Say how to tell them apart. Be concise.'
        )
        template = replace(load_template(self.template, "backward"), messages=(asks,))
        detail = f"{pair[0]} / {pair[1]}"
        return [
            Proposal(base.with_instruction(_clean(text)), "confusion", detail, fixed_lines(template))
            for text, base, _ in _ask(self, template, key, layer, part, num, count=1)
        ]


def most_confused(targets: Sequence[str], answers: Sequence[str]) -> tuple[str, str] | None:
    """The two labels that are most often answered for each other; None where no target was answered for another.

    >>> most_confused(["a", "b", "c", "a"], ["b", "a", "c", "c"])
    ('a', 'b')
    """
    known = set(targets)
    counts = Counter(
        (min(y, said), max(y, said)) for y, said in zip(targets, answers, strict=True) if y != said and said in known
    )
    return counts.most_common(1)[0][0] if counts else None


def _ask(
    proposal: RewriteProposal,
    template: Template,
    key: Key,
    layer: PromptedLayer,
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
    answers = _answers(writer, contexts, key.child("rewrite").seeds(len(contexts)))
    return [
        (text, base, message if base is layer.prompt else f"{message} (from memory)".strip())
        for text, (base, message) in zip(answers, plans, strict=True)
    ]


def _answers(writer: LanguageLayer, contexts: list[str], seeds: list[int]) -> list[str]:
    """One answer per context; empty, which `screen` drops and counts, where the model cannot answer one request."""
    try:
        return [draw.text for draw in writer.draw_contexts(contexts, seeds)]
    except (RequestFailed, ContextLengthError):
        if len(contexts) <= 1:
            return [""] * len(contexts)
    return [_answers(writer, [context], [seed])[0] for context, seed in zip(contexts, seeds, strict=True)]


def _pick(proposal: RewriteProposal, key: Key, feedback: Feedback, index: int) -> list[int]:
    """The random subset that candidate number `index` sees."""
    order = key.child("subset", index).generator().permutation(len(feedback.inputs))
    size = max(1, round(len(order) * proposal.subset))
    return [int(i) for i in order[: min(size, proposal.max_examples)]]


def _context(
    lm: LanguageModel,
    sampling: Sampling,
    template: Template,
    layer: PromptedLayer,
    feedback: Feedback,
    chosen: list[int],
    message: str,
    count: int,
) -> str:
    """The backward prompt; examples, from the end, are left out until it fits, and the oldest opinion where none do."""
    limit = lm.capabilities.context_length
    students_of = _students(layer, feedback)
    told = [feedback.opinions[i:] for i in range(len(feedback.opinions) + 1)]
    for opinions, size in product(told, range(len(chosen), -1, -1)):
        students = [(feedback.correct[i], students_of[i]) for i in chosen[:size] if _tells(feedback, i)]
        text = template.render(
            prompt=layer.prompt.instruction,
            examples=[student for _, student in students],
            successes=[student for right, student in students if right],
            failures=[student for right, student in students if not right],
            message="\n".join([*map(_told, opinions), message]),
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


def _told(opinion: Opinion) -> str:
    """A line of the backward prompt: part of its message, so that every template shows it."""
    says = " ".join(opinion.comment.split())
    verb = "likes" if opinion.liked else "dislikes"
    return f'A person {verb} the instruction "{" ".join(opinion.text.split())}"' + (f": {says}" if says else ".")


def _tells(feedback: Feedback, example: int) -> bool:
    """Whether there is something to learn from an example.

    Where the network was wrong and nothing better than ĥ was found, the wanted text would be what the layer wrote. A
    comment of the metric is something to learn from all the same.
    """
    if any(feedback.comments[example : example + 1]):
        return True
    return feedback.correct[example] or feedback.outputs[example].strip() != feedback.wanted[example].strip()


def _students(layer: PromptedLayer, feedback: Feedback) -> list[Student]:
    """[B] the examples with all that the layer reads."""
    reads = layer.template.variables
    # a first layer's h is x itself: nothing is shown twice
    both = layer.template.residual and any(item.h != item.x for item in feedback.inputs)
    inputs = [layer.reads(item) for item in feedback.inputs]
    comments = [" ".join(text.split()) for text in feedback.comments or ("",) * len(inputs)]
    return [
        Student(item.text if reads & {"h", "hs"} else item.x, item.x if both else "", output, wanted, comment)
        for item, output, wanted, comment in zip(inputs, feedback.outputs, feedback.wanted, comments, strict=True)
    ]


def _clean(text: str) -> str:
    """The instruction without the quotation that models put around it."""
    stripped = text.strip().removeprefix(">").strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'":
        return stripped[1:-1].strip()
    return stripped
