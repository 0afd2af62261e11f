"""From options to the algorithm, in one step: each name becomes the object that does it.

Objects in the options are used as they are. Names decide by the capabilities of the models at hand where a model
cannot score given texts (see `dln.infer.scoring_modes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from dln.arguments import did_you_mean
from dln.errors import InputError
from dln.extensions import create
from dln.infer import vi
from dln.infer.calibrate import Calibrator, FixedOutput, PenalisedLikelihood, PenalisedWords
from dln.infer.constraints import Constraint, KeepLines, MaxEdits, MaxTokens, Private, whole_tokens
from dln.infer.estep import Likelihood, MinusProposal, MutualInformation, Prior, Weighting, WeightTerm
from dln.infer.hidden import EditProposal, HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.mstep import Best, BestByMargin, Exploration, Penalty, TrustRegion
from dln.infer.objective import (
    ByLayer,
    DownstreamLogProb,
    DownstreamReward,
    ExpectedLogProb,
    ExpectedReward,
    NoiseContrastive,
    Objective,
    elbo,
    unknown_bound,
)
from dln.infer.prompts import (
    ConfusionProposal,
    DemonstrationProposal,
    MixturePrompts,
    PromptProposal,
    RewriteProposal,
    SequenceProposal,
    WordingProposal,
    read_wording,
)
from dln.infer.race import BehindLeader, Race
from dln.infer.rewards import Correctness, RewardFunction
from dln.infer.scoring_modes import ScoringModes
from dln.infer.structured import PenalisedOrder, PenalisedSets
from dln.lm.base import LanguageModel, Sampling
from dln.nn.sequential import Sequential
from dln.nn.template import Template, load_template
from dln.train.options import InferenceOptions, Options

__all__ = ["algorithm", "calibrator", "prepared", "strategy"]

T = TypeVar("T")
Correct = Callable[[str, str], bool]


def strategy(kind: str, value: str | T, builtin: Mapping[str, Callable[[], T]]) -> T:
    """The object that an option means: itself, or a built-in or registered name's.

    Raises:
        InputError: nobody registers the name, or its factory cannot be imported or called.
    """
    if not isinstance(value, str):
        return value
    return builtin[value]() if value in builtin else cast(T, create(kind, value, tuple(builtin)))


def algorithm(
    options: Options,
    correct: Correct,
    *,
    network: Sequential | None = None,
    prompt_lm: LanguageModel | None = None,
    hidden_lm: LanguageModel | None = None,
    longest: str = "",
    reward: RewardFunction | None = None,
    own_metric: bool = False,
    inputs: Sequence[str] = (),
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
        reward: R of an outcome; default 1 for an answer that is `correct`, and 0 for another.
        own_metric: whether R is a metric of the user's, which `likelihood="auto"` takes as the likelihood.
        inputs: the training inputs, which `private` keeps out of the prompts.

    Raises:
        InputError: an option names a template that does not exist, or one of another kind.
    """
    step = options.inference
    reward = reward or Correctness(correct)
    can = ScoringModes() if network is None else ScoringModes.of(network)
    by_reward = step.likelihood == "reward" or (step.likelihood == "auto" and own_metric)
    modes = can.by_reward(network) if by_reward and network is not None else can
    hidden = _hidden_objective(step, can, reward, by_reward=by_reward)
    output = _output_objective(step, can, reward, by_reward=by_reward)
    # a race knows nothing of what is taken off the scores afterwards: candidates with penalties all run to the end
    penalised = bool(step.penalties)
    return vi.build(
        num_hidden=step.num_hidden,
        num_prompts=step.num_prompts,
        q_hidden=MixtureProposal(_hidden_proposals(step, hidden_lm)),
        q_prompt=MixturePrompts(*_prompt_proposals(step, prompt_lm)),
        weighting=_weighting(step, reward, by_reward=by_reward),
        score=step.score,
        hidden_objective=hidden if penalised or (step.exploration and can.scores_hidden) else _raced(hidden, step, 4),
        output_objective=output
        if penalised or _trusted(step, network)
        else _raced(output, step, _fewest(step, network)),
        penalties=_penalties(options, can),
        select=strategy("selector", step.select, {"best": Best, "margin": lambda: BestByMargin(step.margin)}),
        layer_steps=step.layer_steps,
        max_prompt_tokens=step.max_prompt_tokens,
        longest=longest,
        constraints=_constraints(step, network, inputs),
        include_forward=step.include_forward,
        rewrite_only_wrong=step.rewrite_only_wrong,
        forward_temperature=step.forward_temperature,
        skip_correct=step.skip_correct,
        reservoir=step.reservoir,
        worked=step.worked,
        evidence=step.evidence,
        reward=reward,
        bound=elbo if can.scores_hidden and can.scores else unknown_bound,
        scoring_modes=_unapplied(modes, can, options, network),
        calibrator=calibrator(step),
    )


def prepared(network: Sequential, options: Options) -> Sequential:
    """The network as `options` want its layers to read and to answer; what they do not ask for stays as it is.

    Raises:
        InputError: free answers of a network without labels.
    """
    if options.strip_options_for_hidden:
        for position, layer in enumerate(network.layers[:-1]):
            for index, branch in enumerate(layer.branches):
                if branch.writer is not None:
                    stripped = replace(branch.writer, strip_options=True)
                    network = network.with_layer(position, network[position].with_branch(index, stripped))
    return network if options.answers == "scored" else network.with_answers(options.answers)


def calibrator(options: InferenceOptions) -> Calibrator:
    """How the output layer's numbers follow a prompt."""
    known: dict[str, Callable[[], Calibrator]] = {
        "words": lambda: PenalisedWords(PenalisedLikelihood(options.bias_scale), size=options.words),
        "ordinal": lambda: PenalisedOrder(PenalisedLikelihood(options.bias_scale), size=options.words),
        "sets": lambda: PenalisedSets(PenalisedLikelihood(options.bias_scale), size=options.words),
        "fitted": lambda: PenalisedLikelihood(options.bias_scale),
        "fixed": FixedOutput,
    }
    return strategy("output_layer", options.output_layer, known)


def _hidden_proposals(options: InferenceOptions, lm: LanguageModel | None) -> tuple[HiddenProposal, ...]:
    writer, temperature = lm if options.hidden_writer == "hidden_lm" else None, options.hidden_temperature
    known: dict[str, Callable[[], HiddenProposal]] = {
        "prior": lambda: PriorProposal(temperature, writer),
        "labelled_prior": lambda: LabelledPriorProposal(temperature, lm=writer),
        "edit": lambda: EditProposal(lm, Sampling(temperature, max_tokens=128)),
    }
    return tuple(strategy("hidden_proposal", value, known) for value in options.hidden_proposals)


def _prompt_proposals(
    options: InferenceOptions, lm: LanguageModel | None
) -> tuple[tuple[PromptProposal, ...], tuple[float, ...]]:
    backward = _backward_template("backward_template", options.backward_template)
    sequence = _backward_template("sequence_template", options.sequence_template)
    sampling = Sampling(options.prompt_temperature, max_tokens=options.prompt_tokens)
    subset = 0.5 if options.held_out_half else 1.0
    examples, memory = options.backward_examples, options.rewrite_memory
    known: dict[str, Callable[[], PromptProposal]] = {
        "demonstrations": lambda: DemonstrationProposal(options.demonstrations),
        "wording": lambda: WordingProposal(tuple(map(read_wording, options.wordings))),
        "rewrite": lambda: RewriteProposal(lm, sampling, backward, subset, examples, memory),
        "confusion": lambda: ConfusionProposal(lm, sampling, backward, 1.0, examples, memory),
        "sequence": lambda: SequenceProposal(lm, sampling, sequence, subset, examples, memory, options.sequence_count),
    }
    shares = {name: share for name, share in options.prompt_proposals.items() if _possible(name, options)}
    if not shares:
        raise InputError(
            "no proposal is left for private prompts",
            where="options inference.private and inference.prompt_proposals",
            got="demonstrations alone, which show training examples",
            expected="another proposal",
            fix='prompt_proposals=["rewrite", "wording"], or private=False',
        )
    return tuple(strategy("prompt_proposal", value, known) for value in shares), tuple(shares.values())


def _possible(name: object, options: InferenceOptions) -> bool:
    return not (options.private and name == "demonstrations")


def _constraints(
    options: InferenceOptions, network: Sequential | None, inputs: Sequence[str]
) -> tuple[Constraint, ...]:
    """The constraints that options ask for.

    Raises:
        InputError: an initial prompt does not meet them, or a fixed line is in none of them.
    """
    layers = [] if network is None else [b.prompted for layer in network.layers for b in layer.branches]
    origins = tuple("" if layer is None else layer.prompt.instruction for layer in layers)
    found: list[Constraint] = []
    if options.keep_lines:
        known = {line.strip() for text in origins for line in text.splitlines()}
        missing = [line for line in options.keep_lines if line.strip() not in known]
        if missing and network is not None:
            close = did_you_mean(missing[0].strip(), known)
            raise InputError(
                "a line that must stay is in no initial prompt",
                where="option inference.keep_lines",
                got=repr(missing[0]),
                expected="a whole line of an instruction",
                fix=f"did you mean {close!r}?" if close else "write it into the initial instruction",
            )
        found.append(KeepLines(options.keep_lines))
    if options.max_edits is not None:
        found.append(MaxEdits(options.max_edits, origins))
    if options.max_whole_tokens is not None:
        longest = max((whole_tokens(layer) for layer in layers if layer is not None), default=0)
        if longest > options.max_whole_tokens:
            raise InputError(
                "an initial prompt is longer than prompts may be",
                where="option inference.max_whole_tokens",
                got=f"{longest} tokens",
                expected=f"at most {options.max_whole_tokens}",
                fix=f"max_whole_tokens={longest}, or a shorter prompt",
            )
        found.append(MaxTokens(options.max_whole_tokens))
    if options.private:
        shown = [layer for layer in layers if layer is not None and layer.prompt.demonstrations]
        if shown:
            raise InputError(
                "private prompts show no examples",
                where="option inference.private",
                got=f"{len(shown[0].prompt.demonstrations)} demonstrations in an initial prompt",
                expected="initial prompts without demonstrations",
                fix="prompt.with_demonstrations([])",
            )
        found.append(Private.of(inputs))
    return tuple(found)


def _backward_template(option: str, template: str | Template) -> str | Template:
    """The template as given; a wrong name is an error now, and not when the first prompt is rewritten."""
    try:
        load_template(template, "backward")
    except InputError as error:
        where = f"option inference.{option}"
        raise InputError(error.message, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
    return template


def _weighting(options: InferenceOptions, reward: RewardFunction, *, by_reward: bool) -> Weighting:
    known: dict[str, Callable[[], WeightTerm]] = {
        "likelihood": Likelihood,
        "prior": Prior,
        "minus_proposal": MinusProposal,
        "mutual_information": lambda: MutualInformation(options.mutual_information),
    }
    terms = tuple(strategy("weight_term", value, known) for value in options.posterior_terms)
    return Weighting(
        terms,
        options.posterior_temp,
        options.argmax_only,
        options.prune,
        options.burn_in,
        reward,
        reward_temp=options.reward_temp,
        by_reward=by_reward,
    )


def _unapplied(modes: ScoringModes, can: ScoringModes, options: Options, network: Sequential | None) -> ScoringModes:
    """The modes with the options that have no effect under them."""
    if options.inference.trust_factor and not _trusted(options.inference, network):
        modes = modes.without(
            "the trust region is not applied: the network has fewer layers than inference.trust_depth "
            f"({options.inference.trust_depth})"
        )
    if options.inference.exploration and not can.scores_hidden:
        return modes.without("the exploration reward is not applied: it is made of scores of hidden texts")
    return modes


def _trusted(options: InferenceOptions, network: Sequential | None) -> bool:
    """Whether the output layer has a trust region."""
    return options.trust_factor > 0 and (network is None or len(network) >= options.trust_depth)


def _hidden_objective(
    options: InferenceOptions, can: ScoringModes, reward: RewardFunction, *, by_reward: bool
) -> Objective:
    known: dict[str, Callable[[], Objective]] = {
        "log_prob": lambda: ExpectedLogProb(options.score, FixedOutput(), options.burn_in),
        "nce": lambda: NoiseContrastive(options.score, options.burn_in),
    }
    if options.hidden_objective in known and by_reward:
        scored = strategy("objective", options.hidden_objective, known)
        return ByLayer(scored, DownstreamReward(reward, options.num_hidden))
    if options.hidden_objective in known and not can.scores:
        return DownstreamReward(reward, options.num_hidden)
    if options.hidden_objective in known and not can.scores_hidden:
        return DownstreamLogProb(options.num_hidden)
    return strategy("objective", options.hidden_objective, known)


def _output_objective(
    options: InferenceOptions, can: ScoringModes, reward: RewardFunction, *, by_reward: bool
) -> Objective:
    def log_prob() -> Objective:
        if by_reward or not can.scores:
            return ExpectedReward(reward, calibrator(options))
        return ExpectedLogProb(options.score, calibrator(options), options.burn_in)

    known: dict[str, Callable[[], Objective]] = {
        "log_prob": log_prob,
        "accuracy": lambda: ExpectedReward(reward, calibrator(options), greedy=True),
    }
    return strategy("objective", options.output_objective, known)


def _raced(objective: Objective, options: InferenceOptions, fewest: int) -> Objective:
    if not options.race:
        return objective
    return Race(objective, BehindLeader(options.race_error), options.race_start, fewest)


def _fewest(options: InferenceOptions, network: Sequential | None) -> int:
    """Examples of a race's first round: two per label where an output layer is fitted to them."""
    labels = network.labels if network is not None and options.output_layer != "fixed" else None
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
    return (*penalties, *(strategy("penalty", value, {}) for value in chosen.penalties))
