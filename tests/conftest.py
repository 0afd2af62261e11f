"""Fixtures that load something: the embedded model, a tiny random one, and the paper's data."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from dln.errors import ProviderError

if TYPE_CHECKING:
    from dln.lm.local.engine import TransformersLM

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits leaves the core to the other worker

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # so it is in a shell's background, and children would inherit it: the tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("quick", max_examples=10, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")  # `make test-all` asks for the other one


gc.disable()  # what is imported and compiled until all tests are collected stays: a third of the time goes into asking


def pytest_collection_finish() -> None:
    """Collect garbage from now on, and never look at what is there already."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "Input: a thriller without thrills\nLabel: negative",
    "who is the president of the united states? yes or no, yes no, number 12 345",
]


def build_tiny_model(
    folder: Path, *, seed: int = 0, context_length: int = 256, corpus: Sequence[str] = CORPUS, words: int = 360
) -> Path:
    """Write a random two-layer Llama with a small byte-level tokenizer as a safetensors folder.

    With more `words` in its vocabulary, learnt from a larger corpus, the model reads fewer tokens.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|eos|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",  # noqa: S106 - a token of text
        eos_token="<|eos|>",  # noqa: S106 - a token of text
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.15,  # spreads the logits, so that tokens differ in probability
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_lm(tiny_folder: Path) -> TransformersLM:
    """A tiny random model, loaded as any folder is."""
    from dln.lm.local.checkpoint import Source
    from dln.lm.local.engine import TransformersLM

    return TransformersLM.load(Source(str(tiny_folder), device="cpu"), name=f"hf/{tiny_folder}")


@pytest.fixture(scope="session")
def smollm2() -> Iterator[TransformersLM]:
    """The embedded model as a completion model, fetched once where that is possible."""
    from dln.lm.load import load_lm
    from dln.lm.local.engine import TransformersLM

    try:
        lm = load_lm("smollm2", device="cpu")
    except ProviderError as error:
        pytest.skip(f"the embedded model is not available: {error}")
    assert isinstance(lm, TransformersLM)
    yield lm


@pytest.fixture(scope="session")
def paper_data() -> Path:
    """The directory of the paper's data: `DLN_PAPER_DATA`, or `../shared/data` beside the checkout."""
    chosen = os.environ.get("DLN_PAPER_DATA")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the paper's data is not at {folder}; set DLN_PAPER_DATA to its directory")
    return folder
