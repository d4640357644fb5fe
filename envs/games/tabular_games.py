"""Small multi-turn games written down as arrays: known dynamics, chance observations, preferences over where they end.

In a game of H turns a player is in one of finitely many states (what the conversation has been so far), answers, and
the environment replies at random. Two players play separately from the same first state; P(i beats j) compares the
states they end in. Nothing makes the preference transitive, so no reward need exist that explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TabularGame:
    """A multi-turn game from one first state.

    Attributes:
        transitions: One `[S_h, A, S_{h+1}]` array a turn: P(next state | state, answer). S_0 is 1; a family of first
            states is a family of games, because only conversations from the same first state are compared.
        preference: `[S_H, S_H]`, P(row beats column) for the states two conversations end in.

    Raises:
        ValueError: Shapes that do not chain, rows that are no distributions, or P + P^T that is not 1.
    """

    transitions: tuple[Array, ...]
    preference: Array

    def __post_init__(self) -> None:
        transitions = tuple(np.array(array, np.float64) for array in self.transitions)
        preference = np.array(self.preference, np.float64)
        if not transitions:
            raise ValueError("TabularGame: expected at least one turn, got none")
        states = 1
        for h, array in enumerate(transitions):
            if array.ndim != 3 or array.shape[0] != states or array.shape[1] < 1:
                raise ValueError(f"TabularGame: expected transitions[{h}] [{states}, A, S], got shape {array.shape}")
            if not (np.all(array >= 0) and np.allclose(array.sum(axis=2), 1.0, atol=1e-9)):
                raise ValueError(f"TabularGame: expected transitions[{h}] to be distributions over its last axis")
            states = array.shape[2]
        if preference.shape != (states, states):
            raise ValueError(f"TabularGame: expected preference [{states}, {states}], got shape {preference.shape}")
        if not (np.all((preference >= 0) & (preference <= 1)) and np.allclose(preference + preference.T, 1, atol=1e-9)):
            raise ValueError("TabularGame: expected preference in [0, 1] with P + P^T = 1")
        for array in (*transitions, preference):
            array.flags.writeable = False
        object.__setattr__(self, "transitions", transitions)
        object.__setattr__(self, "preference", preference)

    @property
    def turns(self) -> int:
        """H, the number of answers a player gives."""
        return len(self.transitions)

    @property
    def deterministic(self) -> bool:
        """Whether the environment's replies leave nothing to chance."""
        return all(bool(np.all((array == 0) | (array == 1))) for array in self.transitions)


def random_preference(size: int, rng: np.random.Generator, *, sharpness: float = 1.0) -> Array:
    """A random `[size, size]` preference matrix that follows no order.

    Args:
        size: Number of items.
        rng: Source of randomness.
        sharpness: 0 gives ties only; 1 draws P uniformly from [0, 1].
    """
    upper = np.triu(sharpness * (rng.random((size, size)) - 0.5), 1)
    return np.asarray(0.5 + upper - upper.T, np.float64)


def random_game(
    rng: np.random.Generator,
    *,
    states: Sequence[int] = (3, 4),
    actions: int = 3,
    concentration: float = 0.5,
    sharpness: float = 1.0,
) -> TabularGame:
    """A random game: transitions from a symmetric Dirichlet, preferences without transitivity.

    Args:
        rng: Source of randomness.
        states: Number of states after each turn; its length is the number of turns.
        actions: Answers in every state.
        concentration: Of the Dirichlet; smaller is closer to deterministic, 0 is deterministic.
        sharpness: As in `random_preference`.
    """
    layers: list[Array] = []
    for before, after in zip((1, *states[:-1]), states, strict=True):
        if concentration == 0:
            layers.append(np.eye(after)[rng.integers(after, size=(before, actions))])
        else:
            layers.append(rng.dirichlet(np.full(after, concentration), size=(before, actions)))
    return TabularGame(tuple(layers), random_preference(states[-1], rng, sharpness=sharpness))


def detour_game() -> TabularGame:
    """Two turns by hand: ask first, or answer at once, where endings beat each other in a circle.

    Turn 1: answer 0 leads to state 0 for certain; answer 1 ("ask") leads to state 1 or 2 with probability 1/2 each.
    Turn 2: every answer leads to an ending; state 0 offers endings 0 and 1, state 1 offers 1 and 2, state 2 offers 2
    and 0. Ending 0 beats 1, 1 beats 2, and 2 beats 0, each with probability 0.9. By symmetry the Nash
    equilibrium ends in each of the three with probability 1/3.
    """
    first = np.array([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]])
    second = np.eye(3)[np.array([[0, 1], [1, 2], [2, 0]])]
    preference = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    return TabularGame((first, second), preference)
