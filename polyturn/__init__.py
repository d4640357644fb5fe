"""polyturn: multi-turn agents trained from preferences over whole trajectories.

The names below are loaded when first used, so `import polyturn` is quick and loads neither torch nor gymnasium.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polyturn.agents import Policy, TransformerAgent, collect
    from polyturn.algorithms import MDPO, MKTO, RAFT, SFT, train
    from polyturn.envs import (
        Group,
        Preference,
        Store,
        Trajectory,
        Turn,
        by_return,
        by_score,
        check_text_env,
        make,
        read,
        read_groups,
        registered,
    )

__all__ = [
    "MDPO",
    "MKTO",
    "RAFT",
    "SFT",
    "Group",
    "Policy",
    "Preference",
    "Store",
    "Trajectory",
    "TransformerAgent",
    "Turn",
    "__version__",
    "by_return",
    "by_score",
    "check_text_env",
    "collect",
    "make",
    "read",
    "read_groups",
    "registered",
    "train",
]

_FLOORS = ("sandbox", "envs", "agents", "algorithms", "benchmarks")

_HOME = {
    "Group": "polyturn.envs",
    "MDPO": "polyturn.algorithms",
    "MKTO": "polyturn.algorithms",
    "Policy": "polyturn.agents",
    "Preference": "polyturn.envs",
    "RAFT": "polyturn.algorithms",
    "SFT": "polyturn.algorithms",
    "Store": "polyturn.envs",
    "Trajectory": "polyturn.envs",
    "TransformerAgent": "polyturn.agents",
    "Turn": "polyturn.envs",
    "by_return": "polyturn.envs",
    "by_score": "polyturn.envs",
    "check_text_env": "polyturn.envs",
    "collect": "polyturn.agents",
    "make": "polyturn.envs",
    "read": "polyturn.envs",
    "read_groups": "polyturn.envs",
    "registered": "polyturn.envs",
    "train": "polyturn.algorithms",
}


def __getattr__(name: str) -> Any:
    if name in _FLOORS:
        return import_module(f"polyturn.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'polyturn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FLOORS})
