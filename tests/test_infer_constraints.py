"""Constraints on prompts: what they let through, alone and in a run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dln
from dln.errors import InputError
from dln.infer.constraints import KeepLines, MaxEdits, MaxTokens, Private, copied_ngrams, edit_distance, whole_tokens
from dln.infer.prompts import Proposal, screen
from dln.lm.table import TableLM
from dln.nn import ChoiceLayer, Demonstration, Prompt, Sequential
from dln.train.events import Finished, StepDone
from dln.train.run import of_kind, read_events
from dln.view.report import render_report

LM = TableLM.random([" yes", " no"], seed=1)
START = "Answer the question.\nNever say maybe.\nBe brief."
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)


def layer(instruction: str = START) -> ChoiceLayer:
    return ChoiceLayer(LM, "classify", instruction, ("yes", "no"))


@pytest.mark.parametrize(
    ("instruction", "allowed"),
    [
        ("Other words.\nNever say maybe.\nBe brief.", True),
        ("Never say maybe.", True),
        ("  Never say maybe.  \nAnything", True),
        ("Never say perhaps.\nBe brief.", False),
        ("You should never say maybe. Never say maybe. So there.", False),
        ("", False),
    ],
)
def test_fixed_lines_stay_word_for_word(instruction: str, allowed: bool) -> None:
    why = KeepLines(("Never say maybe.",))(layer(), Prompt(instruction), 0)
    assert why == (None if allowed else "changes a fixed line")
    assert KeepLines(("Never say maybe.",))(layer("Another layer's."), Prompt(instruction), 0) is None


@given(WORDS, WORDS, WORDS)
@settings(deadline=None)
def test_the_edit_distance_is_a_distance(a: list[str], b: list[str], c: list[str]) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    for i in range(len(a)):
        assert edit_distance(a, [*a[:i], *a[i + 1 :]]) == 1
        assert edit_distance(a, [*a[:i], "new", *a[i + 1 :]]) == 1


def test_edits_are_counted_from_the_initial_wording_of_the_layer() -> None:
    check = MaxEdits(2, ("one two three", "four five"))
    drifted = layer("one two")  # the distance is not to the present instruction
    assert check(drifted, Prompt("one"), 0) is None
    assert check(drifted, Prompt("six"), 0) == "too far from the initial wording"
    assert check(drifted, Prompt("six"), 1) is None


def test_all_tokens_of_a_prompt_count() -> None:
    shown = Prompt(START, tuple(Demonstration(f"x{i}", f"x{i}", "yes") for i in range(5)))
    most = whole_tokens(layer())
    assert MaxTokens(most)(layer(), Prompt(START), 0) is None
    assert MaxTokens(most)(layer(), shown, 0) == "longer than allowed"
    assert MaxTokens(whole_tokens(layer().with_prompt(shown)))(layer(), shown, 0) is None


def test_private_prompts_show_no_example() -> None:
    check = Private.of(["Where is the old mill?", "Go!", "???"])
    assert check(layer(), Prompt("Say where things are, such as the old mill."), 0) is None
    assert check(layer(), Prompt('For "where is  THE old mill", say yes.'), 0) == "copies an example"
    assert check(layer(), Prompt("If somebody says go, say no."), 0) == "copies an example"
    assert check(layer(), Prompt(START, (Demonstration("x", "x", "yes"),)), 0) == "shows an example"


@given(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=3), st.integers(1, 4))
@settings(deadline=None)
def test_copied_runs_are_in_both(prompts: list[list[str]], inputs: list[list[str]], n: int) -> None:
    found = copied_ngrams([" ".join(p) for p in prompts], [f"So, {' '.join(x).upper()}!" for x in inputs], n)

    def runs(rows: list[list[str]]) -> set[str]:
        return {" ".join(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}

    assert set(found) == runs(prompts) & runs([["so", *row] for row in inputs])
    assert len(found) == len(set(found))


def test_what_is_against_a_constraint_is_counted_by_its_reason() -> None:
    proposals = [
        Proposal(Prompt(text), "test") for text in ("Never say maybe.", "Say all.", "Be open.", "Be brief.\nSo.")
    ]
    kept, dropped = screen(proposals, layer(), 99, (), (KeepLines(("Be brief.",)), MaxEdits(3, (START,))))
    assert kept == []
    assert dropped == {"changes a fixed line": 3, "too far from the initial wording": 1}


DATA = dln.Dataset.from_pairs([(f"Where is the old mill number {i}?", ("yes", "no")[i % 2]) for i in range(8)])


class Fixed:
    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __call__(self, key, layer, feedback, num):
        return [Proposal(Prompt(text), "fixed") for text in self.texts]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_keeps_to_its_constraints_and_its_report_says_what_was_copied(tmp_path) -> None:
    texts = (
        "Say yes.",
        "Never say maybe. Be brief.",
        f"{START}\nAsk: Where is the old mill number two?",
        "Where is the old mill number 3?",
    )
    inference = {
        "prompt_proposals": [Fixed(*texts), "demonstrations"],
        "keep_lines": ["Never say maybe."],
        "private": True,
        "output_layer": "fixed",
        "num_prompts": 6,
    }
    net = Sequential(layer())
    result = dln.fit(net, DATA, DATA, steps=1, options={"inference": inference}, run_dir=tmp_path / "run")
    assert "Never say maybe." in result.network[0].prompt.instruction.splitlines()
    assert not result.network[0].prompt.demonstrations
    events = read_events(tmp_path / "run" / "events.jsonl")
    (step,) = of_kind(events, StepDone)
    assert step.layers[0].dropped == {"changes a fixed line": 3}
    assert [c.source for c in step.layers[0].candidates] == ["incumbent", "fixed"]
    (finished,) = of_kind(events, Finished)
    copied = copied_ngrams([result.network[0].prompt.instruction], DATA.inputs)
    assert finished.copied == copied
    page = render_report(events, title="run")
    assert "Runs of five words that the prompts share with training inputs: " + ("; ".join(copied) or "none") in page


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"keep_lines": ["Never say mayhap."]}, "did you mean 'Never say maybe.'"),
        ({"max_whole_tokens": 2}, "max_whole_tokens"),
        ({"private": True, "prompt_proposals": ["demonstrations"]}, "private"),
    ],
)
def test_constraints_that_cannot_be_met_are_an_error_at_the_start(options, where) -> None:
    with pytest.raises(InputError) as found:
        dln.fit(Sequential(layer()), DATA, steps=1, options={"inference": options})
    assert where in str(found.value)


def test_private_prompts_begin_without_examples() -> None:
    net = Sequential(layer().with_prompt(Prompt(START, (Demonstration("x", "x", "yes"),))))
    with pytest.raises(InputError, match="show no examples"):
        dln.fit(net, DATA, steps=1, options={"inference": {"private": True}})
