"""Reading free answers: texts are compared word by word after normalisation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

__all__ = ["begins_with", "labels_said", "words_of"]


def words_of(text: str, *, digits: bool = True) -> tuple[str, ...]:
    """The words of a text in lower case, without a leading "option"; without `digits`, digits separate words.

    >>> words_of("Option (A).")
    ('a',)
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text if digits else re.sub(r"\d+", " ", text))
    return tuple(words[1:] if len(words) > 1 and words[0] == "option" else words)


def begins_with(answer: str, wanted: str) -> bool:
    """Whether the first words of `answer` are those of `wanted`, after normalisation.

    Case and punctuation do not count, nor do digits where `wanted` has none. Punctuation alone, such as "+" and "-",
    must be equal.

    >>> begins_with("1. Positive, because", "positive")
    True
    """
    expected = words_of(wanted)
    if not expected:
        return answer.strip() == wanted.strip()
    said = words_of(answer, digits=any(word != word.strip("0123456789") for word in expected))
    return said[: len(expected)] == expected


def labels_said(answer: str, names: Mapping[str, str]) -> frozenset[str]:
    """The labels that a free answer says: a spelling exactly, or else those of the longest spelling it begins with.

    Args:
        answer: the text.
        names: every spelling of every label → the label.

    >>> sorted(labels_said("New York.", {"new": "new", "new york": "new york"}))
    ['new york']
    """
    if answer.strip() in names:
        return frozenset({names[answer.strip()]})
    said = [spelling for spelling in names if begins_with(answer, spelling)]
    longest = max((len(words_of(spelling)) for spelling in said), default=0)
    return frozenset(names[spelling] for spelling in said if len(words_of(spelling)) == longest)
