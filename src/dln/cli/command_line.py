"""The command that repeats a run: the settings that differ from their defaults, as flags."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, cast

from dln.cli.config import FLAGS, OWN_FLAGS, RunConfig

__all__ = ["command_of"]


def command_of(config: RunConfig) -> str:
    """`dln train` with the flags that give `config`; what has no flag, and every secret, is left to its file."""
    # as they are recorded: addresses without credentials, no keys
    settings, default = (dict(c.model_dump(mode="json")) for c in (config, RunConfig.model_validate({})))
    words = ["dln", "train"]
    for (section, field), flag in FLAGS.items():
        value = settings[section][field]
        if value == default[section][field]:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += _side(cast(dict[str, Any], value), flag)
        else:
            for item in cast(list[object], value if isinstance(value, list) else [value]):
                words += [flag, str(item)]
    for name, value in config.model_dump(mode="json")["lm"]["options"].items():
        words += ["--lm-option", f"{name}={json.dumps(value)}"]
    for name, price in config.lm.prices.items():
        cached = "" if price.cached_input is None else f"/{price.cached_input!r}"
        words += ["--price", f"{name}={price.input!r}/{price.output!r}{cached}"]
    options = dict(config.options)
    for name in OWN_FLAGS:
        if name in options:
            words += [f"--{name}", str(options.pop(name))]
    for path, value in _leaves(options):
        words += ["--set", f"{path}={json.dumps(value)}"]
    if not config.test:
        words.append("--no-test")
    return shlex.join(words)


def _side(model: dict[str, Any], flag: str) -> list[str]:
    """The flags of a model beside that of the layers: `--prompt-lm`, `--prompt-base-url` and so on."""
    stem = flag.removesuffix("-lm")
    words = [flag, str(model["spec"])] if model["spec"] is not None else []
    for url in model["base_url"]:
        words += [f"{stem}-base-url", str(url)]
    if model["api_key_env"] is not None:
        words += [f"{stem}-api-key-env", str(model["api_key_env"])]
    return words


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
