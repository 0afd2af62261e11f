"""Model registries of the original project (`connections.yaml`): names, servers, and keys by environment variable.

    - name: writer
      model: gpt-35-turbo-instruct
      api_key: ${GPT_API_KEY}
      base_url: ${GPT_API_BASE}
      api_type: azure
      api_version: 2024-10-21
      temperature: 0.7
      max_tokens: 512

`${NAME}` is the value of an environment variable, read when the model is used. A key is never shown or written: a
variable stays its name, and a key in the file itself is passed on as a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from dln.arguments import checked
from dln.errors import InputError
from dln.lm.base import LanguageModel
from dln.lm.load import load_lm

__all__ = ["Connection", "read_connections"]

_FIELDS = ("name", "model", "api_key", "base_url", "api_base", "api_type", "api_version", "temperature", "max_tokens")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_OPENAI = re.compile(r"gpt-|o\d|chatgpt|(text|code)-(davinci|curie|babbage|ada)")
_COMPLETION = re.compile(r"instruct|davinci|curie|babbage|-ada")
_NO_KEY = ("", "EMPTY", "None", "none")


@dataclass(frozen=True)
class Connection:
    """One model of a registry.

    Attributes:
        name: how the file calls it.
        file: the file.
        temperature: of its samples, None where the file does not say.
        max_tokens: of its samples, likewise.
    """

    name: str
    file: Path
    temperature: float | None = None
    max_tokens: int | None = None
    entry: Mapping[str, object] = field(default_factory=dict[str, object], repr=False)

    def settings(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The model in the settings of this package: `spec`, `base_url`, `api_key_env` or `api_key`, `options`.

        Args:
            environment: in place of the process's own.

        Raises:
            InputError: an environment variable of the address is not set.
        """
        known = os.environ if environment is None else environment
        model = self._text("model", known) or self.name
        kind, url = self._text("api_type", known), self._text("base_url", known) or self._text("api_base", known)
        engine = "azure" if kind == "azure" else "openai" if _OPENAI.match(model) else "vllm"
        completion = ":completion" if engine != "vllm" and _COMPLETION.search(model) else ""
        found: dict[str, Any] = {"spec": f"{engine}/{model}{completion}"}
        if url:
            found["base_url"] = [url]
        version = self._text("api_version", known)
        if engine == "azure" and version:
            found["options"] = {"api_version": version}
        key = str(self.entry.get("api_key") or "")
        variable = _VARIABLE.fullmatch(key)
        if variable:
            found["api_key_env"] = variable[1]
        elif key not in _NO_KEY:
            found["api_key"] = key
        return found

    def load(self, environment: Mapping[str, str] | None = None) -> LanguageModel:
        """The model; nothing is sent before its first use.

        Raises:
            InputError: an environment variable is not set, or the model cannot be named.
        """
        known = os.environ if environment is None else environment
        found = self.settings(known)
        options: dict[str, Any] = {**found.get("options", {})}
        options |= {name: found[name] for name in ("base_url", "api_key") if name in found}
        if "api_key_env" in found:
            options["api_key"] = self._expanded("api_key", known)
        return load_lm(found["spec"], **options)

    def _text(self, name: str, environment: Mapping[str, str]) -> str:
        """A field as text with its variables replaced; "" where the file says nothing."""
        return "" if self.entry.get(name) is None else self._expanded(name, environment).strip()

    def _expanded(self, name: str, environment: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in environment:
                raise InputError(
                    "an environment variable of this model is not set",
                    where=f"{self.file}: {self.name}.{name}",
                    got=match[1],
                    fix=f"export {match[1]}=…",
                )
            return environment[match[1]]

        return _VARIABLE.sub(value, str(self.entry[name]))


@checked
def read_connections(path: str | Path) -> dict[str, Connection]:
    """The models of a registry, by name.

    Raises:
        InputError: not such a file, an unknown field, or a name that is given twice. No value is repeated.
    """
    try:
        data: object = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the model registry cannot be read", where=path, got=str(error)) from error
    except yaml.YAMLError:
        # the error quotes the line, and there may be a key in it
        raise InputError("the model registry is not YAML", where=path) from None
    rows = cast("list[object]", data) if isinstance(data, list) else []
    found: dict[str, Connection] = {}
    for position, row in enumerate(rows, 1):
        entry = cast("Mapping[str, object]", row) if isinstance(row, Mapping) else dict[str, object]()
        name = str(entry.get("name") or "").strip()
        unknown = sorted(set(map(str, entry)) - set(_FIELDS))
        if not name or name in found or unknown:
            raise InputError(
                "not an entry of a model registry",
                where=f"{path}, entry {position}",
                got=f"unknown fields: {', '.join(unknown)}" if unknown else "no name" if not name else f"{name} twice",
                expected=f"fields {', '.join(_FIELDS)}, and a name of its own",
            )
        found[name] = Connection(name, Path(path), _number(entry, "temperature"), _count(entry), entry)
    if not found:
        raise InputError(
            "this file is not a model registry",
            where=path,
            expected="a YAML list of models with name, model, base_url and api_key",
        )
    return found


def _number(entry: Mapping[str, object], name: str) -> float | None:
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) else None


def _count(entry: Mapping[str, object]) -> int | None:
    value = _number(entry, "max_tokens")
    return None if value is None else int(value)
