"""Layers without a prompt of their own: several layers side by side, and Python functions.

`Parallel` is the product of its branches over tuples of texts:

    p(h^1 … h^M | input) = Π_b p_b(h^b | input)

The layer above reads all of them (`hs` in its template). A tuple is one draw: the E-step weighs tuples jointly by
log w = Σ_b log p_b(h^b | input) + log p(output above | h^1 … h^M), so that bound and posterior are those of any other
layer. Because log p is a sum over branches, the M-step takes one branch at a time, under the marginal of its texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast, get_args

import numpy as np

from dln.arguments import checked, shown
from dln.errors import InputError
from dln.lm.base import Completion, LanguageModel, ScoringMode, Target, TokenLogProbs
from dln.nn.context import LayerInput, join, parts_of
from dln.nn.layers import Layer, Load, by_name
from dln.random import Key

__all__ = ["FunctionLayer", "Parallel", "function_layer"]

TextFunction = Callable[[str, str], str]
"""(x, h) → text: the network's input and the text of the layer below (x itself in the first layer)."""


@checked
@dataclass(frozen=True, eq=False, init=False)
class Parallel(Layer):
    """Several layers with the same input; the layer above reads all their outputs.

    Args:
        layers: the branches, as one iterable or as separate arguments; a `Parallel` among them adds its branches.

    Raises:
        InputError: fewer than two layers, something that is no layer, or a `ChoiceLayer`.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer | Iterable[Layer]) -> None:
        flat: list[Layer] = []
        for item in layers:
            flat.extend(b for layer in ([item] if isinstance(item, Layer) else item) for b in layer.branches)
        if len(flat) < 2 or any(layer.classifier is not None for layer in flat):
            raise InputError(
                "parallel layers are two or more layers that write text",
                where="Parallel, argument 'layers'",
                got=shown(flat),
                expected="two LanguageLayers or more",
                fix='dln.Parallel(dln.LanguageLayer(lm, "think"), dln.LanguageLayer(lm, "analyse"))',
            )
        object.__setattr__(self, "layers", tuple(flat))

    def __deepcopy__(self, memo: dict[int, object]) -> Parallel:
        """Branches of its own with the same models."""
        return Parallel(copy.deepcopy(layer, memo) for layer in self.layers)

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.layers))})"

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def branches(self) -> tuple[Layer, ...]:
        """The layers side by side."""
        return self.layers

    def with_branch(self, index: int, branch: Layer) -> Parallel:
        """The same layer with one branch exchanged."""
        return Parallel(*self.layers[:index], branch, *self.layers[index + 1 :])

    @property
    def scoring_mode(self) -> ScoringMode:
        """The weakest mode of the branches that draw at random."""
        modes: tuple[ScoringMode, ...] = get_args(ScoringMode)
        used = [layer.scoring_mode for layer in self.layers if not layer.deterministic]
        return modes[max(map(modes.index, used))] if used else "accuracy"

    @property
    def models(self) -> tuple[LanguageModel, ...]:
        """The models of all branches."""
        return tuple(model for layer in self.layers for model in layer.models)

    def map_models(self, change: Callable[[LanguageModel], LanguageModel]) -> Parallel:
        """The same branches with other models."""
        return Parallel(layer.map_models(change) for layer in self.layers)

    @property
    def max_output_tokens(self) -> int:
        """The longest outputs of all branches together, in tokens."""
        return sum(layer.max_output_tokens for layer in self.layers)

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """One tuple of texts per input and seed."""
        columns = [
            layer.draw(inputs, [Key(seed).integer("branch", b) for seed in seeds], temperature)
            for b, layer in enumerate(self.layers)
        ]
        return [join(parts) for parts in zip(*columns, strict=True)]

    def log_prob(self, inputs: Sequence[LayerInput], outputs: Sequence[Target]) -> list[TokenLogProbs]:
        """Σ_b log p_b(h^b | input), as the tokens of all branches: first those that carry text."""
        tuples = [parts_of(output, len(self)) for output in outputs]
        columns = [layer.log_prob(inputs, [parts[b] for parts in tuples]) for b, layer in enumerate(self.layers)]
        return [_together(row) for row in zip(*columns, strict=True)]

    def state(self) -> dict[str, Any]:
        """The states of the branches."""
        return {"branches": [layer.state() for layer in self.layers]}

    def with_state(self, state: Mapping[str, Any], where: str) -> Parallel:
        """The same branches with their states."""
        given = state.get("branches")
        states = cast("list[Mapping[str, Any]]", given if isinstance(given, list) else [])
        if set(state) != {"branches"} or len(states) != len(self):
            raise InputError(
                "the state is not one of parallel layers",
                where=where,
                got=shown(dict(state)),
                expected=f"'branches', a list of {len(self)} states",
            )
        return Parallel(
            layer.with_state(inner, f"{where}.branches.{b}")
            for b, (layer, inner) in enumerate(zip(self.layers, states, strict=True))
        )

    def to_json(self) -> dict[str, Any]:
        """The branches as plain data."""
        return {"kind": "parallel", "branches": [layer.to_json() for layer in self.layers]}


def _together(scores: Sequence[TokenLogProbs]) -> TokenLogProbs:
    text = [score.values[: score.text_tokens] for score in scores]
    rest = [score.values[score.text_tokens :] for score in scores]
    return TokenLogProbs(np.concatenate([*text, *rest]), sum(score.text_tokens for score in scores))


@checked
@dataclass(frozen=True, eq=False, init=False)
class FunctionLayer(Layer):
    """A Python function as a layer: deterministic, without prompt and without model.

    Args:
        function: (x, h) → text, of the network's input and the text of the layer below (in the first layer, h is x).
            The texts of parallel layers below are separated by blank lines.
        name: where it can be imported from, `module:name`; `function_layer` sets it.
    """

    deterministic = True

    function: TextFunction
    name: str

    def __init__(self, function: TextFunction, name: str = "") -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(
            self, "name", name or f"{function.__module__}:{getattr(function, '__qualname__', 'function')}"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: a function has no parameters."""
        return self

    def __repr__(self) -> str:
        return f"FunctionLayer({self.name})"

    def __call__(self, x: str, h: str) -> str:
        """The function's text."""
        return self.function(x, h)

    def draw(
        self, inputs: Sequence[LayerInput], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Completion]:
        """The function's text of each input; seeds and temperature have no effect."""
        drawn: list[Completion] = []
        for item in inputs:
            text = cast(object, self.function(item.x, item.text))
            if not isinstance(text, str):
                raise InputError(
                    "the function of a layer must return a text",
                    where=self.name,
                    got=shown(text),
                    expected="a str",
                )
            drawn.append(Completion(text, log_probs=(0.0,), sampling_log_probs=(0.0,)))
        return drawn

    def to_json(self) -> dict[str, Any]:
        """The function's name.

        Raises:
            InputError: the function is not a `function_layer` at the top level of a module, so that it could not be
                loaded again.
        """
        found = by_name(self.name, self.name) if "<" not in self.name else None
        if not isinstance(found, FunctionLayer):
            raise InputError(
                "this function cannot be saved, because it cannot be loaded again",
                where=self.name,
                got="a lambda, an inner function or one without the decorator",
                expected="a function at the top level of a module with the decorator dln.function_layer",
                fix="@dln.function_layer above its def",
            )
        return {"kind": "function", "function": self.name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], load: Load, where: str) -> FunctionLayer:
        """The layer that `function_layer` made of the named function; nothing else is loaded, and nothing called."""
        name = str(data.get("function", ""))
        found = by_name(name, where)
        if not isinstance(found, FunctionLayer):
            raise InputError(
                "this is no layer", where=where, got=name, expected="a function with the decorator dln.function_layer"
            )
        return found


@checked
def function_layer(function: TextFunction) -> FunctionLayer:
    """Make a layer of a function of x and h (decorator).

    >>> @function_layer
    ... def shout(x: str, h: str) -> str:
    ...     return h.upper()
    >>> shout("a", "b")
    'B'
    """
    return FunctionLayer(function)
