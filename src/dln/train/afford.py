"""Smaller steps for a small budget, so that training gets to its first validation.

A budget that ends before the first validation buys nothing: training returns the prompts that it began with. So the
first of these is done that makes the beginning affordable, each as often as it helps before the next one: validate
after every step, leave the most worked examples out, propose fewer prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from dln.train.options import Options

__all__ = ["affordable", "beginning", "reduced"]

FEWEST_EXAMPLES, FEWEST_PROMPTS = 6, 4
"""Less than this is not worth a step."""


def affordable(options: Options, fits: Callable[[Options], bool], *, keep: Set[str] = frozenset()) -> Options:
    """`options`, or smaller ones under which the first validation fits; the smallest where none do.

    The preset "paper" stays as it is: it is there to be compared with.

    Args:
        options: what is wanted.
        fits: whether the budget suffices for a whole run with the options that it is given; those end with the first
            validation.
        keep: dotted names of options that stay as they are.
    """
    if options.preset == "paper" or options.steps == 0:
        return options
    while not fits(beginning(options)):
        smaller = _smaller(options, keep)
        if smaller is None:
            break
        options = smaller
    return options


def reduced(wanted: Options, chosen: Options) -> dict[str, tuple[Any, Any]]:
    """What `affordable` changed: dotted names → (wanted, chosen), as in a configuration."""
    sizes = list(wanted.inference.demonstrations), list(chosen.inference.demonstrations)
    pairs: dict[str, tuple[Any, Any]] = {
        "val_every": (wanted.val_every, chosen.val_every),
        "inference.demonstrations": sizes,
        "inference.num_prompts": (wanted.inference.num_prompts, chosen.inference.num_prompts),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def beginning(options: Options) -> Options:
    """A run that ends with the first validation after a step."""
    return options.model_copy(update={"steps": min(options.steps, options.val_every)})


def _smaller(options: Options, keep: Set[str]) -> Options | None:
    """The next smaller options; None where there are none."""
    if options.val_every > 1 and "val_every" not in keep:
        return options.model_copy(update={"val_every": 1})
    chosen = options.inference
    if "inference.demonstrations" not in keep and "demonstrations" in chosen.prompt_proposals:
        sizes = sorted(chosen.demonstrations)
        if len(sizes) > 1:
            return _with_inference(options, demonstrations=tuple(sizes[:-1]))
        if sizes[0] >= 2 * FEWEST_EXAMPLES:
            return _with_inference(options, demonstrations=(sizes[0] // 2,))
    if "inference.num_prompts" not in keep and chosen.num_prompts >= 2 * FEWEST_PROMPTS:
        return _with_inference(options, num_prompts=chosen.num_prompts // 2)
    return None


def _with_inference(options: Options, **changes: Any) -> Options:
    return options.model_copy(update={"inference": options.inference.model_copy(update=changes)})
