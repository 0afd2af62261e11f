"""Flags that take several values at once, with commas between them."""

from __future__ import annotations

from dln.errors import InputError

__all__ = ["names_of", "seeds_of"]


def names_of(text: str, flag: str) -> list[str]:
    """The names in `text`, each once, in their order.

    >>> names_of("subj, mpqa,,subj", "--tasks")
    ['subj', 'mpqa']

    Raises:
        InputError: there is none; it names `flag`.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise InputError("nothing is named here", where=flag, got=repr(text), expected="names with commas between")
    return found


def seeds_of(text: str, flag: str = "--seeds") -> list[int]:
    """The seeds in `text`, each once, in their order.

    >>> seeds_of("13, 42")
    [13, 42]

    Raises:
        InputError: one is no whole number, or there is none; it names `flag`.
    """
    return list(dict.fromkeys(_seed(name, flag) for name in names_of(text, flag)))


def _seed(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            "a seed is a whole number", where=flag, got=repr(text), expected="whole numbers with commas between"
        ) from error
