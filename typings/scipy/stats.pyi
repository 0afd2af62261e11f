"""Untyped on purpose: scipy has no annotations, and inferring types from its source takes long."""

from typing import Any

def __getattr__(name: str) -> Any: ...
