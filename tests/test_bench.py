"""The benchmarks measure what they say: counts from their definition, rivals that give the same numbers."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import main
from benchmarks.measure import Machine, measure, measure_machine
from benchmarks.models import bench_model, with_layers
from benchmarks.plain import PlainLM
from benchmarks.record import Section, as_markdown, as_record
from benchmarks.scoring import in_full, measure_saving, measure_scoring, sample_of
from benchmarks.step import StepResult, StepTime
from benchmarks.workload import (
    Labels,
    Texts,
    Work,
    Workload,
    answers,
    choose_subject,
    find_data,
    instructions,
    one_layer,
    two_layers,
    work,
)
from dln.errors import InputError
from dln.experiments.tables import write_section
from dln.lm.base import Sampling, Target, Token
from dln.train import resolve_options

TEXTS = st.text("ab ", min_size=1, max_size=8)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    return bench_model("llama-tiny", "cpu", tokenizer=tiny_folder)


@pytest.fixture(scope="module")
def setting(tiny):
    return two_layers(tiny, choose_subject(2, None), prompts=3, batch=4, hidden=2, hidden_tokens=6)


def some_workload(pairs: list[tuple[str, str]]) -> Workload:
    contexts = tuple(context for context, _ in pairs)
    targets: tuple[Target, ...] = tuple(target for _, target in pairs)
    return Workload("some", "pairs", (Texts(contexts, targets), Labels(contexts, (" x", " yes", " number"))))


@pytest.mark.slow
@relaxed
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_work_is_what_its_definition_says(tiny, pairs: list[tuple[str, str]]):
    workload = some_workload(pairs)
    asked = needed = rows = count = 0
    for part in workload.parts:
        if isinstance(part, Texts):
            asked_for = [(c, str(t)) for c, t in zip(part.contexts, part.targets, strict=True)]
        else:
            asked_for = [(c, word) for c in part.contexts for word in part.words]
        prefixes: set[tuple[int, ...]] = set()
        predicting: set[tuple[int, ...]] = set()
        for context, target in asked_for:
            head, tail = tiny.codec.context_ids(context, False), tiny.codec.target_ids(target)
            whole = (*head, *tail)
            asked += len(whole) - 1
            prefixes |= {whole[:n] for n in range(1, len(whole))}
            predicting |= {whole[:n] for n in range(len(head), len(whole))}
        needed, rows, count = needed + len(prefixes), rows + len(predicting), count + len(asked_for)
    assert work(tiny, workload) == Work(count, asked, needed, rows)


@relaxed
@given(
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6),
    rows=st.integers(1, 5),
    deduplicate=st.booleans(),
)
def test_plain_batches_give_the_numbers_of_the_engine(tiny, pairs, rows: int, deduplicate: bool):
    workload = some_workload(pairs)
    plain = answers(PlainLM(tiny, rows=rows, deduplicate=deduplicate), workload)
    assert np.allclose(plain, answers(tiny, workload), atol=1e-4)
    contexts = [context for context, _ in pairs]
    got, expected = (
        lm.next_token_log_probs(contexts, [Token("a"), Token(" ")], 5)
        for lm in (PlainLM(tiny, rows=rows, deduplicate=deduplicate), tiny)
    )
    assert np.allclose(got.log_probs, expected.log_probs, atol=1e-4)
    assert np.allclose(
        [[p for _, p in row] for row in got.top], [[p for _, p in row] for row in expected.top], atol=1e-4
    )


def test_labels_of_one_token_cost_one_forward_per_context_where_deduplicated(tiny, monkeypatch: pytest.MonkeyPatch):
    letters = [chr(i) for i in range(97, 103)]
    assert all(len(tiny.codec.target_ids(letter)) == 1 for letter in letters)
    sizes: list[int] = []
    logits = PlainLM._logits
    monkeypatch.setattr(PlainLM, "_logits", lambda self, ids: sizes.append(len(ids)) or logits(self, ids))
    contexts = ["one", "two", "three"]
    masses = PlainLM(tiny, rows=2, deduplicate=True).choice_log_probs(contexts, letters)
    assert sizes == [2, 1]
    pairs = PlainLM(tiny, rows=2).choice_log_probs(contexts, letters)
    assert sizes[2:] == [2] * 9, "as most users write it: a row per pair"
    assert np.allclose(masses, tiny.choice_log_probs(contexts, letters), atol=1e-4)
    assert np.allclose(masses, pairs, atol=1e-4)


def test_plain_batches_refuse_labels_that_they_would_score_wrongly(tiny):
    with pytest.raises(InputError, match="begins another"):
        PlainLM(tiny).choice_log_probs(["a"], ["yes", "yes no"])


def test_generate_draws_greedily_what_the_engine_draws(tiny):
    contexts, sampling = ["the cat", "who is the president of", "x"], Sampling(max_tokens=12)
    ours = tiny.sample(contexts, sampling, [0, 0, 0])
    theirs = PlainLM(tiny, sampling_rows=2).sample(contexts, sampling, [0, 0, 0])
    for mine, other in zip(ours, theirs, strict=True):
        assert other.token_ids == mine.token_ids
        assert (other.text, other.text_tokens, other.finish_reason) == (mine.text, mine.text_tokens, mine.finish_reason)
        assert np.allclose(other.log_probs or (), mine.log_probs or (), atol=1e-4)


@pytest.mark.parametrize("stop", [(), ("e",), ("a", " t")])
def test_a_draw_of_generate_ends_where_it_should_and_knows_its_log_probs(tiny, stop: tuple[str, ...]):
    plain = PlainLM(tiny)
    sampling = Sampling(temperature=0.7, max_tokens=24, stop=stop)
    contexts = ["the cat sat", "Input: a thriller", "yes or no"] * 3
    draws = plain.sample(contexts, sampling, range(9))
    assert len({draw.text for draw in draws}) > 1
    scores = plain.log_prob(contexts, draws)
    for draw, score in zip(draws, scores, strict=True):
        ids, log_probs = draw.token_ids or (), draw.log_probs or ()
        assert len(ids) == len(log_probs) == len(draw.sampling_log_probs or ()) <= 24
        assert np.allclose(log_probs, score.values, atol=1e-4)
        assert not any(s in draw.text for s in stop)
        assert tiny.codec.text(ids[: draw.text_tokens]) == draw.text[: len(tiny.codec.text(ids[: draw.text_tokens]))]
        ended = bool(set(ids) & tiny.codec.terminators) or any(s in tiny.codec.text(ids) for s in stop)
        assert ended == (draw.finish_reason == "stop")
        assert ended or len(ids) == 24
        assert not any(s in tiny.codec.text(ids[:-1]) for s in stop)


@pytest.mark.slow
def test_long_work_runs_once_and_short_work_as_often_as_asked(tiny):
    device = tiny.network.device
    short = measure(lambda: 7, device, repeat=4)
    assert (short.value, len(short.seconds)) == (7, 4)
    assert short.best <= short.median
    slow = measure(lambda: time.sleep(0.05), device, repeat=4, long=0.01)
    assert len(slow.seconds) == 1
    assert slow.best >= 0.05
    assert slow.cpu < 0.04  # asleep, not at work


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident set is read from /proc")
def test_memory_is_what_was_taken_while_running_and_given_back(tiny):
    def take() -> None:
        block = np.ones(40_000_000 // 8)
        time.sleep(0.05)
        del block

    measured = measure(take, tiny.network.device, repeat=1)
    assert 36e6 < measured.memory < 120e6


def test_the_limit_counts_the_head_only_where_a_token_is_predicted(tiny):
    machine = measure_machine(tiny, tokens=64)
    model = tiny.network.model
    everything = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # the head is the embedding
    assert machine.layer_weights + machine.head_weights == everything
    assert machine.flops > 0
    assert machine.forward_flops > 0
    half = Machine(110, 10, 100, 64, flops=1000.0, forward_flops=500.0)
    assert half.limit(Work(1, 0, needed=50, rows=5)) == pytest.approx(2 * 50 * 110 / 1000.0)
    assert half.strict_limit(Work(1, 0, needed=50, rows=5)) == pytest.approx(2 * (50 * 10 + 5 * 100) / 1000.0)


@pytest.mark.parametrize("classes", [2, 6])
def test_bundled_questions_stand_in_for_the_papers_data(classes: int):
    subject = choose_subject(classes, None)
    assert "questions" in subject.name
    assert len(subject.labels) == classes
    batch = [e.target for e in subject.batch(2 * classes)]
    assert batch == [*subject.labels, *subject.labels]
    assert not {e.input for e in subject.batch(20)} & {e.input for e in subject.others(20)}
    with pytest.raises(InputError):
        subject.batch(10_000)


@pytest.mark.data
@pytest.mark.parametrize(("classes", "name"), [(2, "subj"), (6, "trec")])
def test_the_papers_data_is_taken_where_it_is(paper_data: Path, classes: int, name: str):
    subject = choose_subject(classes, paper_data)
    assert subject.name == name
    assert len(subject.labels) == classes


def test_data_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DLN_PAPER_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert find_data(None) is None
    assert find_data(tmp_path) == tmp_path
    with pytest.raises(InputError, match="no such directory"):
        find_data(tmp_path / "nowhere")


def test_instructions_are_distinct_from_their_first_words_on():
    prompts = [prompt.instruction for prompt in instructions("Choose.", 100)]
    assert len(set(prompts)) == 100
    assert len({prompt.split()[0] + prompt.split()[1] for prompt in prompts[:10]}) == 10
    with pytest.raises(InputError):
        instructions("Choose.", 101)


def test_a_workload_has_every_candidate_input_and_hidden_text(setting, tiny):
    whole = setting.workload()
    texts, labels = whole.parts
    assert isinstance(texts, Texts)
    assert isinstance(labels, Labels)
    assert (len(texts.contexts), len(set(texts.contexts))) == (3 * 4 * 2, 3 * 4)
    assert len(labels.contexts) == 3 * 4 * 2
    small = setting.workload(prompts=2, batch=3, hidden=1)
    assert [len(part.contexts) for part in small.parts] == [2 * 3 * 1, 2 * 3 * 1]
    assert set(small.parts[0].contexts) <= set(texts.contexts)
    assert [len(part.contexts) for part in sample_of(whole, 5).parts] == [5, 5]
    demonstrated = one_layer(tiny, choose_subject(2, None), 4, 5, "default").parts[0]
    plain = one_layer(tiny, choose_subject(2, None), 4, 5, "instructions").parts[0]
    assert len(demonstrated.contexts) == len(plain.contexts) == 20
    assert np.mean([c.count("Label:") for c in demonstrated.contexts]) > 3
    assert all(c.count("Label:") == 1 for c in plain.contexts)


@pytest.mark.slow
def test_scoring_reports_what_was_measured(setting, tiny):
    result = measure_scoring(tiny, setting.workload(prompts=2, batch=2, hidden=2), repeat=2)
    machine = result.machine
    assert result.work.needed <= result.evaluated < result.work.asked
    assert 0.95 <= result.planner_efficiency <= 1
    assert result.largest_difference < 1e-4
    assert result.engine.runs == 2
    assert result.limit == machine.limit(result.work)
    assert result.strict_limit == machine.strict_limit(result.work)
    assert result.speed_up == result.plain.best / result.engine.best


@pytest.mark.slow
def test_the_rules_are_compared_with_full_scoring(setting, tiny):
    result = measure_saving(tiny, setting, plain_seconds=8.0, repeat=1)
    assert len(result.winners) == len(result.share) == 2
    assert result.same_winner == tuple(a == b for a, b in result.winners)
    assert all(0 < share <= 1 for share in result.share)
    assert 0 < result.particles <= 1
    assert result.speed_up == 8.0 / result.saving.best
    options = in_full(resolve_options("default")).inference
    assert (options.prune, options.race) == (0, False)


def test_a_deeper_copy_differs_in_depth_alone(tiny):
    deep = with_layers(tiny, 4)
    assert deep.network.model.config.num_hidden_layers == 4
    assert deep.network.vocabulary == tiny.network.vocabulary
    assert tiny.network.model.config.num_hidden_layers == 2
    assert measure_machine(deep, 16).layer_weights == 2 * measure_machine(tiny, 16).layer_weights


def test_a_page_is_changed_between_its_markers_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- measured: cpu x -->\nold\n<!-- end of cpu x -->\nbelow\n", encoding="utf-8")
    for text in ("| a\\1 |", "new"):
        write_section(page, "cpu x", text)
        assert page.read_text(encoding="utf-8") == (
            f"above\n<!-- measured: cpu x -->\n\n{text}\n\n<!-- end of cpu x -->\nbelow\n"
        )
    for name, path in (("cuda x", page), ("cpu x", tmp_path / "none.md")):
        with pytest.raises(InputError):
            write_section(path, name, "text")


def test_records_are_json_with_derived_figures_and_without_nan():
    record = as_record([Machine(4, 1, 2, 3, float("nan"), 4.0), Work(1, 2, 3, 4)])
    assert json.loads(json.dumps(record, allow_nan=False))[0]["flops"] is None
    assert record[1] == {"pairs": 1, "asked": 2, "needed": 3, "rows": 4}
    table = as_markdown(Section("x", "T", ("", "n"), (("a|b", "1"),), ("note",)))
    assert "| a\\|b | 1 |" in table
    assert "- note" in table


def test_the_performance_page_has_a_place_for_every_table(tmp_path: Path):
    source = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
    page = tmp_path / "performance.md"
    page.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    for device in ("cpu", "cuda"):
        for name in ("scoring", "saving", "step", "scaling"):
            write_section(page, f"{device} {name}", "measured")
    assert page.read_text(encoding="utf-8").count("\nmeasured\n") == 8


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a benchmark by its name; what it has measured and the page that it has written."""
    monkeypatch.delenv("DLN_PAPER_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> tuple[Any, str]:
        place = f"<!-- measured: cpu {name} -->\n<!-- end of cpu {name} -->"
        (tmp_path / "page.md").write_text(place, encoding="utf-8")
        words = [name, "--quick", "--repeat", "1", "--model", "llama-tiny", "--tokenizer", str(tiny_folder)]
        assert main([*words, "--json", "out.json", "--write", "page.md"]) == 0
        record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        page = (tmp_path / "page.md").read_text(encoding="utf-8")
        assert "--write page.md" in page
        return record[name], page

    return run


@pytest.mark.slow
def test_the_command_measures_a_step_prints_and_writes(command, capsys: pytest.CaptureFixture[str]):
    results, page = command("step")
    assert "whole DLN-2 training step" in capsys.readouterr().out
    assert "| paper: engine, in full |" in page
    assert {result["preset"] for result in results} == {"paper", "default"}
    for result in results:
        assert math.isclose(result["speed_up"], result["plain"]["seconds"] / result["full"]["seconds"])
        assert result["full"]["hidden_tokens"] == result["saving"]["hidden_tokens"]  # the same draws
        assert all(result[way]["flops"] > 0 for way in ("plain", "full", "saving"))


@pytest.mark.slow
def test_the_command_doubles_one_size_at_a_time_prints_and_writes(command, capsys: pytest.CaptureFixture[str]):
    points, page = command("scaling")
    assert "layers" in capsys.readouterr().out
    assert "layers" in page
    doubled = [p for p in points if p["what"] in "NBK"]
    assert len(doubled) == 6
    assert all(b["size"] == 2 * a["size"] for a, b in zip(doubled[::2], doubled[1::2], strict=True))


def test_a_step_on_a_machine_that_slowed_down_is_compared_at_equal_speed():
    engine = StepTime("engine", seconds=10.0, runs=1, flops=2e11, hidden_tokens=1.0, candidates=1, memory=0.0)
    plain = replace(engine, way="plain", seconds=80.0, flops=1e11)
    result = StepResult("default", "", full=engine, saving=engine, plain=plain)
    assert result.speed_up == 8.0
    assert result.at_equal_speed(engine) == 4.0
    assert result.at_equal_speed(plain) == 1.0


def test_a_mistake_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["scaling", "--model", "llama-tiny", "--tokenizer", str(tmp_path / "none")]) == 2
    assert "no such tokenizer" in capsys.readouterr().err


def test_a_tiny_model_agrees_with_plain_batches_on_a_real_workload(tiny):
    workload = one_layer(tiny, choose_subject(6, None), 2, 2, "default")
    assert np.abs(answers(tiny, workload) - answers(PlainLM(tiny), workload)).max() < 1e-4


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_agrees_with_plain_batches_on_a_real_workload(smollm2):
    workload = one_layer(smollm2, choose_subject(6, None), 2, 2, "default")
    difference = np.abs(answers(smollm2, workload) - answers(PlainLM(smollm2), workload)).max()
    assert difference < 1e-4
