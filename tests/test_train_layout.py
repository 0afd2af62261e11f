"""The usual networks: a task's steps become the first prompts of a network with as many layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dln.data import Dataset, Task, load_task
from dln.errors import InputError
from dln.lm.table import TableLM
from dln.nn import LanguageLayer, Prompt, Sequential
from dln.train.layout import COPY, DECOMPOSE, standard_network, usual_template

TEXTS = ("a thought", *(load_task("asked").labels or ()))


def network(task: Task, depth: int, preset: str = "default", prompts: tuple[str, ...] = (), **more: Any) -> Sequential:
    lm = TableLM.random(TEXTS, 1)
    return standard_network(task, lm, depth, preset=preset, prompts=tuple(map(Prompt, prompts)), **more)


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


def test_inputs_of_several_lines_are_thought_about_and_answered_with_the_input_in_sight() -> None:
    task = replace(load_task("asked"), stages=())
    found = network(task, 2)
    assert instructions(found) == (DECOMPOSE, task.instruction)
    assert found.layers[-1].template.residual


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_short_inputs_are_copied_below_the_network_of_one_layer(depth: int) -> None:
    task = load_task("questions")
    found = network(task, depth)
    assert instructions(found) == (*[COPY] * (depth - 1), task.instruction)
    assert found.layers[-1].template == network(task, 1).layers[-1].template
    assert usual_template(task, depth) == found.layers[-1].template.name
    shown = {d.x for prompt in found.parameters() for d in prompt.demonstrations}
    assert shown <= set(task.train.inputs)


def questions(several: int = 0, long: int = 0) -> Task:
    """The bundled task, its first train inputs with a second line and the next ones long."""
    task = load_task("questions")
    rows = [
        replace(e, input=f"{e.input}\nagain" if i < several else e.input + " and so on" * 40 * (i < several + long))
        for i, e in enumerate(task.train)
    ]
    return replace(task, train=Dataset(rows, task.labels))


def free_texts(task: Task) -> Task:
    parts = {part: replace(getattr(task, part), labels=None) for part in ("train", "dev", "test")}
    return replace(task, labels=None, **parts)


@pytest.mark.parametrize("begins", ["paper", "free", "prompts", "templates", "think", "lines", "long"])
def test_hidden_layers_think_where_they_are_told_to_or_cannot_copy(begins: str) -> None:
    task = questions()
    tenth = len(task.train) // 10 + 1
    made: dict[str, Callable[[], Sequential]] = {
        "paper": lambda: network(task, 2, "paper"),
        "free": lambda: network(free_texts(task), 2),
        "prompts": lambda: network(task, 2, prompts=(DECOMPOSE, "b")),
        "templates": lambda: network(task, 2, templates=("analyse", "classify_residual")),
        "think": lambda: network(task, 2, hidden="think"),
        "lines": lambda: network(questions(several=tenth), 2),
        "long": lambda: network(questions(long=tenth), 2),
    }
    found = made[begins]()
    assert instructions(found)[0] == DECOMPOSE
    assert found.layers[-1].template.residual
    assert begins == "templates" or not network(questions(several=tenth - 1), 2).layers[-1].template.residual


def test_a_task_can_have_its_own_first_prompt_of_hidden_layers() -> None:
    for instruction, begins in ((None, DECOMPOSE), ("", ""), ("Look closely.", "Look closely.")):
        task = replace(questions(), hidden_instruction=instruction)
        assert instructions(network(task, 3, "paper")) == (begins, begins, task.instruction)
        assert instructions(network(task, 2, hidden="think")) == (begins, task.instruction)
        assert instructions(network(task, 2, hidden="copy"))[0] == COPY


def test_hidden_texts_of_the_paper_preset_may_be_as_long_as_the_released_ones() -> None:
    def longest(found: Sequential) -> list[int]:
        return [layer.sampling.max_tokens for layer in found.layers if isinstance(layer, LanguageLayer)]

    assert longest(network(questions(), 3, "paper")) == [256, 256]
    assert longest(network(questions(), 3, "paper", hidden_tokens=512)) == [512, 512]
    assert longest(network(questions(), 3, hidden="think")) == [64, 64]
    assert longest(network(free_texts(questions()), 2, "paper")) == [256, 64]


def test_what_hidden_layers_begin_as_can_be_asked_for() -> None:
    asked = load_task("asked")
    assert instructions(network(asked, 2, hidden="think")) == (DECOMPOSE, asked.instruction)
    task = replace(questions(), stages=("one", "two"))
    assert instructions(network(task, 2)) == ("one", "two")
    assert instructions(network(task, 2, hidden="copy")) == (COPY, task.instruction)
    assert network(task, 2, "paper", hidden="copy").layers[-1].template.name == usual_template(task, 1, "paper")
    with pytest.raises(InputError, match="--hidden think"):
        network(asked, 2, hidden="copy")
    with pytest.raises(InputError, match="leave out one"):
        network(task, 2, prompts=("a", "b"), hidden="copy")


def test_the_last_template_and_the_longest_hidden_text_are_those_that_are_named() -> None:
    for hidden in ("copy", "think"):
        found = network(questions(), 2, hidden=hidden, last_template="classify_inline", hidden_tokens=9)
        first, last = found.layers
        assert isinstance(first, LanguageLayer)
        assert first.sampling.max_tokens == 9
        assert last.template.name == "classify_inline"
