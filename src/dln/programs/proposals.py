"""Proposals for programs: other texts of a stage, and other parameters.

Both are written by a language model, and both look at one stage: what it read, what it wrote, and which texts led to
good and bad results. The rewards behind "good" and "bad" come from the posterior of the stage's texts
(`dln.programs.posterior`), not from the program's output alone.

Own proposals are callables with the signatures of `TextProposal` and `ParameterProposal`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dln.errors import InputError
from dln.infer.memory import Feedback
from dln.infer.prompts import RewriteProposal, screen
from dln.lm.base import LanguageModel, Sampling
from dln.nn.context import LayerInput
from dln.nn.layers import LanguageLayer
from dln.nn.template import Template, load_template
from dln.random import Key

__all__ = [
    "Candidate",
    "EditText",
    "Evidence",
    "EvidenceRow",
    "ParameterProposal",
    "RewriteParameter",
    "TextProposal",
    "TextRequest",
    "needed",
]


@dataclass(frozen=True)
class TextRequest:
    """A stage's text that is to be improved for one example.

    Attributes:
        stage: name of the stage.
        example: the example, as a text with what is wanted.
        reads: what the stage read.
        instruction: its parameter.
        text: what it wrote.
        next_instruction: the parameter of the next stage that has one.
        output: what the program made of it.
        score: the reward of that.
        feedback: what the metric said.
    """

    stage: str
    example: str
    reads: str
    instruction: str
    text: str
    next_instruction: str
    output: str
    score: float
    feedback: str


class TextProposal(Protocol):
    """q(h | what the stage read and wrote, the example, the result)."""

    def __call__(
        self, key: Key, requests: Sequence[TextRequest], num: int, lm: LanguageModel | None
    ) -> list[list[str]]:
        """[N][≤ num] texts for each request; the draws of `lm`, the run's model, are kept with the run."""
        ...


def needed(lm: LanguageModel | None) -> LanguageModel:
    """The model that writes proposals.

    Raises:
        InputError: there is none.
    """
    if lm is None:
        raise InputError(
            "no model writes the proposals",
            where="lm",
            got="None",
            expected="a language model, or both text_proposal and parameter_proposals",
            fix='lm="openai/gpt-4o-mini"',
        )
    return lm


@dataclass(frozen=True)
class EditText:
    """The run's model writes what the stage should have written.

    Args:
        sampling: how it writes; the template's stop strings are used.
        template: of kind `hidden`.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_tokens=256))
    template: Template | str = "program_text"

    def __call__(
        self, key: Key, requests: Sequence[TextRequest], num: int, lm: LanguageModel | None
    ) -> list[list[str]]:
        """`num` texts each, under the template's hints in turn."""
        template = load_template(self.template, "hidden")
        messages = template.messages or ("",)
        sampling = replace(self.sampling, stop=self.sampling.stop or template.stop)
        contexts = [
            template.render(
                x=request.example,
                h=request.reads,
                prompt=request.instruction,
                output=request.text,
                next_prompt=request.next_instruction,
                y=request.output,
                target=f"score {request.score:.2f}" + (f"; {request.feedback}" if request.feedback else ""),
                message=messages[k % len(messages)],
            )
            for request in requests
            for k in range(num)
        ]
        draws = needed(lm).sample(contexts, sampling, key.seeds(len(contexts))) if contexts else []
        texts = [draw.text.strip() for draw in draws]
        return [texts[i : i + num] for i in range(0, len(texts), num)]


@dataclass(frozen=True)
class EvidenceRow:
    """What is known of one text of a stage.

    Attributes:
        stage: name of the stage.
        parameters: names of the parameters that it used.
        reads: what it read.
        text: what it wrote.
        better: the text of the posterior that led to the largest reward, or what is known to be wanted; `text` where
            nothing is better.
        score: the reward of `text`, in the forward pass.
        better_score: the reward of `better`.
        good: whether `text` led to a good result.
    """

    stage: str
    parameters: tuple[str, ...]
    reads: str
    text: str
    better: str
    score: float
    better_score: float
    good: bool


@dataclass(frozen=True)
class Evidence:
    """What a parameter is improved from.

    Attributes:
        parameter: its name.
        value: its present text.
        rows: texts of the stages that use it.
        worked: rows of this and of earlier steps whose text, or better text, led to a good result.
        judged: what its stages read in the examples that the candidates are raced on.
        parameters: all present parameters.
    """

    parameter: str
    value: str
    rows: tuple[EvidenceRow, ...]
    worked: tuple[EvidenceRow, ...]
    judged: frozenset[str]
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Candidate:
    """Changed parameters, where they come from, and a detail for reports."""

    changes: tuple[tuple[str, str], ...]
    source: str
    detail: str = ""


class ParameterProposal(Protocol):
    """q(π | evidence)."""

    def __call__(
        self, key: Key, evidence: Evidence, num: int, lm: LanguageModel | None
    ) -> tuple[list[Candidate], Counter[str]]:
        """About `num` candidates, and how many were dropped by reason; `lm` is the run's model."""
        ...


_PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\{[A-Za-z_]\w*\}")


_FENCED = re.compile(r"^```\w*\n(.*?)\n?(?:```)?$", re.DOTALL)
"""A text in a block of its own, as chat models like to answer."""


@dataclass(frozen=True)
class RewriteParameter:
    """The run's model rewrites the parameter from good and bad texts of its stage (`dln.infer.prompts`).

    A candidate keeps the placeholders of the present text ("{question}"): one without them would not be filled in.

    Args:
        sampling: how it writes; the template's stop strings are used.
        template: of kind `backward`.
        max_tokens: longer candidates are dropped, unless the present text is as long.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, max_tokens=384))
    template: Template | str = "program_parameter"
    max_tokens: int = 512

    def __call__(
        self, key: Key, evidence: Evidence, num: int, lm: LanguageModel | None
    ) -> tuple[list[Candidate], Counter[str]]:
        """`num` rewrites, screened."""
        layer = LanguageLayer(needed(lm), "think", evidence.value)
        feedback = Feedback(
            inputs=tuple(LayerInput(row.reads, row.reads) for row in evidence.rows),
            outputs=tuple(row.text for row in evidence.rows),
            wanted=tuple(row.better for row in evidence.rows),
            correct=tuple(row.good for row in evidence.rows),
        )
        rewrite = RewriteProposal(layer.lm, self.sampling, self.template)
        kept, dropped = screen(rewrite(key, layer, feedback, num), layer, self.max_tokens)
        placeholders = set(_PLACEHOLDER.findall(evidence.value))
        found: list[Candidate] = []
        for proposal in kept:
            text = _FENCED.sub(r"\1", proposal.prompt.instruction.strip())
            if placeholders <= set(_PLACEHOLDER.findall(text)):
                found.append(Candidate(((evidence.parameter, text),), proposal.source, proposal.detail))
            else:
                dropped["placeholder missing"] += 1
        return found, dropped
