"""Racing: candidates are scored on a growing part of the batch, and who is clearly behind stops.

    round r:  S_1 ⊂ S_2 ⊂ … ⊂ S_R = all n counted examples;   every candidate still in is scored on S_r
    d_i     = s^candidate_i − s^leader_i   for i in S_r,      leader = best mean on S_r
    stop if   mean(d) + radius < 0

The reference is full scoring of the very same n examples, so a round is a sample without replacement
from a finite batch, and the radius shrinks to nothing as the round grows to the batch. Rounds ask the
models only for what the earlier ones did not ask (see `dln.infer.race`). Who is still in at the end
is scored on all examples by the same call as without racing: the winner and the incumbent, who never
stops, have complete scores, equal to those of full scoring.

What was asked within one step is not asked again: the same question has the same answer.

A step asks the same things in several places. The incumbent is scored when the hidden texts are
weighed, again as candidate 0 of the M-step, and again for the evidence bound; racing asks of a growing
part of the batch in each round. `Recall` keeps the answers of one step in memory, in front of the
models; it changes no number, and it is gone when the step is over.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dln.errors import InputError
from dln.infer.objective import Candidates, Objective, Scored, Stopped, comparable
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextRow,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
    next_tokens_verb,
    text_of,
)
from dln.nn.layers import Layer
from dln.nn.sequential import Sequential
from dln.numerics import Floats, student_quantile

__all__ = [
    "BehindLeader",
    "Race",
    "Recall",
    "Recalled",
    "StoppingRule",
    "WordMemory",
    "with_word_memory",
    "without_word_memory",
]

QuestionT = TypeVar("QuestionT", bound=Hashable)
AnswerT = TypeVar("AnswerT")


class Recall(Wrapper):
    """A language model that is asked each question once; equal questions of one call are asked once too.

    It stands between a step and its models for the length of the step. Proposals may use what an engine
    offers beside the four verbs, so all other attributes are the model's own.
    """

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner)
        self._draws: dict[tuple[str, Sampling, int], Completion] = {}
        self._scores: dict[tuple[str, Hashable], TokenLogProbs] = {}
        self._masses: dict[tuple[str, tuple[str, ...]], Floats] = {}
        self._lists: dict[tuple[Token, ...], int] = {}
        self._next: dict[tuple[str, int, int], NextRow] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """Draws; a greedy one has no seed."""
        greedy = sampling.temperature == 0
        return _answer(
            self._draws,
            [(c, sampling, 0 if greedy else s) for c, s in zip(contexts, seeds, strict=True)],
            lambda new: self._inner.sample([contexts[i] for i in new], sampling, [seeds[i] for i in new]),
        )

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """Token scores of (context, target) pairs; draws that differ only in how they were drawn are one target."""
        return _answer(
            self._scores,
            [(c, _scored_as(t)) for c, t in zip(contexts, targets, strict=True)],
            lambda new: self._inner.log_prob([contexts[i] for i in new], [targets[i] for i in new]),
        )

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] label masses."""
        names = tuple(labels)
        rows = _answer(
            self._masses,
            [(context, names) for context in contexts],
            lambda new: list(self._inner.choice_log_probs([contexts[i] for i in new], names)),
        )
        return np.stack(rows) if rows else np.zeros((0, len(names)))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """Next-token log-probabilities; a list of tokens is remembered as a whole."""
        given = self._lists.setdefault(tuple(tokens), len(self._lists))
        ask = next_tokens_verb(self._inner)
        rows = _answer(
            self._next,
            [(context, given, top) for context in contexts],
            lambda new: ask([contexts[i] for i in new], tokens, top).rows,
        )
        return NextTokens.of(rows, len(tokens))


class WordMemory(Wrapper):
    """A language model that keeps the next-token log-probabilities of a whole run, those of the newest contexts.

    A word readout is fitted again and again to what a prompt says of the same examples: when candidates are compared,
    at a validation, and in the end.
    """

    def __init__(self, inner: LanguageModel, limit: int = 20_000) -> None:
        super().__init__(inner)
        self._limit = limit
        self._lists: dict[tuple[Token, ...], int] = {}
        self._rows: OrderedDict[tuple[str, int], NextRow] = OrderedDict()

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """As the model's."""
        return self._inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """As the model's."""
        return self._inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """As the model's."""
        return self._inner.choice_log_probs(contexts, labels)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """The model's answers, each context with these tokens asked once; lists of the most probable are not kept."""
        ask = next_tokens_verb(self._inner)
        if top:
            return ask(contexts, tokens, top)
        given = self._lists.setdefault(tuple(tokens), len(self._lists))
        questions = [(context, given) for context in contexts]

        def answers(new: list[int]) -> list[NextRow]:
            rows = ask([contexts[i] for i in new], tokens, 0).rows
            return [row._replace(log_probs=row.log_probs.astype(np.float32)) for row in rows]

        found = _answer(self._rows, questions, answers)
        for question in questions:
            self._rows.move_to_end(question)
        while len(self._rows) > self._limit:
            self._rows.popitem(last=False)
        return NextTokens.of(found, len(tokens))


def with_word_memory(network: Sequential) -> Sequential:
    """The network with a `WordMemory` in front of each model that tells the probabilities of words."""
    fronts: dict[int, LanguageModel] = {}

    def front(lm: LanguageModel) -> LanguageModel:
        return lm if lm.capabilities.next_tokens == "none" else fronts.setdefault(id(lm), WordMemory(lm))

    return Sequential(layer.map_models(front) for layer in network.layers)


def without_word_memory(network: Sequential) -> Sequential:
    """The network with its own models again."""
    return Sequential(
        layer.map_models(lambda lm: lm.inner if isinstance(lm, WordMemory) else lm) for layer in network.layers
    )


def _scored_as(target: Target) -> Hashable:
    """What the score of a target depends on."""
    if isinstance(target, str):
        return target
    return (target.text, target.token_ids, target.text_tokens, target.model)


def _answer(
    known: dict[QuestionT, AnswerT], questions: Sequence[QuestionT], ask: Callable[[list[int]], Sequence[AnswerT]]
) -> list[AnswerT]:
    """Answers in order; what is not known is asked in one call, by the place where it first stands.

    Raises:
        InputError: the model gave another number of answers.
    """
    new = {question: i for i, question in reversed(list(enumerate(questions))) if question not in known}
    places = sorted(new.values())
    if places:
        answers = ask(places)
        if len(answers) != len(places):
            raise InputError("the model answered another number of requests", got=len(answers), expected=len(places))
        known.update({questions[i]: answer for i, answer in zip(places, answers, strict=True)})
    return [known[question] for question in questions]


@dataclass(frozen=True, eq=False)
class Recalled:
    """Layers whose models remember, and the way back to the models as they were.

    Attributes:
        models: each model beside the `Recall` in front of it.
    """

    models: tuple[tuple[LanguageModel, Recall], ...]

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> Recalled:
        """One memory per model object; layers that share a model share its memory, and one that has one keeps it."""
        distinct = {id(lm): lm for layer in layers for lm in layer.models if not isinstance(lm, Recall)}
        return cls(tuple((lm, Recall(lm)) for lm in distinct.values()))

    def remembering(self, layer: Layer) -> Layer:
        """The layer with a memory in front of each of its models."""
        return layer.map_models(lambda own: next((front for lm, front in self.models if lm is own), own))

    def plain(self, layer: Layer) -> Layer:
        """The layer with its own models again."""
        return layer.map_models(lambda own: next((lm for lm, front in self.models if front is own), own))

    def remembering_network(self, network: Sequential) -> Sequential:
        """All layers with memory."""
        return Sequential(map(self.remembering, network.layers))

    def plain_network(self, network: Sequential) -> Sequential:
        """All layers without."""
        return Sequential(map(self.plain, network.layers))


Flags = npt.NDArray[np.bool_]


class StoppingRule(Protocol):
    """Who is clearly behind after a round."""

    def __call__(self, per_example: Floats, total: int, rivals: int, checks: int) -> Flags:
        """[M] True for a candidate that stops.

        Args:
            per_example: [M, B] terms of the candidates still in, NaN for examples not scored yet.
            total: n, the examples that full scoring would use.
            rivals: N − 1, the candidates that one could be compared with, stopped ones included.
            checks: R − 1, how often the rule is asked in this race.
        """
        ...


@dataclass(frozen=True)
class BehindLeader:
    """Stop where the mean paired difference to the leader plus its confidence radius is below zero.

        radius = t_{m−1}(1 − δ') · max(s_d, s̃) · √(1/m − 1/n),     δ' = δ / ((R − 1)(N − 1))

    m examples are scored of n, s_d is the standard deviation of the differences, s̃ the median of the
    candidates' s_d (a few differences may agree by chance; where s̃ and s_d are 0 nothing is known of
    the spread and nobody stops). √(1/m − 1/n) is the finite-population correction of 1/√m.

    Guarantee: let w be the winner of full scoring. If its paired differences to any other candidate are
    normally distributed over examples and the order of the examples is independent of them, then
    (mean over n − mean over m) / (s_d √(1/m − 1/n)) has exactly a t distribution with m − 1 degrees of
    freedom, so w is stopped against a given leader in a given round with probability ≤ δ'. The leader
    is one of N − 1 others and there are R − 1 rounds that stop: by the union bound w is stopped in the
    race with probability ≤ δ, and the winner differs from full scoring's no more often, however the
    leaders come about. Without normality this holds as far as the central limit theorem has got at m
    examples; s̃ is there for the rest. An order that spreads the wanted outputs evenly, as that of `Race`,
    leaves less error than independent draws wherever differences depend on the output. A term that depends
    on the other examples of its round (an output layer fitted to them) is compared as that round has it,
    see `Race`.

    Args:
        error: δ, between 0 and 1.
    """

    error: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.error < 1:
            raise InputError("the error of racing must lie between 0 and 1", where="race_error", got=self.error)

    def __call__(self, per_example: Floats, total: int, rivals: int, checks: int) -> Flags:
        """[M] who stops; nobody on fewer than two comparable examples."""
        used = comparable(np.isfinite(per_example))
        count = int(used.sum())
        if count < 2 or count >= total:
            return np.zeros(len(per_example), dtype=np.bool_)
        terms = per_example[:, used]
        leader = int(np.nanargmax(terms.mean(axis=1)))
        differences = terms - terms[leader]
        spread = differences.std(axis=1, ddof=1)
        others = np.delete(spread, leader)
        known = others[np.isfinite(others)]
        spread = np.maximum(spread, np.median(known) if len(known) else 0.0)
        quantile = student_quantile(1 - self.error / (rivals * checks), count - 1)
        radius = quantile * spread * np.sqrt(1 / count - 1 / total)
        # a candidate without scores compares as NaN, which is never below zero
        return np.asarray((spread > 0) & (differences.mean(axis=1) + radius < 0), dtype=np.bool_)


@dataclass(frozen=True)
class Race:
    """An objective that scores in rounds and leaves out who cannot win any more.

    Examples are taken in a random order that spreads the wanted outputs evenly, drawn from the step's
    key. The first round has `start` of the counted examples and `fewest` at least, each further one
    `growth` times as many, the last one all.

    The comparison is of the objective alone. Where a penalty is taken off the scores afterwards, a
    candidate that is behind could still win, so a layer with penalties must not be raced
    (`dln.train.options` does not).

    An output layer that is fitted anew for each candidate is fitted in every round to that round's
    examples, cross-fitted as always: each term is held out, but by a fit to fewer examples than in the
    end. All candidates of a round are compared after equal amounts of fitting. A fit to one example or
    none of a label mostly shows its prior, so `fewest` should be twice the number of labels then. Terms of
    one round share fits and are not quite independent, and the rule's guarantee is approximate for them.

    An example that is unusable for a stopped candidate alone counts for the survivors, which without
    racing it would not.

    Args:
        objective: what is wrapped.
        rule: who stops.
        start: part of the counted examples in the first round.
        fewest: examples in the first round at least.
        growth: how many times as many examples each further round has.
    """

    objective: Objective
    rule: StoppingRule = field(default_factory=BehindLeader)
    start: float = 0.25
    fewest: int = 4
    growth: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise InputError("the first round's part must lie in (0, 1]", where="race_start", got=self.start)
        if self.fewest < 2 or not self.growth > 1:
            raise InputError(
                "a race needs rounds of two examples or more, and growing ones",
                where="race",
                got=f"fewest {self.fewest}, growth {self.growth}",
            )

    def __call__(self, candidates: Candidates) -> Scored:
        """Terms of the survivors on all counted examples; stopped candidates are all NaN."""
        memory = Recalled.of((*candidates.layers, *candidates.above))
        running = replace(
            candidates,
            layers=tuple(map(memory.remembering, candidates.layers)),
            above=tuple(map(memory.remembering, candidates.above)),
        )
        order = balanced_order(candidates)
        rounds = self.rounds(len(order))
        rivals, checks = len(candidates.layers) - 1, len(rounds) - 1
        alive = list(range(len(candidates.layers)))
        stopped: list[Stopped | None] = [None] * len(alive)
        cost = _Cost.of(candidates, order)
        for number, size in enumerate(rounds[:-1], 1):
            if len(alive) == 1:
                break
            part = self.objective(_some(running, alive, order[:size]))
            cost = cost.after(size, len(alive))
            out = self.rule(part.per_example, len(order), rivals, checks)
            scores = part.scores
            for place, n in enumerate(alive):
                # the incumbent is compared with in the end: its score is complete
                if out[place] and n != 0:
                    stopped[n] = Stopped(number, int(part.used.sum()), float(scores[place]))
            alive = [n for n in alive if stopped[n] is None]
        final = self.objective(_some(running, alive, order))
        terms = np.full((len(candidates.layers), len(candidates.trace)), np.nan)
        terms[alive] = final.per_example
        layers = list(candidates.layers)
        for n, layer in zip(alive, final.layers, strict=True):
            layers[n] = memory.plain(layer)
        return Scored(tuple(layers), terms, tuple(stopped), cost.after(len(order), len(alive)).share)

    def rounds(self, total: int) -> list[int]:
        """Examples scored by the end of each round, for `total` counted ones; the last is all of them."""
        sizes: list[int] = []
        size = max(self.fewest, int(np.ceil(self.start * total)))
        while size < total:
            sizes.append(size)
            size = int(np.ceil(self.growth * size))
        return [*sizes, total]


def balanced_order(candidates: Candidates) -> list[int]:
    """The counted examples in random order, the wanted outputs spread evenly over it."""
    generator = candidates.key.child("race").generator()
    wanted = [text_of(particles.mode) for particles in candidates.posterior.levels[-1]]
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i in generator.permutation(np.flatnonzero(candidates.counted)):
        members[wanted[int(i)]].append(int(i))
    places: list[tuple[float, int]] = []
    for group in members.values():
        offset = generator.random()
        places.extend(((rank + offset) / len(group), i) for rank, i in enumerate(group))
    return [i for _, i in sorted(places)]


@dataclass(frozen=True)
class _Cost:
    """Pairs scored so far, against all pairs of all candidates."""

    pairs: tuple[int, ...]
    candidates: int
    seen: int = 0
    scored: int = 0

    @classmethod
    def of(cls, candidates: Candidates, order: list[int]) -> _Cost:
        counts = np.bincount(candidates.pairs.examples, minlength=len(candidates.trace))
        return cls(tuple(int(counts[i]) for i in order), len(candidates.layers))

    def after(self, size: int, alive: int) -> _Cost:
        return replace(self, seen=size, scored=self.scored + alive * sum(self.pairs[self.seen : size]))

    @property
    def share(self) -> float:
        everything = self.candidates * sum(self.pairs)
        return self.scored / everything if everything else 1.0


def _some(candidates: Candidates, alive: list[int], examples: list[int]) -> Candidates:
    counted = np.zeros(len(candidates.trace), dtype=np.bool_)
    counted[examples] = True
    return replace(candidates, layers=tuple(candidates.layers[n] for n in alive), counted=counted)
