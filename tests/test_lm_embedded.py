"""The embedded model: found, fetched, verified, mended; and what `load_lm` makes of a spec."""

from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dln.errors import CorruptDataError, InputError, ProviderError
from dln.io import file_digest
from dln.lm import laws as drawing_laws
from dln.lm import laws as scoring_laws
from dln.lm import smollm2 as embedded_fetch
from dln.lm.base import Sampling
from dln.lm.laws import Law, LawCase
from dln.lm.load import load_lm
from dln.lm.local.engine import TransformersLM
from dln.lm.smollm2 import EmbeddedModel, embedded_model_path, pull, verify
from dln.numerics import log_softmax

CONTENT = b"GGUF" + bytes(range(256)) * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_model/toy.gguf", CONTENT)
    return path


@pytest.fixture
def toy(wheel: Path) -> EmbeddedModel:
    content = wheel.read_bytes()
    return EmbeddedModel(
        "toy-model", "toy_model", "1.0", len(content), sha256(content), "toy.gguf", len(CONTENT), sha256(CONTENT)
    )


class Shop:
    """A fetch step that hands out a prepared wheel and counts its customers."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.calls = 0

    def __call__(self, model: EmbeddedModel, folder: Path) -> Path:
        self.calls += 1
        target = folder / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return target


def test_is_fetched_once_and_then_found(toy: EmbeddedModel, wheel: Path, cache: Path) -> None:
    shop = Shop(wheel)
    for _ in range(3):
        path = embedded_model_path(toy, fetch=shop)
    assert path == toy.cached_path == cache / "models" / "toy.gguf"
    assert path.read_bytes() == CONTENT
    assert shop.calls == 1
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".fetch")]


@pytest.mark.parametrize("damage", [CONTENT[:-7], b"", CONTENT[:100] + b"!" + CONTENT[101:]])
def test_a_damaged_file_is_detected_and_fetched_again(
    toy: EmbeddedModel, wheel: Path, cache: Path, damage: bytes
) -> None:
    shop = Shop(wheel)
    path = pull(toy, fetch=shop)
    path.write_bytes(damage)
    assert not verify(path, toy)
    assert embedded_model_path(toy, fetch=shop).read_bytes() == CONTENT
    assert shop.calls == 2


def test_an_installed_copy_is_used_without_importing_it(
    toy: EmbeddedModel, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "toy_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "toy.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")

    def closed(model: EmbeddedModel, folder: Path) -> Path:
        raise AssertionError("nothing needs fetching")

    assert embedded_model_path(toy, fetch=closed) == package / "toy.gguf"
    assert "toy_model" not in sys.modules


def test_another_wheel_than_the_expected_one_is_refused(toy: EmbeddedModel, wheel: Path, cache: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptDataError, match="not the expected one"):
        pull(toy, fetch=Shop(wheel))
    assert not toy.cached_path.exists()


def test_pulls_at_once_fetch_once(toy: EmbeddedModel, wheel: Path, cache: Path) -> None:
    shop = Shop(wheel)
    threads = [threading.Thread(target=pull, args=(toy,), kwargs={"fetch": shop}) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(toy.cached_path, toy)
    assert shop.calls == 1


def test_offline_and_missing_is_one_error_with_the_way_out(
    toy: EmbeddedModel, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ProviderError, match="dln model pull") as caught:
        embedded_model_path(toy)
    assert str(toy.cached_path) in str(caught.value)
    assert "No matching distribution" in str(caught.value.got)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1  # a plain line off a terminal


def test_pip_is_asked_and_its_wheel_is_used(
    toy: EmbeddedModel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    built = links / "toy_model-1.0-py3-none-any.whl"
    metadata = "toy_model-1.0.dist-info"
    with zipfile.ZipFile(built, "w") as archive:
        archive.writestr("toy_model/toy.gguf", CONTENT)
        archive.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    content = built.read_bytes()
    model = replace(toy, wheel_size=len(content), wheel_sha256=sha256(content))
    assert pull(model, fetch=embedded_fetch.fetch_wheel).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(
    toy: EmbeddedModel, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DLN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ProviderError, match="DLN_CACHE_DIR"):
        pull(toy, fetch=Shop(wheel))


def test_digests_follow_the_content(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        assert file_digest(path) == file_digest(path) == sha256(content)
    for record in (cache / "digests").iterdir():
        record.write_text('{"torn')
    assert file_digest(path) == sha256(b"three")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("smollm", "smollm2"),
        ("hff/x", "hf/"),
        ("", "smollm2"),
        ("smollm2:chatty", "smollm2:chat"),
        ("hf/", "hf/"),
        ("gguf", "gguf/"),
    ],
)
def test_an_unknown_spec_lists_the_known_ones(spec: str, hint: str) -> None:
    with pytest.raises(InputError, match="model") as caught:
        load_lm(spec)
    assert hint in str(caught.value)


@pytest.mark.parametrize("spec", ["hf//no/such/folder", "gguf/no/such.gguf", "./none.gguf", "hf/./none"])
def test_a_missing_file_is_one_clear_error(spec: str) -> None:
    with pytest.raises(InputError, match="there is no such model"):
        load_lm(spec)


def test_a_damaged_folder_is_one_clear_error(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 2000 if file.suffix == ".safetensors" else None])
    with pytest.raises(CorruptDataError, match="cannot be read"):
        load_lm(f"hf/{tmp_path}")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(CorruptDataError, match="cannot be read"):
        load_lm(str(tmp_path / "broken.gguf"))


def test_a_hub_id_without_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ProviderError, match="could not download"):
        load_lm("hf/no-such-organisation/no-such-model")


def test_a_spec_loaded_twice_shares_its_weights(tiny_folder: Path) -> None:
    one = load_lm(f"hf/{tiny_folder}", device="cpu")
    two = load_lm(f"hf/{tiny_folder}:chat", device="cpu", dtype="float32", batch_rows=2)
    assert isinstance(one, TransformersLM)
    assert isinstance(two, TransformersLM)
    assert one.checkpoint is two.checkpoint
    device = str(one.network.device)
    usual = load_lm(f"hf/{tiny_folder}")
    assert isinstance(usual, TransformersLM)
    assert (usual.checkpoint is one.checkpoint) == (str(usual.network.device) == device), "auto is another name for it"
    assert (one.chat, two.chat) == (False, True)
    assert (one.name, two.name) == (f"hf/{tiny_folder}", f"hf/{tiny_folder}:chat")
    with pytest.raises(InputError, match="batch_tokens"):
        load_lm(f"hf/{tiny_folder}", batch_size=3)


LAWS_WORTH_A_REAL_MODEL = (
    scoring_laws.batch_equals_single,
    scoring_laws.label_masses_are_a_distribution,
    pytest.param(scoring_laws.next_tokens_are_scores, marks=pytest.mark.slow),
    pytest.param(scoring_laws.next_tokens_are_a_distribution, marks=pytest.mark.slow),
    pytest.param(drawing_laws.kept_log_probs_are_scores, marks=pytest.mark.slow),
    pytest.param(drawing_laws.draws_ignore_neighbours, marks=pytest.mark.slow),
    pytest.param(drawing_laws.stop_is_obeyed, marks=pytest.mark.slow),
)
CONTEXTS = ["Input: a thriller without thrills Label:", "The capital of France is"]


@pytest.mark.model
@pytest.mark.parametrize("law", LAWS_WORTH_A_REAL_MODEL, ids=lambda law: law.__name__)
def test_laws_of_the_embedded_model(smollm2: TransformersLM, law: Law) -> None:
    case = LawCase(CONTEXTS, [" negative", " Paris, of course"], [" positive", " negative", " neg"])
    assert law(smollm2, case) == "holds"


@pytest.mark.model
@pytest.mark.parametrize("chat", [False, True])
def test_embedded_scores_are_those_of_plain_calls(smollm2: TransformersLM, chat: bool) -> None:
    lm = smollm2.with_chat(chat)
    tokenizer, target = lm.codec.tokenizer, " Paris, of course"
    for context in CONTEXTS:
        if chat:
            turn = [{"role": "user", "content": context}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            before = tokenizer.encode(text, add_special_tokens=False)
        else:
            before = tokenizer.encode(context)
        after = tokenizer.encode(target, add_special_tokens=False)
        with torch.inference_mode():
            logits = lm.network.model(input_ids=torch.tensor([[*before, *after]])).logits[0]
        table = log_softmax(logits.double().numpy())
        expected = [table[len(before) - 1 + t, token] for t, token in enumerate(after)]
        np.testing.assert_allclose(lm.log_prob([context], [target])[0].values, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_model_knows_something(smollm2: TransformersLM) -> None:
    chat = smollm2.with_chat(True)
    assert "Paris" in chat.sample(["What is the capital of France?"], Sampling(max_tokens=12), [0])[0].text
    masses = smollm2.choice_log_probs(["The capital of France is"], [" Paris", " London", " Rome"])
    assert masses.argmax() == 0
    ended = chat.sample(["What is the capital of France?"], Sampling(max_tokens=40), [0])[0]
    assert ended.finish_reason == "stop"
    assert "<|" not in ended.text


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("sampling", "count"),
    [
        (Sampling(0.7, max_tokens=4), 3),
        pytest.param(Sampling(0.7, max_tokens=8), 6, marks=pytest.mark.slow),
        pytest.param(Sampling(0.0, max_tokens=8), 6, marks=pytest.mark.slow),
    ],
)
def test_embedded_draws_do_not_depend_on_the_batch(smollm2: TransformersLM, sampling: Sampling, count: int) -> None:
    contexts = [f"{context} {'and ' * (i % 5)}" for i, context in enumerate(CONTEXTS * 3)][:count]
    draws = [
        [d.token_ids for d in replace(smollm2, batch_rows=rows).sample(contexts, sampling, range(count))]
        for rows in (1, count)
    ]
    assert draws[0] == draws[1]
