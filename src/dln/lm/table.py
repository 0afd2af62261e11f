"""`TableLM`: a language model given by a table of exact probabilities, for laws, tests and teaching.

A context has a distribution over complete texts. Texts are cut into words, each with the white space before it, end
with an explicit terminator and form a tree of prefixes. The mass of a node is the probability of all texts below it,
and p(token | prefix) is the ratio of two masses. Scores, label masses and draws are therefore exact, and whatever
inference claims can be checked against enumeration.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, cast

import numpy as np

from dln.arguments import Count, Positive, Seed, Size, checked, shown
from dln.errors import InputError
from dln.lm.base import (
    Capabilities,
    Completion,
    NextRow,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    check_counts,
    no_such_token,
)
from dln.lm.local.decoding import drawing_probabilities
from dln.numerics import Floats
from dln.random import Key

__all__ = ["END", "PrefixTree", "TableLM", "id_of", "split_tokens"]

END = ""
"""The terminator among a node's children; no word is empty, so the name is free."""

TERMINATOR_ID = 0
"""The id of the terminator."""

_WORD = re.compile(r"\s*\S+|\s+")


@lru_cache(maxsize=4096)  # a table asks for the words of the same few texts in every context
def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the white space before them; `"".join(split_tokens(text)) == text`."""
    return tuple(_WORD.findall(text))


@lru_cache(maxsize=4096)
def id_of(token: str) -> int:
    """A stable 48-bit id, 0 for the terminator alone.

    48 bits are exact in any JSON reader, and two words do not meet by chance.
    """
    if token == END:
        return TERMINATOR_ID
    return int.from_bytes(hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=6).digest(), "big") or 1


@lru_cache(maxsize=256)  # the texts of most tables are the same in every context
def _shape(
    paths: tuple[tuple[str, ...], ...],
) -> tuple[int, tuple[int, ...], tuple[tuple[int, tuple[tuple[str, int], ...]], ...]]:
    """The prefixes of `paths`, numbered from the root: their number, the ends, and the children of the others.

    The children are in the order of the words; of two inner nodes on a path, the deeper one is first.
    """
    children: list[dict[str, int]] = [{}]
    leaves: list[int] = []
    for path in paths:
        at = 0
        for token in path:
            if token not in children[at]:
                children[at][token] = len(children)
                children.append({})
            at = children[at][token]
        leaves.append(at)
    inner = [(at, tuple(sorted(below.items()))) for at, below in enumerate(children) if below]
    return len(children), tuple(leaves), tuple(reversed(inner))


@dataclass(slots=True)
class PrefixTree:
    """A prefix: its mass, and what may follow it, in the order of the words (the terminator is first)."""

    mass: float = 0.0
    children: dict[str, PrefixTree] = field(default_factory=dict[str, "PrefixTree"])
    _by_id: dict[int, PrefixTree] | None = None

    @property
    def by_id(self) -> dict[int, PrefixTree]:
        """The children by the ids of their words."""
        if self._by_id is None:
            self._by_id = {id_of(token): child for token, child in self.children.items()}
        return self._by_id

    @classmethod
    def of(cls, masses: Mapping[tuple[str, ...], float]) -> PrefixTree:
        """The tree of complete paths, with the mass of each; an inner node has the mass of its children."""
        size, leaves, inner = _shape(tuple(masses))
        nodes = [cls() for _ in range(size)]
        for at, mass in zip(leaves, masses.values(), strict=True):
            nodes[at].mass = mass
        for at, below in inner:
            node = nodes[at]
            node.children = {token: nodes[child] for token, child in below}
            masses_below = [child.mass for child in node.children.values()]
            node.mass = masses_below[0] if len(masses_below) == 1 else math.fsum(masses_below)
        return nodes[0]

    def log_prob_after(self, parent: PrefixTree) -> float:
        """log p(this token | the prefix of `parent`), never positive."""
        return math.log(self.mass / parent.mass)

    def follow(self, path: Sequence[str]) -> PrefixTree | None:
        """The node at the end of `path`, if any text goes that way."""
        node: PrefixTree | None = self
        for token in path:
            node = node.children.get(token) if node else None
        return node

    def leaves(self) -> Iterator[tuple[list[str], list[float]]]:
        """Each complete path with its tokens' log-probabilities, in the order of the words."""
        pending: list[tuple[PrefixTree, list[str], list[float]]] = [(self, [], [])]
        while pending:
            node, tokens, log_probs = pending.pop()
            if not node.children:
                yield tokens, log_probs
            for token, child in reversed(node.children.items()):
                pending.append((child, [*tokens, token], [*log_probs, child.log_prob_after(node)]))


@checked
class TableLM:
    """A language model given by its conditional distributions over complete texts.

    Args:
        conditional: maps a context to {text: probability}; non-negative, summing to 1 ± 1e-9.
        name: what stands for `conditional` in the fingerprint. Without a name the fingerprint is
            unique to this object, so that two unnamed models never share cached values.
        max_contexts: how many contexts' trees are kept in memory.

    Example:
        >>> lm = TableLM.from_table({"Q:": {"yes": 0.75, "yes sir": 0.25}})
        >>> round(math.exp(lm.log_prob(["Q:"], ["yes sir"])[0].log_prob), 12)
        0.25
    """

    def __init__(
        self,
        conditional: Callable[[str], Mapping[str, float]],
        *,
        name: str | None = None,
        max_contexts: Count = 4096,
    ) -> None:
        self._conditional = conditional
        self._name = "table" if name is None else name
        self._fingerprint = f"table-1:{name if name is not None else 'unnamed-' + uuid.uuid4().hex}"
        self._tree = lru_cache(maxsize=max_contexts)(self._grow)

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Mapping[str, float]],
        default: Mapping[str, float] | None = None,
        *,
        name: str = "table",
    ) -> TableLM:
        """A model from {context: {text: p}}; other contexts get `default`, or an InputError without one.

        Raises:
            InputError: a row is no distribution.
        """
        for context, row in [*table.items(), *([] if default is None else [("default", default)])]:
            _check_distribution(row, context)
        frozen = {context: dict(row) for context, row in table.items()}
        fallback = None if default is None else dict(default)

        def conditional(context: str) -> Mapping[str, float]:
            row = frozen.get(context, fallback)
            if row is None:
                raise InputError(
                    "the table has no row for this context, and no default", where="TableLM", got=repr(context)
                )
            return row

        return cls(conditional, name=f"{name}-{_digest(['from_table', frozen, fallback])}")

    @classmethod
    def random(
        cls, texts: Sequence[str], seed: Seed, concentration: Positive = 1.0, *, name: str = "random"
    ) -> TableLM:
        """A model that gives every context its own Dirichlet(concentration) draw over `texts`.

        The draw is a function of (seed, context): any rendered prompt has one fixed distribution.
        """
        words = tuple(texts)
        if not words or len(set(words)) != len(words):
            raise InputError(
                "the argument 'texts' cannot be used",
                where="TableLM.random",
                got=list(words),
                expected="distinct texts, one or more",
                fix='texts=["yes", "no"]',
            )

        def conditional(context: str) -> Mapping[str, float]:
            row = Key(seed).child("context", context).generator().dirichlet([concentration] * len(words))
            return dict(zip(words, row.tolist(), strict=True))

        return cls(conditional, name=f"{name}-{_digest(['random', words, seed, concentration])}")

    @property
    def name(self) -> str:
        """The given name."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """Scores everything, has token ids, is no chat model and has no length limit."""
        return Capabilities(
            scores_targets=True,
            scores_labels=True,
            token_ids=True,
            chat=False,
            context_length=None,
            next_tokens="all",
        )

    def fingerprint(self) -> str:
        """Covers the table, or the seed and texts; for a bare callable, its name."""
        return self._fingerprint

    def count_tokens(self, text: str) -> int:
        """Words in `text`."""
        return len(split_tokens(text))

    def probability(self, context: str, text: str) -> float:
        """p(text, then the end | context), exactly."""
        end = self._tree(context).follow((*split_tokens(text), END))
        return end.mass if end else 0.0

    def support(self, context: str) -> list[Completion]:
        """All complete texts of positive probability, as if each had been drawn at temperature 1."""
        leaves = self._tree(context).leaves()
        return [self._completion("".join(tokens), tokens, scores, scores, "stop") for tokens, scores in leaves]

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context, token by token; each has a generator of its own, keyed by its seed."""
        check_counts("seeds", contexts, seeds)
        return [self._draw(context, sampling, seed) for context, seed in zip(contexts, seeds, strict=True)]

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """log p of the words of a plain text (no terminator), or of the ids of a draw of this model.

        From the first word that cannot follow, the entries are −inf.
        """
        check_counts("targets", contexts, targets)
        return [self._score(self._tree(context), target) for context, target in zip(contexts, targets, strict=True)]

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """[N, C] log p(label's words, then no word that would make it another label).

        Summed over the ways to go on that belong to no longer label; nothing is subtracted, so a
        mass of zero is exactly −inf.
        """
        if not labels or "" in labels or len(set(labels)) != len(labels):
            raise InputError(
                "labels must be distinct and not empty",
                where="labels",
                got=list(labels),
                expected="each label once",
                fix='labels=["yes", "no"]',
            )
        paths = [split_tokens(label) for label in labels]
        longer = [{p[len(path)] for p in paths if len(p) > len(path) and p[: len(path)] == path} for path in paths]
        masses = np.zeros((len(contexts), len(labels)))
        for i, context in enumerate(contexts):
            for j, path in enumerate(paths):
                node = self._tree(context).follow(path)
                if node:
                    masses[i, j] = math.fsum(
                        child.mass for token, child in node.children.items() if token not in longer[j]
                    )
        with np.errstate(divide="ignore"):
            return np.log(np.minimum(masses, 1.0))

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: Size = 0) -> NextTokens:
        """log p of the given words as the first one, −inf where no text begins with it, and the most probable words.

        The terminator is `Token("", 0)`.

        Raises:
            InputError: a token is not one word.
        """
        for token in tokens:
            if split_tokens(token.text) != (token.text,) and token != (END, TERMINATOR_ID):
                raise no_such_token(token, self._name)
        rows: list[NextRow] = []
        for context in contexts:
            root = self._tree(context)
            values = {word: child.log_prob_after(root) for word, child in root.children.items()}
            best = sorted((-value, word) for word, value in values.items() if word != END)[:top]
            given = np.array([values.get(token.text, -math.inf) for token in tokens], dtype=np.float64)
            rows.append(NextRow(given, -math.inf, tuple((Token(word, id_of(word)), -value) for value, word in best)))
        return NextTokens.of(rows, len(tokens))

    def first_token(self, text: str) -> Token | None:
        """The first word of `text`."""
        words = split_tokens(text)
        return Token(words[0], id_of(words[0])) if words else None

    def _grow(self, context: str) -> PrefixTree:
        row = self._conditional(context)
        total = _check_distribution(row, context)
        # the order of the mapping must not matter: not for ties, not for draws
        return PrefixTree.of({(*split_tokens(text), END): p / total for text, p in sorted(row.items()) if p > 0})

    def _score(self, root: PrefixTree, target: Target) -> TokenLogProbs:
        if isinstance(target, Completion) and target.token_ids is not None and target.model == self._fingerprint:
            ids = target.token_ids
            text_tokens = target.text_tokens
            if text_tokens is None:
                text_tokens = len(ids) - (ids[-1:] == (TERMINATOR_ID,))
        else:
            ids = tuple(map(id_of, split_tokens(str(target))))
            text_tokens = len(ids)
        values = np.full(len(ids), -math.inf)
        node = root
        for t, wanted in enumerate(ids):
            child = node.by_id.get(wanted)
            if child is None:
                break
            values[t] = child.log_prob_after(node)
            node = child
        return TokenLogProbs(values, text_tokens)

    def _draw(self, context: str, sampling: Sampling, seed: int) -> Completion:
        generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
        node, drawn, log_probs, log_q, text = self._tree(context), list[str](), list[float](), list[float](), ""
        reason: Literal["stop", "length"] = "length"
        while reason == "length" and len(drawn) < sampling.max_tokens:
            tokens, children = list(node.children), list(node.children.values())
            q = drawing_probabilities(np.array([child.mass for child in children]) / node.mass, sampling)
            # the last possible token catches a uniform number above a sum that was rounded down
            chosen = min(
                int(np.searchsorted(np.cumsum(q), generator.random(), side="right")), int(np.flatnonzero(q)[-1])
            )
            drawn.append(tokens[chosen])
            log_probs.append(children[chosen].log_prob_after(node))
            log_q.append(min(0.0, math.log(q[chosen])))
            node, text = children[chosen], text + tokens[chosen]
            cuts = [at for at in map(text.find, sampling.stop) if at >= 0]
            if cuts:
                text = text[: min(cuts)]
            if cuts or tokens[chosen] == END:
                reason = "stop"
        return self._completion(text, drawn, log_probs, log_q, reason)

    def _completion(
        self,
        text: str,
        drawn: Sequence[str],
        log_probs: Sequence[float],
        log_q: Sequence[float],
        reason: Literal["stop", "length"],
    ) -> Completion:
        starts = np.cumsum([0, *map(len, drawn)])[:-1]
        return Completion(
            text=text,
            token_ids=tuple(map(id_of, drawn)),
            log_probs=tuple(log_probs),
            sampling_log_probs=tuple(log_q),
            text_tokens=int((starts < len(text)).sum()),
            finish_reason=reason,
            model=self._fingerprint,
        )


def _check_distribution(row: object, context: str) -> float:
    """The sum of a row of probabilities, which is 1 ± 1e-9."""
    values: list[object] = []
    if isinstance(row, Mapping):
        cells = cast("Mapping[object, object]", row)
        values = list(cells.values()) if all(isinstance(text, str) for text in cells) else []
    kinds = (int, float, np.integer, np.floating)
    numbers = [float(cast(float, p)) for p in values if isinstance(p, kinds) and not isinstance(p, bool)]
    numbers = [p for p in numbers if 0 <= p < math.inf]
    total = math.fsum(numbers) if numbers and len(numbers) == len(values) else math.nan
    if not abs(total - 1.0) <= 1e-9:
        raise InputError(
            "a row of the table is no distribution",
            where=f"TableLM, context {context!r}",
            got=f"{shown(cast(object, row))}, total {total}",
            expected="a dict of texts to probabilities ≥ 0 that sum to 1",
            fix='{"yes": 0.75, "no": 0.25}',
        )
    return total


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
