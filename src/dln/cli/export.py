"""`dln export`: a trained network or what a run measured, in the form of another tool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dln.cli import flags
from dln.cli.build import open_network
from dln.cli.models import LengthOnly
from dln.cli.output import examples, note, out, safe
from dln.errors import InputError
from dln.integrations.exports import PROMPT_FORMS, hugging_face_files, prompt_text, promptfoo_files
from dln.integrations.original import result_data, write_result_data
from dln.integrations.training_data import preference_records, sft_records
from dln.io import write_atomically
from dln.lm.base import LanguageModel
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.nn.saving import network_to_json
from dln.train.events import Evaluated, Event
from dln.train.run import current, of_kind, read_events

__all__ = ["EXPORT_EPILOG", "export", "heaviest_note", "print_prompts", "stand_in"]

EXPORT_EPILOG = examples(
    "dln export runs/questions --format python --out classify.py",
    "dln export network.json --format anthropic",
    "dln export runs/questions --format promptfoo --out promptfoo",
    "dln export runs/questions --format sft --out sft.jsonl",
    "dln export runs/questions --format huggingface --out card",
    "dln export runs/questions --format result_data --out result_data.json",
)

FOLDERS = ("promptfoo", "huggingface")
"""Forms of several files."""


def export(
    network: flags.NetworkOrRun,
    form: flags.Form,
    target: flags.Out = None,
) -> None:
    """Write a trained network, or what a run measured, in the form of another tool; without --out to standard output.

    promptfoo, sft, preferences and result_data need a run; huggingface takes its numbers from one.
    """
    if form in FOLDERS:
        if target is None:
            raise InputError(f"{form} is a folder of files", where="--out", fix=f"--out {form}")
        _write_folder(target, _folder(network, form))
        return
    text = _text(network, form)
    if target is None:
        print_prompts(text, form)
        return
    try:
        write_atomically(target, text + "\n")
    except OSError as error:
        raise InputError("cannot write the file", where=target, got=error.strerror) from error
    out().print(safe(target), soft_wrap=True)


def stand_in(name: str) -> LanguageModel:
    """A model that only has its name: nothing is asked."""
    return LengthOnly(name)


def print_prompts(text: str, form: str) -> None:
    """Print the product of the command: prompts as they are, not wrapped, nothing read as markup."""
    if form in ("text", "python"):
        out().print(safe(text), soft_wrap=True)
    else:
        print(text)  # noqa: T201


def heaviest_note(trained: AnyNetwork) -> None:
    """Say which member stands for an ensemble."""
    if isinstance(trained, Ensemble):
        note(f"note: this is the heaviest of {len(trained.members)} members (weight {max(trained.weights):.3f})")


def _text(place: Path, form: str) -> str:
    if form == "result_data":
        return write_result_data(result_data(_events(place, form)))
    if form in ("sft", "preferences"):
        records = (sft_records if form == "sft" else preference_records)(_events(place, form), stand_in)
        return _lines(records)
    trained = open_network(place, stand_in, told=False)
    if form in ("openai", "anthropic", "python"):
        heaviest_note(trained)
    assert form in PROMPT_FORMS  # noqa: S101 - the others are above
    return prompt_text(trained, form)


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def _folder(place: Path, form: str) -> dict[str, str]:
    trained = open_network(place, stand_in, told=False)
    if form == "huggingface":
        events = _events(place, form) if place.is_dir() else []
        file = place / "network.json" if place.is_dir() else place
        # of an unfinished run the best network so far, which has no file yet
        saved = file.read_text(encoding="utf-8") if file.exists() else json.dumps(network_to_json(trained), indent=2)
        heaviest_note(trained)
        return hugging_face_files(trained, events, place.resolve().stem, saved)
    tested = of_kind(_events(place, form), Evaluated)
    if not tested:
        raise InputError(
            "this run has no test examples to make tests of",
            where=place,
            fix=f"dln resume {place}, or train without --no-test",
        )
    rows = [(example.x, example.y) for example in tested[-1].examples]
    about = f"{place.name}: {len(rows)} {tested[-1].split} examples"
    return promptfoo_files(str(place.resolve()), rows, bool(trained.labels), about)


def _events(place: Path, form: str) -> list[Event]:
    log = place / "events.jsonl"
    if not log.is_file():
        raise InputError(
            f"{form} needs a run",
            where=place,
            expected="a run directory, with what was measured",
            fix="dln runs lists run directories",
        )
    return current(read_events(log))


def _write_folder(folder: Path, files: Mapping[str, str]) -> None:
    existing = [name for name in files if (folder / name).exists()]
    if existing:
        raise InputError(
            "this folder has such a file already", where=folder, got=", ".join(existing), fix="another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise InputError("cannot write the folder", where=folder, got=error.strerror) from error
    for name in files:
        out().print(safe(folder / name), soft_wrap=True)
