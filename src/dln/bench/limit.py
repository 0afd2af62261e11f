"""The limit: how long a workload takes if every trie node costs two operations per parameter and nothing else.

    limit        = 2 · needed · parameters / speed of plain matrix products
    strict limit = 2 (needed · weights of the layers + rows · weights of the head) / the same speed

The first is the usual rule of thumb, with every parameter counted once. The strict one counts what is
multiplied: the weights of all linear maps except the output head, which only the rows that predict a token
need; the embedding is a look-up. Attention itself, norms, activations and the planner are in neither: they are
what hardware efficiency = limit / seconds is lost to. The speed is that of the same
products in the same process: [M, in] × [in, out] for every linear map of the model, its own weights, M tokens
as in a pack, right before and right after what it is compared with, because shared machines change their speed within
minutes. It is the speed that is kept up over all repetitions, and not that of the best one: a workload takes a minute,
in which the machine is not at its best all the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from dln.bench.workload import Work
from dln.errors import InputError
from dln.lm.transformers import TransformersLM

__all__ = ["Machine", "measure_machine"]

REPETITIONS = 12


@dataclass(frozen=True)
class Machine:
    """What the processor does with this model's matrix products.

    Attributes:
        parameters: of the model, shared ones counted once.
        layer_weights: weights of the linear maps, the head aside.
        head_weights: weights of the output head.
        tokens: M, rows of each product.
        flops: operations per second of the products alone, over all repetitions.
        forward_flops: the same for a plain forward of one sequence of M tokens through transformers, without
            the head and counting the same operations: what the rest of the architecture leaves of `flops`.
    """

    parameters: int
    layer_weights: int
    head_weights: int
    tokens: int
    flops: float
    forward_flops: float

    def joined(self, later: Machine) -> Machine:
        """The mean speed of two measurements: what lay between them ran on a machine about as fast."""
        return replace(
            self,
            flops=(self.flops + later.flops) / 2,
            forward_flops=(self.forward_flops + later.forward_flops) / 2,
        )

    def limit(self, work: Work) -> float:
        """Seconds for two operations per trie node and parameter."""
        return 2 * work.needed * self.parameters / self.flops

    def strict_limit(self, work: Work) -> float:
        """Seconds below which the workload cannot be done on this processor without skipping trie nodes."""
        return 2 * (work.needed * self.layer_weights + work.rows * self.head_weights) / self.flops


def measure_machine(lm: TransformersLM, tokens: int | None = None) -> Machine:
    """Speed of the model's matrix products with `tokens` rows; by default those of the engine's packs."""
    import torch

    model, device = lm.network.model, lm.network.device
    rows = min(
        tokens or lm.batch_tokens or lm.network.usual_batch_tokens,
        lm.network.context_length or lm.network.usual_batch_tokens,
    )
    head = model.get_output_embeddings()
    maps: list[Any] = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    if not maps:
        raise InputError("this model has no linear maps to compare with", where=lm.name, got=type(model).__name__)
    layer_weights = sum(int(m.weight.numel()) for m in maps)
    inputs = {
        width: torch.randn((rows, width), device=device, dtype=lm.network.model.dtype)
        for width in {int(m.weight.shape[1]) for m in maps}
    }
    ids = torch.randint(0, lm.network.vocabulary, (1, rows), device=device)

    def products() -> None:
        for m in maps:
            torch.nn.functional.linear(inputs[int(m.weight.shape[1])], m.weight)

    def forward() -> None:
        model.base_model(input_ids=ids, use_cache=False)

    with torch.inference_mode():
        product_seconds, forward_seconds = (_mean(run, device) for run in (products, forward))
    operations = 2 * rows * layer_weights
    return Machine(
        parameters=sum(int(p.numel()) for p in model.parameters()),
        layer_weights=layer_weights,
        head_weights=int(head.weight.numel()),
        tokens=rows,
        flops=operations / product_seconds,
        forward_flops=operations / forward_seconds,
    )


def _mean(run: Any, device: Any) -> float:
    import torch

    seconds: list[float] = []
    for _ in range(REPETITIONS + 1):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return sum(seconds[1:]) / REPETITIONS
