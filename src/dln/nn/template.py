"""Templates: pure-data Jinja texts that turn inputs and a prompt into a context for the model.

A template is code that its author wrote; what a model or a data set wrote is only ever a *value* in
it. Rendering happens in an immutable sandbox with strict undefined variables. Package templates are
versioned files `templates/<name>.yaml`; a path to such a file works wherever a name does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from annotated_types import MinLen
from jinja2 import StrictUndefined, TemplateError, meta
from jinja2 import Template as CompiledTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dln import extensions
from dln.arguments import Count, checked, did_you_mean, shown, unknown_name
from dln.errors import InputError
from dln.io import dump, parse
from dln.nn.original import is_original, translated

__all__ = ["Kind", "Template", "load_template", "names_of", "template_names"]

Kind = Literal["forward", "hidden", "backward"]
_FILE = re.compile(r"(?P<path>.*\.ya?ml)(?:[@:](?P<version>v?\d+(?:\.\d+)*))?", re.DOTALL)

VARIABLES: dict[Kind, frozenset[str]] = {
    "forward": frozenset({"x", "h", "hs", "prompt", "input_name", "output_name"}),
    "hidden": frozenset({"x", "h", "prompt", "output", "target", "y", "next_prompt", "message"}),
    "backward": frozenset({"prompt", "examples", "successes", "failures", "message", "count"}),
}


@checked
@dataclass(frozen=True, slots=True)
class Template:
    """One versioned template.

    Attributes:
        name: how it is called; `name@version` picks a version.
        version: counts up whenever the text changes.
        kind: `forward` (a layer), `hidden` (a proposal for hidden texts), `backward` (for prompts).
        text: the Jinja source.
        target_prefix: what separates context and target on the same line (a space), for models in
            completion mode; a chat model starts its turn without it.
        stop: strings that end a sampled text.
        messages: alternative values of `message` (the meta-instructions of the backward pass).
        wording: the field names for input and output where the text says `{{ input_name }}` and `{{ output_name }}`;
            a prompt may name them otherwise. Without it the template has no such names.
        about: one line for people.
    """

    name: Annotated[str, MinLen(1)]
    version: Count
    kind: Kind
    text: str
    target_prefix: str = ""
    stop: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    wording: tuple[str, str] | None = None
    about: str = ""

    def __post_init__(self) -> None:
        for name in ("stop", "messages", "wording"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        try:
            used = meta.find_undeclared_variables(_environment().parse(self.text))
        except TemplateError as error:
            raise InputError(
                "the template does not parse",
                where=f"template {self.name}, argument 'text'",
                got=str(error),
                expected="a Jinja text",
                fix="{{ prompt }}\\nInput: {{ x }}\\nLabel:",
            ) from error
        unknown = sorted(used - VARIABLES[self.kind])
        if unknown:
            close = did_you_mean(unknown[0], VARIABLES[self.kind])
            raise InputError(
                f"a {self.kind} template does not know these variables",
                where=f"template {self.name}",
                got=unknown,
                expected=sorted(VARIABLES[self.kind]),
                fix=f"did you mean {close!r}?" if close else f"name one of {', '.join(sorted(VARIABLES[self.kind]))}",
            )
        if self.kind == "forward" and not used & {"x", "h", "hs"}:
            raise InputError(
                "a forward template must show the layer its input",
                where=f"template {self.name}, argument 'text'",
                got=shown(self.text),
                expected="{{ x }} (the network's input), {{ h }} (the layer's own) or hs (of parallel layers)",
                fix="{{ prompt }}\\nInput: {{ x }}\\nLabel:",
            )
        if (self.wording is not None) != bool(used & {"input_name", "output_name"}):
            raise InputError(
                "a template that says input_name or output_name needs their usual wording, and only such a one",
                where=f"template {self.name}",
                got="no wording" if self.wording is None else "a wording that the text does not use",
                expected="a pair of names, and both in the text",
                fix='wording: ["Input", "Label"] beside a text with {{ input_name }} and {{ output_name }}',
            )

    @property
    def residual(self) -> bool:
        """Whether the layer sees the network's input beside its own (names `x`, and `h` or `hs`)."""
        return "x" in self.variables and bool(self.variables & {"h", "hs"})

    @property
    def variables(self) -> frozenset[str]:
        """The variables that the text names."""
        return _variables(self.text)

    def render(self, **values: object) -> str:
        """The text with `values` filled in; values are data and are never rendered themselves.

        Input and output are called as the template's own wording says, unless `values` say otherwise.

        Raises:
            InputError: a variable is missing or the template fails on these values.
        """
        try:
            return _compiled(self.text).render(**{**names_of(self.wording), **values})
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(
                "the template cannot be rendered", where=f"template {self.name}", got=str(error)
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain data, so that a saved network carries its own templates."""
        return dump(self)

    @classmethod
    def from_json(cls, data: object, where: str) -> Template:
        """A template from plain data, every field checked.

        Raises:
            InputError: naming `where` and the field.
        """
        return parse(cls, data, where)


@checked
def load_template(name: str | Path | Template, kind: Kind | None = None) -> Template:
    """A template by name (`think`), also a registered one; by name and version (`think@1`); or by path to a YAML file.

    A template file of the original project, which has several versions, is read too: its highest version, or the one
    that the path names (`q_action_prompt.yaml@3.5`). See `dln.nn.original`.

    Raises:
        InputError: no such template or file, a version that is not there, or another kind than asked.
    """
    if isinstance(name, Template):
        template = name
    elif isinstance(name, Path) or _FILE.fullmatch(name):
        template = _from_file(str(name))
    elif name not in _all_packaged() and any(one.name == name for one in extensions.registered("template")):
        template = extensions.create("template", name)
    else:
        template = _packaged(name)
    if kind is not None and template.kind != kind:
        raise InputError(
            "this template is of another kind",
            where=f"template {template.name}",
            got=template.kind,
            expected=kind,
            fix=f"one of: {', '.join(template_names(kind))}",
        )
    return template


@checked
def template_names(kind: Kind | None = None) -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(t.name for t in _all_packaged().values() if kind is None or t.kind == kind)


def names_of(wording: tuple[str, str] | None) -> dict[str, str]:
    """The variables for the field names of input and output; none without a wording."""
    return {} if wording is None else {"input_name": wording[0], "output_name": wording[1]}


@cache
def _all_packaged() -> dict[str, Template]:
    templates: dict[str, Template] = {}
    for entry in resources.files("dln.nn").joinpath("templates").iterdir():
        if entry.name.endswith(".yaml"):
            template = Template.from_json(yaml.safe_load(entry.read_text(encoding="utf-8")), entry.name)
            templates[template.name] = template
    return templates


def _packaged(name: str) -> Template:
    base, _, version = name.partition("@")
    template = _all_packaged().get(base)
    if template is None:
        raise unknown_name(
            "template", base, template_names(), where="template", expected="a path to a .yaml file or {}"
        )
    if version and version != str(template.version):
        raise InputError(
            "this version of the template is not here",
            where="template",
            got=name,
            expected=f"{base}@{template.version}",
            fix=f"template={base!r}",
        )
    return template


def _from_file(name: str) -> Template:
    match = _FILE.fullmatch(name)
    path, version = (Path(match["path"]), match["version"]) if match else (Path(name), None)
    try:
        data: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            "the template file cannot be read",
            where=path,
            got=str(error),
            expected="a YAML file with the fields of a template",
            fix="check the path; dln.nn.template_names() lists the packaged templates",
        ) from error
    if is_original(data):
        data = translated(cast("dict[str, Any]", data), path.stem, version, str(path))
    elif version is not None:
        raise InputError("only template files of the original project have versions", where=path, got=version)
    return Template.from_json(data, str(path))


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    # autoescape is for HTML; contexts are plain text for a model
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


@cache
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_environment().parse(text)))


@cache
def _compiled(text: str) -> CompiledTemplate:
    template = _environment().from_string(text)
    # a chain of mappings takes several times as long to copy, as every rendering does
    template.globals = dict(template.globals)
    return template
