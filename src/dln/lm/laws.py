"""The laws of a language model: properties that every engine and wrapper must have, whatever model it runs.

Each law is a function (lm, case) that returns "holds" or "skipped" (the engine declares that it lacks the ability)
and raises `LawBroken` otherwise. `LAWS` lists the laws of scoring, then those of drawing, for parametrised tests;
`check_laws` tries all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from dln.errors import ContextLengthError, DlnError, ProviderError
from dln.lm.base import (
    Completion,
    LanguageModel,
    NextRow,
    NextTokens,
    Sampling,
    Target,
    Token,
    next_tokens_verb,
)
from dln.numerics import Floats, logsumexp

__all__ = [
    "LAWS",
    "Law",
    "LawBroken",
    "LawCase",
    "batch_equals_single",
    "batch_order_does_not_matter",
    "capabilities_are_honest",
    "chain_rule",
    "check_laws",
    "check_wrapper",
    "draws_ignore_neighbours",
    "empty_batches_are_empty",
    "fingerprint_is_stable",
    "kept_log_probs_are_scores",
    "label_masses_are_a_distribution",
    "log_probs_are_possible",
    "max_tokens_is_obeyed",
    "next_tokens_are_a_distribution",
    "next_tokens_are_scores",
    "seeds_reproduce",
    "stop_is_obeyed",
    "temperature_zero_ignores_the_seed",
    "too_long_is_refused",
]

Verdict = Literal["holds", "skipped"]

_SHORT_DRAWS = Sampling(temperature=1.0, max_tokens=8)


class LawBroken(ProviderError, AssertionError):
    """An engine's answers contradict each other; its numbers must not be used."""


@dataclass(frozen=True)
class LawCase:
    """What the laws are tried on: every context with every target, and all labels.

    Args:
        contexts: at least two distinct ones, or batches are not tested.
        targets: plain texts; some of several words, or the chain rule is tested on draws alone.
        labels: distinct; best with one that is a prefix of another.
        tolerance: largest accepted difference of two log-probabilities, in nats.
        sampling: how the draws are made (temperature 1 and top_p 1 let scores be compared with them).
        seeds: seeds of the draws, per context.
    """

    contexts: Sequence[str]
    targets: Sequence[str]
    labels: Sequence[str]
    tolerance: float = 1e-4
    sampling: Sampling = _SHORT_DRAWS
    seeds: Sequence[int] = (1, 2**40 + 3)

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """Every context with every target, as two columns."""
        pairs = list(product(self.contexts, self.targets))
        return [c for c, _ in pairs], [t for _, t in pairs]

    @property
    def draws(self) -> tuple[list[str], list[int]]:
        """Every context with every seed, as two columns."""
        pairs = list(product(self.contexts, self.seeds))
        return [c for c, _ in pairs], [s for _, s in pairs]


def scores_of(lm: LanguageModel, contexts: Sequence[str], targets: Sequence[Target]) -> list[Floats]:
    """The token log-probabilities of each pair; one answer per question, or the law is broken."""
    scores = lm.log_prob(contexts, targets)
    check_equal("one answer per question", len(scores), len(contexts), "log_prob")
    return [score.values for score in scores]


def draws_of(
    lm: LanguageModel, case: LawCase, sampling: Sampling | None = None, seeds: Sequence[int] | None = None
) -> list[Completion]:
    """One draw per request of the case, in one batch; `seeds` may replace the case's own."""
    contexts, own_seeds = case.draws
    draws = lm.sample(contexts, sampling or case.sampling, own_seeds if seeds is None else seeds)
    check_equal("one answer per question", len(draws), len(contexts), "sample")
    return draws


TOP = 5
"""How many of the most probable next tokens are asked for."""


def next_of(lm: LanguageModel, case: LawCase) -> tuple[list[Token], NextTokens]:
    """The top tokens of all contexts and the targets and labels of one token, each given to every context."""
    best = lm.next_token_log_probs(case.contexts, (), TOP)
    tokens = dict.fromkeys(token for top in best.top for token, _ in top)
    known = {token.text for token in tokens}
    texts = one_token_texts(lm, [*case.targets, *case.labels])
    chosen = [*tokens, *(Token(text) for text in dict.fromkeys(texts) if text not in known)]
    return chosen, lm.next_token_log_probs(case.contexts, chosen, TOP)


def one_token_texts(lm: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The texts that are one token of this model, as far as it has ids."""
    return [text for text in texts if lm.capabilities.token_ids and lm.count_tokens(text) == 1]


def check_same_row(law: str, got: NextRow, expected: NextRow, tolerance: float, where: object) -> None:
    """Two rows must have the same values where they are told; of equally probable tokens either may be in `top`."""
    check_equal(law, np.isnan(got.log_probs).tolist(), np.isnan(expected.log_probs).tolist(), where)
    check_close(law, np.nan_to_num(got.log_probs), np.nan_to_num(expected.log_probs), tolerance, where)
    check_close(law, got.bound, expected.bound, tolerance, where)
    check_close(law, [p for _, p in got.top], [p for _, p in expected.top], tolerance, where)
    if tolerance == 0.0:
        check_equal(law, got.top, expected.top, where)


def check_close(law: str, got: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, where: object) -> None:
    """Raise `LawBroken` unless shapes are equal and values differ by at most `tolerance`; NaN never agrees."""
    one, two = np.asarray(got), np.asarray(expected)
    if one.shape != two.shape or not np.allclose(one, two, rtol=0.0, atol=tolerance):
        raise LawBroken(f"law broken: {law}", where=repr(where), got=one.tolist(), expected=two.tolist())


def check_equal(law: str, got: object, expected: object, where: object) -> None:
    """Raise `LawBroken` unless the two are equal."""
    if got != expected:
        raise LawBroken(f"law broken: {law}", where=repr(where), got=got, expected=expected)


def check_same_draw(law: str, got: Completion, expected: Completion, tolerance: float, where: object) -> None:
    """Two draws must be the same text and ids; their kept scores may differ by rounding."""
    for part in ("text", "token_ids", "text_tokens", "finish_reason", "model"):
        check_equal(law, getattr(got, part), getattr(expected, part), (where, part))
    for part in ("log_probs", "sampling_log_probs"):
        one, two = getattr(got, part), getattr(expected, part)
        check_equal(law, one is None, two is None, (where, part))
        if one is not None:
            check_close(law, one, two, tolerance, (where, part))


def batch_equals_single(lm: LanguageModel, case: LawCase) -> Verdict:
    """A request's scores do not depend on what else is in its batch."""
    if not _scores(lm):
        return "skipped"
    if lm.capabilities.next_tokens != "none":
        tokens, together = next_of(lm, case)
        for context, got in zip(case.contexts, together.rows, strict=True):
            alone = lm.next_token_log_probs([context], tokens, TOP).rows[0]
            check_same_row("batch = single", got, alone, case.tolerance, context)
    if lm.capabilities.scores_targets:
        for context, target, got in zip(*case.pairs, scores_of(lm, *case.pairs), strict=True):
            alone = scores_of(lm, [context], [target])[0]
            check_close("batch = single", got, alone, case.tolerance, (context, target))
    if lm.capabilities.scores_labels:
        for context, got in zip(case.contexts, lm.choice_log_probs(case.contexts, case.labels), strict=True):
            check_close("batch = single", got, lm.choice_log_probs([context], case.labels)[0], case.tolerance, context)
    return "holds"


def batch_order_does_not_matter(lm: LanguageModel, case: LawCase) -> Verdict:
    """Reversing a batch, or the labels, reverses the answers and nothing else."""
    if not _scores(lm):
        return "skipped"
    if lm.capabilities.next_tokens != "none":
        tokens, expected = next_of(lm, case)
        turned = lm.next_token_log_probs(case.contexts[::-1], tokens[::-1], TOP).rows[::-1]
        for context, got, row in zip(case.contexts, turned, expected.rows, strict=True):
            same = got._replace(log_probs=got.log_probs[::-1])
            check_same_row("batch order", same, row, case.tolerance, context)
    if lm.capabilities.scores_targets:
        contexts, targets = case.pairs
        backwards = scores_of(lm, contexts[::-1], targets[::-1])[::-1]
        for got, expected, pair in zip(
            backwards, scores_of(lm, contexts, targets), zip(*case.pairs, strict=True), strict=True
        ):
            check_close("batch order", got, expected, case.tolerance, pair)
    if lm.capabilities.scores_labels:
        backwards = lm.choice_log_probs(case.contexts[::-1], case.labels[::-1])[::-1, ::-1]
        check_close("batch order", backwards, lm.choice_log_probs(case.contexts, case.labels), case.tolerance, "labels")
    return "holds"


def chain_rule(lm: LanguageModel, case: LawCase) -> Verdict:
    """A token's score depends on the tokens before it alone: the scores of a prefix are a prefix of the scores.

    Tried on draws cut after each id, and on plain texts cut between words wherever the token counts
    of the two parts add up (so that the cut lies between two tokens).
    """
    if not lm.capabilities.scores_targets:
        return "skipped"
    contexts: list[str] = []
    longer: list[Target] = []
    shorter: list[Target] = []
    for context, text in zip(*case.pairs, strict=True):
        for at in (i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()):
            if lm.count_tokens(text[:at]) + lm.count_tokens(text[at:]) == lm.count_tokens(text):
                contexts, longer, shorter = [*contexts, context], [*longer, text], [*shorter, text[:at]]
    for context, draw in zip(case.draws[0], draws_of(lm, case), strict=True):
        ids = draw.token_ids or ()
        for k in range(1, len(ids)):
            cut = replace(draw, token_ids=ids[:k], text_tokens=min(k, draw.text_tokens or k))
            contexts, longer, shorter = [*contexts, context], [*longer, draw], [*shorter, cut]
    whole = scores_of(lm, contexts, longer)
    for got, full, pair in zip(
        scores_of(lm, contexts, shorter), whole, zip(contexts, shorter, strict=True), strict=True
    ):
        check_close("chain rule", got, full[: len(got)], case.tolerance, pair)
    return "holds"


def log_probs_are_possible(lm: LanguageModel, case: LawCase) -> Verdict:
    """Every log-probability is finite or −inf, never NaN and never positive."""
    scores: list[Floats] = []
    if lm.capabilities.scores_targets:
        scores += scores_of(lm, *case.pairs)
    if lm.capabilities.scores_labels:
        scores += [lm.choice_log_probs(case.contexts, case.labels)]
    if lm.capabilities.next_tokens != "none":
        _, found = next_of(lm, case)
        told = found.log_probs[~np.isnan(found.log_probs)]  # what is not told is bounded
        scores += [told, found.bounds, *(np.array([value for _, value in top]) for top in found.top)]
    for draw in draws_of(lm, case):
        scores += [np.array(kept) for kept in (draw.log_probs, draw.sampling_log_probs) if kept is not None]
    for values in scores:
        if not (values <= 1e-6).all():  # also false for NaN
            raise LawBroken("impossible log-probabilities", got=values.tolist(), expected="≤ 0, no NaN")
    return "holds" if scores else "skipped"


def label_masses_are_a_distribution(lm: LanguageModel, case: LawCase) -> Verdict:
    """Label masses sum to ≤ 1, and a label without rivals has the mass of its own tokens."""
    if not lm.capabilities.scores_labels:
        return "skipped"
    masses = lm.choice_log_probs(case.contexts, case.labels)
    check_equal("label masses", masses.shape, (len(case.contexts), len(case.labels)), "shape")
    totals = logsumexp(masses, axis=1)
    if not (totals <= case.tolerance).all():
        raise LawBroken("label masses sum to more than one", got=np.exp(totals).tolist(), expected="≤ 1")
    if lm.capabilities.scores_targets:
        for label in case.labels:
            alone = lm.choice_log_probs(case.contexts, [label])[:, 0]
            scores = [t.sum() for t in scores_of(lm, case.contexts, [label] * len(case.contexts))]
            check_close("a label alone", alone, np.array(scores), case.tolerance, label)
    return "holds"


def next_tokens_are_scores(lm: LanguageModel, case: LawCase) -> Verdict:
    """The next token's log-probabilities are those of scored texts and of labels of one token."""
    if lm.capabilities.next_tokens == "none":
        return "skipped"
    tokens, found = next_of(lm, case)
    for j, token in enumerate(tokens):
        told = [i for i in range(len(case.contexts)) if not np.isnan(found.log_probs[i, j])]
        if token.text not in one_token_texts(lm, [token.text]) or not told:
            continue
        contexts, got = [case.contexts[i] for i in told], found.log_probs[told, j]
        if lm.capabilities.scores_targets:
            expected = [values.sum() for values in scores_of(lm, contexts, [token.text] * len(told))]
            check_close("a next token is a text", got, expected, case.tolerance, token)
        if lm.capabilities.scores_labels and lm.capabilities.label_scoring == "target scoring":
            masses = lm.choice_log_probs(contexts, [token.text])[:, 0]
            check_close("a next token is a label", got, masses, case.tolerance, token)
    return "holds"


def next_tokens_are_a_distribution(lm: LanguageModel, case: LawCase) -> Verdict:
    """Top tokens are distinct, sorted, sum to ≤ 1 and have the values that they have when given; bounds hold."""
    if lm.capabilities.next_tokens == "none":
        return "skipped"
    tokens, found = next_of(lm, case)
    check_equal("one answer per question", found.log_probs.shape, (len(case.contexts), len(tokens)), "shape")
    check_equal("one answer per question", (len(found.bounds), len(found.top)), (len(case.contexts),) * 2, "rows")
    for context, row in zip(case.contexts, found.rows, strict=True):
        given = dict(zip(tokens, row.log_probs, strict=True))
        values = np.array([value for _, value in row.top])
        check_equal("top tokens are distinct", len({token for token, _ in row.top}), len(row.top), context)
        if len(row.top) > TOP or (np.diff(values) > 0).any():
            raise LawBroken("top tokens are not sorted", where=repr(context), got=row.top)
        check_close("top tokens as given", [given[token] for token, _ in row.top], values, case.tolerance, context)
        some = {token: value for token, value in (*given.items(), *row.top) if not np.isnan(value)}
        if logsumexp(list(some.values())) > case.tolerance:
            raise LawBroken("next tokens sum to more than one", where=repr(context), got=some, expected="≤ 1")
        if row.top and np.nanmax([*given.values(), -np.inf]) > values[0] + case.tolerance:
            raise LawBroken("a given token is more probable than the top one", where=repr(context), got=given)
        untold = [token for token, value in given.items() if np.isnan(value)]
        if untold and (lm.capabilities.next_tokens == "all" or not np.isfinite(row.bound)):
            raise LawBroken("a token is neither told nor bounded", where=repr(context), got=untold)
    return "holds"


def too_long_is_refused(lm: LanguageModel, case: LawCase) -> Verdict:
    """A request beyond the context length raises `ContextLengthError`; it is never cut silently."""
    length = lm.capabilities.context_length
    if length is None or not lm.capabilities.scores_targets:
        return "skipped"
    endless = case.contexts[0] + " word" * (length + 1)
    try:
        lm.log_prob([endless], [case.targets[0]])
    except ContextLengthError:
        return "holds"
    raise LawBroken("a request beyond the context length was answered", got=f"{lm.count_tokens(endless)} tokens")


def seeds_reproduce(lm: LanguageModel, case: LawCase) -> Verdict:
    """The same request gives the same draw again."""
    first = draws_of(lm, case)
    for got, expected, request in zip(draws_of(lm, case), first, zip(*case.draws, strict=True), strict=True):
        check_same_draw("seeds reproduce", got, expected, case.tolerance, request)
    return "holds"


def draws_ignore_neighbours(lm: LanguageModel, case: LawCase) -> Verdict:
    """A draw depends on (context, sampling, seed) alone: not on its batch, nor on its place in it."""
    contexts, seeds = case.draws
    together = draws_of(lm, case)
    backwards = lm.sample(contexts[::-1], case.sampling, seeds[::-1])[::-1]
    for context, seed, got, turned in zip(contexts, seeds, together, backwards, strict=True):
        alone = lm.sample([context], case.sampling, [seed])[0]
        check_same_draw("draws ignore neighbours", got, alone, case.tolerance, (context, seed))
        check_same_draw("draws ignore their place", turned, alone, case.tolerance, (context, seed))
    return "holds"


def temperature_zero_ignores_the_seed(lm: LanguageModel, case: LawCase) -> Verdict:
    """At temperature 0 all seeds give the one greedy text."""
    greedy = replace(case.sampling, temperature=0.0)
    first = draws_of(lm, case, greedy)
    others = draws_of(lm, case, greedy, [seed + 1 for seed in case.draws[1]])
    for got, expected, request in zip(others, first, zip(*case.draws, strict=True), strict=True):
        check_same_draw("temperature 0 ignores the seed", got, expected, case.tolerance, request)
    return "holds"


def kept_log_probs_are_scores(lm: LanguageModel, case: LawCase) -> Verdict:
    """The log-probabilities that a draw keeps are those that scoring its ids gives.

    At temperature 1 with the whole distribution (top_p 1) they are also those it was drawn with.
    """
    draws = draws_of(lm, case)
    if any(draw.log_probs is None for draw in draws):
        return "skipped"
    for context, draw in zip(case.draws[0], draws, strict=True):
        kept = draw.log_probs or ()
        if draw.sampling_log_probs is not None and (case.sampling.temperature, case.sampling.top_p) == (1.0, 1.0):
            check_close("drawn at temperature 1", draw.sampling_log_probs, kept, case.tolerance, (context, draw.text))
        if lm.capabilities.scores_targets and lm.capabilities.token_ids:
            scored = scores_of(lm, [context], [draw])[0]
            check_close("kept scores are scores", kept, scored, case.tolerance, (context, draw.text))
    return "holds"


def max_tokens_is_obeyed(lm: LanguageModel, case: LawCase) -> Verdict:
    """No draw has more tokens than asked for, and a shorter greedy draw is the beginning of a longer one."""
    if not lm.capabilities.token_ids:
        return "skipped"
    previous: list[tuple[int, ...]] = [()] * len(case.draws[0])
    for most in (1, 2, case.sampling.max_tokens):
        draws = draws_of(lm, case, replace(case.sampling, temperature=0.0, max_tokens=most))
        for k, (draw, context) in enumerate(zip(draws, case.draws[0], strict=True)):
            ids = draw.token_ids or ()
            if not 1 <= len(ids) <= most:
                raise LawBroken("max_tokens is not obeyed", where=repr(context), got=ids, expected=f"1 to {most} ids")
            shared = min(len(ids), len(previous[k]))
            check_equal("a shorter greedy draw is a beginning", ids[:shared], previous[k][:shared], context)
            previous[k] = ids
    return "holds"


def stop_is_obeyed(lm: LanguageModel, case: LawCase) -> Verdict:
    """With a stop string, a text is the unstopped text up to the first place where the string occurs."""
    greedy = replace(case.sampling, temperature=0.0)
    contexts, seeds = case.draws
    verdict: Verdict = "skipped"
    for context, seed, free in zip(contexts, seeds, draws_of(lm, case, greedy), strict=True):
        if free.text:
            stop = free.text[len(free.text) // 2 :][:2]
            stopped = lm.sample([context], replace(greedy, stop=(stop,)), [seed])[0]
            check_equal("stop is obeyed", stopped.text, free.text.partition(stop)[0], (context, stop))
            check_equal("stop is the reason", stopped.finish_reason, "stop", (context, stop))
            verdict = "holds"
    return verdict


def empty_batches_are_empty(lm: LanguageModel, case: LawCase) -> Verdict:
    """No requests, no answers, no error."""
    check_equal("empty batch", lm.sample([], case.sampling, []), [], "sample")
    if lm.capabilities.scores_targets:
        check_equal("empty batch", lm.log_prob([], []), [], "log_prob")
    if lm.capabilities.next_tokens != "none":
        tokens, _ = next_of(lm, case)
        for given, top in ((tokens, TOP), ((), 0)):
            empty = lm.next_token_log_probs([], given, top)
            shapes = (empty.log_probs.shape, empty.bounds.shape, empty.top)
            check_equal("empty batch", shapes, ((0, len(given)), (0,), ()), "next tokens")
        nothing = lm.next_token_log_probs(case.contexts)
        check_equal("nothing wanted", nothing.top, ((),) * len(case.contexts), "next tokens")
        check_equal("nothing wanted", nothing.log_probs.shape, (len(case.contexts), 0), "next tokens")
    if lm.capabilities.scores_labels:
        check_equal("empty batch", lm.choice_log_probs([], case.labels).shape, (0, len(case.labels)), "labels")
    return "holds"


def capabilities_are_honest(lm: LanguageModel, case: LawCase) -> Verdict:
    """What an engine says it can do it does; what it says it cannot do it refuses with a `DlnError`."""
    can = lm.capabilities
    for draw, request in zip(draws_of(lm, case), zip(*case.draws, strict=True), strict=True):
        ids, kept = draw.token_ids, draw.log_probs
        check_equal("token ids as promised", ids is not None, can.token_ids, request)
        check_equal("a draw names its model", draw.model, lm.fingerprint(), request)
        if ids is not None:
            check_equal("one score per id", len(kept) if kept is not None else len(ids), len(ids), request)
            if draw.text_tokens is None or not 0 <= draw.text_tokens <= len(ids):
                raise LawBroken("text_tokens is no count of ids", got=draw.text_tokens, expected=f"0 to {len(ids)}")
    context, target = case.contexts[0], case.targets[0]
    if can.scores_targets:
        if can.token_ids:
            check_equal(
                "one score per token", len(scores_of(lm, [context], [target])[0]), lm.count_tokens(target), target
            )
    elif not _refuses(lambda: lm.log_prob([context], [target])):
        raise LawBroken("scores a target that it says it cannot score", where=lm.name)
    if not can.scores_labels and not _refuses(lambda: lm.choice_log_probs([context], case.labels)):
        raise LawBroken("scores labels that it says it cannot score", where=lm.name)
    if can.next_tokens == "none" and not _refuses(lambda: next_tokens_verb(lm)([context], (), TOP)):
        raise LawBroken("gives next tokens that it says it does not give", where=lm.name)
    if can.next_tokens == "top" and not can.top_log_probs:
        raise LawBroken("gives top tokens, and says that it gives none", where=lm.name)
    return "holds"


def fingerprint_is_stable(lm: LanguageModel, case: LawCase) -> Verdict:
    """The fingerprint is a name that using the model does not change."""
    before = lm.fingerprint()
    draws_of(lm, case)
    check_equal("fingerprint is stable", lm.fingerprint(), before, lm.name)
    if not before:
        raise LawBroken("the fingerprint is empty", where=lm.name)
    return "holds"


def _scores(lm: LanguageModel) -> bool:
    can = lm.capabilities
    return can.scores_targets or can.scores_labels or can.next_tokens != "none"


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except DlnError:
        return True
    return False


Law = Callable[[LanguageModel, LawCase], Verdict]

LAWS: tuple[Law, ...] = (
    batch_equals_single,
    batch_order_does_not_matter,
    chain_rule,
    log_probs_are_possible,
    label_masses_are_a_distribution,
    next_tokens_are_scores,
    next_tokens_are_a_distribution,
    too_long_is_refused,
    seeds_reproduce,
    draws_ignore_neighbours,
    temperature_zero_ignores_the_seed,
    kept_log_probs_are_scores,
    max_tokens_is_obeyed,
    stop_is_obeyed,
    empty_batches_are_empty,
    capabilities_are_honest,
    fingerprint_is_stable,
)


def check_laws(
    lm: LanguageModel,
    contexts: Sequence[str],
    targets: Sequence[str],
    labels: Sequence[str],
    *,
    tolerance: float = 1e-4,
) -> dict[str, Verdict]:
    """Try every law on `lm`; {name of the law: "holds" or "skipped"}.

    Raises:
        LawBroken: at the first law that does not hold, with what was got and what was expected.
    """
    case = LawCase(contexts, targets, labels, tolerance)
    return {law.__name__: law(lm, case) for law in LAWS}


def check_wrapper(wrapper: LanguageModel, inner: LanguageModel, case: LawCase) -> None:
    """A wrapper gives its model's own answers, bit by bit, at the first and at the second call."""
    law = "a wrapper changes nothing"
    for attribute in ("name", "capabilities"):
        check_equal(law, getattr(wrapper, attribute), getattr(inner, attribute), attribute)
    check_equal(law, wrapper.fingerprint(), inner.fingerprint(), "fingerprint")
    for text in (*case.contexts, *case.targets):
        check_equal(law, wrapper.count_tokens(text), inner.count_tokens(text), "count_tokens")
    for sampling in (case.sampling, replace(case.sampling, temperature=0.0)):
        drawn = inner.sample(case.draws[0], sampling, case.draws[1])
        for _ in range(2):
            check_equal(law, wrapper.sample(case.draws[0], sampling, case.draws[1]), drawn, "draws")
    for _ in range(2):
        if inner.capabilities.scores_targets:
            scores = zip(scores_of(wrapper, *case.pairs), scores_of(inner, *case.pairs), strict=True)
            for (got, expected), pair in zip(scores, zip(*case.pairs, strict=True), strict=True):
                check_close(law, got, expected, 0.0, pair)
        if inner.capabilities.scores_labels:
            got = wrapper.choice_log_probs(case.contexts, case.labels)
            check_close(law, got, inner.choice_log_probs(case.contexts, case.labels), 0.0, "labels")
        if inner.capabilities.next_tokens != "none":
            tokens, expected = next_of(inner, case)
            for got, row in zip(
                wrapper.next_token_log_probs(case.contexts, tokens, TOP).rows, expected.rows, strict=True
            ):
                check_same_row(law, got, row, 0.0, "next tokens")
