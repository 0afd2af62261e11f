"""The start-up probe: climb down the ladder until a rung's numbers agree with what the server says elsewhere.

A known string is scored in two ways. The log-probabilities of a draw, as the server gives them with the draw, must be
those that scoring its tokens gives; and the score of a whole must be that of its parts,

    log p(ab | c) = log p(a | c) + log p(b | c a).

A server that ignores `echo`, shifts its numbers by one or makes them up fails one of these, and the next rung is
tried. What the server refuses is a reason too. What no rung can mend (a wrong key, no connection, no quota) is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from dln.lm.base import Rung
from dln.lm.remote.dialect_values import Drawn
from dln.lm.remote.engine_session import Session
from dln.lm.remote.ladder import ForcedDecoding, PromptLogProbs, TargetRung, TargetScoring
from dln.lm.remote.ladder_frequency import AnsweredLabels
from dln.lm.remote.ladder_labels import LabelRung, PickedLabels, ScoredLabels
from dln.lm.remote.ladder_top import TopLabels
from dln.lm.remote.probe_checks import (
    Unfit,
    check_picked,
    check_targets,
    check_top,
    kept_densities,
    seeds_matter,
)
from dln.lm.remote.probe_report import ProbeReport, Trial
from dln.lm.remote.probe_start import (
    REFUSALS,
    first_draw,
    known_draw,
    model_card,
    said,
    settle_ids,
    speaks_of_the_server,
    top_tokens,
)

__all__ = ["LADDER", "Probed", "probe"]

LADDER: tuple[Rung, ...] = (
    "target scoring",
    "prompt log-probs",
    "forced decoding",
    "top-k",
    "Monte-Carlo",
    "accuracy",
)
"""Best first."""

Purpose = Literal["texts", "labels"]
R = TypeVar("R", TargetRung, LabelRung)
Check = Callable[[], str]


@dataclass(frozen=True)
class Probed:
    """What the engine goes on with.

    Attributes:
        report: what was found.
        labels: the rung for labels.
        targets: the rung for texts; None where there is none.
        keeps_log_probs: whether draws come with log-probabilities.
    """

    report: ProbeReport
    labels: LabelRung
    targets: TargetRung | None
    keeps_log_probs: bool


def probe(session: Session, *, best: Rung = "target scoring", draws: int = 16) -> Probed:
    """Find the highest rung, from `best` down, on which the server's numbers can be trusted.

    Args:
        session: the server; it is set to what is found (ids or text, the fields that are sent).
        best: no rung above this one is tried.
        draws: per context, if it comes to counting labels among draws; 0 leaves that rung out.

    Raises:
        ProviderError: the server cannot even draw.
    """
    began, asked = time.perf_counter(), session.calls
    card = model_card(session)
    known, keeps = first_draw(session)
    tokenizer = settle_ids(session)
    drew, before = time.perf_counter(), session.calls
    again = known_draw(session, 1 if keeps else None)
    known = again if session.takes_ids else known
    tokens = (len(known.ids or known.row.tokens) or len(known.text.split())) * (session.calls - before)
    speed = tokens / max(time.perf_counter() - drew, 1e-9)
    top = top_tokens(session) if keeps or session.chat else 0
    trials = _Trials(best)
    targets = trials.first("texts", _target_rungs(session, known))
    labels = trials.first("labels", _label_rungs(session, targets, known, top, draws))
    report = ProbeReport(
        dialect=session.dialect.name,
        model=session.dialect.model,
        served_model=session.served_model,
        root=card.root,
        chat=session.chat,
        rung="accuracy" if labels is None else labels.name,
        target_rung="accuracy" if targets is None else targets.name,
        trials=tuple(trials.made),
        tokenizer=tokenizer,
        token_ids=session.takes_ids and known.ids is not None,
        context_length=session.context_length,
        seeds=seeds_matter(session),
        densities=kept_densities(session, targets, known) if keeps else "none",
        top_log_probs=top,
        calls_per_second=(session.calls - asked) / max(time.perf_counter() - began, 1e-9),
        tokens_per_second=speed,
    )
    return Probed(report, labels or AnsweredLabels(session, 0), targets, keeps)


class _Trials:
    """Tries rungs in order and keeps what came of each."""

    def __init__(self, best: Rung) -> None:
        self.made: list[Trial] = []
        self._floor = LADDER.index(best)

    def first(self, purpose: Purpose, rungs: Iterator[tuple[R, Check]]) -> R | None:
        """The first rung whose check passes."""
        for rung, check in rungs:
            if LADDER.index(rung.name) < self._floor:
                continue
            works, reason = True, ""
            try:
                reason = check()
            except Unfit as unfit:
                works, reason = False, str(unfit)
            except REFUSALS as refusal:
                works, reason = False, said(speaks_of_the_server(refusal))
            self.made.append(Trial(purpose, rung.name, works, reason))
            if works:
                return rung
        return None


def _target_rungs(session: Session, known: Drawn) -> Iterator[tuple[TargetRung, Check]]:
    dialect = session.dialect
    rungs: list[TargetRung] = []
    if session.takes_ids and dialect.scores_ids:
        rungs.append(TargetScoring(session))
    if dialect.echoes and (session.takes_ids or not session.chat):
        rungs += [PromptLogProbs(session, max_tokens) for max_tokens in dialect.echo_tokens]
    if session.takes_ids and dialect.picks_tokens:
        rungs.append(ForcedDecoding(session, "logprob_token_ids"))
    if session.takes_ids:
        rungs += [ForcedDecoding(session, how) for how in dialect.forcings]
    for rung in rungs:
        yield rung, partial(check_targets, session, rung, known)


def _label_rungs(
    session: Session, targets: TargetRung | None, known: Drawn, top: int, draws: int
) -> Iterator[tuple[LabelRung, Check]]:
    if session.takes_ids and session.dialect.picks_tokens:
        picked = PickedLabels(session)
        yield picked, partial(check_picked, session, picked, targets, known)
    if targets is not None:
        yield ScoredLabels(session, targets), lambda: "labels are scored as texts are"
    if top:
        yield TopLabels(session, top), partial(check_top, top, session)
    if draws:
        yield AnsweredLabels(session, draws), lambda: f"{draws} draws for each context"
    yield AnsweredLabels(session, 0), lambda: "one answer for each context"
