"""Typed errors: every message says where, what was got, what was expected and what to try.

The class decides the exit code of the command line:
1 run failed, 2 usage or bad input, 3 provider, 4 budget reached, 5 corrupt data.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BudgetReached",
    "ContextLengthError",
    "CorruptDataError",
    "DlnError",
    "InputError",
    "ProviderError",
    "RequestFailed",
    "RunFailed",
]


class DlnError(Exception):
    """Base of all errors a user can cause or must know of.

    Args:
        message: one sentence, what went wrong.
        where: file, line, field, or request that is concerned.
        got: what was found there.
        expected: what would have been right.
        fix: what to try next, best as a command.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.message = message
        self.where = where
        self.got = got
        self.expected = expected
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.message if self.where is None else f"{self.where}: {self.message}"]
        for name, value in (("got", self.got), ("expected", self.expected), ("try", self.fix)):
            if value is not None:
                parts.append(f"  {name}: {value}")
        return "\n".join(parts)


class RunFailed(DlnError):
    """The run itself could not go on (for example: no example could be scored)."""

    exit_code = 1


class InputError(DlnError, ValueError):
    """A file, option, template, label set or argument is not usable."""

    exit_code = 2


class ContextLengthError(InputError):
    """A request is longer than the model's context; found before any forward pass."""


class ProviderError(DlnError):
    """A model could not be loaded or reached, or its response is invalid."""

    exit_code = 3


class RequestFailed(ProviderError):
    """One request was refused, or its answer cannot be used; other requests may succeed."""


class BudgetReached(DlnError):
    """A budget (calls, tokens, seconds, money) is spent; the result so far is kept."""

    exit_code = 4


class CorruptDataError(DlnError):
    """A file that this program wrote, or a download, is damaged."""

    exit_code = 5
