"""Trained networks for use elsewhere: chat requests, a Python module, a promptfoo project, a Hugging Face folder.

In the texts, {input} stands for the input of the network, {output 1} for the output of layer 1. Of an ensemble, forms
of one network take the member with the largest weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from dln.nn import LayerInput, PromptedLayer, Sequential
from dln.nn.ensemble import AnyNetwork, Ensemble, best_of
from dln.nn.readout import Readout, readout_from_state
from dln.train.events import Evaluated, Event, ResultRecord, Started
from dln.train.run import of_kind

__all__ = [
    "PROMPT_FORMS",
    "PromptForm",
    "anthropic_request",
    "below",
    "hugging_face_files",
    "layer_records",
    "model_card",
    "openai_request",
    "prompt_text",
    "promptfoo_files",
    "python_module",
    "readable",
]

PromptForm = Literal["text", "json", "openai", "anthropic", "python"]
PROMPT_FORMS: tuple[PromptForm, ...] = ("text", "json", "openai", "anthropic", "python")
"""Forms that hold nothing but the prompts."""

LABEL_TOKENS = 16
"""Length of an answer that is to be a label, where a model writes it freely."""


def prompt_text(trained: AnyNetwork, form: PromptForm) -> str:
    """The prompts of a network as one text.

    Args:
        trained: the network.
        form: text: to read; json: data; openai, anthropic: bodies of chat requests; python: a module without
            dependencies.
    """
    if form == "text":
        return readable(trained)
    if form == "python":
        return python_module(best_of(trained))
    if form == "json":
        members = zip(trained.weights, trained.members, strict=True) if isinstance(trained, Ensemble) else ()
        several = [{"weight": float(weight), "layers": layer_records(member)} for weight, member in members]
        document: Any = {"members": several} if several else {"layers": layer_records(best_of(trained))}
    else:
        request = openai_request if form == "openai" else anthropic_request
        document = [request(layer) for layer in layer_records(best_of(trained))]
    return json.dumps(document, indent=2, ensure_ascii=True)


def layer_records(network: Sequential) -> list[dict[str, Any]]:
    """Every layer as plain data; `context` is the text for the model, with names in braces for what is filled in."""
    rows: list[dict[str, Any]] = []
    for number, layer in enumerate(network.prompted, 1):
        (context,) = layer.contexts([LayerInput("{input}", below(number))])
        row = {"layer": number, "model": layer.lm.name, "prompt": layer.prompt.to_json(), "context": context}
        rows.append({**row, **_decoding(layer)})
    return rows


def below(number: int) -> str:
    """The placeholder for what a layer reads."""
    return "{input}" if number == 1 else f"{{output {number - 1}}}"


def _decoding(layer: PromptedLayer) -> dict[str, Any]:
    """How an output is read from the model."""
    choice = layer.classifier
    if choice is not None:
        stop = list(layer.template.stop)
        bias = {name: float(b) for name, b in zip(choice.names, choice.bias, strict=True)}
        return {"labels": bias, "readout": choice.readout.state(), "max_tokens": LABEL_TOKENS, "stop": stop}
    if layer.writer is not None:
        sampling = layer.writer.sampling
        return {"max_tokens": sampling.max_tokens, "stop": list(sampling.stop or layer.template.stop)}
    return {}


def openai_request(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request for one layer to a chat API of OpenAI's form."""
    body: dict[str, Any] = {"model": layer["model"], "messages": [{"role": "user", "content": layer["context"]}]}
    body |= {name: layer[name] for name in ("max_tokens", "stop") if layer.get(name)}
    return {**body, "temperature": 0}


def anthropic_request(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the form of Anthropic's Messages API, which refuses stop sequences of white space alone."""
    body: dict[str, Any] = {
        "model": layer["model"],
        "max_tokens": layer.get("max_tokens") or LABEL_TOKENS,
        "messages": [{"role": "user", "content": layer["context"]}],
    }
    stop = [text for text in layer.get("stop") or () if text.strip()]
    return {**body, **({"stop_sequences": stop} if stop else {}), "temperature": 0}


def readable(trained: AnyNetwork) -> str:
    """Every prompt with its context, and what the output layer reads."""
    parts: list[str] = []
    weights = trained.weights if isinstance(trained, Ensemble) else (None,)
    members: Sequence[Sequential] = trained.members if isinstance(trained, Ensemble) else (best_of(trained),)
    for place, (member, weight) in enumerate(zip(members, weights, strict=True), 1):
        if weight is not None:
            parts.append(f"==== member {place} of {len(members)}, weight {weight:.3f} ====")
        for layer in layer_records(member):
            parts.append(f"---- layer {layer['layer']} of {len(member)}, {layer['model']} ----\n{layer['context']}")
            if "labels" in layer:
                parts.append(_readout_text(layer["labels"], readout_from_state(layer["readout"], "network")))
    return "\n\n".join(parts)


def _readout_text(labels: Mapping[str, float], readout: Readout) -> str:
    """The labels with the words that speak for and against them, or with their bias."""
    evidence = "\n".join(map(str, readout.evidence(list(labels))))
    if evidence:
        return f"---- labels, with the words whose probability speaks for and against them ----\n{evidence}"
    fitted = [f"{name} {bias:+.2f}" for name, bias in labels.items()]
    return f"---- labels, with their fitted bias in nats ----\n{', '.join(fitted)}"


_INPUT, _HIDDEN = "\ue000", "\ue001"
"""Placeholders that occur in no text: private-use characters."""

_MODULE = '''"""Prompts trained by dln; needs no other package.

complete(prompt, max_tokens, stop) -> str asks a language model, with temperature 0.
"""

LABELS = {labels!r}


def predict(text, complete):
    """The answer for one input; an answer that starts with a label is that label."""
{steps}
    answer = output.strip()
    return next((label for label in LABELS if answer.startswith(label)), answer)
'''


def python_module(network: Sequential) -> str:
    """A Python module that fills in the prompts and calls a function of the user's."""
    steps = ["    output = text"]
    for layer in network.prompted:
        (context,) = layer.contexts([LayerInput(_INPUT, _HIDDEN)])
        names = {_INPUT: "text", _HIDDEN: "output"}
        pieces: list[str] = [""]
        for character in context:
            if character in names:
                pieces += [names[character], ""]
            else:
                pieces[-1] += character
        joined = " + ".join(repr(piece) if i % 2 == 0 else piece for i, piece in enumerate(pieces) if piece)
        decoding = _decoding(layer)
        call = f"complete(prompt, {decoding.get('max_tokens', LABEL_TOKENS)}, {decoding.get('stop', [])!r}).strip()"
        steps += [f"    prompt = {joined}", f"    output = {call}"]
    # longer labels first: one may begin with another
    labels = sorted(network.labels or (), key=len, reverse=True)
    return _MODULE.format(labels=labels, steps="\n".join(steps)).rstrip()


_PROVIDER = '''"""The network of promptfooconfig.yaml, in process: `pip install dln`; promptfoo calls `call_api`."""

from functools import cache

import dln

NETWORK = {network!r}


@cache
def network():
    """The trained network with the models that its file names."""
    return dln.load_network(NETWORK)


def call_api(prompt, options, context):
    """The answer of the network for the input of a test."""
    return {{"output": network().predict(context["vars"]["input"]).label}}
'''


def promptfoo_files(network: str, examples: Sequence[tuple[str, str]], labelled: bool, about: str) -> dict[str, str]:
    """A promptfoo project: the network as provider, examples as tests.

    Args:
        network: path of the network's file or run.
        examples: (input, target) of the test set.
        labelled: whether an answer has to equal its target; a free answer has to contain it.
        about: what the tests are of.
    """
    kind = "equals" if labelled else "icontains"
    config = {
        "description": about,
        "prompts": ["{{input}}"],
        "providers": ["file://provider.py"],
        "tests": [
            {"vars": {"input": _nunjucks(x)}, "assert": [{"type": kind, "value": _nunjucks(y)}]} for x, y in examples
        ],
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=116)
    schema = "# yaml-language-server: $schema=https://promptfoo.dev/config-schema.json\n"
    return {"promptfooconfig.yaml": schema + text, "provider.py": _PROVIDER.format(network=network)}


def _nunjucks(text: str) -> str:
    """A text that promptfoo's template engine leaves as it is."""
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return text
    return "{% raw %}" + text.replace("{% endraw %}", "{% endraw %}{{ '{% endraw %}' }}{% raw %}") + "{% endraw %}"


def hugging_face_files(trained: AnyNetwork, events: Sequence[Event], name: str, saved: str) -> dict[str, str]:
    """A folder for the Hugging Face Hub: model card, network, prompts, and a module without dependencies.

    Args:
        trained: the network.
        events: of its run.
        name: of the model.
        saved: the text of the network's file.
    """
    return {
        "README.md": model_card(trained, events, name),
        "network.json": saved,
        "prompts.txt": readable(trained) + "\n",
        "predict.py": python_module(best_of(trained)) + "\n",
    }


def model_card(trained: AnyNetwork, events: Sequence[Event], name: str) -> str:
    """A model card with the numbers that the run measured, and none where it measured none."""
    (started,) = of_kind(events, Started)[:1] or (None,)
    (tested,) = of_kind(events, Evaluated)[-1:] or (None,)
    network = best_of(trained)
    task = name if started is None else started.task
    models = list(dict.fromkeys(layer.lm.name for layer in network.prompted))
    kind = "text-classification" if network.labels else "text-generation"
    header: dict[str, Any] = {
        "library_name": "dln",
        "pipeline_tag": kind,
        "tags": ["dln", "deep-language-network", "prompt-optimization"],
    }
    if tested is not None:
        result = {"type": "accuracy", "name": f"{tested.after.metric} ({tested.split})", "value": tested.after.accuracy}
        measured = {"task": {"type": kind}, "dataset": {"name": task, "type": task}, "metrics": [result]}
        header["model-index"] = [{"name": name, "results": [measured]}]
    parts = [
        f"# {name}",
        f"Prompts of a {len(network)}-layer language program for `{task}`, trained by dln {_version(started)}. "
        f"The weights of the language model ({', '.join(f'`{model}`' for model in models)}) are not part of this "
        "folder.",
        "## Results",
        "This run was not evaluated on test examples." if tested is None else _measured(tested),
        "## Use",
        '```python\nimport dln\n\nnetwork = dln.load_network("network.json")\nprint(network.predict("…"))\n```',
        "`predict.py` needs no package: it fills in the prompts and calls a function of yours.",
        "## Prompts",
        _fenced(readable(trained)),
        "## Training",
        _training(started),
    ]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(parts) + "\n"


def _version(started: Started | None) -> str:
    return "" if started is None else started.versions.get("dln", "")


def _measured(tested: Evaluated) -> str:
    rows = [("initial prompts", tested.before), ("initial prompts, output layer fitted", tested.fitted)]
    rows += [("trained", tested.after), *((baseline.name, baseline.result) for baseline in tested.baselines)]
    lines = [f"| on {tested.after.n} {tested.split} examples | {tested.after.metric} | 95 % CI |", "|---|--:|--:|"]
    lines += [_row(label, result) for label, result in rows if result is not None]
    if tested.p_value is not None:
        lines.append(f"\nPaired test of trained against initial prompts: p = {tested.p_value:.3g}.")
    return "\n".join(lines)


def _row(label: str, result: ResultRecord) -> str:
    return f"| {label} | {100 * result.accuracy:.1f} | {100 * result.low:.1f} to {100 * result.high:.1f} |"


def _training(started: Started | None) -> str:
    if started is None:
        return "The run is not known."
    options = started.options
    return (
        f"{started.train_size} examples to train on, {started.dev_size} to select on, {started.steps} steps, "
        f"preset `{options.get('preset')}`, seed {options.get('seed')}."
    )


def _fenced(text: str) -> str:
    """A code block that the text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
