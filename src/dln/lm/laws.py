"""The laws of a language model: what every engine and wrapper must satisfy, whatever model it runs.

Each law is a function (lm, case) that returns "holds" or "skipped" (the engine says that it cannot do
what the law is about) and raises `LawBroken` otherwise. `LAWS` lists them, for parametrised tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dln.lm import drawing_laws, scoring_laws
from dln.lm.base import LanguageModel
from dln.lm.law_case import LawBroken, LawCase, Verdict, check_close, check_equal, scores_of

__all__ = ["LAWS", "Law", "LawBroken", "LawCase", "Verdict", "check_laws", "check_wrapper"]

Law = Callable[[LanguageModel, LawCase], Verdict]

LAWS: tuple[Law, ...] = (
    scoring_laws.batch_equals_single,
    scoring_laws.batch_order_does_not_matter,
    scoring_laws.chain_rule,
    scoring_laws.log_probs_are_possible,
    scoring_laws.label_masses_are_a_distribution,
    scoring_laws.too_long_is_refused,
    drawing_laws.seeds_reproduce,
    drawing_laws.draws_ignore_neighbours,
    drawing_laws.temperature_zero_ignores_the_seed,
    drawing_laws.kept_log_probs_are_scores,
    drawing_laws.max_tokens_is_obeyed,
    drawing_laws.stop_is_obeyed,
    drawing_laws.empty_batches_are_empty,
    drawing_laws.capabilities_are_honest,
    drawing_laws.fingerprint_is_stable,
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
