"""Ollama: the OpenAI form, with the likeliest tokens of a chat's answer in recent versions and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dln.lm.remote.dialects.openai import OpenAI

__all__ = ["Ollama"]


@dataclass(frozen=True)
class Ollama(OpenAI):
    """An Ollama server."""

    name: ClassVar[str] = "ollama"
    hosted: ClassVar[bool] = False
    default_url: ClassVar[str | None] = "http://localhost:11434/v1"
    example_url: ClassVar[str] = "http://localhost:11434/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("OLLAMA_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("OLLAMA_BASE_URL",)
    chat_tokens_field: ClassVar[str] = "max_tokens"

    def wire_seed(self, seed: int) -> int:
        """The seed as the server takes it: 31 bits, so that it stays a C int."""
        return seed % 2**31
