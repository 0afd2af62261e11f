"""The dashboard's server: what it tells of runs, who may ask, what it writes, and how soon a new event arrives."""

from __future__ import annotations

import csv
import functools
import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dln.errors import CorruptDataError, InputError
from dln.train.control import CONTROLS
from dln.train.events import Controlled, Interrupted, Resumed, StepDone
from dln.train.labels import LABELS, WAITING, Waiting, write_waiting
from dln.train.run import Run, of_kind, to_line
from dln.view.app import HEADERS, STATIC, build_app
from dln.view.exports import EXPORTS, table
from dln.view.folder import Folder, run_id
from dln.view.follow import FollowedRun, brief, facts_of
from dln.view.original import says
from dln.view.records import overview, step_page, to_json
from dln.view.server import new_token, showing
from report_events import synthetic_run
from view_runs import TOKEN, add_events, paths_of, write_long_run, write_original, write_run

BASE = "http://127.0.0.1:8765"
HOSTS = frozenset({"127.0.0.1:8765", "localhost:8765"})
BEARER = {"Authorization": f"Bearer {TOKEN}"}
POISON = "<script>alert(1)</script>\x1b[31m\u202e=1+1"


@functools.cache
def app_of(root: Path) -> Any:
    return build_app(Folder(root), token=TOKEN, hosts=HOSTS)


def client(root: Path, **headers: str) -> TestClient:
    return TestClient(app_of(root), base_url=BASE, headers={**BEARER, **headers}, follow_redirects=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "a", synthetic_run(2, 3))
    write_run(root / "b", synthetic_run(1, 2, finished=False, test=False))
    write_run(root / "seeds" / "seed-1", synthetic_run(1, 1))
    (root / "seeds" / "seeds.yaml").write_text("schema: 1\n")
    write_original(root / "result_data.json")
    return root


def address(name: str, rest: str = "") -> str:
    return f"/api/runs/{run_id(name)}{rest}"


def test_all_runs_of_a_folder_are_listed(runs: Path):
    rows = {row["name"]: row for row in client(runs).get("/api/runs").json()["runs"]}
    assert set(rows) == {"a", "b", "seeds/seed-1", "result_data/one", "result_data/two"}
    assert (rows["a"]["state"], rows["b"]["state"]) == ("finished", "killed")
    assert rows["a"]["test"]["n"] > 0
    assert rows["a"]["tokens"] > 0
    assert rows["result_data/two"]["depth"] == 2
    assert rows["result_data/two"]["best_score"] == pytest.approx(0.8)


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(tmp_path: Path):
    write_run(tmp_path / "good", synthetic_run(1, 1))
    write_run(tmp_path / "bad", [])
    (tmp_path / "bad" / "events.jsonl").write_text('{"kind":"mystery"}\n')
    rows = {row["name"]: row for row in client(tmp_path).get("/api/runs").json()["runs"]}
    assert rows["bad"]["state"] == "unreadable"
    assert "not an event" in rows["bad"]["reason"]
    assert rows["good"]["state"] == "finished"
    assert client(tmp_path).get(address("bad")).status_code == 400


def test_a_run_has_the_prompts_of_every_step_and_its_curves(runs: Path):
    run = client(runs).get(address("a")).json()
    events = synthetic_run(2, 3)
    done = of_kind(events, StepDone)
    assert [step for step, _ in run["at_step"]] == [0, 1, 2, 3]
    for (_, numbers), event in zip(run["at_step"][1:], done, strict=True):
        shown = [run["prompts"][number]["instruction"] for number in numbers]
        assert shown == [layer["prompt"]["instruction"] for layer in event.parameters["layers"]]
    assert [row["elbo"] for row in run["steps"]] == [event.elbo for event in done]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in run["validations"])
    assert run["evaluation"]["fixed"] >= 0
    assert run["evaluation"]["classes"]


def test_a_step_has_ranked_candidates_with_differences_and_posteriors(runs: Path):
    page = client(runs).get(address("a", "/steps/2")).json()
    event = of_kind(synthetic_run(2, 3), StepDone)[1]
    assert len(page["choices"]) == len(event.layers)
    for choice, record in zip(page["choices"], event.layers, strict=True):
        assert len(choice["candidates"]) == len(record.candidates)
        scores = [c["score"] for c in choice["candidates"] if c["rank"] is not None]
        assert scores == sorted(scores, reverse=True)
        incumbent = next(c["prompt"]["instruction"] for c in choice["candidates"] if c["incumbent"])
        for c in choice["candidates"]:
            if c["difference"] is None:
                continue
            segments = c["difference"]["segments"]
            assert "".join(t for kind, t in segments if kind != "insert") == incumbent
            assert "".join(t for kind, t in segments if kind != "delete") == c["prompt"]["instruction"]
    assert len(page["examples"]) == len(event.examples)
    (level,) = page["examples"][0]["hidden"]
    assert sum(p["weight"] for p in level["particles"]) == pytest.approx(1)
    assert client(runs).get(address("a", "/steps/99")).status_code == 400


def test_an_example_names_its_last_time_in_a_batch(runs: Path):
    first = of_kind(synthetic_run(2, 3), StepDone)[0]
    page = client(runs).get(address("a", "/steps/2")).json()
    earlier = {(example.x, example.prediction, example.correct) for example in first.examples}
    known = [e for e in page["examples"] if e["x"] in {x for x, _, _ in earlier}]
    assert known
    assert all(e["before"]["step"] == 1 for e in known)
    assert all((e["x"], e["before"]["prediction"], e["before"]["correct"]) in earlier for e in known)
    assert all(e["before"] is None for e in client(runs).get(address("a", "/steps/1")).json()["examples"])


def test_results_of_the_original_code_are_runs(runs: Path):
    run = client(runs).get(address("result_data/two")).json()
    assert [step for step, _ in run["at_step"]] == [0, 1, 2, 3]
    assert [row["accuracy"] for row in run["validations"]] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    page = client(runs).get(address("result_data/two", "/steps/2")).json()
    for choice in page["choices"]:
        winner = next(c for c in choice["candidates"] if c["winner"])
        assert winner["prompt"]["instruction"].startswith("step 2")
        assert choice["candidates"][0] == winner
    (example,) = page["examples"]
    assert (example["before"]["correct"], example["correct"]) == (False, True)
    assert example["hidden"][0]["forward"] == "thought 2"
    start = client(runs).get(address("result_data/two", "/steps/0")).json()
    assert start["examples"][0]["prediction"] == "B) no"
    assert b"step 2 layer 1" in client(runs).get(address("result_data/two", "/files/report.html")).content


DEMO = Path(__file__).parents[2] / "shared" / "original" / "demo_result_data.json"


@pytest.mark.skipif(not DEMO.exists(), reason="the original project's demo data is not beside the checkout")
def test_the_demo_of_the_original_project_opens():
    rows = client(DEMO).get("/api/runs").json()["runs"]
    assert {row["task"] for row in rows} == {"hyperbaton", "subj", "navigate", "navigate-best"}
    for row in rows:
        for step in (0, 10, 20):
            page = client(DEMO).get(f"/api/runs/{row['id']}/steps/{step}").json()
            assert len(page["examples"]) == 20
            assert all(sum(c["winner"] for c in choice["candidates"]) == 1 for choice in page["choices"])


@pytest.mark.parametrize(
    ("output", "label", "right"),
    [
        ("(A)", "(A)", True),
        ("a) x", "(A)", True),
        ("Also", "(A)", False),
        ("no.", "No", True),
        ("nothing", "No", False),
    ],
)
def test_an_output_of_the_original_code_says_a_label(output: str, label: str, right: bool):
    assert says(output, label) is right


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"a": {"training": 3}}')
    with pytest.raises(CorruptDataError, match="original code"):
        Folder(tmp_path / "other.json")
    assert Folder(tmp_path).rows() == []
    with pytest.raises(InputError, match="no such file"):
        Folder(tmp_path / "nothing")


# --- who may ask ---


@pytest.mark.parametrize(
    "forged",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:8766"},
        {"Host": "127.0.0.1:8765.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8766"},
        {"Origin": "http://localhost:8765"},
        {"Origin": "file://"},
    ],
    ids=str,
)
def test_a_forged_host_or_origin_is_refused_everywhere(runs: Path, forged: dict[str, str]):
    asking = client(runs)
    for method, path in paths_of("a"):
        answer = asking.request(method, path, headers=forged, content=b"{}" if method == "POST" else None)
        assert answer.status_code == 403, (method, path)
        assert "served" in answer.text or method == "HEAD"


@pytest.mark.parametrize("wrong", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Cookie": TOKEN}])
def test_data_and_requests_need_the_token(runs: Path, wrong: dict[str, str]):
    asking = TestClient(app_of(runs), base_url=BASE, headers=wrong)
    for method, path in paths_of("a"):
        if path.startswith("/api/"):
            answer = asking.request(method, path)
            assert answer.status_code == 401, (method, path)
            assert TOKEN not in answer.text


def test_the_page_itself_contains_no_data_and_no_token(runs: Path):
    for path in ("/", "/static/app.js", "/static/app.css", "/static/report.css", "/static/uplot.js"):
        answer = TestClient(app_of(runs), base_url=BASE).get(path)
        assert answer.status_code == 200
        assert TOKEN not in answer.text


def test_every_answer_has_the_protective_headers(runs: Path):
    asking = client(runs)
    for method, path in paths_of("a"):
        if "/events" in path:  # endless
            continue
        answer = asking.request(method, path)
        for name, value in HEADERS.items():
            assert answer.headers.get_list(name) == [value], (method, path)
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/....//app.py",
        "/api/runs/a",
        "/api/runs/..%2fa",
        "/api/runs/%2e%2e",
        "/api/runs/../a",
        "/api/runs/" + "a" * 5000,
        "/api/runs/%00",
    ],
)
def test_no_path_leads_out(runs: Path, path: str):
    answer = client(runs).get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


@pytest.mark.parametrize("name", ["../run.yaml", "..%2frun.yaml", "run.yaml", "checkpoint.json", "%2e%2e%2fa"])
def test_only_named_files_of_a_run_are_given(runs: Path, name: str):
    answer = client(runs).get(address("a", f"/files/{name}"))
    assert answer.status_code in (400, 404)
    assert "seed" not in answer.text


def test_the_scripts_make_no_markup_and_load_nothing_from_elsewhere():
    for file in STATIC.glob("*.js"):
        if file.name == "uplot.js":
            continue
        source = file.read_text("utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
            assert word not in source, (file.name, word)
    assert "http" not in (STATIC / "index.html").read_text("utf-8")


def test_hostile_texts_are_data_and_clean(tmp_path: Path):
    write_run(tmp_path / "evil", synthetic_run(2, 2, poison=POISON))
    asking = client(tmp_path)
    for rest in ("", "/steps/1", "/examples"):
        answer = asking.get(address("evil", rest))
        assert answer.headers["content-type"] == "application/json"
        assert "<script>alert(1)</script>" in answer.text  # as data, for text nodes
        for sign in ("\x1b", "\u202e", "\\u001b", "\\u202e"):
            assert sign not in answer.text


def test_a_megabyte_prompt_is_cut_and_quick(tmp_path: Path):
    write_run(tmp_path / "long", synthetic_run(1, 1, prompt_length=1_000_000, candidates=3))
    began = time.perf_counter()
    answer = client(tmp_path).get(address("long", "/steps/1"))
    assert len(answer.content) < 1_000_000
    assert "characters]" in answer.text
    assert time.perf_counter() - began < 5


# --- requests to a training ---


def running_run(root: Path) -> Any:
    """A run that this process works on, as a training does."""
    write_run(root / "live", synthetic_run(2, 2, finished=False, test=False))
    return Run.open(root / "live")


@pytest.mark.parametrize("action", ["pause", "resume", "stop"])
def test_a_running_training_takes_requests(tmp_path: Path, action: str):
    with running_run(tmp_path):
        answer = client(tmp_path).post(address("live", "/control"), json={"action": action})
        assert (answer.status_code, answer.json()) == (202, {"request": 1})
    assert json.loads((tmp_path / "live" / CONTROLS).read_text())["action"] == action


def test_a_prompt_arrives_as_it_was_written(tmp_path: Path):
    words = "Zeile 1\n„zwei“ \U0001f600 <b>"
    with running_run(tmp_path):
        for number in (1, 2):
            body = {"action": "prompt", "layer": 1, "text": words}
            assert client(tmp_path).post(address("live", "/control"), json=body).json() == {"request": number}
    lines = (tmp_path / "live" / CONTROLS).read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [words] * 2


def test_an_opinion_arrives_with_its_comment_and_is_on_the_page_once_the_training_has_read_it(tmp_path: Path):
    body = {"action": "dislike", "layer": 0, "text": "Say <i>yes</i>.", "comment": "too short"}
    with running_run(tmp_path):
        assert client(tmp_path).post(address("live", "/control"), json=body).status_code == 202
        written = json.loads((tmp_path / "live" / CONTROLS).read_text("utf-8"))
        add_events(tmp_path / "live", [Controlled(step=2, request=1, **written)])
        page = client(tmp_path).get(address("live")).json()
    assert page["state"] == "running"
    assert {**body, "layer": 1}.items() <= page["turns"][-1].items()


def test_labels_are_given_and_taken_back_on_the_page(runs: Path):
    rows = [Waiting(x=f"<b>{i}</b>", probabilities={"yes": 0.6, "no": 0.4}) for i in range(2)]
    assert client(runs).get(address("a", "/labels")).json() == {"labels": [], "rows": [], "given": 0}
    write_waiting(runs / "a", rows)
    try:
        for number, y in ((0, "no"), (1, "yes"), (0, None)):
            assert client(runs).post(address("a", "/labels"), json={"number": number, "y": y}).status_code == 202
        page = client(runs).get(address("a", "/labels")).json()
        assert (page["labels"], page["given"]) == (["yes", "no"], 1)
        assert [(row["x"], row["y"]) for row in page["rows"]] == [("<b>0</b>", None), ("<b>1</b>", "yes")]
        before = (runs / "a" / LABELS).read_bytes()
        for body in ({"number": 2, "y": "yes"}, {"number": -1, "y": None}, {"number": 0, "y": "maybe"}, {"y": "no"}):
            assert client(runs).post(address("a", "/labels"), json=body).status_code == 400
        assert client(runs).post(address("result_data/one", "/labels"), json={"number": 0, "y": "x"}).status_code == 400
        assert (runs / "a" / LABELS).read_bytes() == before
    finally:
        (runs / "a" / LABELS).unlink(missing_ok=True)
        (runs / "a" / WAITING).unlink()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'{"action":"format"}', 400),
        (b'{"action":"pause","more":1}', 400),
        (b'{"action":"prompt","layer":"x"}', 400),
        (b'{"action":"pause","text":"' + b"a" * 600_000 + b'"}', 413),
    ],
)
def test_other_requests_are_refused_and_nothing_is_written(tmp_path: Path, body: bytes, status: int):
    with running_run(tmp_path):
        answer = client(tmp_path).post(
            address("live", "/control"), content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == status
    assert not (tmp_path / "live" / CONTROLS).exists()


def test_a_form_is_no_request(tmp_path: Path):
    with running_run(tmp_path):
        answer = client(tmp_path).post(address("live", "/control"), data={"action": "stop"})
    assert answer.status_code == 415
    assert client(tmp_path).get(address("live", "/control")).status_code == 405


def test_a_run_that_is_over_takes_none(runs: Path):
    for name in ("a", "b", "result_data/one"):
        answer = client(runs).post(address(name, "/control"), json={"action": "pause"})
        assert answer.status_code == 400
    assert not list(runs.rglob(CONTROLS))


def test_the_state_says_paused_until_somebody_resumes(tmp_path: Path):
    def state() -> str:
        return client(tmp_path).get(address("live")).json()["state"]

    with running_run(tmp_path) as run:
        assert state() == "running"
        run.append(Controlled(step=2, request=1, action="pause"))
        assert state() == "paused"
        run.append(Controlled(step=2, request=2, action="prompt", layer=0, text="a"))
        assert state() == "paused"
        run.append(Controlled(step=2, request=3, action="resume"))
        assert state() == "running"
    assert state() == "killed"


# --- live ---


class Listener:
    """Reads the event stream of a run in a thread."""

    def __init__(self, url: str, path: str) -> None:
        self.base = url.partition("#")[0].rstrip("/")
        request = urllib.request.Request(self.base + path, headers=BEARER)  # noqa: S310 - on this machine
        self.answer = urllib.request.urlopen(request, timeout=20)  # noqa: S310
        self.found: list[tuple[float, str, dict[str, Any]]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        event = ""
        for line in self.answer:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                self.found.append((time.perf_counter(), event, json.loads(value)))

    def wait(self, kind: str, count: int, seconds: float = 10) -> list[tuple[float, dict[str, Any]]]:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            found = [(at, data) for at, event, data in self.found if event == kind and data["count"] >= count]
            if found:
                return found
            time.sleep(0.01)
        raise AssertionError(f"no {kind} with {count} events: {self.found}")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    write_run(tmp_path / "live", synthetic_run(2, 1, finished=False, test=False))
    with showing(Folder(tmp_path), token=TOKEN) as url:
        yield tmp_path / "live", url


def test_a_new_event_arrives_within_a_second(live: tuple[Path, str]):
    folder, url = live
    events = synthetic_run(2, 4, finished=False, test=False)
    known = len((folder / "events.jsonl").read_text().splitlines())
    listener = Listener(url, address("live", f"/events?after={known}"))
    delays: list[float] = []
    for number in range(known, len(events)):
        began = time.perf_counter()
        add_events(folder, [events[number]])
        at, data = listener.wait("rows", number + 1)[0]
        delays.append(at - began)
        assert len(data["steps"]) + len(data["validations"]) == 1
    assert max(delays) < 1


def test_a_page_that_is_behind_gets_what_it_lacks(live: tuple[Path, str]):
    _, url = live
    listener = Listener(url, address("live", "/events?after=2"))
    _, data = listener.wait("rows", 4)[0]
    assert [row["step"] for row in data["steps"]] == [1]
    assert [step for step, _ in data["at_step"]] == [1]


def test_other_events_make_the_page_read_again(live: tuple[Path, str]):
    folder, url = live
    listener = Listener(url, address("live", "/events?after=4"))
    add_events(folder, [Interrupted(step=1, reason="Ctrl-C"), Resumed(step=0)])
    assert listener.wait("again", 6)


# --- following a file ---


def test_a_line_that_is_not_complete_waits(tmp_path: Path):
    folder = write_run(tmp_path / "run", synthetic_run(1, 1, finished=False, test=False))
    run = FollowedRun(folder, "run")
    assert run.refresh()
    assert not run.refresh()
    line = (folder / "events.jsonl").read_text().splitlines()[-1]
    with (folder / "events.jsonl").open("a") as log:
        log.write(line[:40])
        log.flush()
        assert not run.refresh()
        log.write(line[40:] + "\n")
    before = run.count
    assert run.refresh()
    assert run.count == before + 1


@pytest.mark.parametrize("spaced", [False, True])
def test_steps_are_read_from_disk_as_they_were_written(tmp_path: Path, spaced: bool):
    events = synthetic_run(2, 5)
    folder = write_run(tmp_path / "run", events)
    if spaced:  # another writer of JSON
        lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
        (folder / "events.jsonl").write_text("".join(json.dumps(json.loads(line)) + "\n" for line in lines))
    run = FollowedRun(folder, "run")
    run.refresh()
    for event in of_kind(events, StepDone):
        read = run.step(event.step)
        assert read is not None
        assert read.model_dump(exclude={"time"}) == event.model_dump(exclude={"time"})
    assert all(not event.examples for event in of_kind(run.events(), StepDone))
    assert run.step(77) is None


KEYS = '"]},"source":"x"},{"layer":7,"candidates":[],"winner":3,"examples":[],"hidden":[],"layers":[],"parameters":{"\\'


@pytest.mark.parametrize("poison", ["", KEYS])
@pytest.mark.parametrize("reason", ["duplicate", "layer", '{"layer":3,"candidates":['])
def test_what_is_found_without_parsing_is_what_is_parsed(tmp_path: Path, poison: str, reason: str):
    """Keys inside texts, and names of keys where names are free, mislead nobody."""
    events = [
        event.model_copy(
            update={"layers": [layer.model_copy(update={"dropped": {reason: 2}}) for layer in event.layers]}
        )
        if isinstance(event, StepDone)
        else event
        for event in synthetic_run(2, 5, test=False, poison=poison)
    ]
    run = FollowedRun(write_run(tmp_path / "run", events), "run")
    run.refresh()
    steps = of_kind(events, StepDone)
    assert [event.model_dump() for event in of_kind(run.events(), StepDone)] == [
        brief(event).model_dump() for event in steps
    ]
    assert [run.facts(event.step) for event in steps] == [facts_of(event) for event in steps]
    for before, event in pairwise(steps):
        for example in before.examples:
            seen = run.before(example, event.step)
            assert seen is not None
            assert seen.step == before.step
            same = [e for e in before.examples if e.x == example.x]
            assert (seen.prediction, seen.correct) in [(e.prediction, e.correct) for e in same]
    assert run.before(steps[0].examples[0], 1) is None


@pytest.mark.slow  # 200 MB of events
def test_a_run_of_a_thousand_steps_opens_in_two_seconds(tmp_path: Path):
    run = FollowedRun(write_long_run(tmp_path / "long"), "long")
    began = time.process_time()
    run.refresh()
    page = to_json(overview(run, "long", None))
    opened = time.process_time() - began
    began = time.process_time()
    step = to_json(step_page(run, 900))
    print(f"{opened:.2f} s to open, {time.process_time() - began:.2f} s for a step; processor time")
    assert opened < 2
    assert len(json.loads(page)["steps"]) == 1000
    assert len(json.loads(step)["examples"]) == 250


@pytest.mark.parametrize(
    "damage",
    [
        lambda step: step.pop("examples"),
        lambda step: step.update(step="three"),
        lambda step: step.update(layers=[{"layer": 0}]),
        lambda step: step.update(unknown=1),
    ],
)
def test_a_damaged_step_is_told_with_its_line(tmp_path: Path, damage: Callable[[dict[str, Any]], object]):
    folder = write_run(tmp_path / "run", [])
    lines = [json.loads(to_line(event)) for event in synthetic_run(1, 2)]
    damage(lines[2])
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CorruptDataError, match=r"events\.jsonl:3"):
        FollowedRun(folder, "run").refresh()


def test_a_repeated_step_takes_the_place_of_the_void_one(tmp_path: Path):
    events = synthetic_run(1, 4, interrupted_at=3, finished=False, test=False)
    run = FollowedRun(write_run(tmp_path / "run", events), "run")
    run.refresh()
    steps = [event.step for event in of_kind(run.events(), StepDone)]
    assert steps == sorted(set(steps))
    last = [event for event in of_kind(events, StepDone) if event.step == 3][-1]
    read = run.step(3)
    assert read is not None
    assert read.elbo == last.elbo


def test_a_file_that_begins_again_is_read_again(tmp_path: Path):
    folder = write_run(tmp_path / "run", synthetic_run(1, 5))
    run = FollowedRun(folder, "run")
    run.refresh()
    (folder / "events.jsonl").write_text("")
    add_events(folder, synthetic_run(1, 1, finished=False, test=False))
    run.refresh()
    assert [event.step for event in of_kind(run.events(), StepDone)] == [1]


# --- files ---


def test_files_are_what_they_are_called(runs: Path):
    for name in EXPORTS:
        answer = client(runs).get(address("a", f"/files/{name}"))
        if name == "network.json":  # a synthetic run has none
            assert answer.status_code == 400
            continue
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert len(answer.content) > 100
    rows = list(csv.DictReader(io.StringIO(client(runs).get(address("a", "/files/predictions.csv")).text)))
    assert len(rows) == len(client(runs).get(address("a", "/examples")).json()["examples"])
    assert {row["turn"] for row in rows} <= {"", "fixed", "broken"}


def test_no_cell_of_a_csv_file_is_a_formula():
    rows = list(csv.reader(io.StringIO(table(["a", "b"], [["=1+1", -1.5], ["@x", "plain"], ["-2", "+3"]]).decode())))
    assert rows[1:] == [["'=1+1", "-1.5"], ["'@x", "plain"], ["'-2", "'+3"]]


def test_tokens_are_long_and_different():
    assert len({new_token() for _ in range(100)}) == 100
    assert min(len(new_token()) for _ in range(100)) >= 32


@pytest.mark.parametrize("token", ["short", "with blank in the token", "ünïcode-token-is-long", 'quote"-in-the-token'])
def test_a_poor_token_is_refused(tmp_path: Path, token: str):
    with pytest.raises(InputError, match="token"), showing(Folder(tmp_path), token=token):
        pass
