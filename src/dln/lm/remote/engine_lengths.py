"""Batches whose parts must be equally many."""

from __future__ import annotations

from collections.abc import Sequence

from dln.errors import InputError

__all__ = ["check_lengths"]


def check_lengths(what: str, contexts: Sequence[str], others: Sequence[object]) -> None:
    """Raise `InputError` unless there are as many `others` (named `what`) as contexts."""
    if len(contexts) != len(others):
        raise InputError(
            f"as many {what} as contexts are needed", where=what, got=len(others), expected=f"{len(contexts)}"
        )
