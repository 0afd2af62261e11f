"""A scripted language model and a two-step DSPy program for it, whose best instruction is known.

A document has a topic and five facts ("topic: refund; order: K7QAB; carrier: M2XBC; …", in random order). The first
predictor notes the code of one fact; the second one turns the note into an answer. Which fact a topic needs is the
hidden rule. The second predictor is right from the beginning, and the metric sees its output alone.

The model follows instructions and examples: it notes the fact that the instruction names for the topic ("For refund
take the order."), else the fact that a demonstration of the same topic shows, else the first one of the document.

Asked for an instruction, by whatever optimizer and in whatever words, it reads the prompt for evidence: a document
followed by the code that should have been noted, or by a code with a good result. For topics with evidence it writes
the rule; in half of the answers it also guesses a rule for a topic without. Asked what a step should have written, it
names a code of the document at random. Randomness depends on the seed, the prompt, and how often it was asked.

In the opaque form of the task the answer is a number that only the model can compute from the code, so that the wanted
answer does not tell which fact was needed. In the open form the answer names the code.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

__all__ = ["FIND", "RULE", "ScriptedEngine", "answer_of", "examples", "policy_is_best", "two_steps"]

RULE = {"refund": "order", "delay": "carrier", "damage": "item", "invoice": "shop"}
"""Topic: the key of the fact that it needs."""

KEYS = ("order", "carrier", "item", "shop", "date")
FIND = "Note the fact of the document that matters for its topic."
ANSWER = "Turn the note into an answer."

_DOCUMENT = re.compile(r"topic: (\w+)((?:; \w+: [A-Z0-9]{5})+)")
_FACT = re.compile(r"(\w+): ([A-Z0-9]{5})")
_CLAUSE = re.compile(r"For (\w+) take the (\w+)\.")
_CODE = re.compile(r"\b[A-Z0-9]{5}\b")


def answer_of(code: str, *, is_open: bool = False) -> str:
    """The answer to a note: what the second step makes of it."""
    if is_open:
        return f"desk {code.strip()}"
    return f"desk {int(hashlib.blake2b(code.strip().encode(), digest_size=4).hexdigest(), 16) % 997}"


def documents(count: int, seed: int, *, is_open: bool = False) -> list[tuple[str, str]]:
    """(document, answer) pairs, the topics in turn."""
    rng = random.Random(seed)  # noqa: S311 - a benchmark
    found: list[tuple[str, str]] = []
    for number in range(count):
        topic = list(RULE)[number % len(RULE)]
        codes = {key: "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=5)) for key in KEYS}
        order = rng.sample(KEYS, len(KEYS))
        text = f"topic: {topic}" + "".join(f"; {key}: {codes[key]}" for key in order)
        found.append((text, answer_of(codes[RULE[topic]], is_open=is_open)))
    return found


def examples(count: int, seed: int, *, is_open: bool = False) -> list[Any]:
    """`dspy.Example`s."""
    dspy: Any = import_module("dspy")
    return [
        dspy.Example(document=text, answer=answer).with_inputs("document")
        for text, answer in documents(count, seed, is_open=is_open)
    ]


def two_steps() -> Any:
    """The program: `find` (document → note), then `answer` (note → answer)."""
    dspy: Any = import_module("dspy")

    class TwoSteps(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.find = dspy.Predict(dspy.Signature("document -> note", FIND))
            self.answer = dspy.Predict(dspy.Signature("note -> answer", ANSWER))

        def forward(self, document: str) -> Any:
            return self.answer(note=self.find(document=document).note)

    return TwoSteps()


def rules_of(instruction: str, demonstrations: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Topic: key, as the model understands an instruction and (document, note) demonstrations."""
    found: dict[str, str] = {}
    for text, note in demonstrations:
        match = _DOCUMENT.search(text)
        keys = {code: key for key, code in _FACT.findall(match[2])} if match else {}
        if match and note.strip() in keys:
            found[match[1]] = keys[note.strip()]
    return found | {topic: key for topic, key in _CLAUSE.findall(instruction) if topic in RULE}


def policy_is_best(instruction: str, demonstrations: Sequence[tuple[str, str]] = ()) -> bool:
    """Whether every topic gets the fact that it needs."""
    return rules_of(instruction, demonstrations) == RULE


class ScriptedEngine:
    """The model as an engine of `dspy.LM(engine=…)`.

    Args:
        seed: of its randomness.
        is_open: the form of the task.
        on_find: told document, instruction and demonstrations of every call of the first predictor.
    """

    def __init__(
        self,
        seed: int,
        on_find: Callable[[str, str, list[tuple[str, str]]], object] | None = None,
        *,
        is_open: bool = False,
    ) -> None:
        self.calls = Counter[str]()
        self._is_open = is_open
        self._seed = seed
        self._on_find = on_find
        self._asked = Counter[str]()
        self._lock = threading.Lock()
        self._lm15: Any = import_module("dspy.lm15")

    def complete(self, request: Any) -> Any:
        """The answer to a request of DSPy."""
        system = request.system if isinstance(request.system, str) else ""
        turns = [(str(message.role), str(message.text or "")) for message in request.messages]
        text = self.answer(system, turns)
        read, drawn = (len(system) + sum(len(t) for _, t in turns)) // 4, len(text) // 4 + 1
        return self._lm15.Response(
            id=None,
            model="scripted",
            message=self._lm15.Message.assistant([self._lm15.TextPart(text)]),
            finish_reason="stop",
            usage=self._lm15.Usage(input_tokens=read, output_tokens=drawn, total_tokens=read + drawn),
        )

    def answer(self, system: str, turns: Sequence[tuple[str, str]]) -> str:
        """The text of the answer."""
        last = turns[-1][1]
        instruction = system.split("your objective is:", 1)[-1]
        wanted = re.findall(r"`\[\[ ## (\w+) ## \]\]`", last)
        field = wanted[0] if wanted else ""
        as_json = re.search(r"JSON object[^`]*`(\w+)", last.rsplit("\n\n", 1)[-1])
        if field == "note":
            return self._find(instruction, turns)
        if field == "answer":
            self.calls["answer"] += 1
            return _reply("answer", answer_of(_value(last, "note"), is_open=self._is_open))
        with self._lock:
            self._asked[last] += 1
            rng = random.Random(f"{self._seed} {self._asked[last]} {last}")  # noqa: S311 - a benchmark
        self.calls["proposal"] += 1
        if last.rstrip().endswith("It should have written:"):
            return _edited(rng, last)
        if field and not field.endswith("instruction"):
            text = " ".join(["A program that notes a fact of a document.", *_clauses(_labelled(last) | _said(last))])
            return "\n\n".join(_reply(name, text) for name in wanted[:-1])
        text = f"{ANSWER} Be {rng.choice(['brief', 'exact', 'polite', 'calm'])}."  # for the second predictor
        if FIND in last.rsplit("[[ ## basic_instruction ## ]]", 1)[-1]:
            text = _instruction(rng, last)
        return json.dumps({as_json[1]: text}) if as_json else _reply(field, text)

    def _find(self, instruction: str, turns: Sequence[tuple[str, str]]) -> str:
        self.calls["find"] += 1
        shown = [
            (_value(turns[i][1], "document"), _value(turns[i + 1][1], "note"))
            for i in range(0, len(turns) - 1, 2)
            if turns[i][0] == "user" and turns[i + 1][0] == "assistant"
        ]
        document = _value(turns[-1][1], "document")
        if self._on_find is not None:
            self._on_find(document, instruction, shown)
        match = _DOCUMENT.search(document)
        if match is None:
            return _reply("note", "")
        facts: dict[str, str] = dict(_FACT.findall(match[2]))
        key = rules_of(instruction, shown).get(match[1], next(iter(facts)))
        return _reply("note", facts.get(key, next(iter(facts.values()))))


def _value(turn: str, field: str) -> str:
    """The value of a field in a turn of DSPy's chat format."""
    found = re.search(rf"\[\[ ## {field} ## \]\]\n(.*?)(?:\n\n|\Z)", turn, re.DOTALL)
    return found[1] if found else ""


def _reply(field: str, text: str) -> str:
    if not field:
        return f"```\n{text}\n```"
    return f"[[ ## {field} ## ]]\n{text}\n\n[[ ## completed ## ]]"


def _edited(rng: random.Random, prompt: str) -> str:
    """A code of the document other than the one that the step wrote; the one that the wanted answer names, if any."""
    example, _, step = prompt.partition("One step read:")
    codes = [code for _, code in _FACT.findall(step)]
    named = [code for code in re.findall(r"answer: desk ([A-Z0-9]{5})", example) if code in codes]
    wrote = re.search(r"It wrote: ([A-Z0-9]{5})", prompt)
    others = named or [code for code in codes if wrote is None or code != wrote[1]]
    return rng.choice(others) if others else "none"


def _blocks(prompt: str) -> list[tuple[str, dict[str, str], str, int]]:
    """(topic, key of each code, the text up to the next document, where it begins) of every document in a prompt."""
    places = list(_DOCUMENT.finditer(prompt))
    ends = [*(match.start() for match in places[1:]), *([len(prompt)] if places else [])]
    return [
        (match[1], {code: key for key, code in _FACT.findall(match[2])}, prompt[match.end() : end], match.start())
        for match, end in zip(places, ends, strict=True)
    ]


def _majority(votes: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {topic: Counter(key for t, key in votes if t == topic).most_common(1)[0][0] for topic in dict(votes)}


def _labelled(prompt: str) -> dict[str, str]:
    """Topic: key, from documents beside a wanted answer that names the code."""
    votes = [
        (topic, keys[code])
        for topic, keys, block, _ in _blocks(prompt)
        for code in re.findall(r"answer'?: '?desk ([A-Z0-9]{5})", block)[:1]
        if code in keys
    ]
    return _majority(votes)


def _said(prompt: str) -> dict[str, str]:
    """Topic: key, of the rules that the prompt states."""
    return {topic: key for topic, key in _CLAUSE.findall(prompt) if topic in RULE}


def _clauses(rules: dict[str, str]) -> list[str]:
    return [f"For {topic} take the {key}." for topic, key in sorted(rules.items())]


def _instruction(rng: random.Random, prompt: str) -> str:
    """The first predictor's instruction, with the rules for which the prompt has evidence, and perhaps a guess."""
    votes: list[tuple[str, str]] = []
    mipro = "[[ ## basic_instruction ## ]]" in prompt
    bad = prompt.find("These texts led to a bad result")
    for topic, keys, block, start in _blocks(prompt):
        should = [code for line in re.findall(r"should[^\n]*", block) for code in _CODE.findall(line) if code in keys]
        good = mipro or "Right." in block or ("These texts led to a good" in prompt and not -1 < bad < start)
        wrote = [code for code in _CODE.findall(block) if code in keys] if good else []
        votes += [(topic, keys[code]) for code in should or wrote[:1]]
    evident = _majority(votes)
    rules = _said(prompt if mipro else prompt.split("topic: ", 1)[0]) | evident
    blank = [topic for topic in RULE if topic not in evident]
    if blank and rng.random() < 0.5:
        rules[rng.choice(blank)] = rng.choice(KEYS)
    return " ".join([FIND, *_clauses(rules)])
