"""The report of a run: what it must say, that it needs nothing else, and that nothing in it is run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dln.errors import InputError
from dln.train.events import Evaluated, Event, Finished, MemberRecord, Started, StepDone
from dln.train.run import to_line
from dln.view import report
from dln.view.format import verdict
from dln.view.report import render_report, write_report
from dln.view.text import clean
from report_events import synthetic_run

VOID = {"meta", "link", "br", "hr", "img", "input"}
SVG_EMPTY = {"line", "circle", "polyline"}
SECTIONS = ["network", "curves", "steps", "differences", "classes", "examples", "cost", "reproduce"]


class Page(HTMLParser):
    """Reads a page: nesting must be sound; tags, attributes and texts are kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_EMPTY | VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page_of(events: Sequence[Event], **options: str) -> Page:
    return Page(render_report(events, title="a run", **options))


def with_members(events: Sequence[Event], weights: Sequence[float]) -> list[Event]:
    """The same run, with several networks that answer together: those of its last steps."""
    steps = [event for event in events if isinstance(event, StepDone)]
    members = [
        MemberRecord(weight=w, step=s.step, score=None if i else -0.5, parameters=s.parameters)
        for i, (w, s) in enumerate(zip(weights, reversed(steps), strict=False))
    ]
    changed: dict[type, dict[str, object]] = {Finished: {"members": members}, Evaluated: {"members": len(members)}}
    return [event.model_copy(update=changed.get(type(event), {})) for event in events]


def skeleton(page: Page) -> list[tuple[str, set[str]]]:
    """Tags and names of attributes; words that changed depend on what the words are."""
    return [(tag, set(attrs)) for tag, attrs in page.tags if tag not in {"ins", "del"}]


RUNS = {
    "one layer": synthetic_run(1),
    "two layers": synthetic_run(2),
    "three layers": synthetic_run(3),
    "resumed": synthetic_run(2, interrupted_at=4),
    "no dev set": synthetic_run(2, dev=False),
    "free text": synthetic_run(3, labels=None),
    "no test": synthetic_run(1, test=False),
    "unfinished": synthetic_run(2, finished=False, test=False),
    "just started": synthetic_run(2)[:1],
    "no step": synthetic_run(1, steps=0),
    "one step": synthetic_run(1, steps=1),
    "together": with_members(synthetic_run(2), [0.5, 0.3, 0.2]),
    "unknown weights": with_members(synthetic_run(1), [math.nan, math.nan]),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_gives_a_sound_page_that_needs_nothing_else(name: str) -> None:
    page = page_of(RUNS[name], command="dln train --seed 13")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert [i for i in ids if i in SECTIONS] == SECTIONS
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "form", "base", "img"})
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    for part in ("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"):
        assert part in policy
    for _tag, attrs in page.tags:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("href", "src", "xlink:href", "action"):
            target = attrs.get(key, "#") or ""
            assert target.startswith("#") or target == "data:,"
            if target.startswith("#"):
                assert target == "#" or target[1:] in ids
        for key in ("aria-labelledby",):
            assert set((attrs.get(key) or "").split()) <= set(ids)
    assert "url(" not in render_report(RUNS[name], title="a run")
    assert "dln train --seed 13" in page.text


@pytest.mark.parametrize("name", RUNS)
def test_the_same_events_give_the_same_page(name: str) -> None:
    assert render_report(RUNS[name], title="t") == render_report(RUNS[name], title="t")


@pytest.mark.parametrize(
    "poison",
    [
        "<script>alert(1)</script>",
        pytest.param("</style><img src=x onerror=alert(1)>", marks=pytest.mark.slow),
        '\' onmouseover=\'alert(1)" style="x" <!--',
        "{{ 7 * 7 }}{% for x in y %}",
        "\x1b[31mred\x1b[0m\x1b]0;title\x07\x00\x9b1m\x7f",
        "\u202eabc\u2066",
    ],
)
@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_no_text_of_data_or_model_leaves_its_place(poison: str, depth: int) -> None:
    sane = with_members(synthetic_run(depth, steps=3, poison="q" * len(clean(poison))), [0.6, 0.4])
    events = with_members(synthetic_run(depth, steps=3, poison=poison), [0.6, 0.4])
    html = render_report(events, title="t" + poison, command="dln train" + poison)
    page = Page(html)
    assert skeleton(page) == skeleton(page_of(sane, command="dln train"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    shown = re.sub(r"\s+", " ", clean(poison))
    assert page.text.count(shown) > 20
    assert "49" not in shown
    html.encode()


def test_lone_surrogates_are_encodable() -> None:
    events = synthetic_run(2, steps=2)
    started, step = events[0], next(e for e in events if isinstance(e, StepDone))
    assert isinstance(started, Started)
    network = started.network | {
        "layers": [
            layer | {"prompt": {"instruction": "half \ud83d", "demonstrations": []}}
            for layer in started.network["layers"]
        ]
    }
    broken = [
        started.model_copy(update={"network": network, "options": {"a\udc00": ["\ud800", 1, None]}, "task": "t\udfff"}),
        step.model_copy(update={"examples": [step.examples[0].model_copy(update={"x": "\ud800"})]}),
    ]
    html = render_report(broken, title="\ud83d", command="\udc00")
    assert "half \ufffd" in html.encode().decode()


def test_an_accuracy_that_is_not_a_number_is_a_dash() -> None:
    events = synthetic_run(1, steps=1)
    last = events[-1]
    assert isinstance(last, Evaluated)
    nothing = {"accuracy": math.nan, "low": math.nan, "high": math.nan}
    unknown = last.model_copy(
        update={"after": last.after.model_copy(update=nothing), "difference": None, "p_value": math.nan}
    )
    text = page_of([*events[:-1], unknown]).text
    assert "95 % interval —" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_the_headline_says_what_the_test_says() -> None:
    evaluation = synthetic_run(1)[-1]
    assert isinstance(evaluation, Evaluated)
    assert "significantly better" in verdict(evaluation)
    assert "significantly worse" in verdict(evaluation.model_copy(update={"difference": (-0.2, -0.3, -0.1)}))
    assert "No significant difference" in verdict(evaluation.model_copy(update={"p_value": 0.05}))
    assert "not evaluated" in verdict(evaluation.model_copy(update={"before": None}))
    assert "no paired test was run" in verdict(evaluation.model_copy(update={"p_value": None}))
    assert verdict(evaluation) in page_of(synthetic_run(1)).text
    assert "No test evaluation was run" in page_of(RUNS["no test"]).text
    assert "not evaluated yet" in page_of(RUNS["just started"]).text
    assert "there is no dev set" in page_of(synthetic_run(1, dev=False, test=False)).text


def test_a_page_shows_what_the_run_holds() -> None:
    events = synthetic_run(2, steps=4)
    text = page_of(events).text
    done = next(e for e in events if isinstance(e, StepDone))
    for candidate in done.layers[0].candidates:
        assert candidate.prompt["instruction"] in text
    finished = next(e for e in events if isinstance(e, Finished))
    for layer in finished.network["layers"]:
        assert layer["prompt"]["instruction"] in text
        assert layer["fingerprint"] in text
    for wanted in ("2 duplicate", "prior with label", "effective sample size", "torch", "num_hidden: 5", "9f2c9f2c"):
        assert wanted in text
    evaluation = events[-1]
    assert isinstance(evaluation, Evaluated)
    assert f"{evaluation.fixed} fixed, {evaluation.broken} broken" in text


def test_networks_that_answer_together_are_listed_with_their_weights() -> None:
    events = with_members(synthetic_run(2), [0.62, 0.271, 0.109])
    text = page_of(events).text
    for wanted in ("Ensemble of 3 networks", "ensemble of 3 networks, n = 120", "62.0", "27.1", "10.9"):
        assert wanted in text
    finished = next(e for e in events if isinstance(e, Finished))
    for member in finished.members:
        for layer in member.parameters["layers"]:
            assert layer["prompt"]["instruction"] in text
    assert "nsemble" not in page_of(synthetic_run(2)).text


def test_only_events_that_hold_are_shown() -> None:
    events = synthetic_run(2, interrupted_at=4)
    text = page_of(events).text
    assert text.count("Step 4 ") >= 1
    assert "Interrupted after step 4: Ctrl-C." in text
    assert "Resumed after step 3." in text
    assert [e.step for e in events if isinstance(e, StepDone)].count(4) == 2
    assert render_report(events, title="t").count('id="step-4"') == 1


def test_write_report_reads_the_events_and_leaves_one_file(tmp_path: Path) -> None:
    events = synthetic_run(2, steps=2, poison="<b>é日本")
    lines = "".join(map(to_line, events))
    (tmp_path / "events.jsonl").write_text(lines + '{"kind": "step", "torn', encoding="utf-8")
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "report.html"]
    assert "é日本" in Page(path.read_text(encoding="utf-8")).text
    assert write_report(tmp_path).read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="no events"):
        write_report(tmp_path / "nowhere")


def test_write_report_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(map(to_line, RUNS["one step"])), encoding="utf-8")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html"):
        write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "report.html"]


@pytest.mark.slow
def test_a_long_run_is_cut_down_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    events = synthetic_run(2, steps=12, candidates=12, prompt_length=2500)
    whole = render_report(events, title="t")
    assert "Long run:" not in whole
    monkeypatch.setattr(report, "LARGEST", len(whole.encode()) // 4)
    cut = render_report(events, title="t")
    assert len(cut.encode()) <= len(whole.encode()) // 4
    page = Page(cut)
    assert "Long run:" in page.text
    assert re.search(r"2.5\d\d characters in total", page.text)
    assert page.text.count("winner") >= 24  # one per step and layer, however short the tables
