"""Methods by the name the command line knows them by; help and options of the command line are made from this table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from polyturn.algorithms.methods.actor_critic import MTPO, PPO
from polyturn.algorithms.methods.base import GroupMethod, hooks_of
from polyturn.algorithms.methods.distillation import Distillation
from polyturn.algorithms.methods.imitation import RAFT, RWR, SFT, BestOfN
from polyturn.algorithms.methods.pairwise import GPO, IPO, MDPO
from polyturn.algorithms.methods.policy_gradient import GRPO, REINFORCE, RLOO, NashPG
from polyturn.algorithms.methods.unpaired import DROV, MKTO, PMPO
from polyturn.envs.plugins import is_reference, loaded, named, plugins
from polyturn.envs.suggest import did_you_mean

GROUP = "polyturn.methods"
"""The entry-point group of methods in installed packages."""

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
    """A method by name: one of `METHODS`, a plug-in (entry-point group "polyturn.methods"), or `module:attribute`.

    Raises:
        ValueError: No such method, or no such option; the message lists what there is.
    """
    if name not in METHODS and (is_reference(name) or name in plugins(GROUP)):
        return _own(name, options)
    if name not in METHODS:
        known = [*METHODS, *plugins(GROUP)]
        raise ValueError(
            f"expected a method out of {', '.join(sorted(known))} or module:attribute, got {name!r}."
            f"{did_you_mean(name, known)}"
        )
    known = [field.name for field in fields(METHODS[name])]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"{name}: expected options out of {', '.join(known) or 'none'}, got {option!r}.{hint}")
    method: GroupMethod = METHODS[name](**options)
    return method


def _own(name: str, options: dict[str, Any]) -> GroupMethod:
    """A method that others wrote: a class or a function that makes one, or the method itself."""
    found = named(name, GROUP, "a method")
    made = found
    if isinstance(found, type) or not hasattr(found, "loss"):
        if not callable(found):
            raise ValueError(f"{name}: expected a method with name, needs and loss, got {type(found).__name__}")
        try:
            inspect.signature(found).bind(**options)
        except TypeError as error:
            raise ValueError(f"{name}: {error}; its options: {inspect.signature(found)}") from error
        made = found(**options)
    elif options:
        raise ValueError(f"{name}: expected no options for a method that is made already, got {', '.join(options)}")
    hooks_of(made)
    method: GroupMethod = made
    return method


def summaries() -> str:
    """One line a method, plug-ins included: its name, and the first line of its docstring."""
    every = {**METHODS, **loaded(GROUP)}
    width = max(map(len, every))
    lines = [
        f"  {name:<{width}}  {(inspect.cleandoc(made.__doc__ or '').splitlines() or [''])[0]}"
        for name, made in every.items()
    ]
    return "\n".join(lines)
