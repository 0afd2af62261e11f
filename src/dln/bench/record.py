"""Results as plain data, and what a run was: device, versions, date, command."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from dln.bench.machine import processor
from dln.lm.transformers import TransformersLM

__all__ = ["RunFacts", "about_run", "as_record"]


@dataclass(frozen=True)
class RunFacts:
    """What a reader must know to measure the same again."""

    command: str
    date: str
    model: str
    dtype: str
    device: str
    threads: int
    versions: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The facts in two lines."""
        threads = f", {self.threads} threads" if self.threads else ""
        return (
            f"`{self.command}`, {self.date}",
            f"{self.model} in {self.dtype} on {self.device}{threads}; {self.versions}",
        )


def about_run(lm: TransformersLM, words: Sequence[str]) -> RunFacts:
    """The facts of a run with these command-line words."""
    import torch
    import transformers

    device = lm.network.device
    on_cpu = device.type == "cpu"
    return RunFacts(
        command=shlex.join(["python", "-m", "dln.bench", *words]),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        model=lm.name,
        dtype=lm.network.dtype,
        device=processor() if on_cpu else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads() if on_cpu else 0,
        versions=(
            f"dln {version('dln')}, torch {torch.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}"
        ),
    )


def as_record(value: object) -> Any:
    """Dataclasses as dictionaries, with their properties (the derived figures) beside the fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        record = {field.name: as_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
        derived = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return record | {name: as_record(getattr(value, name)) for name in derived}
    if isinstance(value, list | tuple):
        return [as_record(item) for item in cast("Sequence[object]", value)]
    return None if value != value else value  # noqa: PLR0124 - NaN is no JSON
