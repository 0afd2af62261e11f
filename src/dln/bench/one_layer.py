"""The workload of a DLN-1 step: labels under N candidate prompts × B inputs × C labels."""

from __future__ import annotations

from typing import Literal

from dln.bench.prompts import default_prompts, instructions
from dln.bench.subject import Subject
from dln.bench.workload import Labels, Workload
from dln.lm.base import LanguageModel
from dln.nn import ChoiceLayer, LayerInput

__all__ = ["Style", "one_layer"]

Style = Literal["default", "instructions"]
"""Candidates as the default preset proposes them, or plain instructions of about 40 tokens."""


def one_layer(lm: LanguageModel, subject: Subject, prompts: int, batch: int, style: Style) -> Workload:
    """The output layer's M-step of a one-layer network on the first `batch` examples."""
    layer = ChoiceLayer(lm, "classify", subject.instruction, subject.labels)
    inputs = [LayerInput(example.input, example.input) for example in subject.batch(batch)]
    if style == "default":
        candidates = default_prompts(layer, subject, batch, prompts)
        shape = "instructions and demonstrations"
    else:
        candidates = instructions(subject.instruction, prompts)
        shape = "instructions"
    contexts = [context for prompt in candidates for context in layer.with_prompt(prompt).contexts(inputs)]
    words = tuple(layer.target_prefix + label for label in layer.labels)
    classes = len(subject.labels)
    return Workload(
        name=f"DLN-1, C {classes}, {shape}",
        about=f"N {prompts} × B {batch} × C {classes}, {subject.name}; candidates are {shape}",
        parts=(Labels(tuple(contexts), words),),
    )
