"""The options of training, as one validated value; presets are named sets of them.

An option that decides how something is done takes a name or an object: the names are listed with each option, other
packages register more (see `dln.extensions`), and an object is anything with the contract that the option names.
`preset="paper"` reproduces the choices of the paper; every departure of the default from it is a named option here,
with its reason in `docs/design.md`. `dln.train.build` turns options into the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from dln.arguments import checked, did_you_mean, shown, unknown_name
from dln.errors import InputError
from dln.extensions import described, is_path, registered
from dln.infer.calibrate import Calibrator
from dln.infer.estep import WeightTerm
from dln.infer.hidden import HiddenProposal
from dln.infer.mstep import Penalty, Selector
from dln.infer.objective import Objective
from dln.infer.prompts import WORDINGS, PromptProposal
from dln.io import input_error
from dln.nn.template import Template

__all__ = [
    "PRESETS",
    "InferenceOptions",
    "Options",
    "Stopper",
    "Strategy",
    "dotted_names",
    "keyword_options",
    "merge_options",
    "nested",
    "resolve_options",
]

Stopper = Callable[[Any], bool]
"""Whether training ends now, from the `dln.train.progress.Progress` after a step: state, best, stale, kept."""

HIDDEN_PROPOSALS = ("prior", "labelled_prior", "edit")
PROMPT_PROPOSALS = ("rewrite", "sequence", "confusion", "demonstrations", "wording")
WEIGHT_TERMS = ("likelihood", "prior", "minus_proposal", "mutual_information")
_SHARES: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"anyOf": [{"enum": list(PROMPT_PROPOSALS)}, {"type": "string", "format": "extension"}]},
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
}


@dataclass(frozen=True)
class Strategy:
    """The metadata of an option that takes a name or an object.

    Args:
        kind: of the names that packages register, one of `dln.extensions.KINDS`.
        names: the built-in ones.
        accepts: the class of the objects; by default anything that can be called.
        optional: whether None is possible too.
    """

    kind: str
    names: tuple[str, ...] = ()
    accepts: type | None = None
    optional: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        """A check that converts nothing; in JSON an object is its qualified name and parameters."""
        written = core_schema.plain_serializer_function_ser_schema(described, when_used="json")
        return core_schema.no_info_plain_validator_function(self.validate, serialization=written)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        """The built-in names, or another text."""
        known = [{"enum": list(self.names), "type": "string"}] if self.names else []
        none = [{"type": "null"}] if self.optional else []
        other = {"type": "string"} if self.accepts is not None else {"type": "string", "format": "extension"}
        return {"anyOf": [*known, other, *none]} if known or none else other

    def validate(self, value: object) -> object:
        """The value itself.

        Raises:
            InputError: an unknown name, a class in the place of an object, or an object that cannot be called.
        """
        what = self.kind.replace("_", " ")
        if value is None and self.optional:
            return None
        if isinstance(value, str):
            free = not self.names or value in self.names or is_path(value)
            if not free and value not in (known := [one.name for one in registered(self.kind)]):
                expected = "{}, a registered name, package.module:factory, or an object"
                raise unknown_name(what, value, [*self.names, *known], where=what, expected=expected)
            return value
        if isinstance(value, type) or not (
            callable(value) if self.accepts is None else isinstance(value, self.accepts)
        ):
            names = f"one of {', '.join(self.names)}, " if self.names else "a name, "
            raise InputError(
                f"this is no {what}",
                where=what,
                got=f"the class {value.__name__}" if isinstance(value, type) else shown(value),
                expected=f"{names}a registered name, or an object that can be called",
                fix=f"an object and not its class: {value.__name__}(…)" if isinstance(value, type) else None,
            )
        return value


class Strict(BaseModel):
    """Frozen; unknown names are errors, and so are texts and truth values in the place of numbers.

    Raises:
        InputError: (when made) naming the option, what was got, what was expected, and the name that was meant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise input_error(error, type(self), "options") from error

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: object, info: ValidationInfo) -> object:
        """pydantic would read "3" and True as numbers."""
        field = cls.model_fields[info.field_name or ""]
        if _has_strategy(field.annotation) or any(isinstance(one, Strategy) for one in field.metadata):
            return value  # a strategy checks its own values
        kinds = _leaves(field.annotation)
        if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            return value  # a section checks its own fields
        if kinds == {bool} and not isinstance(value, bool):
            raise PydanticCustomError("bool_type", "Input should be True or False")
        for leaf in _values(value):
            if (isinstance(leaf, bool) and bool not in kinds) or (isinstance(leaf, str) and str not in kinds):
                raise PydanticCustomError("number_type", "Input should be a number, without quotes")
        return value


READ_WORDS = ("words", "ordinal", "sets")
"""Output layers that read many words."""

OUTPUT_LAYERS = (*READ_WORDS, "fitted", "fixed")


class InferenceOptions(Strict):
    """What happens within one step."""

    num_hidden: int = Field(5, ge=1, description="K: hidden texts proposed per example")
    num_prompts: int = Field(6, ge=1, description="N: prompts proposed per layer and step")
    score: Literal["log_prob", "mean_token_log_prob"] = Field(
        "log_prob", description="sum over target tokens (an ELBO), or the paper's mean per token"
    )
    likelihood: Literal["auto", "output", "reward"] = Field(
        "auto",
        description="what stands above a hidden text: log p of the wanted output, or R/τ of the metric R of the "
        "answer; auto: the metric where it is your own and where outputs cannot be scored",
    )
    reward_temp: float | None = Field(
        None, gt=0, description="τ of R/τ, in units of the metric; null: a tenth of the largest spread in the batch"
    )
    posterior_terms: tuple[Annotated[str | WeightTerm, Strategy("weight_term", WEIGHT_TERMS)], ...] = Field(
        ("likelihood", "prior"), min_length=1, description="what log w is the sum of"
    )
    posterior_temp: float = Field(1.0, gt=0, description="posterior sharpening: log w is divided by it")
    mutual_information: float = Field(1.0, ge=0, description="weight of the mutual-information term, where used")
    argmax_only: bool = Field(False, description="all posterior weight on the heaviest hidden text")
    prune: float = Field(
        0.01, ge=0, lt=1, description="hidden texts of less posterior weight are left out of the M-step; 0 keeps all"
    )
    race: bool = Field(
        True, description="score candidates in growing rounds; who is clearly behind stops (not with penalties)"
    )
    race_error: float = Field(
        0.05, gt=0, lt=1, description="at most this probability that racing stops the candidate that would win"
    )
    race_start: float = Field(0.5, gt=0, le=1, description="part of the counted examples in the first round")
    include_forward: bool = Field(True, description="the forward pass's own hidden text is a particle too")
    forward_temperature: float = Field(
        0.0, ge=0, description="sampling temperature of the forward pass of a training step; 0 is greedy"
    )
    skip_correct: bool = Field(
        False, description="leave the network as it is where every prediction of the batch is right"
    )
    rewrite_only_wrong: bool = Field(False, description="infer hidden texts only where the prediction was wrong")
    hidden_proposals: tuple[Annotated[str | HiddenProposal, Strategy("hidden_proposal", HIDDEN_PROPOSALS)], ...] = (
        Field(
            ("prior", "labelled_prior"),
            min_length=1,
            description="where hidden texts are proposed from, in equal parts",
        )
    )
    hidden_temperature: float = Field(0.7, gt=0, description="sampling temperature of hidden proposals")
    hidden_writer: Literal["layer", "hidden_lm"] = Field(
        "layer",
        description="model of the prior and labelled-prior proposals: the layer's own, or `hidden_lm` where one is "
        "given (edit proposals always take it)",
    )
    burn_in: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="leading fraction of a hidden text's tokens left out of its score, rounded down to whole tokens; "
        "with `score=mean_token_log_prob` only",
    )
    prompt_proposals: Annotated[
        dict[
            Annotated[str | PromptProposal, Strategy("prompt_proposal", PROMPT_PROPOSALS)],
            Annotated[float, Field(gt=0, strict=True)],
        ],
        WithJsonSchema(_SHARES),
    ] = Field(
        {"demonstrations": 3.0, "wording": 2.0, "rewrite": 1.0},
        min_length=1,
        description="where prompts come from, with their shares; a list, or one alone, is in equal shares",
    )
    prompt_temperature: float = Field(0.7, gt=0, description="sampling temperature of prompt proposals")
    prompt_tokens: int = Field(
        64, ge=8, description="longest answer of the proposing model, in tokens; a quarter of its context at most"
    )
    rewrite_memory: bool = Field(
        False, description="rewrites start from the prompts in memory in turn, not from the present prompt alone"
    )
    max_prompt_tokens: int = Field(
        256, ge=1, description="instructions longer than this and than the present one are dropped"
    )
    keep_lines: tuple[str, ...] = Field(
        (), description="lines of the initial instructions that stay word for word in every prompt"
    )
    max_edits: int | None = Field(
        None, ge=0, description="words that an instruction may differ from the initial one; null: any"
    )
    max_whole_tokens: int | None = Field(
        None, ge=1, description="tokens of a whole prompt, with demonstrations and without the input; null: any"
    )
    private: bool = Field(
        False,
        description="no training example in a prompt: no demonstrations, and no training input within an instruction",
    )
    backward_template: Annotated[str | Template, Strategy("template", accepts=Template)] = Field(
        "backward", description="template of rewrites: name, name@version or path"
    )
    sequence_template: Annotated[str | Template, Strategy("template", accepts=Template)] = Field(
        "backward_sequence", description="template that asks for several prompts at once"
    )
    sequence_count: int = Field(3, ge=1, description="prompts per answer of the sequence proposal")
    held_out_half: bool = Field(False, description="each proposal sees a random half of the batch (held-out ranking)")
    backward_examples: int = Field(10, ge=1, description="at most this many examples in a backward prompt")
    demonstrations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (24,),
        min_length=1,
        description="most demonstrations of a candidate, drawn from these; they take a quarter of the context at most",
    )
    wordings: tuple[str, ...] = Field(
        tuple("/".join(wording) for wording in WORDINGS),
        min_length=1,
        description="names of input and output that wording proposals choose from",
    )
    evidence: int = Field(
        160, ge=0, description="examples of earlier steps that candidates of the output layer are judged on too"
    )
    output_objective: Annotated[str | Objective, Strategy("objective", ("log_prob", "accuracy"))] = Field(
        "log_prob", description="ranks output-layer candidates"
    )
    hidden_objective: Annotated[str | Objective, Strategy("objective", ("log_prob", "nce"))] = Field(
        "log_prob", description="ranks hidden-layer candidates"
    )
    output_layer: Annotated[str | Calibrator, Strategy("output_layer", OUTPUT_LAYERS)] = Field(
        "words",
        description="what is fitted with each candidate: the weights of many words; of ordered labels (ordinal) or of "
        "several labels per input (sets) the same; the bias and temperature of the label words (also where a model "
        "does not tell the probabilities of words); or nothing",
    )
    words: int = Field(1000, ge=1, description="W: words that the output layer reads, with output_layer=words")
    bias_scale: float = Field(3.0, gt=0, description="expected size of a label's bias, in nats (prior scale)")
    trust_factor: float = Field(0.0, ge=0, description="weight of KL(old ‖ new) at the output layer")
    trust_depth: int = Field(1, ge=1, description="fewest layers of a network whose output layer has the trust region")
    exploration: float = Field(0.0, ge=0, description="λ of the exploration reward at step 0")
    exploration_annealed: bool = Field(
        True, description="λ of the exploration reward falls linearly to 0 over the steps; false: it stays as it is"
    )
    penalties: tuple[Annotated[str | Penalty, Strategy("penalty")], ...] = Field(
        (), description="further penalties, subtracted from the scores of candidates"
    )
    select: Annotated[str | Selector, Strategy("selector", ("best", "margin"))] = Field(
        "best", description="best score, or a lead that is not noise"
    )
    margin: float = Field(1.0, ge=0, description="standard errors of lead that `select=margin` asks for")
    layer_steps: int | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        1, description="M-steps per layer and update: one number, or one per layer; 0 freezes a layer"
    )
    reservoir: int = Field(256, ge=0, description="worked examples kept per layer of a deep network")

    @field_validator("prompt_proposals", mode="before")
    @classmethod
    def _equal_shares(cls, value: object) -> object:
        """A list, or one alone, as shares."""
        if isinstance(value, Mapping):
            return cast("Mapping[object, object]", value)
        several = isinstance(value, list | tuple)
        try:
            return dict.fromkeys(cast("Sequence[object]", value) if several else [value], 1.0)
        except TypeError as error:
            fix = "make its class @dataclass(frozen=True), or do not define __eq__"
            raise InputError("a prompt proposal must be hashable", got=str(error), fix=fix) from error

    @field_serializer("prompt_proposals", when_used="json")
    def _shares(self, value: dict[object, float]) -> object:
        """Names with their shares; as a list where there are objects, which are no keys of JSON."""
        if all(isinstance(name, str) for name in value):
            return value
        return [{"proposal": described(name), "share": share} for name, share in value.items()]

    @model_validator(mode="after")
    def _check_burn_in(self) -> Self:
        if self.burn_in and self.score != "mean_token_log_prob":
            raise ValueError("burn_in leaves tokens out of a mean and needs score=mean_token_log_prob, or burn_in=0")
        return self

    @property
    def worked(self) -> int:
        """Labelled examples per step that a deep network reads for its last layer to show: a third more than it can."""
        shows = "demonstrations" in self.prompt_proposals and not self.private
        return round(max(self.demonstrations) * 4 / 3) if shows else 0


class Options(Strict):
    """What happens from step to step."""

    preset: str = Field("default", description="the named set these options started from")
    steps: int = Field(2, ge=0, description="updates")
    batch_size: int = Field(80, ge=1, description="examples per update")
    balanced: bool = Field(True, description="equal classes within a batch")
    seed: int = Field(13, description="random seed")
    shown: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="part of the train set that the output layer shows and that never judges it; 0: any",
    )
    strip_options_for_hidden: bool = Field(
        False,
        description='hidden layers read a multiple-choice question without its "Options: …" block; the last layer '
        "reads all of it",
    )
    answers: Literal["scored", "free"] = Field(
        "scored",
        description="predict the most probable label, or the one that a freely written greedy answer begins with",
    )
    val_every: int = Field(2, ge=1, description="updates between validations")
    select_by: Literal["accuracy", "log_likelihood"] = Field(
        "log_likelihood",
        description="validation score of networks with labels; others go by accuracy, and by a metric of your own",
    )
    metric_workers: int | None = Field(
        None, ge=1, description="calls of your metric at the same time; null: 1, and 8 of an async metric"
    )
    metric_timeout: float | None = Field(
        None, gt=0, description="seconds for one call of your metric, then its example is excluded; null: no limit"
    )
    memory: int = Field(2, ge=0, description="networks remembered; their prompts are candidates in every step")
    ensemble: int | None = Field(
        None,
        ge=1,
        description="networks that answer together, the best of winners and runners-up; 1: the best alone; null: 3 "
        "where one layer has a word readout, else 1",
    )
    ensemble_temp: float = Field(
        32.0, gt=0, description="temperature of their weights, which go by log-likelihood; a high one weighs alike"
    )
    pool: Literal["mean", "product"] = Field(
        "product",
        description="how they answer together: the weighted mean of their probabilities, or, where a word readout is "
        "fitted, their fitted product",
    )
    fit_examples: int = Field(
        400, ge=0, description="examples of the train set that word readouts are fitted to, besides the dev set"
    )
    tolerance: int | None = Field(
        2, ge=1, description="validations without gain before going back to the best; null: never"
    )
    stop_at_accuracy: float | None = Field(
        1.0,
        gt=0,
        le=1,
        description="dev accuracy (on eight examples or more) at which training ends, since nothing is left to gain; "
        "null: never",
    )
    patience: int | None = Field(None, ge=1, description="validations without gain before stopping; null: never")
    stopper: Annotated[str | Stopper | None, Strategy("stopper", optional=True)] = Field(
        None, description="ends training after a step at which it says so; null: none"
    )
    inference: InferenceOptions = Field(default_factory=lambda: InferenceOptions.model_validate({}))

    def members(self, depth: int, wide: bool) -> int:
        """How many networks of `depth` layers answer together; `wide`: their output layer is a word readout."""
        return self.ensemble or (POOLED if wide and depth == 1 else 1)


POOLED = 3
"""Networks with word readouts that answer together by default."""

PAPER: dict[str, Any] = {
    "preset": "paper",
    "steps": 20,
    "batch_size": 20,
    "select_by": "accuracy",
    "memory": 2,
    "ensemble": 1,
    "tolerance": 2,
    "stop_at_accuracy": None,
    "shown": 0.0,
    "inference": {
        "num_hidden": 5,
        "num_prompts": 20,
        "score": "mean_token_log_prob",
        "posterior_terms": ["likelihood", "prior"],
        "prune": 0.0,
        "race": False,
        "evidence": 0,
        "include_forward": False,
        "hidden_proposals": ["prior", "labelled_prior"],
        "hidden_writer": "hidden_lm",
        "burn_in": 0.05,
        "prompt_proposals": {"rewrite": 1.0},
        "rewrite_memory": True,
        "prompt_tokens": 1024,
        "max_prompt_tokens": 1024,
        "backward_template": "backward_student",
        "held_out_half": True,
        "backward_examples": 20,
        "output_layer": "fixed",
        "trust_depth": 2,
        "exploration": 0.5,
    },
}

PRESETS: dict[str, dict[str, Any]] = {"default": {"preset": "default"}, "paper": PAPER}


@checked
def resolve_options(preset: str = "default", *changes: Mapping[str, Any]) -> Options:
    """The preset with changes on top, later ones over earlier ones; nested dictionaries are merged.

    Raises:
        InputError: an unknown preset or option, or a value that is not possible.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS, where="preset")
    merged: dict[str, Any] = {}
    for layer in (PRESETS[preset], *changes):
        merged = merge_options(merged, layer)
    return Options(**_without_demonstrations(merged))


def _without_demonstrations(options: dict[str, Any]) -> dict[str, Any]:
    """`demonstrations=0` as options: no proposal draws demonstrations."""
    inner = options.get("inference")
    if not isinstance(inner, Mapping) or cast("Mapping[str, Any]", inner).get("demonstrations") not in (0, [0], (0,)):
        return options
    kept = {name: value for name, value in cast("Mapping[str, Any]", inner).items() if name != "demonstrations"}
    shares: object = kept.get("prompt_proposals", InferenceOptions.model_validate({}).prompt_proposals)
    if isinstance(shares, Mapping):
        others = {n: s for n, s in cast("Mapping[str, float]", shares).items() if n != "demonstrations"}
        kept["prompt_proposals"] = others or {"rewrite": 1.0}
    return {**options, "inference": kept}


def _has_strategy(annotation: Any) -> bool:
    """Whether names or objects stand somewhere in an annotation."""
    return isinstance(annotation, Strategy) or any(map(_has_strategy, get_args(annotation)))


def _leaves(annotation: Any) -> set[object]:
    """The types at the leaves of an annotation; the choices of a `Literal` count as their types."""
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    arguments = get_args(annotation)
    return {leaf for argument in arguments for leaf in _leaves(argument)} if arguments else {annotation}


def _values(value: object) -> Iterator[object]:
    """The values at the leaves of plain data; keys of mappings are names."""
    if isinstance(value, Mapping):
        value = list(cast("Mapping[object, object]", value).values())
    if isinstance(value, list | tuple):
        for one in cast("Sequence[object]", value):
            yield from _values(one)
    else:
        yield value


def merge_options(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, sections merged; both stay as they are.

    Shares of proposals are one value: naming some of them drops the others.

    >>> merge_options({"steps": 3, "inference": {"race": True}}, {"inference": {"prune": 0.0}})
    {'steps': 3, 'inference': {'race': True, 'prune': 0.0}}
    """
    merged = dict(base)
    for name, value in change.items():
        below = merged.get(name)
        sections = isinstance(value, Mapping) and isinstance(below, Mapping) and name != "prompt_proposals"
        merged[name] = (
            merge_options(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value)) if sections else value
        )
    return merged


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested options; `settings` and the values in it stay as they are.

    >>> nested({"memory": 0, "inference.num_hidden": 5})
    {'memory': 0, 'inference': {'num_hidden': 5}}
    """
    result: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        inner = result
        for section in sections:
            below: object = inner.get(section)
            inner[section] = dict(cast(Mapping[str, Any], below)) if isinstance(below, Mapping) else {}
            inner = inner[section]
        inner[last] = value
    return result


def dotted_names(options: Mapping[str, Any]) -> frozenset[str]:
    """What nested options name, as dotted names.

    >>> sorted(dotted_names({"memory": 0, "inference": {"num_hidden": 5}}))
    ['inference.num_hidden', 'memory']
    """
    found: set[str] = set()
    for name, value in options.items():
        sections = isinstance(value, Mapping) and name == "inference"
        found |= {f"{name}.{inner}" for inner in cast(Mapping[str, Any], value)} if sections else {name}
    return frozenset(found)


def keyword_options(given: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Options that were given as keywords, as changes to a preset; those of one step go into their section.

    >>> keyword_options({"batch_size": 4, "num_prompts": 6}, [])
    {'batch_size': 4, 'inference': {'num_prompts': 6}}

    Args:
        given: names and values.
        arguments: names that the function itself takes, for the message.

    Raises:
        InputError: a name that no option has.
    """
    changes: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for name, value in given.items():
        if name in InferenceOptions.model_fields:
            inner[name] = value
        elif name in Options.model_fields:
            changes[name] = value
        else:
            known = [*arguments, *Options.model_fields, *InferenceOptions.model_fields]
            close = did_you_mean(name, known)
            raise InputError(
                f"there is no argument or option {name!r}",
                where="fit",
                got=f"{name}=…",
                expected=f"an argument ({', '.join(arguments)}) or an option (see docs/options.md)",
                fix=f"did you mean {close!r}?" if close else "leave it out",
            )
    return merge_options(changes, {"inference": inner}) if inner else changes
