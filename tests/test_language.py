"""Stilted phrases stay out of the pages, the source, the help texts and the report."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from source_trees import nodes_below

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "dln"

PHRASES = r"""
LLMs are stochastic layers of a network
Their prompts are the learnable parameters
as software you can build on
The step is one page
are dealt with
the exact posterior gives ELBO = log p(y|x), any other q is below
what input and output are called
so that a prompt is ranked by what it knows
and not by luck
The best prompts of a run can answer together
A probe finds what the server can score
and the record names it
what a fault does
behind the same protocol
Each token once
candidates that cannot win stop early
half of the 95 % interval
what is *not* gained
Limits, honestly
The dialects of servers were written from their documentation
Most hosted chat models do not score given texts
without posterior weights
Training does not always pay
says so before anything is spent
Two layers cost
three datasets without a text in common
test for the final number only
What the model is really given can be printed
Columns are named, or guessed and said so
accepts either wording in the data and adds
without changing what it says
the layer that goes below it begins as a
so that the step in hand costs only what is
network.json` is the product
Settings that you use often belong into
What surprises people
Label on the same line, or on one of its own
fitted bias takes it out
Twenty examples are noise
Batch accuracy is for watching
Rewrites that a person would sign
is one of a single
coarser
What stands before the slash says how it is reached
in this process; needs nothing
takes the highest rung on
| rung |
servers, as a rule
what is lost |
one that is not among them is censored
nothing but time
Models on machines of one's own
would buy nothing
So a limit is not passed
for what a server counts differently than was estimated
at the first reply
What bad weather does
Replies that are none
Log-probabilities that are none
What asking again cannot mend
## The rooms
The default bears with that
Go on with a run; it ends exactly as if it had never been
Say whether prompt training, and a second layer, can be expected
Serve a model or a trained network, in the OpenAI form
Keep no answers
Where answers of models are kept
Of everything random
Train on at most so many examples
Average over so many draws of the hidden texts
Depth: 1 answers at once, more think first
What hidden layers begin as
others than this machine need a key
0 takes a free one
How clients call the model
Most requests to answer together
Its server; default that of --lm if the engine is the same
cannot be had from the hub
it is not known where this model is served
this option is not possible
at most: what the cache knows already is free
equal requests are asked once
nothing was asked
the table compares tasks with labels
all well
draws scored in two ways agree to
models in this process need the extra `local`
this call took
no two questions share more than
Accuracy after so many steps
a machine of one's own
the same one goes on
the same directory goes on
prompts alone
after against fitted
Shades are parts of a row
framed cells are right answers
The ELBO is the mean of the batch at hand
so it moves with the batch too
A step opens with a click or the Enter key
Prompts of the result
Scored by: hidden texts
ended by
cannot be had
""".strip().splitlines()
"""Searched everywhere, whatever the case."""

ON_PAGES = ("Once that is", "Rivals")
"""Searched on the pages: elsewhere they may be right."""

IN_REPORTS = ("wanted",)
"""Searched in the words of the report's templates, outside of expressions."""


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.*"))]


def texts_of(path: Path) -> Iterator[str]:
    """The words of a file; of Python its strings and comments, adjacent strings joined as the program joins them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    for node in nodes_below(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    # whatever follows a number sign: tokens tell comments from strings, which are read above, but take seconds
    yield " ".join(line.partition("#")[2].lstrip("# ") for line in text.splitlines() if "#" in line)


def found(phrases: list[str] | tuple[str, ...], text: str) -> list[str]:
    """Those of the phrases that a text has, as whole words."""
    text = " ".join(text.split()).lower()
    return [
        phrase
        for phrase in phrases
        if phrase.lower() in text and re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text)
    ]


def help_texts(command: Any, path: tuple[str, ...] = ("dln",)) -> Iterator[tuple[str, str]]:
    """(place, help) of a command, its parameters and its subcommands."""
    yield " ".join(path), f"{command.help or ''} {command.short_help or ''} {command.epilog or ''}"
    for parameter in command.params:
        yield f"{' '.join(path)} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, child in getattr(command, "commands", {}).items():
        yield from help_texts(child, (*path, name))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages(page: Path):
    assert not found([*PHRASES, *ON_PAGES], page.read_text(encoding="utf-8"))


def test_source():
    folders = (SOURCE, *(ROOT / name for name in ("tests", "tools", "examples", "benchmarks")))
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".yaml", ".j2"}]
    files.remove(Path(__file__))
    assert len(files) > 200
    places = {
        path.relative_to(ROOT).as_posix(): phrases
        for path in files
        if (phrases := sorted({phrase for text in texts_of(path) for phrase in found(PHRASES, text)}))
    }
    assert not places


def test_help_of_every_command():
    from dln.cli.main import app

    texts = dict(help_texts(typer.main.get_command(app)))
    assert {"dln", "dln train", "dln train steps", "dln bench paper"} <= set(texts)
    assert not {place: phrases for place, text in texts.items() if (phrases := found(PHRASES, text))}


def test_templates_of_the_report():
    templates = sorted((SOURCE / "view" / "templates").glob("*.j2"))
    assert templates
    for template in templates:
        words = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|<[^>]*>", " ", template.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not found(IN_REPORTS, words), template.name


def test_the_search_finds_every_phrase():
    for phrase in (*PHRASES, *ON_PAGES, *IN_REPORTS):
        assert phrase in found([phrase], f"One, {phrase.upper().replace(' ', chr(10) + '    ')}. Two.")
        assert not found([phrase], f"un{phrase}ly")
