"""`python -m benchmarks.remote`: what the client of remote models costs, against a server that does nothing but wait.

Rate against the ideal (slots / latency), time a call spends in the client, CPU time per call (which other
processes on the machine do not change), growth of memory, and what a second replica adds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.remote_stub import stub
from dln.errors import DlnError
from dln.lm.remote.call import Call
from dln.lm.remote.endpoint import Patience, endpoint_of
from dln.lm.remote.sender import HttpSender

__all__ = ["Throughput", "main", "memory_growth", "throughput"]


@dataclass(frozen=True, slots=True)
class Throughput:
    """One measurement.

    Args:
        replicas: servers.
        requests: calls made.
        rate: calls per second.
        ideal: calls per second that the servers can answer.
        overhead_p50: seconds of a call that were not the server's, median.
        overhead_p95: the same, 95th percentile.
        cpu: seconds of processor time of this process per call.
    """

    replicas: int
    requests: int
    rate: float
    ideal: float
    overhead_p50: float
    overhead_p95: float
    cpu: float

    @property
    def part(self) -> float:
        """Of the ideal that was reached."""
        return self.rate / self.ideal


def throughput(requests: int, *, seconds: float = 0.05, slots: int = 64, replicas: int = 1) -> Throughput:
    """Send distinct calls to stubs of this latency and number of slots each, all replicas kept busy."""
    with ExitStack() as stack:
        urls = [stack.enter_context(stub(seconds, slots)) for _ in range(replicas)]
        sender = _sender(urls, slots)
        stack.callback(sender.close)
        sender.send(_calls(4 * slots * replicas, "warm"), _read)
        wall, processor = time.perf_counter(), time.process_time()
        sender.send(_calls(requests, "measured"), _read)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        seen = sender.traffic()
    return Throughput(
        replicas=replicas,
        requests=requests,
        rate=requests / wall,
        ideal=replicas * slots / seconds,
        overhead_p50=(seen.latency_p50 or 0.0) - seconds,
        overhead_p95=(seen.latency_p95 or 0.0) - seconds,
        cpu=processor / requests,
    )


def memory_growth(requests: int, *, seconds: float = 0.02, slots: int = 64, chunk: int = 1000) -> int:
    """Bytes of resident memory that this many calls add, in sends of `chunk`, after a warm-up of two sends."""
    with stub(seconds, slots) as url:
        sender = _sender([url], slots)
        for part in range(2):
            sender.send(_calls(chunk, f"warm {part}"), _read)
        before = _resident()
        for part in range(0, requests, chunk):
            sender.send(_calls(min(chunk, requests - part), f"part {part}"), _read)
        grown = _resident() - before
        sender.close()
    return grown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="calls per measurement of the rate")
    parser.add_argument("--memory-requests", type=int, default=50_000, help="calls over which memory is watched")
    parser.add_argument("--latency", type=float, default=0.05, help="of the stub, in seconds")
    parser.add_argument("--slots", type=int, default=64, help="of the stub")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    chosen = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        rows = [throughput(chosen.requests, seconds=chosen.latency, slots=chosen.slots)]
        # what a second replica adds is asked of slow servers: one event loop must be able to feed both
        slow = 4 * chosen.latency
        few = max(4 * chosen.slots, chosen.requests // 4)
        rows += [throughput(few * n, seconds=slow, slots=chosen.slots, replicas=n) for n in (1, 2)]
        grown = memory_growth(chosen.memory_requests, slots=chosen.slots)
    except DlnError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        return error.exit_code
    _show(rows, grown, chosen.memory_requests)
    if chosen.json:
        record: dict[str, Any] = {"rates": [asdict(row) for row in rows], "memory_growth": grown}
        chosen.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _show(rows: Sequence[Throughput], grown: int, requests: int) -> None:
    console = Console()
    table = Table("replicas", "calls", "calls/s", "ideal", "of ideal", "overhead p50", "p95", "CPU/call")
    for row in rows:
        table.add_row(
            str(row.replicas),
            f"{row.requests:,}",
            f"{row.rate:.0f}",
            f"{row.ideal:.0f}",
            f"{row.part:.1%}",
            f"{1e3 * row.overhead_p50:.1f} ms",
            f"{1e3 * row.overhead_p95:.1f} ms",
            f"{1e3 * row.cpu:.2f} ms",
        )
    console.print(table)
    console.print(f"two replicas: {rows[2].rate / rows[1].rate:.2f} times one")
    console.print(f"memory: {grown / 2**20:+.1f} MiB over {requests:,} calls")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    console.print(f"{os.cpu_count()} processors, load {load:.1f}: rates are of this machine under this load")


def _sender(urls: Sequence[str], slots: int) -> HttpSender:
    return HttpSender(endpoint_of("stub", urls, key_needed=False, patience=Patience(max_concurrency=slots)))


def _calls(count: int, mark: str) -> list[Call]:
    text = "A question about nothing in particular, as long as questions are. " * 8
    return [
        Call("/completions", {"model": "stub", "prompt": f"{text}{mark} {number}", "max_tokens": 1}, weight=number % 9)
        for number in range(count)
    ]


def _read(call: Call, reply: Any) -> str:
    return str(reply["choices"][0]["text"])


def _resident() -> int:
    """Bytes of memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
