"""Laws of scoring: what token scores and label masses must satisfy, whatever the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dln.errors import ContextLengthError
from dln.lm.base import LanguageModel, Target
from dln.lm.law_case import LawBroken, LawCase, Verdict, check_close, check_equal, draws_of, scores_of
from dln.numerics import Floats, logsumexp

__all__ = [
    "batch_equals_single",
    "batch_order_does_not_matter",
    "chain_rule",
    "label_masses_are_a_distribution",
    "log_probs_are_possible",
    "too_long_is_refused",
]


def batch_equals_single(lm: LanguageModel, case: LawCase) -> Verdict:
    """A request's scores do not depend on what else is in its batch."""
    if not (lm.capabilities.scores_targets or lm.capabilities.scores_labels):
        return "skipped"
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
    if not (lm.capabilities.scores_targets or lm.capabilities.scores_labels):
        return "skipped"
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
