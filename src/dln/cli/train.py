"""`dln train`: learn the prompts of a network on labelled examples."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import typer

from dln.cli import flags
from dln.cli import train_flags as own
from dln.cli.compose import task_label
from dln.cli.config import RunConfig, config_schema, training_options
from dln.cli.dry_run import dry_run
from dln.cli.flags import examples
from dln.cli.seeds import begin_series, parse_seeds, run_series, with_seed
from dln.cli.session import run_training
from dln.cli.show import note
from dln.cli.sources import lm_settings, load_config
from dln.errors import InputError

__all__ = ["EPILOG", "train"]

EPILOG = examples(
    "dln train --task questions",
    "dln train --csv mail.csv --input message --target kind --steps 10",
    "dln train --task questions --seeds 13,42,25 --run-dir runs/questions-seeds",
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
    train_size: own.TrainSize = None,
    dev_size: own.DevSize = None,
    test_size: own.TestSize = None,
    layers: own.Layers = None,
    prompt: own.InitialPrompt = None,
    prompts_from: own.PromptsFrom = None,
    template: own.TemplateName = None,
    hidden: own.HiddenStart = None,
    hidden_tokens: own.HiddenTokens = None,
    freeze: own.Freeze = None,
    preset: own.Preset = None,
    steps: own.Steps = None,
    seed: own.Seed = None,
    seeds: own.Seeds = None,
    setting: own.Setting = None,
    test: own.Test = None,
    lm: flags.Model = None,
    base_url: flags.BaseUrl = None,
    api_key_env: flags.ApiKeyEnv = None,
    lm_option: flags.ModelOption = None,
    prompt_lm: own.PromptModel = None,
    prompt_base_url: own.PromptBaseUrl = None,
    prompt_api_key_env: own.PromptApiKeyEnv = None,
    hidden_lm: own.HiddenModel = None,
    hidden_base_url: own.HiddenBaseUrl = None,
    hidden_api_key_env: own.HiddenApiKeyEnv = None,
    batch_tokens: own.BatchTokens = None,
    cache: flags.Cache = None,
    no_cache: flags.NoCache = False,
    prices: flags.Prices = None,
    price: flags.PriceOf = None,
    max_calls: flags.MaxCalls = None,
    max_tokens: flags.MaxTokens = None,
    max_minutes: flags.MaxMinutes = None,
    max_usd: flags.MaxUsd = None,
    run_dir: own.NewRunDirectory = None,
    config: flags.Config = None,
    as_json: flags.Json = False,
    estimate: own.DryRun = False,
    print_schema: own.PrintSchema = False,
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
            "hidden": hidden,
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
    series = None if seeds is None else parse_seeds(seeds)
    source = context.get_parameter_source("seed")
    if series is not None and source is not None and source.name == "COMMANDLINE":
        raise InputError("seeds are given twice", where="--seeds", got=f"--seed {seed} and --seeds {seeds}")
    if estimate:
        dry_run(chosen, as_json=as_json)
        if series is not None:
            note(f"note: this is the estimate of one run; {len(series)} seeds take {len(series)} of them")
        return
    directory = _directory(chosen)
    if series is None:
        run_training(chosen, directory, as_json=as_json)
        return
    training_options(chosen)  # a mistake in the options is told before the folder is made
    begin_series(directory, chosen, series)
    run_series(
        directory,
        series,
        lambda seed, path: run_training(with_seed(chosen, seed), path, as_json=as_json),
        as_json=as_json,
    )


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
