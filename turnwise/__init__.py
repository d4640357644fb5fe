"""turnwise: multi-turn agents trained from preferences over whole trajectories.

The names below are loaded when first used, so `import turnwise` is quick and loads neither torch nor gymnasium.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from turnwise.agents import Policy, TransformerAgent, collect
    from turnwise.algorithms import MDPO, MKTO, RAFT, SFT, train
    from turnwise.envs import (
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
    "Group": "turnwise.envs",
    "MDPO": "turnwise.algorithms",
    "MKTO": "turnwise.algorithms",
    "Policy": "turnwise.agents",
    "Preference": "turnwise.envs",
    "RAFT": "turnwise.algorithms",
    "SFT": "turnwise.algorithms",
    "Store": "turnwise.envs",
    "Trajectory": "turnwise.envs",
    "TransformerAgent": "turnwise.agents",
    "Turn": "turnwise.envs",
    "by_return": "turnwise.envs",
    "by_score": "turnwise.envs",
    "check_text_env": "turnwise.envs",
    "collect": "turnwise.agents",
    "make": "turnwise.envs",
    "read": "turnwise.envs",
    "read_groups": "turnwise.envs",
    "registered": "turnwise.envs",
    "train": "turnwise.algorithms",
}


def __getattr__(name: str) -> Any:
    if name in _FLOORS:
        return import_module(f"turnwise.{name}")
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'turnwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FLOORS})
