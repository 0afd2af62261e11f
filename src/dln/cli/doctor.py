"""`dln doctor`: whether everything that a run needs is there, and what a model's server can do."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from dln.cli import flags
from dln.cli.checks import Check, environment_checks, model_checks
from dln.cli.endpoints import price_table, wanted_models
from dln.cli.flags import examples
from dln.cli.show import out, print_record, safe
from dln.cli.sources import lm_settings, load_config
from dln.errors import ProviderError

__all__ = ["EPILOG", "doctor"]

EPILOG = examples(
    "dln doctor",
    "dln doctor --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
    "dln doctor --lm openai/gpt-4o-mini --api-key-env MY_KEY --json",
)

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def doctor(
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
) -> None:
    """Check the environment and the models: key, endpoint, model, tokenizer, what can be scored, speed, price.

    A model on a server is asked a few dozen small questions. The exit code is 3 if a check failed.
    """
    chosen = load_config(
        {"lm": lm_settings(lm, base_url, api_key_env, lm_option, prices, price, None, False)}, config
    ).lm
    found = [_show(check, as_json) for check in environment_checks()]
    table = price_table(chosen)
    for wanted in wanted_models(chosen):
        found += [_show(check, as_json) for check in model_checks(wanted, table)]
    if not as_json:
        out().print(_summary(found))
    if any(check.state == "failed" for check in found):
        raise typer.Exit(ProviderError.exit_code)


def _show(check: Check, as_json: bool) -> Check:
    """At once: the next check may take a while."""
    if as_json:
        print_record({"kind": "check", **check.to_dict()})
        return check
    state = f"[{_COLOURS[check.state]}]{check.state:<7}[/]"
    name = f"{check.of}: {check.name}" if check.of else check.name
    out().print(f"{state}  {safe(name)}: {safe(check.says)}", soft_wrap=True)
    if check.fix is not None and check.state != "ok":
        out().print(f"         try: {safe(check.fix)}", soft_wrap=True)
    return check


def _summary(found: Sequence[Check]) -> str:
    failed, warned = (sum(check.state == state for check in found) for state in ("failed", "warning"))
    if failed:
        return f"[red]{failed} of {len(found)} checks failed[/]"
    return f"[green]all well[/], {warned} warnings" if warned else "[green]all well[/]"
