"""`dln train`: learn the prompts of a network on labelled examples."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dln.cli import complete, flags
from dln.cli.compose import task_label
from dln.cli.config import RunConfig, config_schema
from dln.cli.dry_run import dry_run
from dln.cli.flags import examples
from dln.cli.session import run_training
from dln.cli.sources import lm_settings, load_config
from dln.errors import InputError

__all__ = ["EPILOG", "train"]

NETWORK, TRAINING = "Network", "Training"

EPILOG = examples(
    "dln train --task questions",
    "dln train --csv mail.csv --input message --target kind --steps 10",
    "dln train --task subj --data data --layers 2 --max-minutes 30",
    "dln train --task mail.csv --set batch_size=32 --set inference.num_prompts=12",
    "dln train --task questions --lm vllm/Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1",
    "dln train --task mail.csv --lm openai/gpt-4o-mini --max-usd 5 --dry-run",
)


def train(
    context: typer.Context,
    task: flags.OneTask = None,
    csv: flags.Csv = None,
    jsonl: flags.Jsonl = None,
    input_column: flags.Input = None,
    target: flags.Target = None,
    free_form: flags.FreeForm = None,
    instruction: flags.Instruction = None,
    data: flags.DataDirectory = None,
    leaky: flags.Leaky = None,
    train_size: Annotated[
        int | None, typer.Option(min=1, help="Train on at most so many examples.", rich_help_panel=flags.DATA)
    ] = None,
    dev_size: Annotated[
        int | None, typer.Option(min=1, help="Validate on at most so many.", rich_help_panel=flags.DATA)
    ] = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, help="Test on at most so many.", rich_help_panel=flags.DATA)
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1, envvar="DLN_LAYERS", help="Depth: 1 answers at once, more think first.", rich_help_panel=NETWORK
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Initial prompt, once per layer.", rich_help_panel=NETWORK),
    ] = None,
    prompts_from: Annotated[
        str | None,
        typer.Option(metavar="FILE|RUN", help="Initial prompts from a file, network or run.", rich_help_panel=NETWORK),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Template, once per layer.",
            autocompletion=complete.templates,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    hidden_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest hidden text, in tokens.", rich_help_panel=NETWORK)
    ] = None,
    freeze: Annotated[
        list[int] | None, typer.Option(metavar="LAYER", help="Do not train this layer.", rich_help_panel=NETWORK)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_PRESET",
            metavar="NAME",
            help="Options to start from: default or paper.",
            autocompletion=complete.presets,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, envvar="DLN_STEPS", help="Updates.", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(envvar="DLN_SEED", help="Of everything random.", rich_help_panel=TRAINING)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any training option, as in inference.num_hidden=3.",
            autocompletion=complete.settings,
            rich_help_panel=TRAINING,
        ),
    ] = None,
    test: Annotated[
        bool | None,
        typer.Option("--test/--no-test", help="Evaluate on the test examples at the end.", rich_help_panel=TRAINING),
    ] = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    prompt_lm: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_PROMPT_LM",
            metavar="SPEC",
            help="The model that proposes prompts.",
            autocompletion=complete.models,
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    prompt_base_url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DLN_PROMPT_BASE_URL",
            metavar="URL",
            help="Its server; default that of --lm if the engine is the same.",
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    prompt_api_key_env: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_PROMPT_API_KEY_ENV",
            metavar="NAME",
            help="Its key's environment variable.",
            autocompletion=complete.key_variables,
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    hidden_lm: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_HIDDEN_LM",
            metavar="SPEC",
            help="The model that edits hidden texts.",
            autocompletion=complete.models,
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    hidden_base_url: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DLN_HIDDEN_BASE_URL",
            metavar="URL",
            help="Its server; default that of --lm if the engine is the same.",
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    hidden_api_key_env: Annotated[
        str | None,
        typer.Option(
            envvar="DLN_HIDDEN_API_KEY_ENV",
            metavar="NAME",
            help="Its key's environment variable.",
            autocompletion=complete.key_variables,
            rich_help_panel=flags.MODEL,
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens per batch of the in-process engine.", rich_help_panel=flags.MODEL),
    ] = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    run_dir: Annotated[
        str | None, typer.Option(envvar="DLN_RUN_DIR", metavar="DIR", help="Default: runs/<task>-<layers>l-<time>.")
    ] = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
    estimate: Annotated[bool, typer.Option("--dry-run", help="Estimate the cost and stop.")] = False,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Print the JSON Schema of --config files and stop.")
    ] = False,
) -> None:
    """Train the prompts of a network, evaluate it, and write a report."""
    if print_schema:
        sys.stdout.write(json.dumps(config_schema(), indent=2) + "\n")
        return
    given: dict[str, Any] = {
        "task": {
            "name": flags.named_task(context, task, csv, jsonl),
            "csv": csv,
            "jsonl": jsonl,
            "input": input_column,
            "target": target,
            "free_form": free_form,
            "instruction": instruction,
        },
        "data": {
            "directory": data,
            "leaky": leaky,
            "train_size": train_size,
            "dev_size": dev_size,
            "test_size": test_size,
        },
        "lm": {
            **lm_settings(lm, base_url, api_key_env, lm_option, prices, price, cache, no_cache),
            "prompt_lm": {"spec": prompt_lm, "base_url": prompt_base_url, "api_key_env": prompt_api_key_env},
            "hidden_lm": {"spec": hidden_lm, "base_url": hidden_base_url, "api_key_env": hidden_api_key_env},
            "batch_tokens": batch_tokens,
        },
        "network": {
            "layers": layers,
            "prompts": prompt,
            "prompts_from": prompts_from,
            "templates": template,
            "hidden_tokens": hidden_tokens,
            "freeze": freeze,
        },
        "options": {"preset": preset, "steps": steps, "seed": seed},
        "budget": {
            "max_calls": max_calls,
            "max_tokens": max_tokens,
            "max_minutes": max_minutes,
            "max_usd": max_usd,
        },
        "run_dir": run_dir,
        "test": test,
    }
    chosen = load_config(given, config, setting or ())
    if estimate:
        dry_run(chosen, as_json=as_json)
        return
    run_training(chosen, _directory(chosen), as_json=as_json)


def _directory(config: RunConfig) -> Path:
    if config.run_dir is not None:
        if not config.run_dir.strip():
            raise InputError("the run directory has no name", where="--run-dir", fix="--run-dir runs/first")
        return Path(config.run_dir)
    name = f"{task_label(config)}-{config.network.layers}l-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = Path("runs") / name, 1
    while path.exists():  # two runs that began in the same second
        n += 1
        path = Path("runs") / f"{name}-{n}"
    return path
