"""Randomness as an argument: a `Key` is a seed with an address, and it has no state.

Every draw's seed is a hash of (run seed, step, purpose, index). A resumed run therefore needs no
generator state, and adding a draw somewhere never shifts the draws elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

__all__ = ["Key"]


@dataclass(frozen=True, slots=True)
class Key:
    """A stateless source of randomness.

    >>> key = Key(13).child("step", 4, "hidden")
    >>> key == Key(13).child("step", 4).child("hidden")
    True
    >>> key.seeds(2) == key.seeds(3)[:2]
    True
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Key:
        """The key at a longer address; different addresses give independent randomness."""
        return Key(self.seed, (*self.path, *names))

    def integer(self, *names: str | int) -> int:
        """A 63-bit seed for the address `path + names`."""
        address = repr((self.seed, *self.path, *names)).encode()
        return int.from_bytes(hashlib.blake2b(address, digest_size=8).digest(), "big") >> 1

    def seeds(self, n: int) -> list[int]:
        """`n` seeds, one per draw; the i-th does not depend on `n`."""
        return [self.integer("draw", i) for i in range(n)]

    def generator(self) -> np.random.Generator:
        """A fresh numpy generator for this address (the same one at each call)."""
        return np.random.default_rng(self.integer("generator"))
