"""The learning rate as a function of only the step, so a resumed run needs no scheduler's state."""

from __future__ import annotations

import math
from typing import Literal, get_args

from polyturn.envs.suggest import did_you_mean

Schedule = Literal["constant", "linear", "cosine"]


def factor(step: int, *, steps: int, warmup: int = 0, schedule: Schedule = "constant") -> float:
    """What the learning rate is multiplied with.

    Args:
        step: Counted from 0.
        steps: Of the whole run; "linear" and "cosine" would reach 0 right after the last.
        warmup: Steps over which it rises linearly; the first is at 1 / warmup.
        schedule: What follows the warmup.

    Raises:
        ValueError: Unknown schedule.
    """
    if schedule not in get_args(Schedule):
        known = get_args(Schedule)
        raise ValueError(
            f"schedule: expected one of {', '.join(known)}, got {schedule!r}.{did_you_mean(schedule, known)}"
        )
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    left = (steps - step) / max(steps - warmup, 1)
    return left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
