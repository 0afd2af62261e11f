"""Templates: every packaged one renders, user mistakes are one clear error, data is never code."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, meta

from dln.errors import InputError
from dln.nn import Demonstration, Prompt, Template, load_template, template_names
from dln.nn.context import LayerInput, render
from dln.nn.template import VARIABLES

EXAMPLE = {"input": "an input", "x": "the network's input", "output": "an output", "target": "a target", "comment": ""}
VALUES = {
    "x": "the x",
    "h": "the h",
    "prompt": "the prompt",
    "output": "the draft",
    "target": "the target",
    "hs": ["the first h", "the second h"],
    "y": "the y",
    "next_prompt": "the next prompt",
    "message": "the message",
    "examples": [EXAMPLE],
    "successes": [EXAMPLE],
    "failures": [EXAMPLE],
    "count": 3,
    "input_name": "The Question",
    "output_name": "The Kind",
}
BRACES = st.sampled_from(["{{ x }}", "{% raw %}", "{{ 1 + 1 }}", "{# note #}", "{% for i in x %}", "}}", "{{", "%}"])
DATA = st.lists(st.one_of(BRACES, st.text(max_size=5)), max_size=5).map("".join)


def template(text, kind="forward", **more):
    return Template(name="mine", version=1, kind=kind, text=text, **more)


@pytest.mark.parametrize("name", template_names())
def test_every_packaged_template_renders_with_the_variables_of_its_kind(name):
    loaded = load_template(name)
    values = {key: VALUES[key] for key in VARIABLES[loaded.kind]}
    text = loaded.render(**values)
    used = meta.find_undeclared_variables(Environment(autoescape=True).parse(loaded.text))
    if "hs" in used:
        assert all(h in text for h in VALUES["hs"])
    for key in used - {"examples", "successes", "failures", "count", "hs"}:
        assert VALUES[key] in text
    assert "{{" not in text
    assert "{%" not in text
    assert loaded.version >= 1
    assert loaded.about
    assert load_template(f"{name}@{loaded.version}") == loaded


@pytest.mark.parametrize("name", template_names("forward"))
def test_a_forward_template_renders_without_a_prompt_and_leaves_no_gap(name):
    text = load_template(name).render(prompt="", x="the x", h="the h", hs=["the h"])
    assert not text.startswith(("\n", " "))
    assert "the h" in text


@pytest.mark.parametrize("name", template_names("backward"))
def test_backward_templates_offer_several_meta_instructions(name):
    messages = load_template(name).messages
    assert len(set(messages)) == len(messages) >= 2


def test_names_are_sorted_by_kind_and_together_complete():
    kinds = [template_names(kind) for kind in VARIABLES]
    assert sorted(name for names in kinds for name in names) == template_names()
    assert "classify" in template_names("forward")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'classify_residual'"):
        load_template("clasify_residual")


def test_a_version_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="think@1"):
        load_template("think@99")


def test_another_kind_is_refused_and_the_right_ones_are_listed():
    with pytest.raises(InputError, match=r"template backward:(.|\n)*one of: .*classify"):
        load_template("backward", "forward")


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_works_wherever_a_name_does(tmp_path, as_text):
    mine = template("{{ prompt }}|{{ h }}", stop=("\n",), target_prefix=" ")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(mine.to_json()), encoding="utf-8")
    assert load_template(str(path) if as_text else path, "forward") == mine


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "name: mine\nversion: 1\nkind: forward\ntext: '{% if %}'",
            ["template mine, argument", "not parse"],
        ),
        ("name: mine\nversion: 1\nkind: forward\ntext: '{{ secret }}'", ["template mine", "secret"]),
        ("name: mine\nversion: 1\nkind: sideways\ntext: ''", ["kind", "sideways"]),
        ("name: mine\nversion: 1\nkind: forward\ntext: ''\nstops: []", ["stops"]),
        ("name: mine\nversion: one\nkind: forward\ntext: ''", ["version", "one"]),
        ("- a list", ["bad.yaml"]),
        ("", ["bad.yaml"]),
        ("a: [", ["bad.yaml", "cannot be read"]),
        ("!!python/object/apply:os.system ['true']", ["bad.yaml", "cannot be read"]),
    ],
)
def test_a_bad_template_file_is_one_error_that_names_it(tmp_path, text, names):
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_template(path)
    for name in [str(path), *names]:
        assert name in str(caught.value)


def test_files_that_are_missing_or_not_text_are_one_error(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.yaml", binary, tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_template(path)


@pytest.mark.parametrize(
    "text",
    [
        "{{ x.__class__ }}",
        "{{ x.__class__.__mro__[1].__subclasses__() }}",
        "{{ x['__class__'] }}",
        "{{ x|attr('__class__') }}",
        "{{ ''.join.__globals__ }}",
        "{{ x.format.__self__ }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ [1].append(2) }}",
        "{% for i in range(10000000) %}a{% endfor %}",
        "{% include 'other' %}",
        "{% import 'os' as os %}",
        "{{ 1 // 0 }}",
        "{{ x.missing }}",
        "{{ x + 1 }}",
        "{{ x|nosuchfilter }}",
        "{{ {}.a.b }}",
        "{{ x[99] }}",
        "{{ h() }}",
    ],
)
def test_tricks_and_failures_are_refused_by_the_template_that_holds_them(text):
    with pytest.raises(InputError, match="template mine"):
        template(text).render(x="a", h="b", prompt="c")


def test_a_missing_value_is_refused():
    with pytest.raises(InputError, match=r"template mine(.|\n)*'h' is undefined"):
        template("{{ h }}").render(x="a")


@given(DATA, DATA, DATA)
def test_what_comes_from_data_is_never_rendered(x, h, prompt):
    assert template("{{ prompt }}|{{ x }}|{{ h }}").render(x=x, h=h, prompt=prompt) == f"{prompt}|{x}|{h}"


@given(DATA, DATA, DATA, DATA)
def test_demonstrations_and_prompts_are_data_too(x, y, instruction, question):
    """The context is the instruction, the worked example, the question, each to the letter."""
    mine = template("{% if prompt %}{{ prompt }}\n\n{% endif %}Q {{ h }}\nA:", target_prefix=" ")
    prompt = Prompt(instruction, (Demonstration(x, x, y),))
    expected = [f"Q {x}\nA: {y}", f"Q {question}\nA:"]
    text = render(mine, prompt, LayerInput(question, question))
    assert text == "\n\n".join([instruction, *expected] if instruction else expected)


@pytest.mark.parametrize(
    ("text", "residual"),
    [
        ("{{ x }} {{ h }}", True),
        ("{{ h }}", False),
        ("{{ x }} {{ prompt }}", False),
        ("{% if x %}{{ h }}{% endif %}", True),
        ("x and h {{ h }}", False),
        ("{% set x = 1 %}{{ h }} {{ x }}", False),
    ],
)
def test_a_template_is_residual_if_it_reads_both_x_and_h(text, residual):
    assert template(text).residual is residual


@pytest.mark.parametrize("name", template_names())
def test_templates_survive_a_file(name):
    loaded = load_template(name)
    assert Template.from_json(loaded.to_json(), "file") == loaded
