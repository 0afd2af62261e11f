"""The grades of a run on disk, so that a call of a metric that has returned is not made again.

`grades.jsonl` of a run directory has one line per call of the user's metric, in the order in which they returned. A
line is handed to the operating system before the next call is waited for: a process that is killed loses nothing of
it. A torn last line is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from dln.data.grading import Grade
from dln.errors import CorruptDataError

__all__ = ["GradeFile"]


class GradeFile:
    """A `dln.data.GradeStore` in a file, as a context manager; one process at a time.

    The file is opened when the first grade is asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._grades: dict[str, Grade] | None = None
        self._log: IO[bytes] | None = None

    def get(self, key: str) -> Grade | None:
        """The grade of an earlier call."""
        return self._known.get(key)

    def put(self, key: str, grade: Grade) -> None:
        """Append a line."""
        self._known[key] = grade
        line = json.dumps({"key": key, "value": grade.value, "feedback": grade.feedback}, ensure_ascii=False) + "\n"
        if self._log is None:
            self._log = self.path.open("ab")
        self._log.write(line.encode("utf-8", "surrogateescape"))
        self._log.flush()

    def close(self) -> None:
        """Close the file; the next `put` opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def _known(self) -> dict[str, Grade]:
        if self._grades is None:
            self._grades = self._read() if self.path.exists() else {}
        return self._grades

    def _read(self) -> dict[str, Grade]:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)
        known: dict[str, Grade] = {}
        for number, line in enumerate(data[:end].decode("utf-8", "surrogateescape").split("\n")[:-1], 1):
            try:
                row = json.loads(line)
                known[row["key"]] = Grade(float(row["value"]), str(row["feedback"]))
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptDataError(
                    "this line is no grade",
                    where=f"{self.path}:{number}",
                    got=line[:60],
                    fix="remove the file: grades are computed again",
                ) from error
        return known

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
