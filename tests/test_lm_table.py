from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dln.errors import DlnError, InputError
from dln.lm.base import (
    Capabilities,
    Completion,
    LanguageModel,
    NextTokens,
    Sampling,
    Target,
    Token,
    TokenLogProbs,
    Wrapper,
)
from dln.lm.laws import LAWS, Law, LawBroken, LawCase, check_laws
from dln.lm.local.decoding import drawing_probabilities
from dln.lm.table import TableLM, split_tokens
from dln.numerics import Floats, logsumexp

TEXTS = ["", "yes", "yes sir", "yes sir now", " no", "no way", "a\n b", "tail  ", "ünï 🙂"]
CASE = LawCase(["x", "", "Q: a?\nA:"], ["yes sir now", " no", "never seen", "yes or no", ""], ["yes", "yes sir", " no"])

texts = st.lists(st.text("ab \n", max_size=8), min_size=1, max_size=8, unique=True)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, float]:
    keys = draw(texts)
    weights = draw(
        st.lists(st.just(0.0) | st.floats(1e-9, 1), min_size=len(keys), max_size=len(keys)).filter(
            lambda w: sum(w) > 1e-3
        )
    )
    return {key: weight / math.fsum(weights) for key, weight in zip(keys, weights, strict=True)}


@settings(deadline=None)
@given(st.text())
def test_tokens_concatenate_to_the_text_and_a_prefix_of_tokens_is_the_tokens_of_a_prefix(text: str) -> None:
    tokens = split_tokens(text)
    assert "".join(tokens) == text
    for k in range(len(tokens)):
        assert split_tokens("".join(tokens[:k])) == tokens[:k]


@settings(deadline=None)
@given(rows())
def test_support_is_the_table(row: dict[str, float]) -> None:
    lm = TableLM(lambda _: row)
    support = lm.support("c")
    assert {c.text for c in support} == {text for text, p in row.items() if p > 0}
    assert math.fsum(math.exp(math.fsum(c.log_probs or ())) for c in support) == pytest.approx(1.0, abs=1e-12)
    for c, scores in zip(support, lm.log_prob(["c"] * len(support), support), strict=True):
        assert scores.log_prob == pytest.approx(math.log(row[c.text]), abs=1e-9)
        assert lm.probability("c", c.text) == pytest.approx(row[c.text], rel=1e-9)
        assert tuple(scores.values) == c.log_probs
        assert scores.text_tokens == len(split_tokens(c.text)) == len(c.token_ids or ()) - 1


@settings(deadline=None)
@given(rows(), texts)
def test_a_plain_text_has_the_mass_of_everything_that_begins_with_its_tokens(
    row: dict[str, float], targets: list[str]
) -> None:
    lm = TableLM(lambda _: row)
    for target in [*targets, *row]:
        tokens = split_tokens(target)
        mass = math.fsum(p for text, p in row.items() if split_tokens(text)[: len(tokens)] == tokens)
        scores = lm.log_prob(["c"], [target])[0]
        assert len(scores.values) == scores.text_tokens == len(tokens)
        assert math.exp(scores.log_prob) == pytest.approx(mass, abs=1e-9)


@settings(deadline=None)
@given(rows(), st.lists(st.text("ab ", min_size=1, max_size=5), min_size=1, max_size=5, unique=True))
def test_labels_share_the_texts_and_the_longest_label_wins(row: dict[str, float], labels: list[str]) -> None:
    lm = TableLM(lambda _: row)
    expected = np.zeros(len(labels))
    for text, p in row.items():
        tokens = split_tokens(text)
        begun = [k for k, label in enumerate(labels) if tokens[: len(split_tokens(label))] == split_tokens(label)]
        for k in begun:
            # a text counts for a label unless its next word leads towards a longer one
            n = len(split_tokens(labels[k]))
            ways = {
                split_tokens(o)[n]
                for o in labels
                if split_tokens(o)[:n] == split_tokens(labels[k]) and len(split_tokens(o)) > n
            }
            if not (len(tokens) > n and tokens[n] in ways):
                expected[k] += p
    masses = np.exp(lm.choice_log_probs(["c"], labels))[0]
    np.testing.assert_allclose(masses, expected, atol=1e-9)
    assert masses.sum() <= 1 + 1e-12


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=9),
    st.sampled_from([0.0, 1e-3, 0.5, 1.0, 3.0]),
    st.floats(0.05, 1.0),
)
def test_what_is_drawn_from_is_a_nucleus(weights: list[float], temperature: float, top_p: float) -> None:
    p = np.array(weights) / sum(weights)
    whole = drawing_probabilities(p, Sampling(temperature=temperature))
    q = drawing_probabilities(p, Sampling(temperature=temperature, top_p=top_p))
    assert q.sum() == pytest.approx(1.0)
    kept = q > 0
    assert whole[kept].sum() >= top_p * (1 - 1e-9)
    assert whole[kept].sum() - whole[kept].min() < top_p + 1e-9, "a smaller set would do"
    assert not kept.all() or whole[kept].sum() == pytest.approx(1.0)
    assert whole[kept].min() >= whole[~kept].max(initial=0.0)
    np.testing.assert_allclose(q[kept], whole[kept] / whole[kept].sum())


def test_temperature_sharpens_and_flattens() -> None:
    p = np.array([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(drawing_probabilities(p, Sampling(temperature=1.0)), p)
    np.testing.assert_array_equal(drawing_probabilities(p, Sampling(temperature=1e-300)), [1, 0, 0])
    np.testing.assert_allclose(drawing_probabilities(p, Sampling(temperature=1e9)), 1 / 3)
    np.testing.assert_array_equal(drawing_probabilities(np.array([0.4, 0.4, 0.2]), Sampling()), [1, 0, 0])


def test_draws_have_the_frequencies_of_the_table() -> None:
    lm = TableLM.random(TEXTS, seed=5)
    n = 4000
    draws = lm.sample(["c"] * n, Sampling(temperature=1.0), range(n))
    for text in TEXTS:
        p = lm.probability("c", text)
        seen = sum(d.text == text for d in draws)
        assert abs(seen - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1
    assert all(d.finish_reason == "stop" and d.sampling_log_probs == d.log_probs for d in draws)


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70), st.floats(0.1, 3), st.floats(0.1, 1))
def test_log_q_is_finite_and_greedy_has_log_q_zero(seed: int, temperature: float, top_p: float) -> None:
    lm = TableLM.random(TEXTS, seed=5)
    draw = lm.sample(["c"], Sampling(temperature=temperature, top_p=top_p), [seed])[0]
    assert np.isfinite(draw.sampling_log_probs or ()).all()
    assert draw.text in TEXTS
    greedy = lm.sample(["c"], Sampling(), [seed])[0]
    assert set(greedy.sampling_log_probs or ()) == {0.0}


@settings(deadline=None)
@given(st.integers(0, 50))
def test_the_exact_posterior_makes_the_elbo_tight_and_any_other_q_is_below(seed: int) -> None:
    lm = TableLM.random(TEXTS, seed=seed)
    hidden = lm.support("x")
    prior = np.array([h.log_prob for h in lm.log_prob(["x"] * len(hidden), hidden)])
    likelihood = lm.choice_log_probs([h.text for h in hidden], ["yes sir"])[:, 0]
    joint = prior + likelihood
    evidence = math.log(
        math.fsum(lm.probability("x", h.text) * math.exp(v) for h, v in zip(hidden, likelihood, strict=True))
    )

    def elbo(log_q: Floats) -> float:
        return float((np.exp(log_q) * (joint - log_q)).sum())

    assert elbo(joint - logsumexp(joint)) == pytest.approx(evidence, abs=1e-9)
    assert elbo(prior) <= evidence + 1e-12
    assert elbo(np.full(len(hidden), -math.log(len(hidden)))) <= evidence + 1e-12


def test_a_random_model_gives_each_context_its_own_reproducible_distribution() -> None:
    one, two, other = (TableLM.random(TEXTS, seed) for seed in (1, 1, 2))
    row = [one.probability("c", t) for t in TEXTS]
    assert row == [two.probability("c", t) for t in TEXTS] != [other.probability("c", t) for t in TEXTS]
    assert row != [one.probability("d", t) for t in TEXTS]
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()


def test_fingerprints_tell_tables_apart() -> None:
    a = TableLM.from_table({"c": {"x": 1.0}})
    b = TableLM.from_table({"c": {"x": 0.5, "y": 0.5}})
    assert a.fingerprint() == TableLM.from_table({"c": {"x": 1.0}}).fingerprint() != b.fingerprint()
    assert TableLM(lambda _: {"x": 1.0}).fingerprint() != TableLM(lambda _: {"y": 1.0}).fingerprint()
    assert (
        TableLM(lambda _: {"x": 1.0}, name="n").fingerprint() == TableLM(lambda _: {"x": 1.0}, name="n").fingerprint()
    )


def test_a_draw_of_another_model_is_scored_as_plain_text() -> None:
    lm = TableLM.random(TEXTS, 1)
    foreign = Completion("yes sir", token_ids=(7, 8, 9), model="another")
    np.testing.assert_array_equal(lm.log_prob(["c"], [foreign])[0].values, lm.log_prob(["c"], ["yes sir"])[0].values)


def test_a_text_of_ten_thousand_words_is_no_trouble() -> None:
    long = " w" * 10_000
    lm = TableLM.from_table({}, default={long: 0.5, "x": 0.5})
    assert lm.log_prob(["c"], [long])[0].log_prob == pytest.approx(math.log(0.5))
    assert len(lm.support("c")) == 2


@pytest.mark.parametrize(
    "row", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": math.nan}, {"a": math.inf}, {"a": 1.0, "b": 1e-6}]
)
def test_no_distribution_is_refused(row: dict[str, float]) -> None:
    with pytest.raises(InputError, match="distribution"):
        TableLM(lambda _: row).support("c")


@pytest.mark.parametrize(
    "call",
    [
        lambda lm: lm.log_prob(["c"], []),
        lambda lm: lm.sample(["c"], Sampling(), []),
        lambda lm: lm.choice_log_probs(["c"], []),
        lambda lm: lm.choice_log_probs(["c"], ["a", "a"]),
        lambda lm: lm.choice_log_probs(["c"], [""]),
        lambda _: TableLM.from_table({"c": {"x": 1.0}}).support("d"),
        lambda _: TableLM.random([], 1),
        lambda _: TableLM.random(["a", "a"], 1),
        lambda _: TableLM.random(["a"], 1, concentration=0.0),
    ],
)
def test_a_users_mistake_is_an_input_error(call: Callable[[TableLM], object]) -> None:
    with pytest.raises(InputError):
        call(TableLM.random(TEXTS, 1))


# The laws: a sound model passes every one, and each kind of unsound model is caught.


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize(
    "lm",
    [
        TableLM.random(TEXTS, 3),
        TableLM.random(TEXTS, 4, concentration=0.05),
        TableLM.from_table({"x": {"yes": 1.0, "no": 0.0}}, default={"": 0.25, "yes sir": 0.75}),
    ],
    ids=["random", "peaked", "table"],
)
def test_laws_hold_for_a_table(lm: TableLM, law: Law) -> None:
    assert law(lm, CASE) in ("holds", "skipped")


def test_a_model_that_cannot_score_skips_the_laws_of_scoring_and_says_so() -> None:
    verdicts = check_laws(Mute(TableLM.random(TEXTS, 3)), CASE.contexts, CASE.targets, CASE.labels)
    skipped = {name for name, verdict in verdicts.items() if verdict == "skipped"}
    assert skipped >= {"batch_equals_single", "chain_rule", "label_masses_are_a_distribution"}
    assert verdicts["seeds_reproduce"] == "holds"


class Mutant(Wrapper):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return self.inner.sample(contexts, sampling, seeds)

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        return self.inner.choice_log_probs(contexts, labels)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        return self.inner.next_token_log_probs(contexts, tokens, top)


class Mute(Mutant):
    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, scores_targets=False, scores_labels=False, next_tokens="none")

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        raise DlnError("cannot score")

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        raise DlnError("cannot score")


class Liar(Mutant):
    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, token_ids=False)


class SaysMute(Mutant):
    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, scores_targets=False)


class Shallow(Mutant):
    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, context_length=10)


class PaddedBatch(Mutant):
    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        scores = super().log_prob(contexts, targets)
        return [TokenLogProbs(s.values - 0.01 * (len(scores) - 1), s.text_tokens) for s in scores]


class Positional(Mutant):
    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        return super().choice_log_probs(contexts, labels) - 0.01 * np.arange(len(labels))


class Shifted(Mutant):
    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        return [TokenLogProbs(s.values[::-1].copy(), s.text_tokens) for s in super().log_prob(contexts, targets)]


class NotANumber(Mutant):
    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        return [TokenLogProbs(s.values * math.nan, s.text_tokens) for s in super().log_prob(contexts, targets)]


class Positive(Mutant):
    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        return [TokenLogProbs(-s.values, s.text_tokens) for s in super().log_prob(contexts, targets)]


class NoTrie(Mutant):
    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        return (
            np.concatenate([super(NoTrie, self).choice_log_probs(contexts, [label]) for label in labels], axis=1) + 0.0
        )


class Forgetful(Mutant):
    calls = 0

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        self.calls += 1
        return super().sample(contexts, sampling, [seed + self.calls for seed in seeds])


class Gossip(Mutant):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return super().sample(contexts, sampling, [seed + 7 * i for i, seed in enumerate(seeds)])


class WarmZero(Mutant):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return super().sample(contexts, replace(sampling, temperature=sampling.temperature or 1.0), seeds)


class TemperedScores(Mutant):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        draws = super().sample(contexts, sampling, seeds)
        return [replace(d, log_probs=tuple(v / 2 for v in d.log_probs or ())) for d in draws]


class Talkative(Mutant):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return super().sample(contexts, replace(sampling, max_tokens=sampling.max_tokens + 1), seeds)


class Unstoppable(Mutant):
    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        return super().sample(contexts, replace(sampling, stop=()), seeds)


class Renamed(Mutant):
    calls = 0

    def fingerprint(self) -> str:
        self.calls += 1
        return f"{self.calls}"


class Neighbourly(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        return replace(found, log_probs=found.log_probs - 0.01 * (len(contexts) - 1))


class ByPlace(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        return replace(found, log_probs=found.log_probs - 0.01 * np.arange(len(tokens)))


class Tempered(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        cold = tuple(tuple((token, 2 * value) for token, value in row) for row in found.top)
        return NextTokens(2 * found.log_probs, found.bounds, cold)


class Unsorted(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        return replace(found, top=tuple(row[::-1] for row in found.top))


class OtherTop(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top + 1)
        return replace(found, top=tuple(row[1:] for row in found.top))


class Overfull(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        return NextTokens(
            found.log_probs / 2,
            found.bounds,
            tuple(tuple((token, value / 2) for token, value in row) for row in found.top),
        )


class Withholding(Mutant):
    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        found = super().next_token_log_probs(contexts, tokens, top)
        return replace(found, log_probs=np.where(found.log_probs < -2, math.nan, found.log_probs))


class SaysNoNext(Mutant):
    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, next_tokens="top")


class EmptyFails(Mutant):
    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        return super().log_prob(contexts, targets) or [TokenLogProbs(np.zeros(0), 0)]


@pytest.mark.parametrize(
    ("mutant", "law"),
    [
        (Liar, "capabilities_are_honest"),
        (SaysMute, "capabilities_are_honest"),
        (Shallow, "too_long_is_refused"),
        (PaddedBatch, "batch_equals_single"),
        (Positional, "batch_order_does_not_matter"),
        (Shifted, "chain_rule"),
        (NotANumber, "log_probs_are_possible"),
        (Positive, "log_probs_are_possible"),
        (NoTrie, "label_masses_are_a_distribution"),
        (Forgetful, "seeds_reproduce"),
        (Gossip, "draws_ignore_neighbours"),
        (WarmZero, "temperature_zero_ignores_the_seed"),
        (TemperedScores, "kept_log_probs_are_scores"),
        (Talkative, "max_tokens_is_obeyed"),
        (Unstoppable, "stop_is_obeyed"),
        (Renamed, "fingerprint_is_stable"),
        (EmptyFails, "empty_batches_are_empty"),
        (Neighbourly, "batch_equals_single"),
        (ByPlace, "batch_order_does_not_matter"),
        (Tempered, "next_tokens_are_scores"),
        (Unsorted, "next_tokens_are_a_distribution"),
        (OtherTop, "next_tokens_are_a_distribution"),
        (Overfull, "next_tokens_are_a_distribution"),
        (Withholding, "next_tokens_are_a_distribution"),
        (SaysNoNext, "capabilities_are_honest"),
    ],
)
def test_each_law_catches_what_it_is_for(mutant: Callable[[LanguageModel], LanguageModel], law: str) -> None:
    row = {"yes sir now": 0.5, "yes sir": 0.2, "yes": 0.1, "a b c d": 0.1, "no": 0.1}
    lm = mutant(TableLM.from_table({}, default=row))
    case = LawCase(["x", "y", "z"], ["yes sir now", "a b c d"], ["yes", "yes sir", "a"], seeds=tuple(range(6)))
    check = next(candidate for candidate in LAWS if candidate.__name__ == law)
    with pytest.raises(LawBroken):
        check(lm, case)
