"""Laws of drawing: what samples must satisfy, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dln.errors import DlnError
from dln.lm.base import LanguageModel
from dln.lm.law_case import LawBroken, LawCase, Verdict, check_close, check_equal, check_same_draw, draws_of, scores_of

__all__ = [
    "capabilities_are_honest",
    "draws_ignore_neighbours",
    "empty_batches_are_empty",
    "fingerprint_is_stable",
    "kept_log_probs_are_scores",
    "max_tokens_is_obeyed",
    "seeds_reproduce",
    "stop_is_obeyed",
    "temperature_zero_ignores_the_seed",
]


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
    return "holds"


def fingerprint_is_stable(lm: LanguageModel, case: LawCase) -> Verdict:
    """The fingerprint is a name that using the model does not change."""
    before = lm.fingerprint()
    draws_of(lm, case)
    check_equal("fingerprint is stable", lm.fingerprint(), before, lm.name)
    if not before:
        raise LawBroken("the fingerprint is empty", where=lm.name)
    return "holds"


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except DlnError:
        return True
    return False
