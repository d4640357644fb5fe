"""Methods by the name the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from polyturn.algorithms.methods.actor_critic import MTPO, PPO
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.distillation import Distillation
from polyturn.algorithms.methods.imitation import RAFT, RWR, SFT, BestOfN
from polyturn.algorithms.methods.pairwise import GPO, IPO, MDPO
from polyturn.algorithms.methods.policy_gradient import GRPO, REINFORCE, RLOO, NashPG
from polyturn.algorithms.methods.unpaired import DROV, MKTO, PMPO
from polyturn.envs.suggest import did_you_mean

METHODS: dict[str, Callable[..., Any]] = {
    "sft": SFT,
    "raft": RAFT,
    "mdpo": MDPO,
    "mkto": MKTO,
    "gpo": GPO,
    "ipo": IPO,
    "pmpo": PMPO,
    "dro_v": DROV,
    "best_of_n": BestOfN,
    "rwr": RWR,
    "reinforce": REINFORCE,
    "rloo": RLOO,
    "grpo": GRPO,
    "ppo": PPO,
    "mtpo": MTPO,
    "nash_pg": NashPG,
    "distillation": Distillation,
}
"""Every method of this package; a user's own may be added."""

# What a method is, not what it may be told to do.
_FIXED = ("name", "needs_reference", "needs_values", "mismatched", "full_kl")


def make(name: str, **options: Any) -> Method:
    """A method by name.

    Raises:
        ValueError: No such method, or no such option; the message lists what there is.
    """
    if name not in METHODS:
        raise ValueError(
            f"expected a method out of {', '.join(sorted(METHODS))}, got {name!r}.{did_you_mean(name, METHODS)}"
        )
    known = [field.name for field in fields(METHODS[name]) if field.name not in _FIXED]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"{name}: expected options out of {', '.join(known)}, got {option!r}.{hint}")
    method: Method = METHODS[name](**options)
    return method
