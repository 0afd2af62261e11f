"""Data sets as other tools write them are read without naming their columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dln

TEXTS = [(f"message {i} is about boxes", "order" if i % 3 else "return") for i in range(30)]


def chat(x: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": x}]


FORMS = {
    "openai-evals.jsonl": "\n".join(json.dumps({"input": chat(x), "ideal": y}) for x, y in TEXTS),
    "langfuse.jsonl": "\n".join(
        json.dumps({"id": str(i), "input": x, "expectedOutput": y, "metadata": {"source": "test"}, "status": "ACTIVE"})
        for i, (x, y) in enumerate(TEXTS)
    ),
    "langfuse-nested.json": json.dumps(
        [{"input": {"question": x}, "expected_output": {"answer": y}, "status": "ACTIVE"} for x, y in TEXTS]
    ),
    "promptfoo.json": json.dumps(
        {
            "prompts": ["{{message}}"],
            "providers": ["openai:chat"],
            "tests": [
                {
                    "vars": {"message": x},
                    "assert": [{"type": "latency"}, {"type": "equals", "value": y}],
                }
                for x, y in TEXTS
            ],
        }
    ),
    "promptfoo.csv": "message,__expected\n" + "\n".join(f"{x},{y}" for x, y in TEXTS),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_data_set_of_another_tool_is_read(tmp_path: Path, name: str):
    file = tmp_path / name
    file.write_text(FORMS[name], encoding="utf-8")
    task = dln.task_from_file(str(file))
    assert task.labels == ("order", "return")
    read = {(e.input, e.target) for part in (task.train, task.dev, task.test) for e in part.examples}
    assert read == set(TEXTS)
