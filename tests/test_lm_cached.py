from __future__ import annotations

import math
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dln.errors import InputError, RunFailed
from dln.lm.base import Completion, NextTokens, Sampling, Target, Token, TokenLogProbs, Wrapper
from dln.lm.cache import Cached, Store
from dln.lm.laws import LAWS, Law, LawCase, check_wrapper
from dln.lm.table import TableLM
from dln.numerics import Floats

TEXTS = ["", "yes", "yes sir", "yes sir now", " no", "no way", "ünï 🙂"]
CASE = LawCase(["x", "", "Q: a?\nA:"], ["yes sir now", " no", "never seen", ""], ["yes", "yes sir", " no"])
WARM = Sampling(temperature=1.0)


class Counting(Wrapper):
    """Remembers the batches it was asked for, and makes numbers depend on them, as floats on a device do."""

    def __init__(self, inner: TableLM) -> None:
        super().__init__(inner)
        self.batches: list[int] = []
        self.spoiled = 0.0

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        self.batches.append(len(contexts))
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        self.batches.append(len(contexts))
        noise = 1e-9 * sum(len(c) for c in contexts)
        return [
            TokenLogProbs(s.values - noise + self.spoiled, s.text_tokens)
            for s in self.inner.log_prob(contexts, targets)
        ]

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        self.batches.append(len(contexts))
        return self.inner.choice_log_probs(contexts, labels) + self.spoiled


def model() -> Counting:
    return Counting(TableLM.random(TEXTS, 3))


def damage(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_a_cache_changes_nothing(chunk: int, tmp_path: Path) -> None:
    lm = TableLM.random(TEXTS, 3)
    with Store(tmp_path / "cache.db") as store:
        check_wrapper(Cached(lm, store, chunk=chunk), lm, CASE)
        check_wrapper(Cached(Cached(lm, Store(":memory:")), store, chunk=chunk), lm, CASE)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws_hold_through_a_cache(law: Law) -> None:
    assert law(Cached(TableLM.random(TEXTS, 3), Store(":memory:"), chunk=2), CASE) in ("holds", "skipped")


def test_a_later_process_gets_the_same_bits_without_the_model(tmp_path: Path) -> None:
    draws, scores, masses = [], [], []
    batches = []
    for _ in range(2):
        lm = model()
        with Store(tmp_path / "deep" / "er" / "cache.db") as store:
            cached = Cached(lm, store)
            draws.append(cached.sample(["a", "b"], WARM, [1, 2]))
            scores.append(cached.log_prob(["a", "b", "a"], ["yes sir", draws[0][1], "nothing like it"]))
            masses.append(cached.choice_log_probs(["a", "b"], ["yes", "yes sir", "zz"]))
        batches.append(lm.batches)
    assert batches == [[2, 3, 2], []]
    assert draws[0] == draws[1]
    assert [s.values.tobytes() for s in scores[0]] == [s.values.tobytes() for s in scores[1]]
    assert [s.text_tokens for s in scores[0]] == [s.text_tokens for s in scores[1]]
    assert masses[0].tobytes() == masses[1].tobytes()
    assert np.isneginf(masses[1][:, 2]).all(), "−inf is an answer, and is kept"


class CountingNext(Counting):
    bound = -math.inf

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        self.batches.append(len(contexts))
        found = self.inner.next_token_log_probs(contexts, tokens, top)
        return replace(found, log_probs=found.log_probs + self.spoiled, bounds=np.full(len(contexts), self.bound))


def test_next_tokens_are_kept_by_context_and_only_missing_contexts_are_computed() -> None:
    lm = CountingNext(TableLM.random(TEXTS, 3))
    cached = Cached(lm, Store(":memory:"))
    tokens = [Token("yes"), Token(" no"), Token("never")]
    first = cached.next_token_log_probs(["a", "b"], tokens, 2)
    later = cached.next_token_log_probs(["b", "c", "a", "c"], tokens, 2)
    assert lm.batches == [2, 1]
    assert later.log_probs[[2, 0]].tobytes() == first.log_probs.tobytes()
    assert (later.top[2], later.top[0]) == first.top
    assert np.isneginf(later.log_probs[:, 2]).all()
    cached.next_token_log_probs(["a"], tokens[:2], 2)
    cached.next_token_log_probs(["a"])
    assert lm.batches == [2, 1, 1, 1], "another list of tokens or another `top` is another question"


def test_impossible_next_tokens_are_never_kept() -> None:
    lm = CountingNext(TableLM.random(TEXTS, 3))
    cached = Cached(lm, Store(":memory:"))
    for spoiled in (math.nan, 50.0, 0.0, math.nan):
        lm.spoiled = spoiled
        cached.next_token_log_probs(["a"], [Token("yes")])
    assert lm.batches == [1, 1, 1]


def test_censored_next_tokens_are_kept_with_their_bound() -> None:
    store = Store(":memory:")
    batches: list[list[int]] = []
    for _ in range(2):
        lm = CountingNext(TableLM.random(TEXTS, 3))
        lm.spoiled, lm.bound = math.nan, -1.25
        found = Cached(lm, store).next_token_log_probs(["a"], [Token("yes")], 2)
        assert (np.isnan(found.log_probs).tolist(), found.bounds.tolist()) == ([[True]], [-1.25])
        batches.append(lm.batches)
    assert batches == [[1], []]


def test_equal_requests_are_computed_once_and_counted() -> None:
    lm = model()
    cached = Cached(lm, Store(":memory:"), chunk=2)
    cached.log_prob(["a", "b", "a", "c", "b"], ["yes"] * 5)
    assert lm.batches == [2, 1]
    assert (cached.hits, cached.misses) == (2, 3)
    cached.log_prob(["c", "d"], ["yes"] * 2)
    assert lm.batches == [2, 1, 1]
    assert (cached.hits, cached.misses) == (3, 4)


def test_the_seed_counts_except_at_temperature_zero() -> None:
    lm = model()
    cached = Cached(lm, Store(":memory:"))
    cached.sample(["a"] * 3, Sampling(), [1, 2, 3])
    assert lm.batches == [1]
    cached.sample(["a"] * 3, WARM, [1, 2, 3])
    assert lm.batches == [1, 3]
    cached.sample(["a"] * 3, Sampling(temperature=1), [3, 2, 1])
    assert lm.batches == [1, 3]


def test_whatever_changes_the_answer_changes_the_key() -> None:
    lm = model()
    store = Store(":memory:")
    cached = Cached(lm, store)
    samplings = [WARM, Sampling(0.5), Sampling(1.0, 0.5), Sampling(1.0, max_tokens=1), Sampling(1.0, stop=("s",))]
    for sampling in samplings:
        assert cached.sample(["a"], sampling, [1]) == lm.inner.sample(["a"], sampling, [1])
    draw = lm.inner.sample(["a"], WARM, [1])[0]
    foreign = Completion(draw.text, (1, 2), model="another")
    cached.log_prob(["a"] * 4, [draw, draw.text, foreign, draw.with_text("shown otherwise")])
    assert lm.batches[-1] == 2, "the ids of an own draw; the text of anything else"
    for labels in (["yes"], ["yes", "yes sir"], ["yes sir", "yes"]):
        np.testing.assert_array_equal(cached.choice_log_probs(["a"], labels), lm.inner.choice_log_probs(["a"], labels))
    other = TableLM.random(TEXTS, 4)
    assert Cached(other, store).sample(["a"], WARM, [1]) == other.sample(["a"], WARM, [1])


@pytest.mark.parametrize("spoiled", [math.nan, 100.0, math.inf])
def test_impossible_numbers_are_passed_on_and_never_stored(spoiled: float) -> None:
    lm, store = model(), Store(":memory:")
    lm.spoiled = spoiled
    cached = Cached(lm, store)
    assert not cached.log_prob(["a"], ["yes sir"])[0].finite
    cached.choice_log_probs(["a"], ["yes"])
    assert len(store) == 0
    lm.spoiled = 0.0
    assert cached.choice_log_probs(["a"], ["yes"])[0, 0] == lm.choice_log_probs(["a"], ["yes"])[0, 0]


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_has_a_request(chunk: int) -> None:
    with pytest.raises(InputError, match="chunk"):
        Cached(model(), Store(":memory:"), chunk=chunk)


def test_lengths_must_match() -> None:
    cached = Cached(model(), Store(":memory:"))
    with pytest.raises(InputError, match="as many"):
        cached.log_prob(["a"], [])
    with pytest.raises(InputError, match="as many"):
        cached.sample(["a"], WARM, [1, 2])


# The store: damage.


def test_every_flipped_bit_is_a_miss_and_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    values = {bytes([k]) * 32: bytes(range(k, k + 24)) for k in range(40)}
    with Store(path) as store:
        store.put_many(values)
    generator = random.Random(1)  # noqa: S311
    for key, value in values.items():
        spoiled = bytearray(value)
        spoiled[generator.randrange(len(value))] ^= 1 << generator.randrange(8)
        damage(path, "UPDATE answers SET value = ? WHERE key = ?", bytes(spoiled), key)
    with Store(path) as store:
        assert store.get_many(list(values)) == {}
        assert store.damaged == len(values)
        assert store.put_many(values) == values
        assert store.get_many(list(values)) == values


def test_values_that_changed_places_or_types_are_misses(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    one, two, three = b"1" * 32, b"2" * 32, b"3" * 32
    with Store(path) as store:
        store.put_many({one: b"first", two: b"second", three: b"third"})
    damage(
        path,
        "UPDATE answers SET (value, checksum) = (SELECT value, checksum FROM answers WHERE key = ?) WHERE key = ?",
        two,
        one,
    )
    damage(path, "UPDATE answers SET value = 'third' WHERE key = ?", three)
    with Store(path) as store:
        assert store.get_many([one, two, three]) == {two: b"second"}


def test_a_damaged_answer_is_computed_again(tmp_path: Path) -> None:
    lm = model()
    with Store(tmp_path / "cache.db") as store:
        right = Cached(lm, store).log_prob(["a"], ["yes sir"])[0].values
        damage(tmp_path / "cache.db", "UPDATE answers SET value = zeroblob(24)")
        for expected_batches in (2, 2):
            assert Cached(lm, store).log_prob(["a"], ["yes sir"])[0].values.tobytes() == right.tobytes()
            assert len(lm.batches) == expected_batches
        assert store.damaged == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_the_file_gives_a_wrong_value_or_stops_a_run(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / f"{time.monotonic_ns()}.db"
    values = {bytes([k]) * 32: bytes([k]) * 100 for k in range(200)}
    with Store(path) as store:
        store.put_many(values)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        # not the header's 100 bytes, where a flipped bit may make the file another program's
        start = data.draw(st.integers(100, len(content) - 1))
        garbage = data.draw(st.binary(min_size=1, max_size=300))
        content[start : start + len(garbage)] = garbage
    path.write_bytes(content)
    with Store(path) as store:
        found = store.get_many(list(values))
        assert all(values[key] == value for key, value in found.items())
        assert store.put_many(values) == values
        assert store.get_many(list(values)) == values


@pytest.mark.parametrize("offset", range(0, 50, 7))
def test_a_damaged_schema_that_is_no_text_any_more_is_moved_aside(tmp_path: Path, offset: int) -> None:
    """SQLite puts the damaged bytes into its message, and Python fails to read that as text."""
    path = tmp_path / "answers.db"
    with Store(path) as store:
        store.put_many({b"k" * 32: b"value"})
    content = bytearray(path.read_bytes())
    content[content.index(b"CREATE TABLE") + offset] = 0x80
    path.write_bytes(content)
    with Store(path) as store:
        assert store.put_many({b"k" * 32: b"value"}) == {b"k" * 32: b"value"}
        assert store.get_many([b"k" * 32]) == {b"k" * 32: b"value"}


@pytest.mark.parametrize("missing", range(1, 4096, 241))
def test_a_file_cut_within_its_last_page_stores_again_what_it_lost(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "cache.db"
    values = {bytes([k]) * 32: bytes([k]) * 100 for k in range(200)}
    with Store(path) as store:
        store.put_many(values)
    path.write_bytes(path.read_bytes()[:-missing])
    with Store(path) as store:
        assert store.put_many(values) == values
        assert store.get_many(list(values)) == values


def test_a_file_that_is_no_database_is_moved_aside_and_nothing_is_lost_of_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    for n in (1, 2):
        path.write_bytes(b"not a database at all" * 100)
        with Store(path) as store:
            store.put_many({b"k": b"v"})
            assert store.get_many([b"k"]) == {b"k": b"v"}
            assert len(store.notes) == 1
            assert f"cache.db.corrupt-{n}" in store.notes[0]
        assert (tmp_path / f"cache.db.corrupt-{n}").read_bytes() == b"not a database at all" * 100


def test_databases_of_others_and_of_newer_versions_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    damage(other, "CREATE TABLE photographs (x)")
    before = other.read_bytes()
    with pytest.raises(InputError, match="another program"):
        Store(other)
    damage(other, "INSERT INTO photographs VALUES (1)")  # still usable by its owner
    newer = tmp_path / "newer.db"
    Store(newer).close()
    damage(newer, "PRAGMA user_version = 99")
    with pytest.raises(InputError, match="newer version"):
        Store(newer)
    assert len(before) <= other.stat().st_size
    assert not list(tmp_path.glob("*corrupt*"))


def test_unusable_paths_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "cache.db", tmp_path, tmp_path / ("x" * 5000)):
        with pytest.raises(InputError, match="cannot be opened"):
            Store(path)


def test_a_writer_that_never_ends_gives_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with Store(path, timeout=0.1) as store, closing(sqlite3.connect(path, isolation_level=None)) as greedy:
        greedy.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunFailed, match="another process"):
            store.put_many({b"k": b"v"})
        greedy.execute("ROLLBACK")
        assert store.put_many({b"k": b"v"}) == {b"k": b"v"}


# The store: company.


def test_the_first_answer_stays_and_everybody_gets_it(tmp_path: Path) -> None:
    with Store(tmp_path / "cache.db") as one, Store(tmp_path / "cache.db") as two:
        assert one.put_many({b"k": b"first"}) == {b"k": b"first"}
        assert two.put_many({b"k": b"second", b"l": b"third"}) == {b"k": b"first", b"l": b"third"}
        assert one.get_many([b"k", b"l", b"m"]) == {b"k": b"first", b"l": b"third"}


def test_threads_share_a_store(tmp_path: Path) -> None:
    lm, failures = TableLM.random(TEXTS, 3), list[BaseException]()
    contexts = [f"context {i}" for i in range(60)]
    expected = lm.sample(contexts, WARM, range(60))
    with Store(tmp_path / "cache.db") as store:

        def work() -> None:
            try:
                assert Cached(lm, store, chunk=7).sample(contexts, WARM, range(60)) == expected
            except BaseException as error:  # noqa: BLE001 - carried to the main thread
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(store) == 60


WRITER = textwrap.dedent("""
    import sys, time
    from dln.lm.base import Sampling, TokenLogProbs
    from dln.lm.cache import Cached
    from dln.lm.cache import Store
    from dln.lm.table import TableLM
    from dln.lm.base import Wrapper

    class Slow(Wrapper):
        def log_prob(self, contexts, targets):
            time.sleep(float(sys.argv[2]))
            noise = 1e-9 * sum(map(len, contexts))
            return [TokenLogProbs(s.values - noise, s.text_tokens) for s in self.inner.log_prob(contexts, targets)]

    contexts = ["c" * i for i in range(int(sys.argv[3]))]
    lm = Slow(TableLM.random(["yes", "yes sir", " no"], 3))
    print("ready", flush=True)
    scores = Cached(lm, Store(sys.argv[1]), chunk=5).log_prob(contexts, ["yes sir"] * len(contexts))
    print("".join(s.values.tobytes().hex() for s in scores))
""")


def writer(path: Path, pause: float, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(pause), str(n)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_processes_side_by_side_do_no_harm(tmp_path: Path) -> None:
    alone = finished(writer(tmp_path / "alone.db", 0, 100))
    together = [writer(tmp_path / "shared.db", 0.001, 100) for _ in range(3)]
    assert {finished(process) for process in together} == {alone}
    with Store(tmp_path / "shared.db") as store:
        assert len(store) == 100
        assert not store.notes


@pytest.mark.slow
def test_killed_at_any_moment_a_writer_leaves_whole_chunks_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    uninterrupted = finished(writer(tmp_path / "whole.db", 0, 60))
    generator = random.Random(7)  # noqa: S311
    killed = 0
    for _ in range(3):
        process = writer(tmp_path / "cut.db", 0.02, 60)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(generator.random() * 0.1)
            process.kill()
        killed += process.returncode != 0
        with Store(tmp_path / "cut.db") as store:
            assert len(store) % 5 == 0
            assert store.damaged == 0
            assert not store.notes
    assert killed
    assert finished(writer(tmp_path / "cut.db", 0, 60)) == uninterrupted


def test_a_forked_child_opens_its_own_connection(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from dln.lm.cache import Store
        store = Store(sys.argv[1])
        store.put_many({b"parent": b"1"})
        child = os.fork()
        if child == 0:
            store.put_many({b"child": b"2"})
            os._exit(0 if len(store) == 2 else 1)
        status = os.waitpid(child, 0)[1]
        assert status == 0 and store.get_many([b"parent", b"child"]) == {b"parent": b"1", b"child": b"2"}
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c.db")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
