"""All methods of the comparison: trained networks, the table of methods by name, and variants for an ablation.

A variant is a preset with named changes of its options. Variants are read from YAML; `variants.yaml` beside this
module has the built-in ones and is an example.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from dln.arguments import unknown_name
from dln.data import Task
from dln.errors import BudgetReached, InputError
from dln.experiments.baselines import (
    ChainOfThought,
    InContext,
    Induction,
    Majority,
    Nearest,
    WordRegression,
    ZeroShot,
    draw_examples,
)
from dln.experiments.linear import EncoderRegression, TfidfRegression
from dln.experiments.method import SAME_LINE, Learnt, Method, Setup, fitted, output_layer, read_words, recipe_of
from dln.nn import LayerInput, Sequential
from dln.nn.ensemble import Ensemble, best_of, members_of
from dln.nn.template import load_template
from dln.random import Key
from dln.train import Options, fit, resolve_options
from dln.train.estimate import affordable, check_room, estimate, layer_sizes, reduced
from dln.train.layout import Hidden, copyable, deepened, staged, standard_network, usual_template
from dln.train.options import dotted_names, nested

__all__ = [
    "BASE",
    "FAMILIES",
    "METHODS",
    "LayerByLayer",
    "RandomDemonstrations",
    "Trained",
    "builtin_variants",
    "in_order",
    "method_named",
    "read_variants",
    "variants",
    "with_base",
]


@dataclass(frozen=True)
class Trained:
    """A network trained end to end.

    Args:
        depth: L.
        name: in the table.
        preset: of the training options.
        after: methods that must be finished before.
        changes: changes to the options of the preset.
        template: of the last layer; empty for the preset's.
        hidden: initialization of hidden layers; None for the usual one (see `standard_network`).
        what: description; empty for depth and preset.
    """

    depth: int
    name: str
    preset: str = "default"
    after: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template: str = ""
    hidden: Hidden | None = None
    what: str = ""

    @property
    def about(self) -> str:
        """A description in one sentence."""
        layers = "one layer" if self.depth == 1 else f"{self.depth} layers, end to end"
        return self.what or f"{layers}, preset {self.preset}"

    def __call__(self, setup: Setup) -> Learnt:
        """Train on train, select on dev."""
        network = standard_network(
            setup.task, setup.lm, self.depth, preset=self.preset, hidden=self.hidden, last_template=self.template
        )
        return trained(setup, network, self.preset, dict(self.changes))


@dataclass(frozen=True)
class LayerByLayer:
    """Two layers whose second one starts as a trained single layer (paper, Table 9).

    The first layer starts as a copy of its input, so that the network starts as the single layer. If the task names
    its steps, it starts as the first of them; if more than a tenth of the inputs have several lines or are long, it
    starts as in the paper.

    Args:
        name: in the table.
        tune_last: whether the second layer is trained further.
        start: the method that trains the single layer.
        preset: of the training options.
    """

    name: str
    tune_last: bool
    start: str = "dln-1"
    preset: str = "default"

    @property
    def after(self) -> tuple[str, ...]:
        """The method that trains the single layer."""
        return (self.start,)

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return f"two layers, the second from {self.start}" + (" and trained further" if self.tune_last else ", fixed")

    def __call__(self, setup: Setup) -> Learnt:
        """Train the first layer, and the second one with `tune_last`."""
        found = setup.known[self.start].network
        if found is None:
            raise InputError("this method needs a trained layer to start from", where=self.name, got=self.start)
        single = best_of(found)
        lines = [] if staged(2, setup.task) else copyable(setup.task.train.inputs)
        if lines:
            order = Key(setup.seed).child("copied").generator().permutation(len(lines))
            network = deepened(single, [lines[int(i)] for i in order])
        else:
            network = self._on_top(setup, single)
        steps = {} if self.tune_last else {"inference": {"layer_steps": [1, 0]}}
        learnt = trained(setup, network, self.preset, steps)
        return replace(learnt, notes=(*learnt.notes, f"training tokens without those of {self.start}"))

    def _on_top(self, setup: Setup, single: Sequential) -> Sequential:
        """The standard first layer below the single layer, whose examples get the texts that the first layer writes."""
        network = standard_network(setup.task, setup.lm, 2, preset=self.preset)
        first, prompt = network.prompted[0], single.prompted[-1].prompt
        shown = prompt.demonstrations
        read = [LayerInput(d.x, d.x) for d in shown]
        written = first.sample(Key(setup.seed).child("thoughts"), read, temperature=0.0) if shown else []
        examples = tuple(replace(d, h=text.text) for d, text in zip(shown, written, strict=True))
        return network.with_prompts([first.prompt, prompt.with_demonstrations(examples)])


def trained(setup: Setup, network: Sequential, preset: str, changes: dict[str, Any]) -> Learnt:
    """Train `network` with `dln.fit`; a token budget gives as many steps as it allows, and smaller steps if needed."""
    options = resolve_options(preset, dict(setup.options), changes, {"seed": setup.seed})
    notes: tuple[str, ...] = ()
    if setup.budget is not None and options.steps:
        wanted = options.model_copy(update={"steps": 10_000, "patience": None})
        keep = dotted_names(setup.options) | dotted_names(changes)
        options = _within(setup, setup.budget, network, wanted, keep)
        smaller = reduced(wanted, options)
        notes = tuple(f"{name} = {now} instead of {before} for the budget" for name, (before, now) in smaller.items())
    unseen = setup.readable if setup.readable is not None else setup.task.dev
    check_room(network, setup.task.train, setup.task.dev, unseen)
    result = fit(
        network,
        setup.task.train,
        setup.task.dev,
        options=options,
        run_dir=None if setup.workspace is None else setup.workspace / "run",
        metric=setup.task.metric,
        task=setup.task.name,
        readable=unseen.inputs,
    )
    found = result.predictor
    members = members_of(found)
    if isinstance(found, Ensemble):
        weights = ", ".join(f"{weight:.3f}" for weight in found.weights)
        notes = (*notes, f"ensemble of {len(members)} prompts, weights {weights}")
    return Learnt(
        found,
        tuple(str(prompt) for member in members for prompt in member.parameters()),
        None if math.isnan(result.score) else result.score,
        (f"{result.steps} steps, best after {result.best_step}, stopped: {result.reason}", *notes),
    )


def _within(setup: Setup, budget: int, network: Sequential, options: Options, keep: Set[str]) -> Options:
    """Options whose first validation is within the budget; the options named in `keep` are not reduced."""
    sizes = layer_sizes(network, setup.task.train)
    train_size, dev_size = len(setup.task.train), len(setup.task.dev)

    def fits(smaller: Options) -> bool:
        cost = estimate(sizes, smaller, train_size=train_size, dev_size=dev_size, test_size=0)
        return cost.total.tokens <= budget

    return affordable(options, fits, keep=keep)


@dataclass(frozen=True)
class RandomDemonstrations:
    """Random search at equal tokens: the best of prompts with k random demonstrations by cross-fitted log-likelihood.

    Prompts are drawn, and for each a word readout is fitted on train and dev, until as many tokens are used as the
    training of another method took. Where the model does not tell the probabilities of words, label words are fitted.

    Args:
        k: demonstrations per prompt.
        equal_to: the method whose training tokens may be used.
        most: maximum number of prompts.
    """

    k: int = 24
    equal_to: str = "dln-1"
    most: int = 200
    name: str = "random-demonstrations"

    @property
    def after(self) -> tuple[str, ...]:
        """The method whose training tokens may be used."""
        return (self.equal_to,)

    @property
    def about(self) -> str:
        """A description in one sentence."""
        return f"best of random prompts with {self.k} examples, at the training tokens of {self.equal_to}"

    def __call__(self, setup: Setup) -> Learnt:
        """Draw and score prompts until the tokens are used."""
        allowed = setup.known[self.equal_to].tokens
        best: Sequential | None = None
        best_score, drawn, used = float("-inf"), 0, 0
        train, dev = setup.task.train, setup.task.dev
        wide = setup.lm.capabilities.next_tokens != "none"
        while drawn < self.most and (used < allowed or best is None):
            layer = output_layer(setup, SAME_LINE, draw_examples(setup, self.k, draw=drawn + 1))
            try:
                if wide:
                    found = read_words(layer, train, dev, setup.options)
                    network = found.network
                    score = -math.inf if found.log_likelihood is None else found.log_likelihood
                else:
                    network, score = fitted(layer, dev)
            except BudgetReached:
                break
            drawn += 1
            read = layer.contexts([LayerInput(x, x) for x in (*(train.inputs if wide else ()), *dev.inputs)])
            used += sum(map(setup.lm.count_tokens, read))
            if score > best_score:
                best, best_score = network, score
        if best is None:
            raise BudgetReached("the budget is too small for a single prompt", where=self.name, fix="raise the budget")
        return Learnt(best, tuple(map(str, best.parameters())), best_score, (f"{drawn} prompts drawn",))


_ALL: tuple[Method, ...] = (
    Majority(),
    TfidfRegression(),
    EncoderRegression(),
    ZeroShot(),
    ZeroShot("0-shot-line", SAME_LINE),
    ZeroShot("0-shot-fitted", SAME_LINE, fit=True),
    ZeroShot("label-words", SAME_LINE, refit=True),
    WordRegression(),
    InContext(5),
    InContext(5, fit=True),
    InContext(10),
    InContext(16),
    InContext(32),
    Nearest(5),
    Nearest(10),
    Nearest(32),
    ChainOfThought(),
    Induction(15),
    Induction(400),
    ChainOfThought("cot+ape", Induction(15)),
    Trained(1, "dln-1"),
    Trained(
        1,
        "dln-1-labels",
        changes={"inference": {"output_layer": "fitted"}},
        what="dln-1 with the label words alone, bias and temperature fitted",
    ),
    Trained(1, "dln-1-ensemble", changes={"ensemble": 5}, what="dln-1, ensemble of its five best prompts"),
    Trained(1, "dln-1-paper", "paper"),
    RandomDemonstrations(),
    LayerByLayer("dln-2-fix", tune_last=False),
    LayerByLayer("dln-2-tune", tune_last=True),
    Trained(2, "dln-2"),
    Trained(2, "dln-2-think", hidden="think", what="dln-2 with the paper's initial first layer"),
    Trained(2, "dln-2-paper", "paper"),
    Trained(3, "dln-3"),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Methods by name, in the order of the table."""

_SIZED: dict[str, Callable[[int], Method]] = {
    r"icl-([1-9]\d*)": InContext,
    r"icl-([1-9]\d*)-fitted": lambda k: InContext(k, fit=True),
    r"icl-([1-9]\d*)-words": WordRegression,
    r"kate-([1-9]\d*)": Nearest,
    r"ape-([1-9]\d*)": Induction,
}
"""Families with a number in the name."""

FAMILIES = "icl-K, icl-K-fitted, icl-K-words, kate-K, ape-M"


def method_named(name: str) -> Method:
    """Return a method of `METHODS`, or one of a family with any number, as in icl-7.

    Raises:
        InputError: an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    for form, make in _SIZED.items():
        found = re.fullmatch(form, name)
        if found:
            return make(int(found[1]))
    raise unknown_name("method", name, METHODS, where="--methods", expected=f"{{}}; or {FAMILIES}")


def in_order(names: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Return the named methods and those they build on, each after what it needs, and the names that were added.

    Raises:
        InputError: an unknown name.
    """
    wanted: dict[str, Method] = {}

    def add(name: str) -> None:
        method = method_named(name)
        for needed in method.after:
            add(needed)
        wanted[method.name] = method

    for name in names:
        add(name)
    return list(wanted.values()), [name for name in wanted if name not in names]


BASE = "base"
"""The name of the unchanged preset."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def variants(spec: str, preset: str = "default", depth: int = 1) -> list[Trained]:
    """Return the variants of a file, or built-in ones by name.

    Args:
        spec: a YAML file, names separated by commas, or "all" for all built-in ones.
        preset: the preset to change.
        depth: number of layers, for variants that do not set it.

    Raises:
        InputError: no such file or name, or an invalid change.
    """
    if spec.endswith((".yaml", ".yml")) or Path(spec).is_file():
        return read_variants(Path(spec), preset, depth)
    known = {variant.name: variant for variant in builtin_variants(preset, depth)}
    names = [name for part in spec.split(",") if (name := part.strip())]
    if names == ["all"]:
        return list(known.values())
    for name in names or [spec]:
        if name not in known:
            raise unknown_name("variant", name, known, where="--variants", expected="a YAML file, all, or {}")
    return [known[name] for name in dict.fromkeys(names)]


def builtin_variants(preset: str = "default", depth: int = 1) -> list[Trained]:
    """Return the variants of the package."""
    text = resources.files("dln.experiments").joinpath("variants.yaml").read_text(encoding="utf-8")
    return _parsed(text, "variants.yaml", preset, depth)


def read_variants(path: Path, preset: str = "default", depth: int = 1) -> list[Trained]:
    """Read a YAML file that maps names of variants to changes.

    Raises:
        InputError: the file cannot be read, or a change is invalid; names file, variant and option.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read the variants", where=path, got=str(error)) from error
    return _parsed(text, str(path), preset, depth)


def with_base(
    chosen: Sequence[Trained], options: Mapping[str, Any], task: Task, preset: str = "default", depth: int = 1
) -> tuple[list[Trained], list[str]]:
    """Return the base and the variants that differ from it, and the names of those that do not.

    Args:
        chosen: the variants.
        options: changes to the preset common to all of them.
        task: one of the tasks; determines the usual templates.
        preset: of the base.
        depth: of the base.
    """

    def settings(variant: Trained) -> dict[str, Any]:
        recipe = recipe_of(variant, options)
        return {**recipe, "template": variant.template or usual_template(task, variant.depth, preset)}

    base = Trained(depth, BASE, preset)
    own = settings(base)
    same = [variant.name for variant in chosen if settings(variant) == own]
    about = base.about + (f"; the same as {', '.join(same)}" if same else "")
    return [replace(base, what=about), *(variant for variant in chosen if variant.name not in same)], same


def _parsed(text: str, where: str, preset: str, depth: int) -> list[Trained]:
    try:
        data: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("the variants are not YAML", where=where, got=str(error)) from error
    if not isinstance(data, dict) or not data:
        raise InputError(
            "the variants are not a mapping", where=where, expected="name: {option: value, …}, as in k6: {steps: 3}"
        )
    return [_variant(name, changes, where, preset, depth) for name, changes in cast(dict[object, object], data).items()]


def _variant(name: object, changes: object, where: str, preset: str, depth: int) -> Trained:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BASE:
        raise InputError(
            "not a name for a variant",
            where=where,
            got=repr(name),
            expected=f"letters, digits and . _ + -; {BASE} is the unchanged preset",
        )
    place = f"{where}: {name}"
    settings = cast(Mapping[object, object], changes if isinstance(changes, Mapping) else {})
    if not settings:
        got = repr(cast(object, changes))
        raise InputError("a variant must change something", where=place, got=got, expected="{option: value, …}")
    options = nested({str(key): value for key, value in settings.items()})
    said = "; ".join(f"{option} = {json.dumps(value, default=str)}" for option, value in _leaves(options))
    template: object = options.pop("template", "")
    layers: object = options.pop("depth", depth)
    if not isinstance(template, str):
        raise InputError("template must be a name", where=f"{place}: template", got=repr(template))
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 1:
        raise InputError("depth must be a number of layers", where=f"{place}: depth", got=repr(layers))
    if "preset" in options:
        raise InputError("all variants change the same preset", where=f"{place}: preset", fix="--preset NAME")
    try:
        resolve_options(preset, options)
        if template:
            load_template(template, "forward")
    except InputError as error:
        raise InputError(
            error.message,
            where=f"{place}: {error.where}",
            got=error.got,
            expected=error.expected,
            fix=error.fix or "options as in --set, template: NAME, or depth: LAYERS",
        ) from error
    return Trained(layers, name, preset, changes=options, template=template, what=said)


def _leaves(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "prompt_proposals":
            yield from _leaves(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
