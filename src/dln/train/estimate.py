"""What a run costs, before anything is spent: calls and tokens from lengths, counts and options.

`layer_sizes` measures requests on a few examples, and `estimate` computes two values from them: the likely one from
mean lengths, and with `most=True` an upper bound from the longest ones, with every candidate scored to the end. Tokens
are counted as a meter counts them, and as an engine evaluates them that shares the prefixes of the requests under one
prompt. Repeated requests and a cache make a run cheaper. `check_room` refuses data that does not fit a model's context.
`reduced` makes the steps smaller where a budget would end before the first validation, since training would then return
the prompts that it began with: it validates after every step, then shows fewer demonstrations, then proposes fewer
prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from dln.data import Dataset, Example
from dln.errors import ContextLengthError
from dln.nn import ChoiceLayer, Demonstration, LayerInput, Prompt, PromptedLayer, Sequential
from dln.nn.layers import FREE_TOKENS
from dln.train.evaluate import READ_BY
from dln.train.options import READ_WORDS, Options

__all__ = [
    "Cost",
    "Estimate",
    "LayerSize",
    "Speed",
    "affordable",
    "beginning",
    "check_room",
    "estimate",
    "layer_sizes",
    "reduced",
]

_FRAME = 64
"""Tokens left for the chat frame around a text, which `count_tokens` does not count."""


def check_room(network: Sequential, *datasets: Iterable[Example]) -> None:
    """Refuse data that some layer could not even read under its present prompt.

    Raises:
        ContextLengthError: naming the first example whose input or label does not fit, and how many more.
    """
    examples = [example for dataset in datasets for example in dataset]
    for position, layer in _prompted(network):
        limit = layer.lm.capabilities.context_length
        if limit is None:
            continue
        if layer.classifier is not None:
            _check_labels(layer.classifier, examples, limit)
        below = network.layers[position - 1].max_output_tokens if position else 0
        reserve = layer.max_output_tokens + _FRAME + below
        long = [(example, n) for example in examples if (n := _tokens(layer, example, position, limit - reserve))]
        if long:
            example, tokens = long[0]
            raise ContextLengthError(
                "this input is too long for the model's context"
                + (f", as are {len(long) - 1} more" if len(long) > 1 else ""),
                where=example.id or example.input[:40],
                got=f"{tokens} tokens with the prompt of layer {position + 1}, and {reserve} kept for what is written",
                expected=f"at most {limit} tokens altogether",
                fix="shorten or remove the row, or use a model with a longer context",
            )


def _prompted(network: Sequential) -> list[tuple[int, PromptedLayer]]:
    """The layers with a prompt, those side by side too, and their positions."""
    pairs = [(position, branch.prompted) for position, layer in enumerate(network) for branch in layer.branches]
    return [(position, layer) for position, layer in pairs if layer is not None]


def _tokens(layer: PromptedLayer, example: Example, position: int, room: int) -> int:
    """Tokens of the layer's context if they are more than `room`, else 0."""
    (context,) = layer.contexts([LayerInput(example.input, "" if position else example.input)])
    if len(context.encode("utf-8", errors="replace")) <= room:  # a token has at least one byte
        return 0
    tokens = layer.lm.count_tokens(context)
    return tokens if tokens > room else 0


def _check_labels(layer: ChoiceLayer, examples: list[Example], limit: int) -> None:
    """A label of half a context is a text in the wrong column."""
    for name in layer.names:
        if len(name.encode("utf-8", errors="replace")) > limit // 2 and layer.lm.count_tokens(name) > limit // 2:
            place = next((example.id for example in examples if example.target == name), None)
            raise ContextLengthError(
                "this label is too long for the model's context",
                where=place or "labels",
                got=f"{layer.lm.count_tokens(name)} tokens: {name[:40]!r}…",
                expected=f"labels of a few words; the context has {limit} tokens",
                fix="check that the right column is the target, or remove the row",
            )


_TELLING = 20  # examples from which on a race stops about half of the candidates


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Mean sizes of one layer's requests, in tokens.

    Attributes:
        context: one context with the initial prompt.
        demonstration: what one worked example adds to it.
        written: one output text; for labels the wanted label.
        labels: all labels together, which every context is scored on; None for a layer that writes text.
        prompt: the initial instruction.
        shared: the part of a context that is the same for every input.
        words: whether the model tells the probabilities of words, which a word readout needs.
    """

    context: float
    demonstration: float
    written: float
    labels: float | None = None
    prompt: float = 20.0
    shared: float = 0.0
    words: bool = True


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, read (scored) and drawn; `shares`: whether those read are counted without shared prefixes."""

    read: float
    drawn: float
    shares: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests and tokens of one phase, as a meter counts them.

    Attributes:
        calls: requests.
        prompt_tokens: tokens read.
        completion_tokens: tokens drawn.
        evaluated: tokens read by an engine that evaluates the shared prefix of a batch once.
    """

    calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    evaluated: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.evaluated + other.evaluated,
        )

    def __mul__(self, factor: float) -> Cost:
        values = (self.calls, self.prompt_tokens, self.completion_tokens, self.evaluated)
        return Cost(*(value * factor for value in values))

    @property
    def tokens(self) -> float:
        """Tokens read and drawn."""
        return self.prompt_tokens + self.completion_tokens

    def seconds(self, speed: Speed) -> float:
        """Time at this speed."""
        read = self.evaluated if speed.shares else self.prompt_tokens
        return read / speed.read + self.completion_tokens / speed.drawn


@dataclass(frozen=True, slots=True)
class Estimate:
    """Costs of a whole run by phase."""

    phases: dict[str, Cost]

    @property
    def total(self) -> Cost:
        """All phases together."""
        return sum(self.phases.values(), Cost())


def estimate(
    layers: Sequence[LayerSize],
    options: Options,
    *,
    train_size: int,
    dev_size: int,
    test_size: int,
    most: bool = False,
) -> Estimate:
    """steps · (forward + E-step + M-step) + validations + the final test of all networks.

    The last are the trained network (or all that answer together), the initial one, and the initial one with its
    output layer fitted on the dev set, where that is done.

    Args:
        layers: first to last; with `most` the largest sizes.
        options: resolved options.
        train_size: examples to train on.
        dev_size: examples of a validation; 0 for none.
        test_size: examples of the final test; 0 for none.
        most: an upper bound, in place of the likely value.
    """
    depth = len(layers)
    if wide_readout(layers, options) and not most:
        layers = [*layers[:-1], replace(layers[-1], labels=1.0)]  # one position is read, whatever the labels
    judging = _judging(options, train_size)
    batch = min(options.batch_size, judging)
    options = _available(options, train_size)
    inference = improvement = proposals = forward = Cost()
    for step in range(options.steps):
        present = _present(layers, options, batch, step, most)
        forward += _forward(present, options) * batch
        for position in range(depth - 1):
            inference += _e_step(present[position], present[position + 1], options) * batch
        if _repeats(options, depth - 1):
            read = min(options.inference.worked, _pool(options, train_size))
            proposals += sum(map(_write, present[:-1]), Cost()) * read
        for position in range(depth):
            earlier = min(options.inference.evidence, batch * step, train_size if most else judging - batch)
            scored, asked = _m_step(layers, present, position, options, batch, step, earlier, most)
            improvement, proposals = improvement + scored, proposals + asked
    due = [step for step in range(1, options.steps + 1) if step % options.val_every == 0 or step == options.steps]
    members = options.members(depth, wide_readout(layers, options))
    at_once = 1 + min(members - 1, options.inference.num_prompts)  # runners-up are validated too
    validations = ((_present(layers, options, batch, step, most), at_once if step else 1) for step in [0, *due])
    validation = sum((_validate(network, options) * n for network, n in validations), Cost()) * dev_size
    trained = _present(layers, options, batch, options.steps, most)
    if dev_size and wide_readout(layers, options):
        # its words are chosen, the examples that candidates were scored on take part in the fit of each validation, and
        # all train examples in the last one of every network that answers
        support = sum(min(options.inference.evidence, batch * step) * at_once for step in due)
        last = members * (min(options.fit_examples, train_size) if depth == 1 else 0)
        validation += _score(trained[-1]) * (support + last) + _read(layers) * min(READ_BY, train_size)
    answering = members if dev_size and due else 1
    return Estimate(
        {
            "forward": forward,
            "E-step": inference,
            "M-step": improvement,
            "proposals": proposals,
            "validation": validation,
            "test": (_forward(layers, options) + _forward(trained, options) * answering) * test_size
            + _fitted(layers, options, train_size, dev_size, test_size),
        }
    )


def _available(options: Options, train_size: int) -> Options:
    """The options with no more demonstrations than there are examples that may be shown."""
    pool = _pool(options, train_size)
    sizes = tuple(min(size, pool) for size in options.inference.demonstrations)
    return options.model_copy(update={"inference": options.inference.model_copy(update={"demonstrations": sizes})})


def _pool(options: Options, train_size: int) -> int:
    """Examples that may be shown."""
    return max(1, round((options.shown or 1.0) * train_size))


def _judging(options: Options, train_size: int) -> int:
    """Examples that judge prompts: those that are not kept to be shown."""
    shown = round(options.shown * train_size) if "demonstrations" in options.inference.prompt_proposals else 0
    return train_size - shown if 0 < shown < train_size else train_size


def wide_readout(layers: Sequence[LayerSize], options: Options) -> bool:
    """Whether the output layer reads many words."""
    last = layers[-1]
    return last.labels is not None and last.words and options.inference.output_layer in READ_WORDS


def _fitted(layers: Sequence[LayerSize], options: Options, train_size: int, dev_size: int, test_size: int) -> Cost:
    """The initial network with a fitted output layer: measured on train and dev to fit it, then on test."""
    if layers[-1].labels is None or options.inference.output_layer == "fixed" or not (dev_size and test_size):
        return Cost()
    support = 0
    if wide_readout(layers, options):
        support = min(READ_BY, train_size) + (min(options.fit_examples, train_size) if len(layers) == 1 else 0)
    measured = _validate(layers, options) * dev_size + _read(layers) * support
    return measured + _forward(layers, options) * test_size


def _forward(layers: Sequence[LayerSize], options: Options) -> Cost:
    """One example through all layers; a free answer is drawn and not scored."""

    def one(layer: LayerSize) -> Cost:
        if layer.labels is None:
            return _write(layer)
        return _request(layer, drawn=FREE_TOKENS) if options.answers == "free" else _score(layer)

    return sum(map(one, layers), Cost())


def _validate(layers: Sequence[LayerSize], options: Options) -> Cost:
    """One example of a validation: labels are scored there even where the answer is free."""
    scored = layers[-1].labels is not None and options.answers == "free"
    return _forward(layers, options) + (_score(layers[-1]) if scored else Cost())


def _read(layers: Sequence[LayerSize]) -> Cost:
    """One example to the output layer and its features, whatever an answer is."""
    return sum(map(_write, layers[:-1]), _score(layers[-1]))


TOGETHER = 64
"""Requests under one prompt, at least, of which an engine evaluates the shared prefix once."""


def _request(layer: LayerSize, scored: float = 0.0, drawn: float = 0.0, alike: float = 1.0) -> Cost:
    """One request of a layer, of which `alike` in a row have the same context."""
    own = layer.context - layer.shared * (1 - 1 / TOGETHER)
    return Cost(1, layer.context + scored, drawn, own / alike + scored)


def _write(layer: LayerSize, alike: float = 1.0) -> Cost:
    return _request(layer, drawn=layer.written, alike=alike)


def _score(layer: LayerSize, alike: float = 1.0) -> Cost:
    """One output under one prompt: all labels at once, or the text's own tokens."""
    return _request(layer, scored=layer.written if layer.labels is None else layer.labels, alike=alike)


def _e_step(layer: LayerSize, above: LayerSize, options: Options) -> Cost:
    """K proposals for one example, each scored under its own layer and the one above."""
    chosen = options.inference
    particles = chosen.num_hidden + chosen.include_forward
    drawn = _write(layer, alike=max(1, chosen.num_hidden)) * chosen.num_hidden
    return drawn + (_score(layer, alike=max(1, particles)) + _score(above)) * particles


def _m_step(
    layers: Sequence[LayerSize],
    present: Sequence[LayerSize],
    position: int,
    options: Options,
    batch: int,
    step: int,
    earlier: int,
    most: bool,
) -> tuple[Cost, Cost]:
    """The candidates' scores on the batch, and the proposals of one layer."""
    chosen, depth = options.inference, len(layers)
    repeats = _repeats(options, position)
    particles = float(chosen.num_hidden + chosen.include_forward)
    # a pair is (particle below, particle of this layer); x and y are one each, and light particles are left out:
    # under prior and likelihood most weight is on one or two of them
    heavy = 1 + 0.25 * (particles - 1) if chosen.prune and not most else particles
    pairs = batch * (1.0 if position == 0 else heavy) * (1.0 if position == depth - 1 else heavy)
    if repeats and position == depth - 1:
        # earlier examples judge too; a race seldom gets to all of them, but tells little on a handful
        raced = max(0.0, earlier - max(0, _TELLING - batch)) if chosen.race and not most else 0.0
        pairs += (earlier - 0.5 * raced) * (1.0 if position == 0 else heavy)
    layer, bare = present[position], layers[position]
    if not repeats:
        return _score(layer) * pairs, Cost()
    shares, weight = chosen.prompt_proposals, sum(chosen.prompt_proposals.values())
    shown = _demonstrations(options, position == depth - 1, batch, step, most)
    with_examples = chosen.num_prompts * shares.get("demonstrations", 0.0) / weight
    rewritten = chosen.num_prompts - with_examples
    if with_examples and position < depth - 1 and step == 0 and not most:
        pairs /= 2  # half of the first batch is shown, and not scored
    remembered = min(options.memory, step / options.val_every) if step else 0
    if most:
        grown = _grown(_reworded(bare, options), shown)
        scored = _score(grown) * (1 + chosen.num_prompts + options.memory)
    else:
        scored = _score(_grown(bare, shown)) * with_examples + _score(layer) * (1 + rewritten + remembered)
    others = 1 + rewritten + remembered
    if chosen.exploration and position < depth - 1:
        scored += _score(layer) * (0.5 * (others + with_examples) / heavy)
    examples = min(chosen.backward_examples, batch * (0.5 if chosen.held_out_half else 1.0))
    answers = (
        chosen.num_prompts
        * (
            sum(shares.get(name, 0.0) for name in ("rewrite", "confusion"))
            + shares.get("sequence", 0.0) / chosen.sequence_count
        )
        / weight
    )
    if most:
        answers = chosen.num_prompts if answers else 0
        examples *= 1 + bare.written / max(1.0, bare.demonstration)  # what was written stands beside what was wanted
    frame = (200.0 if most else 70.0) + bare.prompt + examples * (bare.demonstration + (30.0 if most else 6.0))
    asked = Cost(1, frame, (1.0 if most else 0.6) * chosen.prompt_tokens, frame) * answers
    return scored * pairs * repeats, asked * repeats


def _present(layers: Sequence[LayerSize], options: Options, batch: int, step: int, most: bool) -> list[LayerSize]:
    """The layers as they are after so many steps: most incumbents show worked examples once those were proposed."""

    def trained(position: int, layer: LayerSize) -> LayerSize:
        if not (step and _repeats(options, position)):
            return layer
        shown = _demonstrations(options, position == len(layers) - 1, batch, step - 1, most)
        return _grown(_reworded(layer, options), shown) if most else _grown(layer, 0.8 * shown)

    return [trained(i, layer) for i, layer in enumerate(layers)]


def _reworded(layer: LayerSize, options: Options) -> LayerSize:
    """The layer with the longest instruction and field names that may be proposed."""
    chosen = options.inference
    longer = max(0.0, chosen.prompt_tokens - layer.prompt) if chosen.prompt_proposals.keys() - {"demonstrations"} else 0
    named = 4.0 if "wording" in chosen.prompt_proposals else 0.0
    return replace(layer, context=layer.context + longer + named, demonstration=layer.demonstration + named)


def _repeats(options: Options, position: int) -> int:
    given = options.inference.layer_steps
    return given if isinstance(given, int) else given[position]


def _grown(layer: LayerSize, shown: float) -> LayerSize:
    more = shown * layer.demonstration
    return replace(layer, context=layer.context + more, shared=layer.shared + more)


def _demonstrations(options: Options, last: bool, batch: int, step: int, most: bool) -> float:
    """Worked examples of a proposal in this step; a hidden layer has only those that were worked out so far."""
    chosen = options.inference
    if "demonstrations" not in chosen.prompt_proposals:
        return 0.0
    if most:
        return float(max(chosen.demonstrations))
    if last:
        return sum(chosen.demonstrations) / len(chosen.demonstrations)
    pool = batch / 2 if step == 0 else min(batch * step, chosen.reservoir)
    return sum(min(size, pool) for size in chosen.demonstrations) / len(chosen.demonstrations)


SHOWN = 20
"""Examples whose lengths are measured."""


def layer_sizes(
    network: Sequential, dataset: Dataset, written: float | None = None, *, most: bool = False
) -> list[LayerSize]:
    """Mean sizes of each layer's requests, on examples spread over the data set, or on the longest ones.

    Args:
        network: with its initial prompts.
        dataset: whose lengths are measured.
        written: mean tokens of a hidden text or free answer; default half of the longest.
        most: sizes of the longest examples, and of the longest texts that a layer may write.
    """
    longest = max((layer.max_output_tokens for _, layer in _prompted(network) if layer.writer), default=0)
    written = longest if most else longest / 2 if written is None else written
    shown = _longest(dataset) if most else [dataset[i] for i in _spread(len(dataset))]
    text = " ".join(["word"] * max(1, round(written)))
    sizes: list[LayerSize] = []
    for position, layer in _prompted(network):
        rows = [LayerInput(e.input, text if position else e.input) for e in shown]
        last = position == len(network) - 1
        outputs = [e.target if last else text for e in shown]
        worked = tuple(Demonstration(r.x, r.h, o) for r, o in zip(rows, outputs, strict=True))
        contexts = layer.contexts(rows)
        with_one = _mean(
            layer,
            [
                layer.with_prompt(Prompt(layer.prompt.instruction, (d,))).contexts([row])[0]
                for d, row in zip(worked, rows, strict=True)
            ],
        )
        bare = _mean(layer, layer.with_prompt(Prompt(layer.prompt.instruction)).contexts(rows))
        choice = layer.classifier
        words = [] if choice is None else [w for label in choice.labels for w in label.split("|")]
        target = _mean(layer, outputs)
        sizes.append(
            LayerSize(
                context=_mean(layer, contexts),
                demonstration=with_one - bare,
                written=target if choice is not None else max(target, written) if most else written,
                labels=sum(layer.lm.count_tokens(layer.target_prefix + word) for word in words) if words else None,
                prompt=layer.lm.count_tokens(layer.prompt.instruction),
                shared=layer.lm.count_tokens(_shared(contexts)) if len(contexts) > 1 else 0.0,
                words=layer.lm.capabilities.next_tokens != "none",
            )
        )
    return sizes


def _shared(texts: list[str]) -> str:
    """The longest common prefix."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _spread(count: int) -> range:
    """At most `SHOWN` places, spread over `count`."""
    return range(0, count, -(-count // SHOWN) or 1)


def _longest(dataset: Dataset) -> list[Example]:
    """The examples of the longest texts."""
    lengths = [len(x.encode(errors="replace")) + len(y) for x, y in zip(dataset.inputs, dataset.targets, strict=True)]
    return [dataset[i] for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:SHOWN]]


def _mean(layer: PromptedLayer, texts: list[str]) -> float:
    return sum(map(layer.lm.count_tokens, texts)) / len(texts)


FEWEST_EXAMPLES, FEWEST_PROMPTS = 6, 4
"""Less than this is not worth a step."""


def affordable(options: Options, fits: Callable[[Options], bool], *, keep: Set[str] = frozenset()) -> Options:
    """`options`, or smaller ones under which the first validation fits; the smallest where none do.

    The preset "paper" stays as it is: it is there to be compared with.

    Args:
        options: what is wanted.
        fits: whether the budget suffices for a whole run with the options that it is given; those end with the first
            validation.
        keep: dotted names of options that stay as they are.
    """
    if options.preset == "paper" or options.steps == 0:
        return options
    while not fits(beginning(options)):
        smaller = _smaller(options, keep)
        if smaller is None:
            break
        options = smaller
    return options


def reduced(wanted: Options, chosen: Options) -> dict[str, tuple[Any, Any]]:
    """What `affordable` changed: dotted names → (wanted, chosen), as in a configuration."""
    sizes = list(wanted.inference.demonstrations), list(chosen.inference.demonstrations)
    pairs: dict[str, tuple[Any, Any]] = {
        "val_every": (wanted.val_every, chosen.val_every),
        "inference.demonstrations": sizes,
        "inference.num_prompts": (wanted.inference.num_prompts, chosen.inference.num_prompts),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def beginning(options: Options) -> Options:
    """A run that ends with the first validation after a step."""
    return options.model_copy(update={"steps": min(options.steps, options.val_every)})


def _smaller(options: Options, keep: Set[str]) -> Options | None:
    """The next smaller options; None where there are none."""
    if options.val_every > 1 and "val_every" not in keep:
        return options.model_copy(update={"val_every": 1})
    chosen = options.inference
    if "inference.demonstrations" not in keep and "demonstrations" in chosen.prompt_proposals:
        sizes = sorted(chosen.demonstrations)
        if len(sizes) > 1:
            return _with_inference(options, demonstrations=tuple(sizes[:-1]))
        if sizes[0] >= 2 * FEWEST_EXAMPLES:
            return _with_inference(options, demonstrations=(sizes[0] // 2,))
    if "inference.num_prompts" not in keep and chosen.num_prompts >= 2 * FEWEST_PROMPTS:
        return _with_inference(options, num_prompts=chosen.num_prompts // 2)
    return None


def _with_inference(options: Options, **changes: Any) -> Options:
    return options.model_copy(update={"inference": options.inference.model_copy(update=changes)})
