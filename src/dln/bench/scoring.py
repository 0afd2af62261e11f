"""Label scoring of a training step: shared prefixes against plain padded batches, in one process.

The workload has the shape of a DLN-1 step: N prompts with demonstrations × B questions × C labels. The
rival is what most users write: tokenise each (prompt, question), pad a batch, one forward, log-softmax at
the last position.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from dln.data import load_task
from dln.infer.demonstrations import DemonstrationProposal
from dln.infer.feedback import Feedback
from dln.keys import Key
from dln.lm.plan import Plan
from dln.lm.transformers import TransformersLM
from dln.nn import ChoiceLayer, Demonstration, LayerInput
from dln.numerics import Floats

__all__ = ["ScoringResult", "measure_scoring"]


@dataclass(frozen=True)
class ScoringResult:
    """What one measurement gave.

    Attributes:
        prompts: N.
        batch: B.
        labels: C.
        tokens_asked: Σ tokens of all contexts.
        tokens_needed: distinct non-empty prefixes among them.
        tokens_evaluated: what the engine fed.
        plain_seconds: padded batches.
        shared_seconds: the engine.
        largest_difference: of a log-probability between the two, in nats.
    """

    prompts: int
    batch: int
    labels: int
    tokens_asked: int
    tokens_needed: int
    tokens_evaluated: int
    plain_seconds: float
    shared_seconds: float
    largest_difference: float

    @property
    def speed_up(self) -> float:
        """Plain over shared seconds."""
        return self.plain_seconds / self.shared_seconds

    @property
    def planner_efficiency(self) -> float:
        """Tokens needed over tokens evaluated."""
        return self.tokens_needed / self.tokens_evaluated


def measure_scoring(lm: TransformersLM, prompts: int = 4, batch: int = 20, plain_rows: int = 8) -> ScoringResult:
    """Score the labels of `batch` questions under `prompts` candidate prompts, both ways."""
    task = load_task("questions")
    names = task.label_names or ()
    layer = ChoiceLayer(lm, "classify", task.instruction, names)
    pool = tuple(Demonstration(e.input, e.input, e.target) for e in task.train)
    feedback = Feedback((), (), (), (), pool)
    candidates = DemonstrationProposal((8, 12))(Key(0), layer, feedback, prompts)
    inputs = [LayerInput(e.input, e.input) for e in task.dev[:batch]]
    contexts = [c for proposal in candidates for c in layer.with_prompt(proposal.prompt).contexts(inputs)]
    words = [layer.target_prefix + name for name in names]
    ids = [lm.codec.context_ids(context, lm.chat) for context in contexts]

    before = lm.diagnostics["tokens"]
    started = time.perf_counter()
    shared = lm.choice_log_probs(contexts, words)
    shared_seconds = time.perf_counter() - started
    evaluated = lm.diagnostics["tokens"] - before
    started = time.perf_counter()
    plain = _plain(lm, ids, [lm.codec.target_ids(word) for word in words], plain_rows)
    plain_seconds = time.perf_counter() - started
    plan = Plan.of(ids)
    return ScoringResult(
        prompts=len(candidates),
        batch=batch,
        labels=len(names),
        tokens_asked=plan.asked,
        tokens_needed=plan.size,
        tokens_evaluated=evaluated,
        plain_seconds=plain_seconds,
        shared_seconds=shared_seconds,
        largest_difference=float(np.abs(shared - plain).max()),
    )


def _plain(lm: TransformersLM, ids: list[tuple[int, ...]], labels: list[tuple[int, ...]], rows: int) -> Floats:
    """[N, C] log p of one-token labels by padded batches of contexts in their given order."""
    import torch

    if any(len(label) != 1 for label in labels):
        raise ValueError("the plain rival scores labels of one token")
    model = lm.network.model
    device = lm.network.device
    found: list[Floats] = []
    with torch.inference_mode():
        for start in range(0, len(ids), rows):
            part = ids[start : start + rows]
            width = max(map(len, part))
            inputs = torch.zeros((len(part), width), dtype=torch.long, device=device)
            mask = torch.zeros_like(inputs)
            for i, row in enumerate(part):
                inputs[i, : len(row)] = torch.tensor(row)
                mask[i, : len(row)] = 1
            logits = model(input_ids=inputs, attention_mask=mask).logits
            last = logits[torch.arange(len(part)), mask.sum(1) - 1].log_softmax(-1)
            found.append(last[:, [label[0] for label in labels]].double().cpu().numpy())
    return np.concatenate(found)
