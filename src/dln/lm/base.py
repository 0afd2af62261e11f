"""What a language model is to the rest of the program: three verbs and a name.

Everything is batch-first and synchronous; concurrency is the engine's own business. All
log-probabilities are natural logarithms at temperature 1, of target tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
from annotated_types import Gt, Le, MinLen

from dln.arguments import Count, NonNegative, checked
from dln.numerics import Floats

__all__ = [
    "Capabilities",
    "Completion",
    "LanguageModel",
    "Sampling",
    "ScoringMode",
    "Target",
    "TokenLogProbs",
    "text_of",
]

ScoringMode = Literal["target scoring", "prompt log-probs", "forced decoding", "top-k", "Monte-Carlo", "accuracy"]
"""How log-probabilities are had, best first; the last is what is left where there are none."""


@checked
@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a completion.

    Args:
        temperature: 0 is greedy (the seed has no effect); otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        max_tokens: at most this many tokens are drawn, the terminator included.
        stop: the text ends before the first of these strings.

    Raises:
        InputError: a value is out of its range, or of another kind.
    """

    temperature: NonNegative = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    max_tokens: Count = 128
    stop: tuple[Annotated[str, MinLen(1)], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled text, with the ids it was sampled as.

    Attributes:
        text: decoded text, cut before the terminator or stop string.
        token_ids: the ids exactly as drawn, terminator or stop tokens last; None if the engine has none.
        log_probs: log p of each of `token_ids` under the model at temperature 1.
        sampling_log_probs: the same under the distribution that was drawn from (temperature, top_p);
            their sum is log q of this draw.
        text_tokens: how many leading `token_ids` carry text; the rest are the terminator.
        finish_reason: "stop" (terminator or stop string) or "length" (cut at max_tokens).
        model: fingerprint of the model that drew it. Only that model may reuse the ids.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    sampling_log_probs: tuple[float, ...] | None = None
    text_tokens: int | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    model: str = ""

    def with_text(self, text: str) -> Completion:
        """The same draw shown differently (for example stripped); ids and scores stay as drawn."""
        return replace(self, text=text)

    @property
    def identity(self) -> tuple[str, tuple[int, ...] | None]:
        """What makes two draws the same draw: the text and the ids it was drawn as."""
        return (self.text, self.token_ids)

    def __str__(self) -> str:
        return self.text


Target = str | Completion
"""What can be scored: a plain text (tokenised alone) or a sampled one (its ids as drawn)."""


def text_of(target: Target) -> str:
    """The text of a plain or sampled target."""
    return target if isinstance(target, str) else target.text


@dataclass(frozen=True, eq=False, slots=True)
class TokenLogProbs:
    """log p(token_t | context, tokens before t) for the tokens of one target.

    Attributes:
        values: one entry per target token, in nats, terminator last if the target has one.
        text_tokens: how many of them carry text (all, for a plain string).
    """

    values: Floats
    text_tokens: int

    @property
    def log_prob(self) -> float:
        """Σ_t log p(token_t | …), in nats: the only convention that may be called a log-likelihood."""
        return float(self.values.sum())

    @property
    def mean_token_log_prob(self) -> float:
        """Mean over the text's tokens, in nats per token: the paper's ranking score.

        The terminator is not counted (the original scores the bare text); for a target that is
        nothing but its terminator, the terminator is all there is.
        """
        return self.mean_after(0.0)

    def mean_after(self, burn_in: float) -> float:
        """`mean_token_log_prob` without the first ⌊burn_in · T⌋ of the text's T tokens, 0 ≤ burn_in < 1.

        The first tokens of a text depend on how it happens to begin more than on what it says; the original leaves
        the first 5 % out.
        """
        values = self.values[: self.text_tokens] if self.text_tokens else self.values
        values = values[int(burn_in * len(values)) :]
        return float(values.mean()) if len(values) else 0.0

    @property
    def finite(self) -> bool:
        """Whether every value is a possible log-probability: finite and not positive."""
        return bool(np.isfinite(self.values).all() and (self.values <= 1e-6).all())


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, so that callers choose by ability and not by name.

    Attributes:
        scores_targets: `log_prob` works: any text can be scored.
        scores_labels: `choice_log_probs` works: labels can be scored, by `label_scoring`.
        token_ids: draws carry the ids they were drawn as.
        chat: a context becomes a user's turn, and the answer is the assistant's.
        context_length: in tokens; None where there is no limit or it is not known.
        top_log_probs: how many of the next token's log-probabilities can be asked for; 0 for none.
        label_scoring: scoring mode of labels; "accuracy" where their probabilities are unavailable.
        text_scoring: scoring mode of texts; "accuracy" where their log-probabilities are unavailable.
    """

    scores_targets: bool
    scores_labels: bool
    token_ids: bool
    chat: bool
    context_length: int | None
    top_log_probs: int = 0
    label_scoring: ScoringMode = "target scoring"
    text_scoring: ScoringMode = "target scoring"


@runtime_checkable
class LanguageModel(Protocol):
    """A conditional distribution over texts.

    `contexts` are rendered texts; a chat model wraps each as one user turn and draws or scores the
    assistant's turn. Engines and wrappers satisfy the checks in `dln.lm.laws`.
    """

    @property
    def name(self) -> str:
        """The string that `load_lm` takes to give this model again."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        ...

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context; a draw depends on (context, sampling, seed) alone."""
        ...

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair."""
        ...

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label, terminator included, not normalised over labels.

        A label's mass is p(label's tokens, then no longer label), so that a label which is a prefix
        of another one competes fairly; a row's masses sum to ≤ 1.
        """
        ...

    def fingerprint(self) -> str:
        """Model, revision, quantisation and engine: equal fingerprints give equal numbers."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens in `text` as this model counts them (an estimate where the server has no tokenizer)."""
        ...
