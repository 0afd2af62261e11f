"""A weighted set of values: the approximate posterior of one latent variable.

Weights live in log space and are an immutable part of the value; shifting all log-weights by a
constant changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from dln.errors import InputError
from dln.numerics import Floats, effective_sample_size, entropy, frozen, softmax

__all__ = ["Particles"]

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Particles(Generic[T]):
    """Values h^1 … h^K with log-weights log w^k, known up to a constant.

    Raises:
        InputError: no values, lengths that differ, a NaN or +inf weight, or all weights −inf.
    """

    values: tuple[T, ...]
    log_weights: Floats

    def __post_init__(self) -> None:
        log_weights = np.array(self.log_weights, dtype=np.float64)
        if len(self.values) == 0 or log_weights.shape != (len(self.values),):
            raise InputError(
                "particles need one log-weight per value, and at least one value",
                got=f"{len(self.values)} values, log-weights of shape {log_weights.shape}",
            )
        if np.isnan(log_weights).any() or np.isposinf(log_weights).any() or np.isneginf(log_weights).all():
            raise InputError("particle log-weights must be finite or −inf, and not all −inf", got=log_weights.tolist())
        log_weights.setflags(write=False)
        object.__setattr__(self, "log_weights", log_weights)

    @classmethod
    def point(cls, value: T) -> Particles[T]:
        """All weight on one value: an observed variable."""
        return cls((value,), np.zeros(1))

    @classmethod
    def uniform(cls, values: tuple[T, ...]) -> Particles[T]:
        """Equal weights."""
        return cls(values, np.zeros(len(values)))

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def weights(self) -> Floats:
        """w^k = softmax_k(log w^k); they sum to one."""
        return frozen(softmax(self.log_weights))

    @property
    def ess(self) -> float:
        """Effective sample size 1 / Σ w², in particles."""
        return effective_sample_size(self.weights)

    @property
    def entropy(self) -> float:
        """H[w] in nats. Equal values must have been merged for this to be the entropy of q(h)."""
        return entropy(self.weights)

    @property
    def mode(self) -> T:
        """The heaviest value; the first of equals."""
        return self.values[int(np.argmax(self.log_weights))]

    def expectation(self, f: Callable[[T], float]) -> float:
        """Σ_k w^k f(h^k); values of zero weight are not evaluated."""
        return float(sum(w * f(value) for w, value in zip(self.weights, self.values, strict=True) if w > 0))

    def merged(self, key: Callable[[T], Hashable] = lambda value: value) -> Particles[T]:
        """One particle per distinct key, weights added: the first of equals stands for them."""
        positions: dict[Hashable, int] = {}
        values: list[T] = []
        log_weights: list[float] = []
        for value, log_weight in zip(self.values, self.log_weights, strict=True):
            k = key(value)
            if k in positions:
                i = positions[k]
                log_weights[i] = float(np.logaddexp(log_weights[i], log_weight))
            else:
                positions[k] = len(values)
                values.append(value)
                log_weights.append(float(log_weight))
        return Particles(tuple(values), np.asarray(log_weights))
