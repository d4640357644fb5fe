"""Suite `car_dealer`: do preferences alone teach to sell as well as the reward itself?

The claim is that of multi-turn preference optimisation (arXiv 2405.14655, Car Dealer): where there is a reward, online
MTPO, which is only told which of two conversations earned more, comes out within the interval of reward-based RL, as
does MTPO with a learned preference model; RLHF falls a little behind. Small scale: a two-layer transformer that
imitates scripted dealers of mixed quality, the scripted buyer. All are measured by the mean price they are paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.sellers import ScriptedSeller
from polyturn.benchmarks.conversations.pages import (
    conversations_shown,
    fit_rows,
    plot_histories,
    samples,
    trained,
    training_rows,
)
from polyturn.benchmarks.conversations.training import (
    QUICK,
    Setting,
    Task,
    agent,
    everybody,
    fits,
    improved,
    with_model,
)
from polyturn.benchmarks.running.reporting import compare, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group

NAMES = ("RL", "MTPO", "RLHF-multi", "MTPO-model")
SALES = "sales"
SIZES: dict[str, Any] = {
    "steps": 40, "evaluate_every": 20, "groups": 8, "group_size": 4, "lr": 3e-4, "comparisons": 240, "compared": 3,
    "fit_steps": 60, "max_tokens": 288, "duels": 80,
}  # fmt: skip
"""Where the study differs from that of lessons: a sale is short and says little about how it was made, so more of them
are compared. A preference model reads every pair in both orders, so fewer of a start are."""


@dataclass(frozen=True)
class DearerSale:
    """Whoever was paid more won; equal pay is a tie. Nobody learns by how much."""

    def __call__(self, group: Group) -> Preference:
        """`[K, K]` of 0, 1/2 and 1, without the scores behind it."""
        return replace(by_return(group), scores=None)


def _options(setting: Setting) -> dict[str, Any]:
    return {"turns": setting.turns}


TASK = Task("polyturn/CarDealer-v0", _options, ScriptedSeller, DearerSale())


def _cells(quick: bool, seeds: int) -> list[Cell]:
    setting = replace(Setting(), **(QUICK if quick else SIZES))
    options = asdict(setting)
    return [Cell(name, seed, options) for seed in range(seeds) for name in (*NAMES, SALES)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    setting = with_model(Setting(), cell.options)
    if cell.name != SALES:
        return {"history": improved(TASK, setting, cell.name, cell.seed, work)[1]}
    policies = everybody(TASK, setting, NAMES, cell.seed, work)
    result: dict[str, Any] = {"fits": fits(cell.seed, work)}
    for name, policy in policies.items():
        groups = collect(
            agent(setting, policy),
            TASK.env,
            groups=2 * setting.duels,
            seed=cell.seed + 3_000,
            env_options=TASK.options(setting),
            progress=False,
        )
        valid = [group[0] for group in groups if group[0].valid]
        paid = np.array([member.total_reward for member in valid])
        result[name] = {
            "reward": float(paid.mean()),
            "half": float(1.96 * paid.std(ddof=1) / len(paid) ** 0.5),
            "sold": float((paid > 0).mean()),
            "price": float(60_000 * paid[paid > 0].mean()) if (paid > 0).any() else 0.0,
            "turns": float(np.mean([len(member.turns) for member in valid])),
            "episodes": len(valid),
            "invalid": len(groups) - len(valid),
            "samples": samples(valid),
        }
    return result


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    sales = [o.result for o in outcomes if o.cell.name == SALES]
    names = [name for name in sales[0] if name != "fits"]

    def rewards(name: str) -> list[float]:
        return [100 * float(sale[name]["reward"]) for sale in sales]

    rows = [
        [
            name,
            plus_minus(rewards(name), 1),
            plus_minus([100 * sale[name]["sold"] for sale in sales], 1),
            plus_minus([sale[name]["price"] for sale in sales], 0),
            plus_minus([sale[name]["turns"] for sale in sales], 1),
        ]
        for name in names
    ]
    histories = trained(outcomes, but=SALES)
    plot_histories(histories, out / "curves")
    text = [
        "# car_dealer: preferences alone against the reward itself\n",
        f"Reward is the price paid over 60,000 dollars, here in %; 0 where nothing was sold. Mean over {len(sales)} "
        "seeds with the 95% Student interval over seeds; "
        f"{sum(sale[names[0]]['episodes'] for sale in sales) // len(sales)} buyers a seed, the same for all, "
        f"{sum(sale[name]['invalid'] for sale in sales for name in names)} invalid episodes. RL maximises the reward; "
        "MTPO is only told which of two conversations earned more; RLHF-multi and MTPO-model learn from a reward model "
        "and a preference model fitted to comparisons of the SFT policy's conversations.\n",
        table(["", "reward, %", "sold, %", "price when sold, dollars", "turns"], rows),
        "\nWhat the intervals carry (points of reward):\n",
        *(
            f"- {compare(first, rewards(first), second, rewards(second), 1)}"
            for first, second in (("RL", "SFT"), ("MTPO", "SFT"), ("MTPO", "RL"), ("MTPO-model", "RL"),
                                  ("RLHF-multi", "RL"), ("MTPO", "RLHF-multi"))
        ),
        "\n## Fitted models\n",
        "On held-out starts: share of pairs whose winner was predicted, ties left out, and the mean cross-entropy in "
        "nats (0.693 for a model that knows nothing).\n",
        table(["", "accuracy", "log loss"], fit_rows([sale["fits"] for sale in sales])),
        "\n## Training\n",
        "At the last step, mean over seeds: KL to the SFT policy in nats a conversation, share of the value targets' "
        "variance that the value explains, entropy of a token in nats.\n",
        table(["", "KL", "explained variance", "entropy"], training_rows(histories)),
        "\n![win rate against the SFT policy while training](curves.svg)\n",
        "## One conversation each\n",
        "The first of the first seed's; nothing was chosen by hand.\n",
        *conversations_shown({name: sales[0][name]["samples"] for name in names}, ("B", "D")),
        f"Settings: `{dict(outcomes[0].cell.options)}`\n",
    ]  # fmt: skip
    return "\n".join(text)


SUITE = Suite(
    name="car_dealer",
    summary="selling by conversation: reward-based RL, online MTPO, RLHF, and MTPO from a learned preference model",
    cells=_cells,
    run=_run,
    report=_report,
    parallel=True,
    takes_model=True,
)
