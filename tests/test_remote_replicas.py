"""Several servers: each prefix to one of them, the dead ones left and tried again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.lm.remote.call import Call, ServerUnreachable
from dln.lm.remote.endpoint import Patience, endpoint_of
from dln.lm.remote.flow import Health, assign, rendezvous
from dln.lm.remote.sender import HttpSender
from remote_scripted_server import Asked, ScriptedServer, http, ok

urls = st.lists(st.text("abc:/.", min_size=1, max_size=9), min_size=1, max_size=6, unique=True)


@given(st.text(), urls)
def test_rendezvous_is_an_order_of_all_and_moves_only_what_it_must(route: str, replicas: list[str]) -> None:
    order = rendezvous(route, replicas)
    assert sorted(order) == list(range(len(replicas)))
    names = [replicas[index] for index in order]
    for lost in replicas[1:]:
        left = [name for name in replicas if name != lost]
        assert [left[index] for index in rendezvous(route, left)] == [name for name in names if name != lost]


def test_rendezvous_spreads_routes() -> None:
    counts = Counter(rendezvous(f"route {i}", ["a", "b", "c"])[0] for i in range(3000))
    assert all(850 < counts[index] < 1150 for index in range(3))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200), urls)
def test_assignment_keeps_a_route_together_and_the_load_even(routes: list[str], replicas: list[str]) -> None:
    orders = assign(routes, replicas)
    assert set(orders) == set(routes)
    assert all(sorted(order) == list(range(len(replicas))) for order in orders.values())
    load = Counter(orders[route][0] for route in routes)
    heaviest = max(Counter(routes).values())
    assert max(load.values()) <= max(1.1 * len(routes) / len(replicas), len(routes) / len(replicas) + heaviest)
    assert assign(routes, replicas) == orders


@given(st.lists(st.sampled_from(["ok", "fail", "refused"]), max_size=40))
def test_the_breaker_opens_on_failures_and_closes_on_success(script: list[str]) -> None:
    health, failures, now = Health(), 0, 0.0
    for event in script:
        now += 0.01
        refused = event == "refused"
        health = health.after_success() if event == "ok" else health.after_failure(now, refused=refused)
        failures = 0 if event == "ok" else max(failures + 1, 3 if refused else 0)
        assert health.usable(now) == (failures < 3)
        later = health.closed_until + 0.001
        assert failures < 3 or health.usable(later)  # tried again after a while
        if failures >= 3:
            assert not health.taken().usable(later)  # by one call at a time
            assert health.taken().released().usable(later)
            assert 0 < health.closed_until - now <= 30.0


def echo(asked: Asked) -> bytes:
    return ok({"i": asked.body["i"]})


def routed(count: int, routes: int, start: int = 0) -> list[Call]:
    return [
        Call("/completions", {"i": i, "route": i % routes}, route=f"prefix {i % routes}") for i in range(start, count)
    ]


def sender_to(*servers: ScriptedServer, patience: Patience | None = None) -> HttpSender:
    return HttpSender(endpoint_of("m", [s.url for s in servers], key_needed=False, patience=patience))


def test_each_route_goes_to_one_replica_and_all_have_work() -> None:
    with ScriptedServer(echo) as a, ScriptedServer(echo) as b, ScriptedServer(echo) as c:
        sender = sender_to(a, b, c)
        for part in (routed(400, 40), routed(800, 40, 400)):
            assert sender.send(part, lambda call, reply: reply["i"]) == [call.body["i"] for call in part if call.body]
        places: defaultdict[int, set[int]] = defaultdict(set)
        for server in (a, b, c):
            assert len(server.asked) > 100
            for asked in server.asked:
                places[asked.body["route"]].add(server.port)
        assert all(len(ports) == 1 for ports in places.values())
        sender.close()


def test_a_dead_replica_is_left_and_tried_again_when_it_is_back() -> None:
    with ScriptedServer(echo) as alive, ScriptedServer(echo) as other:
        sender = sender_to(alive, other)
        sender.send(routed(40, 20), lambda call, reply: reply["i"])
        assert other.asked
        port, url = other.port, other.url
        other.stop()
        begun = time.monotonic()
        before = len(alive.asked)
        assert sender.send(routed(140, 20, 40), lambda call, reply: reply["i"]) == list(range(40, 140))
        assert time.monotonic() - begun < 3
        assert len(alive.asked) == before + 100
        assert sender.traffic().left_alone == (url,)
        with ScriptedServer(echo, port=port) as back:
            deadline = time.monotonic() + 20
            start = 140
            while not back.asked and time.monotonic() < deadline:
                sender.send(routed(start + 20, 20, start), lambda call, reply: reply["i"])
                start += 20
                time.sleep(0.1)
            assert back.asked
            assert sender.traffic().left_alone == ()
            sender.close()


def test_a_replica_that_only_fails_costs_no_call() -> None:
    with ScriptedServer(echo) as alive, ScriptedServer(lambda asked: http(502, "bad gateway")) as broken:
        sender = sender_to(alive, broken)
        assert sender.send(routed(300, 30), lambda call, reply: reply["i"]) == list(range(300))
        assert len(broken.asked) < 150
        sender.close()


def test_all_replicas_dead_is_said() -> None:
    with ScriptedServer(echo) as a, ScriptedServer(echo) as b:
        sender = sender_to(a, b, patience=Patience(unreachable_seconds=0.5))
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable):
        sender.send(routed(20, 5), lambda call, reply: reply["i"])
    assert time.monotonic() - begun < 5
    sender.close()


def test_two_replicas_do_twice_the_work() -> None:
    """Counted in in-flight places, not in seconds: each replica is kept as full as one alone."""

    async def slow(asked: Asked) -> bytes:
        await asyncio.sleep(0.02)
        return echo(asked)

    with ScriptedServer(slow) as a, ScriptedServer(slow) as b:
        sender = sender_to(a, b, patience=Patience(max_concurrency=8))
        sender.send(routed(200, 200), lambda call, reply: reply["i"])
        assert a.most_in_flight == b.most_in_flight == 8
        assert abs(len(a.asked) - len(b.asked)) <= 0.3 * 200
        sender.close()
