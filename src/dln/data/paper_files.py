"""The files of the paper's tasks, in the directory layout of microsoft/deep-language-networks.

ordered_prompt/{mpqa,trec,subj}/{train,dev_subsample,test}.jsonl
leopard/{disaster,airline}/<task>_eval.json
bbh/<task>.json and bb_minus_bbh/<task>.json
gsm8k/{train,test}.jsonl
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from dln.data.jsonl_source import read_jsonl
from dln.data.text_file import read_text
from dln.errors import InputError

__all__ = ["Item", "files_of", "read_items", "tasks_found"]

_LAYOUT: Mapping[str, Mapping[str, str]] = {
    **{
        task: {part: f"ordered_prompt/{task}/{part}.jsonl" for part in ("train", "dev_subsample", "test")}
        for task in ("mpqa", "trec", "subj")
    },
    **{task: {"all": f"leopard/{task}/{task}_eval.json"} for task in ("disaster", "airline")},
    **{
        task: {"rest": f"bb_minus_bbh/{task}.json", "test": f"bbh/{task}.json"}
        for task in ("hyperbaton", "navigate", "date_understanding", "logical_deduction_seven_objects")
    },
    "gsm8k": {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"},
}

_FIELDS = {"ordered_prompt": ("sentence", "label"), "leopard": ("sentence1", "label"), "gsm8k": ("question", "answer")}


@dataclass(frozen=True, slots=True)
class Item:
    """One raw record: input, target as the file has it, and file:position."""

    input: str
    target: str
    id: str


def files_of(task: str, data: Path) -> dict[str, Path]:
    """The files a task needs, by their role.

    Raises:
        InputError: one of them is missing; the message says which, what was expected and which tasks
            the directory does hold.
    """
    files = {role: data / name for role, name in _LAYOUT[task].items()}
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        found = tasks_found(data)
        raise InputError(
            f"data of the task {task} is missing",
            where=missing[0],
            got=f"no such file; tasks found in {data}: {', '.join(found) or 'none'}"
            if data.is_dir()
            else f"there is no directory {data}",
            expected=f"{', '.join(_LAYOUT[task].values())} under {data}",
            fix="give the directory that scripts/setup_data.sh of microsoft/deep-language-networks fills: data=…",
        )
    return files


def tasks_found(data: Path) -> tuple[str, ...]:
    """The tasks whose files are all in a directory."""
    return tuple(task for task, files in _LAYOUT.items() if all((data / name).is_file() for name in files.values()))


def read_items(path: Path) -> list[Item]:
    """The records of one of these files, in order.

    Raises:
        InputError: not JSON, or a record without its two texts.
    """
    name = f"{path.parent.name}/{path.name}"
    if path.suffix == ".jsonl":
        records: Sequence[tuple[int, object]] = [(row.line, row.cells) for row in read_jsonl(path).rows]
        unit = "line"
    else:
        records = list(enumerate(_json_list(path), start=1))
        unit = "item"
    family = next((family for family in _FIELDS if family in path.parts[-3:]), "")
    fields = _FIELDS.get(family, ("input", "target"))
    items: list[Item] = []
    for number, record in records:
        cells = cast(dict[str, object], record) if isinstance(record, dict) else {}
        texts = [value for field in fields if isinstance(value := cells.get(field), str) and value.strip()]
        if len(texts) != 2:
            raise InputError(
                f"a record needs the texts {fields[0]!r} and {fields[1]!r}",
                where=f"{path}, {unit} {number}",
                got=str(cells)[:80] if cells else "no object",
            )
        items.append(Item(texts[0], texts[1], f"{name}:{number}"))
    return items


def _json_list(path: Path) -> list[object]:
    try:
        value = cast(object, json.loads(read_text(path)))
    except json.JSONDecodeError as error:
        raise InputError("the file is not valid JSON", where=f"{path}, line {error.lineno}", got=error.msg) from error
    if isinstance(value, dict):
        value = cast(dict[str, object], value).get("examples")
    if not isinstance(value, list) or not value:
        raise InputError("the file holds no list of examples", where=path)
    return cast(list[object], value)
