"""vLLM: token ids in and out, prompt log-probabilities, and log-probabilities of chosen ids.

What is minded here, all of it in the shared form of `Dialect`:

- Labels are read off one step of decoding (`logprob_token_ids`), which uses the prefix cache. `prompt_logprobs`
  does not read it: a cached token has no log-probability any more. So it is kept for whole texts.
- `prompt_logprobs` has an entry per token of the prompt, keyed by its id as a string; the first is null.
- −9999.0 stands for −inf.
- `max_tokens: 0` with `echo` returns the prompt alone in some versions and one more token in others.
- Ids come back by `return_token_ids`, and as "token_id:123" by `return_tokens_as_token_ids`.
- `/tokenize` is at the server's root, and writes a chat up to where the assistant begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dln.lm.remote.dialect import Dialect

__all__ = ["VLLM"]


@dataclass(frozen=True)
class VLLM(Dialect):
    """A vLLM server, or one that answers like it."""

    name: ClassVar[str] = "vllm"
    key_variables: ClassVar[tuple[str, ...]] = ("VLLM_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("VLLM_BASE_URL", "OPENAI_BASE_URL")
