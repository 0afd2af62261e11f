"""One step of training a program: forward pass, inference over intermediate texts, proposals, race.

    1. Run the program on a batch: texts ĥ of every stage, rewards R.
    2. For examples without full reward, propose other texts for every hidden stage and run the rest of the program
       from each: the posterior of the stage's text, and the credit of the stages (`dln.programs.posterior`).
    3. Propose parameters in proportion to the credit, from the texts of high and low posterior weight.
    4. Race all candidates against the incumbent on common examples: after each round, those clearly behind stop, and
       of the others the better half goes on.

`update` is a function of the state, the key and the answers of the program and its models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dln.errors import BudgetReached
from dln.infer.mstep import Best, Selector
from dln.infer.objective import Stopped, comparable
from dln.infer.race import BehindLeader, StoppingRule
from dln.infer.rewards import reward_temperature
from dln.lm.base import LanguageModel
from dln.numerics import Floats
from dln.programs.evaluations import Evaluations, Outcome
from dln.programs.posterior import StagePosterior, credits_of, stage_posterior
from dln.programs.proposals import (
    Candidate,
    Evidence,
    EvidenceRow,
    ParameterProposal,
    TextProposal,
    TextRequest,
)
from dln.programs.trace import Request, Stage
from dln.random import Key

__all__ = ["ProgramState", "RaceResult", "StepInfo", "VariationalProgram", "allotted", "race"]

FULL = 1.0 - 1e-9
"""Rewards above this leave nothing to improve."""


@dataclass(frozen=True)
class ProgramState:
    """What a step leaves to the next one.

    Attributes:
        parameters: (name, text), the incumbent.
        step: updates done.
        batch: examples of the last step.
        drawn: examples taken from the stream so far.
        tried: changes that scored less than the incumbent, which are not proposed again under it.
        worked: per parameter, rows of earlier steps that led to a good result, newest last.
    """

    parameters: tuple[tuple[str, str], ...]
    step: int = 0
    batch: tuple[int, ...] = ()
    drawn: int = 0
    tried: frozenset[tuple[tuple[str, str], ...]] = frozenset()
    worked: tuple[tuple[str, tuple[EvidenceRow, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class RaceResult:
    """The scores of candidates on common examples.

    Attributes:
        candidates: [N] the incumbent first.
        per_example: [N, B] rewards; NaN where a candidate was not run or has no reward.
        scores: [N] mean over the examples that all survivors have; NaN for those that stopped.
        stopped: [N] where a candidate left the race.
        behind: [N] whether it scored less than the winner on the examples that it was run on.
        winner: its place; 0 keeps the incumbent.
    """

    candidates: tuple[Candidate, ...]
    per_example: Floats
    scores: Floats
    stopped: tuple[Stopped | None, ...]
    behind: tuple[bool, ...]
    winner: int


@dataclass(frozen=True, eq=False)
class StepInfo:
    """A step for reports.

    Attributes:
        forward: [B] outcomes of the forward pass.
        posteriors: of the hidden stages, by position in the batch.
        temperature: τ.
        credits: by parameter.
        dropped: candidates that were screened out, by parameter and reason.
        race: of the candidates; None where nothing was proposed.
    """

    forward: tuple[Outcome, ...]
    posteriors: tuple[tuple[int, StagePosterior], ...]
    temperature: float
    credits: Mapping[str, float]
    dropped: Mapping[str, Counter[str]]
    race: RaceResult | None


@dataclass(frozen=True)
class VariationalProgram:
    """The choices of a step.

    Args:
        texts: proposals for intermediate texts.
        rewrites: proposals for parameters, each asked for its part of the candidates.
        lm: the model that writes proposals; None where none is needed.
        batch_size: B, examples of a step; half of them were in the step before.
        num_texts: proposed texts per hidden stage and example.
        num_inferred: examples per step whose texts are inferred, at most.
        num_candidates: N, candidates per step.
        reward_scale: τ is this times the largest spread of an example's rewards.
        select: chooses the winner of a race.
        rule: who is clearly behind in a race.
        first_round: examples of the first round of a race.
        growth: how many times as many examples each further round has.
    """

    texts: TextProposal
    rewrites: tuple[ParameterProposal, ...]
    lm: LanguageModel | None = None
    batch_size: int = 12
    num_texts: int = 2
    num_inferred: int = 4
    num_candidates: int = 6
    reward_scale: float = 0.25
    select: Selector = field(default_factory=Best)
    rule: StoppingRule = field(default_factory=BehindLeader)
    first_round: int = 4
    growth: float = 2.0

    def update(
        self,
        state: ProgramState,
        key: Key,
        evaluations: Evaluations,
        train: Sequence[int],
        view: Callable[[int], str],
        wanted: Callable[[int], str],
    ) -> tuple[ProgramState, StepInfo]:
        """The next state, and what happened.

        Args:
            state: the present one.
            key: randomness of the run.
            evaluations: runs the program.
            train: positions of the examples to train on.
            view: an example with what is wanted, as a text.
            wanted: the wanted output of an example as a text.
        """
        own = key.child("step", state.step)
        state = self._next_batch(state, key, train)
        parameters = dict(state.parameters)
        forward = evaluations(Request.of(i, parameters) for i in state.batch)
        failing = [b for b, outcome in enumerate(forward) if outcome.score < FULL]
        order = own.child("inferred").generator().permutation(len(failing))
        inferred = sorted(failing[int(i)] for i in order[: self.num_inferred])
        temperature, posteriors = self._infer(own, evaluations, parameters, forward, inferred, view)
        by_example: dict[int, list[StagePosterior]] = {}
        for b, posterior in posteriors:
            by_example.setdefault(forward[b].request.example, []).append(posterior)
        credits_ = credits_of([forward[b] for b in inferred], by_example, list(parameters))
        good = good_reward(forward)
        rows = evidence_rows(forward, posteriors, wanted, good)
        worked = _with_worked(state.worked, rows, parameters, good)
        evidence = [
            Evidence(
                parameter=name,
                value=text,
                rows=tuple(row for row in rows if name in row.parameters),
                worked=dict(worked)[name],
                judged=frozenset(
                    stage.reads for o in forward for stage in o.rollout.stages if name in stage.parameters
                ),
                parameters=state.parameters,
            )
            for name, text in state.parameters
        ]
        candidates, dropped = self._propose(own, evidence, credits_, state.tried)
        contest = None
        tried = state.tried
        if candidates:
            contest = race(
                evaluations,
                parameters,
                [Candidate((), "incumbent"), *candidates],
                _spread(own, state.batch, forward),
                self,
            )
            won = contest.candidates[contest.winner]
            lost = {c.changes for c, behind in zip(contest.candidates, contest.behind, strict=True) if behind}
            tried = frozenset(lost) if contest.winner else tried | lost
            parameters |= dict(won.changes)
        info = StepInfo(tuple(forward), tuple(posteriors), temperature, credits_, dropped, contest)
        after = replace(state, parameters=tuple(parameters.items()), step=state.step + 1, tried=tried, worked=worked)
        return after, info

    def _next_batch(self, state: ProgramState, key: Key, train: Sequence[int]) -> ProgramState:
        """Half of the last batch and as many of the stream, which visits all examples once before any of them twice."""
        size = min(self.batch_size, len(train))
        if size == len(train):
            return replace(state, batch=tuple(train))
        kept = state.batch[-(size // 2) :] if state.batch else ()
        batch, drawn = list(kept), state.drawn
        while len(batch) < size:
            epoch, place = divmod(drawn, len(train))
            found = train[int(key.child("epoch", epoch).generator().permutation(len(train))[place])]
            drawn += 1
            if found not in batch:
                batch.append(found)
        return replace(state, batch=tuple(batch), drawn=drawn)

    def _infer(
        self,
        key: Key,
        evaluations: Evaluations,
        parameters: Mapping[str, str],
        forward: Sequence[Outcome],
        inferred: Sequence[int],
        view: Callable[[int], str],
    ) -> tuple[float, list[tuple[int, StagePosterior]]]:
        """τ, and (place in the batch, posterior) of the hidden stages with parameters of the examples `inferred`."""
        places: list[tuple[int, Stage]] = []
        asked: list[TextRequest] = []
        for b in inferred:
            stages = forward[b].rollout.stages
            for at, stage in enumerate(stages[:-1]):
                if not stage.parameters:
                    continue
                above = next((s for s in stages[at + 1 :] if s.parameters), None)
                places.append((b, stage))
                asked.append(
                    TextRequest(
                        stage=stage.name,
                        example=view(forward[b].request.example),
                        reads=stage.reads,
                        instruction="\n".join(parameters[name] for name in stage.parameters),
                        text=stage.text,
                        next_instruction="" if above is None else "\n".join(parameters[n] for n in above.parameters),
                        output=forward[b].output,
                        score=forward[b].score,
                        feedback=forward[b].feedback,
                    )
                )
        proposed: list[list[str]] = [[] for _ in asked]
        if asked and self.num_texts:
            proposed = self.texts(key.child("texts"), asked, self.num_texts, self.lm)
        requests: list[Request] = []
        owners: list[int] = []
        for owner, ((b, stage), texts) in enumerate(zip(places, proposed, strict=True)):
            rollout = forward[b].rollout
            before = {s.name: s.text for s in rollout.stages[: rollout.position(stage.name)]}
            for text in dict.fromkeys(texts):
                if text != stage.text:
                    example = forward[b].request.example
                    requests.append(Request.of(example, parameters, {**before, stage.name: text}))
                    owners.append(owner)
        outcomes = evaluations(requests)
        runs = [[outcome for outcome, o in zip(outcomes, owners, strict=True) if o == i] for i in range(len(places))]
        rewards = np.full((len(places), 1 + max(map(len, runs), default=0)), np.nan)
        for row, (b, _), others in zip(rewards, places, runs, strict=True):
            row[: 1 + len(others)] = [forward[b].score, *(outcome.score for outcome in others)]
        temperature = reward_temperature(rewards, self.reward_scale)
        return temperature, [
            (b, stage_posterior(stage.name, forward[b], others, temperature))
            for (b, stage), others in zip(places, runs, strict=True)
        ]

    def _propose(
        self,
        key: Key,
        evidence: Sequence[Evidence],
        credit: Mapping[str, float],
        tried: frozenset[tuple[tuple[str, str], ...]],
    ) -> tuple[list[Candidate], dict[str, Counter[str]]]:
        """Candidates for all parameters, and what was dropped."""
        found: list[Candidate] = []
        dropped: dict[str, Counter[str]] = {}
        counts = allotted(credit, self.num_candidates)
        for one in evidence:
            name, count = one.parameter, counts[one.parameter]
            if not count:
                continue
            shares = allotted(dict.fromkeys(map(str, range(len(self.rewrites))), 1.0), count)
            for way, rewrite in enumerate(self.rewrites):
                kept, out = rewrite(key.child("rewrite", name, way), one, shares[str(way)], self.lm)
                dropped.setdefault(name, Counter()).update(out)
                for candidate in kept:
                    again = candidate.changes in tried or candidate.changes in {c.changes for c in found}
                    if again:
                        dropped[name]["tried before"] += 1
                    else:
                        found.append(candidate)
        return found, dropped


def allotted(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` divided in proportion to the weights, by largest remainders; nothing where all weights are zero.

    >>> allotted({"find": 3.0, "answer": 1.0}, 6)
    {'find': 5, 'answer': 1}
    """
    full = sum(weights.values())
    if full <= 0:
        return dict.fromkeys(weights, 0)
    exact = {name: total * weight / full for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def good_reward(forward: Sequence[Outcome]) -> float:
    """The reward from which a result is good: a full one, or the batch's largest where none is full and they differ."""
    known = [outcome.score for outcome in forward if np.isfinite(outcome.score)]
    largest = max(known, default=FULL)
    return largest if min(known, default=FULL) < largest < FULL else FULL


def evidence_rows(
    forward: Sequence[Outcome],
    posteriors: Sequence[tuple[int, StagePosterior]],
    wanted: Callable[[int], str],
    good: float,
) -> list[EvidenceRow]:
    """What the batch tells of every stage with parameters.

    The better text of a hidden stage is that of its posterior. Where hidden texts explain an example's regret no better
    text of the last stage is asked for; else it is the wanted output.
    """
    found: list[EvidenceRow] = []
    of_stage = {(b, posterior.stage.name): posterior for b, posterior in posteriors}
    explained = {b for b, posterior in posteriors if posterior.gain > 0}
    for b, outcome in enumerate(forward):
        stages = outcome.rollout.stages
        for stage in stages:
            if not stage.parameters or not np.isfinite(outcome.score):
                continue
            posterior = of_stage.get((b, stage.name))
            better, score = (stage.text, outcome.score)
            if posterior is not None:
                better, best = posterior.best
                score = best.score
            elif stage is stages[-1] and outcome.score < FULL and b not in explained:
                better, score = wanted(outcome.request.example), 1.0
                better += f" ({outcome.feedback})" if outcome.feedback else ""
            fine = outcome.score >= good
            if fine or better != stage.text:
                found.append(
                    EvidenceRow(
                        stage.name, stage.parameters, stage.reads, stage.text, better, outcome.score, score, fine
                    )
                )
    return found


def _with_worked(
    before: tuple[tuple[str, tuple[EvidenceRow, ...]], ...],
    rows: Sequence[EvidenceRow],
    parameters: Mapping[str, str],
    good: float,
    limit: int = 64,
) -> tuple[tuple[str, tuple[EvidenceRow, ...]], ...]:
    """The worked rows of every parameter, with those of this batch; a newer row replaces one that read the same."""
    known = dict(before)
    found: list[tuple[str, tuple[EvidenceRow, ...]]] = []
    for name in parameters:
        merged = {(row.stage, row.reads): row for row in known.get(name, ())}
        for row in rows:
            if name in row.parameters and row.better_score >= good:
                merged.pop((row.stage, row.reads), None)
                merged[row.stage, row.reads] = row
        found.append((name, tuple(merged.values())[-limit:]))
    return tuple(found)


def _spread(key: Key, batch: Sequence[int], forward: Sequence[Outcome]) -> list[int]:
    """The batch in random order, with the examples that the incumbent fails spread evenly over it."""
    generator = key.child("race").generator()
    groups = defaultdict[bool, list[int]](list)
    for b in generator.permutation(len(batch)):
        groups[bool(forward[int(b)].score < FULL)].append(batch[int(b)])
    places: list[tuple[float, int]] = []
    for group in groups.values():
        offset = generator.random()
        places.extend(((rank + offset) / len(group), example) for rank, example in enumerate(group))
    return [example for _, example in sorted(places)]


def race(
    evaluations: Evaluations,
    parameters: Mapping[str, str],
    candidates: Sequence[Candidate],
    order: Sequence[int],
    choices: VariationalProgram,
) -> RaceResult:
    """Compare candidates on growing parts of `order`, by paired differences and successive halving.

    The incumbent, candidate 0, stays in the race: its scores on all of `order` are known from the forward pass. Where
    the budget ends in a round, the rounds before it decide.
    """
    total = len(order)
    sizes: list[int] = []
    size = choices.first_round
    while size < total:
        sizes.append(size)
        size = int(np.ceil(choices.growth * size))
    sizes.append(total)
    terms = np.full((len(candidates), total), np.nan)
    stopped: list[Stopped | None] = [None] * len(candidates)
    alive: list[int] = list(range(len(candidates)))
    for number, size in enumerate(sizes, 1):
        requests = [
            Request.of(example, {**parameters, **dict(candidates[n].changes)})
            for n in alive
            for example in order[:size]
        ]
        try:
            outcomes = evaluations(requests)
        except BudgetReached:  # the rounds so far decide
            break
        rows = np.array([outcome.score for outcome in outcomes]).reshape(len(alive), size)
        terms[alive, :size] = rows
        if size == total or len(alive) == 1:
            break
        used = comparable(np.isfinite(rows))
        means = rows[:, used].mean(axis=1) if used.any() else np.full(len(alive), np.nan)
        out = choices.rule(terms[alive], total, len(candidates) - 1, max(1, len(sizes) - 1))
        # the better half of the rivals, at least one, and those that are level with its last
        known = np.nan_to_num(means, nan=-np.inf)
        rivals = sorted(
            (place for place, n in enumerate(alive) if n and not out[place]), key=lambda place: -known[place]
        )
        half = rivals[: len(alive) // 2]
        keep = {0, *(place for place in rivals if half and known[place] >= known[half[-1]])}
        for place, n in enumerate(alive):
            if place not in keep:
                stopped[n] = Stopped(number, int(used.sum()), float(means[place]))
        alive = [n for place, n in enumerate(alive) if place in keep]
    every = terms.copy()
    terms[[n for n, gone in enumerate(stopped) if gone is not None]] = np.nan
    used = comparable(np.isfinite(terms[alive]))
    scores = np.full(len(candidates), np.nan)
    if used.any():
        scores[alive] = terms[alive][:, used].mean(axis=1)
    winner = choices.select(scores, terms)
    behind = tuple(bool(np.nansum(row - every[winner]) < 0) for row in every)
    return RaceResult(tuple(candidates), terms, scores, tuple(stopped), behind, winner)
