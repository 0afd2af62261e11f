"""Token prices: list prices from `genai-prices`, the user's own files over them, and prices given for one run.

A price file is YAML:

    date: 2026-06-01            # when the prices were looked up
    models:
      openai/gpt-4o-mini: {input: 0.15, output: 0.60, cached_input: 0.075}    # US dollars per million tokens
      azure/*: {input: 0.20, output: 0.80}

A name is a model's spec; `*` stands for any text. An exact name wins over a pattern, a longer pattern over a
shorter one, and a later file over an earlier one. The list prices come inside the package `genai-prices`: nothing is
downloaded.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dln.arguments import NonNegative, checked
from dln.errors import InputError

__all__ = ["FREE", "HOSTED", "Price", "PriceTable", "Quote", "list_price", "load_prices", "parse_price"]

HOSTED = ("openai", "azure", "together", "fireworks", "openai-compatible")
"""Prefixes of models that somebody may send a bill for; all others run on the user's own machines."""

MILLION = 1_000_000
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@checked
@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens.

    Args:
        input: tokens read.
        output: tokens drawn.
        cached_input: tokens read that the server had in its prompt cache; None means the price of `input`.
    """

    input: NonNegative = 0.0
    output: NonNegative = 0.0
    cached_input: NonNegative | None = None

    def usd(self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0.0) -> float:
        """(prompt − cached)·input + cached·cached_input + completion·output, in US dollars."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        read = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached_price
        return (read + completion_tokens * self.output) / MILLION

    @property
    def dearest_input(self) -> float:
        """Upper bound on the price of a token read, whatever the server's prompt cache holds."""
        return max(self.input, self.cached_input or 0.0)


FREE = Price()
"""The price of models on the user's own machines."""


@dataclass(frozen=True, slots=True)
class Quote:
    """A price and its source.

    Attributes:
        price: the price.
        source: a file, the package with its version, or a description.
        date: when it was looked up; None if unknown.
    """

    price: Price
    source: str
    date: datetime.date | None = None


@dataclass(frozen=True)
class PriceTable:
    """Prices by name or pattern, over the list prices.

    Args:
        lists: {name or pattern: quote}, least important first.
    """

    lists: tuple[Mapping[str, Quote], ...] = ()

    def find(self, spec: str) -> Quote | None:
        """Price of a model, None if unknown.

        Models on the user's own machines are free unless a list says otherwise. A dated snapshot
        (`…-2024-07-18`) costs what its family costs unless it is listed itself.
        """
        wanted = spec.strip().removesuffix(":chat").removesuffix(":completion")
        names = (wanted, _SNAPSHOT.sub("", wanted))
        for quotes in reversed(self.lists):
            for name in names:
                exact = quotes.get(name)
                if exact is not None:
                    return exact
            fitting = [pattern for pattern in quotes if "*" in pattern and fnmatchcase(wanted, _literal(pattern))]
            if fitting:
                return quotes[max(fitting, key=len)]
        return list_price(wanted) if wanted.partition("/")[0] in HOSTED else Quote(FREE, "the user's own machine")

    def over(self, quotes: Mapping[str, Quote]) -> PriceTable:
        """This table with more important prices."""
        return PriceTable((*self.lists, quotes)) if quotes else self

    def needed(self, spec: str) -> Quote:
        """Price of a model that must have one.

        Raises:
            InputError: it is unknown; says how to give it.
        """
        quote = self.find(spec)
        if quote is None:
            raise InputError(
                "the price of this model is unknown, so a limit in money cannot be kept",
                where=spec,
                fix=f"--price {spec}=INPUT/OUTPUT in US dollars per million tokens (0/0 if it is free), "
                "--prices FILE, or --max-tokens instead of --max-usd",
            )
        return quote


class _Entry(BaseModel):
    """One model of a price file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)


def _not_blank(names: object) -> object:
    if isinstance(names, dict) and any(not isinstance(name, str) or not name.strip() for name in names):  # pyright: ignore[reportUnknownVariableType] - of YAML
        raise ValueError("a model's name is a text that is not empty")
    return cast(object, names)


class _File(BaseModel):
    """A price file."""

    model_config = ConfigDict(extra="forbid")

    date: datetime.date
    models: Annotated[dict[str, _Entry], BeforeValidator(_not_blank)]


@checked
def load_prices(files: Sequence[Path] = (), given: Mapping[str, Price] | None = None) -> PriceTable:
    """The list prices, `files` over them, and the prices `given` for this run over all.

    Raises:
        InputError: a file cannot be read or has something that is no price; it names file and field.
    """
    table = PriceTable()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("the price file cannot be read", where=file, got=str(error)) from error
        table = table.over(_parse(text, str(file)))
    return table.over({name: Quote(price, "given for this run") for name, price in (given or {}).items()})


@lru_cache(maxsize=256)
def list_price(spec: str) -> Quote | None:
    """List price of a hosted model such as `openai/gpt-4o-mini`, None if `genai-prices` does not have it.

    Where the price depends on the length of the request, the highest is taken, so that a budget is never exceeded.
    """
    from genai_prices.data_snapshot import get_snapshot

    provider, _, model = spec.partition("/")
    if provider == "openai-compatible":
        return None  # served by anybody, at any price
    try:
        _, found = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    prices = found.get_prices(datetime.datetime.now(datetime.UTC))
    read, drawn = _highest(prices.input_mtok), _highest(prices.output_mtok)
    if read is None or drawn is None:
        return None
    return Quote(Price(read, drawn, _highest(prices.cache_read_mtok)), f"genai-prices {version('genai-prices')}")


def _highest(price: object) -> float | None:
    """A plain price, or the highest of its tiers."""
    from genai_prices.types import TieredPrices

    if isinstance(price, TieredPrices):
        return float(max(price.base, *(tier.price for tier in price.tiers)))
    return None if price is None else float(cast("float", price))


@checked
def parse_price(text: str) -> tuple[str, Price]:
    """`NAME=INPUT/OUTPUT` or `NAME=INPUT/OUTPUT/CACHED`, in US dollars per million tokens.

    >>> parse_price("azure/my-gpt=0.15/0.60")
    ('azure/my-gpt', Price(input=0.15, output=0.6, cached_input=None))

    Raises:
        InputError: it is something else.
    """
    name, equals, numbers = text.rpartition("=")
    try:
        values = [float(number) for number in numbers.split("/")]
    except ValueError:
        values = []
    if not equals or not name.strip() or len(values) not in (2, 3):
        raise InputError(
            "not a price",
            where="--price",
            got=text,
            expected="NAME=INPUT/OUTPUT or NAME=INPUT/OUTPUT/CACHED, in US dollars per million tokens",
            fix="--price azure/my-gpt=0.15/0.60",
        )
    return name.strip(), Price(*values)


def _parse(text: str, where: str) -> dict[str, Quote]:
    try:
        data: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None else f"{where}, line {mark.line + 1}"
        raise InputError("the price file is not YAML", where=place, got=getattr(error, "problem", error)) from error
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"this is not a price file: {first['msg']}",
            where=f"{where}: {place}" if place else where,
            got=repr(first["input"])[:80],
            expected="date: YYYY-MM-DD and models: {name: {input: …, output: …, cached_input: …}}, "
            "in US dollars per million tokens",
        ) from error
    return {
        name.strip(): Quote(Price(entry.input, entry.output, entry.cached_input), where, file.date)
        for name, entry in file.models.items()
    }


def _literal(pattern: str) -> str:
    """Make only `*` special."""
    return pattern.replace("[", "[[]").replace("?", "[?]")
