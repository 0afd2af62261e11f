"""The documentation runs: every Python block is executed, every `dln` command is one that exists.

Blocks of one page share a namespace and run in order, in an empty working directory. What follows
```` ```python ```` decides:

    (nothing)   executed; must not load the embedded model
    model       executed with a tiny model in the place of the embedded one, and with the embedded one under the
                markers `model` and `slow`; all blocks of the page before it run too
    no-run      shown only; its first line is a comment that says why
"""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import dln
from conftest import build_tiny_model
from dln.lm.base import LanguageModel
from dln.lm.load import load_lm
from dln.train import resolve_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE_IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
WAYS = {"", "model", "no-run"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    info: str
    code: str

    @property
    def way(self) -> str:
        return self.info.removeprefix("python").strip()

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match["info"].strip(), match["code"])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.info.split(" ")[0] == language]


def execute(blocks: list[Block], namespace: dict[str, Any]) -> None:
    """Run blocks in order; a traceback shows the page and the line in it."""
    for block in blocks:
        code = "\n" * block.line + block.code
        exec(compile(code, str(block.page), "exec"), namespace)  # noqa: S102 - the repository's own pages


@each_page
def test_every_python_block_says_how_it_is_to_be_run(page: Path):
    for block in blocks_of(page, "python"):
        assert block.way in WAYS, f"{block}: ```{block.info}"
        if block.way == "no-run":
            assert block.code.startswith("# "), f"{block}: a block that is not run says why in its first line"


@each_page
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = [block for block in blocks_of(page, "python") if block.way == ""]
    if any(block.way == "model" for block in blocks_of(page, "python")):
        # what stands after the first block that needs the model may build on it: that part runs with it
        first = min(block.line for block in blocks_of(page, "python") if block.way == "model")
        blocks = [block for block in blocks if block.line < first]
    monkeypatch.chdir(tmp_path)
    execute(blocks, {"__name__": "__main__"})


PAGES_WITH_A_MODEL = [page for page in PAGES if any(block.way == "model" for block in blocks_of(page, "python"))]
pages_with_a_model = pytest.mark.parametrize(
    "page", PAGES_WITH_A_MODEL, ids=lambda page: page.relative_to(ROOT).as_posix()
)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of a tiny model that reads as much as the embedded one."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts += [example.input for example in dln.load_task("questions").train]
    folder = tmp_path_factory.mktemp("stand-in")
    return f"hf/{build_tiny_model(folder, context_length=8192, corpus=texts, words=3000)}"


@pytest.mark.parametrize(
    "page",
    [
        # tests/test_sklearn.py makes the same calls on less data
        pytest.param(
            page,
            id=page.relative_to(ROOT).as_posix(),
            marks=pytest.mark.slow if page.name == "sklearn.md" else (),
        )
        for page in PAGES_WITH_A_MODEL
    ],
)
def test_python_blocks_run_with_a_tiny_model(
    page: Path, stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(spec: str, **options: Any) -> LanguageModel:
        return load_lm(stand_in if spec == "smollm2" else spec, **options)

    monkeypatch.setattr(dln, "load_lm", load)
    monkeypatch.chdir(tmp_path)
    execute([b for b in blocks_of(page, "python") if b.way != "no-run"], {"__name__": "__main__"})


@pytest.mark.model
@pytest.mark.slow
@pages_with_a_model
@pytest.mark.usefixtures("smollm2")
def test_python_blocks_run_with_the_embedded_model(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    execute([b for b in blocks_of(page, "python") if b.way != "no-run"], {"__name__": "__main__"})


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """(place, words) of every `$ dln …` line in the page's console blocks; a trailing backslash joins lines."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks_of(page, "console"):
        lines = block.code.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.startswith("$ ") else []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)  # an environment variable set for this command
            if words and Path(words[0]).name == "dln":
                found.append((f"{block}: {line}", words[1:]))
    return found


def check(command: Any, words: list[str], path: list[str], place: str) -> None:
    """Parse without running: unknown commands, options and missing or superfluous arguments are errors.

    `command` is a Click command or Typer's own copy of one, so what it can do is asked and not what it is.
    """
    children: dict[str, Any] | None = getattr(command, "commands", None)
    if children is not None:
        flags = {name for parameter in command.params for name in parameter.opts}
        while words and words[0] in {*flags, "--help", "-h"}:
            words = words[1:]
        if words:
            assert words[0] in children, f"{place}\n  no command {' '.join([*path, words[0]])}"
            check(children[words[0]], words[1:], [*path, words[0]], place)
        return
    if {"--help", "-h"} & set(words):
        return
    try:
        command.make_context(" ".join(path), list(words))
    except Exception as error:  # a usage error of Click, or of Typer's copy of it
        if not hasattr(error, "format_message"):
            raise
        pytest.fail(f"{place}\n  {error.format_message()}")


@pytest.mark.parametrize("page", [p for p in PAGES if commands_of(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_flags_exist(page: Path):
    from dln.cli.main import app

    command = typer.main.get_command(app)
    for place, words in commands_of(page):
        check(command, words, ["dln"], place)


def test_the_options_page_is_current():
    tool = runpy.run_path(str(ROOT / "tools" / "make_options_page.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert page == tool["options_page"](), "run: python tools/make_options_page.py"


@each_page
def test_links_between_pages_lead_somewhere(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", linked.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {target}"


@each_page
def test_paths_of_the_repository_exist(page: Path):
    """`src/…`, `docs/…`, `tests/…`, `benchmarks/…`, … and names like `infer/vi.py` in back quotes are files."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    rooms = "|".join(sorted(p.name for p in (ROOT / "src" / "dln").iterdir() if p.is_dir() and p.name.isidentifier()))
    for name in re.findall(rf"`((?:src|docs|tests|examples|tools|benchmarks|{rooms})/[\w./-]+)`", text):
        places = [ROOT / name, ROOT / "src" / "dln" / name]
        assert any(place.exists() for place in places), f"{page.name}: {name}"


def test_a_newcomer_finds_the_step_the_scoring_rules_and_the_extension_points():
    """One click from the README to a section of the design page, which names the files."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for heading, file in (
        ("The training step", "`infer/vi.py`"),
        ("Scoring rules", "`label_mass`"),
        ("Extension points", "`infer/prompts.py`"),
    ):
        assert f"](docs/design.md#{slug(heading)})" in readme
        assert file in design.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert len(design.splitlines()) <= 250


def test_the_changelog_has_each_kind_of_change_once_per_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert versions
    for version in versions:
        kinds = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert len(kinds) == len(set(kinds)), version.splitlines()[0]
        entries = re.findall(r"^- .*$", version, re.MULTILINE)
        assert len(entries) == len(set(entries)), version.splitlines()[0]


def slug(heading: str) -> str:
    """The anchor that a heading gets: lower case, without punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_departure_from_the_paper_is_explained():
    """The table of design.md names exactly the options that the two presets set differently."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = text.partition("## Departures from the paper's preset, and why\n")[2].partition("\n## ")[0]
    explained = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    default, paper = (flat(resolve_options(name).model_dump()) for name in ("default", "paper"))
    different = {name for name in default if default[name] != paper[name]} - {"preset"}
    assert len(explained) == len(set(explained))
    assert set(explained) == different


def flat(options: dict[str, Any]) -> dict[str, Any]:
    inner = {f"inference.{name}": value for name, value in options["inference"].items()}
    return {name: value for name, value in options.items() if name != "inference"} | inner


@pytest.mark.parametrize(
    "line",
    ["tarin", "train --taks questions", "train --steps many", "resume", "model pull now", "runs one two"],
)
def test_the_check_of_commands_can_fail(line: str):
    from dln.cli.main import app

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(typer.main.get_command(app), line.split(), ["dln"], line)
