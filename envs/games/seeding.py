"""Generators from seeds that were seen before, which the members of a group share, at a third of the usual cost.

Of the time it takes to reset a game with a seed, most goes into the hash that turns the seed into the generator's first
state. That hash is kept here for the seeds seen last; every number drawn is the one that Gymnasium's seeding gives.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from numpy.random import PCG64, Generator, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

_PCG64_WORDS = 4


@lru_cache(maxsize=4096)
def _first_words(seed: int) -> NDArray[np.uint64]:
    """`[4]`, what PCG64 asks a seed sequence for."""
    words = SeedSequence(seed).generate_state(_PCG64_WORDS, np.uint64).astype(np.uint64)
    words.setflags(write=False)
    return words


class KnownSeed(ISpawnableSeedSequence):
    """A `numpy.random.SeedSequence` of a seed whose first words are known.

    Args:
        seed: A whole number of at least 0.
    """

    def __init__(self, seed: int) -> None:
        self.entropy = seed

    @cached_property
    def _sequence(self) -> SeedSequence:
        return SeedSequence(self.entropy)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """`[n_words]` of numpy.uint32 or numpy.uint64."""
        if n_words == _PCG64_WORDS and dtype is np.uint64:
            return _first_words(self.entropy)
        return self._sequence.generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[Any]:
        """As many independent sequences, others at every call."""
        return list(self._sequence.spawn(n_children))


class SeededGame(gymnasium.Env[str, str]):
    """A text environment so quick that making its generator anew would take most of a seeded episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Makes `np_random` as `gymnasium.Env.reset` does; to be called by the subclass's."""
        if isinstance(seed, int) and seed >= 0:
            # NumPy takes every ISeedSequence; its type hints know its own one only.
            known = cast(SeedSequence, KnownSeed(seed))
            self._np_random, self._np_random_seed = Generator(PCG64(known)), seed
        elif seed is not None:
            seeding.np_random(seed)  # raises what Gymnasium says about such seeds
        return "", {}
