"""A workload: texts to be scored under contexts, labels to be scored under contexts, and what that costs at least.

asked  = Σ (|s| − 1)          over all pairs, s = context ⧺ target
needed = distinct non-empty prefixes of all s[:−1]        (trie nodes)
rows   = those of them after which a token is predicted  (what the output head must see)

What the workloads are made of: the paper's subj and trec where they are, the bundled questions elsewhere.

Candidate prompts of a benchmark: shaped as the proposals of a training step are.

Plain instructions have about 40 tokens and differ from their first word on, as rewritten prompts do.
The default preset's candidates are three parts instruction with demonstrations and one part rewritten.

The workload of a DLN-1 step: labels under N candidate prompts × B inputs × C labels.

A DLN-2 step up to its M-step: a network, sampled hidden texts with posterior weights, candidate prompts.

The hidden texts are the model's own draws (K per input, up to a given length) under the paper's hidden layer, the
E-step weighs them, and both layers have N candidate prompts: plain instructions, the present one first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from dln.data import Example, load_task
from dln.errors import InputError
from dln.infer.estep import EStep, Posterior, Weigher
from dln.infer.hidden import HiddenDraw, HiddenRequest, PriorProposal, draw_together
from dln.infer.memory import Feedback
from dln.infer.objective import Candidates
from dln.infer.prompts import DemonstrationProposal
from dln.lm.base import Completion, LanguageModel, Sampling, Target
from dln.lm.local.engine import TransformersLM
from dln.lm.local.plan import Plan
from dln.nn import ChoiceLayer, Demonstration, LanguageLayer, LayerInput, Prompt, Sequential
from dln.nn.layers import PromptedLayer
from dln.nn.sequential import Trace
from dln.numerics import Floats
from dln.random import Key
from dln.train import resolve_options
from dln.train.build import algorithm
from dln.train.layout import DECOMPOSE

__all__ = [
    "Labels",
    "Style",
    "Subject",
    "Texts",
    "TwoLayers",
    "Work",
    "Workload",
    "answers",
    "choose_subject",
    "default_prompts",
    "find_data",
    "instructions",
    "one_layer",
    "two_layer_network",
    "two_layers",
    "work",
]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """Texts to be scored, pair by pair."""

    contexts: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Labels:
    """C label words to be scored under every context."""

    contexts: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """What one M-step of every layer asks of the model.

    Attributes:
        name: short, for tables.
        about: one sentence: data, prompts, sizes.
        parts: one request to the model each.
    """

    name: str
    about: str
    parts: tuple[Texts | Labels, ...]

    @property
    def largest(self) -> int:
        """Requests of its largest part."""
        return max(len(part.contexts) for part in self.parts)


@dataclass(frozen=True)
class Work:
    """Tokens of a workload; see the module's formulas. `pairs` counts (context, target) pairs."""

    pairs: int
    asked: int
    needed: int
    rows: int


def answers(lm: LanguageModel, workload: Workload) -> Floats:
    """All log-probabilities that the workload asks for, in one flat array, in nats."""
    values: list[Floats] = []
    for part in workload.parts:
        if isinstance(part, Texts):
            values.extend(scores.values for scores in lm.log_prob(part.contexts, part.targets))
        else:
            values.append(lm.choice_log_probs(part.contexts, part.words).ravel())
    return np.concatenate(values)


def work(lm: TransformersLM, workload: Workload) -> Work:
    """Tokens asked and needed, counted from the definition (the engine's own counts are not looked at)."""
    totals = np.zeros(4, dtype=np.int64)
    for part in workload.parts:
        totals += _of_part(_pairs(lm, part))
    return Work(*(int(value) for value in totals))


def _pairs(lm: TransformersLM, part: Texts | Labels) -> list[tuple[Ids, Ids]]:
    contexts = [lm.codec.context_ids(context, lm.chat) for context in part.contexts]
    if isinstance(part, Texts):
        return list(zip(contexts, (_target_ids(lm, target) for target in part.targets), strict=True))
    words = [_target_ids(lm, word) for word in part.words]
    return [(context, word) for context in contexts for word in words]


def _target_ids(lm: TransformersLM, target: Target) -> Ids:
    if isinstance(target, Completion) and target.token_ids is not None:
        return target.token_ids
    return lm.codec.target_ids(str(target))


def _of_part(pairs: Sequence[tuple[Ids, Ids]]) -> tuple[int, int, int, int]:
    fed = {(*context, *target[:-1]): len(context) for context, target in pairs}
    plan = Plan.of(list(fed))
    # equal sequences may have different contexts only if a context ends where another's target goes on
    starts: dict[Ids, set[int]] = {}
    for context, target in pairs:
        starts.setdefault((*context, *target[:-1]), set()).add(len(context))
    rows: set[int] = set()
    for sequence, path in plan.paths():
        rows.update(path[min(starts[sequence]) - 1 :].tolist())
    asked = sum(len(context) + len(target) - 1 for context, target in pairs)
    return len(pairs), asked, plan.size, len(rows)


PAPER_TASKS = {2: "subj", 6: "trec"}
"""Which of the paper's tasks has so many classes."""


@dataclass(frozen=True)
class Subject:
    """A classification task cut to what a benchmark needs.

    Attributes:
        name: what the output calls it.
        instruction: the initial prompt of the output layer.
        labels: C label names.
        examples: real labelled inputs, the classes taking turns.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    def batch(self, size: int) -> tuple[Example, ...]:
        """The first `size` examples.

        Raises:
            InputError: there are not so many.
        """
        if size > len(self.examples):
            raise InputError("the task has fewer examples", where=self.name, got=size, expected=len(self.examples))
        return self.examples[:size]

    def others(self, size: int) -> tuple[Example, ...]:
        """All examples but the first `size`: what demonstrations are drawn from."""
        return self.examples[size:]


def choose_subject(classes: int, data: Path | None) -> Subject:
    """The task with `classes` labels: the paper's from `data`, or the bundled one restricted to as many classes.

    Raises:
        InputError: neither has so many, or the data cannot be read.
    """
    if data is not None and classes in PAPER_TASKS:
        task = load_task(PAPER_TASKS[classes], data)
        labels = task.label_names or ()
        return Subject(task.name, task.instruction, labels, _in_turns(task.train.examples, labels))
    task = load_task("questions")
    names = tuple(task.label_names or ())
    if not 2 <= classes <= len(names):
        raise InputError("no task has so many classes", where="classes", got=classes, expected=f"2 … {len(names)}")
    labels = names[:classes]
    *most, last = labels
    listed = f"{', '.join(most)} or {last}"
    return Subject(
        name=f"questions ({classes} of {len(names)} classes)",
        instruction=f"Read the following question, then choose whether it asks for a {listed}.",
        labels=labels,
        examples=_in_turns(task.train.examples, labels),
    )


def find_data(given: Path | None) -> Path | None:
    """The directory of the paper's data: as given, DLN_PAPER_DATA, or `../shared/data`; None where there is none.

    Raises:
        InputError: a directory was named, and it is not there.
    """
    named = given or (Path(os.environ["DLN_PAPER_DATA"]) if os.environ.get("DLN_PAPER_DATA") else None)
    if named is not None and not named.is_dir():
        raise InputError("there is no such directory", where="data", got=named, fix="leave --data out for bundled data")
    usual = Path("..") / "shared" / "data"
    return named or (usual if usual.is_dir() else None)


def _in_turns(examples: tuple[Example, ...], labels: tuple[str, ...]) -> tuple[Example, ...]:
    groups = [[example for example in examples if example.target == label] for label in labels]
    return tuple(example for row in zip(*groups, strict=False) for example in row)


OPENINGS = (
    "You are a careful annotator who has read thousands of texts.",
    "Work slowly and look at every word before you decide.",
    "Think about who wrote this and for which kind of reader.",
    "In this task there is always exactly one right answer.",
    "Decide as an expert would, without being misled by tone.",
    "Below you see one short text taken from a larger collection.",
    "First find the words that carry the meaning of the text.",
    "Ignore spelling and punctuation and keep to what is said.",
    "Imagine that a colleague has to agree with your decision.",
    "Consider the whole text and not only how it begins.",
)
ENDINGS = (
    "Use only the words of the text and give nothing but the answer.",
    "If two answers seem possible, take the one that fits most words.",
    "Do not explain your choice and do not repeat the text.",
    "Short texts count as much as long ones, so judge both alike.",
    "What the text is about matters less than how it says it.",
    "Names and numbers in the text are often a good hint.",
    "Prefer the simplest reading, and answer with a single word.",
    "Judge the text by itself, without any knowledge of its source.",
    "Both answers are equally likely before you have read the text.",
    "Write the answer in lower case and without a full stop.",
)


def instructions(base: str, count: int) -> list[Prompt]:
    """`count` distinct instructions of about 40 tokens around `base`.

    Raises:
        InputError: more are wanted than there are.
    """
    if count > len(OPENINGS) * len(ENDINGS):
        raise InputError("too many prompts", where="prompts", got=count, expected=len(OPENINGS) * len(ENDINGS))
    return [
        Prompt(f"{OPENINGS[i % len(OPENINGS)]} {base} {ENDINGS[(i + i // len(OPENINGS)) % len(ENDINGS)]}")
        for i in range(count)
    ]


def default_prompts(layer: PromptedLayer, subject: Subject, batch: int, count: int) -> list[Prompt]:
    """`count` candidates of an output layer in the proportions of the default preset, the layer's own prompt first.

    Demonstrations are real examples outside the batch.
    """
    options = resolve_options("default").inference
    shares = options.prompt_proposals
    shown = round((count - 1) * shares["demonstrations"] / sum(shares.values()))
    pool = tuple(Demonstration(e.input, e.input, e.target) for e in subject.others(batch))
    feedback = Feedback((), (), (), (), pool)
    drawn = DemonstrationProposal(options.demonstrations)(Key(0), layer, feedback, shown)
    rewritten = instructions(layer.prompt.instruction, count - 1 - len(drawn))
    return [layer.prompt, *(proposal.prompt for proposal in drawn), *rewritten]


Style = Literal["default", "instructions"]
"""Candidates as the default preset proposes them, or plain instructions of about 40 tokens."""


def one_layer(lm: LanguageModel, subject: Subject, prompts: int, batch: int, style: Style) -> Workload:
    """The output layer's M-step of a one-layer network on the first `batch` examples."""
    layer = ChoiceLayer(lm, "classify", subject.instruction, subject.labels)
    inputs = [LayerInput(example.input, example.input) for example in subject.batch(batch)]
    if style == "default":
        candidates = default_prompts(layer, subject, batch, prompts)
        shape = "instructions and demonstrations"
    else:
        candidates = instructions(subject.instruction, prompts)
        shape = "instructions"
    contexts = [context for prompt in candidates for context in layer.with_prompt(prompt).contexts(inputs)]
    words = tuple(layer.target_prefix + label for label in layer.labels)
    classes = len(subject.labels)
    return Workload(
        name=f"DLN-1, C {classes}, {shape}",
        about=f"N {prompts} × B {batch} × C {classes}, {subject.name}; candidates are {shape}",
        parts=(Labels(tuple(contexts), words),),
    )


"""The paper's initial prompt of the hidden layer."""


@dataclass(frozen=True, eq=False)
class TwoLayers:
    """What the M-steps of a two-layer network start from.

    Attributes:
        subject: the data.
        network: with the present prompts.
        trace: the forward pass on the batch.
        targets: [B] the wanted labels.
        draws: [B][K] the hidden texts as they were drawn.
        posterior: hidden texts with their weights.
        candidates: per layer the N candidate layers, the present one first.
        hidden_tokens: mean length of the hidden texts, in tokens.
    """

    subject: Subject
    network: Sequential
    trace: Trace
    targets: tuple[str, ...]
    draws: tuple[tuple[HiddenDraw, ...], ...]
    posterior: Posterior
    candidates: tuple[tuple[PromptedLayer, ...], ...]
    hidden_tokens: float

    def situation(self, position: int, batch: int | None = None, prompts: int | None = None) -> Candidates:
        """The candidates of one layer as an objective takes them, on the first `batch` examples."""
        counted = self.posterior.scored & (np.arange(len(self.trace)) < (batch or len(self.trace)))
        return Candidates(
            key=Key(0).child("bench", position),
            layers=self.candidates[position][:prompts],
            position=position,
            depth=len(self.network),
            trace=self.trace,
            posterior=self.posterior,
            correct=np.ones(len(self.trace), dtype=np.bool_),
            counted=counted,
            step=0,
            above=self.network.layers[position + 1 :],
        )

    def weighed(self, weighting: Weigher) -> TwoLayers:
        """The same hidden texts under other weights."""
        return replace(self, posterior=_weighed(self.network, self.trace, self.draws, self.targets, weighting))

    def workload(self, prompts: int | None = None, batch: int | None = None, hidden: int | None = None) -> Workload:
        """Everything both M-steps would score in full: every hidden text, whatever its weight."""
        size = batch or len(self.trace)
        proposals = [[draw.completion for draw in row[:hidden]] for row in self.draws[:size]]
        texts: list[tuple[str, Target]] = []
        below, output = (layers[:prompts] for layers in self.candidates)
        for layer in below:
            for context, row in zip(layer.contexts(self.trace.inputs(0)[:size]), proposals, strict=True):
                texts.extend((context, h) for h in row)
        read = [LayerInput(x, h.text) for x, row in zip(self.trace.x, proposals, strict=False) for h in row]
        contexts = [context for layer in output for context in layer.contexts(read)]
        last = output[0]
        words = last.labels if isinstance(last, ChoiceLayer) else ()
        labels = tuple(last.target_prefix + word for word in words)
        count = len(proposals[0])
        return Workload(
            name=f"DLN-2, C {len(labels)}",
            about=(
                f"N {len(below)} × B {size} × K {count}, {self.subject.name}; hidden texts of "
                f"{self.hidden_tokens:.0f} tokens drawn by the model, both layers' candidates are instructions"
            ),
            parts=(
                Texts(tuple(c for c, _ in texts), tuple(t for _, t in texts)),
                Labels(tuple(contexts), labels),
            ),
        )


def two_layer_network(lm: LanguageModel, subject: Subject, hidden_tokens: int) -> Sequential:
    """The paper's network of two layers: a hidden one with the prompt behind the input, a residual output layer."""
    return Sequential(
        LanguageLayer(lm, "think_steps", DECOMPOSE, Sampling(max_tokens=hidden_tokens)),
        ChoiceLayer(lm, "classify_residual", subject.instruction, subject.labels),
    )


def two_layers(
    lm: LanguageModel, subject: Subject, prompts: int, batch: int, hidden: int, hidden_tokens: int
) -> TwoLayers:
    """Draw the hidden texts and weigh them.

    Args:
        lm: the model.
        subject: the data.
        prompts: N candidates per layer, the present prompt among them.
        batch: B inputs.
        hidden: K texts per input.
        hidden_tokens: a draw ends after so many tokens.
    """
    network = two_layer_network(lm, subject, hidden_tokens)
    examples = subject.batch(batch)
    key = Key(0)
    trace = network.sample(key.child("forward"), [example.input for example in examples], temperature=0.0)
    targets = tuple(example.target for example in examples)
    request = HiddenRequest(
        network.layers[0],
        network.layers[1],
        tuple(trace.inputs(0)),
        trace.outputs(0),
        targets,
        targets,
    )
    draws = tuple(map(tuple, draw_together(PriorProposal()(key.child("hidden"), request, hidden))))
    unpruned = algorithm(
        resolve_options("default", {"inference": {"prune": 0.0}}), lambda p, y: p == y, network=network
    )
    return TwoLayers(
        subject=subject,
        network=network,
        trace=trace,
        targets=targets,
        draws=draws,
        posterior=_weighed(network, trace, draws, targets, unpruned.e_step.weighting),
        candidates=tuple(_candidates(cast(PromptedLayer, layer), prompts) for layer in network.layers),
        hidden_tokens=float(np.mean([len(draw.completion.token_ids or ()) for row in draws for draw in row])),
    )


@dataclass(frozen=True)
class _Drawn:
    """A proposal that proposes what was drawn before."""

    draws: tuple[tuple[HiddenDraw, ...], ...]

    def __call__(self, key: Key, request: HiddenRequest, num: int) -> list[list[HiddenDraw]]:
        del key, request, num
        return [list(row) for row in self.draws]


def _weighed(
    network: Sequential,
    trace: Trace,
    draws: tuple[tuple[HiddenDraw, ...], ...],
    targets: tuple[str, ...],
    weighting: Weigher,
) -> Posterior:
    e_step = EStep(_Drawn(draws), weighting, len(draws[0]), "log_prob", include_forward=False)
    return e_step(Key(0), network, trace, targets)


def _candidates(layer: PromptedLayer, count: int) -> tuple[PromptedLayer, ...]:
    others = instructions(layer.prompt.instruction, count - 1)
    return (layer, *(layer.with_prompt(prompt) for prompt in others))
