"""The usual networks: a task's steps become the first prompts of a network with as many layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dln.data import Task, load_task
from dln.lm.table import TableLM
from dln.nn import Prompt, Sequential
from dln.train.layout import DECOMPOSE, standard_network

TEXTS = ("a thought", *(load_task("asked").labels or ()))


def network(task: Task, depth: int, preset: str = "default", prompts: tuple[str, ...] = ()) -> Sequential:
    lm = TableLM.random(TEXTS, 1)
    return standard_network(task, lm, depth, preset=preset, prompts=tuple(map(Prompt, prompts)))


def instructions(found: Sequential) -> tuple[str, ...]:
    return tuple(prompt.instruction for prompt in found.parameters())


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_network_with_a_layer_per_step_begins_with_the_steps_and_each_reads_only_the_one_below(preset: str) -> None:
    task = load_task("asked")
    found = network(task, 2, preset)
    assert instructions(found) == task.stages
    assert not any(layer.template.residual for layer in found.layers)
    # what the last step reads is what the only layer of a one-layer network reads: one text, in the same form
    assert found.layers[-1].template == network(task, 1, preset).layers[-1].template


def test_another_depth_or_prompts_of_ones_own_have_nothing_to_do_with_the_steps() -> None:
    task = load_task("asked")
    assert instructions(network(task, 1)) == (task.instruction,)
    assert instructions(network(task, 3)) == (DECOMPOSE, DECOMPOSE, task.instruction)
    assert instructions(network(task, 2, prompts=("a", "b"))) == ("a", "b")


def test_a_task_without_steps_is_thought_about_and_answered_with_the_input_in_sight() -> None:
    task = replace(load_task("asked"), stages=())
    found = network(task, 2)
    assert instructions(found) == (DECOMPOSE, task.instruction)
    assert found.layers[-1].template.residual
