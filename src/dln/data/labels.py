"""Labels and their spellings: `"yes|Yes|y"` is the label `yes` with two other spellings.

The first spelling is the canonical name, which data, predictions and reports use. The others only extend what counts as
this label.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from dln.errors import InputError

__all__ = [
    "MISSING_LIKE",
    "SCALES",
    "Labels",
    "canonical_label",
    "folded",
    "label_lookup",
    "label_names",
    "label_order",
    "label_specs",
    "lookalikes",
    "ordered_scale",
    "similar_key",
    "spelling_map",
    "spellings",
]


Labels = Sequence[str] | Mapping[str, str]
"""Label specifications, or a mapping of the data's values to them (see `label_specs`)."""


def label_names(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the canonical names of label specifications, after checking them.

    >>> label_names(["yes|Yes", "no|No"])
    ('yes', 'no')

    Raises:
        InputError: no label, an empty spelling, or a spelling that belongs to two labels.
    """
    spelling_map(specs)
    return tuple(canonical_label(spec) for spec in specs)


def spellings(spec: str) -> tuple[str, ...]:
    """Return all spellings of a label, the canonical name first.

    Raises:
        InputError: a spelling is empty.
    """
    parts = tuple(dict.fromkeys(part.strip() for part in spec.split("|")))
    if not all(parts):
        raise InputError(
            "a label has an empty spelling",
            where="labels",
            got=repr(spec),
            expected='a name, or "name|other spelling"',
            fix="remove the empty spelling",
        )
    return parts


def canonical_label(spec: str) -> str:
    """Return the canonical name: the part before the first `|`."""
    return spellings(spec)[0]


def spelling_map(specs: Sequence[str]) -> dict[str, str]:
    """Map every spelling of every label to its canonical name.

    Raises:
        InputError: no label, an empty spelling, or a spelling that belongs to two labels.
    """
    if isinstance(specs, str) or not specs:
        raise InputError(
            "labels must be a non-empty list of names",
            where="labels",
            got=repr(specs),
            expected="a list of texts",
            fix='labels=["negative", "positive"]',
        )
    owners: dict[str, str] = {}
    for spec in specs:
        name, *others = spellings(spec)
        for spelling in (name, *others):
            if spelling in owners:
                raise InputError(
                    "a spelling belongs to two labels",
                    where="labels",
                    got=f"{spelling!r} in {owners[spelling]!r} and {name!r}",
                    expected="every spelling once",
                    fix="remove one of them",
                )
            owners[spelling] = name
    return owners


def label_specs(labels: Labels) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return label specifications, and a map from the data's values to canonical names.

    Args:
        labels: specifications such as `["yes|Yes", "no|No"]`, or a mapping of the data's values to specifications
            such as `{"0": "negative", "1": "positive"}`; several values may map to one label.

    Raises:
        InputError: see `spelling_map`.
    """
    if not isinstance(labels, Mapping):
        specs = tuple(labels)
        return specs, spelling_map(specs)
    specs = tuple(dict.fromkeys(str(spec) for spec in labels.values()))
    return specs, {str(value).strip(): canonical_label(str(spec)) for value, spec in labels.items()}


SCALES = tuple(
    tuple(scale.split(", "))
    for scale in (
        "very low, low, medium, high, very high",
        "very low, low, moderate, high, very high",
        "low, normal, high, urgent",
        "low, medium, high, critical",
        "minor, moderate, major, critical",
        "mild, moderate, severe",
        "small, medium, large",
        "easy, medium, hard",
        "never, rarely, sometimes, often, always",
        "poor, fair, good, very good, excellent",
        "terrible, bad, ok, good, great",
        "very bad, bad, neutral, good, very good",
        "very negative, negative, neutral, positive, very positive",
        "strongly disagree, disagree, neutral, agree, strongly agree",
        "very dissatisfied, dissatisfied, neutral, satisfied, very satisfied",
        "niedrig, mittel, hoch",
        "schlecht, mittel, gut",
    )
)
"""Words of ordered scales, lowest first."""

_GRADED = re.compile(r"(\D*)(\d+)(\D*)")


def ordered_scale(names: Iterable[str]) -> tuple[str, ...] | None:
    """The labels of an ordered scale, lowest first; None where they are none.

    A scale is three to eleven consecutive numbers (1 … 5, "1 star" … "5 stars") or three words or more of `SCALES`.

    >>> ordered_scale(["3 stars", "1 star", "2 stars"])
    ('1 star', '2 stars', '3 stars')
    >>> ordered_scale(["high", "low", "Medium"])
    ('low', 'Medium', 'high')
    """
    distinct = list(dict.fromkeys(names))
    if not 3 <= len(distinct) <= 11:
        return None
    by_word = {name.strip().casefold().replace("_", " ").replace("-", " "): name for name in distinct}
    for scale in SCALES:
        if len(by_word) == len(distinct) and set(by_word) <= set(scale):
            return tuple(by_word[word] for word in scale if word in by_word)
    matches = [_GRADED.fullmatch(name.strip()) for name in distinct]
    found = [match for match in matches if match is not None]
    around = {(m[1].strip().casefold(), m[3].strip().casefold().removesuffix("s")) for m in found}
    grades = sorted((int(m[2]), name) for m, name in zip(found, distinct, strict=False))
    if len(found) < len(distinct) or len(around) > 1:
        return None
    first, last = grades[0][0], grades[-1][0]
    if first not in (0, 1) or last - first != len(distinct) - 1 or len({grade for grade, _ in grades}) < len(distinct):
        return None
    return tuple(name for _, name in grades)


def label_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort distinct names: by the scale that they form, numerically if all are numbers, else alphabetically."""
    distinct = set(names)
    if (scale := ordered_scale(sorted(distinct))) is not None:
        return scale
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct, key=lambda name: (name.casefold(), name)))


_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_JOINER = re.compile("(?:^|(?<=[\\s\u0000-\u024f]))[\u200c\u200d]+|[\u200c\u200d]+(?=[\\s\u0000-\u024f]|$)")
"""Joiners that join nothing: at an end, or beside a Latin letter; in emoji and Persian words they have a meaning."""


def folded(text: str) -> str:
    """A label without differences that cannot be seen: white space, Unicode normal form, zero-width characters.

    >>> folded("nai\u0308ve\u200b ") == folded("na\u00efve")
    True
    """
    if text.isascii():
        return " ".join(text.split())
    return " ".join(unicodedata.normalize("NFC", _JOINER.sub("", _INVISIBLE.sub("", text))).split())


MISSING_LIKE = frozenset({"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nil", "nat", "missing", "-", "?"})
"""Labels, in lower case, that often stand for a missing value."""

_BOOLEANS = ({"true", "yes", "on"}, {"false", "no", "off"})


def similar_key(text: str) -> str:
    """What is equal for labels that differ in case, compatibility form or the form of a number only.

    >>> similar_key("Order") == similar_key("order"), similar_key("1.0") == similar_key("1")
    (True, True)
    """
    key = unicodedata.normalize("NFKC", folded(text)).casefold().replace("\ufe0f", "")
    try:
        number = Decimal(key) if key[:1] in "+-.0123456789" else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or len(key) > 30:
        return key
    return format(number.normalize() + 0, "f")


def lookalikes(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in case or in the form of a number only, in order."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(similar_key(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def label_lookup(names: Mapping[str, str]) -> dict[str, str]:
    """The map of spellings or values to labels, for folded spellings too, and for other words of YAML's booleans."""
    lookup: dict[str, str] = {}
    for value, label in names.items():
        lookup.setdefault(folded(value), label)
    for words in _BOOLEANS:
        known = {lookup[word] for word in words if word in lookup}
        if len(known) == 1:
            (label,) = known
            for word in words:
                for form in (word, word.capitalize(), word.upper()):
                    lookup.setdefault(form, label)
    numbers = Counter(similar_key(value) for value in lookup)
    for value, label in list(lookup.items()):
        key = similar_key(value)  # the key 1 of a YAML mapping is also the value 1.0
        if numbers[key] == 1 and key[:1] in "-0123456789":
            lookup.setdefault(key, label)
            lookup.setdefault(f"{key}.0", label)
    return lookup
