"""The command that repeats a run: the settings that differ from their defaults, as flags."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, cast

from dln.cli.config import RunConfig

__all__ = ["FLAGS", "command_of"]

FLAGS: dict[tuple[str, str], str] = {
    ("task", "name"): "--task",
    ("task", "csv"): "--csv",
    ("task", "jsonl"): "--jsonl",
    ("task", "input"): "--input",
    ("task", "target"): "--target",
    ("task", "free_form"): "--free-form",
    ("task", "instruction"): "--instruction",
    ("data", "directory"): "--data",
    ("data", "leaky"): "--leaky",
    ("data", "train_size"): "--train-size",
    ("data", "dev_size"): "--dev-size",
    ("data", "test_size"): "--test-size",
    ("lm", "spec"): "--lm",
    ("lm", "prompt_lm"): "--prompt-lm",
    ("lm", "hidden_lm"): "--hidden-lm",
    ("lm", "batch_tokens"): "--batch-tokens",
    ("network", "layers"): "--layers",
    ("network", "prompts"): "--prompt",
    ("network", "prompts_from"): "--prompts-from",
    ("network", "templates"): "--template",
    ("network", "hidden_tokens"): "--hidden-tokens",
    ("network", "freeze"): "--freeze",
    ("budget", "max_calls"): "--max-calls",
    ("budget", "max_tokens"): "--max-tokens",
    ("budget", "max_minutes"): "--max-minutes",
}
"""Which flag sets which setting."""


def command_of(config: RunConfig) -> str:
    """`dln train` with the flags that give `config`; what has no flag is left to its file."""
    default = RunConfig.model_validate({})
    words = ["dln", "train"]
    for (section, field), flag in FLAGS.items():
        value = getattr(getattr(config, section), field)
        if value == getattr(getattr(default, section), field):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for item in cast(tuple[object, ...], value if isinstance(value, tuple) else (value,)):
                words += [flag, str(item)]
    options = dict(config.options)
    for name in ("preset", "steps", "seed"):
        if name in options:
            words += [f"--{name}", str(options.pop(name))]
    for path, value in _leaves(options):
        words += ["--set", f"{path}={json.dumps(value)}"]
    if not config.test:
        words.append("--no-test")
    return shlex.join(words)


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
