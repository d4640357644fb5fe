"""Methods by the name the command line knows them by; help and options of the command line are made from this table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from polyturn.algorithms.methods.actor_critic import MTPO, PPO
from polyturn.algorithms.methods.base import GroupMethod
from polyturn.algorithms.methods.distillation import Distillation
from polyturn.algorithms.methods.imitation import RAFT, RWR, SFT, BestOfN
from polyturn.algorithms.methods.pairwise import GPO, IPO, MDPO
from polyturn.algorithms.methods.policy_gradient import GRPO, REINFORCE, RLOO, NashPG
from polyturn.algorithms.methods.unpaired import DROV, MKTO, PMPO
from polyturn.envs.suggest import did_you_mean

METHODS: dict[str, Callable[..., Any]] = {
    "sft": SFT,
    "raft": RAFT,
    "best_of_n": BestOfN,
    "rwr": RWR,
    "mdpo": MDPO,
    "gpo": GPO,
    "ipo": IPO,
    "mkto": MKTO,
    "pmpo": PMPO,
    "dro_v": DROV,
    "reinforce": REINFORCE,
    "rloo": RLOO,
    "grpo": GRPO,
    "nash_pg": NashPG,
    "ppo": PPO,
    "mtpo": MTPO,
    "distillation": Distillation,
}
"""Every method of this package; your own may be added."""


def make(name: str, **options: Any) -> GroupMethod:
    """A method by name.

    Raises:
        ValueError: No such method, or no such option; the message lists what there is.
    """
    if name not in METHODS:
        raise ValueError(
            f"expected a method out of {', '.join(sorted(METHODS))}, got {name!r}.{did_you_mean(name, METHODS)}"
        )
    known = [field.name for field in fields(METHODS[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"{name}: expected options out of {', '.join(known) or 'none'}, got {option!r}.{hint}")
    method: GroupMethod = METHODS[name](**options)
    return method


def summaries() -> str:
    """One line a method: its name, and the first line of its docstring."""
    width = max(map(len, METHODS))
    lines = [
        f"  {name:<{width}}  {inspect.cleandoc(made.__doc__ or '').splitlines()[0]}" for name, made in METHODS.items()
    ]
    return "\n".join(lines)
