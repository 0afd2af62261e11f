"""DataSpec: which file or frame is read, how, and which columns mean what.

A specification is validated once, merged field by field (`over`), and completed by reading: `resolve` in
`dln.data.resolve` returns it with every guess filled in. A run stores the completed specification and later commands
start from it.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from dln.arguments import checked, did_you_mean, shown
from dln.errors import InputError

__all__ = ["FORMATS", "DataSpec", "Texts", "key_text", "suffix_format"]

Format = Literal["csv", "tsv", "json", "jsonl", "xlsx", "parquet", "lines", "folder", "hf"]

FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "lines",
}
"""Suffixes of files with their formats; compressed files have a second suffix (`.csv.gz`)."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files."""


def suffix_format(path: str) -> Format | None:
    """The format that the suffix of a path stands for, below that of a compression.

    >>> suffix_format("mail.CSV.gz"), suffix_format("notes")
    ('csv', None)
    """
    name = path.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def key_text(value: object) -> str:
    """A key or value of a YAML mapping as the text of a cell: 1.0 is "1", True is "true", None is "".

    >>> [key_text(value) for value in (1.0, True, None, " a ")]
    ['1', 'true', '', 'a']
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value).strip()


def _texts(given: object) -> object:
    """One text as a tuple of one."""
    return (given,) if isinstance(given, str) else given


def _label_texts(given: object) -> object:
    """Labels as texts: YAML reads 1, true and null as numbers, booleans and None."""
    if isinstance(given, Mapping):
        pairs = [(key_text(k), key_text(v)) for k, v in cast("Mapping[object, object]", given).items()]
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("two keys of the mapping are the same text")
        return dict(pairs)
    if isinstance(given, list | tuple):
        return [key_text(one) for one in cast("list[object]", given)]
    return given


def _short(texts: tuple[str, ...]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else list(texts)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts, str | list[str]), PlainSerializer(_short)]
Labels = Annotated[
    list[str] | dict[str, str] | None, BeforeValidator(_label_texts, list[Any] | dict[str | int | float, Any] | None)
]


def _refused(error: ValidationError, source: str) -> InputError:
    """What pydantic found, in the words of `dln.arguments`."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "extra_forbidden":
        close = did_you_mean(name, DataSpec.model_fields)
        fix = f"did you mean {close!r}?" if close else "leave it out"
        known = f"one of {', '.join(DataSpec.model_fields)}"
        return InputError(f"there is no argument {name!r}", where=source, got=name, expected=known, fix=fix)
    if problem["type"] == "value_error":
        return InputError(message, where=f"{source}: {name}" if name else source, got=shown(problem["input"], 60))
    about = str(DataSpec.model_fields[name].description) if name in DataSpec.model_fields else "another value"
    got = shown(problem["input"], 60)
    return InputError(f"the argument {name!r} cannot be used", where=source, got=got, expected=message, fix=about)


class DataSpec(BaseModel):
    """How a table of examples is read. None, or an empty list, means that it is guessed or not used.

    Raises:
        InputError: (when made) a field is unknown or invalid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _refused(error, "DataSpec") from None

    path: Texts = Field(default=(), description="Files of examples, read as one table.")
    dev_file: Texts = Field(default=(), description="File of validation examples (default: split off).")
    test_file: Texts = Field(default=(), description="File of test examples (default: split off).")
    format: Format | None = Field(
        default=None, description="Format of the file (default: by its suffix, else by its content)."
    )
    encoding: str | None = Field(default=None, description="Text encoding, as cp1252 (default: detected).")
    delimiter: str | None = Field(
        default=None, description="Character between the cells of a CSV file (default: detected)."
    )
    quotechar: str | None = Field(
        default=None, description="Quote character of a CSV file, or none (default: detected)."
    )
    header: bool | None = Field(
        default=None, description="Whether the first line names the columns (default: yes; else they are 1, 2, …)."
    )
    sheet: str | None = Field(default=None, description="Sheet of an Excel file (default: the first with rows).")
    input: Texts = Field(default=(), description="Column with the inputs; several are joined (default: guessed).")
    target: str | None = Field(default=None, description="Column with the targets (default: guessed).")
    id: str | None = Field(default=None, description="Column with the identifiers of the rows.")
    split_column: str | None = Field(default=None, description="Column that says train, dev or test.")
    group: str | None = Field(default=None, description="Column whose rows of equal value stay in one part.")
    split_by: str | None = Field(
        default=None,
        description="Column with times or numbers: the latest rows are the test set, those before the dev set.",
    )
    free_form: bool | None = Field(
        default=None, description="Whether targets are free text or labels (default: guessed)."
    )
    labels: Labels = Field(
        default=None, description='Labels with alternative spellings ("yes|Yes"), or {value in the file: label}.'
    )
    merge_labels: bool | None = Field(
        default=None, description="Merge labels that differ in case or in the form of a number (1 and 1.0)."
    )
    several: Literal["combine", "first", "refuse"] | None = Field(
        default=None,
        description="Several labels in a cell: each combination is a class (default), the first counts, or an error.",
    )
    missing: Texts = Field(default=(), description="Text that counts as an empty cell, as NaN.")
    empty: Literal["drop", "keep", "refuse"] | None = Field(
        default=None, description="Rows with an empty cell: drop (default), keep, or refuse the file."
    )
    long_rows: Literal["skip", "cut", "refuse"] | None = Field(
        default=None,
        description="Rows with more cells than the header: skip (default, if they are few), cut, or refuse the file.",
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                if not codecs.lookup(name)._is_text_encoding:  # pyright: ignore[reportPrivateUsage]
                    raise LookupError
            except (LookupError, ValueError):
                raise ValueError(f"unknown encoding {name!r}: utf-8, cp1252, utf-16, shift_jis, gb18030, …") from None
        return name

    @field_validator("delimiter", "quotechar")
    @classmethod
    def _one_character(cls, given: str | None) -> str | None:
        if given is None or given == "none":
            return given
        named = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
        character = named.get(given.lower(), given) if len(given) > 1 else given
        if len(character) != 1 or character in "\r\n\x00":
            raise ValueError("a delimiter or quote is one character, as ; or tab")
        return character

    @field_validator("input")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) < len(columns):
            raise ValueError("a column is given twice")
        return columns

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.delimiter is not None and self.delimiter == (self.quotechar or '"'):
            raise ValueError("delimiter and quote character are the same")
        if self.target is not None and self.target in self.input:
            raise ValueError("input and target are the same column")
        ways = [name for name in ("split_column", "group", "split_by") if getattr(self, name) is not None]
        if self.split_column is not None and len(ways) > 1:
            raise ValueError(f"a split column says the part of every row: leave out {ways[1]}")
        if self.free_form and self.labels is not None:
            raise ValueError("free texts have no labels: leave out free_form or labels")
        return self

    @classmethod
    @checked
    def make(cls, path: object = (), where: str = "DataSpec", **fields: Any) -> DataSpec:
        """A specification from keyword arguments; None is not given.

        Args:
            path: the files.
            where: the caller, for messages where there is no file.
            fields: further fields.

        Raises:
            InputError: a field is unknown or invalid; names `where` and the field.
        """
        values = {name: value for name, value in fields.items() if value is not None}
        if isinstance(path, list | tuple):
            values["path"] = [str(one) for one in cast("list[object]", path)]
        else:
            values["path"] = str(path)
        try:
            return cls(**values)
        except InputError as error:
            place = str(path) if isinstance(path, str | Path) else where
            at = str(error.where).replace("DataSpec", place, 1)
            raise InputError(error.message, where=at, got=error.got, expected=error.expected, fix=error.fix) from None

    @checked
    def given(self) -> dict[str, Any]:
        """The fields that say something, as plain data."""
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if value is not None and value != []}

    @checked
    def over(self, base: DataSpec) -> DataSpec:
        """This specification with what it leaves open taken from `base`, field by field."""
        merged = base.given() | self.given()
        if self.input and merged.get("target") in self.input and self.target is None:
            del merged["target"]
        return DataSpec(**merged)
