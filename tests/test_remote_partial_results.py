"""What a failed call had already answered is kept, whatever the server and the way of scoring."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

from dln.errors import DlnError, ProviderError
from dln.lm.base import LanguageModel, NextRow, Sampling, Token
from dln.lm.cache import Cached, Store, keeper_of, keeping_partial_results
from dln.lm.load import load_lm
from dln.lm.meter import Metered
from dln.lm.remote.call import Call, ServerUnreachable
from dln.lm.remote.engine import RemoteLM
from dln.lm.remote.session import NotRecorded, Recording
from dln.lm.table import TableLM
from dln.nn.layers import ChoiceLayer
from fault_language import Language, LanguageLM
from fault_scripts import Exchange, after
from fault_server import FaultServer
from remote_forms import FORMS, Form
from remote_simulator import TEXTS, Simulator

T = TypeVar("T")

TRUTH = LanguageLM(Language())
COUNT = 300
CONTEXTS = [f"Input: box {i:03d} of the tiles broke\nLabel:" for i in range(COUNT)]
SAMPLING = Sampling(temperature=1.0, max_tokens=5)


class Stopped(ProviderError):
    """The server is gone for good."""


@dataclass
class Failing:
    """A sender whose calls come to an end after `left` of them."""

    inner: Simulator
    left: float = float("inf")
    error: type[BaseException] = Stopped
    sent: int = 0

    def send(
        self, calls: Sequence[Call], read: Callable[[Call, Any], T], *, on_reply: Callable[[int, T], None] | None = None
    ) -> list[T]:
        values: list[T] = []
        for index, call in enumerate(calls):
            if self.left <= 0:
                raise self.error("gone")
            self.left -= 1
            self.sent += 1
            values.extend(self.inner.send([call], read))
            if on_reply is not None:
                on_reply(index, values[-1])
        return values


VERBS: dict[str, Callable[[LanguageModel, Sequence[str]], Any]] = {
    "sample": lambda lm, contexts: lm.sample(contexts, SAMPLING, [3 * i for i in range(len(contexts))]),
    "log_prob": lambda lm, contexts: lm.log_prob(contexts, [" yes sir", " no way"] * (len(contexts) // 2)),
    "choice_log_probs": lambda lm, contexts: lm.choice_log_probs(contexts, [" yes", " no", " maybe"]),
    "given next tokens": lambda lm, contexts: lm.next_token_log_probs(contexts, TOKENS).rows,
    "next tokens": lambda lm, contexts: lm.next_token_log_probs(contexts, TOKENS, 3).rows,
}
TOKENS = [Token(" yes"), Token(" no")]


def plain(answer: Any) -> Any:
    if hasattr(answer, "values"):
        answer = answer.values
    if isinstance(answer, NextRow):
        return [*answer.log_probs.tolist(), answer.bound, *answer.top]
    return answer.tolist() if isinstance(answer, np.ndarray) else answer


@pytest.mark.parametrize(
    ("error", "verb"),
    [
        *((Stopped, verb) for verb in VERBS),
        (KeyboardInterrupt, "sample"),
        *(pytest.param(KeyboardInterrupt, verb, marks=pytest.mark.slow) for verb in VERBS if verb != "sample"),
    ],
)
@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_what_is_handed_over_is_what_would_have_been_answered(form: Form, verb: str, error: type[BaseException]):
    contexts = ["Q:", "Is it so? Answer:", "a b c:", "b:", "c d:", "Is it?:"]
    texts = TEXTS[1:] if form.chat and form.labels == "top-k" else TEXTS

    def engine() -> tuple[RemoteLM, Failing]:
        dialect, server = form(TableLM.random(texts, 3))
        sender = Failing(server)
        return RemoteLM(dialect, sender, name=f"{form.kind}/table", chat=form.chat), sender

    whole, sender = engine()
    assert whole.fingerprint()  # the probe is over
    if verb == "log_prob" and not whole.capabilities.scores_targets:
        pytest.skip("this server scores no texts")
    if verb.endswith("next tokens") and whole.capabilities.next_tokens == "none":
        pytest.skip("this server returns no log-probabilities")
    before = sender.sent
    right = [plain(answer) for answer in VERBS[verb](whole, contexts)]
    needed = sender.sent - before
    most = 0
    for left in sorted({0, needed // 2, needed - 1}):
        lm, sender = engine()
        assert lm.fingerprint()  # the probe is over
        sender.left, sender.error = left, error
        kept: dict[int, Any] = {}
        with pytest.raises(error, match="gone"), keeping_partial_results(contexts, kept.__setitem__):
            VERBS[verb](lm, contexts)
        assert {i: plain(answer) for i, answer in kept.items()} == {i: right[i] for i in kept}
        assert len(kept) < len(contexts)
        most = max(most, len(kept))
    # a trie of a shared context, or a round after which all rows need another, may leave none before the last call
    assert most >= (1 if verb == "sample" or (form.labels == "target scoring" and verb != "next tokens") else 0)


def test_of_equal_draws_each_reply_is_kept_once():
    record = Recording()
    calls = [Call("/completions", {"a": 1}, draws=True)] * 3
    came = record.listen(calls)
    came(0, "x")
    came(2, "y")
    assert record.replay()
    assert [record.answers(calls[:1]), record.answers(calls[:1])] == [["x"], ["y"]]
    with pytest.raises(NotRecorded):
        record.answers(calls[:1])


def test_only_the_very_same_batch_is_recognised():
    batch = ["a", "b"]
    kept: dict[int, object] = {}
    with keeping_partial_results(batch, kept.__setitem__):
        assert keeper_of(batch) is not None
        assert keeper_of(["a", "b"]) is None
        with keeping_partial_results(batch[:1], kept.__setitem__):
            assert keeper_of(batch) is None
    assert keeper_of(batch) is None


def only_seed(seed: int) -> Callable[[Exchange], bool]:
    return lambda exchange: exchange.body.get("seed") == seed and exchange.body.get("max_tokens") == SAMPLING.max_tokens


def seeds_asked(server: FaultServer, since: int) -> list[int]:
    return [asked.body["seed"] for asked in server.asked()[since:]]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [64, *(pytest.param(size, marks=pytest.mark.slow) for size in (256, 1000))])
def test_after_a_failure_only_what_had_no_reply_is_asked_again(chunk: int):
    seeds = [7000 + i for i in range(COUNT)]
    store = Store(":memory:")
    with FaultServer() as server:

        def engine() -> Cached:
            lm = load_lm("vllm/tiny", base_url=server.base_url, revision="1")
            assert lm.capabilities.scores_targets  # the probe is over
            return Cached(Metered(lm), store, chunk=chunk)

        first, before = engine(), len(server.asked())
        server.play("400", only_seed(seeds[199]))
        with pytest.raises(DlnError, match="400"):
            first.sample(CONTEXTS, SAMPLING, seeds)
        answered = set(seeds_asked(server, before)) - {seeds[199]}
        assert len(answered) >= 199 // chunk * chunk  # whole chunks before, and what was in flight
        server.calm()
        second = engine()
        before = len(server.asked())
        draws = second.sample(CONTEXTS, SAMPLING, seeds)
        assert sorted(seeds_asked(server, before)) == sorted(set(seeds) - answered)
        assert isinstance(second.inner, Metered)
        assert second.inner.meter.snapshot().calls == COUNT - len(answered)  # what was kept is not counted again
        alone = load_lm("vllm/tiny", base_url=server.base_url, revision="1").sample(CONTEXTS, SAMPLING, seeds)
    assert draws == alone


@pytest.mark.parametrize("verb", ["log_prob", "choice_log_probs"])
def test_scores_and_masses_are_kept_too(verb: str):
    contexts, labels, targets = CONTEXTS[:40], [" yes", " no"], [" yes sir no"] * 40

    def ask(lm: LanguageModel) -> list[Any]:
        answers = lm.log_prob(contexts, targets) if verb == "log_prob" else lm.choice_log_probs(contexts, labels)
        return [plain(answer) for answer in answers]

    with FaultServer() as server:
        lm = load_lm("vllm/tiny", base_url=server.base_url, max_concurrency=1)
        assert lm.capabilities.scores_targets
        cached = Cached(lm, Store(":memory:"))
        server.play("400", after(25))
        with pytest.raises(DlnError, match="400"):
            ask(cached)
        server.calm()
        before = len(server.asked())
        answers = ask(cached)
        assert len(server.asked()) - before == 40 - 25
    np.testing.assert_allclose(answers, ask(TRUTH), atol=1e-9)


def test_a_server_that_is_not_there_is_one_clear_error_for_a_layer_too():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        began = time.monotonic()
        lm = Cached(Metered(load_lm("vllm/tiny", base_url=url)), Store(":memory:"))
        with pytest.raises(ServerUnreachable, match="is the server running") as caught:
            ChoiceLayer(lm, prompt="Is it?", labels=("yes", "no"))
        assert url in str(caught.value)
        assert caught.value.__cause__ is None
        assert time.monotonic() - began < 4.5
