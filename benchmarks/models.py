"""The models that are measured: the embedded one, any other that loads, and random ones of a given shape.

Speed does not depend on what the weights are. A random model of a known architecture can therefore be measured
where its weights are not available; its draws are noise, and they rarely end before they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dln.errors import InputError
from dln.lm.load import load_lm
from dln.lm.local.checkpoint import Checkpoint
from dln.lm.local.engine import TransformersLM
from dln.lm.local.model import CausalModel
from dln.lm.local.tokenizer import Codec, Tokenizer

__all__ = ["RANDOM_MODELS", "RandomModel", "bench_model", "with_layers"]


@dataclass(frozen=True)
class RandomModel:
    """A Llama of random weights; sizes as transformers' `LlamaConfig` names them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 8192


RANDOM_MODELS = {
    "llama-1b": RandomModel(2048, 8192, 16, 32, 8),
    "llama-tiny": RandomModel(64, 128, 2, 4, 2, 2048),
}
"""The shape of a Llama of a billion parameters, and one for tests."""


def bench_model(
    name: str, device: str = "auto", dtype: str = "auto", tokenizer: Path | None = None, batch_tokens: int | None = None
) -> TransformersLM:
    """The model called `name`.

    Args:
        name: one of `RANDOM_MODELS`, or what `load_lm` takes for a model in this process.
        device: "auto", "cpu", "cuda", …
        dtype: "auto", "float32", "bfloat16", …
        tokenizer: folder of a tokenizer for a random model; None takes the embedded model's.
        batch_tokens: tokens per pack; None takes what the engine takes.

    Raises:
        InputError: not a model in this process, or no such tokenizer.
    """
    shape = RANDOM_MODELS.get(name)
    if shape is None:
        lm = load_lm(name, device=device, dtype=dtype, batch_tokens=batch_tokens)
        if not isinstance(lm, TransformersLM):
            raise InputError("only models in this process are measured", where="model", got=name, expected="smollm2")
        return lm
    import torch
    from transformers import LlamaConfig

    words = _tokenizer(tokenizer)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device that torch can use", where="device", got=device, fix="cpu")
    config = LlamaConfig(
        vocab_size=len(words),
        tie_word_embeddings=True,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **vars(shape),
    )
    kind = ("bfloat16" if chosen.type == "cuda" else "float32") if dtype == "auto" else dtype
    return _random(config, Codec(cast(Tokenizer, words)), name, chosen, getattr(torch, kind), batch_tokens)


def with_layers(lm: TransformersLM, layers: int) -> TransformersLM:
    """A model of the same architecture and sizes with another number of layers, its weights random."""
    import copy

    network = lm.network
    config = copy.deepcopy(network.model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i % len(config.layer_types)] for i in range(layers)]
    name = f"{lm.name} with {layers} layers"
    return _random(config, lm.codec, name, network.device, network.model.dtype, lm.batch_tokens)


def _random(config: Any, codec: Codec, name: str, device: Any, dtype: Any, batch_tokens: int | None) -> TransformersLM:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.to(device).eval()
    return TransformersLM(name, Checkpoint(CausalModel(model, f"random {name}"), codec), batch_tokens=batch_tokens)


def _tokenizer(folder: Path | None) -> Any:
    if folder is None:
        return load_lm("smollm2", device="cpu").checkpoint.codec.tokenizer  # pyright: ignore
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise InputError("there is no such tokenizer", where="tokenizer", got=folder, expected="a folder")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
