"""What answers when training is over: the best network, or several of the best together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dln.infer.memory import Snapshot
from dln.infer.prompt_posterior import answering
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.train.progress import Progress, Recipe
from dln.train.records import MemberRecord

__all__ = ["member_records", "predictor_of"]


def predictor_of(progress: Progress, recipe: Recipe) -> AnyNetwork:
    """What would answer now: the best `ensemble` networks together, or the result where there is no other.

    The weights follow the validation scores where these are log-likelihoods, and are equal else. Without a dev set
    there is nothing to choose several networks by: the result answers alone.
    """
    options, dev = recipe.options, recipe.dev
    if options.ensemble == 1 or dev is None or not progress.kept:
        return progress.result.network
    scored = options.select_by == "log_likelihood" and progress.state.network.labels is not None
    n = len(dev) if scored else None
    return answering(progress.kept, options.ensemble, examples=n, temperature=options.ensemble_temp)


def member_records(predictor: AnyNetwork, kept: Sequence[Snapshot]) -> list[MemberRecord]:
    """The members of an ensemble with their validations; none of one network."""
    if not isinstance(predictor, Ensemble):
        return []
    validated = {id(snapshot.network): snapshot for snapshot in kept}
    found = [
        (validated[id(member)], weight) for member, weight in zip(predictor.members, predictor.weights, strict=True)
    ]
    return [
        MemberRecord(
            weight=float(weight),
            step=snapshot.step,
            score=snapshot.score if math.isfinite(snapshot.score) else None,
            parameters=snapshot.network.state_dict(),
        )
        for snapshot, weight in found
    ]
