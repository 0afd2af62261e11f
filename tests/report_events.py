"""Synthetic runs for the tests of reports: events as a real run writes them, of any depth."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from dln.nn.prompt import Demonstration, Prompt
from dln.nn.template import load_template
from dln.train.events import (
    CandidateRecord,
    ComparedRecord,
    Evaluated,
    Event,
    ExampleRecord,
    Finished,
    HiddenRecord,
    Interrupted,
    LayerRecord,
    ResultRecord,
    Resumed,
    Started,
    StepDone,
    Validated,
)

LABELS = ["person", "place", "number", "reason"]
QUESTIONS = [
    "Who painted the ceiling of the chapel?",
    "Where do the storks of the north spend the winter?",
    "How many strings does a violin have?",
    "Why does bread rise in the oven?",
    "Which city was the first to light its streets with gas?",
    "What makes the leaves turn red in autumn?",
    "By whom was the law of the lever first written down?",
    "At what age did the youngest champion win the title?",
]
INSTRUCTIONS = [
    "Classify the question.",
    "Read the question and say what kind of answer it asks for.",
    "Decide whether the answer is a person, a place, a number or a reason. Look at the question word first.",
    "Look at the question word: who asks for a person, where for a place, how many for a number, why for a reason.",
    "Name the type of the answer that the question wants, and nothing else.",
]
THOUGHTS = [
    "The question word is what decides: it asks for a person.",
    "This is about a place on a map.",
    "An amount is wanted, so the answer will be a number.",
    "It asks for the cause of something.",
]
FINGERPRINT = "transformers:smollm2-135m-instruct:4e53f736f1b2:fp32"


def synthetic_run(
    depth: int = 2,
    steps: int = 6,
    *,
    dev: bool = True,
    test: bool = True,
    finished: bool = True,
    interrupted_at: int | None = None,
    labels: Sequence[str] | None = tuple(LABELS),
    candidates: int = 6,
    batch: int = 8,
    prompt_length: int = 0,
    task: str = "questions",
    poison: str = "",
) -> list[Event]:
    """A run of `depth` layers; `poison` is put into every text that data or a model could have written."""
    return _Writer(depth, steps, dev, labels, candidates, batch, prompt_length, task, poison).run(
        test=test, finished=finished, interrupted_at=interrupted_at
    )


class _Writer:
    def __init__(
        self,
        depth: int,
        steps: int,
        dev: bool,
        labels: Sequence[str] | None,
        candidates: int,
        batch: int,
        prompt_length: int,
        task: str,
        poison: str,
    ) -> None:
        self.random = random.Random(13)  # noqa: S311 - no secret
        self.depth, self.steps, self.dev, self.candidates, self.batch = depth, steps, dev, candidates, batch
        self.labels = None if labels is None else [label + poison for label in labels]
        self.prompt_length, self.task, self.poison = prompt_length, task + poison, poison
        self.tokens, self.time = 0, 1_770_000_000.0

    def run(self, *, test: bool, finished: bool, interrupted_at: int | None) -> list[Event]:
        prompts = [Prompt(self.text(INSTRUCTIONS[0])) for _ in range(self.depth)]
        events: list[Event] = [self.started(prompts)]
        if self.dev:
            events.append(self.validated(0, 0.41))
        for step in range(1, self.steps + 1):
            done, prompts = self.step(step, prompts)
            events.append(done)
            if self.dev:
                events.append(self.validated(step, 0.41 + 0.4 * (1 - 0.75**step)))
            if step == interrupted_at:
                events += [Interrupted(step=step, reason="Ctrl-C", time=self.now()), Resumed(step=step - 1)]
                events += [self.step(step, prompts)[0]]
        if finished:
            network = self.network(prompts)
            score = 0.41 + 0.4 * (1 - 0.75**self.steps) if self.dev else None
            events.append(
                Finished(
                    step=self.steps,
                    reason="steps",
                    best_step=self.steps,
                    score=score,
                    network=network,
                    usage=self.usage(),
                )
            )
        if test:
            events.append(self.evaluated())
        return events

    def now(self) -> float:
        self.time += 21.5
        return self.time

    def usage(self) -> dict[str, float]:
        self.tokens += 15_320
        tokens = self.tokens
        return {
            "calls": tokens // 90,
            "prompt_tokens": tokens,
            "completion_tokens": tokens // 12,
            "scored_tokens": tokens // 9,
            "seconds": tokens / 700,
        }

    def text(self, text: str) -> str:
        whole, filler = text + self.poison, " words & more words"
        return whole + filler * max(0, -(-(self.prompt_length - len(whole)) // len(filler)))

    def network(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        layers: list[dict[str, Any]] = []
        for position, state in enumerate(self.parameters(prompts)["layers"]):
            last = position == self.depth - 1
            choice = last and self.labels is not None
            name = ("classify" if position == 0 else "classify_residual") if choice else "think"
            layer = {"model": "smollm2", "fingerprint": FINGERPRINT, "template": load_template(name).to_json()}
            layer |= {"kind": "choice", "labels": self.labels} if choice else {"kind": "language", "sampling": {}}
            layers.append(layer | state)
        return {"layers": layers}

    def parameters(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [{"prompt": prompt.to_json()} for prompt in prompts]
        if self.labels is not None:
            rows[-1] |= {"bias": [round(self.random.gauss(0, 1), 3) for _ in self.labels], "temperature": 0.83}
        return {"layers": rows}

    def started(self, prompts: Sequence[Prompt]) -> Started:
        return Started(
            time=self.now(),
            run="2026-02-02-quiet-heron",
            task=self.task,
            labels=self.labels,
            train_size=400,
            dev_size=100 if self.dev else 0,
            steps=self.steps,
            network=self.network(prompts),
            options={"seed": 13, "inference": {"num_hidden": 5, "num_prompts": 10, "note": "x" + self.poison}},
            versions={"dln": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.3.0"},
            data_hash="9f2c" * 16,
        )

    def example(self, right: float) -> ExampleRecord:
        x, y = self.random.choice(QUESTIONS) + self.poison, self.random.choice(self.labels or ["42", "7 apples"])
        correct = self.random.random() < right
        others = [label for label in self.labels or ["13", "six"] if label != y]
        return ExampleRecord(x=x, y=y, prediction=y if correct else self.random.choice(others), correct=correct)

    def demonstration(self) -> Demonstration:
        e = self.example(1.0)
        return Demonstration(e.x, self.text_of_thought() if self.depth > 1 else e.x, e.y)

    def text_of_thought(self) -> str:
        return self.random.choice(THOUGHTS) + self.poison

    def step(self, step: int, prompts: Sequence[Prompt]) -> tuple[StepDone, list[Prompt]]:
        examples = [self.example(min(0.85, 0.4 + 0.06 * step)) for _ in range(self.batch)]
        winners: list[Prompt] = []
        layers: list[LayerRecord] = []
        for position, prompt in enumerate(prompts):
            record = self.m_step(position, prompt, step)
            layers.append(record)
            winners.append(Prompt.from_json(record.candidates[record.winner].prompt))
        done = StepDone(
            time=self.now(),
            step=step,
            elbo=None if step == 3 else -2.4 + 1.1 * (1 - 0.7**step) + self.random.gauss(0, 0.1),
            accuracy=sum(e.correct for e in examples) / len(examples),
            excluded=1 if step == 2 else 0,
            examples=examples,
            hidden=[self.hidden(level, i) for level in range(1, self.depth) for i in range(self.batch)],
            layers=layers,
            parameters=self.parameters(winners),
            usage=self.usage(),
            seconds=20.4 + step,
        )
        return done, winners

    def m_step(self, position: int, prompt: Prompt, step: int) -> LayerRecord:
        records = [self.candidate(prompt, "incumbent", "", -1.2)]
        for i in range(self.candidates):
            new = Prompt(self.text(self.random.choice(INSTRUCTIONS) + f" ({step}.{i})"), prompt.demonstrations)
            source, detail = "rewrite", "Be specific and mention the kinds of answers." + self.poison
            if i % 2:
                demonstrations = tuple(self.demonstration() for _ in range(4))
                new, source, detail = prompt.with_demonstrations(demonstrations), "demonstrations", "k=4, 2 kept"
            records.append(self.candidate(new, source, detail, self.random.gauss(-1.25, 0.2)))
        records.append(self.candidate(Prompt(self.text("Unscored.")), "rewrite", "", None))
        best = max(range(len(records)), key=lambda i: records[i].score or -99.0)
        winner = 0 if step % 4 == 0 else best
        dropped = {"duplicate": 2, "echo" + self.poison: 1}
        return LayerRecord(layer=position, candidates=records, winner=winner, examples=self.batch, dropped=dropped)

    def candidate(self, prompt: Prompt, source: str, detail: str, score: float | None) -> CandidateRecord:
        return CandidateRecord(
            prompt=prompt.to_json(),
            source=source,
            detail=detail,
            objective=None if score is None else score + 0.02,
            penalty=0.02,
            score=score,
        )

    def hidden(self, level: int, example: int) -> HiddenRecord:
        raw = [self.random.random() ** 3 for _ in range(4)]
        return HiddenRecord(
            level=level,
            example=example,
            forward=self.text_of_thought(),
            texts=[self.text_of_thought() for _ in raw],
            token_ids=[[1, 2, 3], None, [4], None],
            sources=["forward", "prior", "prior with label", "edit"],
            alpha=[-self.random.random() * 20, -12.5, None, -14.25],
            beta=[-0.4, -1.25, None, -0.75],
            weights=[w / sum(raw) for w in raw],
            ess=1.0 / sum((w / sum(raw)) ** 2 for w in raw),
        )

    def result(self, rows: Sequence[tuple[str, str]]) -> ResultRecord:
        n, right = len(rows), sum(y == said for y, said in rows)
        p = right / n
        labels = self.labels or []
        half = 1.96 * (p * (1 - p) / n) ** 0.5
        table = {a: {b: sum(1 for y, said in rows if (y, said) == (a, b)) for b in [*labels, ""]} for a in labels}
        return ResultRecord(
            n=n,
            accuracy=p,
            low=max(0.0, p - half),
            high=min(1.0, p + half),
            balanced_accuracy=p if labels else None,
            log_likelihood=-0.71 if labels else None,
            label_mass=0.62 if labels else None,
            per_class={
                label: {
                    "n": sum(y == label for y, _ in rows),
                    "correct": sum(y == said == label for y, said in rows),
                    "predicted": sum(said == label for _, said in rows),
                }
                for label in labels
            },
            confusion=table if labels else {},
        )

    def rows(self, accuracy: float, n: int) -> list[tuple[str, str]]:
        found = [self.example(accuracy) for _ in range(n)]
        return [(e.y, e.prediction) for e in found]

    def validated(self, step: int, accuracy: float) -> Validated:
        result = self.result(self.rows(accuracy, 100))
        return Validated(
            time=self.now(),
            step=step,
            score=accuracy,
            select_by="accuracy",
            best=True,
            result=result,
            usage=self.usage(),
            seconds=6.5,
        )

    def evaluated(self) -> Evaluated:
        examples: list[ComparedRecord] = []
        for _ in range(120):
            old, new = self.example(0.42), self.example(0.78)
            after = old.y if new.correct else (old.prediction if not old.correct else "")
            examples.append(
                ComparedRecord(
                    x=old.x,
                    y=old.y,
                    before=old.prediction,
                    after=after,
                    before_correct=old.correct,
                    after_correct=new.correct,
                    hidden=[self.text_of_thought() for _ in range(self.depth - 1)],
                    probability=0.4 + 0.5 * self.random.random(),
                )
            )
        before = self.result([(e.y, e.before or "") for e in examples])
        after = self.result([(e.y, e.after) for e in examples])
        gain = after.accuracy - before.accuracy
        return Evaluated(
            time=self.now(),
            split="test",
            before=before,
            after=after,
            fixed=sum(not e.before_correct and e.after_correct for e in examples),
            broken=sum(bool(e.before_correct) and not e.after_correct for e in examples),
            p_value=0.00031,
            difference=(gain, gain - 0.1, gain + 0.1),
            examples=examples,
            usage=self.usage(),
            seconds=31.0,
        )
