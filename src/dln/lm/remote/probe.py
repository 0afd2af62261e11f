"""The probe: try the scoring modes, best first, until the numbers of one agree with other answers of the server.

A known string is scored in two ways. The log-probabilities that come with a draw must equal those from scoring its
tokens, and the score of a whole must be the sum of its parts,

    log p(ab | c) = log p(a | c) + log p(b | c a).

A server that ignores `echo`, shifts its numbers by one or makes them up fails one of these, and the next mode is tried;
so it is after a refusal. Errors that affect every mode (a wrong key, no connection, no quota) are raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np

from dln.errors import DlnError, InputError
from dln.lm.base import Sampling, ScoringMode
from dln.lm.remote.call import BadRequest, MalformedReply, ModelNotFound, ServerFailed, passing
from dln.lm.remote.dialect import Drawn, ModelCard, Prompt
from dln.lm.remote.next_tokens import NextScorer, PickedTokens, TopTokens
from dln.lm.remote.read import ScoredToken, malformed
from dln.lm.remote.scoring import (
    AnsweredLabels,
    ForcedDecoding,
    LabelScorer,
    Pair,
    PickedLabels,
    PromptLogProbs,
    ScoredLabels,
    TargetScoring,
    TextScorer,
    TopLabels,
)
from dln.lm.remote.session import Session
from dln.numerics import logsumexp

__all__ = ["CONTEXT", "SCORING_MODES", "ProbeReport", "Probed", "Seeds", "Trial", "probe", "said"]

Seeds = Literal["honoured", "ignored", "unknown"]

Densities = Literal["model", "sampling", "unknown", "none"]


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials], "stays": list(self.stays)}

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
            *(f"  {line}" for line in self.stays),
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


def probe(session: Session, *, best: ScoringMode = "target scoring", draws: int = 16) -> Probed:
    """Find the best scoring mode, from `best` down, in which the server's numbers can be trusted.

    Args:
        session: the server; it is set to what is found (ids or text, the fields that are sent).
        best: no better mode than this one is tried.
        draws: per context, if it comes to counting labels among draws; 0 leaves that mode out.

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
        token_ids=session.takes_ids and known.ids is not None,
        context_length=session.context_length,
        seeds=seeds_matter(session),
        densities=kept_densities(session, targets, known) if keeps else "none",
        top_log_probs=top,
        next_tokens="none" if following is None else following.tells,
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


def _next_scorers(session: Session, labels: LabelScorer | None, top: int) -> Iterator[tuple[NextScorer, Check]]:
    if isinstance(labels, PickedLabels):
        yield PickedTokens(session, top), lambda: "given tokens come with their log-probabilities, as labels do"
    if top:
        yield TopTokens(session, top), partial(check_top, top, session)


LABELS = (" Paris", " London")

DRAWN = "a draw's"

AGREEMENT = 0.1
"""Mean difference of two log-probabilities of one token, in nats, that rounding can explain (bfloat16)."""


class Unfit(Exception):
    """The server answers, but not rightly."""


def check_targets(session: Session, scorer: TextScorer, known: Drawn) -> str:
    """Score a draw's tokens, and a text in one piece and in two.

    Raises:
        Unfit: the numbers disagree, or are none.
    """
    prompt = session.prompts([CONTEXT])[0]
    reason = "the chain rule holds"
    if session.takes_ids:
        if known.ids and known.row.tokens:
            scored = _rows(scorer, [Pair(prompt, "", known.ids)])[0]
            _agree([token.log_prob for token in known.row.tokens], scored, DRAWN)
            reason = "a draw's own log-probabilities are met, and the chain rule holds"
        ids = session.encode([PLAIN], alone=True)[0]
        half = len(ids) // 2
        later = Prompt(prompt.text, (*(prompt.ids or ()), *ids[:half]), prompt.chat)
        pairs = [Pair(prompt, "", ids), Pair(prompt, "", ids[:half]), Pair(later, "", ids[half:])]
    else:
        if known.row.tokens and known.text.strip() and CONTEXT + known.text == (CONTEXT + known.text).rstrip():
            row = scorer.rows([Pair(prompt, known.text)])[0]
            same = [(a, b) for a, b in zip(known.row.tokens, row or (), strict=False) if a.text == b.text]
            if same:
                _agree([a.log_prob for a, _ in same], [b.log_prob for _, b in same], DRAWN)
                reason = "a draw's own log-probabilities are met, and the chain rule holds"
        words = PLAIN.split(" is ", 1)
        middle = f"{words[0]} is"
        later = Prompt(CONTEXT + middle)
        pairs = [Pair(prompt, PLAIN), Pair(prompt, middle), Pair(later, PLAIN.removeprefix(middle))]
    whole, begin, end = _rows(scorer, pairs)
    _agree(whole, [*begin, *end], "the chain rule's")
    return reason


def check_picked(session: Session, scorer: PickedLabels, targets: TextScorer | None, known: Drawn) -> str:
    """Compare the log-probabilities of asked-for tokens with those of a draw and of scored texts.

    Raises:
        Unfit: they disagree.
    """
    dialect, prompt = session.dialect, session.prompts([CONTEXT])[0]
    masses = scorer.log_masses([CONTEXT], LABELS)
    if not logsumexp(masses)[0] <= 1e-3:
        raise Unfit(f"the masses of two labels are {masses[0].tolist()}")
    if known.ids and known.row.tokens:
        row = session.send([dialect.next_tokens(prompt, 1, known.ids[:1])], dialect.read_next)[0]
        picked = next(token.log_prob for token in row.tops[0] if token.id == known.ids[0])
        _agree([known.row.tokens[0].log_prob], [picked], DRAWN)
    if targets is not None:
        ids = session.encode(LABELS, alone=True)
        scored = [sum(row) for row in _rows(targets, [Pair(prompt, "", row) for row in ids])]
        if not any(a != b and a == b[: len(a)] for a in ids for b in ids):
            _agree(scored, masses[0].tolist(), "scored labels'")
    return "asked-for tokens come with the log-probabilities that they have elsewhere"


def check_top(top: int, session: Session) -> str:
    """Look whether the likeliest tokens are probabilities.

    Raises:
        Unfit: they are not.
    """
    values = [token.log_prob for token in next_top(session, top)]
    if not all(value <= 1e-3 for value in values) or not -5.0 <= logsumexp(values) <= 1e-2:
        raise Unfit(f"impossible log-probabilities {values}")
    return f"the {top} likeliest tokens"


def seeds_matter(session: Session) -> Seeds:
    """Draw with the same seed twice, and with others."""
    sampling = Sampling(temperature=1.0, max_tokens=8)
    prompt = session.prompts([CONTEXT])[0]
    texts: list[tuple[str, ...]] = []
    for _ in range(2):  # one after the other: equal calls in flight would be one call
        calls = [session.dialect.draw(prompt, sampling, seed, None) for seed in (11, 12, 13)]
        texts.append(tuple(drawn.text for drawn in session.send(calls, session.dialect.read_draw)))
    if texts[0] != texts[1]:
        return "ignored"
    return "honoured" if len(set(texts[0])) > 1 else "unknown"


def kept_densities(session: Session, targets: TextScorer | None, known: Drawn) -> Densities:
    """Whether a draw at another temperature comes with the model's log-probabilities or with those drawn from."""
    session.tells_densities = known.row.sampling is not None
    if session.tells_densities:
        return "model"  # the server tells both, each under its name
    if targets is None or not session.takes_ids:
        return "unknown"
    prompt = session.prompts([CONTEXT])[0]
    call = session.dialect.draw(prompt, Sampling(temperature=2.0, max_tokens=6), 5, 1)
    try:
        drawn = session.send([call], session.dialect.read_draw)[0]
    except REFUSALS as refusal:
        speaks_of_the_server(refusal)
        return "unknown"
    if not drawn.ids or not drawn.row.tokens:
        return "none"
    try:
        scored = _rows(targets, [Pair(prompt, "", drawn.ids)])[0]
        _agree([t.log_prob for t in drawn.row.tokens], scored, "")
    except Unfit:
        return "sampling"
    return "model"


def _rows(scorer: TextScorer, pairs: Sequence[Pair]) -> list[list[float]]:
    found: list[list[float]] = []
    for row, pair in zip(scorer.rows(pairs), pairs, strict=True):
        if row is None:
            raise Unfit("a token reaches across the boundary of context and target")
        if pair.prompt.ids is not None and len(row) != len(pair.ids):
            raise malformed("not one log-probability per token", where="scores", got=len(row), expected=len(pair.ids))
        found.append([token.log_prob for token in row])
    return found


def _agree(expected: Sequence[float], got: Sequence[float], whose: str) -> None:
    one, two = np.array(expected), np.array(got)
    if len(one) != len(two):
        raise Unfit(f"{len(two)} log-probabilities where {whose} are {len(one)}")
    if np.isnan(one).any() or np.isnan(two).any():
        raise Unfit("a log-probability is missing")
    if whose == DRAWN and not np.isfinite(one).all():
        raise Unfit("a drawn token has no finite log-probability")
    if (one > 1e-3).any() or (two > 1e-3).any():
        raise Unfit("a log-probability is positive")
    apart = np.abs(np.where(one == two, 0.0, one) - np.where(one == two, 0.0, two))
    if not len(apart) or not apart.mean() <= AGREEMENT:
        raise Unfit(f"scored {_shown(two)} where {whose} are {_shown(one)}")


def _shown(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values[:4]) + (", …]" if len(values) > 4 else "]")


CONTEXT = "Question: What is the capital of France, and what is it known for?\nAnswer:"

PLAIN = " It is Paris, which is known for its art."

KNOWN = Sampling(temperature=1.0, max_tokens=6)

REFUSALS = (BadRequest, ModelNotFound, ServerFailed, MalformedReply, InputError)
"""What speaks against one way of asking; anything else speaks against the server, and is raised."""


def speaks_of_the_server(refusal: DlnError) -> DlnError:
    """The refusal, if it says something of how the server may be asked.

    Raises:
        ServerFailed: the failure is transient: a weaker scoring mode for the whole run would be the wrong remedy.
    """
    if passing(refusal):
        raise refusal
    return refusal


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
        ProviderError: the server cannot draw at all.
    """
    plain = replace(session.dialect, extras=False)
    ways = [(session.dialect, 1), *([(plain, 1)] if session.dialect.extras else []), (plain, None)]
    for at, (dialect, top) in enumerate(ways):
        session.dialect = dialect
        try:
            drawn = known_draw(session, top)
        except REFUSALS as refusal:
            speaks_of_the_server(refusal)
            if at == len(ways) - 1:
                raise
        else:
            return drawn, bool(drawn.row.tokens)
    raise AssertionError("the last way returns or raises")


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


def next_top(session: Session, top: int) -> tuple[ScoredToken, ...]:
    """The likeliest tokens after the known context; empty where the answer ended at once."""
    prompt = Prompt(CONTEXT, None, True) if session.chat else Prompt(CONTEXT)
    row = session.send([session.dialect.next_tokens(prompt, top, ())], session.dialect.read_next)[0]
    return row.tops[0] if row.tops else ()
