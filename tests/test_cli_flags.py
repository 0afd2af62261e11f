"""Flags have one meaning in every command, and former names say the present ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from dln.cli.config import SETTINGS
from dln.cli.main import app
from dln.cli.output import RENAMED


def commands(group: Any = None, path: str = "dln") -> Iterator[tuple[str, Any]]:
    """Every command with its words, those of groups too."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option"]


def meaning(option: Any) -> tuple[object, ...]:
    """Everything that help shows of an option but its default; the bounds of a number are part of its type."""
    kind = getattr(option, "type", None) or option.type_descriptor  # Click's, and Typer's since it has its own
    bounds = [getattr(one, name, None) for one in (option, kind) for name in ("min", "max")]
    annotation = getattr(kind, "annotation", None) or f"{kind.name} {getattr(kind, 'choices', '')}"
    return (option.help, str(annotation), *bounds, option.multiple, option.metavar, str(option.envvar))


def test_a_flag_has_one_meaning_in_all_commands():
    seen: dict[str, dict[tuple[object, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, command in commands():
        for option in options(command):
            for flag in (*option.opts, *option.secondary_opts):
                seen[flag][meaning(option)].append(path)
    different = {flag: dict(found) for flag, found in seen.items() if len(found) > 1}
    assert not different
    assert sum(len(found) > 1 for flag in seen.values() for found in flag.values()) > 20, "flags are shared"


def test_every_option_has_a_help_text_that_is_a_sentence():
    for path, command in commands():
        for option in options(command):
            assert option.help, (path, option.opts)
            assert option.help[0].isupper() or option.help.startswith(("text:", "{")), (path, option.help)
            assert option.help.endswith("."), (path, option.help)


def test_every_setting_with_a_flag_is_a_flag_of_train():
    (train,) = [command for path, command in commands() if path == "dln train"]
    flags = {flag for option in options(train) for flag in (*option.opts, *option.secondary_opts)}
    for setting in SETTINGS.values():
        assert {form for form in (setting.flag.on, setting.flag.off) if form} <= flags


@pytest.mark.parametrize(("path", "old", "new"), [(c, o, n) for c, names in RENAMED.items() for o, n in names.items()])
def test_former_names_are_not_flags_and_lead_to_flags(path: str, old: str, new: str):
    (command,) = [command for name, command in commands() if name == path]
    flags = {flag for option in options(command) for flag in (*option.opts, *option.secondary_opts)}
    assert old not in flags
    named = {word.strip(",") for word in new.split() if word.startswith("--")}
    assert named
    assert named <= flags
