"""A budget makes the beginning of training smaller, never larger than it must be, and never what is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.train import Options, resolve_options
from dln.train.estimate import LayerSize, affordable, beginning, estimate, reduced

LAYERS = [LayerSize(context=60, demonstration=30, written=1, labels=4)]
NAMES = ["val_every", "inference.demonstrations", "inference.num_prompts"]


def tokens(options: Options) -> float:
    return estimate(LAYERS, options, train_size=300, dev_size=120, test_size=0).total.tokens


@given(st.integers(1_000, 2_000_000), st.sets(st.sampled_from(NAMES)), st.integers(1, 5), st.integers(1, 40))
def test_what_is_chosen_fits_or_cannot_be_made_smaller(budget: int, keep: set[str], val_every: int, num_prompts: int):
    wanted = resolve_options("default", {"val_every": val_every, "inference": {"num_prompts": num_prompts}})

    def fits(options: Options) -> bool:
        return tokens(options) <= budget

    chosen = affordable(wanted, fits, keep=keep)
    assert affordable(chosen, fits, keep=keep) == chosen
    assert not set(reduced(wanted, chosen)) & keep
    if fits(beginning(wanted)):
        assert chosen == wanted
    if not fits(beginning(chosen)):
        assert chosen == affordable(wanted, lambda _: False, keep=keep), "nothing smaller is left to try"


@given(st.integers(1_000, 2_000_000), st.integers(1_000, 2_000_000))
def test_a_larger_budget_never_gives_less(one: int, other: int):
    small, large = sorted((one, other))
    wanted = resolve_options("default")
    less, more = (affordable(wanted, lambda o, b=b: tokens(o) <= b) for b in (small, large))
    assert tokens(beginning(less)) <= tokens(beginning(more))
    assert less.inference.num_prompts <= more.inference.num_prompts
    assert max(less.inference.demonstrations) <= max(more.inference.demonstrations)


@pytest.mark.parametrize(("preset", "changes"), [("paper", {}), ("default", {"steps": 0})])
def test_the_preset_to_compare_with_and_a_run_without_steps_stay(preset: str, changes: dict[str, Any]):
    wanted = resolve_options(preset, changes)
    assert affordable(wanted, lambda _: False) == wanted
