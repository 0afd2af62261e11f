"""The in-process engine: any causal language model that transformers can load, on the CPU or on CUDA.

    log p(target | context) = Σ_t log p(token_t | encode(context) ⧺ tokens before t)

The context is encoded as the model expects it, the target alone, and the ids are concatenated (see `tokenizer`).

`TokenLevel` is the same model below the level of texts, for servers: prompts come as texts or ids, are echoed with
their log-probabilities, and tokens are shown one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Protocol, cast, runtime_checkable

import numpy as np

from dln.arguments import Count, Size, checked
from dln.errors import InputError
from dln.lm.base import (
    Capabilities,
    Completion,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    TopList,
    check_counts,
    check_fits,
    check_ids,
    check_starts,
    no_such_token,
    text_of,
)
from dln.lm.labels import LabelTrie
from dln.lm.local.checkpoint import Checkpoint, Source, load_checkpoint
from dln.lm.local.decoding import DrawRequest, decode, own_ids, text_tokens
from dln.lm.local.model import CausalModel
from dln.lm.local.query import WINDOW_ASKED, Answer, BoundedMemo, Ids, LabelQuestions, Query, TopTokens, stream
from dln.lm.local.scoring import Scoring
from dln.lm.local.tokenizer import Codec
from dln.numerics import Floats

__all__ = ["TokenLevel", "TokenScores", "TransformersLM"]


@dataclass(frozen=True, eq=False, slots=True)
class TokenScores:
    """Log-probabilities of tokens, in nats, and the most probable tokens beside them.

    Attributes:
        log_probs: [T] log p of each wanted token.
        top: per position, the most probable tokens with their log p, the most probable first; () if not asked.
    """

    log_probs: Floats
    top: tuple[TopTokens, ...]

    @classmethod
    def of(cls, answer: Answer) -> TokenScores:
        """From the engine's answer."""
        return cls(answer.log_probs, answer.top)


@runtime_checkable
class TokenLevel(Protocol):
    """A model that takes and gives token ids."""

    def encode(self, text: str) -> Ids:
        """Ids of `text` as a target or completion: no special tokens, none recognised inside either."""
        ...

    def context_ids(self, context: str) -> Ids:
        """Ids of `text` as a context, special tokens or chat turns included; never empty."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` add to what stands before them; special tokens have none."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, which need not be whole characters; a special token's name."""
        ...

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD where bytes are no whole character."""
        ...

    def sample_ids(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per prompt, a function of (prompt, sampling, seed) alone."""
        ...

    def score_ids(self, sequences: Sequence[Ids], start: Sequence[int], top: int = 0) -> list[TokenScores]:
        """log p of each sequence's tokens from index `start` on (≥ 1: a first token has nothing before it).

        Position t of the scores belongs to token start + t, given all tokens before it.
        """
        ...

    def next_log_probs(self, prompts: Sequence[Ids], tokens: Sequence[int] = (), top: int = 0) -> list[TokenScores]:
        """After each prompt: log p of each of `tokens`, and the `top` most probable tokens (one position)."""
        ...


def sequence_query(ids: Ids, start: int, top: int) -> Query:
    """The query for log p of `ids[start:]`, each token given all before it; 1 ≤ start ≤ len(ids)."""
    positions = tuple(range(start - 1, len(ids) - 1))
    return Query(tuple(ids[:-1]), positions, tuple((token,) for token in ids[start:]), top=top)


def next_query(ids: Ids, tokens: Sequence[int], top: int) -> Query:
    """The query for the distribution after `ids`."""
    return Query(tuple(ids), (len(ids) - 1,), (tuple(tokens),), top=top)


def token_scores(scoring: Scoring, rows: Sequence[Ids], query_of: Callable[[int], Query]) -> list[TokenScores]:
    """The scores of each row's query; a query about no position has none."""
    scores = [TokenScores(np.zeros(0), ())] * len(rows)
    keys = [tuple(row) for row in rows]

    def queries_of(index: int) -> list[Query]:
        query = query_of(index)
        return [query] if query.positions else []

    for index, answers in stream(scoring, keys, list(map(len, keys)), queries_of):
        if answers:
            scores[index] = TokenScores.of(answers[0])
    return scores


ENGINE_VERSION = "1"

SPARE_TOKENS = 16
"""Read beside the wanted top tokens and a quarter more, in place of those that are left out."""


@checked
@dataclass(frozen=True, eq=False)
class TransformersLM:
    """A language model in this process.

    Args:
        name: the string that `load_lm` takes to give this model again.
        checkpoint: the weights and the tokenizer; siblings share it.
        chat: whether a context is wrapped as one user turn, and the assistant's turn drawn or scored.
        batch_tokens: tokens per forward when scoring, which bounds memory as `scoring` says, whatever the number
            of requests; when sampling, 8 times as many may be cached. None takes what suits the device.
        batch_rows: draws side by side; None takes what suits the device. Neither changes a draw.
    """

    name: str
    checkpoint: Checkpoint
    chat: bool = False
    batch_tokens: Count | None = None
    batch_rows: Count | None = None

    def __post_init__(self) -> None:
        if self.chat and not self.codec.has_chat:
            raise InputError(
                "this model has no chat template", where=self.name, fix="use it as a completion model (chat=False)"
            )

    def __deepcopy__(self, memo: dict[int, object]) -> TransformersLM:
        """The model itself: its weights are shared by whatever uses it."""
        return self

    def __repr__(self) -> str:
        return f"TransformersLM({self.name!r})"  # not the weights: a network is printed with its models

    @classmethod
    def load(
        cls,
        source: Source,
        *,
        name: str,
        chat: bool = False,
        batch_tokens: Count | None = None,
        batch_rows: Count | None = None,
    ) -> TransformersLM:
        """Load a folder, GGUF file or hub id; see `Source` for device and dtype, the class for the options."""
        return cls(name, load_checkpoint(source), chat, batch_tokens, batch_rows)

    def with_chat(self, chat: bool) -> TransformersLM:
        """The same weights as a chat model or as a completion model; ids drawn by one can be scored by the other."""
        name = self.name.removesuffix(":chat") + (":chat" if chat else "")
        return replace(self, name=name, chat=chat)

    @property
    def network(self) -> CausalModel:
        """The model's forwards."""
        return self.checkpoint.network

    @property
    def codec(self) -> Codec:
        """The model's tokenizer."""
        return self.checkpoint.codec

    @property
    def capabilities(self) -> Capabilities:
        """Everything, up to the model's context length."""
        return Capabilities(
            scores_targets=True,
            scores_labels=True,
            token_ids=True,
            chat=self.chat,
            context_length=self.network.context_length,
            next_tokens="all",
        )

    @property
    def tokens_id(self) -> str:
        """Identity of weights and tokenizer, which siblings with and without chat share.

        The fingerprint begins with it. A completion drawn by a model with the same `tokens_id` is scored on
        its ids, whatever its chat flag, dtype or device.
        """
        return f"transformers:{self.network.identity[:32]}"

    @property
    def diagnostics(self) -> dict[str, int]:
        """Counts since loading, shared by siblings; see `Counters`."""
        return asdict(self.network.counters)

    def fingerprint(self) -> str:
        """Content of the model's files, then dtype, device type, chat or completion, and engine version."""
        kind = "chat" if self.chat else "completion"
        return f"{self.tokens_id}:{self.network.dtype}:{self.network.device.type}:{kind}:{ENGINE_VERSION}"

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a target, without special tokens."""
        return self.codec.count_tokens(text)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of each target's tokens given its context, pair by pair; an empty target has no values.

        Raises:
            ContextLengthError: a request is longer than the model's context; nothing has been computed then.
        """
        check_counts("targets", contexts, targets)
        context_of, target_of = self._memo(self._context), self._memo(self.codec.target_ids)

        def target_ids(target: Target) -> Ids:
            own = own_ids(target, self.tokens_id)
            return target_of(text_of(target)) if own is None else own

        def queries_of(index: int) -> list[Query]:
            context, target = context_of(contexts[index]), target_ids(targets[index])
            return [sequence_query((*context, *target), len(context), 0)] if target else []

        pairs = zip(contexts, targets, strict=True)
        lengths = array("l", (len(context_of(context)) + len(target_ids(target)) for context, target in pairs))
        self._check_fits(lengths, "context and target")
        nothing = np.zeros(0)
        scores = [TokenLogProbs(nothing, 0)] * len(targets)
        for index, answers in stream(self._scoring(), contexts, lengths, queries_of):
            values = answers[0].log_probs if answers else nothing
            scores[index] = TokenLogProbs(values, text_tokens(targets[index], self.tokens_id, len(values)))
        return scores

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log-mass of each label over the label trie; rows sum to ≤ 1.

        One-token labels of which none begins another cost one forward row per context.

        Raises:
            InputError: an empty label, or two labels that are the same tokens.
            ContextLengthError: a request is longer than the model's context; nothing has been computed then.
        """
        trie = LabelTrie.build(labels, [self.codec.target_ids(label) for label in labels])
        questions = LabelQuestions.of(trie)
        context_of = self._memo(self._context)
        longest = max(map(len, trie.ids))
        lengths = array("l", (len(context_of(context)) + longest for context in contexts))
        self._check_fits(lengths, "context and longest label")
        masses = np.zeros((len(contexts), len(labels)))
        for index, answers in stream(
            self._scoring(), contexts, lengths, lambda i: questions.queries(context_of(contexts[i]))
        ):
            masses[index] = questions.masses(answers)
        return masses

    def first_token(self, text: str) -> Token | None:
        """The first token of `text` as a target."""
        return self.codec.first_token(text)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: Size = 0) -> NextTokens:
        """log p of the given tokens after each context, and the `top` most probable tokens (one position).

        Raises:
            InputError: a token that the vocabulary does not have.
            ContextLengthError: a context is longer than the model's; nothing has been computed then.
        """
        wanted, asked = self.token_ids(tokens), top and top + top // 4 + SPARE_TOKENS
        context_of = self._memo(self._context)
        lengths = array("l", (len(context_of(context)) for context in contexts))
        self._check_fits(lengths, "the contexts")
        values = np.zeros((len(contexts), len(wanted)))
        best: list[TopList] = [()] * len(contexts)

        def queries_of(index: int) -> list[Query]:
            return [next_query(context_of(contexts[index]), wanted, asked)]

        for index, answers in stream(self._scoring(), contexts, lengths, queries_of) if wanted or top else ():
            values[index] = answers[0].log_probs
            found = ((self.codec.token(token_id), log_p) for token_id, log_p in answers[0].top[0])
            best[index] = tuple(islice(((token, log_p) for token, log_p in found if token is not None), top))
        return NextTokens(values, np.full(len(contexts), -np.inf), tuple(best))

    def token_ids(self, tokens: Sequence[Token]) -> Ids:
        """The ids of `tokens`.

        Raises:
            InputError: a token that the vocabulary does not have.
        """
        ids = tuple(map(self.codec.token_id, tokens))
        if None in ids:
            raise no_such_token(tokens[ids.index(None)], self.name)
        return cast("Ids", ids)

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context; a draw depends on (context, sampling, seed) alone.

        Raises:
            ContextLengthError: a context and `max_tokens` exceed the model's context; nothing has been drawn then.
        """
        return self.sample_ids([self._context(context) for context in contexts], sampling, seeds)

    def sample_ids(self, prompts: Sequence[Ids], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per prompt of ids; see `TokenLevel`."""
        check_counts("seeds", prompts, seeds)
        check_ids(prompts, self.network.vocabulary, "prompts")
        self._check_fits([len(prompt) + sampling.max_tokens for prompt in prompts], "context and max_tokens")
        return decode(
            self.network,
            self.codec,
            [DrawRequest(tuple(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)],
            sampling,
            batch_rows=self.batch_rows or self.network.usual_batch_rows,
            batch_tokens=8 * self._tokens,
            fingerprint=self.fingerprint(),
        )

    def encode(self, text: str) -> Ids:
        """Ids of `text` as a target; see `TokenLevel`."""
        return self.codec.target_ids(text)

    def context_ids(self, context: str) -> Ids:
        """Ids of `context`, as one user turn for a chat model; see `TokenLevel`."""
        return self._context(context)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` add; see `TokenLevel`."""
        return self.codec.text(ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; see `TokenLevel`."""
        check_ids([(token_id,)], self.network.vocabulary, "token_id")
        return self.codec.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The bytes of one token as text; see `TokenLevel`."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def score_ids(self, sequences: Sequence[Ids], start: Sequence[int], top: int = 0) -> list[TokenScores]:
        """log p of the tokens from `start` on, with the `top` most probable; see `TokenLevel`."""
        check_counts("start", sequences, start)
        check_ids(sequences, self.network.vocabulary, "sequences")
        self._check_fits([len(ids) for ids in sequences], "the ids")
        check_starts(start, [len(ids) for ids in sequences])
        return token_scores(self._scoring(), sequences, lambda i: sequence_query(sequences[i], start[i], top))

    def next_log_probs(self, prompts: Sequence[Ids], tokens: Sequence[int] = (), top: int = 0) -> list[TokenScores]:
        """log p of `tokens` and the `top` most probable after each prompt; see `TokenLevel`."""
        check_ids([*prompts, (0, *tokens)], self.network.vocabulary, "prompts and tokens")
        self._check_fits([len(prompt) for prompt in prompts], "the ids")
        return token_scores(self._scoring(), prompts, lambda i: next_query(prompts[i], tokens, top))

    @property
    def _tokens(self) -> int:
        return self.batch_tokens or self.network.usual_batch_tokens

    def _scoring(self) -> Scoring:
        return Scoring(self.network, self._tokens)

    def _memo(self, encode: Callable[[str], Ids]) -> BoundedMemo:
        return BoundedMemo(encode, WINDOW_ASKED * self._tokens)

    def _context(self, context: str) -> Ids:
        return self.codec.context_ids(context, self.chat)

    def _check_fits(self, lengths: Sequence[int], what: str) -> None:
        check_fits(lengths, self.network.context_length, what)
