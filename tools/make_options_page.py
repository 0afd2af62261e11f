"""Generate docs/options.md from the option models.

python tools/make_options_page.py            # write the page
python tools/make_options_page.py --check    # exit 1 if it is not current
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dln.train import InferenceOptions, Options, resolve_options

__all__ = ["PAGE", "options_page"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"

HEAD = """\
# Training options

This page is generated from `src/dln/train/options.py` by `tools/make_options_page.py`.

In Python, options are nested dictionaries that override a preset:

```python
from dln import resolve_options

options = resolve_options("paper", {"steps": 4, "inference": {"num_prompts": 6}})
assert options.batch_size == 20 and options.inference.num_prompts == 6
```

`dln.fit(..., preset="paper", options={...})` takes the same dictionary, and options as keywords without the section:
`dln.fit(..., steps=4, num_prompts=6)`. On the command line `--set` sets one option by its dotted name, as in
`--set inference.num_prompts=6`. Unknown names are errors that list the valid ones.

"A registered name or an object" means: in Python, an object with the contract of the option; in Python and on the
command line, a name that another package registers (`dln doctor` lists them) or `package.module:factory`. See
[Extension points](design.md#extension-points) for the contracts.

The column *paper* shows the value of `preset="paper"` where it differs from the default;
[Design](design.md#departures-from-the-papers-preset-and-why) gives the reasons.
"""


def options_page() -> str:
    """The whole page as Markdown."""
    default, paper = resolve_options("default"), resolve_options("paper")
    sections = [
        HEAD,
        "## Training loop\n\n" + _table(Options, default, paper, ""),
        "## Inference (one step)\n\nAll of these are under `inference`.\n\n"
        + _table(InferenceOptions, default.inference, paper.inference, "inference."),
    ]
    return "\n".join(sections)


def _table(kind: type[BaseModel], default: BaseModel, paper: BaseModel, prefix: str) -> str:
    properties = kind.model_json_schema()["properties"]
    lines = ["| option | default | paper | possible values | description |", "|---|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        if name == "inference":
            continue
        ours, theirs = getattr(default, name), getattr(paper, name)
        cells = (
            f"`{prefix}{name}`",
            _value(ours),
            "" if ours == theirs else _value(theirs),
            _possible(properties[name]),
            (field.description or "").strip(),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}`"


def _possible(schema: dict[str, Any]) -> str:
    """What a value must be, in words."""
    if "anyOf" in schema:
        return " or ".join(_possible(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") == "extension":
        return "a registered name or an object"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_possible(schema['items'])}"
    if kind == "object":
        names = _possible(schema["propertyNames"]) if "propertyNames" in schema else "names"
        return f"{names}, each with a {_possible(schema['additionalProperties'])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false", "null": "null"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in bounds.items() if name in schema]
    return " ".join([words[str(kind)], *limits])


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == options_page()
        sys.exit(0 if current else f"{PAGE} is not current: run python tools/make_options_page.py")
    PAGE.write_text(options_page(), encoding="utf-8")
    print(PAGE)
