"""Measure how an engine handles the faults of the fault server, and write docs/reliability.md.

python tools/make_reliability_page.py    # measure (about a minute) and write the page

The tests measure the same cells and compare them with the page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fault_expected import GROUPS  # noqa: E402 - the tests' folder is no package
from fault_table import ASKED, PLAYED, Asked, Cell, Played, measure_rows  # noqa: E402

__all__ = ["PAGE", "lines_of", "message_of", "page", "shown"]

PAGE = ROOT / "docs" / "reliability.md"
Cells = Mapping[tuple[str, Played, Asked], Cell]

HEAD = """\
# Fault handling

Models behind HTTP fail in many ways. `tools/make_reliability_page.py` generates this page from experiments with a
real HTTP server that injects scripted faults (`tests/fault_server.py`). The tests repeat every experiment and compare
the outcome with a hand-written expectation and with this page.

Each experiment uses its own server and engine. The model behind the server is small and exact, so that every returned
number can be compared with the true value. No result in these tables is silently wrong. The outcomes are:

- **survived**: exactly the numbers and the cost of a run without faults; retried requests are counted once;
- **unusable**: the server returned values that cannot be log-probabilities (NaN, ±∞, positive, or next to a missing
  one). They are detected, the affected examples are excluded and counted, and all other numbers are correct;
- **the name of an error**: no result. The error states where, what was received and what to try.

*Once*: every request meets the fault the first time and succeeds when it is retried (slow faults: the first three
requests). *Always*: the fault is permanent. *At the start* covers everything from the first contact, including the
probe of the server's scoring modes (*once*: every twelfth request). In the other columns the fault starts after the
engine was loaded. "by …" names the remaining scoring modes for labels and for texts. "–" was not tested.

Errors that retrying cannot fix (invalid key, exhausted quota, unknown model, rejected request) are reported
immediately, after one attempt. Transient failures are retried. Where a fault has to time out, these experiments allow
1.2 s of silence or 5 s in total; the defaults are 120 s of silence, 600 s in total, and up to 8 retries with
increasing delays.
"""

TAIL = """\
## Limitations

A server that changes its model during a run and keeps reporting the old name cannot be detected.
"""

TITLES = {
    "network": "The network",
    "statuses": "Error statuses",
    "bodies": "Invalid responses",
    "values": "Invalid log-probabilities",
}
COLUMNS = ("fault", "played", "at the start", "drawing", "scoring texts", "scoring labels")


def page() -> str:
    """The whole page as Markdown; measures everything."""
    sections, messages = [HEAD], [*_table_head(("fault", "error", "exit code", "its first line"))]
    for group, faults in GROUPS.items():
        cells = measure_rows(tuple(faults))
        rows = [line for fault in faults for line in lines_of(fault, cells)]
        sections.append("\n".join([f"## {TITLES[group]}", "", *_table_head(COLUMNS), *rows, ""]))
        messages += [line for fault in faults if (line := message_of(fault, cells))]
    sections += ["\n".join(["## Error messages", "", *messages, ""]), TAIL]
    return "\n".join(sections)


def shown(cell: Cell) -> str:
    """A cell's outcome in words."""
    return cell.outcome + (f", by {cell.modes}" if cell.modes else "")


def lines_of(fault: str, cells: Cells) -> list[str]:
    """The rows of one fault."""
    rows = {
        played: [shown(cells[fault, played, asked]) if (fault, played, asked) in cells else "–" for asked in ASKED]
        for played in PLAYED
    }
    if rows["once"] == rows["always"]:
        return [_line([fault, "once or always", *rows["once"]])]
    return [_line([fault, played, *row]) for played, row in rows.items()]


def message_of(fault: str, cells: Cells) -> str | None:
    """What is said when the fault does not end; None where there is no error."""
    for asked in ("sample", "log_prob", "start"):
        cell = cells[fault, "always", asked]
        if cell.message:
            return _line([fault, f"`{cell.outcome}`", str(cell.exit_code), cell.message])
    return None


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table_head(names: tuple[str, ...]) -> list[str]:
    return [_line(list(names)), "|" + "---|" * len(names)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
