"""Floor 3: what trajectories and preferences become: losses, methods, and the one training loop.

The names below are loaded when first used, so that importing this package does not load torch. The loop lives in
`training` because a module called like its function would hide it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnwise.algorithms import estimators, losses
    from turnwise.algorithms.batch import Batch, TooLongWarning, collate, drop_long
    from turnwise.algorithms.checkpoint import CheckpointError, latest
    from turnwise.algorithms.feed import minibatches
    from turnwise.algorithms.learner import NonFiniteError
    from turnwise.algorithms.methods import MDPO, METHODS, MKTO, RAFT, SFT, Loss, Method
    from turnwise.algorithms.pairing import Example, ExampleError, pairs_by_outcome
    from turnwise.algorithms.signals import Interrupted
    from turnwise.algorithms.training import ResumeWarning, TrainResult, train

_HOME = {
    "batch": ("Batch", "TooLongWarning", "collate", "drop_long"),
    "checkpoint": ("CheckpointError", "latest"),
    "feed": ("minibatches",),
    "learner": ("NonFiniteError",),
    "methods": ("MDPO", "METHODS", "MKTO", "RAFT", "SFT", "Loss", "Method"),
    "pairing": ("Example", "ExampleError", "pairs_by_outcome"),
    "signals": ("Interrupted",),
    "training": ("ResumeWarning", "TrainResult", "train"),
}
_MODULES = ("estimators", "losses")

__all__ = [
    "MDPO",
    "METHODS",
    "MKTO",
    "RAFT",
    "SFT",
    "Batch",
    "CheckpointError",
    "Example",
    "ExampleError",
    "Interrupted",
    "Loss",
    "Method",
    "NonFiniteError",
    "ResumeWarning",
    "TooLongWarning",
    "TrainResult",
    "collate",
    "drop_long",
    "estimators",
    "latest",
    "losses",
    "minibatches",
    "pairs_by_outcome",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
