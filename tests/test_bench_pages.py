"""Tables in pages: their markers, the command above them, and that writing the same cells again changes nothing."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from cli_shell import Shell
from dln.cli.tables import checked_places
from dln.errors import InputError
from dln.experiments.cells import CellResult, Made, Spent, made_here
from dln.experiments.summary import GROUPS, summarize
from dln.experiments.tables import (
    FRONT,
    REGIONS,
    SHORT,
    check_section,
    circumstances,
    full_section,
    markdown,
    reductions,
    short_section,
    write_section,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
SMALL = ["--lm", "fake/1", "--seeds", "1", "--train-size", "40", "--dev-size", "20", "--test-size", "20"]
NINE = [task for tasks in GROUPS.values() for task in tasks]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    shell = Shell(monkeypatch, tmp_path, capsys)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    front = f"# Title\n\n<!-- measured: {SHORT} -->\n<!-- end of {SHORT} -->\n\nthe end\n"
    (tmp_path / "README.md").write_text(front, encoding="utf-8")
    return shell


def cell(task="mpqa", method="dln-1", seed=13, n=250, right=200):
    return CellResult(
        task=task,
        method=method,
        seed=seed,
        correct=[i < right for i in range(n)],
        accuracy=right / n,
        balanced_accuracy=right / n,
        unscored=0,
        train=Spent(seconds=10.0),
        test=Spent(seconds=20.0),
        made=Made(date="2026-01-02", machine="a processor", threads=2, version="1"),
    )


def section(page: Path, region: str) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition(f"<!-- measured: {region} -->")[2].partition(f"<!-- end of {region} -->")[0].strip()


def test_the_page_has_every_region_once_and_nothing_on_it_is_unmarked():
    for region in REGIONS:
        if region != SHORT:
            check_section(PAGE, region)
    found = re.findall(r"<!-- measured: (.*?) -->", PAGE.read_text(encoding="utf-8"))
    assert sorted(found) == sorted((set(REGIONS) - {SHORT}) | {"programs"})  # that one is of `benchmarks.programs`


def test_small_cells_are_written_into_both_pages_and_again_without_a_change(tmp_path):
    cells = [cell(t, m, s, 20, 10 + s % 7) for m in ("majority", "dln-1") for t in ("mpqa", "trec") for s in (13, 42)]
    summary = summarize(cells)
    about, less = circumstances("dln bench paper", "fake/1", cells), reductions(summary)
    for name, region, text in (
        ("results.md", "paper", full_section(markdown(summary), about, less)),
        ("README.md", SHORT, short_section(summary, about, less)),
    ):
        page = tmp_path / name
        page.write_text(f"a\n<!-- measured: {region} -->\n<!-- end of {region} -->\nb\n", encoding="utf-8")
        write_section(page, region, text)
        once = page.read_text(encoding="utf-8")
        write_section(page, region, text)
        assert page.read_text(encoding="utf-8") == once
        assert once.startswith("a\n") and once.endswith("\nb\n")
        assert "$ dln bench paper\n" in once
        assert "2026-01-02; fake/1; a processor, 2 threads; 0:04:00 h in total" in once
        assert "without subj" in once


def test_what_is_reduced_is_said_and_a_full_table_says_so():
    full = [cell(task, seed=seed) for task in NINE for seed in (13, 42, 25)]
    assert reductions(summarize(full)).startswith("Full protocol")
    less = reductions(summarize([*full[:-1], cell("extra", n=20, right=10)]))
    assert "dln-1 on logical_deduction_seven_objects with 2 of 3 seeds" in less
    assert "20 test items of extra" in less
    assert "without subj; without seeds 42, 25" in reductions(
        summarize([cell(task) for task in NINE if task != "subj"])
    )


def test_the_short_table_has_a_row_per_task_the_fitted_baselines_and_only_methods_that_are_there():
    methods = ("majority", "0-shot-fitted", "icl-5-fitted", "dln-1", "cot")
    cells = [cell(task, method) for method in methods for task in NINE]
    text = short_section(summarize(cells), circumstances("c", "m", cells), "")
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["task", "majority", "0-shot, fitted", "icl-5, fitted", "dln-1", "n"]
    assert [row[0] for row in rows[2:]] == [*NINE, "NLU mean", "BIG-bench mean", "mean"]
    assert rows[2] == ["mpqa", *["80.0 ± 4.9"] * 4, "250"]


def test_the_table_of_the_readme_repeats_the_numbers_of_the_results():
    def cells(text: str) -> list[list[str]]:
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        return [row for row in rows if not row[0].startswith("---")]

    full = cells(section(PAGE, "sentences").partition("n per seed")[0])
    accuracies = {
        (row[0], task): re.sub(r" \(.*", "", value)
        for row in full[1:]
        for task, value in zip(full[0], row, strict=True)
    }
    short, named = cells(section(PAGE.parents[1] / "README.md", SHORT)), {title: name for name, title in FRONT.items()}
    assert len(short) > 5
    for task, *values in short[1:]:
        for title, value in zip(short[0][1:-1], values[:-1], strict=True):
            assert value == accuracies[named[title], task]


def test_the_command_fills_both_pages_with_itself_and_again_with_the_same(cli: Shell):
    words = ["bench", "paper", "--tasks", "questions", "--methods", "majority,0-shot,icl-3", *SMALL]
    words += ["--write", "docs/results.md", "--write", "README.md"]
    assert cli(*words).code == 0
    pages = [cli.folder / "docs" / "results.md", cli.folder / "README.md"]
    first = [page.read_text(encoding="utf-8") for page in pages]
    full, short = section(pages[0], "paper"), section(pages[1], SHORT)
    for text in (full, short):
        (command,) = re.findall(r"^\$ (.*)$", text, re.MULTILINE)
        typed = shlex.split(command)
        assert typed[0] == "dln"
        assert sorted(typed[1:]) == sorted(words)
        assert made_here().place in text
        assert "without mpqa" in text
    assert "| icl-3 |" in full
    assert "| icl-3 |" not in short
    assert (cli.folder / "docs" / "images" / "results-paper.svg").is_file()
    assert "](images/results-paper.svg)" in full
    before = re.split("<!-- .*? -->", PAGE.read_text(encoding="utf-8"))
    after = re.split("<!-- .*? -->", first[0])
    place = re.findall("<!-- measured: (.*?) -->", PAGE.read_text(encoding="utf-8")).index("paper")
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [2 * place + 1]
    assert first[1].endswith("\n\nthe end\n")

    assert cli(*words).code == 0
    assert [page.read_text(encoding="utf-8") for page in pages] == first


def test_regions_are_chosen_by_the_command_and_by_name(cli: Shell):
    words = ["bench", "paper", "--tasks", "questions", "--methods", "majority", *SMALL, "--write", "docs/results.md"]
    assert cli(*words, "--equal-tokens", 1000, "--run-dir", "a").code == 0
    assert cli(*words, "--region", "depth", "--run-dir", "b").code == 0
    page = cli.folder / "docs" / "results.md"
    assert section(page, "paper") == section(PAGE, "paper")
    assert "--equal-tokens 1000" in section(page, "equal tokens")
    assert "--region depth" in section(page, "depth")


def test_a_page_without_markers_is_refused_before_any_work(cli: Shell):
    (cli.folder / "README.md").write_text("nothing\n", encoding="utf-8")
    words = ["bench", "paper", "--tasks", "questions", "--methods", "majority", *SMALL]
    for more, says in (
        (["--write", "README.md"], "<!-- measured: results -->"),
        (["--write", "none.md"], "there is no such page"),
        (["--write", "docs/results.md", "--region", "papre"], "did you mean 'paper'"),
        (["--region", "paper"], "--write docs/results.md"),
    ):
        done = cli(*words, *more)
        assert done.code == 2, more
        assert says in done.err
        assert not (cli.folder / "bench").exists()


def test_the_front_page_takes_no_ablation(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- measured: results -->\n<!-- end of results -->\n", encoding="utf-8")
    with pytest.raises(InputError, match="no section"):
        checked_places([page], None, "ablation")
    with pytest.raises(InputError, match="short table"):
        checked_places([page], SHORT, "ablation")
    (place,) = checked_places([page], None, "equal tokens")
    assert place.short


def test_what_is_secret_is_not_in_the_command(cli: Shell):
    words = [
        "bench",
        "paper",
        "--tasks",
        "questions",
        "--methods",
        "majority",
        *SMALL[2:],
        "--write",
        "docs/results.md",
    ]
    server = ["--lm", "vllm/x", "--base-url", "http://user:hidden@127.0.0.1:1/v1", "--lm-option", "timeout=5"]
    server += ["--lm-option", "headers={Authorization: hidden}"]
    done = cli(*words, *server)
    text = section(cli.folder / "docs" / "results.md", "paper")
    assert done.code == 0, done.err  # the majority class needs no answer of the model
    assert "timeout=5" in text
    assert "--base-url http://127.0.0.1:1/v1" in text or "127.0.0.1:1/v1" in text
    assert "hidden" not in text + (cli.folder / "bench" / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_headroom_of_several_tasks_goes_into_its_region(cli: Shell):
    (cli.folder / "mail.csv").write_text(
        "text,kind\n" + "".join(f"please {i} send {i * 7 % 31},{'order' if i % 2 else 'return'}\n" for i in range(80)),
        encoding="utf-8",
    )
    words = ["probe-task", "--lm", "fake/1", "--prompts", 2, "--shots", 3, "--draws", 0, "--dev-size", 20]
    done = cli(*words, "--tasks", "questions,mail.csv", "--write", "docs/results.md", "--json")
    assert done.code == 0, done.err
    assert [record["task"] for record in done.records] == ["questions", "mail"]
    text = section(cli.folder / "docs" / "results.md", "headroom")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["questions", "mail"]
    (command,) = re.findall(r"^\$ (dln probe-task .*)$", text, re.MULTILINE)
    assert "--tasks questions,mail.csv" in command
    assert "No test example is looked at" in text
    assert json.loads(json.dumps(done.records))


def test_headroom_of_one_task_is_printed_as_before(cli: Shell):
    done = cli("probe-task", "--lm", "fake/1", "--prompts", 2, "--shots", 3, "--draws", 0, "--task", "questions")
    assert done.code == 0, done.err
    assert "majority class" in done.out
    assert "Training has to beat TF-IDF + logistic regression" in done.out
    assert "Depth was not measured." in done.out
