"""Advice of the library in the words of the command line: flags and settings instead of Python arguments."""

from __future__ import annotations

import re

from dln.errors import InputError

__all__ = ["in_flags"]

_WORDS: tuple[tuple[str, str], ...] = (
    (r'\b(input|target)="([^"]*)"', r'--\1 "\2"'),
    (r'\bdata="([^"]*)"', r"--data \1"),
    (r"\bdata=…", "--data DIR"),
    (r"\bfree_form=True", "--free-form"),
    (r"\bfree_form=False", "--labels"),
    (r"\blabels=(\{.*\})", r"task: {labels: \1} in a --config file"),
    (r'\b(?:say |or name its encoding: )encoding="[^"]*", or save', "save"),
    (r',? or name its encoding: encoding="[^"]*"', ""),
)


def in_flags(error: InputError) -> InputError:
    """The same error, of the same class, with a fix that can be typed.

    >>> print(in_flags(InputError("no input column", fix='name it: input="text"')))
    no input column
      try: name it: --input "text"
    """
    fix = error.fix
    for pattern, flag in _WORDS:
        fix = None if fix is None else re.sub(pattern, flag, fix)
    return type(error)(error.message, where=error.where, got=error.got, expected=error.expected, fix=fix)
