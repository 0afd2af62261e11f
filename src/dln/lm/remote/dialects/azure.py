"""Azure OpenAI: the form of OpenAI under a resource's own address; the model is the name of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dln.lm.remote.dialects.openai import OpenAI

__all__ = ["Azure"]


@dataclass(frozen=True)
class Azure(OpenAI):
    """OpenAI, hosted by Azure."""

    name: ClassVar[str] = "azure"
    default_url: ClassVar[str | None] = None
    example_url: ClassVar[str] = "https://my-resource.openai.azure.com/openai/v1"
    key_variables: ClassVar[tuple[str, ...]] = ("AZURE_OPENAI_API_KEY",)
    url_variables: ClassVar[tuple[str, ...]] = ("AZURE_OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT")
