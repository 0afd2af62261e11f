"""What is wrong with a request, said before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from dln.errors import ContextLengthError, InputError

__all__ = ["check_counts", "check_fits", "check_ids", "check_starts"]


def check_counts(what: str, contexts: Sequence[object], others: Sequence[object]) -> None:
    """Refuse lists of unequal length.

    Raises:
        InputError: naming `what`.
    """
    if len(contexts) != len(others):
        raise InputError(
            f"as many {what} as contexts are needed",
            where=what,
            got=len(others),
            expected=f"{len(contexts)}",
            fix="give one per context",
        )


def check_fits(lengths: Sequence[int], limit: int | None, what: str, *, model: str | None = None) -> None:
    """Refuse what is longer than the model's context, in tokens; None is a context without limit.

    Args:
        lengths: of the requests.
        limit: the model's context.
        what: is counted by these lengths.
        model: its name, where several may be in use.

    Raises:
        ContextLengthError: naming the first request that is too long.
    """
    for index, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise ContextLengthError(
                f"{what} are longer than this model's context",
                where=f"request {index}" if model is None else f"{model}, request {index}",
                got=f"{length} tokens",
                expected=f"at most {limit} tokens",
                fix="shorten the text or the prompt, ask for fewer tokens, or use a model with a longer context",
            )


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int, where: str) -> None:
    """Refuse empty rows and what is no token id of this model.

    Raises:
        InputError: naming the first bad row.
    """
    for index, row in enumerate(rows):
        if not row:
            raise InputError("a prompt of no tokens cannot be continued or scored", where=f"{where}[{index}]")
        bad = next((token for token in row if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise InputError(
                "this is no token id of the model", where=f"{where}[{index}]", got=bad, expected=f"0 … {vocabulary - 1}"
            )


def check_starts(starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Refuse a first scored token that does not exist or has no token before it.

    Raises:
        InputError: naming the first bad start.
    """
    for index, (first, length) in enumerate(zip(starts, lengths, strict=True)):
        if not 1 <= first <= length:
            raise InputError(
                "scores begin at a token that has one before it",
                where=f"start[{index}]",
                got=first,
                expected=f"1 … {length}",
            )
