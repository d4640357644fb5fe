"""turnwise: multi-turn agents trained from preferences over whole trajectories.

The names below are loaded when first used, so `import turnwise` is quick and loads neither torch nor gymnasium.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from turnwise.agents.collecting import collect
    from turnwise.agents.policy import Policy
    from turnwise.agents.transformer import TransformerAgent
    from turnwise.algorithms.methods import MDPO, MKTO, RAFT, SFT
    from turnwise.algorithms.training import train
    from turnwise.envs.checker import check_text_env
    from turnwise.envs.preference import Preference, by_return, by_score
    from turnwise.envs.registration import make, registered
    from turnwise.envs.store import Store, read, read_groups
    from turnwise.envs.trajectory import Group, Trajectory, Turn

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
    "Group": "turnwise.envs.trajectory",
    "MDPO": "turnwise.algorithms.methods",
    "MKTO": "turnwise.algorithms.methods",
    "Policy": "turnwise.agents.policy",
    "Preference": "turnwise.envs.preference",
    "RAFT": "turnwise.algorithms.methods",
    "SFT": "turnwise.algorithms.methods",
    "Store": "turnwise.envs.store",
    "Trajectory": "turnwise.envs.trajectory",
    "TransformerAgent": "turnwise.agents.transformer",
    "Turn": "turnwise.envs.trajectory",
    "by_return": "turnwise.envs.preference",
    "by_score": "turnwise.envs.preference",
    "check_text_env": "turnwise.envs.checker",
    "collect": "turnwise.agents.collecting",
    "make": "turnwise.envs.registration",
    "read": "turnwise.envs.store",
    "read_groups": "turnwise.envs.store",
    "registered": "turnwise.envs.registration",
    "train": "turnwise.algorithms.training",
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
