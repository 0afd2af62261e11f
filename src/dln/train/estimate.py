"""What a run will cost, before anything is spent: calls and tokens from lengths, counts and options.

An estimate is arithmetic on means. Nothing is asked of a model here; answers that a cache will have and
repeated requests make a run cheaper than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dln.nn.choice import FREE_TOKENS
from dln.train.options import Options

__all__ = ["Cost", "Estimate", "LayerSize", "Speed", "estimate"]

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
    """

    context: float
    demonstration: float
    written: float
    labels: float | None = None
    prompt: float = 20.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, read (scored) and drawn."""

    read: float
    drawn: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests and tokens of one phase, as a meter counts them."""

    calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.calls * factor, self.prompt_tokens * factor, self.completion_tokens * factor)

    @property
    def tokens(self) -> float:
        """Tokens read and drawn."""
        return self.prompt_tokens + self.completion_tokens

    def seconds(self, speed: Speed) -> float:
        """Time at this speed."""
        return self.prompt_tokens / speed.read + self.completion_tokens / speed.drawn


@dataclass(frozen=True, slots=True)
class Estimate:
    """Costs of a whole run by phase."""

    phases: dict[str, Cost]

    @property
    def total(self) -> Cost:
        """All phases together."""
        return sum(self.phases.values(), Cost())


def estimate(
    layers: Sequence[LayerSize], options: Options, *, train_size: int, dev_size: int, test_size: int
) -> Estimate:
    """steps · (forward + E-step + M-step) + validations + the final test of all networks.

    The last are the trained network (or all that answer together), the initial one, and the initial one with its
    output layer fitted on the dev set, where that is done.

    Args:
        layers: first to last.
        options: resolved options.
        train_size: examples to train on.
        dev_size: examples of a validation; 0 for none.
        test_size: examples of the final test; 0 for none.
    """
    depth = len(layers)
    batch = min(options.batch_size, train_size)
    options = _available(options, train_size)
    inference = improvement = proposals = forward = Cost()
    for step in range(options.steps):
        present = _present(layers, options, batch, step)
        forward += _forward(present, options) * batch
        for position in range(depth - 1):
            inference += _e_step(present[position], present[position + 1], options) * batch
        if _repeats(options, depth - 1):
            read = min(options.inference.worked, _pool(options, train_size))
            proposals += sum(map(_write, present[:-1]), Cost()) * read
        for position in range(depth):
            scored, asked = _m_step(layers, present, position, options, batch, step)
            improvement, proposals = improvement + scored, proposals + asked
    due = [step for step in range(1, options.steps + 1) if step % options.val_every == 0 or step == options.steps]
    at_once = 1 + min(options.ensemble - 1, options.inference.num_prompts)  # runners-up are validated too
    validations = ((_present(layers, options, batch, step), at_once if step else 1) for step in [0, *due])
    validation = sum((_validate(network, options) * n for network, n in validations), Cost())
    trained = _present(layers, options, batch, options.steps)
    answering = options.ensemble if dev_size and due else 1
    return Estimate(
        {
            "forward": forward,
            "E-step": inference,
            "M-step": improvement,
            "proposals": proposals,
            "validation": validation * dev_size,
            "test": (_forward(layers, options) + _forward(trained, options) * answering) * test_size
            + _fitted(layers, options, dev_size, test_size),
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


def _fitted(layers: Sequence[LayerSize], options: Options, dev_size: int, test_size: int) -> Cost:
    """The initial network with a fitted output layer: measured on dev to fit it, then on test."""
    if layers[-1].labels is None or options.inference.output_layer == "fixed" or not (dev_size and test_size):
        return Cost()
    return _validate(layers, options) * dev_size + _forward(layers, options) * test_size


def _forward(layers: Sequence[LayerSize], options: Options) -> Cost:
    """One example through all layers; a free answer is drawn and not scored."""

    def one(layer: LayerSize) -> Cost:
        if layer.labels is None:
            return _write(layer)
        return Cost(1, layer.context, FREE_TOKENS) if options.answers == "free" else _score(layer)

    return sum(map(one, layers), Cost())


def _validate(layers: Sequence[LayerSize], options: Options) -> Cost:
    """One example of a validation: labels are scored there even where the answer is free."""
    scored = layers[-1].labels is not None and options.answers == "free"
    return _forward(layers, options) + (_score(layers[-1]) if scored else Cost())


def _write(layer: LayerSize) -> Cost:
    return Cost(1, layer.context, layer.written)


def _score(layer: LayerSize) -> Cost:
    """One output under one prompt: all labels at once, or the text's own tokens."""
    return Cost(1, layer.context + (layer.written if layer.labels is None else layer.labels))


def _e_step(layer: LayerSize, above: LayerSize, options: Options) -> Cost:
    """K proposals for one example, each scored under its own layer and the one above."""
    chosen = options.inference
    particles = chosen.num_hidden + chosen.include_forward
    drawn = Cost(1, layer.context, layer.written) * chosen.num_hidden
    return drawn + (_score(layer) + _score(above)) * particles


def _m_step(
    layers: Sequence[LayerSize],
    present: Sequence[LayerSize],
    position: int,
    options: Options,
    batch: int,
    step: int,
) -> tuple[Cost, Cost]:
    """The candidates' scores on the batch, and the proposals of one layer."""
    chosen, depth = options.inference, len(layers)
    repeats = _repeats(options, position)
    particles = float(chosen.num_hidden + chosen.include_forward)
    # a pair is (particle below, particle of this layer); x and y are one each, and light particles are left out:
    # under prior and likelihood most weight is on one or two of them
    heavy = 1 + 0.25 * (particles - 1) if chosen.prune else particles
    pairs = batch * (1.0 if position == 0 else heavy) * (1.0 if position == depth - 1 else heavy)
    if repeats and position == depth - 1:
        # earlier examples judge too; a race seldom gets to all of them, but tells little on a handful
        earlier = min(float(chosen.evidence), float(batch * step))
        raced = max(0.0, earlier - max(0, _TELLING - batch)) if chosen.race else 0.0
        pairs += (earlier - 0.5 * raced) * (1.0 if position == 0 else heavy)
    layer, bare = present[position], layers[position]
    if not repeats:
        return _score(layer) * pairs, Cost()
    shares, weight = chosen.prompt_proposals, sum(chosen.prompt_proposals.values())
    shown = _demonstrations(options, position == depth - 1, batch, step)
    with_examples = chosen.num_prompts * shares.get("demonstrations", 0.0) / weight
    rewritten = chosen.num_prompts - with_examples
    if with_examples and position < depth - 1 and step == 0:
        pairs /= 2  # half of the first batch is shown, and not scored
    others = 1 + rewritten + (min(options.memory, step / options.val_every) if step else 0)
    scored = _score(_grown(bare, shown)) * with_examples + _score(layer) * others
    if chosen.exploration and position < depth - 1:
        scored += _score(layer) * (0.5 * (others + with_examples) / heavy)
    examples = min(chosen.backward_examples, batch * (0.5 if chosen.held_out_half else 1.0))
    answers = (
        chosen.num_prompts * (shares.get("rewrite", 0.0) + shares.get("sequence", 0.0) / chosen.sequence_count) / weight
    )
    frame = 70.0 + bare.prompt + examples * (bare.demonstration + 6.0)
    asked = Cost(1, frame, 0.6 * chosen.prompt_tokens) * answers
    return scored * pairs * repeats, asked * repeats


def _present(layers: Sequence[LayerSize], options: Options, batch: int, step: int) -> list[LayerSize]:
    """The layers as they are after so many steps: most incumbents show worked examples once those were proposed."""

    def shown(position: int) -> float:
        if not (step and _repeats(options, position)):
            return 0.0
        return 0.8 * _demonstrations(options, position == len(layers) - 1, batch, step - 1)

    return [_grown(layer, shown(i)) for i, layer in enumerate(layers)]


def _repeats(options: Options, position: int) -> int:
    given = options.inference.layer_steps
    return given if isinstance(given, int) else given[position]


def _grown(layer: LayerSize, shown: float) -> LayerSize:
    return replace(layer, context=layer.context + shown * layer.demonstration)


def _demonstrations(options: Options, last: bool, batch: int, step: int) -> float:
    """Worked examples of a proposal in this step; a hidden layer has only those that were worked out so far."""
    chosen = options.inference
    if "demonstrations" not in chosen.prompt_proposals:
        return 0.0
    if last:
        return sum(chosen.demonstrations) / len(chosen.demonstrations)
    pool = batch / 2 if step == 0 else min(batch * step, chosen.reservoir)
    return sum(min(size, pool) for size in chosen.demonstrations) / len(chosen.demonstrations)
