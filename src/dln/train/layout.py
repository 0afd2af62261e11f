"""The standard network for a task: templates and first prompts of its layers, at any depth.

The last layer answers. The layers below it begin in one of three ways: as the steps that the task names, where there is
one for each layer; as copies of the input, so that the deeper network begins as the function that the single layer is
and what its new layer learns is gain (Net2DeeperNet: Chen, Goodfellow and Shlens, ICLR 2016); or as thoughts, as in the
paper.

A layer copies by example: its first prompt shows inputs that come out as they went in. Small models fail where a shown
input begins like the one to copy, so the shown ones have few words in common, and the layer reads its input twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from dln.arguments import Count, Size, checked
from dln.data import Task
from dln.errors import InputError
from dln.lm.base import LanguageModel, Sampling
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, Layer, Prompt, Sequential
from dln.nn.template import Template, load_template

__all__ = [
    "COPY",
    "DECOMPOSE",
    "Hidden",
    "copyable",
    "deepened",
    "initial_prompts",
    "staged",
    "standard_network",
    "usual_template",
]

COPY = "Copy the input."
"""First instruction of a layer that copies."""

_TEMPLATE = "reread"
_LOOKED_AT = 100
"""Inputs among which the shown ones are sought."""
_MOSTLY = 0.9
"""Part of the inputs that a layer must be able to copy to begin as a copy."""
_LONGEST = 300
"""Characters. A copy is drawn token by token, K times per example; a longer one costs more than a thought."""
_WORD = re.compile(r"\w+")
_ROOM = 1.25
"""Longest answer over longest input: what a layer learns to write may be longer than what it reads."""


@checked
def deepened(
    network: Sequential, inputs: Sequence[str], shown: Size = 6, max_tokens: Count | None = None
) -> Sequential:
    """`network` on top of a layer that copies its input, with the model of its first layer.

    Args:
        network: one layer or more; their prompts and fitted output layer stay as they are.
        inputs: of the train set; `shown` of the first hundred, with few words in common, are shown as copied.
        shown: worked examples of copying.
        max_tokens: longest text that the new layer writes; default a quarter more than the longest of `inputs`.

    Returns:
        A network of L + 1 layers, which says what `network` says wherever its first layer copies exactly.

    Raises:
        InputError: there are no inputs, or one has several lines: the copy would end after the first.
    """
    first = network.prompted[0]
    texts = [text for text in dict.fromkeys(map(str.strip, inputs)) if text]
    several = [text for text in texts if "\n" in text]
    if several or not texts:
        raise InputError(
            "a layer that copies needs inputs of one line",
            where="deepened, argument 'inputs'",
            expected="texts of one line",
            got=f"an input of several lines: {several[0][:80]!r}" if several else "no inputs",
            fix="begin with a network whose layers think: dln.Sequential, or `dln train --layers 2 --hidden think`",
        )
    examples = tuple(Demonstration(text, text, text) for text in _unlike(texts[:_LOOKED_AT], shown))
    room = max_tokens or max(16, round(_ROOM * max(map(first.lm.count_tokens, texts))))
    copying = LanguageLayer(first.lm, _TEMPLATE, Prompt(COPY, examples), Sampling(max_tokens=room))
    return Sequential((copying, *network.layers))


def copyable(inputs: Sequence[str]) -> list[str]:
    """The inputs that a layer can copy: of one line, with which its answer ends, and short; none if these are too few.

    Too few are less than nine of ten. Of an input of several lines a layer that copies passes on one.
    """
    found = [text for text in inputs if "\n" not in text.strip() and len(text) <= _LONGEST]
    return found if len(found) >= _MOSTLY * len(inputs) else []


def _unlike(texts: Sequence[str], size: int) -> list[str]:
    """The first text, then each time the one with the smallest part of its words in those chosen already."""
    words = {text: frozenset(_WORD.findall(text.lower())) for text in texts}
    chosen: list[str] = []
    known: frozenset[str] = frozenset()
    left = list(texts)
    while left and len(chosen) < size:
        best = min(left, key=lambda text: len(words[text] & known) / max(1, len(words[text])))
        left.remove(best)
        chosen.append(best)
        known |= words[best]
    return chosen


DECOMPOSE = "Decompose the problem to make it simpler:"
"""Initial prompt of hidden layers that think, where the task has none of its own."""

Hidden = Literal["copy", "think"]
"""What hidden layers can be asked to begin as."""

_TOKENS = 64
_PAPER_TOKENS = 256
"""Longest hidden text of the released code, in tokens; its recipes for logic7 and gsm8k allow 512."""
_STEP = "step"
_PLAIN = ("classify", "answer", "analyse", "analyse_residual", "classify_residual", "answer_residual")
_PAPER = ("classify_answer", "answer", "think_steps", "analyse_residual", "classify_residual_answer", "answer_residual")


def standard_network(
    task: Task,
    lm: LanguageModel,
    depth: int = 1,
    *,
    preset: str = "default",
    prompts: Sequence[Prompt] = (),
    templates: Sequence[str | Template] = (),
    hidden: Hidden | None = None,
    last_template: str = "",
    hidden_tokens: int | None = None,
) -> Sequential:
    """The layers with their initial prompts.

    Args:
        task: whose labels (or free texts) the last layer gives, and whose instruction it starts from.
        lm: the model of all layers.
        depth: L.
        preset: whose templates are the default.
        prompts: initial prompts, one per layer; default as the hidden layers begin.
        templates: one per layer.
        hidden: initialization of hidden layers. None is the task's stages where it has as many; else copies where the
            preset is the default one, the task has labels, nine of ten train inputs are short and of one line, and
            neither prompts nor templates are given; else thoughts.
        last_template: of the last layer alone; empty is the usual one.
        hidden_tokens: longest hidden text and free answer, in tokens; None is 64, for hidden texts of the paper's
            preset 256, and for a copy what the longest input needs.

    Raises:
        InputError: another number of prompts or templates than layers, or copies of inputs that cannot be copied or
            with prompts or templates of their own.
    """
    if (prompts or templates) and hidden == "copy":
        raise InputError(
            "layers that copy have their own prompts and templates",
            where="network.hidden",
            got="copy, and prompts or templates",
            fix="leave out one of them",
        )
    begins = _begins(depth, task, preset, hidden)
    if begins == "copy" and not (prompts or templates):
        return _copied(task, lm, depth, preset, last_template, hidden_tokens)
    steps = begins == "steps"
    templates = list(templates or _templates(depth, task, preset, steps))
    prompts = tuple(prompts or initial_prompts(depth, task, steps))
    for name, values in (("prompts", prompts), ("templates", templates)):
        if len(values) != depth:
            raise InputError(
                f"one of {name} per layer is needed",
                where=f"network.{name}",
                got=f"{len(values)} for {depth} layers",
                fix=f"repeat --{name.removesuffix('s')} for each layer, first layer first",
            )
    if last_template:
        templates[-1] = last_template
    if task.wording is not None and prompts[-1] == Prompt(task.instruction) and _has_names(templates[-1]):
        prompts = (*prompts[:-1], prompts[-1].with_wording(task.wording))
    thoughts = Sampling(max_tokens=hidden_tokens or (_PAPER_TOKENS if preset == "paper" else _TOKENS))
    layers: list[Layer] = [
        LanguageLayer(lm, template, prompt, thoughts)
        for template, prompt in zip(templates[:-1], prompts[:-1], strict=True)
    ]
    if task.labels is None:
        answer = Sampling(max_tokens=hidden_tokens or _TOKENS)
        layers.append(LanguageLayer(lm, templates[-1], prompts[-1], answer))
    else:
        layers.append(ChoiceLayer(lm, templates[-1], prompts[-1], task.labels))
    return Sequential(layers)


def _has_names(template: str | Template) -> bool:
    """Whether a template lets itself be told the names of input and output."""
    return (template if isinstance(template, Template) else load_template(template)).wording is not None


def usual_template(task: Task, depth: int = 1, preset: str = "default", hidden: Hidden | None = None) -> str:
    """The template of the last layer in a standard network."""
    begins = _begins(depth, task, preset, hidden)
    return _templates(1 if begins == "copy" else depth, task, preset, begins == "steps")[-1]


def staged(depth: int, task: Task) -> bool:
    """Whether the task names as many steps as the network has layers."""
    return depth > 1 and len(task.stages) == depth


def _begins(depth: int, task: Task, preset: str, hidden: Hidden | None) -> Literal["steps", "copy", "think"]:
    if depth == 1:
        return "think"
    if hidden is not None:
        return hidden
    if staged(depth, task):
        return "steps"
    copies = preset == "default" and task.labels is not None and copyable(task.train.inputs)
    return "copy" if copies else "think"


def _copied(
    task: Task, lm: LanguageModel, depth: int, preset: str, last_template: str, hidden_tokens: int | None
) -> Sequential:
    """The single layer on top of layers that copy."""
    inputs = copyable(task.train.inputs)
    if not inputs:
        raise InputError(
            "these inputs are not ones to copy: more than a tenth have several lines or are long",
            where="network.hidden",
            got="copy",
            fix="let hidden layers think: --hidden think",
        )
    network = standard_network(task, lm, preset=preset, last_template=last_template, hidden_tokens=hidden_tokens)
    for _ in range(depth - 1):
        network = deepened(network, inputs, max_tokens=hidden_tokens)
    return network


def _templates(depth: int, task: Task, preset: str, steps: bool) -> tuple[str, ...]:
    only, only_free, first, middle, last, last_free = _PAPER if preset == "paper" else _PLAIN
    if depth == 1 or steps:
        # a step reads one text as the only layer does, whoever wrote it
        return (*[_STEP] * (depth - 1), only_free if task.labels is None else only)
    return (first, *[middle] * (depth - 2), last_free if task.labels is None else last)


def initial_prompts(depth: int, task: Task, steps: bool = False) -> tuple[Prompt, ...]:
    """The usual prompts, first layer first: of layers that think, or of the task's own steps."""
    if steps:
        return tuple(map(Prompt, task.stages))
    hidden = DECOMPOSE if task.hidden_instruction is None else task.hidden_instruction
    return (*[Prompt(hidden)] * (depth - 1), Prompt(task.instruction))
