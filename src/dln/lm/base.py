"""The protocol of a language model: `sample`, `log_prob`, `choice_log_probs`, `next_token_log_probs`, a fingerprint.

All calls are synchronous and take batches; concurrency is the engine's business. Log-probabilities are natural
logarithms at temperature 1, of target tokens only. Here are also what engines share: checks of requests before
anything is computed, the base class of wrappers, and batches of rows of similar length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
from annotated_types import Gt, Le, MinLen

from dln.arguments import Count, NonNegative, checked
from dln.errors import ContextLengthError, InputError
from dln.numerics import Floats

__all__ = [
    "Capabilities",
    "Completion",
    "LanguageModel",
    "NextRow",
    "NextTokens",
    "NextTokensVerb",
    "Sampling",
    "ScoringMode",
    "Target",
    "Token",
    "TokenLogProbs",
    "TopList",
    "Wrapper",
    "bucket",
    "check_counts",
    "check_fits",
    "check_ids",
    "check_starts",
    "first_token",
    "next_tokens_verb",
    "no_such_token",
    "text_of",
]

ScoringMode = Literal["target scoring", "prompt log-probs", "forced decoding", "top-k", "Monte-Carlo", "accuracy"]
"""How log-probabilities are obtained, best first; "accuracy" where they are unavailable."""


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


class Token(NamedTuple):
    """One token of a vocabulary: its text, a leading space included, and its id where the engine has ids."""

    text: str
    id: int | None = None


TopList = tuple[tuple[Token, float], ...]
"""The most probable tokens with their log p, the most probable first."""


class NextRow(NamedTuple):
    """The part of `NextTokens` that belongs to one context; log_probs: [T]."""

    log_probs: Floats
    bound: float
    top: TopList


@dataclass(frozen=True, eq=False, slots=True)
class NextTokens:
    """Log-probabilities of the next token after N contexts, in nats.

    Attributes:
        log_probs: [N, T] log p of the given tokens; NaN where the engine does not tell it (a server's top-k), −inf
            where the model excludes the token.
        bounds: [N] upper bound of every log p that is not told; −inf where all are told.
        top: per context, the most probable tokens.
    """

    log_probs: Floats
    bounds: Floats
    top: tuple[TopList, ...]

    @property
    def rows(self) -> list[NextRow]:
        """One row per context."""
        return [NextRow(*row) for row in zip(self.log_probs, map(float, self.bounds), self.top, strict=True)]

    @classmethod
    def of(cls, rows: Sequence[NextRow], tokens: int) -> NextTokens:
        """From one row per context, each with this many given tokens."""
        values = np.array([row.log_probs for row in rows], dtype=np.float64).reshape(len(rows), tokens)
        return cls(values, np.array([row.bound for row in rows], dtype=np.float64), tuple(row.top for row in rows))


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
        next_tokens: what `next_token_log_probs` tells: "all" tokens exactly, the `top_log_probs` most probable ones
            ("top"), or "none" (it is refused, or the engine does not have the verb).
        thinking_tokens: what a draw may use beyond `max_tokens` for the thoughts of a reasoning model.
    """

    scores_targets: bool
    scores_labels: bool
    token_ids: bool
    chat: bool
    context_length: int | None
    top_log_probs: int = 0
    label_scoring: ScoringMode = "target scoring"
    text_scoring: ScoringMode = "target scoring"
    next_tokens: Literal["all", "top", "none"] = "none"
    thinking_tokens: int = 0


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

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """log p of the given tokens as the next one after each context, and the `top` most probable tokens.

        One position per context, whatever the number of tokens. A token is identified by its id where the engine has
        ids and this id's text is the token's, otherwise by its text. `top` leaves out special tokens and those whose
        text is no valid UTF-8 or is encoded otherwise.

        Raises:
            InputError: the engine does not have one of the tokens, or `capabilities.next_tokens` is "none".
        """
        ...

    def fingerprint(self) -> str:
        """Model, revision, quantisation and engine: equal fingerprints give equal numbers."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens in `text` as this model counts them (an estimate where the server has no tokenizer)."""
        ...


NextTokensVerb = Callable[[Sequence[str], Sequence[Token], int], NextTokens]


def next_tokens_verb(lm: LanguageModel) -> NextTokensVerb:
    """`lm.next_token_log_probs`, which an engine need not have.

    Raises:
        InputError: `capabilities.next_tokens` is "none".
    """
    if lm.capabilities.next_tokens == "none":
        raise InputError(
            "this model does not give the log-probabilities of next tokens",
            where=lm.name,
            expected='capabilities.next_tokens of "all" or "top"',
            fix="use an output layer of label words",
        )
    return lm.next_token_log_probs


def first_token(lm: LanguageModel, text: str) -> Token | None:
    """The first token of `text` as a target; None where an engine does not know its model's tokens.

    An engine that knows them has a method of this name.
    """
    verb: object = getattr(lm, "first_token", None)
    return cast("Token | None", verb(text)) if callable(verb) else None


def no_such_token(token: Token, model: str) -> InputError:
    """The error for a token that an engine does not have."""
    return InputError(
        "the model's vocabulary has no such token",
        where=model,
        got=f"{token.text!r}, id {token.id}",
        expected="the text of one token, its leading space included",
        fix="take tokens from the `top` lists of next_token_log_probs",
    )


def check_counts(what: str, contexts: Sequence[object], others: Sequence[object]) -> None:
    """Refuse lists of unequal length.

    Raises:
        InputError: naming `what`.
    """
    if len(contexts) != len(others):
        raise InputError(
            f"as many {what} as contexts are needed",
            where=what,
            got=len(others),
            expected=f"{len(contexts)}",
            fix="give one per context",
        )


def check_fits(lengths: Sequence[int], limit: int | None, what: str, *, model: str | None = None) -> None:
    """Refuse what is longer than the model's context, in tokens; None is a context without limit.

    Args:
        lengths: of the requests.
        limit: the model's context.
        what: is counted by these lengths.
        model: its name, where several may be in use.

    Raises:
        ContextLengthError: naming the first request that is too long.
    """
    for index, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise ContextLengthError(
                f"{what} are longer than this model's context",
                where=f"request {index}" if model is None else f"{model}, request {index}",
                got=f"{length} tokens",
                expected=f"at most {limit} tokens",
                fix="shorten the text or the prompt, ask for fewer tokens, or use a model with a longer context",
            )


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int, where: str) -> None:
    """Refuse empty rows and what is no token id of this model.

    Raises:
        InputError: naming the first bad row.
    """
    for index, row in enumerate(rows):
        if not row:
            raise InputError("a prompt of no tokens cannot be continued or scored", where=f"{where}[{index}]")
        bad = next((token for token in row if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise InputError(
                "this is no token id of the model", where=f"{where}[{index}]", got=bad, expected=f"0 … {vocabulary - 1}"
            )


def check_starts(starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Refuse a first scored token that does not exist or has no token before it.

    Raises:
        InputError: naming the first bad start.
    """
    for index, (first, length) in enumerate(zip(starts, lengths, strict=True)):
        if not 1 <= first <= length:
            raise InputError(
                "scores begin at a token that has one before it",
                where=f"start[{index}]",
                got=first,
                expected=f"1 … {length}",
            )


class Wrapper:
    """A language model around another one; the four verbs are the subclass's own, of which it need not have the last.

    Only what the `LanguageModel` protocol names is passed on, each by a line of its own: an engine's
    other attributes are reached through `inner`, so that no call slips past the wrapper unseen.
    """

    def __init__(self, inner: LanguageModel) -> None:
        self._inner = inner

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """The model itself: it is a resource with locks and counters, shared by whatever uses it."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    @property
    def inner(self) -> LanguageModel:
        """The model that is wrapped, one layer down."""
        return self._inner

    @property
    def unwrapped(self) -> LanguageModel:
        """The engine under all wrappers."""
        return self._inner.unwrapped if isinstance(self._inner, Wrapper) else self._inner

    @property
    def name(self) -> str:
        """The wrapped model's name."""
        return self._inner.name

    @property
    def capabilities(self) -> Capabilities:
        """The wrapped model's capabilities; without next tokens if the wrapper does not have the verb."""
        can = self._inner.capabilities
        return can if hasattr(type(self), "next_token_log_probs") else replace(can, next_tokens="none")

    def first_token(self, text: str) -> Token | None:
        """As the wrapped model's."""
        return first_token(self._inner, text)

    def fingerprint(self) -> str:
        """The wrapped model's fingerprint: a wrapper changes no number."""
        return self._inner.fingerprint()

    def count_tokens(self, text: str) -> int:
        """As the wrapped model counts."""
        return self._inner.count_tokens(text)


def bucket(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Split rows into batches of at most `max_tokens` padded tokens and `max_rows` rows, longest first.

    The longest batch comes first, so that a shortage of memory shows at once and not after minutes. A row
    longer than `max_tokens` is a batch of its own. The result depends on the arguments alone.

    Args:
        lengths: length of each row, in tokens.
        max_tokens: bound on rows × longest row of a batch, in tokens.
        max_rows: bound on the rows of a batch.

    Returns:
        Row indices per batch; every index occurs once.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = max(1, lengths[index])
    return batches
