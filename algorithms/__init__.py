"""Floor 3: what trajectories and preferences become: losses, methods, and the one training loop.

The names below are loaded when first used, so that importing this package does not load torch. The loop lives in
`training` because a module called like its function would hide it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyturn.algorithms import estimators, losses
    from polyturn.algorithms.actor_critic import MTPO, PPO
    from polyturn.algorithms.agreement import Calibration, calibration
    from polyturn.algorithms.batch import Batch, TooLongWarning, collate, drop_long
    from polyturn.algorithms.checkpoint import CheckpointError, latest
    from polyturn.algorithms.distillation import Distillation
    from polyturn.algorithms.dueling import Duels, Rivals, duel
    from polyturn.algorithms.feed import AnnotatedGroup, minibatches
    from polyturn.algorithms.feedback import ai_feedback, position_bias
    from polyturn.algorithms.learner import NonFiniteError
    from polyturn.algorithms.method_table import METHODS
    from polyturn.algorithms.methods import MDPO, MKTO, RAFT, SFT, Loss, Method
    from polyturn.algorithms.moving_average import MovingAverage
    from polyturn.algorithms.offline_methods import DROV, GPO, IPO, PMPO, RWR, BestOfN, standardised
    from polyturn.algorithms.online_methods import GRPO, REINFORCE, RLOO, NashPG
    from polyturn.algorithms.onpolicy import Online, online
    from polyturn.algorithms.pairing import Example, ExampleError, pairs_by_outcome
    from polyturn.algorithms.reward_models import BradleyTerry, PreferenceModel, RewardModel, fit
    from polyturn.algorithms.signals import Interrupted
    from polyturn.algorithms.single_turns import turn_feedback, upto
    from polyturn.algorithms.training import ResumeWarning, TrainResult, train
    from polyturn.algorithms.value import ActorCritic

_HOME = {
    "actor_critic": ("MTPO", "PPO"),
    "batch": ("Batch", "TooLongWarning", "collate", "drop_long"),
    "agreement": ("Calibration", "calibration"),
    "checkpoint": ("CheckpointError", "latest"),
    "dueling": ("Duels", "Rivals", "duel"),
    "feedback": ("ai_feedback", "position_bias"),
    "feed": ("AnnotatedGroup", "minibatches"),
    "learner": ("NonFiniteError",),
    "method_table": ("METHODS",),
    "methods": ("MDPO", "MKTO", "RAFT", "SFT", "Loss", "Method"),
    "moving_average": ("MovingAverage",),
    "distillation": ("Distillation",),
    "offline_methods": ("DROV", "GPO", "IPO", "PMPO", "RWR", "BestOfN", "standardised"),
    "online_methods": ("GRPO", "REINFORCE", "RLOO", "NashPG"),
    "onpolicy": ("Online", "online"),
    "pairing": ("Example", "ExampleError", "pairs_by_outcome"),
    "reward_models": ("BradleyTerry", "PreferenceModel", "RewardModel", "fit"),
    "signals": ("Interrupted",),
    "training": ("ResumeWarning", "TrainResult", "train"),
    "single_turns": ("turn_feedback", "upto"),
    "value": ("ActorCritic",),
}
_MODULES = ("estimators", "losses")

__all__ = [
    "DROV",
    "GPO",
    "GRPO",
    "IPO",
    "MDPO",
    "METHODS",
    "MKTO",
    "MTPO",
    "PMPO",
    "PPO",
    "RAFT",
    "REINFORCE",
    "RLOO",
    "RWR",
    "SFT",
    "ActorCritic",
    "AnnotatedGroup",
    "Batch",
    "BestOfN",
    "BradleyTerry",
    "Calibration",
    "CheckpointError",
    "Distillation",
    "Duels",
    "Example",
    "ExampleError",
    "Interrupted",
    "Loss",
    "Method",
    "MovingAverage",
    "NashPG",
    "NonFiniteError",
    "Online",
    "PreferenceModel",
    "ResumeWarning",
    "RewardModel",
    "Rivals",
    "TooLongWarning",
    "TrainResult",
    "ai_feedback",
    "calibration",
    "collate",
    "drop_long",
    "duel",
    "estimators",
    "fit",
    "latest",
    "losses",
    "minibatches",
    "online",
    "pairs_by_outcome",
    "position_bias",
    "standardised",
    "train",
    "turn_feedback",
    "upto",
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
