"""Keys and header values: where they are found, whether they can be sent, and hidden from then on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from dln.errors import InputError

__all__ = ["header_value", "key_of"]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OPTION = "--api-key-env"


def key_of(
    option: str | SecretStr | None,
    in_url: str | None,
    variables: Sequence[str],
    needed: bool,
    environment: Mapping[str, str] | None,
    server: str,
) -> SecretStr | None:
    """The key from the first place that has one.

    Args:
        option: given by the user.
        in_url: user information of a base URL.
        variables: names in the environment.
        needed: whether having none is an error.
        environment: in place of the process's own.
        server: as it may be shown.

    Raises:
        InputError: no key where one is needed, or one that no header can hold.
    """
    values = os.environ if environment is None else environment
    given = option.get_secret_value() if isinstance(option, SecretStr) else option
    places = [(_OPTION, given), ("--base-url", in_url), *((f"${name}", values.get(name)) for name in variables)]
    for place, value in places:
        if value:
            return SecretStr(_checked(value, place))
    if not needed:
        return None
    fix = " or ".join([*(f"export {name}=…" for name in variables), f"{_OPTION} NAME"])
    raise InputError("no API key", where=server, got="nothing in " + ", ".join(p for p, _ in places), fix=fix)


def header_value(name: str, value: str | SecretStr) -> SecretStr:
    """The value of an extra header, checked and hidden.

    Raises:
        InputError: name or value cannot be sent.
    """
    if not _HEADER_NAME.fullmatch(name):
        raise InputError("not a header's name", where="header", got=repr(name), expected="letters, digits and dashes")
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return SecretStr(_checked(text, f"header {name}", spaces=True))


def _checked(value: str, place: str, *, spaces: bool = False) -> str:
    wrong = [
        what
        for what, found in (
            ("a line break", re.search(r"[\r\n]", value)),
            ("a control character", re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f]", value)),
            ("a space", not spaces and " " in value),
            ("a character outside ASCII", not value.isascii()),
        )
        if found
    ]
    if wrong:
        raise InputError(
            "cannot be sent in a header",
            where=place,
            got=f"{len(value)} characters with {wrong[0]}",
            fix="copy it anew",
        )
    return value
