"""Every fault, played once and always, on everything that is asked of a model: the table of docs/reliability.md."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from fault_expected import EXPECTED, GROUPS, NOT_CAUGHT, expected
from fault_scripts import FAULTS
from fault_table import ASKED, DOOR, FAULT_NAMES, PLAYED, RETRIES, Cell, measure_rows

TOOL: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[1] / "tools" / "make_reliability_page.py"), run_name="page"
)
FINAL = {"QuotaExhausted", "BadRequest", "ContextLengthError", "AuthenticationFailed", "ModelNotFound", "ProviderError"}
"""Errors that asking again cannot mend."""
HANGS = 90
"""Seconds: more than the deadline of one request, on any machine. How often is asked is what is tested closely."""


def test_every_fault_of_the_server_has_an_expectation():
    assert set(EXPECTED) | NOT_CAUGHT == set(FAULT_NAMES) == {*DOOR, *FAULTS}
    assert not set(EXPECTED) & NOT_CAUGHT


@pytest.mark.parametrize(
    "faults",
    [
        # one of each kind of outcome: survived and given up, final at once, never mixed up, and seen to be unusable
        pytest.param(("500", "401", "reply delivered twice", "log-probs NaN"), id="a few of each"),
        *(pytest.param(tuple(GROUPS[group]), id=group, marks=pytest.mark.slow) for group in GROUPS),
    ],
)
def test_outcomes_are_those_that_were_expected_and_published(faults: tuple[str, ...]):
    cells = measure_rows(faults)
    amiss = [f"{' / '.join(row)}: {problem}" for row, cell in cells.items() for problem in problems(*row, cell)]
    assert not amiss, "\n".join(amiss)
    lines = TOOL["PAGE"].read_text(encoding="utf-8").splitlines()
    wanted = [line for fault in faults for line in (*TOOL["lines_of"](fault, cells), TOOL["message_of"](fault, cells))]
    missing = [line for line in wanted if line is not None and line not in lines]
    assert not missing, "run: python tools/make_reliability_page.py\n" + "\n".join(missing)


def problems(fault: str, played: Any, asked: Any, cell: Cell) -> list[str]:
    """What is wrong with the outcome of one experiment."""
    wanted, got = expected(fault, played, asked), TOOL["shown"](cell)
    found = [] if got == wanted else [f"{got} ({cell.message}), expected {wanted}"]
    if cell.seconds >= HANGS:
        found.append(f"took {cell.seconds:.1f} s")
    if not cell.counted:
        found.append("cost is not that of an undisturbed run")
    if cell.outcome in FINAL and cell.most > 1 and asked != "start":
        found.append(f"the same request was sent {cell.most} times, though that cannot help")
    if cell.most > 1 + RETRIES[played] and fault not in DOOR and asked != "start":
        found.append(f"the same request was sent {cell.most} times")
    if cell.outcome not in {"survived", "unusable"} and cell.exit_code != (2 if "Context" in cell.outcome else 3):
        found.append(f"exit code {cell.exit_code}")
    if not cell.plain:
        found.append(f"the error does not say where, what came back and what to try: {cell.message}")
    return found


def test_the_page_has_a_row_for_every_fault():
    lines = TOOL["PAGE"].read_text(encoding="utf-8").splitlines()
    for fault in EXPECTED:
        assert any(line.startswith(f"| {fault} |") for line in lines), fault
    assert len(PLAYED) * len(ASKED) == 8
