"""The usual network for a task: which templates and first prompts the layers of a given depth have.

One layer answers. Above that, hidden layers think, and the last one reads the input and the thoughts. Where a
task names the steps it can be done in, a network with as many layers has one for each, and each reads only what
the one below it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

from dln.data import Task
from dln.errors import InputError
from dln.lm.base import LanguageModel, Sampling
from dln.nn import AnyLayer, ChoiceLayer, LanguageLayer, Prompt, Sequential

__all__ = ["DECOMPOSE", "staged", "standard_network", "standard_templates"]

DECOMPOSE = "Decompose the problem to make it simpler:"
"""Initial prompt of hidden layers (the paper's)."""

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
    templates: Sequence[str] = (),
    hidden_tokens: int = 64,
) -> Sequential:
    """The layers with their initial prompts.

    Args:
        task: whose labels (or free texts) the last layer gives, and whose instruction it starts from.
        lm: the model of all layers.
        depth: L.
        preset: whose templates are the default.
        prompts: initial prompts, one per layer; default the task's stages where it has as many, else `DECOMPOSE`
            below the task's instruction.
        templates: one per layer.
        hidden_tokens: longest hidden text and free answer.

    Raises:
        InputError: another number of prompts or templates than layers.
    """
    templates = tuple(templates) or standard_templates(depth, task, preset)
    prompts = tuple(prompts) or _first_prompts(depth, task)
    for name, values in (("templates", templates), ("prompts", prompts)):
        if len(values) != depth:
            raise InputError(
                f"one of {name} per layer is needed",
                where=f"network.{name}",
                got=f"{len(values)} for {depth} layers",
                fix=f"repeat --{name.removesuffix('s')} for each layer, first layer first",
            )
    sampling = Sampling(max_tokens=hidden_tokens)
    layers: list[AnyLayer] = [
        LanguageLayer(lm, template, prompt, sampling)
        for template, prompt in zip(templates[:-1], prompts[:-1], strict=True)
    ]
    if task.labels is None:
        layers.append(LanguageLayer(lm, templates[-1], prompts[-1], sampling))
    else:
        layers.append(ChoiceLayer(lm, templates[-1], prompts[-1], task.labels))
    return Sequential(layers)


def standard_templates(depth: int, task: Task, preset: str = "default") -> tuple[str, ...]:
    """Template names, first layer first."""
    only, only_free, first, middle, last, last_free = _PAPER if preset == "paper" else _PLAIN
    if depth == 1 or staged(depth, task):
        # a step reads one text as the only layer does, whoever wrote it
        return (*[_STEP] * (depth - 1), only_free if task.labels is None else only)
    return (first, *[middle] * (depth - 2), last_free if task.labels is None else last)


def _first_prompts(depth: int, task: Task) -> tuple[Prompt, ...]:
    if staged(depth, task):
        return tuple(map(Prompt, task.stages))
    return (*[Prompt(DECOMPOSE)] * (depth - 1), Prompt(task.instruction))


def staged(depth: int, task: Task) -> bool:
    """Whether the task names as many steps as the network has layers."""
    return depth > 1 and len(task.stages) == depth
