"""The usual network for a task: which templates and first prompts the layers of a given depth have.

One layer answers. What the layers below it begin as is one of three. Where a task names the steps it can be done in, a
network with as many layers has one for each, and each reads only what the one below it wrote. Under the default preset
hidden layers copy short inputs, so that the network begins as the single layer is, and what they learn is gain. Else
they think, as in the paper, and the last layer reads the input and the thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dln.data import Task
from dln.errors import InputError
from dln.lm.base import LanguageModel, Sampling
from dln.nn import AnyLayer, ChoiceLayer, LanguageLayer, Prompt, Sequential
from dln.nn.template import Template
from dln.train.deepen import copyable, deepened

__all__ = ["DECOMPOSE", "Hidden", "staged", "standard_network", "usual_template"]

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
        hidden: what hidden layers begin as. None is the task's stages where it has as many; else copies where the
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
    prompts = tuple(prompts or _first_prompts(depth, task, steps))
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
    thoughts = Sampling(max_tokens=hidden_tokens or (_PAPER_TOKENS if preset == "paper" else _TOKENS))
    layers: list[AnyLayer] = [
        LanguageLayer(lm, template, prompt, thoughts)
        for template, prompt in zip(templates[:-1], prompts[:-1], strict=True)
    ]
    if task.labels is None:
        answer = Sampling(max_tokens=hidden_tokens or _TOKENS)
        layers.append(LanguageLayer(lm, templates[-1], prompts[-1], answer))
    else:
        layers.append(ChoiceLayer(lm, templates[-1], prompts[-1], task.labels))
    return Sequential(layers)


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


def _first_prompts(depth: int, task: Task, steps: bool) -> tuple[Prompt, ...]:
    if steps:
        return tuple(map(Prompt, task.stages))
    hidden = DECOMPOSE if task.hidden_instruction is None else task.hidden_instruction
    return (*[Prompt(hidden)] * (depth - 1), Prompt(task.instruction))
