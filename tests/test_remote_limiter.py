"""The bound on calls in flight, the back-off, and what servers ask for: laws of the pure parts."""

from __future__ import annotations

import asyncio
import email.utils
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.lm.remote.flow import Gate, Window, back_off, wait_asked

events = st.lists(st.sampled_from(["success", "crowded", "stale"]), max_size=300)


def played(window: Window, script: list[str]) -> list[Window]:
    found = [window]
    for step, event in enumerate(script):
        window = (
            window.after_success()
            if event == "success"
            else window.after_crowding(step if event == "crowded" else window.cut_at - 1, step)
        )
        found.append(window)
    return found


@given(events, st.integers(1, 200))
def test_the_window_stays_between_its_bounds(script: list[str], most: int) -> None:
    for window in played(Window(size=float(min(8, most)), most=most), script):
        assert 1 <= window.size <= most
        assert 1 <= window.calls <= most


@given(events)
def test_success_never_shrinks_and_crowding_never_grows_it(script: list[str]) -> None:
    windows = played(Window(), script)
    for event, before, after in zip(script, windows, windows[1:], strict=False):
        assert after.size >= before.size if event == "success" else after.size <= before.size
        assert after.size - before.size <= 1


@given(events, st.integers(1, 50))
def test_one_burst_of_refusals_cuts_once(script: list[str], burst: int) -> None:
    window = played(Window(), script)[-1]
    now = len(script) + 1.0
    once = window.after_crowding(now, now)
    many = once
    for _ in range(burst):
        many = many.after_crowding(now - 0.5, now + 0.1)  # sent before the cut
    assert many == once
    assert once.size == max(1.0, 0.7 * window.size)


def test_it_doubles_per_round_trip_at_first_and_finds_back_after_a_cut() -> None:
    window, rounds = Window(size=2.0), 0
    while window.calls < 64:
        for _ in range(window.calls):
            window = window.after_success()
        rounds += 1
    assert rounds == 5
    window = window.after_crowding(1.0, 1.0)
    assert window.calls < 50
    rounds = 0
    while window.calls < 60:
        for _ in range(window.calls):
            window = window.after_success()
        rounds += 1
    assert rounds <= 10


@pytest.mark.parametrize("capacity", [1, 5, 20, 60])
def test_against_a_server_with_a_capacity_it_stays_near_it(capacity: int) -> None:
    window, sizes = Window(), []
    for step in range(300):  # a round trip each: all calls beyond the capacity are refused
        sizes.append(window.calls)
        if window.calls > capacity:
            window = window.after_crowding(float(step), float(step))
        else:
            for _ in range(window.calls):
                window = window.after_success()
    late = sizes[100:]
    assert sum(min(size, capacity) for size in late) / len(late) >= 0.85 * capacity
    assert max(late) <= capacity + 2


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40), st.integers(1, 5))
def test_the_gate_never_lets_in_more_than_the_window_and_everybody_in_at_last(
    comers: list[tuple[int, bool]], most: int
) -> None:
    async def scene() -> None:
        gate = Gate(Window(size=float(most), most=most))
        inside, most_inside, done = 0, 0, 0

        async def come(weight: int, give_up: bool) -> None:
            nonlocal inside, most_inside, done
            if give_up:
                try:
                    await asyncio.wait_for(gate.enter(weight), 0)
                except TimeoutError:
                    return
            else:
                await gate.enter(weight)
            inside += 1
            most_inside = max(most_inside, inside)
            await asyncio.sleep(0)
            inside -= 1
            done += 1
            gate.leave()

        await asyncio.gather(*(come(weight, give_up) for weight, give_up in comers))
        assert most_inside <= most
        assert gate.in_flight == 0
        assert done >= sum(not give_up for _, give_up in comers)

    asyncio.run(scene())


def test_the_gate_prefers_heavy_calls_and_keeps_a_pause() -> None:
    async def scene() -> None:
        gate = Gate(Window(size=1.0, most=1))
        await gate.enter(0)
        order: list[int] = []

        async def come(weight: int) -> None:
            await gate.enter(weight)
            order.append(weight)
            gate.leave()

        tasks = [asyncio.ensure_future(come(weight)) for weight in (1, 5, 3)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        until = loop.time() + 0.05
        gate.pause(until)
        gate.leave()
        await asyncio.gather(*tasks)
        assert order == [5, 3, 1]
        assert loop.time() >= until - 0.001

    asyncio.run(scene())


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_back_off_is_bounded_and_grows(attempt: int, jitter: float, other: float) -> None:
    wait = back_off(attempt, jitter)
    assert 0 < wait <= 20.0
    assert back_off(attempt, jitter) == wait
    assert back_off(attempt + 1, jitter) >= wait
    assert (back_off(attempt, other) >= wait) == (other >= jitter) or other == pytest.approx(jitter)


NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC).timestamp()


@given(st.integers(0, 100_000))
def test_all_ways_to_say_a_number_of_seconds_agree(seconds: int) -> None:
    date = email.utils.format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)
    for headers in (
        {"retry-after": str(seconds)},
        {"retry-after": date},
        {"retry-after-ms": str(1000 * seconds)},
        {"x-ratelimit-reset-requests": f"{seconds}s", "x-ratelimit-remaining-requests": "0"},
        {"x-ratelimit-reset": str(NOW + seconds)},
        {"x-ratelimit-reset-tokens": f"{seconds // 60}m{seconds % 60}s"},
    ):
        assert wait_asked(headers, NOW) == pytest.approx(seconds), headers


def test_what_is_no_time_or_is_past_or_not_used_up() -> None:
    assert wait_asked({}, NOW) is None
    assert wait_asked({"retry-after": "soon"}, NOW) is None
    assert wait_asked({"retry-after": "nan"}, NOW) is None
    assert wait_asked({"retry-after": "-5"}, NOW) == 0
    assert wait_asked({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, NOW) == 0
    assert wait_asked({"x-ratelimit-reset-tokens": "1s", "x-ratelimit-remaining-tokens": "7"}, NOW) is None
    assert wait_asked({"x-ratelimit-reset-requests": "120ms"}, NOW) == pytest.approx(0.12)
    assert wait_asked({"x-ratelimit-reset-requests": "1h2m3.5s"}, NOW) == pytest.approx(3723.5)
    assert wait_asked({"retry-after": "2", "x-ratelimit-reset-requests": "50s"}, NOW) == 2
