"""`dln bench`: tables of cells (task × method × seed), computed once, resumable, and written into Markdown pages.

`paper` compares methods on test examples, `labels` compares them by the number of training examples, and `ablation`
compares training options on held-out dev examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dln.cli import flags
from dln.cli.config import ENGINE, LIMITS, PRICES, SIZES, RunConfig
from dln.cli.flags import names_of, seeds_of
from dln.cli.output import examples, note
from dln.cli.sources import configured
from dln.cli.tables import Table, checked_places, load_tasks, make_labels, make_table
from dln.data.paper import with_published_rule
from dln.errors import InputError
from dln.experiments.encoders import PACKAGE, installed_encoder
from dln.experiments.labels_needed import SIZES as SIZES_NEEDED
from dln.experiments.labels_needed import protocol_of
from dln.experiments.method import DevelopmentProtocol, EvaluationProtocol
from dln.experiments.methods import BASE, FAMILIES, METHODS, in_order, variants, with_base
from dln.experiments.summary import summarize
from dln.experiments.tables import ablation_markdown, markdown

__all__ = ["ABLATION_EPILOG", "DEFAULT_METHODS", "LABELS_EPILOG", "PAPER_EPILOG", "ablation", "app", "labels", "paper"]

METHODS_HELP = f"Comma-separated methods: {', '.join(METHODS)}; and {FAMILIES} of any size."


NLU, BIG_BENCH = "mpqa,trec,subj,disaster,airline", "hyperbaton,navigate,date,logic7"
PAPER_NINE = f"{NLU},{BIG_BENCH}"
DEFAULT_METHODS = (
    "majority,tfidf-lr,encoder-lr,0-shot,0-shot-line,0-shot-fitted,label-words,word-readout,icl-5,icl-5-fitted,kate-5,cot,ape-15,ape-400,cot+ape,"
    "random-demonstrations,dln-1-paper,dln-1-labels,dln-1,dln-1-ensemble,dln-2-fix,dln-2-tune,dln-2,dln-3"
)
SHARED = f"set lm {ENGINE} {PRICES} {LIMITS} run_dir"
"""Settings of both commands, besides the data. Each table has a cache of its own in its directory."""

Methods = Annotated[str, typer.Option("--methods", metavar="A,B,…", help=METHODS_HELP)]
EqualTokens = Annotated[
    int | None, typer.Option("--equal-tokens", min=1, metavar="N", help="Training budget of every method, in tokens.")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="words|NAME|DIR",
        help=f"Sentence encoder: words, {PACKAGE} or a sentence-transformers model "
        "(default: words for kate-K, the package for encoder-lr).",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Number of concurrent cells (default: 4 for models behind a server, 1 in this process).",
        rich_help_panel=flags.MODEL,
    ),
]

PAPER_EPILOG = examples(
    "dln bench paper --data data",
    "dln bench paper --tasks mpqa,subj --methods 0-shot,icl-5,dln-1 --seeds 13",
    "dln bench paper --lm vllm/llama --base-url http://localhost:8000/v1 --jobs 8 --max-usd 5",
    "dln bench paper --tasks questions --methods 0-shot-line,random-demonstrations,dln-1 --equal-tokens 200000",
    "dln bench paper --data data --write docs/results.md --write README.md",
)
ABLATION_EPILOG = examples(
    "dln bench ablation --data data",
    "dln bench ablation --data data --tasks mpqa,trec --variants k6,k24,batch-40 --seeds 13",
    "dln bench ablation --tasks questions --variants variants.yaml --set steps=4",
    "dln bench ablation --data data --variants all --write docs/results.md",
)

LABELS_METHODS = "dln-1,label-words,word-readout,encoder-lr,tfidf-lr"
LABELS_EPILOG = examples(
    "dln bench labels --data data",
    "dln bench labels --tasks questions --sizes 16,64,256 --methods dln-1,tfidf-lr --seeds 13",
    "dln bench labels --data data --write docs/results.md",
)

app = typer.Typer(
    help="Compare methods under one protocol.", epilog=PAPER_EPILOG, no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def group() -> None:
    """Compare methods under one protocol."""


@app.command("paper", epilog=PAPER_EPILOG)
@configured("data leaky", SIZES, SHARED, train_size=400, dev_size=128, test_size=250, run_dir="bench")
def paper(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = PAPER_NINE,
    methods: Methods = DEFAULT_METHODS,
    seeds: flags.Seeds = "13,42,25",
    equal_tokens: EqualTokens = None,
    encoder: Encoder = None,
    jobs: Jobs = None,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Reproduce the paper's tables: methods by tasks, with seeds, intervals, costs and paired tests.

    Cells that the output directory holds are not computed again. Answers to the paper's tasks are judged by the paper's
    rule, the metric `paper`.
    """
    config, directory, options = _prepared(config)
    if options.pop("preset", "default") != "default":
        note("note: every row of the table has its own preset; the configured one is not used")
    wanted, added = in_order(_methods(methods, DEFAULT_METHODS, encoder))
    if added:
        note(f"note: added, because other methods need them: {', '.join(added)}")
    numbers, data = seeds_of(seeds or ""), config.data
    places = checked_places(write, region, "paper" if equal_tokens is None else "equal tokens")
    abouts = {method.name: method.about for method in wanted}
    sizes = (data.train_size or 0, data.dev_size or 0, data.test_size or 0)
    table = Table(
        tasks=list(map(with_published_rule, load_tasks(names_of(tasks or "", "--tasks"), config))),
        methods=wanted,
        seeds=numbers,
        protocol=EvaluationProtocol(*sizes, options, equal_tokens, encoder, data.leaky, rule="paper"),
        summarize=summarize,
        show=lambda summary: markdown(summary, abouts),
        title="Test accuracy",
        places=places,
    )
    make_table(context, table, config, directory, jobs, as_json=as_json)


@app.command("labels", epilog=LABELS_EPILOG)
@configured("data leaky", "dev_size test_size", SHARED, dev_size=128, test_size=250, run_dir="labels")
def labels(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = NLU,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="N,N,…", help="Comma-separated numbers of training examples.")
    ] = ",".join(map(str, SIZES_NEEDED)),
    methods: Methods = LABELS_METHODS,
    seeds: flags.Seeds = "13,42,25",
    encoder: Encoder = None,
    jobs: Jobs = None,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Compare methods by the number of training examples, and their calibration at the largest number.

    The dev set grows with the train set; --dev-size is for 400 training examples. Cells of each number are in a
    directory of their own below the output directory, and those that it holds are not computed again.
    """
    config, directory, options = _prepared(config)
    options.pop("preset", None)
    wanted, _ = in_order(_methods(methods, LABELS_METHODS, encoder))
    numbers = _sizes(sizes)
    dev, test = config.data.dev_size or 0, config.data.test_size or 0
    whole = EvaluationProtocol(SIZES_NEEDED[-1], dev, test, options, None, encoder, config.data.leaky)
    make_labels(
        context,
        config,
        directory,
        tasks=load_tasks(names_of(tasks or "", "--tasks"), config),
        methods=wanted,
        seeds=seeds_of(seeds or ""),
        protocols={n: protocol_of(whole, n) for n in numbers},
        places=checked_places(write, region, "labels"),
        jobs=jobs,
        as_json=as_json,
    )


def _sizes(text: str) -> list[int]:
    """Rising numbers of training examples.

    Raises:
        InputError: one of them is no number.
    """
    names = names_of(text, "--sizes")
    wrong = [name for name in names if not name.isdecimal() or int(name) < 1]
    if wrong:
        raise InputError("not a number of training examples", where="--sizes", got=wrong[0], expected="16,32,64")
    return sorted(map(int, names))


def _methods(given: str, usual: str, encoder: str | None) -> list[str]:
    """The names of the methods; of the usual ones, those that can run here."""
    names = names_of(given, "--methods")
    if given == usual and "encoder-lr" in names and encoder is None and installed_encoder() is None:
        names.remove("encoder-lr")
        note("note: encoder-lr is left out, because its encoder is not installed: pip install 'dln[encoder]'")
    return names


@app.command("ablation", epilog=ABLATION_EPILOG)
@configured(
    *("data leaky train_size dev_size layers preset", SHARED),
    **{"train_size": 400, "dev_size": 128, "layers": 1, "preset": "default", "run_dir": "ablation"},
)
def ablation(
    context: typer.Context,
    config: RunConfig,
    tasks: flags.TaskNames = NLU,
    chosen_variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="FILE|A,B,…",
            help="YAML file of name: {option: value}, comma-separated built-in variants, or all of these.",
        ),
    ] = "all",
    seeds: flags.Seeds = "13,42,25",
    judge_size: Annotated[
        int,
        typer.Option(
            "--judge-size", min=1, help="Maximum number of held-out dev examples.", rich_help_panel=flags.DATA
        ),
    ] = 250,
    equal_tokens: EqualTokens = None,
    jobs: Jobs = None,
    write: flags.Page = None,
    region: flags.Region = None,
    as_json: flags.Json = False,
) -> None:
    """Change one training option at a time; results are measured on half of the dev set, never on test examples.

    Cells that the output directory holds are not computed again.
    """
    config, directory, options = _prepared(config)
    preset, layers = str(options.pop("preset")), config.network.layers
    candidates = variants(chosen_variants, preset, layers)
    numbers, data = seeds_of(seeds or ""), config.data
    places = checked_places(write, region, "ablation")
    loaded = load_tasks(names_of(tasks or "", "--tasks"), config, least_dev=240)
    methods, same = with_base(candidates, options, loaded[0], preset, layers)
    if same:
        note(f"note: left out, because they equal the base: {', '.join(same)}")
    pairs = [(BASE, method.name) for method in methods[1:]]
    abouts = {method.name: method.about for method in methods}
    sizes = (data.train_size or 0, data.dev_size or 0, judge_size)
    table = Table(
        tasks=loaded,
        methods=methods,
        seeds=numbers,
        protocol=DevelopmentProtocol(*sizes, options, equal_tokens, leaky=data.leaky),
        summarize=lambda cells: summarize(cells, pairs),
        show=lambda summary: ablation_markdown(summary, abouts),
        title="Accuracy on held-out dev examples",
        judged="held-out dev",
        places=places,
    )
    make_table(context, table, config, directory, jobs, as_json=as_json)


def _prepared(config: RunConfig) -> tuple[RunConfig, Path, dict[str, Any]]:
    """The configuration with the table's own cache, its directory, and the training options."""
    directory = Path(config.run_dir or "")
    lm = config.lm.model_copy(update={"cache": True, "cache_path": str((directory / "answers.sqlite").absolute())})
    return config.model_copy(update={"lm": lm}), directory, dict(config.options)
