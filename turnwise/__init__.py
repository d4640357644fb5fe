"""turnwise: multi-turn agents trained from preferences over whole trajectories.

The names below are loaded when first used, so `import turnwise` is quick and loads neither torch nor gymnasium.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from turnwise.envs.preference import Preference
    from turnwise.envs.trajectory import Group, Trajectory, Turn

__all__ = ["Group", "Preference", "Trajectory", "Turn", "__version__"]

_FLOORS = ("sandbox", "envs", "agents", "algorithms", "benchmarks")

_HOME = {
    "Group": "turnwise.envs.trajectory",
    "Preference": "turnwise.envs.preference",
    "Trajectory": "turnwise.envs.trajectory",
    "Turn": "turnwise.envs.trajectory",
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
