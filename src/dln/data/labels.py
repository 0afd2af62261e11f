"""Labels and how they may be written: `"yes|Yes|y"` is the label `yes` with two more spellings.

The first spelling is the canonical name: data, predictions and reports use it alone. The
alternatives only widen what counts as that label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dln.errors import InputError

__all__ = ["canonical_label", "label_names", "label_order", "label_specs", "spelling_map", "spellings"]


def label_names(specs: Sequence[str]) -> tuple[str, ...]:
    """The canonical names of label specifications, checked as a set.

    >>> label_names(["yes|Yes", "no|No"])
    ('yes', 'no')

    Raises:
        InputError: no label, an empty spelling, or one spelling that belongs to two labels.
    """
    spelling_map(specs)
    return tuple(canonical_label(spec) for spec in specs)


def spellings(spec: str) -> tuple[str, ...]:
    """All spellings of one label, the canonical name first.

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
            fix="leave the empty text out",
        )
    return parts


def canonical_label(spec: str) -> str:
    """The canonical name: what stands before the first `|`."""
    return spellings(spec)[0]


def spelling_map(specs: Sequence[str]) -> dict[str, str]:
    """Every spelling of every label, mapped to the label's canonical name.

    Raises:
        InputError: no label, an empty spelling, or one spelling that belongs to two labels.
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
                    "one spelling belongs to two labels",
                    where="labels",
                    got=f"{spelling!r} in {owners[spelling]!r} and {name!r}",
                    expected="every spelling once",
                    fix="leave the repetition out",
                )
            owners[spelling] = name
    return owners


def label_specs(labels: Sequence[str] | Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Label specifications, and a map from what the data says to the canonical name.

    Args:
        labels: specifications such as `["yes|Yes", "no|No"]`, or a mapping from the data's value to
            a specification such as `{"0": "negative", "1": "positive"}`; several values may map to
            one label.

    Raises:
        InputError: see `spelling_map`.
    """
    if not isinstance(labels, Mapping):
        specs = tuple(labels)
        return specs, spelling_map(specs)
    specs = tuple(dict.fromkeys(labels.values()))
    return specs, {value.strip(): canonical_label(spec) for value, spec in labels.items()}


def label_order(names: Sequence[str]) -> tuple[str, ...]:
    """Distinct names in an order that does not depend on the rows: by number if all are numbers, else by letter."""
    distinct = set(names)
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct, key=lambda name: (name.casefold(), name)))
