"""Names from other packages, and descriptions of objects: found, explained, and stable."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import dln
from dln.errors import InputError
from dln.extensions import KINDS, create, described, load, registered
from dln.train import resolve_options
from dln.train.build import strategy


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a distribution with entry points, and its module, where Python finds them."""

    def installed(points: dict[str, str], source: str, name: str = "shop", module: str = "shop_parts") -> None:
        folder = tmp_path / name
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
        lines = [f"{point} = {value}" for point, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[dln]", *lines]) + "\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed


SOURCE = """
import dln

class First:
    def __call__(self, scores, per_example):
        return 0

class Needs:
    def __init__(self, size):
        self.size = size

def ends_alike(prediction, target):
    return prediction[-1:] == target[-1:]

def task():
    return dln.Task.from_dataset(dln.Dataset.from_pairs([(f"text {i}", "ab"[i % 2]) for i in range(40)]), name="shop")

def template():
    return dln.load_template("backward")

def engine(model, seed=1):
    return dln.TableLM.random([f" {model}"], seed=seed)
"""


def test_an_entry_point_is_a_name_like_the_built_in_ones(install):
    points = {"selector.first": "shop_parts:First", "metric.ends_alike": "shop_parts:ends_alike"}
    points |= {
        "task.shop": "shop_parts:task",
        "engine.shop": "shop_parts:engine",
        "template.shop": "shop_parts:template",
    }
    install(points, SOURCE)
    assert [(one.kind, one.name, one.package) for one in registered("selector")] == [("selector", "first", "shop 1.2")]
    options = resolve_options("default", {"inference": {"select": "first"}})
    assert strategy("selector", options.inference.select, {})(np.array([0.0, 1.0]), np.zeros((2, 1))) == 0
    assert options.model_dump(mode="json")["inference"]["select"] == "first"
    assert dln.load_metric("ends_alike")("ham", "jam") == 1.0
    assert dln.load_task("shop").name == "shop"
    assert dln.load_template("shop", "backward") == dln.load_template("backward")
    assert dln.load_lm("shop/warm").sample(["x"], dln.Sampling(), [0])[0].text == " warm"


def test_a_path_needs_no_entry_point(install):
    install({}, SOURCE)
    assert type(create("selector", "shop_parts:First")).__name__ == "First"
    with pytest.raises(InputError, match=r"no 'Nothing'"):
        create("selector", "shop_parts:Nothing")
    with pytest.raises(InputError, match="cannot be imported"):
        create("selector", "no_such_module:First")
    with pytest.raises(InputError, match="without arguments"):
        create("selector", "shop_parts:Needs")


def test_an_unknown_name_lists_the_registered_ones(install):
    install({"selector.first": "shop_parts:First"}, SOURCE)
    with pytest.raises(InputError, match=r"select.*(?s:.)*best, margin, first(?s:.)*did you mean 'first'"):
        resolve_options("default", {"inference": {"select": "frist"}})


def test_a_name_that_two_packages_register_is_refused(install):
    install({"selector.first": "shop_parts:First"}, SOURCE)
    install({"selector.first": "other_parts:First"}, SOURCE, "other", "other_parts")
    with pytest.raises(InputError, match=r"several packages(?s:.)*other 1\.2(?s:.)*shop 1\.2"):
        load("selector", "first")


def test_every_kind_of_option_is_a_kind_of_extension():
    assert len(set(KINDS)) == len(KINDS)
    known = {"callback", "engine", "metric", "stopper", "task"}
    schema = resolve_options("default")
    assert known < set(KINDS)
    assert schema.inference.penalties == ()


@dataclass(frozen=True)
class Sized:
    size: int
    parts: tuple[object, ...] = ()
    api_key: str = "very secret"
    _hidden: int = field(default=3)


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> None:
        """Nothing."""


def test_a_description_is_plain_data_and_says_what_differs():
    lm = dln.TableLM.random([" a"], seed=1)
    values = [
        1,
        float("nan"),
        "x",
        None,
        Sized(2, (Plain(np.arange(3)),)),
        print,
        Plain(lm),
        Plain(1).method,
        {"a", "b"},
    ]
    values += [functools.partial(int, base=3), lambda: None, Sized, {Sized(1): Plain}]
    data = described(values)
    assert json.loads(json.dumps(data)) == described(values) == data
    assert "secret" not in json.dumps(data)
    assert described(Sized(2)) == {"object": f"{__name__}.Sized", "parameters": {"size": 2, "parts": []}}
    assert described(Sized(2)) != described(Sized(3))
    assert described(Plain(lm)) != described(Plain(dln.TableLM.random([" b"], seed=1)))


def test_a_description_of_something_that_holds_itself_ends():
    one = Plain(None)
    one.value = one
    assert f"{__name__}.Plain" in json.dumps(described(one))


def test_doctor_lists_what_is_registered_and_from_where(install):
    from dln.cli.doctor import extension_checks

    points = {"selector.first": "shop_parts:First", "metric.gone": "shop_parts:Gone", "selektor.x": "shop_parts:First"}
    install(points, SOURCE)
    found = {check.name: check for check in extension_checks()}
    assert found["selector first"].state == "ok"
    assert "shop_parts:First, registered by shop 1.2" in found["selector first"].says
    assert [found[name].state for name in ("metric gone", "selektor x")] == ["warning", "warning"]
    assert "Gone" in found["metric gone"].says
    assert "prompt_proposal" in str(found["selektor x"].fix)
