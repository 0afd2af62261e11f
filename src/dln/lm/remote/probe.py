"""The probe: try the scoring modes, best first, until the numbers of one agree with other answers of the server.

A known string is scored in two ways. The log-probabilities that come with a draw must equal those from scoring its
tokens, and the score of a whole must be the sum of its parts,

    log p(ab | c) = log p(a | c) + log p(b | c a).

A server that ignores `echo`, shifts its numbers by one or makes them up fails one of these, and the next mode is tried;
so it is after a refusal. Errors that affect every mode (a wrong key, no connection, no quota) are raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from dln.errors import DlnError
from dln.lm.base import Sampling, ScoringMode
from dln.lm.remote.checks import (
    CONTEXT,
    PLAIN,
    REFUSALS,
    Densities,
    Seeds,
    Unfit,
    check_picked,
    check_targets,
    check_top,
    kept_densities,
    next_top,
    seeds_matter,
    speaks_of_the_server,
)
from dln.lm.remote.demands import amended, settle_demands
from dln.lm.remote.dialect import Drawn, ModelCard, Prompt
from dln.lm.remote.next_tokens import NextScorer, PickedTokens, TopTokens
from dln.lm.remote.scoring import (
    AnsweredLabels,
    ForcedDecoding,
    LabelScorer,
    PickedLabels,
    PromptLogProbs,
    ScoredLabels,
    TargetScoring,
    TextScorer,
)
from dln.lm.remote.session import Session
from dln.lm.remote.top_labels import TopLabels

__all__ = ["CONTEXT", "SCORING_MODES", "ProbeReport", "Probed", "Seeds", "Trial", "probe", "said"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One scoring mode, tried.

    Args:
        purpose: what it was tried for.
        mode: which.
        works: whether it may be used.
        reason: why, or why not.
    """

    purpose: Literal["texts", "labels", "next tokens"]
    mode: ScoringMode
    works: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was found; two probes of one server are equal (speeds apart).

    Attributes:
        dialect: the kind of server, as the model string names it.
        model: the name that was asked for.
        served_model: the name that answered; None if replies name none.
        root: what the server says the model is made from; None if it does not.
        chat: whether contexts are a user's turns.
        label_scoring: how labels are scored.
        text_scoring: how texts are scored; "accuracy" if they are not.
        trials: every scoring mode that was tried, in order, and why it was taken or not.
        tokenizer: what is known of the server's tokenizer.
        token_ids: whether prompts and draws are token ids.
        context_length: in tokens; None if unknown.
        seeds: whether the same seed gives the same draw, and another seed another.
        densities: which log-probabilities a draw comes with: of the model, or of the distribution drawn from.
        top_log_probs: how many of the next token's log-probabilities were given; 0 for none.
        next_tokens: which tokens' next-token log-probabilities are told.
        thinking_tokens: what a draw may use for thoughts beyond its length limit; 0 for a model that does not reason.
        tokens_field: the name of the length limit.
        fixed_temperature: whether the server draws at its own temperature only.
        min_tokens: the smallest length limit that the server accepts.
        left_out: fields that the server refuses and that are not sent.
        stays: what works in these modes, and what does not.
        calls_per_second: of the probe, one call at a time.
        tokens_per_second: drawn by the probe, one draw at a time.
    """

    dialect: str
    model: str
    served_model: str | None
    root: str | None
    chat: bool
    label_scoring: ScoringMode
    text_scoring: ScoringMode
    trials: tuple[Trial, ...]
    tokenizer: str
    token_ids: bool
    context_length: int | None
    seeds: Seeds
    densities: Densities
    top_log_probs: int
    next_tokens: Literal["all", "top", "none"]
    thinking_tokens: int = 0
    tokens_field: str = "max_tokens"
    fixed_temperature: bool = False
    min_tokens: int = 1
    left_out: tuple[str, ...] = ()
    calls_per_second: float = field(default=0.0, compare=False)
    tokens_per_second: float = field(default=0.0, compare=False)

    @property
    def stays(self) -> tuple[str, ...]:
        """What the scoring modes mean for a run, one sentence each; empty where nothing is lost."""
        lines: list[str] = []
        if self.text_scoring == "accuracy":
            lines.append(
                "Texts cannot be scored: hidden texts are weighed by the answers that they lead to, and prompts of "
                "hidden layers cannot be ranked by their likelihood. One-layer networks over labels lose nothing by "
                "this. A server with prompt log-probabilities (vLLM, SGLang, `dln serve`) can do both."
            )
        if self.label_scoring == "top-k":
            lines.append(
                f"Labels are read off the {self.top_log_probs} likeliest tokens: a label that is not among them is "
                "censored at the smallest probability returned."
            )
        if self.label_scoring == "Monte-Carlo":
            lines.append("Labels are counted among draws: their probabilities are as coarse as the draws are few.")
        if self.label_scoring == "accuracy":
            lines.append("Labels are read off one answer: prompts are ranked by accuracy and nothing finer.")
        if self.seeds == "ignored":
            lines.append("The server ignores seeds: a draw can be repeated from the cache only.")
        if self.densities in ("unknown", "none"):
            lines.append("Draws come without their density: log q of a hidden text is known at temperature 0 only.")
        return tuple(lines)

    @property
    def requests(self) -> tuple[str, ...]:
        """What this model demands of requests, one sentence each; empty where it takes the usual ones."""
        lines: list[str] = []
        if self.thinking_tokens:
            lines.append(
                f"A reasoning model: its thoughts are removed, and a draw may use {self.thinking_tokens} tokens for "
                "them beyond its length limit (--lm-option thinking_tokens=N). Labels are counted among answers."
            )
        if self.fixed_temperature:
            lines.append(
                "The temperature cannot be set: every answer, greedy ones included, is a draw at the server's own."
            )
        if self.tokens_field != "max_tokens":
            lines.append(f"The length limit is sent as {self.tokens_field}.")
        if self.min_tokens > 1:
            lines.append(f"Length limits below {self.min_tokens} tokens are refused: shorter answers are cut.")
        if self.left_out:
            lines.append(f"Refused, and therefore not sent: {', '.join(self.left_out)}.")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        lists = {"stays": list(self.stays), "requests": list(self.requests), "left_out": list(self.left_out)}
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials], **lists}

    def __str__(self) -> str:
        length = "unknown" if self.context_length is None else f"{self.context_length} tokens"
        served = "" if self.served_model in (None, self.model) else f", answers as {self.served_model}"
        texts = "nothing" if self.text_scoring == "accuracy" else self.text_scoring
        lines = [
            f"{self.dialect}/{self.model}{served}, {'chat' if self.chat else 'completion'}",
            f"  labels by: {self.label_scoring}   texts by: {texts}",
            *(f"    {t.purpose}, {t.mode}: {'yes' if t.works else 'no'} ({t.reason})" for t in self.trials),
            f"  tokenizer: {self.tokenizer}",
            f"  context length: {length}   seeds: {self.seeds}",
            f"  speed: {self.calls_per_second:.1f} calls/s, {self.tokens_per_second:.0f} tokens/s, one at a time",
            *(f"  {line}" for line in (*self.requests, *self.stays)),
        ]
        return "\n".join(lines)


SCORING_MODES: tuple[ScoringMode, ...] = (
    "target scoring",
    "prompt log-probs",
    "forced decoding",
    "top-k",
    "Monte-Carlo",
    "accuracy",
)
"""Best first."""

Purpose = Literal["texts", "labels", "next tokens"]

R = TypeVar("R", TextScorer, LabelScorer, NextScorer)

Check = Callable[[], str]


@dataclass(frozen=True)
class Probed:
    """What the engine goes on with.

    Attributes:
        report: what was found.
        labels: scores labels.
        targets: scores texts; None where nothing can.
        following: gives next-token log-probabilities; None where nothing can.
        keeps_log_probs: whether draws come with log-probabilities.
    """

    report: ProbeReport
    labels: LabelScorer
    targets: TextScorer | None
    following: NextScorer | None
    keeps_log_probs: bool


def probe(
    session: Session, *, best: ScoringMode = "target scoring", draws: int = 16, thinking: int | None = None
) -> Probed:
    """Find the best scoring mode, from `best` down, in which the server's numbers can be trusted.

    Args:
        session: the server; it is set to what is found (ids or text, the fields that are sent).
        best: no better mode than this one is tried.
        draws: per context, if it comes to counting labels among draws; 0 leaves that mode out.
        thinking: tokens for the thoughts of a reasoning model; None to find how many are needed.

    Raises:
        ProviderError: the server cannot even draw.
    """
    began, asked = time.perf_counter(), session.calls
    card = model_card(session)
    known, keeps = first_draw(session)
    settle_demands(session, thinking)
    tokenizer = settle_ids(session)
    drew, before = time.perf_counter(), session.calls
    again = known_draw(session, 1 if keeps else None)
    known = again if session.takes_ids else known
    demands = session.dialect.demands
    keeps = keeps and not demands.thinking_tokens
    tokens = (len(known.ids or known.row.tokens) or len(known.text.split())) * (session.calls - before)
    speed = tokens / max(time.perf_counter() - drew, 1e-9)
    # the first tokens of a reasoning model are thoughts: no scoring mode but counting answers applies to it
    top = top_tokens(session) if (keeps or session.chat) and not demands.thinking_tokens else 0
    trials = _Trials(best)
    targets = trials.first("texts", _text_scorers(session, known))
    labels = trials.first("labels", _label_scorers(session, targets, known, top, draws))
    following = trials.first("next tokens", _next_scorers(session, labels, top))
    report = ProbeReport(
        dialect=session.dialect.name,
        model=session.dialect.model,
        served_model=session.served_model,
        root=card.root,
        chat=session.chat,
        label_scoring="accuracy" if labels is None else labels.name,
        text_scoring="accuracy" if targets is None else targets.name,
        trials=tuple(trials.made),
        tokenizer=tokenizer,
        token_ids=session.takes_ids and known.ids is not None and not demands.thinking_tokens,
        context_length=session.context_length,
        seeds=seeds_matter(session),
        densities=kept_densities(session, targets, known) if keeps else "none",
        top_log_probs=top,
        next_tokens="none" if following is None else following.tells,
        thinking_tokens=demands.thinking_tokens,
        tokens_field=(demands.tokens_field or session.dialect.chat_tokens_field) if session.chat else "max_tokens",
        fixed_temperature=demands.fixed_temperature,
        min_tokens=demands.min_tokens,
        left_out=tuple(sorted(demands.left_out)),
        calls_per_second=(session.calls - asked) / max(time.perf_counter() - began, 1e-9),
        tokens_per_second=speed,
    )
    return Probed(report, labels or AnsweredLabels(session, 0), targets, following, keeps)


class _Trials:
    """Tries scoring modes in order and keeps what came of each."""

    def __init__(self, best: ScoringMode) -> None:
        self.made: list[Trial] = []
        self._floor = SCORING_MODES.index(best)

    def first(self, purpose: Purpose, scorers: Iterator[tuple[R, Check]]) -> R | None:
        """The first mode whose check passes."""
        for scorer, check in scorers:
            if SCORING_MODES.index(scorer.name) < self._floor:
                continue
            works, reason = True, ""
            try:
                reason = check()
            except Unfit as unfit:
                works, reason = False, str(unfit)
            except REFUSALS as refusal:
                works, reason = False, said(speaks_of_the_server(refusal))
            self.made.append(Trial(purpose, scorer.name, works, reason))
            if works:
                return scorer
        return None


def _text_scorers(session: Session, known: Drawn) -> Iterator[tuple[TextScorer, Check]]:
    dialect = session.dialect
    if dialect.demands.thinking_tokens:
        return
    scorers: list[TextScorer] = []
    if session.takes_ids and dialect.scores_ids:
        scorers.append(TargetScoring(session))
    if dialect.echoes and (session.takes_ids or not session.chat):
        scorers += [PromptLogProbs(session, max_tokens) for max_tokens in dialect.echo_tokens]
    if session.takes_ids and dialect.picks_tokens:
        scorers.append(ForcedDecoding(session, "logprob_token_ids"))
    if session.takes_ids:
        scorers += [ForcedDecoding(session, how) for how in dialect.forcings]
    for scorer in scorers:
        yield scorer, partial(check_targets, session, scorer, known)


def _label_scorers(
    session: Session, targets: TextScorer | None, known: Drawn, top: int, draws: int
) -> Iterator[tuple[LabelScorer, Check]]:
    if session.takes_ids and session.dialect.picks_tokens and not session.dialect.demands.thinking_tokens:
        picked = PickedLabels(session)
        yield picked, partial(check_picked, session, picked, targets, known)
    if targets is not None:
        yield ScoredLabels(session, targets), lambda: "labels are scored as texts are"
    if top:
        yield TopLabels(session, top), partial(check_top, top, session)
    if draws:
        yield AnsweredLabels(session, draws), lambda: f"{draws} draws for each context"
    yield AnsweredLabels(session, 0), lambda: "one answer for each context"


def _next_scorers(session: Session, labels: LabelScorer | None, top: int) -> Iterator[tuple[NextScorer, Check]]:
    if isinstance(labels, PickedLabels):
        yield PickedTokens(session, top), lambda: "given tokens come with their log-probabilities, as labels do"
    if top:
        yield TopTokens(session, top), partial(check_top, top, session)


def said(refusal: DlnError) -> str:
    """A refusal as a reason."""
    return refusal.message if refusal.got is None else f"{refusal.message}: {refusal.got}"


def model_card(session: Session) -> ModelCard:
    """What the server lists of the model, whose listed name is asked for from now on; an empty card if nothing."""
    try:
        card = session.send([session.dialect.list_models()], session.dialect.read_models)[0]
    except REFUSALS as refusal:
        speaks_of_the_server(refusal)
        return ModelCard(session.dialect.model)
    session.context_length = card.context_length
    session.dialect = replace(session.dialect, model=card.name)
    return card


def first_draw(session: Session) -> tuple[Drawn, bool]:
    """A known draw at temperature 1, and whether draws come with log-probabilities.

    The dialect is cut down to the plain form where the server refuses more.

    Raises:
        ProviderError: the server cannot draw at all; where it draws in a chat only (or not in one), the error says so.
    """
    plain = replace(session.dialect, extras=False)
    ways = [(session.dialect, 1), *([(plain, 1)] if session.dialect.extras else []), (plain, None)]
    for at, (dialect, top) in enumerate(ways):
        session.dialect = replace(dialect, demands=session.dialect.demands)
        try:
            drawn = amended(session, lambda top=top: known_draw(session, top))
        except REFUSALS as refusal:
            speaks_of_the_server(refusal)
            if at == len(ways) - 1:
                raise other_form(session, refusal) from refusal
        else:
            return drawn, bool(drawn.row.tokens)
    raise AssertionError("the last way returns or raises")


def other_form(session: Session, refusal: DlnError) -> DlnError:
    """The refusal of every draw, with the suffix of the model's name that would help, if it would."""
    suffix = ":completion" if session.chat else ":chat"
    call = session.dialect.draw(Prompt(CONTEXT, None, not session.chat), KNOWN, 0, None)
    try:
        session.send([call], session.dialect.read_draw)
    except DlnError:
        return refusal
    return type(refusal)(
        f"the server answers {'completions' if session.chat else 'chats'} only with this model",
        where=refusal.where,
        got=refusal.got if refusal.got is not None else refusal.message,
        expected=f"{session.dialect.name}/{session.dialect.model}{suffix}",
        fix=f"--lm {session.dialect.name}/{session.dialect.model}{suffix}",
    )


KNOWN = Sampling(temperature=1.0, max_tokens=6)


def known_draw(session: Session, top: int | None) -> Drawn:
    """The first of a few draws that has two tokens or more."""
    prompt = session.prompts([CONTEXT])[0]
    drawn: list[Drawn] = []
    for seed in range(4):
        call = session.dialect.draw(prompt, KNOWN, seed, top)
        drawn += session.send([call], session.dialect.read_draw)
        if len(drawn[-1].row.tokens) > 1 or (top is None and drawn[-1].text):
            return drawn[-1]
    return drawn[-1]


def settle_ids(session: Session) -> str:
    """Let prompts go as ids if the server encodes texts and continues ids as it continues the text."""
    if not session.dialect.has_tokenizer:
        return "not reachable: lengths are estimated"
    if session.dialect.demands.thinking_tokens:
        return "not used: only a chat separates thoughts from answers; lengths are estimated"
    greedy = Sampling(max_tokens=4)

    def draw() -> str:
        call = session.dialect.draw(session.prompts([CONTEXT])[0], greedy, None, None)
        return session.send([call], session.dialect.read_draw)[0].text

    try:
        plain = session.encode([CONTEXT, PLAIN], alone=True)
        by_text = None if session.chat else draw()
        session.takes_ids = True
        by_ids = draw()
    except REFUSALS as refusal:
        session.takes_ids = False
        speaks_of_the_server(refusal)
        return f"not reachable ({said(refusal)}): lengths are estimated"
    if by_text is not None and by_text != by_ids:
        session.takes_ids = False
        return "disagrees with what the server makes of a text: ids are not used"
    session.tokens_per_byte = sum(map(len, plain)) / len((CONTEXT + PLAIN).encode())
    return f"the server's own, agrees ({len(plain[0])} and {len(plain[1])} tokens of two known texts)"


def top_tokens(session: Session) -> int:
    """How many likeliest next tokens the server gives; 0 for none."""
    for top in session.dialect.top_choices:
        try:
            given = len(next_top(session, top))
        except REFUSALS as refusal:
            speaks_of_the_server(refusal)
            continue
        return min(given, top) if given > 1 else 0
    return 0
