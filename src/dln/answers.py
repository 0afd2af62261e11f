"""Reading free answers: tokens, numbers, and the labels that an answer says.

A token is a word, a number by its value, or a symbol. Case, white space and punctuation do not count; signs, decimals
and symbols do, so that -5 is not 5 and C# is not C++. In scripts without spaces every character is a token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

__all__ = ["begins_with", "first_words_agree", "labels_said", "number_of", "numbers_in", "tokens", "words_of"]

_SPACELESS = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that do not divide words."""

_NUMBER = re.compile(
    r"(?P<sign>[-+])?(?P<currency>[$€£¥])?(?P<sign2>[-+])?"
    r"(?P<body>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+"
    r"|\d{1,3}(?:['\u00a0\u202f\u2009]\d{3})+(?:[.,]\d+)?|\d+[.,]\d+|\d+|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,3}(?!\w))?(?:/(?P<below>\d+)(?![/\d]))?\s?(?P<percent>%)?"
)


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a number as it is written."""
    body = re.sub("['\u00a0\u202f\u2009]", "", match["body"])
    comma, dot = body.rfind(","), body.rfind(".")
    if comma >= 0 and dot >= 0:  # the last one divides the decimals
        body = body.replace(",", "") if dot > comma else body.replace(".", "").replace(",", ".")
    elif body.count(".") > 1:
        body = body.replace(".", "")
    elif comma >= 0:
        thousands = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", body) is not None
        body = body.replace(",", "") if thousands else body.replace(",", ".")
    value = Fraction(body + (match["exponent"] or ""))
    if match["below"] is not None:
        if int(match["below"]) == 0:
            return None
        value /= int(match["below"])
    if match["percent"]:
        value /= 100
    return -value if "-" in (match["sign"], match["sign2"]) else value


def _plain(text: str) -> str:
    """The text in compatibility form; fractions such as ½ and the minus sign in ASCII."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text.replace("\u00a0", " ").replace("\u202f", " "))
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "\u00a0", text) if re.search(r"\d \d{3}(?!\d)", text) else text
    kept = text.replace("\u00a0", "\ue000")
    plain = unicodedata.normalize("NFKC", kept).replace("\ue000", "\u00a0")
    return plain.replace("\u2212", "-").replace("\u2044", "/").replace("\u2019", "'")


def number_of(text: str) -> Fraction | None:
    """The value of a text that is one number, with an optional currency or percent sign; None otherwise.

    >>> [str(number_of(text)) for text in ("-1,000.50", "50 %", "3/4", "five")]
    ['-2001/2', '1/2', '3/4', 'None']
    """
    plain = _plain(text.strip()).strip().rstrip(".")
    mixed = re.fullmatch(r"(-?\d+) (\d+/\d+)", plain)
    if mixed and not mixed[2].endswith("/0"):
        whole, part = Fraction(mixed[1]), Fraction(mixed[2])
        return whole - part if mixed[1].startswith("-") else whole + part
    match = _NUMBER.match(plain)
    rest = None if match is None else plain[match.end() :].strip()
    return _value(match) if match is not None and rest in ("", "$", "€", "£", "¥") else None


def _is_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M" or character == "_"


def _spaceless(character: str) -> bool:
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _SPACELESS)


Token = str | Fraction


@lru_cache(maxsize=4096)
def tokens(text: str, *, whole: bool = False) -> tuple[Token, ...]:
    """The tokens of a text: words in lower case, numbers as fractions, symbols.

    Args:
        text: the text.
        whole: in scripts without spaces, whether a run of characters is one token.

    >>> tokens("C++, not C#: 50%")
    ('c++', 'not', 'c#', Fraction(1, 2))
    """
    plain = _plain(text)
    found: list[Token] = []
    i = 0
    while i < len(plain):
        character = plain[i]
        number = _number_at(plain, i)
        dated = _DATED.match(plain, i) if character.isdigit() and not plain[i - 1 : i].isalnum() else None
        if dated is not None and (number is None or dated.end() > number[2]):
            found.append(dated[0])
            i = dated.end()
        elif number is not None:
            value, currency, end = number
            found += [currency] if currency else []
            found.append(value)
            i = end
        elif _spaceless(character):
            end = i + 1
            while end < len(plain) and (
                unicodedata.category(plain[end])[0] == "M"
                or (whole and _spaceless(plain[end]) and _is_word(plain[end]))
            ):
                end += 1
            found += [plain[i:end]] if _is_word(character) else []
            i = end
        elif _is_word(character) or (character == "." and _starts_name(plain, i)):
            end = _word_end(plain, i)
            word = plain[i:end].strip("_").casefold()
            found += [word] if word else []
            i = end
        else:
            tone = "\U0001f3fb" <= character <= "\U0001f3ff"
            if tone or unicodedata.category(character) in ("Sm", "Sc", "So") or character == "%":
                found.append(character)
            i += 1
    return tuple(found)


_DATED = re.compile(r"\d+(?:[:/]\d+){2,}|\d+:\d+|\d+(?:-\d+){2,}|\d+(?:\.\d+){2,}(?!\d)")
"""Dates, times and versions: their numbers are no values."""


def _number_at(text: str, i: int) -> tuple[Fraction, str, int] | None:
    before = text[i - 1] if i else " "
    if not (text[i].isdigit() or text[i] in "+-.$€£¥") or before.isalnum() or before == "_":
        return None
    match = _NUMBER.match(text, i)
    if match is None or (match.end() < len(text) and _is_word(text[match.end()]) and match["percent"] is None):
        after = "" if match is None else text[match.end() : match.end() + 1]
        if match is None or not after.isalpha() or match["body"][-1:].isalpha() or not _is_unit(text, match.end()):
            return None
    signed = match["sign"] is not None and re.search(r"[\w)]\s*$", text[:i]) is not None
    if signed and (before == " " or before.isalnum()) and re.search(r"[\d)]\s*$", text[:i]):
        return None  # a subtraction: the sign is an operator
    value = _value(match)
    return None if value is None else (value, match["currency"] or "", match.end())


def _is_unit(text: str, i: int) -> bool:
    """Whether letters at a place are a unit (5kg), not the end of an ordinal or a name (18th, 3D)."""
    unit = re.match(r"[^\W\d_]+", text[i:])
    return (
        unit is not None
        and unit[0] not in ("st", "nd", "rd", "th", "D", "d", "x")
        and not text[i + unit.end() : i + unit.end() + 1].isdigit()
    )


def _starts_name(text: str, i: int) -> bool:
    """Whether a dot begins a name, as in .NET."""
    before = text[i - 1] if i else " "
    return not before.strip() and i + 1 < len(text) and text[i + 1].isalpha()


def _word_end(text: str, i: int) -> int:
    """The end of a word: apostrophes and & @ within it, and + # - at its end, belong to it."""
    end = i + 1
    while end < len(text):
        character, after = text[end], text[end + 1 : end + 2]
        inside = character in "'&@" and after != "" and after.isalnum()
        if not (inside or (_is_word(character) and not _spaceless(character))):
            break
        end += 1
    symbols = re.match(r"[+#]+|-(?=$|[\s.,;:!?)])", text[end:])
    return end + (symbols.end() if symbols and not text[end + symbols.end() : end + symbols.end() + 1].isalnum() else 0)


def numbers_in(text: str) -> list[Fraction]:
    """The numbers of a text in order."""
    return [token for token in tokens(text) if isinstance(token, Fraction)]


def begins_with(answer: str, wanted: str) -> bool:
    """Whether the first tokens of `answer` are those of `wanted`.

    A leading "option" does not count, nor a leading number if `wanted` has none ("1. Positive").

    >>> begins_with("1. Positive, because", "positive"), begins_with("-5", "5")
    (True, False)
    """
    expected = tokens(wanted, whole=True)
    if not expected:
        return answer.strip() == wanted.strip()
    said = tokens(answer, whole=True)
    if not any(isinstance(token, Fraction) for token in expected):
        while said and isinstance(said[0], Fraction):
            said = said[1:]
    if expected[0] != "option" and len(said) > 1 and said[0] == "option":
        said = said[1:]
    if expected[0] == "option" and len(expected) > 1 and said[:1] != ("option",):
        expected = expected[1:]
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
    longest = max((len(tokens(spelling)) for spelling in said), default=0)
    return frozenset(names[spelling] for spelling in said if len(tokens(spelling)) == longest)


def words_of(text: str, *, digits: bool = True) -> tuple[str, ...]:
    """The words of a text by the paper's rule: lower case, without symbols and a leading "option".

    >>> words_of("Option (A).")
    ('a',)
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", text if digits else re.sub(r"\d+", " ", text))
    return tuple(words[1:] if len(words) > 1 and words[0] == "option" else words)


def first_words_agree(answer: str, wanted: str) -> bool:
    """The paper's rule: whether the first words are equal; neither signs nor symbols count.

    >>> first_words_agree("-5", "5")
    True
    """
    expected = words_of(wanted)
    if not expected:
        return answer.strip() == wanted.strip()
    said = words_of(answer, digits=any(word != word.strip("0123456789") for word in expected))
    return said[: len(expected)] == expected


JOIN = ", "
"""Between the single labels in the name of a set of labels."""
EMPTY = ("none", "[]")
"""Names of the empty set of labels."""


def single_labels(names: Sequence[str]) -> list[str]:
    """The single labels of which sets like "a, b" are made, sorted; the set "none" is empty.

    >>> single_labels(["billing, refund", "none", "refund"])
    ['billing', 'refund']
    """
    return sorted({part for name in names for part in parts_of(name)})


def parts_of(name: str) -> list[str]:
    """The single labels of a set.

    >>> parts_of("billing, refund"), parts_of("none")
    (['billing', 'refund'], [])
    """
    return [] if name in EMPTY else name.split(JOIN)


def marginals(probabilities: Mapping[str, float]) -> dict[str, float]:
    """p(k ∈ S) of each single label, from the probabilities of sets.

    >>> marginals({"a": 0.5, "a, b": 0.25, "none": 0.25})
    {'a': 0.75, 'b': 0.25}
    """
    found = dict.fromkeys(single_labels(list(probabilities)), 0.0)
    for name, p in probabilities.items():
        for part in parts_of(name):
            found[part] += p
    return found
