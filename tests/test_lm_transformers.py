"""The in-process engine on a tiny random model: the laws, the token boundary, batches, limits, errors."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import build_tiny_model
from dln.errors import ContextLengthError, InputError
from dln.lm.base import Completion, LanguageModel, Sampling, Token
from dln.lm.laws import LAWS, Law, LawCase
from dln.lm.local.checkpoint import Source, load_checkpoint
from dln.lm.local.decoding import Draw, DrawRequest, decode_plain
from dln.lm.local.engine import TransformersLM
from dln.lm.local.kv_cache import why_fixed_batches
from dln.lm.local.model import CausalModel
from dln.lm.local.scoring import why_plain
from dln.numerics import log_softmax, logsumexp

CONTEXTS = ["the cat sat", "on the mat and\n", "", "Input: é🙂 who is"]
TARGETS = ["the dog", " yes no", " number 12"]
LABELS = [" yes", " no", " yes no", " n"]


def plain_log_probs(lm: TransformersLM, ids: list[int]) -> np.ndarray:
    """[T, V] by the most direct call there is: one sequence, no padding, the whole head."""
    with torch.inference_mode():
        logits = lm.network.model(input_ids=torch.tensor([ids])).logits[0]
    return log_softmax(logits.double().numpy())


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(tiny_lm: TransformersLM, law: Law, chat: bool) -> None:
    assert law(tiny_lm.with_chat(chat), LawCase(CONTEXTS, TARGETS, LABELS)) == "holds"


def test_is_a_language_model(tiny_lm: TransformersLM) -> None:
    assert isinstance(tiny_lm, LanguageModel)


@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_plain_calls(tiny_lm: TransformersLM, chat: bool) -> None:
    lm = tiny_lm.with_chat(chat)
    for context, target in zip(CONTEXTS, [*TARGETS, ""], strict=True):
        before, after = list(lm.codec.context_ids(context, chat)), list(lm.codec.target_ids(target))
        table = plain_log_probs(lm, before + after)
        expected = [table[len(before) - 1 + t, token] for t, token in enumerate(after)]
        np.testing.assert_allclose(lm.log_prob([context], [target])[0].values, expected, atol=1e-5)


def test_context_and_target_are_encoded_apart(tiny_lm: TransformersLM) -> None:
    together = tiny_lm.codec.context_ids("the c", False) + tiny_lm.codec.target_ids("at")
    assert together != tiny_lm.codec.context_ids("the cat", False)  # a merge across the boundary exists
    score = tiny_lm.log_prob(["the c"], ["at"])[0]
    assert len(score.values) == len(tiny_lm.codec.target_ids("at"))


def test_special_tokens_in_a_target_are_text(tiny_lm: TransformersLM) -> None:
    assert not set(tiny_lm.codec.target_ids("a<|end|>b")) & set(tiny_lm.codec.tokenizer.all_special_ids)


def test_draws_are_scored_on_their_ids_by_both_siblings(tiny_lm: TransformersLM) -> None:
    chat = tiny_lm.with_chat(True)
    draw = chat.sample(["who is"], Sampling(1.0, max_tokens=12), [5])[0]
    assert draw.token_ids is not None
    shown = draw.with_text("quite another text")
    for lm in (tiny_lm, chat):
        assert len(lm.log_prob(["who is"], [shown])[0].values) == len(draw.token_ids)
    foreign = replace(shown, model="another model")
    assert len(tiny_lm.log_prob(["who is"], [foreign])[0].values) == tiny_lm.count_tokens(foreign.text)


def test_labels_match_a_direct_computation(tiny_lm: TransformersLM) -> None:
    masses = np.exp(tiny_lm.choice_log_probs(CONTEXTS, LABELS))
    ids = [list(tiny_lm.codec.target_ids(label)) for label in LABELS]
    for context, row in zip(CONTEXTS, masses, strict=True):
        before = list(tiny_lm.codec.context_ids(context, False))
        for label, mass in zip(ids, row, strict=True):
            table = np.exp(plain_log_probs(tiny_lm, before + label))[len(before) - 1 :]
            expected = math.prod(table[t, token] for t, token in enumerate(label))
            longer = {other[len(label)] for other in ids if other != label and other[: len(label)] == label}
            expected *= 1 - sum(table[len(label), token] for token in longer)
            assert mass == pytest.approx(expected, rel=1e-4)


def test_one_token_labels_cost_one_row_per_context(tiny_lm: TransformersLM, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["a", "b", "c"]
    assert all(tiny_lm.count_tokens(label) == 1 for label in labels)
    shapes: list[tuple[int, ...]] = []
    head = tiny_lm.network.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    try:
        tokens = tiny_lm.diagnostics["tokens"]
        tiny_lm.choice_log_probs(CONTEXTS, labels)
    finally:
        hook.remove()
    assert sum(shape[1] for shape in shapes) == len(CONTEXTS)
    fed = sum(len(tiny_lm.codec.context_ids(context, False)) for context in CONTEXTS)
    assert tiny_lm.diagnostics["tokens"] - tokens == fed


def test_the_head_sees_only_rows_that_predict_a_target(tiny_lm: TransformersLM) -> None:
    rows: list[int] = []
    head = tiny_lm.network.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[1]))
    try:
        tiny_lm.log_prob(CONTEXTS[:3], TARGETS)
    finally:
        hook.remove()
    assert sum(rows) == sum(map(tiny_lm.count_tokens, TARGETS))


def respell(model: Any, name: str) -> None:
    """Call the model's argument for the key-value cache, and the attribute of its output, `name` and nothing else."""
    forward = model.forward
    own = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"

    def call(cache: object, inputs: dict[str, object]) -> SimpleNamespace:
        output = forward(**inputs, **{own: cache})
        return SimpleNamespace(**{"logits": output.logits, name: getattr(output, own)})

    def with_cache(*, input_ids: Any, position_ids: Any = None, cache: Any = None, **rest: Any) -> SimpleNamespace:
        assert "past_key_values" not in rest
        return call(cache, {"input_ids": input_ids, "position_ids": position_ids, **rest})

    def with_past(
        *, input_ids: Any, position_ids: Any = None, past_key_values: Any = None, **rest: Any
    ) -> SimpleNamespace:
        assert "cache" not in rest
        return call(past_key_values, {"input_ids": input_ids, "position_ids": position_ids, **rest})

    model.forward = with_cache if name == "cache" else with_past


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_key_value_cache_may_have_either_name(tiny_folder: Path, name: str) -> None:
    loaded = load_checkpoint(Source(str(tiny_folder), "cpu"))
    respell(loaded.network.model, name)
    network = CausalModel(loaded.network.model, loaded.network.identity)
    assert why_plain(network) is None  # scores that go on from a cache are those of forwards without one
    assert why_fixed_batches(network) is None  # so are draws that branch from one
    greedy = Sampling(0.0, max_tokens=4)
    for draw in decode_plain(
        network, [Draw(DrawRequest(p, 0), greedy, loaded.codec) for p in ((5, 6, 7), (8, 9))], greedy
    ):
        for count, token in enumerate(draw.ids):
            assert token == network.next_logits([*draw.request.prompt, *draw.ids[:count]]).argmax()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7, max_tokens=20),
        *(pytest.param(other, marks=pytest.mark.slow) for other in (Sampling(0.7, 0.9, 20), Sampling(0.0, 1.0, 20))),
    ],
)
@pytest.mark.parametrize("sizes", [(1, 16), pytest.param((1, 3, 16, 64), marks=pytest.mark.slow)])
def test_draws_do_not_depend_on_the_batch_even_under_noise(
    tiny_folder: Path, sampling: Sampling, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of several sizes, each logit of a batch disturbed as much as the engine allows for."""
    lm = TransformersLM.load(Source(str(tiny_folder), "cpu"), name="tiny")
    lm.network.noise = 0.01
    contexts = [f"the cat {i} " * (i % 7 + 1) for i in range(sizes[-1])]
    generator = torch.Generator().manual_seed(0)
    forward = CausalModel.forward

    def noisy(self: CausalModel, rows: object, slice_rows: int | None = None, **inputs: object) -> object:
        cache, slices = forward(self, rows, slice_rows, **inputs)
        if not inputs["use_cache"]:  # a forward of a prefix alone is what it is
            return cache, slices
        return cache, (part + (torch.rand(part.shape, generator=generator) * 2 - 1) * 0.0099 for part in slices)

    monkeypatch.setattr(CausalModel, "forward", noisy)
    draws = [
        [draw.token_ids for draw in replace(lm, batch_rows=rows).sample(contexts, sampling, range(len(contexts)))]
        for rows in sizes
    ]
    assert all(other == draws[0] for other in draws)
    assert lm.diagnostics["close_choices"] > 0
    assert len(set(draws[0])) > len(contexts) // 2


def test_equal_calls_give_equal_bits(tiny_lm: TransformersLM) -> None:
    once, again = (tiny_lm.log_prob(CONTEXTS[:3], TARGETS) for _ in range(2))
    assert all(np.array_equal(a.values, b.values) for a, b in zip(once, again, strict=True))
    assert tiny_lm.sample(CONTEXTS, Sampling(1.0, max_tokens=8), [1, 2, 3, 4]) == tiny_lm.sample(
        CONTEXTS, Sampling(1.0, max_tokens=8), [1, 2, 3, 4]
    )


def test_draws_of_one_context_share_its_prefill(tiny_lm: TransformersLM) -> None:
    before = tiny_lm.diagnostics
    draws = tiny_lm.sample(["the cat sat on the mat"] * 8, Sampling(1.0, max_tokens=1), list(range(8)))
    after = tiny_lm.diagnostics
    if after["close_choices"] == before["close_choices"]:
        prompt = len(tiny_lm.codec.context_ids("the cat sat on the mat", False))
        assert after["tokens"] - before["tokens"] == prompt
    assert len({draw.token_ids for draw in draws}) > 1


def test_stop_strings_end_the_text_but_not_the_ids(tiny_lm: TransformersLM) -> None:
    free = tiny_lm.sample(["the cat"], Sampling(1.0, max_tokens=30), [3])[0]
    assert free.token_ids is not None
    for start in range(1, len(free.text) - 2, 3):
        stop = free.text[start : start + 2]
        draw = tiny_lm.sample(["the cat"], Sampling(1.0, max_tokens=30, stop=(stop, "never this")), [3])[0]
        assert draw.text == free.text.partition(stop)[0]
        assert draw.finish_reason == "stop"
        assert draw.token_ids == free.token_ids[: len(draw.token_ids or ())]
        assert draw.text_tokens is not None
        assert draw.text.startswith(tiny_lm.codec.text(free.token_ids[: draw.text_tokens]))


def test_a_terminator_is_kept_among_the_ids_and_not_in_the_text(tiny_lm: TransformersLM) -> None:
    draws = tiny_lm.sample(["the cat"] * 80, Sampling(2.0, max_tokens=40), list(range(80)))
    ended = [draw for draw in draws if draw.finish_reason == "stop"]
    assert ended
    for draw in draws:
        ids = draw.token_ids or ()
        assert "<|" not in draw.text
        assert not set(ids[:-1]) & tiny_lm.codec.terminators
        assert (ids[-1] in tiny_lm.codec.terminators) == (draw.finish_reason == "stop")
        assert draw.text_tokens == len(ids) - (draw.finish_reason == "stop")


def test_too_long_requests_are_named_before_any_forward(tiny_lm: TransformersLM) -> None:
    forwards = tiny_lm.diagnostics["forwards"]
    long = "cat " * 300
    with pytest.raises(ContextLengthError, match=r"request 1: .*\n.*tokens\n.*256") as caught:
        tiny_lm.log_prob(["the", long], ["x", "y"])
    assert caught.value.fix
    with pytest.raises(ContextLengthError, match="request 0"):
        tiny_lm.choice_log_probs([long], ["yes", "no"])
    with pytest.raises(ContextLengthError, match="request 0: context and max_tokens"):
        tiny_lm.sample(["the"], Sampling(max_tokens=256), [0])
    assert tiny_lm.diagnostics["forwards"] == forwards


@pytest.mark.parametrize("why_plain", [None, "asked for by the test"])
def test_a_shortage_of_memory_halves_the_batch(
    tiny_lm: TransformersLM, monkeypatch: pytest.MonkeyPatch, why_plain: str | None
) -> None:
    contexts = [f"{word} 9 8 7 6 5 4 3 2 1 0 9 8" for word in ("cat", "dog", "log", "who")]
    expected = tiny_lm.log_prob(contexts[:3], TARGETS)
    drawn = tiny_lm.sample(contexts, Sampling(1.0, max_tokens=5), [1, 2, 3, 4])
    call = CausalModel._call

    def small_memory(self: CausalModel, rows: object, shown: int, **inputs: torch.Tensor) -> object:
        if inputs["input_ids"].numel() > 40:
            raise torch.OutOfMemoryError("too large")
        return call(self, rows, shown, **inputs)

    monkeypatch.setattr(CausalModel, "_call", small_memory)
    for reason in ("why_plain", "why_fixed_batches"):
        monkeypatch.setitem(tiny_lm.network.fallbacks, reason, why_plain)
    before = tiny_lm.diagnostics["out_of_memory_splits"]
    for got, wanted in zip(tiny_lm.log_prob(contexts[:3], TARGETS), expected, strict=True):
        np.testing.assert_allclose(got.values, wanted.values, atol=1e-5)
    between = tiny_lm.diagnostics["out_of_memory_splits"]
    assert between > before
    again = tiny_lm.sample(contexts, Sampling(1.0, max_tokens=5), [1, 2, 3, 4])
    assert [draw.token_ids for draw in again] == [draw.token_ids for draw in drawn]
    assert tiny_lm.diagnostics["out_of_memory_splits"] > between

    def nothing_fits(*_args: object, **_inputs: object) -> object:
        raise torch.OutOfMemoryError("none")

    monkeypatch.setattr(CausalModel, "_call", nothing_fits)
    with pytest.raises(InputError, match="memory"):
        tiny_lm.log_prob(["the"], ["cat"])


def test_what_is_not_finite_is_returned_as_it_is(tmp_path: Path) -> None:
    lm = TransformersLM.load(Source(str(build_tiny_model(tmp_path)), "cpu"), name="tiny")
    with torch.no_grad():
        lm.network.model.model.norm.weight[0] = torch.nan
    score = lm.log_prob(["the"], ["cat"])[0]
    assert np.isnan(score.values).all()
    assert not score.finite
    assert np.isnan(lm.choice_log_probs(["the"], ["a", "b"])).all()
    assert np.isnan(lm.sample(["the"], Sampling(1.0, max_tokens=2), [0])[0].log_probs or ()).all()


def test_fingerprints_follow_content_dtype_and_chat(tiny_folder: Path, tiny_lm: TransformersLM, tmp_path: Path) -> None:
    other = TransformersLM.load(Source(str(build_tiny_model(tmp_path, seed=1)), "cpu"), name="other")
    half = TransformersLM.load(Source(str(tiny_folder), "cpu", "bfloat16"), name="half")
    again = TransformersLM.load(Source(str(tiny_folder), "cpu"), name="again")
    prints = {lm.fingerprint() for lm in (tiny_lm, tiny_lm.with_chat(True), other, half)}
    assert len(prints) == 4
    assert again.fingerprint() == tiny_lm.fingerprint()
    assert half.tokens_id == tiny_lm.tokens_id != other.tokens_id
    assert tiny_lm.with_chat(True).network is tiny_lm.network


def test_half_precision_stays_a_distribution(tiny_folder: Path) -> None:
    lm = TransformersLM.load(Source(str(tiny_folder), "cpu", "bfloat16"), name="half")
    assert (logsumexp(lm.choice_log_probs(CONTEXTS, LABELS)) <= 1e-6).all()
    draws = [replace(lm, batch_rows=n).sample(CONTEXTS, Sampling(0.7, max_tokens=6), [1, 2, 3, 4]) for n in (1, 4)]
    assert [d.token_ids for d in draws[0]] == [d.token_ids for d in draws[1]]


def test_loading_is_quiet(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(Source(str(tiny_folder), "cpu"))
    assert capfd.readouterr() == ("", "")


def test_what_is_no_causal_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 360, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(**sizes, intermediate_size=32, initializer_range=0.5)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    t5 = T5Config(vocab_size=360, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    for kind in ("bert", "t5"):
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / kind)
        with pytest.raises(InputError, match="not a causal language model"):
            load_checkpoint(Source(str(tmp_path / kind), "cpu"))


def test_options_are_checked(tiny_lm: TransformersLM, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="batch_rows"):
        replace(tiny_lm, batch_rows=0)
    with pytest.raises(InputError, match="dtype"):
        load_checkpoint(Source(str(tiny_folder), "cpu", "int3"))
    with pytest.raises(InputError, match="device"):
        load_checkpoint(Source(str(tiny_folder), "abacus"))
    with pytest.raises(InputError, match="seeds"):
        tiny_lm.sample(["a", "b"], Sampling(), [1])


def test_a_completion_without_ids_is_scored_as_text(tiny_lm: TransformersLM) -> None:
    score = tiny_lm.log_prob(["the"], [Completion(" cat")])[0]
    assert np.array_equal(score.values, tiny_lm.log_prob(["the"], [" cat"])[0].values)


def test_importing_the_package_does_not_import_torch() -> None:
    modules = "import sys, dln, dln.lm.load, dln.lm.local.engine, dln.lm.smollm2"
    code = f"{modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_next_tokens_are_those_of_plain_calls(tiny_lm: TransformersLM, chat: bool, plain: bool) -> None:
    lm = tiny_lm.with_chat(chat)
    ids = [i for i in range(0, lm.network.vocabulary, 7) if lm.codec.token(i)]
    tokens = [token for token in map(lm.codec.token, ids) if token]
    if plain:
        lm.network.fallbacks["why_plain"] = "asked for by the test"
    try:
        found = lm.next_token_log_probs(CONTEXTS, tokens, 9)
    finally:
        lm.network.fallbacks.pop("why_plain", None)
    assert np.isneginf(found.bounds).all()
    for context, values, top in zip(CONTEXTS, found.log_probs, found.top, strict=True):
        expected = plain_log_probs(lm, list(lm.codec.context_ids(context, chat)))[-1]
        np.testing.assert_allclose(values, expected[ids], atol=1e-5)
        usable = sorted((i for i in range(len(expected)) if lm.codec.token(i)), key=lambda i: -expected[i])
        np.testing.assert_allclose([value for _, value in top], expected[usable[:9]], atol=1e-5)
        np.testing.assert_allclose([expected[token.id] for token, _ in top], expected[usable[:9]], atol=1e-5)


def test_top_tokens_are_texts_that_the_model_encodes_as_this_one_token(tiny_lm: TransformersLM) -> None:
    codec, size = tiny_lm.codec, tiny_lm.network.vocabulary
    (top,) = tiny_lm.next_token_log_probs(["the cat"], (), size).top
    shown = {token.id: token.text for token, _ in top}
    assert shown
    assert all(codec.target_ids(text) == (token_id,) for token_id, text in shown.items())
    assert not set(shown) & set(codec.tokenizer.all_special_ids)
    for left_out in set(range(size)) - set(shown):
        text = codec.token_bytes(left_out).decode("utf-8", "replace")
        assert "\ufffd" in text or codec.target_ids(text) != (left_out,)


def test_a_token_is_its_id_where_the_text_agrees_and_its_text_otherwise(tiny_lm: TransformersLM) -> None:
    (cat,) = tiny_lm.codec.target_ids(" cat")
    (special,) = tiny_lm.codec.tokenizer.encode("<|end|>", add_special_tokens=False)
    wanted = [
        Token(" cat"),
        Token(" cat", cat),
        Token(" cat", cat + 1),
        Token(" cat", 10**9),
        Token("<|end|>", special),
    ]
    row = tiny_lm.next_token_log_probs(["the"], wanted).log_probs[0]
    expected = plain_log_probs(tiny_lm, list(tiny_lm.codec.context_ids("the", False)))[-1]
    np.testing.assert_allclose(row, expected[[cat, cat, cat, cat, special]], atol=1e-5)
    for unknown in (Token("two words"), Token(""), Token("<|end|>"), Token("", special), Token("\ufffd", 3)):
        with pytest.raises(InputError, match="no such token"):
            tiny_lm.next_token_log_probs(["the"], [unknown])


def test_next_tokens_need_one_forward_row_per_distinct_context(tiny_lm: TransformersLM) -> None:
    contexts = ["the cat sat on the mat"] * 5
    tokens = [token for token in map(tiny_lm.codec.token, range(60)) if token]
    before = tiny_lm.diagnostics["tokens"]
    tiny_lm.next_token_log_probs(contexts, tokens, 3)
    assert tiny_lm.diagnostics["tokens"] - before == len(tiny_lm.context_ids(contexts[0]))
    before = tiny_lm.diagnostics["forwards"]
    tiny_lm.next_token_log_probs(contexts)
    assert tiny_lm.diagnostics["forwards"] == before, "nothing is wanted"
