"""Templates of the original project, microsoft/deep-language-networks, as templates of this package.

Its files hold several versions of one text, by keys `v1.0`, `v3.5`. A translated template gives the names of the
original their values in front of the unchanged text, and trims the result as the original's engine does:

| original | here |
|---|---|
| `input` | `h`, what the layer reads; beside `output`, the network's input `x` |
| `output` of a residual template | `h` |
| `h` of a proposal for hidden texts | `output`, the draft |
| `backward_infos` with `loss` | `examples`, with loss 0 where the network was right and 1 where it was wrong |
| `answer`, which the original never gives | "" |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from jinja2 import Environment, TemplateError, meta

from dln.errors import InputError

__all__ = ["VERSION", "is_original", "translated"]

VERSION = re.compile(r"v\d+(\.\d+)*")

_INFOS = (
    "{%- set all = namespace(infos=[]) -%}{%- for e in examples -%}"
    '{%- set all.infos = all.infos + [{"input": e.input, "output": e.output, "target": e.target, '
    '"loss": 0.0 if e in successes else 1.0}] -%}{%- endfor -%}{%- set backward_infos = all.infos -%}'
)
_GIVEN: Mapping[str, Mapping[str, str]] = {
    "forward": {"input": "{%- set input = h -%}", "answer": '{%- set answer = "" -%}'},
    "residual": {"input": "{%- set input = x -%}", "output": "{%- set output = h -%}"},
    "hidden": {"input": "{%- set input = h -%}", "h": "{%- set h = output -%}"},
    "backward": {"backward_infos": _INFOS},
}
"""How the names of the original get their values, in this order, by the use of a template."""
_SAME: Mapping[str, frozenset[str]] = {
    "forward": frozenset({"prompt"}),
    "residual": frozenset({"prompt"}),
    "hidden": frozenset({"prompt", "next_prompt", "y", "message"}),
    "backward": frozenset({"prompt", "message"}),
}
"""Names that mean the same in both."""


def is_original(data: object) -> bool:
    """Whether the content of a YAML file is a template file of the original project."""
    names = list(cast("Mapping[object, object]", data)) if isinstance(data, Mapping) else []
    return bool(names) and all(isinstance(name, str) and VERSION.fullmatch(name) for name in names)


def translated(data: Mapping[str, Any], name: str, version: str | None, where: str) -> dict[str, Any]:
    """The fields of a `Template`, from a template file of the original project.

    Args:
        data: the content of the file.
        name: of the template.
        version: as `3.5` or `v3.5`; None is the highest.
        where: the file, for messages.

    Raises:
        InputError: a version that the file does not have, a text that does not parse, or a name without a counterpart.
    """
    chosen = max(data, key=_order) if version is None else f"v{version.removeprefix('v')}"
    matching = [key for key in data if _order(key) == _order(chosen)]
    if not matching:
        raise InputError(
            "this file does not have that version",
            where=where,
            got=chosen,
            expected=f"one of {', '.join(data)}",
            fix=f"{where}@{max(data, key=_order)}",
        )
    entry: object = data[matching[0]]
    fields = cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else dict[str, Any]()
    text: object = fields.get("template")
    if not isinstance(text, str):
        raise InputError("a version of a template has no text", where=f"{where}: {matching[0]}", expected="template: …")
    use, names = _use(text, f"{where}: {matching[0]}")
    given = "".join(source for original, source in _GIVEN[use].items() if original in names)
    return {
        "name": f"{name}:{matching[0]}",
        "version": _number(matching[0]),
        "kind": "forward" if use == "residual" else use,
        "text": f"{given}{{% filter trim %}}{text}{{% endfilter %}}",
        # the original scores a target on the line below its context
        "target_prefix": "\n" if use in ("forward", "residual") else "",
        "stop": [str(one).replace("\\n", "\n") for one in fields.get("stop_tokens") or ()],
        "messages": [str(one) for one in fields.get("message_alternatives") or ()],
        "about": str(fields.get("description") or f"{name} {matching[0]} of the original project."),
    }


def _order(version: str) -> tuple[int, ...]:
    """The numbers of a version, without zeros at the end.

    >>> _order("v3.10") > _order("v3.9"), _order("v3.0") == _order("v3")
    (True, True)
    """
    numbers = list(map(int, re.findall(r"\d+", version)))
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _number(version: str) -> int:
    """One number in the same order, for at most two parts below 100.

    >>> _number("v3.5"), _number("v1.0")
    (305, 100)
    """
    major, minor, *_ = (*_order(version), 0)
    return 100 * major + minor or 1


def _use(text: str, where: str) -> tuple[str, frozenset[str]]:
    """What a template is for, and the names in it."""
    try:
        # the text is parsed and not rendered here
        names = frozenset(meta.find_undeclared_variables(Environment(autoescape=True).parse(text)))
    except TemplateError as error:
        raise InputError(
            "the template does not parse",
            where=where,
            got=str(error),
            expected="a Jinja text",
            fix="another version of the file, as FILE@3.5; the original's engine refuses this text too",
        ) from error
    if "backward_infos" in names:
        use = "backward"
    elif names & {"y", "h", "next_prompt"}:
        use = "hidden"
    else:
        use = "residual" if "output" in names else "forward"
    unknown = sorted(names - _SAME[use] - frozenset(_GIVEN[use]))
    if unknown:
        raise InputError(
            "this template uses names that have no counterpart here",
            where=where,
            got=", ".join(unknown),
            expected=f"names of {', '.join(sorted(_SAME[use] | frozenset(_GIVEN[use])))}",
            fix="write a template of this package: see the files of src/dln/nn/templates",
        )
    return use, names
