"""Proposals for prompts: rewrites, lists, demonstrations, mixtures, and what is screened out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dln.errors import ContextLengthError, InputError, ProviderError, RequestFailed
from dln.infer.memory import Feedback, Opinion
from dln.infer.prompts import (
    DemonstrationProposal,
    MixturePrompts,
    Proposal,
    RewriteProposal,
    SequenceProposal,
    fixed_lines,
    screen,
)
from dln.lm.base import Completion, Sampling, Wrapper
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, LayerInput, Prompt, Template, load_template
from dln.nn.template import template_names
from dln.random import Key

SIZE = 8
X_ALONE = Template("x alone", 1, "forward", "{{ prompt }} {{ x }}", target_prefix=" ")


class Writer(Wrapper):
    """Answers with given texts in turn, and remembers what it was asked; counts words as tokens."""

    def __init__(self, *texts, context_length=None):
        super().__init__(TableLM.random([" yes", " no"], seed=0))
        self.texts, self.length, self.contexts, self.sampling = texts, context_length, [], None

    @property
    def capabilities(self):
        return replace(self.inner.capabilities, context_length=self.length)

    def sample(self, contexts, sampling, seeds):
        self.contexts.extend(contexts)
        self.sampling = sampling
        return [Completion(self.texts[i % len(self.texts)]) for i in range(len(contexts))]

    def log_prob(self, contexts, targets):
        return self.inner.log_prob(contexts, targets)

    def choice_log_probs(self, contexts, labels):
        return self.inner.choice_log_probs(contexts, labels)

    def count_tokens(self, text):
        return len(text.split())


def layer(lm=None, prompt="the present instruction"):
    return ChoiceLayer(lm or Writer("w"), "classify", prompt, ("yes", "no"))


def feedback(size=SIZE, pool=(), correct=None):
    return Feedback(
        inputs=tuple(LayerInput(f"question{i}.", f"question{i}.") for i in range(size)),
        outputs=tuple(f"said{i}." for i in range(size)),
        wanted=tuple(f"wanted{i}." for i in range(size)),
        correct=tuple(i % 2 == 0 for i in range(size)) if correct is None else correct,
        pool=tuple(pool),
    )


def shown(context):
    return set(map(int, re.findall(r"question(\d+)\.", context)))


# ---------------------------------------------------------------- rewrites


@pytest.mark.parametrize("error", [RequestFailed("refused"), ContextLengthError("too long")])
@pytest.mark.parametrize("proposal", [RewriteProposal(), SequenceProposal(count=1)])
def test_a_rewrite_that_fails_is_one_candidate_less(proposal, error):
    class Failing(Writer):
        def sample(self, contexts, sampling, seeds):
            if any("question0." in context for context in contexts):
                raise error
            return super().sample(contexts, sampling, seeds)

    lm = Failing("better")
    proposals = replace(proposal, subset=0.5)(Key(0), layer(lm), feedback(), 12)
    kept, dropped = screen(proposals, layer(lm), 96)
    assert [p.prompt.instruction for p in kept] == ["better"]
    assert 0 < len([p for p in proposals if p.prompt.instruction]) < 12
    assert isinstance(proposal, SequenceProposal) or dropped["empty"] > 0


def test_a_server_that_is_gone_ends_the_step():
    class Gone(Writer):
        def sample(self, contexts, sampling, seeds):
            raise ProviderError("no connection")

    with pytest.raises(ProviderError):
        RewriteProposal()(Key(0), layer(Gone("better")), feedback(), 4)


@pytest.mark.parametrize("template", ["backward", "backward_student"])
def test_a_rewrite_shows_what_was_right_and_wrong_and_the_present_instruction(template):
    lm = Writer("better")
    proposals = RewriteProposal(template=template)(Key(0), layer(lm), feedback(), 4)
    assert [p.prompt.instruction for p in proposals] == ["better"] * 4
    for context, proposal in zip(lm.contexts, proposals, strict=True):
        assert "the present instruction" in context
        assert proposal.detail in context
        assert shown(context) == set(range(SIZE))
        for i in range(SIZE):
            assert f"wanted{i}." in context
            assert (f"said{i}." in context) == (i % 2 == 1)  # an own output is news only where it was wrong


@pytest.mark.parametrize("template", [name for name in template_names("backward") if name != "program_parameter"])
def test_a_rewrite_shows_what_a_person_thinks_and_leaves_out_the_oldest_where_room_is_short(template):
    opinions = (Opinion("old words", False, "too\nlong " + "word " * 1000), Opinion("new words", True))
    told = {}
    for length in (None, 600):
        lm = Writer("better", context_length=length)
        shown_to = replace(feedback(), opinions=opinions)
        RewriteProposal(template=template, sampling=Sampling(max_tokens=8))(Key(0), layer(lm), shown_to, 1)
        (told[length],) = lm.contexts
    assert 'dislikes the instruction "old words": too long word' in told[None]
    assert shown(told[None]) == set(range(SIZE))
    assert 'likes the instruction "new words".' in told[600]
    assert "old words" not in told[600]
    assert shown(told[600]) == set(range(SIZE))  # what is too long alone takes no examples with it


# the template of `dln.optimize` is told of a step of a program, not of a layer
@pytest.mark.parametrize("template", [name for name in template_names("backward") if name != "program_parameter"])
@pytest.mark.parametrize(
    ("reads", "with_x", "with_h"),
    [
        ("classify_residual", True, True),
        ("think_residual", True, True),
        ("classify", False, True),
        (X_ALONE, True, False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_writer_sees_of_an_example_what_the_layer_reads(template, reads, with_x, with_h):
    """A layer above another one may read x, the text below, or both: so does who rewrites its instruction."""
    lm = Writer("better")
    above = ChoiceLayer(lm, reads, "the present instruction", ("yes", "no"))
    told = replace(feedback(), inputs=tuple(LayerInput(f"question{i}.", f"thought{i}.") for i in range(SIZE)))
    RewriteProposal(template=template)(Key(0), above, told, 2)
    for context in lm.contexts:
        assert shown(context) == (set(range(SIZE)) if with_x else set())
        assert all((f"thought{i}." in context) == with_h for i in range(SIZE))
        assert not re.search(r"(?i)thoughts", context) or (with_x and with_h)


@pytest.mark.parametrize("template", template_names("backward"))
def test_the_input_of_a_first_layer_is_shown_once(template):
    """Its template may name x and h, which are the same text there."""
    lm = Writer("better")
    first = ChoiceLayer(lm, "classify_residual", "the present instruction", ("yes", "no"))
    RewriteProposal(template=template)(Key(0), first, feedback(), 1)
    assert all(lm.contexts[0].count(f"question{i}.") == 1 for i in range(SIZE))


def test_candidates_differ_in_subset_and_meta_instruction():
    lm = Writer("better")
    proposals = RewriteProposal(subset=0.5)(Key(0), layer(lm), feedback(), 8)
    messages = load_template("backward").messages
    assert [p.detail for p in proposals] == [messages[i % len(messages)] for i in range(8)]
    subsets = [frozenset(shown(context)) for context in lm.contexts]
    assert len(set(subsets)) > 4
    assert len(set(lm.contexts)) == 8
    assert set().union(*subsets) == set(range(SIZE))


@given(st.integers(0, 200), st.integers(1, 15))
def test_the_held_out_half_is_really_half(seed, size):
    lm = Writer("better")
    RewriteProposal(subset=0.5)(Key(seed), layer(lm), feedback(size), 3)
    for context in lm.contexts:
        assert abs(len(shown(context)) - size / 2) <= 0.5


def test_at_most_the_allowed_number_of_examples_is_shown():
    lm = Writer("better")
    RewriteProposal(max_examples=3)(Key(0), layer(lm), feedback(), 2)
    assert [len(shown(context)) for context in lm.contexts] == [3, 3]


def test_a_long_backward_prompt_loses_examples_until_it_fits():
    free = Writer("better")
    RewriteProposal()(Key(0), layer(free), feedback(), 1)
    whole = free.count_tokens(free.contexts[0])
    reserve = 32 + 64
    last = None
    for limit in range(whole + reserve, whole + reserve - 40, -8):
        lm = Writer("better", context_length=limit)
        RewriteProposal(sampling=Sampling(0.7, max_tokens=32))(Key(0), layer(lm), feedback(), 1)
        assert lm.count_tokens(lm.contexts[0]) + reserve <= limit
        count = len(shown(lm.contexts[0]))
        assert last is None or count <= last
        last = count
    assert last < SIZE


@pytest.mark.parametrize("length", [None, 400, 1024, 2048, 8192])
def test_a_long_answer_takes_a_quarter_of_the_context_at_most(length):
    lm = Writer("better", context_length=length)
    for longest in (8, 96, 512, 1024):
        RewriteProposal(sampling=Sampling(0.7, max_tokens=longest))(Key(0), layer(lm), feedback(), 1)
        assert lm.sampling.max_tokens == (longest if length is None else min(longest, length // 4))


def test_a_prompt_that_fits_not_even_without_examples_is_one_clear_error():
    with pytest.raises(ContextLengthError, match=r"template backward(.|\n)*max_prompt_tokens"):
        RewriteProposal()(Key(0), layer(Writer("b", context_length=100)), feedback(), 1)


def test_a_rewrite_keeps_the_demonstrations_and_stops_where_the_template_says():
    lm = Writer('"quoted instruction"')
    present = Prompt("old", (Demonstration("a", "a", "yes"),))
    proposal = RewriteProposal(sampling=Sampling(0.9, max_tokens=5))(Key(0), layer(lm, present), feedback(), 1)[0]
    assert proposal.prompt == present.with_instruction("quoted instruction")
    assert lm.sampling == Sampling(0.9, max_tokens=5, stop=load_template("backward").stop)


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ("  plain  ", "plain"),
        ("> quoted", "quoted"),
        ("'single'", "single"),
        ('say "yes" or "no"', 'say "yes" or "no"'),
        ('"', '"'),
        ("", ""),
    ],
)
def test_the_quotation_that_models_put_around_an_instruction_is_taken_off(answer, instruction):
    assert RewriteProposal()(Key(0), layer(Writer(answer)), feedback(), 1)[0].prompt.instruction == instruction


def test_another_model_may_write():
    own, other = Writer("own"), Writer("other")
    assert RewriteProposal(other)(Key(0), layer(own), feedback(), 1)[0].prompt.instruction == "other"
    assert own.contexts == []


def test_text_of_the_data_is_not_rendered_in_the_backward_prompt():
    lm = Writer("b")
    tricky = replace(feedback(1), inputs=(LayerInput("{{ prompt }}", "{{ prompt }}{% for %}"),))
    RewriteProposal()(Key(0), layer(lm), tricky, 1)
    assert "{{ prompt }}{% for %}" in lm.contexts[0]


# ---------------------------------------------------------------- several from one answer


def test_a_numbered_list_is_one_candidate_per_line():
    lm = Writer("first one\n2. second one\n\n3) third one\n- fourth one\n* fifth one")
    proposals = SequenceProposal(count=5)(Key(0), layer(lm), feedback(), 5)
    assert [p.prompt.instruction for p in proposals] == [
        f"{n} one" for n in ("first", "second", "third", "fourth", "fifth")
    ]
    assert {p.source for p in proposals} == {"sequence"}
    assert "5 better instructions" in lm.contexts[0]


@pytest.mark.parametrize("line", ["2.5 litres are half of 5", "**Read** the text", "3 labels exist", "-1 is below 0"])
def test_what_is_no_number_of_a_line_stays(line):
    assert SequenceProposal()(Key(0), layer(Writer(line)), feedback(), 1)[0].prompt.instruction == line


@given(st.integers(1, 12), st.integers(1, 5))
def test_a_sequence_asks_as_often_as_it_must_and_gives_no_more_than_wanted(num, count):
    lm = Writer("\n".join(f"{i}. item {i}" for i in range(1, 8)))
    proposals = SequenceProposal(count=count)(Key(0), layer(lm), feedback(), num)
    assert len(lm.contexts) == -(-num // count)
    assert len(proposals) <= num


# ---------------------------------------------------------------- mixtures


class Fixed:
    def __init__(self, name, most=10**6):
        self.name, self.most = name, most

    def __call__(self, key, layer, feedback, num):
        return [Proposal(Prompt(f"{self.name}{i}"), self.name) for i in range(min(num, self.most))]


@given(st.integers(0, 30), st.lists(st.floats(0.01, 5), min_size=1, max_size=4))
def test_a_mixture_gives_as_many_as_asked_in_proportion(num, shares):
    mixture = MixturePrompts(tuple(Fixed(f"w{i}-") for i in range(len(shares))), tuple(shares))
    counts = Counter(p.source for p in mixture(Key(0), layer(), feedback(), num))
    assert sum(counts.values()) == num
    for i, share in enumerate(shares):
        assert abs(counts[f"w{i}-"] - num * share / sum(shares)) <= 1


def test_what_one_way_cannot_give_the_first_one_gives():
    mixture = MixturePrompts((Fixed("a"), Fixed("b", most=1)), (1.0, 3.0))
    assert Counter(p.source for p in mixture(Key(0), layer(), feedback(), 8)) == {"a": 7, "b": 1}
    nothing = MixturePrompts((Fixed("a"), DemonstrationProposal()))
    assert len(nothing(Key(0), layer(), feedback(), 6)) == 6


@pytest.mark.parametrize(("ways", "shares"), [(0, None), (2, (1.0,)), (2, (0.0, 0.0)), (2, (1.0, -1.0))])
def test_a_mixture_of_nothing_is_refused(ways, shares):
    with pytest.raises(InputError, match="mixture"):
        MixturePrompts((Fixed("a"),) * ways, shares)


# ---------------------------------------------------------------- screening


def test_what_cannot_be_a_prompt_is_dropped_and_counted():
    echo = fixed_lines(load_template("backward"))
    assert echo
    texts = ["", "  \n", "good", "good", "the present instruction", "one two three four five", f"so: {echo[0]}", "fine"]
    proposals = [Proposal(Prompt(text), "t", echoes=echo) for text in texts]
    kept, dropped = screen(proposals, layer(), 4)
    assert [p.prompt.instruction for p in kept] == ["good", "fine"]
    assert dropped == {"empty": 2, "duplicate": 2, "over-long": 1, "echo": 1}


def test_a_proposal_does_not_lose_the_instruction_of_the_user():
    shown = (Demonstration("a", "a", "yes"),)
    proposals = [Proposal(Prompt("", shown), "t"), Proposal(Prompt(" ", (), ("Mail", "Kind")), "t")]
    assert screen(proposals, layer(), 64) == ([], {"empty": 2})
    bare = layer().with_prompt("")
    assert len(screen(proposals, bare, 64)[0]) == 2


def test_examples_behind_a_long_instruction_of_the_users_own_are_a_prompt():
    own = layer()  # "the present instruction" has three words, more than are allowed to others
    shown = Proposal(own.prompt.with_demonstrations((Demonstration("a", "a", "yes"),)), "d")
    other = Proposal(Prompt("one two three four"), "r")
    assert screen([shown, other], own, 2) == ([shown], {"over-long": 1})


def test_demonstrations_alone_are_a_prompt():
    alone = Proposal(Prompt("", (Demonstration("a", "a", "yes"),)), "d")
    assert screen([alone, alone], layer().with_prompt(""), 4) == ([alone], {"duplicate": 1})


@given(st.integers(1, 200), st.integers(1, 30), st.floats(0.1, 1.0))
def test_demonstrations_leave_room_in_the_context(length, size, room):
    pool = tuple(Demonstration(f"p{i} {'word ' * (i % 7)}", "h", "yes" if i % 4 else "no") for i in range(24))
    pool = tuple(Demonstration(d.x, d.x, d.y) for d in pool)
    lm = Writer("x", context_length=length)
    ways = DemonstrationProposal((size,), room=room)
    found = ways(Key(0), layer(lm), feedback(pool=pool), 4)
    unbounded = DemonstrationProposal((size,))(Key(0), layer(), feedback(pool=pool), 4)
    for proposal in found:
        shown = proposal.prompt.demonstrations
        tokens = [lm.count_tokens(f"{d.h} {d.y}") for d in shown]
        assert 0 < sum(tokens) <= room * length
        assert len(shown) <= size
    longest = max(lm.count_tokens(f"{d.h} {d.y}") for d in pool)
    if size * longest <= room * length:
        assert [p.prompt for p in found] == [p.prompt for p in unbounded]
    elif longest <= room * length:
        assert all(sum(lm.count_tokens(f"{d.h} {d.y}") for d in p.prompt.demonstrations) > 0 for p in found)
        assert len(found) == 4


@given(st.lists(st.sampled_from(["", "a", "b", "a b c d e f", "the present instruction"])))
def test_nothing_is_lost_between_kept_and_dropped(texts):
    proposals = [Proposal(Prompt(text), "t") for text in texts]
    kept, dropped = screen(proposals, layer(), 4)
    assert len(kept) + sum(dropped.values()) == len(texts)
    assert len({p.prompt for p in kept}) == len(kept)
    assert [p for p in proposals if p in kept][:1] == kept[:1]


@pytest.mark.parametrize("name", ["backward", "backward_sequence", "backward_student"])
def test_fixed_lines_are_those_that_every_rendering_has(name):
    template = load_template(name)
    lm = Writer("x")
    RewriteProposal(template=name)(Key(0), layer(lm), feedback(), 1)
    for line in fixed_lines(template):
        assert line in lm.contexts[0]


# ---------------------------------------------------------------- demonstrations

POOL = tuple(Demonstration(f"p{i}", f"p{i}", "yes" if i % 4 else "no") for i in range(24))


@given(st.integers(0, 300), st.sampled_from([(1,), (4,), (2, 5), (40,)]), st.booleans())
def test_demonstrations_come_from_the_pool_alone_in_the_sizes_asked_for(seed, sizes, balanced):
    present = Prompt("i", POOL[:6])
    proposals = DemonstrationProposal(sizes, balanced)(Key(seed), layer(prompt=present), feedback(pool=POOL), 6)
    assert len(proposals) == 6
    for proposal in proposals:
        chosen = proposal.prompt.demonstrations
        assert set(chosen) <= set(POOL)
        assert len(set(chosen)) == len(chosen)
        assert len(chosen) in {min(size, len(POOL)) for size in sizes}
        assert proposal.prompt.instruction == "i"
        assert not {d.x for d in chosen} & {item.x for item in feedback().inputs}


@given(st.integers(0, 300))
def test_balanced_demonstrations_have_every_output_equally_often_while_the_pool_has_it(seed):
    for size in (2, 4, 10, 12):
        fresh = DemonstrationProposal((size,))(Key(seed), layer(), feedback(pool=POOL), 1)[0]
        counts = Counter(d.y for d in fresh.prompt.demonstrations)
        assert counts["no"] == min(size // 2, 6)


def test_every_second_candidate_exchanges_a_part_of_the_present_demonstrations():
    present = tuple(Demonstration(f"old{i}", f"old{i}", "yes") for i in range(8))
    proposals = DemonstrationProposal((8,), keep=0.5)(
        Key(0), layer(prompt=Prompt("i", present)), feedback(pool=POOL), 6
    )
    kept = [len(set(p.prompt.demonstrations) & set(present)) for p in proposals]
    assert kept == [0, 4, 0, 4, 0, 4]
    assert len({p.prompt for p in proposals}) == 6


def test_a_pool_with_repeated_rows_shows_none_of_them_twice():
    twice = POOL[:3] * 4
    for proposal in DemonstrationProposal((6,))(Key(0), layer(), feedback(pool=twice), 4):
        chosen = proposal.prompt.demonstrations
        assert len(set(chosen)) == len(chosen) == 3


def test_an_empty_pool_gives_no_demonstrations():
    assert DemonstrationProposal()(Key(0), layer(), feedback(), 5) == []


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="demonstration counts"):
        DemonstrationProposal(sizes)
