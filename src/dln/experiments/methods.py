"""The rows of the table by name.

The methods of an ablation: a preset, and the same with named changes of its options.

A file of variants is YAML; `variants.yaml` beside this module holds the built-in ones and is an example.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from dln.data import Task
from dln.errors import InputError
from dln.experiments.baselines import ChainOfThought, InContext, Induction, Majority, Nearest, ZeroShot
from dln.experiments.method import SAME_LINE, Method, recipe_of
from dln.experiments.trained import LayerByLayer, RandomDemonstrations, Trained
from dln.nn.template import load_template
from dln.train import resolve_options
from dln.train.layout import usual_template
from dln.train.options import nested

__all__ = ["BASE", "METHODS", "builtin_variants", "in_order", "method_named", "read_variants", "variants", "with_base"]

_ALL: tuple[Method, ...] = (
    Majority(),
    ZeroShot(),
    ZeroShot("0-shot-line", SAME_LINE),
    ZeroShot("0-shot-fitted", SAME_LINE, fit=True),
    InContext(5),
    InContext(5, fit=True),
    InContext(10),
    InContext(16),
    InContext(32),
    Nearest(5),
    Nearest(10),
    Nearest(32),
    ChainOfThought(),
    Induction(15),
    Induction(400),
    ChainOfThought("cot+ape", Induction(15)),
    Trained(1, "dln-1"),
    Trained(1, "dln-1-ensemble", changes={"ensemble": 5}, what="dln-1 with its five best prompts answering together"),
    Trained(1, "dln-1-paper", "paper"),
    RandomDemonstrations(),
    LayerByLayer("dln-2-fix", tune_last=False),
    LayerByLayer("dln-2-tune", tune_last=True),
    Trained(2, "dln-2"),
    Trained(2, "dln-2-think", hidden="think", what="dln-2 whose first layer begins with thoughts, as in the paper"),
    Trained(2, "dln-2-paper", "paper"),
    Trained(3, "dln-3"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""The methods that have a name of their own, in the order of the table."""

_SIZED: dict[str, Callable[[int], Method]] = {
    r"icl-([1-9]\d*)": InContext,
    r"icl-([1-9]\d*)-fitted": lambda k: InContext(k, fit=True),
    r"kate-([1-9]\d*)": Nearest,
    r"ape-([1-9]\d*)": Induction,
}
"""Families with a number in the name."""


def method_named(name: str) -> Method:
    """A row of the table: one of `METHODS`, or one of a family with any number, as in icl-7.

    Raises:
        InputError: an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    for form, make in _SIZED.items():
        found = re.fullmatch(form, name)
        if found:
            return make(int(found[1]))
    close = difflib.get_close_matches(name, METHODS, n=1)
    raise InputError(
        "there is no such method",
        where="--methods",
        got=name,
        expected=f"{', '.join(METHODS)}; and icl-K, kate-K, ape-M",
        fix=f"did you mean {close[0]}?" if close else None,
    )


def in_order(names: Sequence[str]) -> tuple[list[Method], list[str]]:
    """The named methods and those they build upon, each after what it needs; and the names that were added.

    Raises:
        InputError: an unknown name.
    """
    wanted: dict[str, Method] = {}

    def add(name: str) -> None:
        method = method_named(name)
        for needed in method.after:
            add(needed)
        wanted[method.name] = method

    for name in names:
        add(name)
    return list(wanted.values()), [name for name in wanted if name not in names]


BASE = "base"
"""The name of the preset without a change."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def variants(spec: str, preset: str = "default", depth: int = 1) -> list[Trained]:
    """The variants that `--variants` names: those of a file, or built-in ones by name; "all" is all of these.

    Args:
        spec: a YAML file, or names with commas between.
        preset: which they change.
        depth: of those that do not say another one.

    Raises:
        InputError: no such file or name, or a change that is not possible.
    """
    if spec.endswith((".yaml", ".yml")) or Path(spec).is_file():
        return read_variants(Path(spec), preset, depth)
    known = {variant.name: variant for variant in builtin_variants(preset, depth)}
    names = [name for part in spec.split(",") if (name := part.strip())]
    if names == ["all"]:
        return list(known.values())
    for name in names or [repr(spec)]:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                "there is no such variant",
                where="--variants",
                got=name,
                expected=f"a YAML file, all, or of {', '.join(known)}",
                fix=f"did you mean {close[0]}?" if close else None,
            )
    return [known[name] for name in dict.fromkeys(names)]


def builtin_variants(preset: str = "default", depth: int = 1) -> list[Trained]:
    """All that come with the package."""
    text = resources.files("dln.experiments").joinpath("variants.yaml").read_text(encoding="utf-8")
    return _parsed(text, "variants.yaml", preset, depth)


def read_variants(path: Path, preset: str = "default", depth: int = 1) -> list[Trained]:
    """The variants of a YAML file: a mapping of names to changes.

    Raises:
        InputError: it cannot be read, or a change is not possible; it names file, variant and option.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the variants cannot be read", where=path, got=str(error)) from error
    return _parsed(text, str(path), preset, depth)


def with_base(
    chosen: Sequence[Trained], options: Mapping[str, Any], task: Task, preset: str = "default", depth: int = 1
) -> tuple[list[Trained], list[str]]:
    """The base in front of the variants that differ from it, and the names of those that do not.

    Args:
        chosen: the variants.
        options: changes to the preset that all of them share.
        task: any of those that are compared; it says which templates are the usual ones.
        preset: of the base.
        depth: of the base.
    """

    def settings(variant: Trained) -> dict[str, Any]:
        recipe = recipe_of(variant, options)
        return {**recipe, "template": variant.template or usual_template(task, variant.depth, preset)}

    base = Trained(depth, BASE, preset)
    own = settings(base)
    same = [variant.name for variant in chosen if settings(variant) == own]
    about = base.about + (f"; the same as {', '.join(same)}" if same else "")
    return [replace(base, what=about), *(variant for variant in chosen if variant.name not in same)], same


def _parsed(text: str, where: str, preset: str, depth: int) -> list[Trained]:
    try:
        data: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("the variants are not YAML", where=where, got=str(error)) from error
    if not isinstance(data, dict) or not data:
        raise InputError(
            "the variants are not a mapping", where=where, expected="name: {option: value, …}, as in k6: {steps: 3}"
        )
    return [_variant(name, changes, where, preset, depth) for name, changes in cast(dict[object, object], data).items()]


def _variant(name: object, changes: object, where: str, preset: str, depth: int) -> Trained:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BASE:
        raise InputError(
            "not a name for a variant",
            where=where,
            got=repr(name),
            expected=f"letters, digits and . _ + -; {BASE} is the preset without a change",
        )
    place = f"{where}: {name}"
    settings = cast(Mapping[object, object], changes if isinstance(changes, Mapping) else {})
    if not settings:
        raise InputError(
            "a variant changes something", where=place, got=repr(cast(object, changes)), expected="{option: value, …}"
        )
    options = nested({str(key): value for key, value in settings.items()})
    said = "; ".join(f"{option} = {json.dumps(value, default=str)}" for option, value in _leaves(options))
    template: object = options.pop("template", "")
    layers: object = options.pop("depth", depth)
    if not isinstance(template, str):
        raise InputError("a template has a name", where=f"{place}: template", got=repr(template))
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise InputError("the depth is a number of layers", where=f"{place}: depth", got=repr(layers))
    if "preset" in options:
        raise InputError("variants change one preset", where=f"{place}: preset", fix="--preset NAME")
    try:
        resolve_options(preset, options)
        if template:
            load_template(template, "forward")
    except InputError as error:
        raise InputError(
            error.message,
            where=f"{place}: {error.where}",
            got=error.got,
            expected=error.expected,
            fix=error.fix or "options as in --set, template: NAME, or depth: LAYERS",
        ) from error
    return Trained(layers, name, preset, changes=options, template=template, what=said)


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
