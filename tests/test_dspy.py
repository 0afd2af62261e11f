"""The DSPy adapter, with the real package: it finds the rule that the first predictor lacks, saves and resumes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dln

dspy: Any = pytest.importorskip("dspy", reason="dspy is not installed: pip install -r requirements-dspy.lock")

from benchmarks.scripted import FIND, ScriptedEngine, examples, policy_is_best, two_steps  # noqa: E402
from dln.integrations.dspy import (  # noqa: E402
    NetworkModule,
    VariationalOptimizer,
    prediction_text,
    text_prediction,
)
from dln.lm.base import Capabilities, LanguageModel  # noqa: E402
from dln.serve.models import served  # noqa: E402
from dln.serve.server import serving  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # dspy and what it imports warn


@pytest.fixture(autouse=True)
def engine() -> Iterator[ScriptedEngine]:
    """The scripted model as DSPy's, with an empty cache."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    made = ScriptedEngine(0)
    with dspy.context(lm=dspy.LM("scripted", engine=made), num_threads=2):
        yield made


def metric(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(example.answer == prediction.answer)


def accuracy(program: Any) -> float:
    test = examples(40, seed=99)
    return sum(metric(example, program(**example.inputs())) for example in test) / len(test)


def test_the_best_instruction_is_found_and_saved(tmp_path: Path, engine: ScriptedEngine):
    student = two_steps()
    optimizer = VariationalOptimizer(metric, max_metric_calls=150, steps=6, num_threads=2)
    assert isinstance(optimizer, dspy.teleprompt.Teleprompter)
    better = optimizer.compile(student, trainset=examples(24, seed=1), valset=examples(8, seed=2))
    assert student.find.signature.instructions == FIND  # the student is not changed
    assert policy_is_best(better.find.signature.instructions)
    assert accuracy(student) < 0.5
    assert accuracy(better) == 1.0
    result = better.detailed_results
    assert isinstance(result, dln.ProgramResult)
    assert result.metric_calls <= 150
    assert result.usage.tokens > 0
    better.save(tmp_path / "program.json")
    loaded = two_steps()
    loaded.load(tmp_path / "program.json")
    assert loaded.find.signature.instructions == better.find.signature.instructions
    assert accuracy(loaded) == 1.0


def test_demonstrations_are_trained_and_never_those_that_judge(engine: ScriptedEngine):
    events: list[Any] = []
    optimizer = VariationalOptimizer(metric, steps=3, batch_size=8, num_candidates=8, event_callbacks=[events.append])
    optimizer.compile(two_steps(), trainset=examples(40, seed=3))
    shown = 0
    for event in events:
        if event.kind != "step":
            continue
        judged = {json.dumps({"document": row.x.split("\n")[0].removeprefix("document: ")}) for row in event.examples}
        for layer in event.layers:
            for candidate in layer.candidates[1:]:
                if candidate.source == "demonstrations" and layer.layer == 1:
                    demos = json.loads(candidate.prompt["instruction"])
                    shown += len(demos)
                    assert all(demo["note"] and demo["augmented"] for demo in demos)
                    assert not judged & {json.dumps({"document": demo["document"]}) for demo in demos}
    assert shown


def test_a_finished_run_is_not_paid_again(tmp_path: Path, engine: ScriptedEngine):
    calls: list[str] = []

    async def counted(example: Any, prediction: Any, trace: Any = None) -> Any:
        await asyncio.sleep(0)
        calls.append(example.document)
        return dspy.Prediction(score=metric(example, prediction), feedback="a comment")

    def compiled() -> Any:
        optimizer = VariationalOptimizer(counted, steps=2, run_dir=tmp_path / "run")
        return optimizer.compile(two_steps(), trainset=examples(24, seed=1))

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    first = compiled()
    paid, asked = len(calls), sum(engine.calls.values())
    again = compiled()
    assert (len(calls), sum(engine.calls.values())) == (paid, asked)
    assert first.detailed_results == again.detailed_results
    assert first.find.signature.instructions == again.find.signature.instructions
    assert (tmp_path / "run" / "events.jsonl").exists()


def test_tools_and_typed_outputs_between_predictors(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch):
    """A predictor with two outputs, one a number, and a lookup between predictors."""

    class Lookup(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = dspy.Predict(dspy.Signature("document -> note, count: int", "Ask."))
            self.answer = dspy.Predict(dspy.Signature("note -> answer", "Answer."))

        def forward(self, document: str) -> Any:
            asked = self.query(document=document)
            return self.answer(note=f"{asked.note}{asked.count + 1}")  # a tool

    def scripted(self: ScriptedEngine, system: str, turns: Any) -> str:
        last = turns[-1][1]
        if "[[ ## count ## ]]" in last:
            right = "carefully" in system
            return f"[[ ## note ## ]]\nn\n\n[[ ## count ## ]]\n{7 if right else 0}\n\n[[ ## completed ## ]]"
        if "[[ ## answer ## ]]" in last:
            return f"[[ ## answer ## ]]\n{'yes' if 'n8' in last else 'no'}\n\n[[ ## completed ## ]]"
        return '{"note": "n", "count": 7}' if last.endswith("have written:") else "Ask carefully."

    monkeypatch.setattr(ScriptedEngine, "answer", scripted)
    train = [dspy.Example(document=f"d{i}", answer="yes").with_inputs("document") for i in range(8)]
    better = VariationalOptimizer(metric, steps=2, max_demos=0).compile(Lookup(), trainset=train)
    assert better.query.signature.instructions == "Ask carefully."
    assert better.answer.signature.instructions == "Answer."
    signature = better.query.signature
    text = prediction_text(signature, dspy.Prediction(note="n", count=7))
    assert json.loads(text) == {"note": "n", "count": 7}
    assert text_prediction(signature, f"Here: {text}").count == 7


def test_budgets_and_bad_calls():
    result = VariationalOptimizer(metric, max_lm_calls=40, num_threads=1).compile(
        two_steps(), trainset=examples(24, seed=1)
    )
    assert result.detailed_results.reason == "budget"
    assert result.detailed_results.usage.calls <= 42
    with pytest.raises(dln.InputError, match="metric: the metric has a wrong signature"):
        VariationalOptimizer(lambda example: 1.0)
    with pytest.raises(dln.InputError, match="student: the student is not a DSPy program"):
        VariationalOptimizer(metric).compile("program", trainset=examples(4, seed=1))
    with pytest.raises(dln.InputError, match=r"trainset\[0\]: an example does not say which fields are inputs"):
        VariationalOptimizer(metric).compile(two_steps(), trainset=[dspy.Example(document="d", answer="a")])
    with dspy.context(lm=None), pytest.raises(dln.InputError, match="prompt_lm: there is no language model"):
        VariationalOptimizer(metric).compile(two_steps(), trainset=examples(4, seed=1))


def test_a_network_is_a_module(tmp_path: Path):
    lm = dln.TableLM.random([" ham", " spam"], seed=0)
    network = dln.Sequential(dln.ChoiceLayer(lm, prompt="Spam?", labels=["ham", "spam"]))
    module = NetworkModule(network, lm)
    found = module(text="win money")
    wanted = network.predict("win money")
    assert (found.answer, found.probabilities) == (wanted.label, wanted.probabilities)
    module.save(tmp_path / "network.json")
    other = NetworkModule(network.with_prompts(["Other?"]) if hasattr(network, "with_prompts") else network, lm)
    other.load(tmp_path / "network.json")
    assert other(text="win money").probabilities == found.probabilities


class Plain(dspy.ChatAdapter):
    """One message, and the whole answer as the only output field: small models do not write field markers."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        turns = super().format(signature, demos, inputs)
        return [{"role": "user", "content": "\n\n".join(turn["content"] for turn in turns)}]

    def parse(self, signature: Any, completion: str) -> dict[str, str]:
        (field,) = signature.output_fields
        return {field: completion.strip()}


def trained_on_a_server(lm: LanguageModel, max_tokens: int) -> dln.ProgramResult:
    """One step of the two-predictor program against `dln serve`, an OpenAI-compatible server."""
    with serving(served(lm, "served")) as url:
        model = dspy.LM("openai/served", api_base=f"{url}", api_key="none", max_tokens=max_tokens, num_retries=0)
        with dspy.context(lm=model, adapter=Plain(), num_threads=1):
            optimizer = VariationalOptimizer(
                lambda example, prediction, trace=None: float("desk" in prediction.answer),
                steps=1,
                batch_size=2,
                num_texts=1,
                num_inferred=1,
                num_candidates=2,
                max_demos=0,
            )
            return optimizer.compile(two_steps(), trainset=examples(4, seed=1)).detailed_results


class ChatTable(dln.TableLM):
    """A table that answers messages."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, chat=True)


def test_against_an_openai_compatible_server():
    def answer(context: str) -> dict[str, float]:
        if "Better instruction" in context:
            return {"Say desk.": 1.0}
        return {"desk 1" if "Say desk." in context else "a note": 1.0}

    result = trained_on_a_server(ChatTable(answer, name="served"), 16)
    assert "Say desk." in result.parameters.values()
    assert result.score == 1.0
    assert result.usage.prompt_tokens > 0
    assert not result.failed
