"""The options of training, as one validated value; presets are named sets of them.

`preset="paper"` reproduces the choices of the paper; every departure of the default from it is a named
option here, with its reason in `docs/design.md`.

From options and the models' capabilities to the algorithm: each choice becomes the object that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dln.arguments import checked, unknown_name
from dln.errors import InputError
from dln.infer import vi
from dln.infer.calibrate import Calibrator, FixedOutput, PenalisedLikelihood
from dln.infer.estep import Likelihood, MinusProposal, MutualInformation, Prior, Weighting, WeightTerm
from dln.infer.hidden import EditProposal, HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.mstep import Best, BestByMargin, Exploration, Penalty, TrustRegion
from dln.infer.objective import (
    Accuracy,
    DownstreamAccuracy,
    DownstreamLogProb,
    ExpectedLogProb,
    NoiseContrastive,
    Objective,
    elbo,
    unknown_bound,
)
from dln.infer.prompts import (
    WORDINGS,
    DemonstrationProposal,
    MixturePrompts,
    PromptProposal,
    RewriteProposal,
    SequenceProposal,
    WordingProposal,
    read_wording,
)
from dln.infer.race import BehindLeader, Race
from dln.infer.scoring_modes import ScoringModes
from dln.io import input_error
from dln.lm.base import LanguageModel, Sampling
from dln.nn.sequential import Sequential
from dln.nn.template import load_template

__all__ = [
    "PRESETS",
    "InferenceOptions",
    "Options",
    "algorithm",
    "calibrator",
    "dotted_names",
    "merge_options",
    "nested",
    "prepared",
    "resolve_options",
]

HiddenSource = Literal["prior", "labelled_prior", "edit"]
PromptSource = Literal["rewrite", "sequence", "demonstrations", "wording"]
Term = Literal["likelihood", "prior", "minus_proposal", "mutual_information"]


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
        kinds = _leaves(cls.model_fields[info.field_name or ""].annotation)
        if any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            return value  # a section checks its own fields
        if kinds == {bool} and not isinstance(value, bool):
            raise PydanticCustomError("bool_type", "Input should be True or False")
        for leaf in _values(value):
            if (isinstance(leaf, bool) and bool not in kinds) or (isinstance(leaf, str) and str not in kinds):
                raise PydanticCustomError("number_type", "Input should be a number, without quotes")
        return value


class InferenceOptions(Strict):
    """What happens within one step."""

    num_hidden: int = Field(5, ge=1, description="K: hidden texts proposed per example")
    num_prompts: int = Field(8, ge=1, description="N: prompts proposed per layer and step")
    score: Literal["log_prob", "mean_token_log_prob"] = Field(
        "log_prob", description="sum over target tokens (an ELBO), or the paper's mean per token"
    )
    posterior_terms: tuple[Term, ...] = Field(
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
    race_start: float = Field(0.25, gt=0, le=1, description="part of the counted examples in the first round")
    include_forward: bool = Field(True, description="the forward pass's own hidden text is a particle too")
    forward_temperature: float = Field(
        0.0, ge=0, description="sampling temperature of the forward pass of a training step; 0 is greedy"
    )
    skip_correct: bool = Field(
        False, description="leave the network as it is where every prediction of the batch is right"
    )
    rewrite_only_wrong: bool = Field(False, description="infer hidden texts only where the prediction was wrong")
    hidden_proposals: tuple[HiddenSource, ...] = Field(
        ("prior", "labelled_prior"), min_length=1, description="where hidden texts are proposed from, in equal parts"
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
    prompt_proposals: dict[PromptSource, Annotated[float, Field(gt=0)]] = Field(
        {"demonstrations": 3.0, "wording": 2.0, "rewrite": 1.0},
        min_length=1,
        description="where prompts come from, with their shares",
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
    backward_template: str = Field("backward", description="template of rewrites: name, name@version or path")
    sequence_template: str = Field("backward_sequence", description="template that asks for several prompts at once")
    sequence_count: int = Field(3, ge=1, description="prompts per answer of the sequence proposal")
    held_out_half: bool = Field(False, description="each proposal sees a random half of the batch (held-out ranking)")
    backward_examples: int = Field(10, ge=1, description="at most this many examples in a backward prompt")
    demonstrations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (24, 48),
        min_length=1,
        description="most demonstrations of a candidate, drawn from these; they take a quarter of the context at most",
    )
    wordings: tuple[str, ...] = Field(
        tuple("/".join(wording) for wording in WORDINGS),
        min_length=1,
        description="names of input and output that wording proposals choose from",
    )
    evidence: int = Field(
        100, ge=0, description="examples of earlier steps that candidates of the output layer are judged on too"
    )
    output_objective: Literal["log_prob", "accuracy"] = Field("log_prob", description="ranks output-layer candidates")
    hidden_objective: Literal["log_prob", "nce"] = Field("log_prob", description="ranks hidden-layer candidates")
    output_layer: Literal["fitted", "fixed"] = Field(
        "fitted", description="fit the output layer's bias and temperature with each candidate, or leave them"
    )
    bias_scale: float = Field(3.0, gt=0, description="expected size of a label's bias, in nats (prior scale)")
    trust_factor: float = Field(0.0, ge=0, description="weight of KL(old ‖ new) at the output layer")
    trust_depth: int = Field(1, ge=1, description="fewest layers of a network whose output layer has the trust region")
    exploration: float = Field(0.0, ge=0, description="λ of the exploration reward at step 0")
    exploration_annealed: bool = Field(
        True, description="λ of the exploration reward falls linearly to 0 over the steps; false: it stays as it is"
    )
    select: Literal["best", "margin"] = Field("best", description="best score, or a lead that is not noise")
    margin: float = Field(1.0, ge=0, description="standard errors of lead that `select=margin` asks for")
    layer_steps: int | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        1, description="M-steps per layer and update: one number, or one per layer; 0 freezes a layer"
    )
    reservoir: int = Field(256, ge=0, description="worked examples kept per layer of a deep network")

    @model_validator(mode="after")
    def _check_burn_in(self) -> Self:
        if self.burn_in and self.score != "mean_token_log_prob":
            raise ValueError("burn_in leaves tokens out of a mean and needs score=mean_token_log_prob, or burn_in=0")
        return self

    @property
    def worked(self) -> int:
        """Labelled examples per step that a deep network reads for its last layer to show: a third more than it can."""
        return round(max(self.demonstrations) * 4 / 3) if "demonstrations" in self.prompt_proposals else 0


class Options(Strict):
    """What happens from step to step."""

    preset: str = Field("default", description="the named set these options started from")
    steps: int = Field(20, ge=0, description="updates")
    batch_size: int = Field(20, ge=1, description="examples per update")
    balanced: bool = Field(True, description="equal classes within a batch")
    seed: int = Field(13, description="seed of everything random")
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
        "log_likelihood", description="validation score of networks with labels (others go by accuracy)"
    )
    memory: int = Field(2, ge=0, description="networks remembered; their prompts are candidates in every step")
    ensemble: int = Field(
        1, ge=1, description="networks that answer together, the best of winners and runners-up; 1: the best alone"
    )
    ensemble_temp: float = Field(
        32.0, gt=0, description="temperature of their weights, which go by log-likelihood; a high one weighs alike"
    )
    tolerance: int | None = Field(
        2, ge=1, description="validations without gain before going back to the best; null: never"
    )
    patience: int | None = Field(None, ge=1, description="validations without gain before stopping; null: never")
    inference: InferenceOptions = Field(default_factory=lambda: InferenceOptions.model_validate({}))


PAPER: dict[str, Any] = {
    "preset": "paper",
    "steps": 20,
    "batch_size": 20,
    "select_by": "accuracy",
    "memory": 2,
    "tolerance": 2,
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
    return Options(**merged)


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


def algorithm(
    options: Options,
    correct: Callable[[str, str], bool],
    *,
    network: Sequential | None = None,
    prompt_lm: LanguageModel | None = None,
    hidden_lm: LanguageModel | None = None,
    longest: str = "",
) -> vi.VariationalInference:
    """The training step that `options` describe, on the best scoring modes that the network's models allow.

    Args:
        options: resolved options.
        correct: (prediction, target) → whether the prediction is right.
        network: whose models' capabilities are looked at; without it they are taken to score everything.
        prompt_lm: the model that proposes prompts; default each layer's own.
        hidden_lm: the model of the "edit" proposal of hidden texts, and with `hidden_writer="hidden_lm"` of all of
            them; default each layer's own.
        longest: the longest input that learnt prompts must leave room for.

    Raises:
        InputError: an option names a template that does not exist, or one of another kind.
    """
    chosen = options.inference
    for option in ("backward_template", "sequence_template"):
        _check_template(option, getattr(chosen, option))
    modes = _scoring_modes(options, network)
    hidden = _hidden_objective(chosen, modes, correct)
    output = _output_objective(chosen, modes, correct)
    return vi.build(
        num_hidden=chosen.num_hidden,
        num_prompts=chosen.num_prompts,
        q_hidden=MixtureProposal(tuple(_hidden(name, chosen, hidden_lm) for name in chosen.hidden_proposals)),
        q_prompt=MixturePrompts(
            tuple(_prompt(name, chosen, prompt_lm) for name in chosen.prompt_proposals),
            tuple(chosen.prompt_proposals.values()),
        ),
        weighting=_weighting(chosen, correct),
        score=chosen.score,
        # a race knows nothing of what is taken off the scores afterwards: candidates with penalties all run to the end
        hidden_objective=hidden if chosen.exploration and modes.scores_hidden else _raced(hidden, chosen, 4),
        output_objective=output if _trusted(chosen, network) else _raced(output, chosen, _fewest(chosen, network)),
        penalties=_penalties(options, modes),
        select=BestByMargin(chosen.margin) if chosen.select == "margin" else Best(),
        layer_steps=chosen.layer_steps,
        max_prompt_tokens=chosen.max_prompt_tokens,
        longest=longest,
        include_forward=chosen.include_forward,
        rewrite_only_wrong=chosen.rewrite_only_wrong,
        forward_temperature=chosen.forward_temperature,
        skip_correct=chosen.skip_correct,
        reservoir=chosen.reservoir,
        worked=chosen.worked,
        evidence=chosen.evidence,
        correct=correct,
        bound=elbo if modes.scores_hidden and modes.scores else unknown_bound,
        scoring_modes=modes,
    )


def prepared(network: Sequential, options: Options) -> Sequential:
    """The network as `options` want its layers to read and to answer; what they do not ask for stays as it is.

    Raises:
        InputError: free answers of a network without labels.
    """
    if options.strip_options_for_hidden:
        for position, layer in enumerate(network.layers[:-1]):
            network = network.with_layer(position, replace(layer, strip_options=True))
    return network if options.answers == "scored" else network.with_answers(options.answers)


def _check_template(option: str, name: str) -> None:
    """A wrong name is an error now, and not when the first prompt is rewritten."""
    try:
        load_template(name, "backward")
    except InputError as error:
        where = f"option inference.{option}"
        raise InputError(error.message, where=where, got=error.got, expected=error.expected, fix=error.fix) from error


def calibrator(options: InferenceOptions) -> Calibrator:
    """How the output layer's numbers follow a prompt."""
    return PenalisedLikelihood(options.bias_scale) if options.output_layer == "fitted" else FixedOutput()


def _hidden(name: str, options: InferenceOptions, lm: LanguageModel | None) -> HiddenProposal:
    writer = lm if options.hidden_writer == "hidden_lm" else None
    if name == "prior":
        return PriorProposal(options.hidden_temperature, writer)
    if name == "labelled_prior":
        return LabelledPriorProposal(options.hidden_temperature, lm=writer)
    return EditProposal(lm, Sampling(options.hidden_temperature, max_tokens=128))


def _prompt(name: str, options: InferenceOptions, lm: LanguageModel | None) -> PromptProposal:
    if name == "demonstrations":
        return DemonstrationProposal(options.demonstrations)
    if name == "wording":
        return WordingProposal(tuple(map(read_wording, options.wordings)))
    sampling = Sampling(options.prompt_temperature, max_tokens=options.prompt_tokens)
    subset = 0.5 if options.held_out_half else 1.0
    if name == "sequence":
        return SequenceProposal(
            lm,
            sampling,
            options.sequence_template,
            subset,
            options.backward_examples,
            options.rewrite_memory,
            options.sequence_count,
        )
    return RewriteProposal(
        lm, sampling, options.backward_template, subset, options.backward_examples, options.rewrite_memory
    )


def _term(name: str, options: InferenceOptions) -> WeightTerm:
    terms: dict[str, WeightTerm] = {
        "likelihood": Likelihood(),
        "prior": Prior(),
        "minus_proposal": MinusProposal(),
        "mutual_information": MutualInformation(options.mutual_information),
    }
    return terms[name]


def _weighting(options: InferenceOptions, correct: Callable[[str, str], bool]) -> Weighting:
    terms = tuple(_term(name, options) for name in options.posterior_terms)
    return Weighting(terms, options.posterior_temp, options.argmax_only, options.prune, options.burn_in, correct)


def _scoring_modes(options: Options, network: Sequential | None) -> ScoringModes:
    modes = ScoringModes() if network is None else ScoringModes.of(network)
    if options.inference.trust_factor and not _trusted(options.inference, network):
        modes = modes.without(
            "the trust region is not applied: the network has fewer layers than inference.trust_depth "
            f"({options.inference.trust_depth})"
        )
    if options.inference.exploration and not modes.scores_hidden:
        return modes.without("the exploration reward is not applied: it is made of scores of hidden texts")
    return modes


def _trusted(options: InferenceOptions, network: Sequential | None) -> bool:
    """Whether the output layer has a trust region."""
    return options.trust_factor > 0 and (network is None or len(network) >= options.trust_depth)


def _hidden_objective(options: InferenceOptions, modes: ScoringModes, correct: Callable[[str, str], bool]) -> Objective:
    if not modes.scores:
        return DownstreamAccuracy(correct, options.num_hidden)
    if not modes.scores_hidden:
        return DownstreamLogProb(options.num_hidden)
    if options.hidden_objective == "nce":
        return NoiseContrastive(options.score, options.burn_in)
    return ExpectedLogProb(options.score, FixedOutput(), options.burn_in)


def _output_objective(options: InferenceOptions, modes: ScoringModes, correct: Callable[[str, str], bool]) -> Objective:
    if options.output_objective == "accuracy" or not modes.scores:
        return Accuracy(correct, calibrator(options))
    return ExpectedLogProb(options.score, calibrator(options), options.burn_in)


def _raced(objective: Objective, options: InferenceOptions, fewest: int) -> Objective:
    if not options.race:
        return objective
    return Race(objective, BehindLeader(options.race_error), options.race_start, fewest)


def _fewest(options: InferenceOptions, network: Sequential | None) -> int:
    """Examples of a race's first round: two per label where an output layer is fitted to them."""
    labels = network.labels if network is not None and options.output_layer == "fitted" else None
    return max(4, 2 * len(labels or ()))


def _penalties(options: Options, modes: ScoringModes) -> tuple[Penalty, ...]:
    chosen = options.inference
    penalties: list[Penalty] = []
    if chosen.trust_factor:
        penalties.append(TrustRegion(chosen.trust_factor, chosen.trust_depth))
    if chosen.exploration and modes.scores_hidden:
        total = max(1, options.steps)
        annealed, burn_in = chosen.exploration_annealed, chosen.burn_in
        penalties.append(Exploration(chosen.exploration, total, chosen.score, annealed, burn_in))
    return tuple(penalties)
