"""DSPy: `VariationalOptimizer`, a teleprompter for DSPy programs, and a trained network as a `dspy.Module`.

    optimizer = VariationalOptimizer(metric, max_metric_calls=300)
    better = optimizer.compile(program, trainset=train, valset=dev)

Every predictor of the program is a stage: its outputs are a latent variable, its instruction and its demonstrations are
the parameters. Modules, tools and retrievers between predictors run as they are. The package dspy is needed
(`pip install 'dln[dspy]'`).
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from dln.arguments import Count, Seed, Size, checked
from dln.data import Score
from dln.errors import InputError
from dln.infer.mstep import Selector
from dln.lm.base import Capabilities, Completion, LanguageModel, NextTokens, Sampling, Target, Token, TokenLogProbs
from dln.lm.load import load_lm
from dln.lm.meter import Budget, Usage
from dln.lm.prices import PriceTable
from dln.nn.ensemble import AnyNetwork
from dln.nn.saving import network_from_json, network_to_json
from dln.numerics import Floats
from dln.programs.evaluations import digest
from dln.programs.optimize import BEST, optimize
from dln.programs.proposals import Candidate, EditText, Evidence, ParameterProposal, RewriteParameter
from dln.programs.trace import Trace, content, plain, text_view
from dln.random import Key
from dln.train.callbacks import Callback, Listener

try:
    dspy: Any = import_module("dspy")
    _teleprompt: Any = import_module("dspy.teleprompt.teleprompt")
except ImportError as error:
    raise InputError(
        "dspy is not installed", where="dln.integrations.dspy", got=str(error), fix="pip install 'dln[dspy]'"
    ) from error

__all__ = ["DemonstrationSets", "DspyLM", "NetworkModule", "VariationalOptimizer"]

DEMOS = ".demos"
"""Ends the name of the parameter that holds a predictor's demonstrations, as JSON."""

_TRACE: ContextVar[Trace | None] = ContextVar("dln_dspy_trace", default=None)


class VariationalOptimizer(_teleprompt.Teleprompter):  # pyright: ignore[reportUntypedBaseClass]
    """Trains instructions and demonstrations of a DSPy program by inference over its intermediate outputs.

    Args:
        metric: (example, prediction, trace=None) -> number from 0 to 1, bool, `dspy.Prediction(score, feedback)` or
            `dln.Score`; sync or async; also GEPA's form with five arguments. Its feedback is shown to `prompt_lm`.
        prompt_lm: the `dspy.LM` that proposes; default `dspy.settings.lm`.
        steps: number of steps.
        batch_size: examples of a step.
        num_candidates: candidates per step.
        num_texts: proposed outputs per hidden predictor and failing example; 0 infers nothing.
        num_inferred: examples per step whose intermediate outputs are inferred, at most.
        max_demos: demonstrations per predictor; 0 trains instructions alone.
        max_metric_calls: limit of calls of the metric.
        max_lm_calls: limit of calls of language models.
        max_tokens: limit of tokens.
        max_usd: limit in US dollars, by list prices.
        select: chooses the winner of a race.
        num_threads: evaluations at a time; default `dspy.settings.num_threads`.
        seed: of all randomness.
        run_dir: directory of events, finished evaluations and the result; `compile` goes on with a run that is there.
        event_callbacks: told of every event.
    """

    @checked
    def __init__(
        self,
        metric: Callable[..., Any],
        *,
        prompt_lm: Any = None,
        steps: Count = 4,
        batch_size: Count = 12,
        num_candidates: Count = 6,
        num_texts: Size = 2,
        num_inferred: Count = 4,
        max_demos: Size = 4,
        max_metric_calls: Count | None = None,
        max_lm_calls: Count | None = None,
        max_tokens: Count | None = None,
        max_usd: float | None = None,
        select: Selector = BEST,
        num_threads: Count | None = None,
        seed: Seed = 13,
        run_dir: str | Path | None = None,
        event_callbacks: Sequence[Callback | Listener | str] = (),
    ) -> None:
        super().__init__()
        self.metric = metric
        self.prompt_lm = prompt_lm
        self.steps = steps
        self.batch_size = batch_size
        self.num_candidates = num_candidates
        self.num_texts = num_texts
        self.num_inferred = num_inferred
        self.max_demos = max_demos
        self.max_metric_calls = max_metric_calls
        self.budget = Budget(max_calls=max_lm_calls, max_tokens=max_tokens, max_usd=max_usd)
        self.select = select
        self.num_threads = num_threads
        self.seed = seed
        self.run_dir = run_dir
        self.event_callbacks = event_callbacks
        self._reward = as_reward(metric)

    def compile(self, student: Any, *, trainset: Any, teacher: Any = None, valset: Any = None) -> Any:
        """Return a trained copy of `student`; its attribute `detailed_results` is the `dln.ProgramResult`.

        Args:
            student: a `dspy.Module`.
            trainset: `dspy.Example`s with their inputs named (`with_inputs`).
            teacher: not used.
            valset: examples to select by.

        Raises:
            InputError: an argument cannot be used.
        """
        if not isinstance(student, dspy.Module):
            raise InputError(
                "the student is not a DSPy program", where="student", got=type(student).__name__, expected="dspy.Module"
            )
        predictors = dict(student.named_predictors())
        if not predictors:
            raise InputError("the student has no predictors", where="student", got=type(student).__name__)
        parts: list[tuple[str, Any]] = [("trainset", trainset), ("valset", valset or ())]
        for name, part in parts:
            for place, example in enumerate(part):
                if getattr(example, "_input_keys", None) is None:
                    raise InputError(
                        "an example does not say which fields are inputs",
                        where=f"{name}[{place}]",
                        fix='example.with_inputs("question")',
                    )
        writer = DspyLM(self.prompt_lm or dspy.settings.lm)
        outputs = {name: text_field(predictor.signature) for name, predictor in predictors.items()}
        fields = tuple((name + DEMOS, field) for name, field in outputs.items() if field is not None)
        demonstrations = DemonstrationSets(self.max_demos, fields)
        rewrite = RewriteParameter(Sampling(temperature=1.0, max_tokens=1024), max_tokens=1024)
        result = optimize(
            _program(student),
            initial_parameters(student, demonstrations=self.max_demos > 0),
            list(trainset),
            metric=self._reward,
            dev=None if not valset else list(valset),
            lm=writer,
            steps=self.steps,
            batch_size=self.batch_size,
            num_candidates=self.num_candidates,
            num_texts=self.num_texts,
            num_inferred=self.num_inferred,
            text_proposal=EditText(Sampling(temperature=1.0, max_tokens=1024)),
            parameter_proposals=(_ByKind(rewrite, demonstrations),),
            select=self.select,
            max_metric_calls=self.max_metric_calls,
            budget=self.budget,
            concurrency=self.num_threads or dspy.settings.num_threads or 8,
            seed=self.seed,
            run_dir=self.run_dir,
            callbacks=self.event_callbacks,
            wanted=lambda example: text_view(example.labels()),
            name=type(student).__name__,
        )
        compiled = with_parameters(student, result.parameters)
        compiled._compiled = True
        compiled.detailed_results = result
        return compiled


def initial_parameters(student: Any, *, demonstrations: bool = True) -> dict[str, str]:
    """The parameters of a program: per predictor its instruction, and its demonstrations as JSON."""
    found: dict[str, str] = {}
    for name, predictor in student.named_predictors():
        found[name] = predictor.signature.instructions
        if demonstrations:
            found[name + DEMOS] = content([plain(demo) for demo in predictor.demos])
    return found


def with_parameters(student: Any, parameters: Mapping[str, str]) -> Any:
    """A copy of a program with these parameters."""
    copied = student.deepcopy()
    for name, predictor in copied.named_predictors():
        predictor.signature = predictor.signature.with_instructions(parameters[name])
        if name + DEMOS in parameters:
            predictor.demos = [dspy.Example(**demo) for demo in json.loads(parameters[name + DEMOS])]
    return copied


def as_reward(metric: Callable[..., Any]) -> Callable[..., Any]:
    """A DSPy metric as a metric of dln; the trace is None, as when DSPy evaluates.

    Raises:
        InputError: it does not take an example and a prediction.
    """
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # a callable of another language: it cannot be asked
        signature = None
    more = 0
    if signature is not None:
        for more in (0, 1, 3):
            try:
                signature.bind(*range(2 + more))
                break
            except TypeError:
                continue
        else:
            raise InputError(
                "the metric has a wrong signature",
                where="metric",
                got=f"{getattr(metric, '__name__', type(metric).__name__)}{signature}",
                expected="(example, prediction, trace=None)",
                fix="def metric(example, prediction, trace=None): ...",
            )

    def reward(example: object, prediction: object) -> object:
        value = metric(example, prediction, *(None,) * more)
        return _later(value) if inspect.isawaitable(value) else _score(value)

    reward.__name__ = getattr(metric, "__name__", type(metric).__name__)
    return reward


async def _later(value: Awaitable[object]) -> object:
    return _score(await value)


def _score(value: object) -> object:
    """A `dspy.Prediction(score=…, feedback=…)`, or a mapping of these, as a `Score`."""
    if not isinstance(value, dspy.Prediction | Mapping):
        return value
    data = cast("dict[str, Any]", plain(value))
    return Score(float(data["score"]), str(data.get("feedback") or "")) if "score" in data else value


def _program(student: Any) -> Callable[..., Any]:
    """The student as a program of `dln.optimize`; a copy of it is made once for every set of parameters."""
    copies: dict[str, Any] = {}
    is_async = not hasattr(student.__class__, "forward")

    def instrumented(parameters: Mapping[str, str]) -> Any:
        name = content(dict(parameters))
        found = copies.get(name)
        if found is None:
            found = with_parameters(student, parameters)
            for stage, predictor in found.named_predictors():
                _instrument(stage, predictor, parameters)
            while len(copies) > 64:
                copies.pop(next(iter(copies)), None)
            copies[name] = found
        return found

    def program(example: Any, parameters: Mapping[str, str], trace: Trace) -> object:
        module = instrumented(parameters)
        token = _TRACE.set(trace)
        try:
            with dspy.track_usage() as used:
                output = module(**example.inputs())
        finally:
            _TRACE.reset(token)
        _spend(trace, used)
        return output

    async def async_program(example: Any, parameters: Mapping[str, str], trace: Trace) -> object:
        module = instrumented(parameters)
        token = _TRACE.set(trace)
        try:
            with dspy.track_usage() as used:
                output = await module.acall(**example.inputs())
        finally:
            _TRACE.reset(token)
        _spend(trace, used)
        return output

    return async_program if is_async else program


def _spend(trace: Trace, used: Any) -> None:
    """What DSPy counted; calls answered by its cache are free."""
    for model, entries in used.usage_data.items():
        quote = PriceTable().find(model)
        for entry in entries:
            read, drawn = int(entry.get("prompt_tokens") or 0), int(entry.get("completion_tokens") or 0)
            usd = 0.0 if quote is None else quote.price.usd(read, drawn)
            trace.spend(Usage(1, read, drawn, usd=usd))


def _instrument(stage: str, predictor: Any, parameters: Mapping[str, str]) -> None:
    """Let the trace of the present rollout see and replace what the predictor writes."""
    kind: Any = predictor.__class__
    uses = [name for name in (stage, stage + DEMOS) if name in parameters]

    def forward(**inputs: Any) -> Any:
        trace = _TRACE.get()
        if trace is None:
            return kind.forward(predictor, **inputs)
        made: list[Any] = []

        def write() -> str:
            made.append(kind.forward(predictor, **inputs))
            return prediction_text(predictor.signature, made[0])

        text = trace(stage, write, reads=_inputs_text(predictor, inputs), uses=uses)
        return made[0] if made else text_prediction(predictor.signature, text)

    async def aforward(**inputs: Any) -> Any:
        trace = _TRACE.get()
        if trace is None:
            return await kind.aforward(predictor, **inputs)
        made: list[Any] = []

        async def write() -> str:
            made.append(await kind.aforward(predictor, **inputs))
            return prediction_text(predictor.signature, made[0])

        text = await trace(stage, write, reads=_inputs_text(predictor, inputs), uses=uses)
        return made[0] if made else text_prediction(predictor.signature, text)

    predictor.forward, predictor.aforward = forward, aforward


def _inputs_text(predictor: Any, inputs: Mapping[str, Any]) -> str:
    return content({name: inputs.get(name) for name in predictor.signature.input_fields if name in inputs})


def text_field(signature: Any) -> str | None:
    """The name of the only output field if it is a text; None of other signatures."""
    fields = signature.output_fields
    name = next(iter(fields), None)
    return name if len(fields) == 1 and fields[name].annotation is str else None


def prediction_text(signature: Any, prediction: Any) -> str:
    """The outputs of a predictor as a text: of one text field the text itself, else a JSON object."""
    field = text_field(signature)
    if field is not None:
        return str(prediction[field])
    return content({name: prediction.toDict().get(name) for name in signature.output_fields})


def text_prediction(signature: Any, text: str) -> Any:
    """The inverse of `prediction_text`.

    Raises:
        ValueError: the text is not such an object, or a value does not fit its field.
    """
    field = text_field(signature)
    if field is not None:
        return dspy.Prediction(**{field: text})
    parse_value = import_module("dspy.adapters.utils").parse_value
    data = json.loads(text[text.find("{") : text.rfind("}") + 1])
    values = {name: parse_value(data[name], one.annotation) for name, one in signature.output_fields.items()}
    return dspy.Prediction(**values)


@dataclass(frozen=True)
class DemonstrationSets:
    """Sets of demonstrations from texts of a predictor that led to good results, its own or those of the posterior.

    Examples that candidates are raced on are not shown.

    Args:
        most: demonstrations of a set.
        fields: (parameter, output field) of predictors whose only output is a text.
    """

    most: int = 4
    fields: tuple[tuple[str, str], ...] = ()

    def __call__(
        self, key: Key, evidence: Evidence, num: int, lm: LanguageModel | None
    ) -> tuple[list[Candidate], Counter[str]]:
        """`num` random sets of at most `most` demonstrations; none where nothing is known yet."""
        rows = [row for row in evidence.worked if row.reads not in evidence.judged]
        found: dict[str, Candidate] = {}
        for index in range(num if rows and self.most else 0):
            rng = key.child("demonstrations", index).generator()
            size = int(rng.integers(1, min(self.most, len(rows)) + 1))
            chosen = [rows[int(i)] for i in rng.permutation(len(rows))[:size]]
            text = content([self._demonstration(evidence.parameter, row.reads, row.better) for row in chosen])
            if text != evidence.value:
                found[text] = Candidate(((evidence.parameter, text),), "demonstrations", f"k={size}")
        return list(found.values()), Counter({"duplicate": num - len(found)} if rows and num > len(found) else {})

    def _demonstration(self, parameter: str, reads: str, wrote: str) -> dict[str, Any]:
        field = dict(self.fields).get(parameter)
        outputs = json.loads(wrote) if field is None else {field: wrote}
        return {"augmented": True, **json.loads(reads), **outputs}


@dataclass(frozen=True)
class _ByKind:
    """Rewrites instructions, and draws sets of demonstrations."""

    instructions: ParameterProposal
    demonstrations: ParameterProposal

    def __call__(
        self, key: Key, evidence: Evidence, num: int, lm: LanguageModel | None
    ) -> tuple[list[Candidate], Counter[str]]:
        """As the proposal for the kind of this parameter."""
        way = self.demonstrations if evidence.parameter.endswith(DEMOS) else self.instructions
        return way(key, evidence, num, lm)


class DspyLM:
    """A `dspy.LM` as a language model of dln that draws and does not score.

    A seed is the `rollout_id` of a draw, so that DSPy's cache keeps draws with different seeds apart.
    """

    def __init__(self, lm: Any) -> None:
        if not isinstance(lm, dspy.BaseLM):
            raise InputError(
                "there is no language model",
                where="prompt_lm",
                got=type(lm).__name__,
                expected="a dspy.LM",
                fix='dspy.configure(lm=dspy.LM("openai/gpt-4o-mini"))',
            )
        self._lm = lm

    @property
    def name(self) -> str:
        """The model's name in DSPy."""
        return str(self._lm.model)

    @property
    def capabilities(self) -> Capabilities:
        """Draws only."""
        return Capabilities(False, False, token_ids=False, chat=True, context_length=None, text_scoring="accuracy")

    def sample(self, contexts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[Completion]:
        """One draw per context, in threads."""

        def draw(context: str, seed: int) -> Completion:
            lm = self._lm.copy(rollout_id=seed % 2**31, temperature=sampling.temperature)
            answer: Any = lm(context)[0]
            text = str(answer if isinstance(answer, str) else answer["text"]).strip()
            ends = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
            return Completion(text[: min(ends, default=len(text))])

        with ThreadPoolExecutor(8) as pool:
            futures = [
                pool.submit(copy_context().run, draw, context, seed)
                for context, seed in zip(contexts, seeds, strict=True)
            ]
            return [future.result() for future in futures]

    def log_prob(self, contexts: Sequence[str], targets: Sequence[Target]) -> list[TokenLogProbs]:
        """Refused."""
        raise InputError("this model cannot score given texts", where=self.name)

    def choice_log_probs(self, contexts: Sequence[str], labels: Sequence[str]) -> Floats:
        """Refused."""
        raise InputError("this model cannot score labels", where=self.name)

    def next_token_log_probs(self, contexts: Sequence[str], tokens: Sequence[Token] = (), top: int = 0) -> NextTokens:
        """Refused."""
        raise InputError("this model does not give the log-probabilities of next tokens", where=self.name)

    def fingerprint(self) -> str:
        """Model and settings."""
        return digest("dspy", self.name, str(self._lm.model_type), content(self._lm.kwargs))

    def count_tokens(self, text: str) -> int:
        """An estimate: four characters are a token."""
        return -(-len(text) // 4)


class NetworkModule(dspy.Module):  # pyright: ignore[reportUntypedBaseClass]
    """A trained network of dln as a DSPy module: `module(text=…)` gives a `dspy.Prediction`.

    The prediction has the field `answer`; with labels, `probabilities` too; with hidden layers, `hidden`, their texts.

    Args:
        network: of `FitResult.network` or `dln.load_network`.
        lm: as in `dln.load_network`, for `load`.
    """

    def __init__(self, network: AnyNetwork, lm: LanguageModel | None = None) -> None:
        super().__init__()
        self._network = network
        self._lm = lm

    def forward(self, text: str) -> Any:
        """The prediction for one input."""
        found = self._network.predict(text)
        hidden = {"hidden": list(found.hidden)} if found.hidden else {}
        known = {"probabilities": dict(found.probabilities)} if found.probabilities else {}
        return dspy.Prediction(answer=found.label, **known, **hidden)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The network as plain data, for `save`."""
        return {"network": network_to_json(self._network)}

    def load_state(self, state: Mapping[str, Any], **options: Any) -> None:
        """The inverse of `dump_state`."""
        self._network = network_from_json(state["network"], self._lm or load_lm)
