"""What is trained on, token by token: the numbers that `polyturn weigh` puts into a turn's info, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.trajectory import Turn

KEY = "trained_on"
"""Where a turn's info holds them, and a trajectory's info says of which method and weights they are."""

_DIGITS = 7  # of a float32


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """A turn's tokens in a method's loss.

    Attributes:
        log_ratio: `[A]` float32, each action token's log-probability under the policy minus that under the reference,
            in nats; nan where there is none.
        weight: `[A]` float32, derivative of the loss in the action token's log-probability: negative where descent
            raises it, 0 where nothing is learned from it.
        outside: `[C]` float32, the same for the context's tokens; 0 with every method that leaves them out.
    """

    log_ratio: NDArray[np.float32]
    weight: NDArray[np.float32]
    outside: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """JSON values: null for nan; `outside` only where something is learned from it."""
        found: dict[str, Any] = {"log_ratio": _listed(self.log_ratio), "weight": _listed(self.weight)}
        return found | ({"outside": _listed(self.outside)} if self.outside.any() else {})

    @classmethod
    def of(cls, turn: Turn) -> TrainedOn | None:
        """A turn's numbers; None where its info holds none, or something else that an environment put there."""
        found = turn.info.get(KEY)
        if not isinstance(found, Mapping):
            return None
        log_ratio = _array(found.get("log_ratio"), len(turn.action_ids), gaps=True)
        weight = _array(found.get("weight"), len(turn.action_ids))
        outside = _array(found.get("outside", [0.0] * len(turn.context_ids)), len(turn.context_ids))
        if log_ratio is None or weight is None or outside is None:
            return None
        return cls(log_ratio, weight, outside)


def _listed(values: NDArray[np.float32]) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in values]


def _array(value: object, size: int, *, gaps: bool = False) -> NDArray[np.float32] | None:
    """A list of `size` finite numbers (with `gaps` also null, which becomes nan); None where it is anything else."""
    if not isinstance(value, list) or len(value) != size:
        return None
    if not all((gaps and each is None) or type(each) in (int, float) for each in value):
        return None
    try:
        with np.errstate(over="ignore"):
            array = np.array([np.nan if each is None else each for each in value], np.float32)
    except OverflowError:  # a whole number beyond every float
        return None
    known = array[[each is not None for each in value]] if size else array
    return array if bool(np.isfinite(known).all()) else None
