"""What the tests of the server share: a served model, public clients, a small network."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import openai

from dln.lm.base import LanguageModel
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.serve.models import served
from dln.serve.server import serving

__all__ = ["client_of", "refused", "running", "small_network"]

THOUGHTS = ["a light day", "a dark day", "rain again"]


@contextmanager
def running(model: LanguageModel | Sequential, name: str = "tiny", **options: Any) -> Generator[openai.OpenAI]:
    """The SDK's own client of a server around `model`."""
    with serving(served(model, name), **options) as url, client_of(url, options.get("key")) as client:
        yield client


def client_of(url: str, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=60)


def refused(call: Any, **fields: Any) -> openai.APIStatusError:
    """The error that a call ends with."""
    try:
        call(**fields)
    except openai.APIStatusError as error:
        return error
    raise AssertionError("the request was answered")


def small_network() -> Sequential:
    """Two layers over a table: a thought, then a label."""
    lm = TableLM.random([*THOUGHTS, " good", " bad", "good", "bad"], 3)
    return Sequential(
        LanguageLayer(lm, "think", "Think of the weather."),
        ChoiceLayer(lm, "classify_residual", "Good or bad?", ("good", "bad")),
    )
