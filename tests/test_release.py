"""What a release consists of: metadata that agree, pages of the repository, and a wheel that installs and runs."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dln

ROOT = Path(__file__).parents[1]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == dln.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == dln.__version__


def test_the_citation_names_the_method():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert citation["license"] == project()["license"]
    (paper,) = citation["references"]
    assert len(paper["authors"]) == 9
    assert paper["identifiers"][0]["value"] == "arXiv:2306.12509"


def test_every_dependency_has_its_licence_on_the_page():
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w-]+) \| `?(\w+)`? \| ", page, re.MULTILINE))
    wanted: dict[str, str] = {}
    for extra, requirements in {"always": project()["dependencies"], **project()["optional-dependencies"]}.items():
        for requirement in requirements if extra not in ("dev", "test", "all") else ():
            name = re.match(r"[\w-]+", requirement)
            assert name is not None
            if name[0] != "dln":
                wanted.setdefault(name[0], extra)
    del listed["package"]
    assert listed == wanted


def test_the_lock_lists_whatever_its_packages_require():
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    versions = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    installed = {canonicalize_name(one.name): one for one in metadata.distributions()}
    # the newest and the lowest versions may require other packages
    checked = {
        name: installed[name]
        for name, version in versions.items()
        if name in installed and installed[name].version == version
    }
    assert checked
    for name, distribution in checked.items():
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted = canonicalize_name(requirement.name)
                assert name == "torch" or wanted in versions, f"{name} requires {wanted}"


def test_uv_is_told_what_pip_is_configured_with():
    path = ROOT / "tools" / "install.py"
    spec = importlib.util.spec_from_file_location("install", path)
    assert spec is not None
    assert spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    listed = """
:env:.find-links='/wheels'
:env:.timeout='60'
download.index-url='https://not.for.install/simple'
global.cert='/etc/own.crt'
global.extra-index-url='https://a/simple\\nhttps://b/simple'
global.find-links='/other/wheels'
global.index-url='https://user:pass@mirror/simple?a=b'
install.index-url='https://mirror.of.install/simple'
"""
    options, variables = install.as_uv_takes_them(install.pip_settings(listed))
    pairs = set(itertools.pairwise(options))
    assert pairs >= {
        ("--default-index", "https://mirror.of.install/simple"),
        ("--index", "https://a/simple"),
        ("--index", "https://b/simple"),
        ("--find-links", "/wheels"),
    }
    assert not {"/other/wheels", "https://not.for.install/simple", "--no-index"} & set(options)
    assert variables == {"SSL_CERT_FILE": "/etc/own.crt", "UV_HTTP_TIMEOUT": "60"}
    assert "--no-index" in install.as_uv_takes_them(install.pip_settings("install.no-index='true'"))[0]


def test_issue_forms_are_valid():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 3
    for form in forms:
        data = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.stem != "config":
            assert {"name", "description", "body"} <= set(data)
            assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in data["body"])


def test_pages_for_contributors_are_there():
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / name).stat().st_size > 200


@pytest.mark.slow
def test_a_wheel_installs_into_an_empty_environment_and_runs(tmp_path: Path):
    """Its dependencies come from this environment; nothing of the checkout is on the path."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install '.[dev]'")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("dln-*.whl")
    assert f"-{dln.__version__}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("dln/cli/recipes/paper/navigate-e2e.yaml", "dln/nn/templates/classify.yaml", "dln/py.typed"):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "src/")) or "__pycache__" in name]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run(
        [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", str(wheel)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    others = {path for path in map(Path, sys.path) if path.name == "site-packages"}
    (site / "others.pth").write_text("\n".join(map(str, others)), encoding="utf-8")

    def run(*words: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(tmp_path / "env" / "bin" / "dln")
    assert run(str(python), "-c", "import dln; print(dln.__file__)").startswith(str(tmp_path))
    assert run(command, "--version") == f"dln {dln.__version__}\n"
    run(command, "init", "tickets")
    assert (tmp_path / "tickets" / "tickets.csv").exists()
    assert "result_data" in run(command, "export", "--help")
