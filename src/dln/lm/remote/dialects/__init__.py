"""One small file for each kind of server: in what it differs from the OpenAI form with vLLM's additions."""

from __future__ import annotations

from dln.lm.remote.dialect import Dialect
from dln.lm.remote.dialects.azure import Azure
from dln.lm.remote.dialects.fireworks import Fireworks
from dln.lm.remote.dialects.ollama import Ollama
from dln.lm.remote.dialects.openai import OpenAI
from dln.lm.remote.dialects.sglang import SGLang
from dln.lm.remote.dialects.together import Together
from dln.lm.remote.dialects.vllm import VLLM

__all__ = ["DIALECTS"]

DIALECTS: dict[str, type[Dialect]] = {
    kind.name: kind for kind in (OpenAI, Azure, VLLM, SGLang, Together, Fireworks, Ollama, Dialect)
}
"""Known kinds of servers by the prefix of a model string; another one is one more file and one more entry."""
