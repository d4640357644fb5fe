"""Suite `tool_math`: does multi-turn preference learning teach a policy to use its tool, and which parts matter?

The claim is that of multi-turn iterative preference learning (arXiv 2409.02392): M-DPO and M-KTO on whole trajectories
beat the supervised policy they start from; masking what the tool says, moving the reference with the iterations, and
looking at all turns help. Small scale: a two-layer transformer trained from scratch, generated word problems, an
imperfect demonstrator to imitate, the real environment and sandbox.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.scripted.demonstrator import Demonstrator
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.methods.base import GroupMethod
from polyturn.algorithms.methods.imitation import RAFT
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.methods.unpaired import MKTO
from polyturn.algorithms.protocols.evaluate import Report, evaluate, report
from polyturn.algorithms.protocols.iterate import Iteration, iterate
from polyturn.algorithms.protocols.warmup import imitation_options, warm_start
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, mean_interval, table, write_json
from polyturn.envs.store import Store
from polyturn.envs.tool_math.problems import Problems
from polyturn.envs.tool_math.word_problems import word_problems

ENV = "polyturn/ToolMath-v0"


@dataclass(frozen=True)
class Setting:
    """Sizes of the study.

    Attributes:
        level: Difficulty of the generated problems.
        demonstrations: Conversations to imitate.
        hidden: Width of the transformer.
        layers: Its layers.
        sft_steps: Updates of the warm start.
        sft_lr: Its highest learning rate.
        iterations: Of the preference protocol.
        groups: Problems per iteration.
        group_size: Trajectories per problem.
        from_previous: Of these, by the previous policy.
        pairs: Pairs per problem.
        epochs: Passes over an iteration's examples.
        batch_size: Problems per update.
        lr: Learning rate of the preference updates.
        beta: Strength of the pull to the reference.
        held_out: Problems of the evaluation, never seen in training.
        sandbox: Kind of sandbox.
    """

    level: int = 2
    demonstrations: int = 4000
    hidden: int = 128
    layers: int = 2
    sft_steps: int = 600
    sft_lr: float = 3e-3
    iterations: int = 3
    groups: int = 128
    group_size: int = 8
    from_previous: int = 2
    pairs: int = 4
    epochs: float = 2.0
    batch_size: int = 16
    lr: float = 1e-4
    beta: float = 0.3
    held_out: int = 300
    sandbox: str = "auto"

    def options(self, problems: Problems) -> dict[str, Any]:
        """The environment's options for these problems."""
        return {"problems": problems, "prompt": "plain", "max_turns": 4, "sandbox": self.sandbox}

    def train_problems(self, seed: int) -> Problems:
        """Problems to demonstrate and to learn from."""
        return word_problems(self.level, split="train", seed=seed, size=self.demonstrations)

    def test_problems(self, seed: int) -> Problems:
        """Problems that training cannot have seen."""
        return word_problems(self.level, split="test", seed=seed, size=self.held_out)


QUICK = Setting(level=1, demonstrations=1000, sft_steps=120, iterations=1, groups=24, held_out=60)


@dataclass(frozen=True)
class Variant:
    """One of the compared ways to learn.

    Attributes:
        method: From the setting to the method.
        reference: What the log-ratios are taken to.
        lr_scale: Times the setting's learning rate. Likelihood alone bears, and needs, larger steps than a margin.
        iterations: At most this many; an ablation is compared before the figures flatten out.
    """

    method: Callable[[Setting], GroupMethod]
    reference: Literal["previous", "first"] = "previous"
    lr_scale: float = 1.0
    iterations: int = 1


def _mdpo(**changes: Any) -> Callable[[Setting], GroupMethod]:
    return lambda setting: MDPO(beta=setting.beta, pairs_per_group=setting.pairs, **changes)


VARIANTS: dict[str, Variant] = {
    "M-DPO": Variant(_mdpo(), iterations=3),
    "M-KTO": Variant(lambda setting: MKTO(beta=setting.beta, pairs_per_group=setting.pairs), iterations=2),
    "RAFT": Variant(lambda _: RAFT(), lr_scale=3.0),
    "last-turn DPO": Variant(_mdpo(turns="last")),
    "unmasked M-DPO": Variant(_mdpo(mask="all")),
    "fixed reference M-DPO": Variant(_mdpo(), reference="first", iterations=2),
}
"""What is compared, by the name in the tables."""

MAX_TOKENS = 384
TRAINING: Mapping[str, Any] = {
    "optimizer": partial(torch.optim.AdamW, betas=(0.9, 0.98)),
    "tokens_per_micro_batch": 4096,
    "cpu": True,
}


def supervised(setting: Setting, seed: int, folder: Path, *, progress: bool = False) -> tuple[Policy, Report]:
    """The policy that imitates the demonstrator, and how good the demonstrator is; made once per folder."""
    note = folder / "demonstrator.json"
    train_problems = setting.train_problems(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with Store(folder / "demonstrations.jsonl") as store:
        groups = collect(
            Demonstrator(train_problems),
            ENV,
            tasks=range(len(train_problems)),
            seed=seed,
            env_options=setting.options(train_problems),
            store=store,
            progress=progress,
            label="demonstrations",
        )
    found = report(groups)
    if not note.is_file():
        trajectories = [group[0] for group in groups]
        texts = [turn.observation + turn.action for t in trajectories[:500] for turn in t.turns]
        policy = tiny_policy(texts, seed=seed, hidden=setting.hidden, layers=setting.layers)
        warm_start(
            policy,
            trajectories,
            steps=setting.sft_steps,
            options=imitation_options(
                setting.sft_steps, lr=setting.sft_lr, save_every=max(1, setting.sft_steps // 4), keep=1, **TRAINING
            ),
            seed=seed,
            out=folder / "train",
            resume=True,
            progress=progress,
        )
        policy.save_pretrained(folder / "policy")
        write_json(note, found.to_json())
    return Policy.from_pretrained(folder / "policy", device="cpu"), found


def measure(
    setting: Setting, policy: Policy, seed: int, *, temperature: float = 1.0, store: Store | None = None
) -> Report:
    """Held-out success of a policy, one episode a problem."""
    problems = setting.test_problems(seed)
    sampling = Sampling(temperature=temperature, max_new_tokens=96)
    return evaluate(
        TransformerAgent(policy, sampling=sampling, max_tokens=MAX_TOKENS),
        ENV,
        tasks=range(len(problems)),
        seed=seed + 1,
        env_options=setting.options(problems),
        store=store,
        progress=False,
    )


def learn(
    setting: Setting, variant: str, seed: int, policy: Policy, folder: Path, *, progress: bool = False
) -> list[Iteration]:
    """Runs the protocol for one variant; evaluations hold a "sampled" and a "greedy" report.

    The sampled held-out episodes of each policy are kept in `held-out/VERSION.jsonl` under `folder`.
    """
    chosen = VARIANTS[variant]
    problems = setting.train_problems(seed)

    def scores(candidate: Policy) -> dict[str, Any]:
        (folder / "held-out").mkdir(exist_ok=True)
        with Store(folder / "held-out" / f"{candidate.version}.jsonl", fsync="never") as store:
            sampled = measure(setting, candidate, seed, store=store)
        return {
            "sampled": sampled.to_json(),
            "greedy": measure(setting, candidate, seed, temperature=0.0).to_json(),
        }

    return iterate(
        chosen.method(setting),
        policy,
        ENV,
        out=folder,
        iterations=setting.iterations,
        collect=CollectOptions(
            groups=setting.groups,
            group_size=setting.group_size,
            tasks=range(len(problems)),
            env_options=setting.options(problems),
            sampling=Sampling(max_new_tokens=96),
            max_tokens=MAX_TOKENS,
        ),
        from_previous=setting.from_previous,
        reference=chosen.reference,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        evaluate=scores,
        seed=seed,
        progress=progress,
        options=TrainOptions(lr=setting.lr * chosen.lr_scale, warmup=2, **TRAINING),
    )


def _cells(quick: bool, seeds: int) -> list[Cell]:
    setting = QUICK if quick else Setting()
    return [
        Cell(name, seed, asdict(replace(setting, iterations=min(setting.iterations, variant.iterations))))
        for name, variant in VARIANTS.items()
        for seed in range(seeds)
    ]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    setting = replace(Setting(), **cell.options)
    policy, demonstrator = supervised(setting, cell.seed, work / f"sft-seed{cell.seed}")
    _share_first_episodes(work / f"M-DPO-seed{cell.seed}", work / cell.key)
    records = learn(setting, cell.name, cell.seed, policy, work / cell.key)
    return {"demonstrator": demonstrator.to_json(), "iterations": [asdict(record) for record in records]}


def _share_first_episodes(done: Path, mine: Path) -> None:
    """The first iteration's episodes come from the same SFT policy and seed in every variant: sampled once."""
    if (done / "iteration-1" / "done.json").is_file() and not (mine / "iteration-1").exists():
        (mine / "iteration-1").mkdir(parents=True)
        shutil.copy(done / "iteration-1" / "trajectories.jsonl", mine / "iteration-1")


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    by_variant: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_variant.setdefault(outcome.cell.name, []).append(outcome)
    longest = max(len(outcome.result["iterations"]) for outcome in outcomes)
    rows, greedy_rows, curves = [], [], {}
    for variant, runs in by_variant.items():
        curves[variant] = _over_seeds(runs, "sampled", "success")
        rows.append(
            [variant, *_padded(curves[variant], longest), _cell(*_over_seeds(runs, "sampled", "tool_errors")[-1])]
        )
        greedy_rows.append([variant, *_padded(_over_seeds(runs, "greedy", "success"), longest)])
    steps = ["SFT", *(f"iteration {number}" for number in range(1, longest))]
    demonstrators = {o.cell.seed: o.result["demonstrator"]["success"]["value"] for o in outcomes}
    shown = ", ".join(f"{100 * value:.1f}%" for value in demonstrators.values())
    held = outcomes[0].result["iterations"][0]["evaluation"]["sampled"]["success"]["trials"]
    text = [
        "# tool_math: multi-turn preference learning with a tool\n",
        f"Held-out success in %, sampled at temperature 1, one episode on each of {held} problems a seed; mean over "
        f"{len(demonstrators)} seeds with the 95% Student interval over seeds. The demonstrator that the SFT policy "
        f"imitates solves {shown} of its own problems. Tool errors: share of episodes with a failed program, after the "
        "last iteration.\n",
        table(["", *steps, "tool errors"], rows),
        "\nThe same, decoded greedily:\n",
        table(["", *steps], greedy_rows),
        *_differences(by_variant),
        "\n## Each seed\n",
        table(
            ["", "seed", *steps],
            [
                [
                    outcome.cell.name,
                    outcome.cell.seed,
                    *_filled([_wilson(r["evaluation"]["sampled"]) for r in outcome.result["iterations"]], longest),
                ]
                for outcome in outcomes
            ],
        ),
        "\nBrackets: 95% Wilson intervals over problems.\n",
        "![learning curves](curves.svg)\n",
        "Settings: `" + json.dumps(dict(outcomes[0].cell.options)) + "`\n",
    ]
    plot_curves(curves, out / "curves")
    return "\n".join(text)


def _differences(by_variant: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """M-DPO minus each other variant after the same iteration, paired by seed: what the ablations show."""
    if "M-DPO" not in by_variant:
        return []
    base = {outcome.cell.seed: outcome.result["iterations"] for outcome in by_variant["M-DPO"]}
    rows = []
    for variant, runs in by_variant.items():
        last = len(runs[0].result["iterations"]) - 1
        pairs = [(base[run.cell.seed], run.result["iterations"]) for run in runs if run.cell.seed in base]
        if variant == "M-DPO" or not pairs:
            continue
        gaps = [
            100
            * (
                mine[last]["evaluation"]["sampled"]["success"]["value"]
                - other[last]["evaluation"]["sampled"]["success"]["value"]
            )
            for mine, other in pairs
            if len(mine) > last
        ]
        mean, low, high = mean_interval(gaps)
        verdict = "M-DPO better" if low > 0 else "M-DPO worse" if high < 0 else "not told apart"
        rows.append([variant, last, _cell(mean, low, high), len(gaps), verdict])
    if not rows:
        return []
    return [
        "\nM-DPO minus the other, in points, paired by seed, after the same iteration:\n",
        table(["", "iteration", "difference", "seeds", "95% interval says"], rows),
    ]


def _over_seeds(runs: Sequence[Outcome], decoding: str, figure: str) -> list[tuple[float, float, float]]:
    """Mean and interval over seeds of a figure in %, for SFT and each iteration."""
    result = []
    for number in range(len(runs[0].result["iterations"])):
        found = [run.result["iterations"][number]["evaluation"][decoding][figure] for run in runs]
        result.append(mean_interval([100 * (f["value"] if isinstance(f, Mapping) else f) for f in found]))
    return result


def _padded(curve: Sequence[tuple[float, float, float]], length: int) -> list[str]:
    return _filled([_cell(*point) for point in curve], length)


def _filled(cells: Sequence[str], length: int) -> list[str]:
    return [*cells, *[""] * (length - len(cells))]


def plot_curves(curves: Mapping[str, Sequence[tuple[float, float, float]]], stem: Path) -> None:
    """Draws success against iteration, one line a variant, to `stem.png` and `stem.svg`."""
    from polyturn.benchmarks.running.plots import figure, save

    with figure(6.5, 4) as (canvas, axes):
        for variant, curve in curves.items():
            x = range(len(curve))
            line = axes.plot(x, [mean for mean, _, _ in curve], marker="o", label=variant)[0]
            if all(high - low < 100 for _, low, high in curve):
                axes.fill_between(
                    x, [low for _, low, _ in curve], [high for _, _, high in curve], alpha=0.12, color=line.get_color()
                )
        longest = max(len(curve) for curve in curves.values())
        axes.set_xticks(range(longest), ["SFT", *map(str, range(1, longest))])
        axes.set(xlabel="iteration", ylabel="held-out success, %", ylim=(0, 100))
        axes.legend(loc="lower right", frameon=False)
        save(canvas, stem)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.1f} ± {(high - low) / 2:.1f}" if high - low < 1e3 else f"{mean:.1f}"


def _wilson(found: Mapping[str, Any]) -> str:
    success = found["success"]
    return f"{100 * success['value']:.1f} [{100 * success['low']:.1f}, {100 * success['high']:.1f}]"


SUITE = Suite(
    name="tool_math",
    summary="multi-turn preference learning with a tool: M-DPO, M-KTO, RAFT and the paper's ablations",
    cells=_cells,
    run=_run,
    report=_report,
)
