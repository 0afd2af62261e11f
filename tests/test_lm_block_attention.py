"""Attention in blocks of rows: every row sees what the pack's mask says, and the numbers are those of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dln.lm.local import attention as block_attention
from dln.lm.local import scoring as packed
from dln.lm.local.attention import attending, blocks_of
from dln.lm.local.plan import Plan

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=14)


@given(sequences, st.integers(1, 12), st.integers(1, 5))
def test_blocks_show_each_row_what_the_mask_shows(rows, budget, size):
    for pack in Plan.of(rows).packs(budget):
        blocks = blocks_of(pack.mask, torch.float32, torch.device("cpu"), size)
        assert [i for block in blocks for i in range(*block.rows.indices(10**6))] == list(range(len(pack.mask)))
        for block in blocks:
            shown = np.zeros((block.rows.stop - block.rows.start, pack.mask.shape[1]), dtype=bool)
            keys = np.arange(pack.mask.shape[1])[block.keys if isinstance(block.keys, slice) else block.keys.numpy()]
            shown[:, keys] = (block.mask[0, 0] == 0).numpy()
            np.testing.assert_array_equal(shown, pack.mask[block.rows])
            assert len(keys) <= pack.mask[block.rows].any(axis=0).nonzero()[0][-1] + 1


def pairs():
    stems = ["the cat sat on the mat " * 4, "a dog on a log " * 6, "the cat sat"]
    contexts = [f"{stem} Input: {word}" for stem in stems for word in ("one", "two", "three")]
    return contexts * 2, [" yes the cat"] * len(contexts) + [" no, a dog sat"] * len(contexts)


@pytest.mark.parametrize(("rows", "gathered"), [(1, 0.7), (3, 0.0), (3, 1.1), (7, 0.7), (64, 0.7)])
def test_scores_do_not_depend_on_the_blocks(tiny_lm, monkeypatch, rows, gathered):
    expected = tiny_lm.log_prob(*pairs())
    monkeypatch.setattr(block_attention, "GATHERED", gathered)
    monkeypatch.setattr(packed, "blocks_of", lambda mask, dtype, device: blocks_of(mask, dtype, device, rows))
    called: list[int] = []
    chosen = block_attention._chosen
    monkeypatch.setattr(block_attention, "_chosen", lambda *args: called.append(1) or chosen(*args))
    for one, other in zip(replace(tiny_lm, batch_tokens=40).log_prob(*pairs()), expected, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=2e-5)
    assert called


def test_the_model_is_as_it_was_afterwards(tiny_lm):
    model = tiny_lm.network.model
    blocks = blocks_of(np.ones((1, 1), dtype=bool), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="broken"), attending(model, blocks):
        assert model.config._attn_implementation == block_attention.NAME
        raise ValueError("broken")
    assert model.config._attn_implementation == "sdpa"


def test_another_attention_is_left_alone_and_gives_the_same(tiny_lm):
    expected = tiny_lm.log_prob(*pairs())
    model = tiny_lm.network.model
    model.set_attn_implementation("eager")
    try:
        with attending(model, ()):
            assert model.config._attn_implementation == "eager"
        for one, other in zip(tiny_lm.log_prob(*pairs()), expected, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=2e-5)
    finally:
        model.set_attn_implementation("sdpa")
