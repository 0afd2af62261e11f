"""A model on several workers: the laws, cuts that do not depend on workers, lost and slow workers, real processes."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import ContextLengthError, InputError, ProviderError, RunFailed
from dln.lm import workers
from dln.lm.base import LanguageModel, Sampling
from dln.lm.laws import LAWS, Law, LawCase
from dln.lm.load import load_lm
from dln.lm.local.engine import TokenLevel
from dln.lm.pool import Loading, Pooled, cut
from dln.lm.table import TableLM
from dln.lm.workers import LOSSES, Processes, run_items, workers_of

TEXTS = ["", "yes", "yes sir", "yes sir now", " no", "no way"]
CASE = LawCase(["x", "", "Q: a?\nA:", "Q: a?\nB:"], ["yes sir now", " no", "never seen"], ["yes", "yes sir", " no"])
WARM = Sampling(temperature=1.0, max_tokens=4)


def table(spec: str) -> LanguageModel:
    return TableLM.random(TEXTS, 3, name=spec)


@pytest.fixture
def pooled() -> Any:
    with ThreadPoolExecutor(2) as threads:
        yield Pooled(Loading(table, "pooled"), threads, item_tokens=1)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(pooled: Pooled, law: Law) -> None:
    assert law(pooled, CASE) in ("holds", "skipped")


def test_the_answers_are_those_of_the_model(pooled: Pooled) -> None:
    alone, contexts = table("pooled"), [f"Q: {n % 5}?\nA: {n}" for n in range(40)]
    assert (pooled.name, pooled.fingerprint(), pooled.capabilities) == (
        alone.name,
        alone.fingerprint(),
        alone.capabilities,
    )
    assert pooled.sample(contexts, WARM, range(40)) == alone.sample(contexts, WARM, range(40))
    targets = [TEXTS[n % 6] for n in range(40)]
    for one, two in zip(pooled.log_prob(contexts, targets), alone.log_prob(contexts, targets), strict=True):
        assert one.values.tolist() == two.values.tolist()
    labels = ["yes", "no way"]
    assert (pooled.choice_log_probs(contexts, labels) == alone.choice_log_probs(contexts, labels)).all()
    one, two = (lm.next_token_log_probs(contexts, [], 2) for lm in (pooled, alone))
    assert one.top == two.top
    assert pooled.count_tokens("yes sir") == 2


texts = st.lists(st.text("ab", max_size=9), max_size=30)


@given(texts, st.integers(1, 40))
@settings(max_examples=20)
def test_items_are_all_requests_once_and_ignore_their_order(contexts: list[str], size: int) -> None:
    own = [len(text) % 3 for text in contexts]
    items = cut(contexts, own, size)
    assert sorted(i for item in items for i in item) == list(range(len(contexts)))
    turned = cut(contexts[::-1], own[::-1], size)
    named = [
        [sorted(cs[i] for i in item) for item in some] for cs, some in ((contexts, items), (contexts[::-1], turned))
    ]
    if len({*zip(contexts, own, strict=True)}) == len(contexts):
        assert named[0] == named[1]
    for item in items:
        chosen = [contexts[i] for i in item]
        cost = sum(map(len, chosen)) + sum(own[i] for i in item)
        saved = sum(len(os.path.commonprefix([a, b])) for a, b in itertools.pairwise(chosen))  # noqa: RUF071
        assert len(item) == 1 or cost - saved <= size


def test_cuts_lie_where_little_is_shared() -> None:
    contexts = [f"{group * 8} and {n}" for group in "abcd" for n in range(4)]
    items = cut(contexts, [0] * 16, 30)
    assert [{contexts[i][0] for i in item} for item in items] == [{"a"}, {"b"}, {"c"}, {"d"}]


class Scripted(Executor):
    """Runs each item in a thread after `before(number of the submission)`, which may raise."""

    def __init__(self, workers: int, before: Callable[[int], None]) -> None:
        self.workers, self._before, self.count = workers, before, 0
        self.most = self._open = 0
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        number, self.count = self.count, self.count + 1

        def work() -> None:
            future.set_running_or_notify_cancel()
            try:
                self._before(number)
                result = fn(*args, **kwargs)
            except (BrokenExecutor, ArithmeticError) as error:
                self._end()
                future.set_exception(error)
            else:
                self._end()
                future.set_result(result)

        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        threading.Thread(target=work, daemon=True).start()
        return future

    def _end(self) -> None:
        with self._lock:
            self._open -= 1


def lose(numbers: Sequence[int], number: int) -> None:
    if number in numbers:
        raise BrokenExecutor("a worker died")


def numbered(count: int) -> list[tuple[int]]:
    return [(n,) for n in range(count)]


def test_items_of_lost_workers_go_to_others() -> None:
    executor = Scripted(2, partial(lose, [1, 4, 5]))
    assert run_items(executor, lambda n: n * n, numbered(9)) == [n * n for n in range(9)]
    assert executor.count == 12


def test_no_worker_left_is_a_clear_error() -> None:
    with pytest.raises(RunFailed, match=r"(?s)all workers were lost.*dln resume"):
        run_items(Scripted(2, partial(lose, range(1000))), str, numbered(9))


def test_what_an_item_raises_is_raised_and_is_no_loss() -> None:
    executor = Scripted(1, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        run_items(executor, lambda n: 1 // n, numbered(1))
    assert executor.count == 1


def test_items_in_flight_are_bounded() -> None:
    executor = Scripted(3, lambda _: time.sleep(0.001))
    run_items(executor, str, numbered(40))
    assert executor.most <= 3 * workers.IN_FLIGHT


def test_a_slow_item_is_stolen_and_its_first_result_counts() -> None:
    released = threading.Event()

    def first_waits(number: int) -> None:
        if number == 0:
            released.wait(5)

    executor = Scripted(2, first_waits)
    began = time.monotonic()
    assert run_items(executor, lambda n: n, numbered(6)) == list(range(6))
    assert time.monotonic() - began < 4
    assert executor.count == 7  # one item twice
    released.set()


def test_a_cluster_without_workers_is_waited_for_and_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.05)
    monkeypatch.setattr(workers, "TICK", 0.01)
    hung = threading.Event()
    with pytest.raises(RunFailed, match="all workers were lost"):
        run_items(Scripted(0, lambda _: hung.wait(2) and None), str, numbered(2))
    hung.set()


def other(spec: str) -> LanguageModel:
    return TableLM.random(TEXTS, 3, name=f"{spec} {threading.get_ident()}")


def test_workers_with_different_models_are_refused(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loading, "model", lambda self: other("x"))
    with pytest.raises(ProviderError, match="different models"):
        pooled.log_prob(["x"], ["yes"])


class Short(TableLM):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> Any:
        for index, context in enumerate(contexts):
            if len(context) > 3:
                raise ContextLengthError("too long", where=f"request {index}")
        raise AssertionError(contexts)


def short(spec: str) -> LanguageModel:
    return Short(lambda _: {"a": 1.0}, name=spec)


def test_a_request_that_is_too_long_is_named_by_its_number_in_the_call() -> None:
    with ThreadPoolExecutor(1) as threads:
        lm = Pooled(Loading(short, "short"), threads)
        with pytest.raises(ContextLengthError, match="request 2"):
            lm.sample(["b", "a", "aaaa"], WARM, [1, 2, 3])


def test_an_executor_says_how_many_workers_it_has() -> None:
    with ThreadPoolExecutor(3) as threads:
        assert workers_of(threads) == 3
    assert workers_of(Scripted(7, lambda _: None)) == 7


def test_workers_and_an_executor_exclude_one_another() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(InputError, match="given twice"):
        load_lm("smollm2", executor=threads, workers=2)


CONTEXTS = [f"Text {n % 3} of a few words. Answer {n}:" for n in range(24)]


def everything(lm: LanguageModel) -> list[Any]:
    draws = lm.sample(CONTEXTS, WARM, range(24))
    scores = lm.log_prob(CONTEXTS, draws)
    masses = lm.choice_log_probs(CONTEXTS, [" yes", " no"])
    following = lm.next_token_log_probs(CONTEXTS, [], 3)
    return [draws, [s.values.tobytes() for s in scores], masses.tobytes(), following.top]


@pytest.mark.slow
def test_processes_give_the_bits_of_one_and_go_on_without_a_killed_one(tiny_folder: Path) -> None:
    spec = f"hf/{tiny_folder}"
    with Processes(1) as one:
        expected = everything(load_lm(spec, executor=one, item_tokens=32))
    with Processes(2) as two:
        lm = load_lm(spec, executor=two, item_tokens=32)
        assert everything(lm) == expected
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(everything(lm)))
        thread.start()
        victim = next(iter(two.processes))
        os.kill(victim, signal.SIGKILL)
        thread.join()
        assert results == [expected]
        assert victim not in two.processes
    here = load_lm(spec, threads=1)
    assert here.sample(CONTEXTS, WARM, range(24))[0].text == expected[0][0].text
    close = np.frombuffer(b"".join(expected[1])) - np.concatenate(
        [s.values for s in here.log_prob(CONTEXTS, expected[0])]
    )
    assert np.abs(close).max() < 1e-4
    assert lm.count_tokens("a few words") == here.count_tokens("a few words")


def fatal(number: int) -> None:
    os._exit(number)


@pytest.mark.slow
def test_an_item_that_kills_every_worker_ends_in_an_error() -> None:
    with Processes(1) as one, pytest.raises(RunFailed, match="all workers were lost"):
        run_items(one, fatal, numbered(1))
    assert LOSSES


def test_token_ids_on_workers_are_as_in_process(tiny_folder: Path) -> None:
    here = load_lm(f"hf/{tiny_folder}:chat", threads=1)
    with ThreadPoolExecutor(2) as threads:
        lm = load_lm(f"hf/{tiny_folder}:chat", executor=threads, item_tokens=32)
        assert isinstance(here, TokenLevel)
        assert isinstance(lm, TokenLevel)
        ids = [here.context_ids(context) for context in CONTEXTS]
        assert [lm.context_ids(context) for context in CONTEXTS] == ids
        assert (lm.encode("a b"), lm.token_text(ids[0][3])) == (here.encode("a b"), here.token_text(ids[0][3]))
        assert lm.decode(ids[0]) == here.decode(ids[0])
        drawn = lm.sample_ids(ids, WARM, range(24))
        assert [draw.token_ids for draw in drawn] == [d.token_ids for d in here.sample_ids(ids, WARM, range(24))]
        for one, two in zip(
            [*lm.score_ids(ids, [3] * 24, 2), *lm.next_log_probs(ids, (5, 6))],
            [*here.score_ids(ids, [3] * 24, 2), *here.next_log_probs(ids, (5, 6))],
            strict=True,
        ):
            np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-4)
        assert lm.first_token("a b") == here.first_token("a b")
