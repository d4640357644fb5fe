"""The methods that the conversation studies compare: what each one learns from, and how it trains the SFT policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.feedback.dueling import Rivals
from polyturn.algorithms.methods.actor_critic import MTPO, PPO
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.networks.value import ActorCritic
from polyturn.algorithms.protocols.online import online
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.conversations.models import make_once, preference_model, reward_model, sft_policy
from polyturn.benchmarks.conversations.setting import Experiment, Setting
from polyturn.benchmarks.running.suite import write_json

Feedback = Callable[[Experiment, Policy, Policy], dict[str, Any]]
"""From the seed of the study, the policy and the SFT policy to `online`'s arguments for preferences and rewards."""


@dataclass(frozen=True)
class Recipe:
    """A method with its feedback.

    Attributes:
        method: From the setting.
        feedback: What it learns from.
        values: A value network is trained with the policy.
    """

    method: Callable[[Setting], Method]
    feedback: Feedback
    values: bool = True


def from_judge(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """The exact judge compares conversations of the policy with each other."""
    return {"preference": run.task.judge}


def from_judge_against_mixture(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """The exact judge compares the policy with the geometric mixture of policy and reference."""
    setting = run.setting
    mixture = MixtureAgent(
        policy,
        sft,
        beta=setting.mixing,
        sampling=setting.sampling,
        max_tokens=setting.max_tokens,
        slots=setting.group_size * setting.groups,
    )
    return {"preference": run.task.judge, "opponent": mixture}


def from_reward_model(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """A Bradley-Terry model scores whole conversations."""
    return {"preference": reward_model(run, "whole")}


def from_preference_model(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """A fitted preference model takes the judge's place."""
    return {"preference": preference_model(run)}


def from_environment(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """The environment's own reward."""
    return {}


def from_exact_effect(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """The reward of a turn is its exact immediate effect."""
    effect = run.task.effect
    if effect is None:
        raise ValueError(f"{run.task.env}: expected a task with the exact effect of a turn, got none")
    return {"turn_reward": lambda group: [effect(member) for member in group]}


def from_turn_model(run: Experiment, policy: Policy, sft: Policy) -> dict[str, Any]:
    """A Bradley-Terry model scores each turn; it was fitted to how conversations end after alternative turns."""
    model = reward_model(run, "end")
    return {"turn_reward": lambda group: model.turn_scores(list(group))}


def _ppo(setting: Setting, kl: float, **options: Any) -> Method:
    return PPO(over="turn", kl=kl, value_weight=1.0, value_warmup=setting.value_warmup, **options)


def _single_turns(setting: Setting, kl: float) -> Method:
    """PPO that maximises the reward of each turn and ignores later turns."""
    return _ppo(setting, kl, reward="turns", discount=0.0)


def _mtpo(setting: Setting, kl: float) -> Method:
    return MTPO(kl=kl, value_warmup=setting.value_warmup)


RECIPES: Mapping[str, Recipe] = {
    "RLHF-reward": Recipe(lambda setting: _single_turns(setting, setting.kl_reward), from_exact_effect),
    "RLHF-value": Recipe(lambda setting: _single_turns(setting, setting.kl), from_turn_model),
    "RLHF-multi": Recipe(lambda setting: _ppo(setting, setting.kl), from_reward_model),
    "MTPO": Recipe(lambda setting: _mtpo(setting, setting.alpha), from_judge),
    "MTPO-tau": Recipe(lambda setting: _mtpo(setting, setting.alpha_tau), from_judge_against_mixture),
    "MTPO-model": Recipe(lambda setting: _mtpo(setting, setting.alpha), from_preference_model),
    "RL": Recipe(lambda setting: _ppo(setting, setting.kl_reward), from_environment),
    "M-DPO": Recipe(
        lambda setting: MDPO(beta=setting.beta, soft_labels=True, pairs_per_group=None), from_judge, values=False
    ),
}
"""The compared methods by their names in the tables.

"RLHF-reward" and "RLHF-value" maximise a reward of single turns: the exact immediate effect, and the score of a fitted
model. "RLHF-multi" maximises a fitted model's score of whole conversations, "RL" the environment's reward. MTPO learns
from the judge's comparisons of the policy's conversations, "MTPO-tau" from comparisons with a mixture, "MTPO-model"
from a fitted preference model. M-DPO is direct preference optimisation on fresh pairs.
"""


def trained(run: Experiment, name: str) -> tuple[Policy, list[dict[str, Any]]]:
    """The policy that one of `RECIPES` makes of the SFT policy, and the records of its training; made once."""
    folder = run.folder(name)
    recipe = RECIPES[name]

    def make() -> None:
        setting, sft = run.setting, sft_policy(run)
        policy = sft.copy(version=name, trainable=True)
        # Fresh conversations of the policy, with the recipe's feedback.
        source = online(
            policy,
            run.task.env,
            collect=CollectOptions(
                groups=setting.groups,
                group_size=setting.group_size,
                env_options=run.env_options(),
                sampling=setting.sampling,
                max_tokens=setting.max_tokens,
                slots=setting.group_size * setting.groups,
            ),
            seed=run.seed,
            **recipe.feedback(run, policy, sft),
        )
        # The learning curve: win rate against the SFT policy from the same starts at every point.
        curve = Rivals(
            sft.copy(),
            run.task.env,
            run.task.judge,
            starts=setting.starts,
            seed=run.seed + 2_000,
            env_options=run.env_options(),
            sampling=setting.sampling,
            max_tokens=setting.max_tokens,
            slots=setting.starts,
        )
        result = train(
            recipe.method(setting),
            ActorCritic(policy, lr_scale=setting.value_lr) if recipe.values else policy,
            sft,
            source,
            steps=setting.steps,
            options=TrainOptions(
                lr=setting.lr,
                save_every=max(1, setting.steps // 4),
                keep=1,
                evaluate_every=setting.evaluate_every,
                seed=run.seed,
                **setting.training,
            ),
            out=folder / "train",
            resume=True,
            evaluate=curve,
            progress=False,
        )
        policy.save_pretrained(folder / "policy")
        write_json(folder / "history.json", {"history": result.history})

    make_once(folder, make)
    history = json.loads((folder / "history.json").read_text("utf-8"))["history"]
    return run.load(folder / "policy"), history


def all_policies(run: Experiment, names: Sequence[str]) -> dict[str, Policy]:
    """The SFT policy and the policies of the named recipes."""
    return {"SFT": sft_policy(run)} | {name: trained(run, name)[0] for name in names}
