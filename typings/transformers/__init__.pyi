"""Untyped on purpose: reading the types of transformers takes as long as checking this whole project."""

from typing import Any

def __getattr__(name: str) -> Any: ...
