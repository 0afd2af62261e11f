"""Tokens are those that the server says it has counted, each reply once, whoever asked and however often."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dln.cli.train import _used_before
from dln.errors import DlnError
from dln.lm.base import Sampling
from dln.lm.load import load_lm
from dln.lm.meter import Bills, Budget, Metered, Usage
from dln.lm.prices import Price
from dln.lm.remote.engine import RemoteLM
from dln.train.events import Interrupted, Resumed
from dln.train.run import to_line
from fault_scripts import FAULTS, Exchange, Reply, every, first_of_each
from fault_server import FaultServer

GREEDY = Sampling(temperature=0.0, max_tokens=3)
WARM = Sampling(temperature=1.0, max_tokens=3)
CONTEXTS = [f"box {i} of the tiles" for i in range(12)]
PRICE = Price(input=3.0, output=7.0, cached_input=1.0)


class Ledger:
    """Adds up what a server bills; played as a fault on every generating request."""

    def __init__(self, *, silent: bool = False) -> None:
        self.total = Usage()
        self.replies = 0
        self.silent = silent

    def __call__(self, exchange: Exchange) -> Reply:
        body = exchange.good()
        usage = body.pop("usage")
        self.replies += 1
        if not self.silent:
            body["usage"] = usage | {"prompt_tokens_details": {"cached_tokens": 2}}
            self.total += Usage(0, usage["prompt_tokens"], usage["completion_tokens"], cached_tokens=2)
        return Reply(200, json.dumps(body).encode(), (("Content-Type", "application/json"),))


def remote(server: FaultServer, **options: Any) -> RemoteLM:
    lm = load_lm("vllm/tiny", base_url=server.base_url, **options)
    assert isinstance(lm, RemoteLM)
    assert isinstance(lm, Bills)
    return lm


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    made = Ledger()
    monkeypatch.setitem(FAULTS, "billed", made)
    return made


ASKS: list[Callable[[Any], object]] = [
    lambda lm: lm.sample(CONTEXTS, WARM, list(range(12))),
    lambda lm: lm.log_prob(CONTEXTS, [" yes sir no"] * 12),
    lambda lm: lm.choice_log_probs(CONTEXTS, [" yes", " no", " deep thought of"]),
    lambda lm: lm.sample([CONTEXTS[0]] * 12, GREEDY, [0] * 12),
]


def billed(metered: Metered, ledger: Ledger) -> None:
    used = metered.meter.snapshot()
    assert used.prompt_tokens == ledger.total.prompt_tokens
    assert used.completion_tokens == ledger.total.completion_tokens
    assert used.cached_tokens == ledger.total.cached_tokens
    assert used.usd == pytest.approx(PRICE.usd(used.prompt_tokens, used.completion_tokens, used.cached_tokens))


@pytest.mark.parametrize("ask", ASKS, ids=["sample", "log_prob", "choice", "equal draws"])
def test_cost_is_what_the_server_counted_probe_included(ask: Callable[[Any], object], ledger: Ledger):
    with FaultServer() as server:
        server.play("billed")
        metered = Metered(remote(server), price=PRICE)
        ask(metered)
        billed(metered, ledger)
        ask(metered)
        billed(metered, ledger)
        assert ledger.total.prompt_tokens > 0


def test_equal_calls_in_flight_are_billed_once(ledger: Ledger):
    with FaultServer(latency=0.05) as server:
        server.play("billed")
        lm = remote(server)
        assert lm.capabilities
        lm.count_tokens(CONTEXTS[0])
        metered, before = Metered(lm, price=PRICE), ledger.replies
        metered.sample([CONTEXTS[0]] * 12, GREEDY, [0] * 12)
        assert ledger.replies == before + 1
        billed(metered, ledger)
        assert metered.meter.snapshot().calls == 12


@pytest.mark.parametrize("same", [True, False])
def test_two_threads_settle_their_own_replies(same: bool, ledger: Ledger):
    with FaultServer(latency=0.02) as server:
        server.play("billed")
        lm = remote(server)
        assert lm.capabilities
        metered = Metered(lm, price=PRICE)

        def work(part: int) -> None:
            for i in range(5):
                metered.sample([CONTEXTS[i + (0 if same else 6 * part)]] * 3, GREEDY, [0] * 3)

        threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        billed(metered, ledger)
        assert metered.meter.snapshot().calls == 30


@pytest.mark.parametrize("fault", ["503", "malformed JSON", "empty choices"])
def test_what_was_asked_again_costs_nothing_more(fault: str, ledger: Ledger):
    with FaultServer() as server:
        lm = remote(server)
        assert lm.capabilities
        lm.take_usage()
        server.play(fault, first_of_each)
        server.play("billed")
        metered = Metered(lm, price=PRICE)
        metered.sample(CONTEXTS[:4], WARM, [0] * 4)
        billed(metered, ledger)
        assert ledger.replies == 4


def test_of_a_batch_that_failed_what_was_answered_is_counted(ledger: Ledger):
    with FaultServer() as server:
        lm = remote(server, max_concurrency=1)
        assert lm.capabilities
        lm.take_usage()
        server.play("400", every(5))
        server.play("billed")
        metered = Metered(lm, price=PRICE)
        with pytest.raises(DlnError):
            metered.sample(CONTEXTS, WARM, list(range(12)))
        billed(metered, ledger)
        assert ledger.replies == 4


def test_where_replies_do_not_say_the_estimate_stays(ledger: Ledger):
    ledger.silent = True
    with FaultServer() as server:
        server.play("billed")
        lm = remote(server)
        metered = Metered(lm, Budget(), price=PRICE)
        draws = metered.sample(CONTEXTS, WARM, list(range(12)))
        assert lm.take_usage() is None
        used = metered.meter.snapshot()
        assert used.prompt_tokens == sum(map(lm.count_tokens, CONTEXTS))
        assert used.completion_tokens == sum(len(draw.token_ids or ()) for draw in draws)


def test_what_an_interrupted_step_has_used_is_counted_on_resume(tmp_path: Any):
    events = [Interrupted(step=1, reason="Ctrl-C", usage={"calls": 7, "prompt_tokens": 70, "usd": 0.5})]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(map(to_line, [*events, Resumed(step=1)])), encoding="utf-8")
    assert _used_before(tmp_path) == Usage(calls=7, prompt_tokens=70, usd=0.5)
    path.write_text('{"time":0.0,"kind":"interrupted","step":1,"reason":"old"}\n', encoding="utf-8")
    assert _used_before(tmp_path) == Usage()
