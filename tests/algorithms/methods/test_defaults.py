"""The defaults of every method, as its paper or its docstring states them: a changed default changes published runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from polyturn.algorithms import METHODS, TrainOptions
from polyturn.algorithms.losses import logistic
from polyturn.envs import Turn

PAIRWISE = {"soft_labels": False, "turns": "all", "pairs_per_group": 1, "drop_error_winners": False}
PPO = {
    "clip": 0.2, "kl": 0.0, "over": "token", "reward": "score", "discount": 1.0, "lam": 0.95, "value_weight": 0.1,
    "policy_weight": 1.0, "value_warmup": 0, "whiten": True,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"best": 1, "above": None, "turns": "all"},
    "raft": {"best": None, "above": 0.0, "turns": "all"},
    "best_of_n": {"best": 1, "above": None, "turns": "all"},
    "rwr": {"beta": 1.0, "max_weight": 20.0},
    "mdpo": PAIRWISE | {"drop_error_winners": True, "beta": 0.1, "mask": "agent", "f": logistic, "nll_weight": 0.0},
    "gpo": PAIRWISE | {"f": "logistic", "beta": 0.1, "label_smoothing": 0.0},
    "ipo": PAIRWISE | {"soft_labels": True, "pairs_per_group": None, "tau": 0.1, "average": False},
    "mkto": {
        "beta": 0.1, "turns": "all", "desirable_weight": 1.0, "undesirable_weight": 1.0, "pairs_per_group": 1,
        "drop_error_winners": True,
    },
    "pmpo": {"alpha": 0.5, "beta": 1.0, "above": None},
    "dro_v": {"tau": 1.0, "per_token": True, "value_weight": 1.0},
    "reinforce": {"baseline": "none", "kl": 0.0, "score_clip": None},
    "rloo": {"baseline": "leave_one_out", "kl": 0.0, "score_clip": None},
    "grpo": {"clip": 0.2, "kl": 0.0, "scale": True, "length_norm": True},
    "nash_pg": {"tau": 0.01},
    "ppo": PPO,
    "mtpo": PPO | {"kl": 0.005, "over": "turn", "value_weight": 1.0},
    "distillation": {"first": "teacher", "likelihood": 0.0, "turns": "all"},
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_made_without_settings_has_the_published_ones(name: str) -> None:
    method = METHODS[name]()
    assert method.name == name
    assert asdict(method) == DEFAULTS[name]  # type: ignore[call-overload]


def test_the_table_of_defaults_is_complete() -> None:
    assert set(METHODS) == set(DEFAULTS)


def test_training_options_default_to_what_their_documentation_states() -> None:
    assert asdict(TrainOptions()) == {
        "lr": 1e-6, "weight_decay": 0.0, "warmup": 0, "schedule": "constant", "clip": 1.0, "optimizer": "adamw",
        "accumulate": 1, "tokens_per_micro_batch": 8192, "max_length": None, "mixed_precision": None,
        "gradient_checkpointing": False, "kernels": "eager", "dropout": False, "cache_reference": False,
        "sharded": True, "fully_sharded": None, "save_every": None, "keep": 2, "evaluate_every": None, "seed": 0,
        "cpu": False,
    }  # fmt: skip


def test_a_turn_is_not_rewarded_unless_it_says_so() -> None:
    assert Turn("observation", "action").reward == 0.0
