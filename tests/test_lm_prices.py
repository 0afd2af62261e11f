"""What tokens cost: prices are linear in tokens, tables override one another, and a bad file is named."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import InputError
from dln.lm.load import ENGINES
from dln.lm.prices import FREE, HOSTED, Price, PriceTable, Quote, list_price, load_prices, parse_price

amounts = st.floats(0, 1e4, allow_nan=False)
tokens = st.integers(0, 10**7)
price_values = st.builds(Price, amounts, amounts, st.none() | amounts)


@given(price_values, tokens, tokens, st.data())
def test_money_is_linear_in_tokens_and_never_more_than_the_dearest(
    price: Price, read: int, drawn: int, data: st.DataObject
):
    cached = data.draw(st.integers(0, read))
    cost = price.usd(read, drawn, cached)
    assert cost >= 0
    assert cost == pytest.approx(price.usd(read, 0, cached) + price.usd(0, drawn))
    assert price.usd(2 * read, 2 * drawn, 2 * cached) == pytest.approx(2 * cost)
    assert cost <= Price(price.dearest_input, price.output).usd(read, drawn) * (1 + 1e-12)


def test_prices_are_per_million():
    assert Price(2.0, 8.0, 0.5).usd(1_000_000, 1_000_000) == 10.0
    assert Price(2.0, 8.0, 0.5).usd(1_000_000, 0, 1_000_000) == 0.5


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number(value: float):
    with pytest.raises(InputError, match=r"Price: the argument .output. cannot be used"):
        Price(1.0, value)


KNOWN = {
    "openai/gpt-5": Price(1.25, 10.0, 0.125),
    "openai/gpt-4.1-nano": Price(0.10, 0.40, 0.025),
    "openai/gpt-4o-mini": Price(0.15, 0.60, 0.075),
    "openai/gpt-3.5-turbo-instruct": Price(1.50, 2.00),
    "openai/davinci-002": Price(2.00, 2.00),
    "openai/o4-mini": Price(1.10, 4.40, 0.275),
    "azure/gpt-4o": Price(2.50, 10.00, 1.25),
    "together/meta-llama/Llama-3.3-70B-Instruct-Turbo": Price(0.88, 0.88),
    "fireworks/accounts/fireworks/models/llama-v3p1-8b-instruct": Price(0.20, 0.20),
}


@pytest.mark.parametrize("spec", KNOWN)
def test_list_prices_name_their_package_and_version(spec: str):
    quote = PriceTable().needed(spec)
    assert quote.price == KNOWN[spec]
    assert re.fullmatch(r"genai-prices \d+\.\d+.*", quote.source)
    assert PriceTable().find(f"{spec}:chat") == PriceTable().find(f"{spec}:completion") == quote


def test_a_dated_snapshot_costs_what_its_family_costs():
    assert PriceTable().find("openai/gpt-4o-mini-2024-07-18") == PriceTable().find("openai/gpt-4o-mini")
    own = PriceTable(({"openai/gpt-4o-mini": Quote(Price(9, 9), "test")},))
    assert own.needed("openai/gpt-4o-mini-2024-07-18").price == Price(9, 9)


def test_of_prices_that_depend_on_length_the_highest_counts():
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import ModelPrice, TieredPrices

    seen = 0
    for provider in get_snapshot().providers:
        if provider.id not in ("openai", "azure", "together", "fireworks"):
            continue
        for model in provider.models:
            prices = model.get_prices(datetime.datetime.now(datetime.UTC))
            assert isinstance(prices, ModelPrice)
            tiers = prices.input_mtok
            quote = list_price(f"{provider.id}/{model.id}")
            if isinstance(tiers, TieredPrices) and quote is not None and model.match.is_match(model.id):
                assert quote.price.input == float(max(tier.price for tier in tiers.tiers)) > float(tiers.base)
                seen += 1
    assert seen


@pytest.mark.parametrize("spec", ["smollm2", "smollm2:chat", "hf/org/name", "vllm/x", "sglang/x", "ollama/x", "fake/1"])
def test_models_on_ones_own_machines_are_free(spec: str):
    assert PriceTable().needed(spec).price == FREE


@pytest.mark.parametrize("prefix", HOSTED)
def test_an_unknown_hosted_model_has_no_price(prefix: str):
    spec = f"{prefix}/never-heard-of"
    assert PriceTable().find(spec) is None
    with pytest.raises(InputError, match=rf"{spec}(.|\n)*--price {spec}=INPUT/OUTPUT"):
        PriceTable().needed(spec)


def test_every_engine_is_either_hosted_or_free():
    for prefix in ENGINES:
        assert (PriceTable().find(f"{prefix}/zzz") is None) == (prefix in HOSTED)


def test_exact_names_beat_patterns_and_later_lists_beat_earlier_ones(tmp_path: Path):
    low, high = tmp_path / "low.yaml", tmp_path / "high.yaml"
    low.write_text(
        "date: 2026-01-01\nmodels:\n  azure/*: {input: 1, output: 1}\n  azure/gpt*: {input: 2, output: 2}\n"
        "  azure/gpt-x: {input: 3, output: 3}\n  openai/gpt-4o: {input: 4, output: 4}\n",
        "utf-8",
    )
    high.write_text("date: 2026-02-01\nmodels:\n  openai/*: {input: 5, output: 5}\n", "utf-8")

    def price(spec: str, *files: Path, **given: Price) -> float:
        found = load_prices(files, given)
        return found.needed(spec).price.input

    assert [price(f"azure/{name}", low) for name in ("other", "gpt-y", "gpt-x")] == [1, 2, 3]
    assert price("openai/gpt-4o", low) == 4
    assert price("openai/gpt-4o", low, high) == 5
    assert load_prices([low, high], {"openai/gpt-4o": Price(6, 6)}).needed("openai/gpt-4o").price.input == 6
    assert load_prices([], {"vllm/x": Price(7, 7)}).needed("vllm/x:chat").price.input == 7, "a rented machine"
    assert load_prices([low]).needed("azure/other").source == str(low)


@given(st.text("ab[]?*!-", min_size=1, max_size=6))
def test_only_a_star_is_special_in_a_pattern(name: str):
    table = PriceTable(({f"azure/{name}": Quote(FREE, "test")},))
    expected = "".join(".*" if letter == "*" else re.escape(letter) for letter in f"azure/{name}")
    for spec in ("azure/" + name.replace("*", "xyz"), "azure/a", "azure/[a]", f"azure/{name}b"):
        assert (table.find(spec) is not None) == bool(re.fullmatch(expected, spec))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a price file"),
        ("models: {}", "date"),
        ("date: 2026-01-01", "models"),
        ("date: soon\nmodels: {}", "date"),
        ("date: 2026-01-01\nmodels: {openai/x: 3}", "models.openai/x"),
        ("date: 2026-01-01\nmodels: {openai/x: {input: 1}}", "models.openai/x.output"),
        ("date: 2026-01-01\nmodels: {openai/x: {input: -1, output: 1}}", "models.openai/x.input"),
        ("date: 2026-01-01\nmodels: {openai/x: {input: 1, output: .nan}}", "models.openai/x.output"),
        ("date: 2026-01-01\nmodels: {openai/x: {input: '1', output: 1}}", "models.openai/x.input"),
        ("date: 2026-01-01\nmodels: {openai/x: {input: 1, output: 1, per: call}}", "models.openai/x.per"),
        ("date: 2026-01-01\nmodels: {'': {input: 1, output: 1}}", "not empty"),
        ("date: 2026-01-01\nmodels: {3: {input: 1, output: 1}}", "name is a text"),
        ("date: 2026-01-01\nmodel: {}", "model"),
        ("date: 2026-01-01\nmodels: [", "line 3|line 2"),
        ("just a text", "not a price file"),
    ],
)
def test_a_bad_price_file_is_named_with_its_field(tmp_path: Path, text: str, says: str):
    file = tmp_path / "prices.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"prices\.yaml") as caught:
        load_prices([file])
    assert re.search(says, str(caught.value))


def test_a_price_file_that_is_not_there_or_not_text(tmp_path: Path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(InputError, match=rf"{name}: the price file cannot be read"):
            load_prices([tmp_path / name])


@given(st.text("abc/:-_.*=", min_size=1).filter(lambda s: s.strip()), amounts, amounts, st.none() | amounts)
def test_a_price_on_the_command_line_is_read_back(name: str, read: float, drawn: float, cached: float | None):
    numbers = "/".join(repr(v) for v in (read, drawn, cached) if v is not None)
    assert parse_price(f"{name}={numbers}") == (name.strip(), Price(read, drawn, cached))


@pytest.mark.parametrize("text", ["", "x", "x=", "x=1", "=1/2", "x=1/2/3/4", "x=a/b", "x=1/-2", "x=nan/1"])
def test_what_is_no_price_is_refused(text: str):
    with pytest.raises(InputError, match=r"price|Price: the argument .(in|out)put. cannot be used"):
        parse_price(text)
