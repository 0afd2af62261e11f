"""A language model as a metric: the expected grade under its exact label probabilities.

    score = ( Σ_s p(s | rubric, example, answer) v_s − min v ) / ( max v − min v )

p is the probability of each grade of the scale at the answer position, normalised over the scale, and v_s the grade's
value. A sampled grade has the same mean with the noise of one draw, and takes few values, so that prompts tie
(expected scores of a judge: Liu et al., 2023, arXiv 2303.16634).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from dln.arguments import checked
from dln.data import Score
from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.nn.layers import ChoiceLayer, LayerInput
from dln.nn.template import Template

__all__ = ["Judge"]

_SCALE = ("1", "2", "3", "4", "5")


@checked
@dataclass(frozen=True, init=False, eq=False)
class Judge:
    """A metric (example, prediction) -> `Score` by a language model.

    Args:
        lm: the judge, or its name; it must tell the probabilities of labels.
        rubric: what makes an answer good, and what the grades mean.
        scale: the grades from worst to best; numbers are their own values, other words are equally far apart.
        reference: whether the judge reads the example's target.
        template: a forward template with the variables x, the request, and h, the answer.

    Raises:
        InputError: the model cannot score labels, or the scale has fewer than two grades or does not rise.

    Example:
        >>> from dln.data import Example
        >>> from dln.lm.table import TableLM
        >>> lm = TableLM(lambda context: {" 1": 0.25, " 2": 0.25, " 3": 0.5})
        >>> judge = Judge(lm, "Is the answer polite? 1: no, 3: very.", ("1", "2", "3"))
        >>> judge(Example("Where is the mill?", ""), "Left, please.").value
        0.625
    """

    layer: ChoiceLayer
    values: tuple[float, ...]
    reference: bool
    name: str

    def __init__(
        self,
        lm: LanguageModel | str,
        rubric: str,
        scale: tuple[str, ...] | list[str] = _SCALE,
        *,
        reference: bool = False,
        template: Template | str = "judge",
        name: str = "judge",
    ) -> None:
        layer = ChoiceLayer(lm, template, rubric, tuple(scale))
        values = _values(layer.names)
        for field, value in (("layer", layer), ("values", values), ("reference", reference), ("name", name)):
            object.__setattr__(self, field, value)

    def __call__(self, example: Any, prediction: str) -> Score | float:
        """The expected grade from 0 to 1, with a comment; NaN where the judge gave no probability."""
        request = f"{example.input}\n\nReference: {example.target}" if self.reference else str(example.input)
        (row,) = self.layer.label_log_probs([LayerInput(request, prediction)])
        if not np.isfinite(row).any():
            return float("nan")
        grade = float(np.exp(row) @ self.values)
        low, high = self.values[0], self.values[-1]
        scale = f"{self.layer.names[0]} to {self.layer.names[-1]}"
        value = min(1.0, max(0.0, (grade - low) / (high - low)))
        return Score(value, f"{self.name}: {grade:.2f} on a scale from {scale}")


def _values(scale: tuple[str, ...]) -> tuple[float, ...]:
    try:
        values = tuple(float(grade) for grade in scale)
    except ValueError:
        values = tuple(map(float, range(len(scale))))
    if any(b <= a for a, b in itertools.pairwise(values)) or not np.isfinite(values).all():
        raise InputError(
            "the grades of a scale must rise",
            where="Judge, argument 'scale'",
            got=", ".join(scale),
            expected="grades from worst to best",
            fix='scale=("1", "2", "3", "4", "5")',
        )
    return values
