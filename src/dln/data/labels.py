"""Labels and their spellings: `"yes|Yes|y"` is the label `yes` with two other spellings.

The first spelling is the canonical name, which data, predictions and reports use. The others only extend what counts as
this label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dln.errors import InputError

__all__ = ["Labels", "canonical_label", "label_names", "label_order", "label_specs", "spelling_map", "spellings"]


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
    specs = tuple(dict.fromkeys(labels.values()))
    return specs, {value.strip(): canonical_label(spec) for value, spec in labels.items()}


def label_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort distinct names: numerically if all are numbers, else alphabetically."""
    distinct = set(names)
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct, key=lambda name: (name.casefold(), name)))
