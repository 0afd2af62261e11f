"""Install requirements with pip and show progress: one updating line on a terminal, else a line per ten packages.

    python tools/install_locked.py requirements.lock

The output of pip is shown only if it fails.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(file: str) -> int:
    """Install what `file` lists into the environment of this interpreter; pip's exit code."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    total = sum(1 for line in lines if line and not line.startswith("#"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "-r",
        file,
    ]
    said: list[str] = []
    seen: set[str] = set()
    terminal = sys.stdout.isatty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")  # noqa: S603
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    for line in process.stdout:
        said.append(line)
        words = line.split()
        if line.startswith(("Collecting ", "Requirement already satisfied: ")):
            seen.add(words[1] if words[0] == "Collecting" else words[3])
            _show(f"  {min(len(seen), total)} of {total} packages found", terminal, len(seen) % 10 == 0)
        elif line.startswith("Installing collected packages"):
            _show(f"  installing {line.count(',') + 1} packages", terminal, True)
    if terminal:
        sys.stdout.write("\n")
    code = process.wait()
    if code:
        sys.stderr.write("".join(said))
    return code


def _show(text: str, terminal: bool, whole: bool) -> None:
    if terminal:
        sys.stdout.write(f"\r\033[K{text}")
    elif whole:
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
