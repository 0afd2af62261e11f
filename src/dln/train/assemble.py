"""From options to the algorithm: each choice becomes the object that makes it."""

from __future__ import annotations

from collections.abc import Callable

from dln.infer import vi
from dln.infer.calibrate import Calibrator, FixedOutput, PenalisedLikelihood
from dln.infer.demonstrations import DemonstrationProposal
from dln.infer.hidden import EditProposal, HiddenProposal, LabelledPriorProposal, MixtureProposal, PriorProposal
from dln.infer.objective import Accuracy, ExpectedLogProb, NoiseContrastive, Objective
from dln.infer.prompts import MixturePrompts, PromptProposal
from dln.infer.regularize import Exploration, Penalty, TrustRegion
from dln.infer.rewrites import RewriteProposal, SequenceProposal
from dln.infer.select import Best, BestByMargin
from dln.infer.weights import Likelihood, MinusProposal, MutualInformation, Prior, Weighting, WeightTerm
from dln.lm.base import LanguageModel, Sampling
from dln.train.options import InferenceOptions, Options

__all__ = ["algorithm", "calibrator"]


def algorithm(
    options: Options,
    correct: Callable[[str, str], bool],
    *,
    prompt_lm: LanguageModel | None = None,
    hidden_lm: LanguageModel | None = None,
    longest: str = "",
) -> vi.VariationalInference:
    """The training step that `options` describe.

    Args:
        options: resolved options.
        correct: (prediction, target) → whether the prediction is right.
        prompt_lm: the model that proposes prompts; default each layer's own.
        hidden_lm: the model of the "edit" proposal of hidden texts; default each layer's own.
        longest: the longest input that learnt prompts must leave room for.
    """
    chosen = options.inference
    fit = calibrator(chosen)
    return vi.build(
        num_hidden=chosen.num_hidden,
        num_prompts=chosen.num_prompts,
        q_hidden=MixtureProposal(tuple(_hidden(name, chosen, hidden_lm) for name in chosen.hidden_proposals)),
        q_prompt=MixturePrompts(
            tuple(_prompt(name, chosen, prompt_lm) for name in chosen.prompt_proposals),
            tuple(chosen.prompt_proposals.values()),
        ),
        weighting=Weighting(
            tuple(_term(name, chosen) for name in chosen.posterior_terms),
            chosen.posterior_temp,
            chosen.argmax_only,
            chosen.prune,
        ),
        score=chosen.score,
        hidden_objective=_hidden_objective(chosen),
        output_objective=Accuracy(correct, fit)
        if chosen.output_objective == "accuracy"
        else ExpectedLogProb(chosen.score, fit),
        penalties=_penalties(options),
        select=BestByMargin(chosen.margin) if chosen.select == "margin" else Best(),
        layer_steps=chosen.layer_steps,
        max_prompt_tokens=chosen.max_prompt_tokens,
        longest=longest,
        include_forward=chosen.include_forward,
        rewrite_only_wrong=chosen.rewrite_only_wrong,
        reservoir=chosen.reservoir,
        correct=correct,
    )


def calibrator(options: InferenceOptions) -> Calibrator:
    """How the output layer's numbers follow a prompt."""
    return PenalisedLikelihood(options.bias_scale) if options.output_layer == "fitted" else FixedOutput()


def _hidden(name: str, options: InferenceOptions, lm: LanguageModel | None) -> HiddenProposal:
    if name == "prior":
        return PriorProposal(options.hidden_temperature)
    if name == "labelled_prior":
        return LabelledPriorProposal(options.hidden_temperature)
    return EditProposal(lm, Sampling(options.hidden_temperature, max_tokens=128))


def _prompt(name: str, options: InferenceOptions, lm: LanguageModel | None) -> PromptProposal:
    if name == "demonstrations":
        return DemonstrationProposal(options.demonstrations)
    sampling = Sampling(options.prompt_temperature, max_tokens=options.prompt_tokens)
    subset = 0.5 if options.held_out_half else 1.0
    if name == "sequence":
        return SequenceProposal(
            lm, sampling, options.sequence_template, subset, options.backward_examples, options.sequence_count
        )
    return RewriteProposal(lm, sampling, options.backward_template, subset, options.backward_examples)


def _term(name: str, options: InferenceOptions) -> WeightTerm:
    terms: dict[str, WeightTerm] = {
        "likelihood": Likelihood(),
        "prior": Prior(),
        "minus_proposal": MinusProposal(),
        "mutual_information": MutualInformation(options.mutual_information),
    }
    return terms[name]


def _hidden_objective(options: InferenceOptions) -> Objective:
    if options.hidden_objective == "nce":
        return NoiseContrastive(options.score)
    return ExpectedLogProb(options.score, FixedOutput())


def _penalties(options: Options) -> tuple[Penalty, ...]:
    chosen = options.inference
    penalties: list[Penalty] = []
    if chosen.trust_factor:
        penalties.append(TrustRegion(chosen.trust_factor))
    if chosen.exploration:
        penalties.append(Exploration(chosen.exploration, max(1, options.steps), chosen.score))
    return tuple(penalties)
