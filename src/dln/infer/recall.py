"""What was asked within one step is not asked again: the same question has the same answer.

A step asks the same things in several places. The incumbent is scored when the hidden texts are
weighed, again as candidate 0 of the M-step, and again for the evidence bound; racing asks of a growing
part of the batch in each round. `Recall` keeps the answers of one step in memory, in front of the
models; it changes no number, and it is gone when the step is over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dln.errors import InputError
from dln.lm.base import Completion, LanguageModel, Sampling, Target, TokenLogProbs
from dln.lm.wrapper import Wrapper
from dln.nn.sequential import AnyLayer, Sequential
from dln.numerics import Floats

__all__ = ["Recall", "Recalled"]

QuestionT = TypeVar("QuestionT", bound=Hashable)
AnswerT = TypeVar("AnswerT")


class Recall(Wrapper):
    """A language model that is asked each question once; equal questions of one call are asked once too.

    It stands between a step and its models for the length of the step. Proposals may use what an engine
    offers beside the three verbs, so all other attributes are the model's own.
    """

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner)
        self._draws: dict[tuple[str, Sampling, int], Completion] = {}
        self._scores: dict[tuple[str, Hashable], TokenLogProbs] = {}
        self._masses: dict[tuple[str, tuple[str, ...]], Floats] = {}

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
    def of(cls, layers: Sequence[AnyLayer]) -> Recalled:
        """One memory per model object; layers that share a model share its memory, and one that has one keeps it."""
        distinct = {id(layer.lm): layer.lm for layer in layers if not isinstance(layer.lm, Recall)}
        return cls(tuple((lm, Recall(lm)) for lm in distinct.values()))

    def remembering(self, layer: AnyLayer) -> AnyLayer:
        """The layer with its model's memory in front."""
        return next((replace(layer, lm=front) for lm, front in self.models if lm is layer.lm), layer)

    def plain(self, layer: AnyLayer) -> AnyLayer:
        """The layer with its own model again."""
        return next((replace(layer, lm=lm) for lm, front in self.models if front is layer.lm), layer)

    def remembering_network(self, network: Sequential) -> Sequential:
        """All layers with memory."""
        return Sequential(map(self.remembering, network.layers))

    def plain_network(self, network: Sequential) -> Sequential:
        """All layers without."""
        return Sequential(map(self.plain, network.layers))
