"""Suite `car_dealer`: do preferences teach a policy to sell as well as the reward itself does?

The claim of multi-turn preference optimisation (arXiv 2405.14655, Car Dealer): where a reward exists, online MTPO,
which learns only which of two conversations earned more, is within the interval of reward-based RL, and so is MTPO with
a fitted preference model; RLHF is a little worse. Small scale: a two-layer transformer that imitates scripted dealers
of mixed quality, the scripted buyer. All policies are measured by the mean price that they are paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.sellers import ScriptedSeller
from polyturn.agents.transformer.policy import Policy
from polyturn.benchmarks.conversations.pages import samples
from polyturn.benchmarks.conversations.setting import Experiment, Setting, Task
from polyturn.benchmarks.conversations.study import Results, Study
from polyturn.benchmarks.running.plots import BLUE, DOTS, PERCENT, VERMILLION, Dot, picture
from polyturn.benchmarks.running.reporting import compare, paired_difference, plus_minus
from polyturn.benchmarks.running.suite import table
from polyturn.envs.car_dealer.env import SCALE
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group

METHODS = ("RL", "MTPO", "RLHF-multi", "MTPO-model")
COMPARED = (
    ("RL", "SFT"),
    ("MTPO", "SFT"),
    ("MTPO", "RL"),
    ("MTPO-model", "RL"),
    ("RLHF-multi", "RL"),
    ("MTPO", "RLHF-multi"),
)
SIZES: dict[str, Any] = {
    "steps": 40, "evaluate_every": 20, "groups": 8, "group_size": 4, "lr": 3e-4, "comparisons": 240, "compared": 3,
    "fit_steps": 60, "max_tokens": 288, "duels": 80,
}  # fmt: skip
"""Where the sizes differ from those of the study of teaching: a sale is short and reveals little of how it was made, so
more sales are compared. A preference model reads every pair in both orders, so fewer of each start are compared."""


@dataclass(frozen=True)
class HigherPriceWins:
    """Prefers the conversation with the higher pay; equal pay is a tie. The size of the difference is not shown."""

    def __call__(self, group: Group) -> Preference:
        """`[K, K]` of 0, 1/2 and 1, without scores."""
        return replace(by_return(group), scores=None)


def _options(setting: Setting) -> dict[str, Any]:
    return {"turns": setting.turns}


TASK = Task("polyturn/CarDealer-v0", _options, ScriptedSeller, HigherPriceWins())


def _compare(run: Experiment, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """What each policy is paid by the same buyers."""
    result: dict[str, Any] = {}
    for name, policy in policies.items():
        groups = collect(
            run.agent(policy),
            TASK.env,
            groups=2 * run.setting.duels,
            seed=run.seed + 3_000,
            env_options=run.env_options(),
            progress=False,
        )
        valid = [group[0] for group in groups if group[0].valid]
        paid = np.array([member.total_reward for member in valid])
        result[name] = {
            "reward": float(paid.mean()),
            "half": float(1.96 * paid.std(ddof=1) / len(paid) ** 0.5),
            "sold": float((paid > 0).mean()),
            "price": float(SCALE * paid[paid > 0].mean()) if (paid > 0).any() else 0.0,
            "turns": float(np.mean([len(member.turns) for member in valid])),
            "episodes": len(valid),
            "invalid": len(groups) - len(valid),
            "samples": samples(valid),
        }
    return result


def _policies(sales: Mapping[str, Any]) -> list[str]:
    return [name for name in sales if name != "fits"]


def _samples(sales: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: sales[name]["samples"] for name in _policies(sales)}


def _findings(sales: Results, out: Path) -> list[str]:
    """What each policy earns, and the differences between policies."""
    names = _policies(sales[0])
    buyers = sum(result[names[0]]["episodes"] for result in sales) // len(sales)
    invalid = sum(result[name]["invalid"] for result in sales for name in names)
    rewards = {name: [100 * float(result[name]["reward"]) for result in sales] for name in names}
    rows = [
        [
            name,
            plus_minus(rewards[name], 1),
            plus_minus([100 * result[name]["sold"] for result in sales], 1),
            plus_minus([result[name]["price"] for result in sales], 0),
            plus_minus([result[name]["turns"] for result in sales], 1),
        ]
        for name in names
    ]
    _draw_rewards(rewards, out)
    return [
        "# car_dealer: preferences against the reward itself\n",
        "The reward is the price paid over 60,000 dollars, here in %, and 0 where nothing was sold: mean over "
        f"{len(sales)} seeds with the 95% Student interval over seeds. Each seed has {buyers} buyers, the same for all "
        f"policies; {invalid} episodes were invalid. RL maximises the reward. MTPO learns only which of two "
        "conversations earned more. RLHF-multi and MTPO-model learn from a reward model and a preference model that "
        "were fitted to comparisons of conversations of the SFT policy.\n",
        table(["policy", "reward, %", "sold, %", "price when sold, dollars", "turns"], rows),
        "\nDifferences in reward, in points:\n",
        *(f"- {compare(first, rewards[first], second, rewards[second], 1)}" for first, second in COMPARED),
        "\n![reward of each policy, and differences](rewards.svg)\n",
    ]


def _draw_rewards(rewards: Mapping[str, list[float]], out: Path) -> None:
    """Rewards as dots on the left; on the right the differences, paired by seed."""
    differences = [
        Dot(f"{first} minus {second}", paired_difference(rewards[first], rewards[second]), VERMILLION)
        for first, second in COMPARED
    ]
    with picture(out / "rewards", 1, 2, width=4.0, height=2.4, note=DOTS, share_y=False) as ((left, right),):
        left.dots([Dot(name, values, BLUE) for name, values in rewards.items()], bounds=PERCENT)
        left.words(title="what each policy earns", x="reward, %")
        right.dots(differences, zero=0)
        right.words(title="paired by seed", x="difference, points")


STUDY = Study(
    name="car_dealer",
    summary="selling by conversation: reward-based RL, online MTPO, RLHF, and MTPO with a fitted preference model",
    task=TASK,
    methods=METHODS,
    comparison="sales",
    compare=_compare,
    findings=_findings,
    samples=_samples,
    speakers=("B", "D"),
    labels="ties left out",
    sizes=SIZES,
)
SUITE = STUDY.suite()
