"""Suite `tool_math`: does multi-turn preference learning teach a policy to use its tool, and which parts matter?

The claim of multi-turn iterative preference learning (arXiv 2409.02392): M-DPO and M-KTO on whole trajectories beat the
supervised policy that they start from; masking the tool's output, updating the reference with the iterations, and
comparing all turns help. Small scale: a two-layer transformer trained from random weights, generated word problems, an
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

import numpy as np
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
from polyturn.benchmarks.running.plots import BLUE, DOTS, PERCENT, RUNS, VERMILLION, Dot, picture
from polyturn.benchmarks.running.reporting import plus_minus, side_of_zero
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
        layers: Layers of the transformer.
        sft_steps: Updates of the warm start.
        sft_lr: Highest learning rate of the warm start.
        iterations: Iterations of the preference protocol.
        groups: Problems in an iteration.
        group_size: Trajectories of each problem.
        from_previous: How many of them the previous policy samples.
        pairs: Pairs of each problem.
        epochs: Passes over the examples of an iteration.
        batch_size: Problems in an update.
        lr: Learning rate of the preference updates.
        beta: Weight of the reference (beta of the losses).
        held_out: Problems of the evaluation, which training does not contain.
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
        """Problems of the demonstrations and of training."""
        return word_problems(self.level, split="train", seed=seed, size=self.demonstrations)

    def test_problems(self, seed: int) -> Problems:
        """Problems of the evaluation, from another split."""
        return word_problems(self.level, split="test", seed=seed, size=self.held_out)


QUICK = Setting(level=1, demonstrations=1000, sft_steps=120, iterations=1, groups=24, held_out=60)


@dataclass(frozen=True)
class Variant:
    """One of the compared methods.

    Attributes:
        method: From the setting to the method.
        reference: The reference of the log-ratios: the policy before the iteration, or the first policy.
        lr_scale: Factor of the setting's learning rate. A likelihood loss needs larger steps than a margin.
        iterations: At most this many; an ablation is compared before the figures level off.
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
    # Both at both rates, because a gap between two methods at different rates may be one between the rates.
    "RAFT at M-DPO's rate": Variant(lambda _: RAFT()),
    "M-DPO at RAFT's rate": Variant(_mdpo(), lr_scale=3.0),
    "M-KTO at RAFT's rate": Variant(
        lambda setting: MKTO(beta=setting.beta, pairs_per_group=setting.pairs), lr_scale=3.0
    ),
}
"""The compared methods by their names in the tables."""

MAX_TOKENS = 384
TRAINING: Mapping[str, Any] = {
    "optimizer": partial(torch.optim.AdamW, betas=(0.9, 0.98)),
    "tokens_per_micro_batch": 4096,
    "cpu": True,
}


def supervised(setting: Setting, seed: int, folder: Path, *, progress: bool = False) -> tuple[Policy, Report]:
    """The policy that imitates the demonstrator, and the demonstrator's own success; made once in each folder."""
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
    # A small transformer that imitates the demonstrations.
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
    """Held-out success of a policy, one episode for each problem."""
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
    """Runs the protocol for one variant; each evaluation has a "sampled" and a "greedy" report.

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
    """Copies the episodes of the first iteration, which all variants sample from the same SFT policy and seed."""
    if (done / "iteration-1" / "done.json").is_file() and not (mine / "iteration-1").exists():
        (mine / "iteration-1").mkdir(parents=True)
        shutil.copy(done / "iteration-1" / "trajectories.jsonl", mine / "iteration-1")


# The report.

Variants = Mapping[str, Sequence[Outcome]]
"""The outcomes of all seeds by variant."""


DECODINGS = ("sampled", "greedy")
"""At temperature 1, and greedily, which is the paper's measure."""


def _success(outcome: Outcome, decoding: str = "sampled") -> list[float]:
    """Held-out success in %: of the SFT policy and after each iteration."""
    return [100 * record["evaluation"][decoding]["success"]["value"] for record in outcome.result["iterations"]]


def _over_seeds(runs: Sequence[Outcome], decoding: str, figure: str) -> list[str]:
    """A figure in %, with its interval over seeds: of the SFT policy and after each iteration."""
    cells = []
    for number in range(len(runs[0].result["iterations"])):
        found = [run.result["iterations"][number]["evaluation"][decoding][figure] for run in runs]
        cells.append(plus_minus([100 * (f["value"] if isinstance(f, Mapping) else f) for f in found], 1))
    return cells


def _differences(variants: Variants, decoding: str) -> dict[str, tuple[int, list[float]]]:
    """The last iteration of each variant, and M-DPO minus the variant there in points, one a seed."""
    base = {outcome.cell.seed: _success(outcome, decoding) for outcome in variants.get("M-DPO", ())}
    found = {}
    for variant, runs in variants.items():
        last = len(runs[0].result["iterations"]) - 1
        gaps = [
            base[run.cell.seed][last] - _success(run, decoding)[last]
            for run in runs
            if len(base.get(run.cell.seed, ())) > last
        ]
        if variant != "M-DPO" and gaps:
            found[variant] = (last, gaps)
    return found


def _difference_section(variants: Variants) -> list[str]:
    """M-DPO minus each other variant: what the ablations show."""
    says = {"above": "M-DPO better", "below": "M-DPO worse", "open": "not distinguishable"}
    found = {decoding: _differences(variants, decoding) for decoding in DECODINGS}
    rows = []
    for variant, (last, gaps) in found["sampled"].items():
        row: list[object] = [variant, last, len(gaps)]
        for decoding in DECODINGS:
            values = found[decoding][variant][1]
            row += [plus_minus(values, 1), says[side_of_zero(*mean_interval(values)[1:])]]
        rows.append(row)
    if not rows:
        return []
    return [
        "\nM-DPO minus the other method, in points, paired by seed, after the same iteration. Greedy decoding is the "
        "paper's measure; sampled success also asks how sure the policy is of what it knows:\n",
        table(["", "iteration", "seeds", "sampled", "95% interval says", "greedy", "95% interval says"], rows),
        "\n![M-DPO minus the other methods](differences.svg)",
    ]


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    variants: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        variants.setdefault(outcome.cell.name, []).append(outcome)
    longest = max(len(outcome.result["iterations"]) for outcome in outcomes)
    steps = ["SFT", *(f"iteration {number}" for number in range(1, longest))]

    def padded(cells: Sequence[str]) -> list[str]:
        return [*cells, *[""] * (longest - len(cells))]

    sampled = [
        [name, *padded(_over_seeds(runs, "sampled", "success")), _over_seeds(runs, "sampled", "tool_errors")[-1]]
        for name, runs in variants.items()
    ]
    greedy = [[name, *padded(_over_seeds(runs, "greedy", "success"))] for name, runs in variants.items()]
    each_seed = [
        [o.cell.name, o.cell.seed, *padded([_wilson(r["evaluation"]["sampled"]) for r in o.result["iterations"]])]
        for o in outcomes
    ]
    demonstrators = {o.cell.seed: o.result["demonstrator"]["success"]["value"] for o in outcomes}
    solved = ", ".join(f"{100 * value:.1f}%" for value in demonstrators.values())
    problems = outcomes[0].result["iterations"][0]["evaluation"]["sampled"]["success"]["trials"]
    text = [
        "# tool_math: multi-turn preference learning with a tool\n",
        f"Held-out success in %, sampled at temperature 1, one episode for each of {problems} problems in each seed; "
        f"mean over {len(demonstrators)} seeds with the 95% Student interval over seeds. The demonstrator that the SFT "
        f"policy imitates solves {solved} of its own problems. Tool errors: share of episodes with a failed program, "
        "after the last iteration.\n",
        table(["", *steps, "tool errors"], sampled),
        "\nThe same with greedy decoding:\n",
        table(["", *steps], greedy),
        *_difference_section(variants),
        "\n## Each seed\n",
        table(["", "seed", *steps], each_seed),
        "\nBrackets: 95% Wilson intervals over problems.\n",
        "![learning curves](curves.svg)\n",
        "Settings: `" + json.dumps(dict(outcomes[0].cell.options)) + "`\n",
    ]
    _draw_curves(variants, out)
    _draw_differences(variants, out)
    return "\n".join(text)


def _wilson(found: Mapping[str, Any]) -> str:
    success = found["success"]
    return f"{100 * success['value']:.1f} [{100 * success['low']:.1f}, {100 * success['high']:.1f}]"


def _draw_curves(variants: Variants, out: Path) -> None:
    """One panel a method: success over iterations; the other methods' means in grey."""
    success = {name: np.array([_success(run) for run in runs]) for name, runs in variants.items()}
    note = f"{RUNS} Grey: the other methods."
    with picture(out / "curves", 1, len(variants), width=2.2, height=2.3, note=note) as (row,):
        for panel, (name, values) in zip(row, success.items(), strict=True):
            for other in success.values():
                panel.context(range(other.shape[1]), other.mean(axis=0).tolist())
            panel.curve(range(values.shape[1]), values, colour=BLUE, bounds=PERCENT)
            panel.words(title=name, x="iteration", y="held-out success, %" if panel is row[0] else "")
            longest = max(other.shape[1] for other in success.values())
            panel.axes.set_xticks(range(longest), ["SFT", *map(str, range(1, longest))])
        row[0].limits(y=PERCENT)


def _draw_differences(variants: Variants, out: Path) -> None:
    found = [_differences(variants, decoding) for decoding in DECODINGS]
    if not found[0]:
        return
    with picture(out / "differences", 1, 2, width=4.2, height=0.9 + 0.26 * len(found[0]), note=DOTS) as (row,):
        for panel, decoding, differences in zip(row, DECODINGS, found, strict=True):
            panel.dots(
                [Dot(f"{name}, iteration {last}", gaps, VERMILLION) for name, (last, gaps) in differences.items()],
                bounds=(-100, 100),
                zero=0,
            )
            panel.words(title=f"M-DPO minus the other method, {decoding}", x="held-out success, points")


SUITE = Suite(
    name="tool_math",
    summary="multi-turn preference learning with a tool: M-DPO, M-KTO, RAFT and the paper's ablations",
    cells=_cells,
    run=_run,
    report=_report,
)
