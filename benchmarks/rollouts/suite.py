"""Suite `rollouts`: CPU-seconds for 1,000 sampled tokens, by way to sample and shape of the conversations.

    OMP_NUM_THREADS=1 polyturn bench rollouts

One process and one thread measure every way on the same model and the same conversations, one after another; a seed is
another draw of the conversations' lengths. `continuous batching` reads every turn's history again, as `generate` does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polyturn.benchmarks.rollouts.ways import WAYS, measured, model, plan
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table

_OURS, _USUAL = "exact engine", "generate, read again"
# Shape, its settings, and how many times as fast as the usual way it is to be.
SHAPES: dict[str, tuple[dict[str, Any], float]] = {
    "32 conversations, 6 uneven turns, prompts of 100": (
        {"conversations": 32, "turns": 6, "prompt": 100, "group_size": 1, "sampled": [8, 48]},
        2.5,
    ),
    "16 conversations, 2 turns, prompts of 2,000 shared by 8": (
        {"conversations": 16, "turns": 2, "prompt": 2000, "group_size": 8, "sampled": [8, 48]},
        6.0,
    ),
    "8 conversations, 20 turns, prompts of 100": (
        {"conversations": 8, "turns": 20, "prompt": 100, "group_size": 1, "sampled": [8, 48]},
        4.0,
    ),
    "4 conversations, 3 turns, prompts of 100": (
        {"conversations": 4, "turns": 3, "prompt": 100, "group_size": 1, "sampled": [8, 48]},
        1.2,
    ),
    "32 conversations, 1 turn, prompts of 100": (
        {"conversations": 32, "turns": 1, "prompt": 100, "group_size": 1, "sampled": [48, 48]},
        1.0,
    ),
    "4 conversations, 1 turn, prompts of 100": (
        {"conversations": 4, "turns": 1, "prompt": 100, "group_size": 1, "sampled": [48, 48]},
        1.0,
    ),
}


def cells(quick: bool, seeds: int) -> Sequence[Cell]:
    """One cell for each shape."""
    size = {"hidden": 64, "layers": 2} if quick else {"hidden": 256, "layers": 6}
    made = []
    for seed in range(seeds):
        for shape, (options, _) in SHAPES.items():
            smaller = {"prompt": options["prompt"] // 10, "sampled": [2, 6]} if quick else {}
            made.append(Cell(shape, seed, {**options, **size, **smaller}))
    return made


def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Every way on one shape."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        policy = model(cell.options["hidden"], cell.options["layers"])
        conversations = plan(cell.options, cell.seed)
        # What is done once in a process is not measured.
        warming = plan({**cell.options, "conversations": 2, "turns": 1, "prompt": 8}, cell.seed)
        for way in WAYS:
            measured(way, policy, warming)
        return {way: measured(way, policy, conversations) for way in WAYS}
    finally:
        torch.set_num_threads(threads)


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """CPU-seconds by way and shape, medians over seeds, and the goals."""
    rows, notes = [], []
    shapes = list(dict.fromkeys(outcome.cell.name for outcome in outcomes))
    for shape in shapes:
        results = [outcome.result for outcome in outcomes if outcome.cell.name == shape]
        costs = {way: _median([result[way] for result in results]) for way in WAYS}
        ratios = [_ratio(result) for result in results]
        goal = SHAPES[shape][1]
        ratio = statistics.median(ratios)
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        met = "yes" if ratio >= goal else "NO"
        rows.append([shape, *(_shown(costs[way]) for way in WAYS), f"{ratio:.2f}{spread}", f"{goal:g}", met])
        notes += [f"- {way}, {shape}: {r[way]['failed']}" for way in WAYS for r in results[:1] if "failed" in r[way]]
    text = [
        "# Rollouts: what a sampled token costs\n",
        "CPU-seconds (user and system) for 1,000 sampled tokens, one thread, medians over seeds; `times` is the usual "
        "way's cost over the exact engine's, measured in one process one after the other, with its range over seeds.\n",
        table(["shape", *WAYS, "times", "goal", "met"], rows),
        "",
    ]
    return "\n".join([*text, *(["Not run:\n", *sorted(set(notes)), ""] if notes else [])])


def _ratio(result: Mapping[str, Any]) -> float:
    return float(result[_USUAL]["cpu_s"]) / float(result[_OURS]["cpu_s"])


def _median(found: Sequence[Mapping[str, Any]]) -> float | None:
    values = [float(each["cpu_s"]) for each in found if "cpu_s" in each]
    return statistics.median(values) if values else None


def _shown(value: float | None) -> str:
    return "not run" if value is None else f"{value:.2f}"


SUITE = Suite("rollouts", "what a sampled token costs, by engine and shape of the conversations", cells, run, report)
