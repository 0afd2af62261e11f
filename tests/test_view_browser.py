"""The dashboard in headless Chromium: a run watched live, paused, edited and resumed; every screen; hostile texts.

Screenshots are kept in the folder that DLN_SCREENSHOTS names, where it is set.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dln.data import Dataset
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, LanguageLayer, Sequential
from dln.train import fit
from dln.train.events import Controlled, Event, StepDone
from dln.train.labels import Waiting, write_waiting
from dln.train.run import of_kind, read_events
from dln.view.folder import Folder, run_id
from dln.view.server import showing
from report_events import synthetic_run
from view_runs import TOKEN, write_original, write_run

pytestmark = pytest.mark.slow

HOSTILE = (
    "<script>window.executed=1</script><img src=x onerror='window.executed=1'>"
    "<svg onload='window.executed=1'>\"'><a href='javascript:window.executed=1'>x</a>{{7*7}}\x1b[31m\u202e"
)
LABELS = ["yes", "no"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A page whose errors, dialogs and requests to elsewhere fail the test."""

    def __init__(self, browser: Any, url: str, width: int = 1280, scheme: str = "light") -> None:
        self.base = url.partition("#")[0]
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", self._asked)
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        self.page.on(
            "request",
            lambda r: None if r.url.startswith((self.base, "data:", "blob:")) else self.problems.append(r.url),
        )
        self.page.goto(url)
        self.page.wait_for_selector("table.runs tbody a")

    def _asked(self, dialog: Any) -> None:
        if dialog.message.startswith("End this training"):
            dialog.accept()
        else:
            self.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

    def open(self, fragment: str, wanted: str) -> Any:
        self.page.goto(f"{self.base}#/{fragment}")
        self.page.wait_for_selector(wanted)
        return self.page

    def keep(self, name: str) -> None:
        folder = os.environ.get("DLN_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            time.sleep(0.4)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        self.context.close()
        assert self.problems == []


def training(run_dir: Path, steps: int, seconds: float) -> threading.Thread:
    """A run on a table of probabilities that takes `seconds` a step."""

    def pace(event: Event) -> None:
        if isinstance(event, StepDone):
            time.sleep(seconds)

    def work() -> None:
        lm = TableLM.random([" yes", " no", " yes no", " maybe so", ""], seed=0, name="table")
        network = Sequential(
            LanguageLayer(lm, "think", "think"), ChoiceLayer(lm, "classify_residual", "decide", LABELS)
        )
        train, dev = (
            Dataset.from_pairs([(f"{name} {i}", LABELS[i % 3 == 0]) for i in range(30)], labels=LABELS)
            for name in ("toy", "dev")
        )
        inner = {"num_hidden": 2, "num_prompts": 3, "prompt_tokens": 8, "output_layer": "fitted"}
        options = {"batch_size": 6, "val_every": 1, "inference": inner}
        fit(network, train, dev, steps=steps, run_dir=run_dir, options=options, callbacks=[pace], task="toy")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_person_watches_pauses_edits_and_resumes_a_run(browser: Any, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "runs" / "toy"
    thread = training(folder, steps=500, seconds=0.5)
    while not (folder / "events.jsonl").exists() or not of_kind(read_events(folder / "events.jsonl"), StepDone):
        time.sleep(0.05)
    asked = "Say yes where the number is divisible by three."
    with showing(Folder(tmp_path / "runs"), token=TOKEN) as url:
        watched = Watched(browser, url)
        page = watched.open(f"run/{run_id('toy')}", "#controls")
        first = page.inner_text(".at")
        page.wait_for_selector(f".at:not(:has-text('{first}'))", timeout=60_000)  # it moves by itself
        page.click("[data-action=pause]")
        page.wait_for_selector(".pill.state-paused", timeout=60_000)
        steps = len(of_kind(read_events(folder / "events.jsonl"), StepDone))
        page.locator(".layer button[aria-expanded]").nth(1).click()
        page.fill("#edit-1", asked)
        watched.keep("edit")
        page.click(".edit:not([hidden]) button.strong")
        page.wait_for_selector("text=a person proposed for layer 2")
        assert len(of_kind(read_events(folder / "events.jsonl"), StepDone)) == steps
        page.locator(".opinion .why").first.fill("names <b>nothing</b>")
        page.locator("[data-action=dislike]").first.click()
        page.wait_for_selector("text=a person dislikes for layer 1")
        page.wait_for_selector("text=disliked: names <b>nothing</b>")
        page.click("[data-action=resume]")
        page.wait_for_selector(".pill.human", timeout=60_000)
        row = page.locator("tr", has=page.locator(".pill.human")).last
        assert "divisible" in row.inner_text()
        page.click("[data-action=stop]")
        page.wait_for_selector(".pill.state-finished", timeout=60_000)
        watched.keep("live")
        watched.close()
    thread.join(30)
    events = read_events(folder / "events.jsonl")
    asked_for = [(event.action, event.comment) for event in of_kind(events, Controlled)]
    assert asked_for == [
        ("pause", ""),
        ("prompt", ""),
        ("dislike", "names <b>nothing</b>"),
        ("resume", ""),
        ("stop", ""),
    ]
    scored = [
        candidate
        for event in of_kind(events, StepDone)
        for layer in event.layers
        for candidate in layer.candidates
        if candidate.source == "human"
    ]
    assert [candidate.prompt["instruction"] for candidate in scored] == [asked]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("shown")
    write_run(root / "questions", synthetic_run(2, 12))
    write_run(root / "mail", synthetic_run(1, 6, task="mail"))
    write_run(root / "evil", synthetic_run(2, 3, poison=HOSTILE, task=HOSTILE))
    write_run(root / "half", synthetic_run(2, 4, finished=False, test=False))
    unsure = dict.fromkeys(LABELS, 0.5)
    write_waiting(root / "mail", [Waiting(x=f"input {i} {HOSTILE}", probabilities=unsure) for i in range(3)])
    write_original(root / "result_data.json")
    with showing(Folder(root), token=TOKEN) as url:
        yield url


SCREENS = {
    "list": ("", "table.runs tbody a"),
    "run": (f"run/{run_id('questions')}", ".cands"),
    "step": (f"run/{run_id('questions')}/4", ".cands"),
    "half": (f"run/{run_id('half')}", ".cands"),
    "original": (f"run/{run_id('result_data/two')}/2", ".cands"),
    "compare": (f"compare/{run_id('questions')},{run_id('mail')}", ".side .prompt"),
    "label": (f"label/{run_id('mail')}", "[data-label]"),
}


def axe() -> str:
    """The script of the npm package axe-core, where it is installed."""
    places = [Path("node_modules"), Path("/usr/lib/node_modules"), Path("/usr/local/lib/node_modules")]
    given = os.environ.get("DLN_AXE")
    files = [Path(given)] if given else [place / "axe-core" / "axe.min.js" for place in places]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        pytest.skip("axe-core is not installed: npm install axe-core, or DLN_AXE=…/axe.min.js")
    return found.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_has_a_serious_problem_of_accessibility(browser: Any, shown: str, scheme: str):
    script, problems = axe(), list[str]()
    watched = Watched(browser, shown, scheme=scheme)
    for name, (fragment, wanted) in SCREENS.items():
        page = watched.open(fragment, wanted)
        page.evaluate(script)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        problems += [
            f"{name}: {v['impact']} {v['id']} {node['target']} {node['failureSummary']}"
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"][:3]
        ]
    watched.close()
    assert not problems, "\n".join(problems)


def test_a_person_labels_by_keys_and_takes_one_back(browser: Any, shown: str):
    watched = Watched(browser, shown)
    page = watched.open(f"label/{run_id('mail')}", "[data-label=yes]")
    for key, done in (("1", 1), ("2", 2), ("u", 1), ("s", 1), ("1", 2)):
        page.keyboard.press(key)
        page.wait_for_selector(f"text={done} of 3 labelled")
        if key == "s":
            page.wait_for_selector("text=input 2")
    page.reload()
    page.wait_for_selector("text=2 of 3 labelled")
    assert "input 1" in page.inner_text("main .prompt")
    assert page.evaluate("window.executed") is None
    watched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_every_screen_fits_and_has_no_errors(browser: Any, shown: str, width: int, scheme: str):
    watched = Watched(browser, shown, width, scheme)
    for name, (fragment, wanted) in SCREENS.items():
        page = watched.open(fragment, wanted)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        watched.keep(f"{name}-{width}-{scheme}")
    watched.close()


def test_the_slider_moves_prompts_candidates_and_examples(browser: Any, shown: str):
    watched = Watched(browser, shown)
    page = watched.open(f"run/{run_id('result_data/two')}/1", ".cands")
    for step in (2, 3):
        page.focus("input[type=range]")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f".win ins:has-text('{step}')")
        assert f"step {step} of 3" in page.inner_text(".at")
        assert str(step) in page.locator(".layer .prompt ins").first.inner_text()
        assert str(step - 1) in page.locator(".layer .prompt del").first.inner_text()
    page.locator(".example summary").first.click()
    assert "thought 3" in page.locator(".example .case").first.inner_text()
    page.reload()
    page.wait_for_selector(".cands")
    watched.close()


def test_examples_are_filtered_and_open_to_their_posterior(browser: Any, shown: str):
    watched = Watched(browser, shown)
    page = watched.open(f"run/{run_id('questions')}", "#test .example")
    everything = page.locator("#test .example").count()
    page.select_option("#test select[aria-label=Show]", "broken")
    assert 0 < page.locator("#test .example").count() < everything
    assert page.locator("#test .example .pill.broken").count() == page.locator("#test .example").count()
    page.wait_for_selector("#batch .example")
    page.locator("#batch .example summary").first.click()
    assert "log p(h|x)" in page.locator("#batch .example .case").first.inner_text()
    watched.close()


def test_hostile_texts_run_nothing(browser: Any, shown: str):
    watched = Watched(browser, shown)
    for fragment, wanted in (
        ("", "table.runs tbody a"),
        (f"run/{run_id('evil')}/2", ".cands"),
        (f"compare/{run_id('evil')},{run_id('mail')}", ".side .prompt"),
    ):
        page = watched.open(fragment, wanted)
        for summary in page.locator("details > summary").all()[:20]:
            if summary.is_visible():
                summary.click()
        assert page.evaluate("window.executed") is None
        assert page.locator("main script, main img, main iframe, main a[href^=javascript]").count() == 0
        assert page.locator("text=window.executed").count() > 0
    watched.close()


def test_without_the_token_nothing_is_shown(browser: Any, shown: str):
    context = browser.new_context()
    page = context.new_page()
    page.goto(shown.partition("#")[0])
    page.wait_for_selector(".problem")
    assert "token" in page.inner_text(".problem")
    assert page.locator("table").count() == 0
    context.close()
