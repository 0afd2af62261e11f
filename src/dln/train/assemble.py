"""From options and the models' capabilities to the algorithm: each choice becomes the object that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dln.errors import InputError
from dln.infer import vi
from dln.infer.calibrate import Calibrator, FixedOutput, PenalisedLikelihood
from dln.infer.demonstrations import DemonstrationProposal
from dln.infer.downstream import DownstreamAccuracy, DownstreamLogProb
from dln.infer.elbo import elbo, unknown_bound
from dln.infer.hidden import EditProposal, HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.objective import Accuracy, ExpectedLogProb, NoiseContrastive, Objective
from dln.infer.prompts import MixturePrompts, PromptProposal
from dln.infer.race import BehindLeader, Race
from dln.infer.regularize import Exploration, Penalty, TrustRegion
from dln.infer.rewrites import RewriteProposal, SequenceProposal
from dln.infer.scoring_modes import ScoringModes
from dln.infer.select import Best, BestByMargin
from dln.infer.weights import (
    Likelihood,
    MinusProposal,
    MutualInformation,
    Prior,
    Weighting,
    WeightTerm,
)
from dln.infer.wordings import WordingProposal, read_wording
from dln.lm.base import LanguageModel, Sampling
from dln.nn.sequential import Sequential
from dln.nn.template import load_template
from dln.train.options import InferenceOptions, Options

__all__ = ["algorithm", "calibrator", "prepared"]


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
