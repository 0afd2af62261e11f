"""Continuous batching: what is fed and held, who runs with whom, and that none of it changes a draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.lm.base import Sampling
from dln.lm.local.checkpoint import Source
from dln.lm.local.decoding import REPLACEMENT, StopSearch, stop_at
from dln.lm.local.engine import TransformersLM
from dln.lm.local.kv_cache import ROOT, BranchingCache, SlotTrie, why_fixed_batches

SKEWED = Sampling(1.0, max_tokens=60)
WORDS = ("a", "b", "yes", "no", "345", "who")
STEM = "the cat sat on the mat and the dog sat on the log"


def skewed_contexts() -> list[str]:
    """Six contexts with a common beginning, four draws each."""
    return [f"{STEM}\nInput: {word}\nLabel:" for word in WORDS for _ in range(4)]


@pytest.fixture
def lm(tiny_folder) -> TransformersLM:
    """A tiny model whose counters nobody else has moved."""
    return TransformersLM.load(Source(str(tiny_folder), "cpu"), name="tiny")


@pytest.mark.slow
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3), st.data())
@settings(deadline=None, max_examples=300)
def test_stop_strings_are_found_when_they_are_in_the_whole_text(tiny_lm, text, stop, data):
    """With stop strings cut out of the text itself, and bytes that end in the middle of a character."""
    if text and data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(text) - 1))
        stop = [*stop, text[start : start + data.draw(st.integers(1, 5))]]
    codec = tiny_lm.codec
    ids = [*codec.target_ids(text), *data.draw(st.lists(st.integers(5, tiny_lm.network.vocabulary - 1), max_size=6))]
    search = StopSearch(tuple(stop), codec.text)
    for count, token in enumerate(ids, 1):
        whole = codec.text(ids[:count]).rstrip(REPLACEMENT)
        found = stop_at(whole, tuple(stop)) is not None
        assert search.add(token) == found
        if found:
            break


def test_looking_for_stop_strings_decodes_a_few_ids_per_token(tiny_lm):
    decoded: list[int] = []

    def text(ids):
        decoded.append(len(ids))
        return tiny_lm.codec.text(ids)

    search = StopSearch(("never this",), text)
    for token in tiny_lm.encode(STEM * 10):
        assert not search.add(token)
    assert max(decoded) == 1
    decoded.clear()
    search = StopSearch((), text)
    assert not search.add(7)
    assert decoded == []


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)), max_size=25))
def test_slots_hold_just_the_prefixes_of_what_is_held(actions):
    """Against a plain set of prefixes, through additions, releases in any order and compaction."""
    trie = SlotTrie()
    held: list[tuple[int, ...]] = []
    ends: list[int] = []
    for number, (adds, ids) in enumerate(actions):
        if adds or not held:
            path = trie.walk(ids)
            assert len(path) == max((len(p) for p in _prefixes(held) if ids[: len(p)] == p), default=0)
            if len(path) == len(ids):
                trie.hold(path[-1])
            known = len(path)
            for token in ids[known:]:
                path.append(trie.add(path[-1] if path else ROOT, token))
            for upper in path[known:-1]:
                trie.release(upper)
            held.append(ids)
            ends.append(path[-1])
        else:
            index = len(ids) % len(held)
            held.pop(index)
            trie.release(ends.pop(index))
        if number % 3 == 2:
            new = {int(slot): i for i, slot in enumerate(trie.compact())}
            ends = [new[slot] for slot in ends]
            assert trie.height == trie.used
        assert trie.used == len(_prefixes(held))
        slots = [trie.walk(ids) for ids in held]
        assert [path[-1] for path in slots] == ends
        assert len({slot for path in slots for slot in path}) == trie.used


def _prefixes(rows) -> set[tuple[int, ...]]:
    return {row[: i + 1] for row in rows for i in range(len(row))}


@pytest.mark.slow
def test_a_branch_sees_its_own_prefix_and_nothing_else(lm):
    """Logits of branches that join, grow, leave and are moved together, against a forward of each prefix alone."""
    generator = np.random.default_rng(0)
    cache = BranchingCache(lm.network, 8)
    running: list[tuple[list[int], object]] = []
    with lm.network.inference():
        for turn in range(24):
            if turn % 12 < 5:
                stem = [5, 6, 7, 8, 9][: generator.integers(1, 6)]
                prompts = [
                    tuple(stem + generator.integers(5, 30, size=n).tolist()) for n in generator.integers(1, 30, 3)
                ]
                prompts.append(prompts[0])
                branches, logits = cache.enter(prompts)
                running += [(list(prompt), branch) for prompt, branch in zip(prompts, branches, strict=True)]
                for prompt, values in zip(prompts, logits, strict=True):
                    np.testing.assert_allclose(values.numpy(), lm.network.next_logits(prompt), atol=1e-4)
            elif turn % 12 > 8:
                for _ in range(min(4, len(running) - 1)):
                    cache.leave(running.pop(int(generator.integers(len(running))))[1])
            tokens = generator.integers(5, 30, size=len(running)).tolist()
            logits = cache.step([branch for _, branch in running], tokens)
            for (ids, _), token, values in zip(running, tokens, logits, strict=True):
                ids.append(token)
                np.testing.assert_allclose(values.numpy(), lm.network.next_logits(ids), atol=1e-4)
        for _, branch in running:
            cache.leave(branch)
        assert cache.used == 0


def test_each_distinct_prefix_of_all_contexts_is_fed_once(lm):
    """Also where the draws of one context do not run all at once."""
    contexts = skewed_contexts()[::2]
    nodes = _prefixes([lm.context_ids(context) for context in contexts])
    assert why_fixed_batches(lm.network) is None  # finding out costs forwards, too
    for rows in (64, 3):
        before = lm.diagnostics
        draws = replace(lm, batch_rows=rows).sample(contexts, SKEWED, range(len(contexts)))
        after = lm.diagnostics
        fed = after["tokens"] - before["tokens"]
        drawn = sum(len(draw.token_ids) - 1 for draw in draws)  # a draw's last token is not fed
        if after["close_choices"] == before["close_choices"]:
            again = 0 if rows == 64 else len(contexts) // 2  # a prompt's last token, for draws that join later
            assert len(nodes) + drawn <= fed <= len(nodes) + drawn + again


def test_a_long_draw_does_not_hold_up_the_rest(lm):
    """Rows that are free are filled: steps are those of full batches, and not one longest draw per batch."""
    contexts = skewed_contexts()
    before = lm.diagnostics["forwards"]
    draws = replace(lm, batch_rows=8).sample(contexts, SKEWED, range(len(contexts)))
    forwards = lm.diagnostics["forwards"] - before
    lengths = [len(draw.token_ids) for draw in draws]
    assert min(lengths) < max(lengths) / 2
    fixed = sum(max(lengths[i : i + 8]) for i in range(0, len(lengths), 8))
    full = sum(lengths) / 8
    assert forwards < (fixed + full) / 2 + len(contexts) / 2 + max(lengths)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7, 0.9, 24, (" the", "s")),
        pytest.param(Sampling(1.0, max_tokens=24), marks=pytest.mark.slow),
        pytest.param(Sampling(0.0, max_tokens=12), marks=pytest.mark.slow),
    ],
)
def test_draws_depend_neither_on_rows_nor_on_room(lm, sampling):
    """With a cache so small that draws give way to one another, too."""
    contexts = skewed_contexts()[::3]
    expected = replace(lm, batch_rows=1).sample(contexts, sampling, range(len(contexts)))
    for rows, tokens in ((48, None), (5, 12)):
        some = replace(lm, batch_rows=rows, batch_tokens=tokens)
        draws = some.sample(contexts, sampling, range(len(contexts)))
        assert [draw.token_ids for draw in draws] == [draw.token_ids for draw in expected]
        assert [draw.text for draw in draws] == [draw.text for draw in expected]
        for draw, wanted in zip(draws, expected, strict=True):
            np.testing.assert_allclose(draw.log_probs, wanted.log_probs, atol=1e-4)


@pytest.mark.slow
def test_the_cache_is_bounded(lm):
    contexts = skewed_contexts()
    lm = replace(lm, batch_tokens=24)
    lm.sample(contexts, SKEWED, range(len(contexts)))
    assert lm.diagnostics["peak_cached_tokens"] <= 8 * 24
    long = STEM * 6
    lm.sample([long], Sampling(1.0, max_tokens=5), [1])  # a draw that needs more by itself gets it
    assert lm.diagnostics["peak_cached_tokens"] > 8 * 24 or len(lm.context_ids(long)) < 8 * 24


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_the_same_in_any_batch(tiny_folder, dtype):
    lm = TransformersLM.load(Source(str(tiny_folder), "cpu", dtype), name="half")
    contexts = skewed_contexts()[::6]
    sampling = Sampling(0.7, 0.95, 6)
    draws = [replace(lm, batch_rows=n).sample(contexts, sampling, range(len(contexts))) for n in (1, 4, 32)]
    assert [d.token_ids for d in draws[0]] == [d.token_ids for d in draws[1]] == [d.token_ids for d in draws[2]]
    assert lm.diagnostics["close_choices"] > 0
    scores = lm.log_prob(contexts, draws[0])
    with torch.inference_mode():
        ids = [*lm.context_ids(contexts[0]), *draws[0][0].token_ids]
        table = lm.network.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    start = len(lm.context_ids(contexts[0]))
    expected = [float(table[t - 1, ids[t]]) for t in range(start, len(ids))]
    np.testing.assert_allclose(scores[0].values, expected, atol=2 * lm.network.noise)


def test_models_whose_caches_cannot_branch_draw_in_fixed_batches(tmp_path, tiny_folder):
    """A sliding window belongs to a row; draws are those of one at a time all the same."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 345, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=6)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    lm = TransformersLM.load(Source(str(tmp_path), "cpu"), name="sliding")
    assert why_fixed_batches(lm.network)
    contexts = skewed_contexts()[::5]
    sampling = Sampling(1.0, max_tokens=10)
    alone = replace(lm, batch_rows=1).sample(contexts, sampling, range(len(contexts)))
    together = replace(lm, batch_rows=8).sample(contexts, sampling, range(len(contexts)))
    assert [draw.token_ids for draw in together] == [draw.token_ids for draw in alone]
