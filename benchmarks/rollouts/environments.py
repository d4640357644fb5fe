"""Suite `environments`: turns a CPU-second by environment, beside Gymnasium's own in the same process.

    OMP_NUM_THREADS=1 polyturn bench environments

No model acts: the lines said are fixed. `seeded once` resets every episode without a seed after the first; `every
episode seeded` gives each a seed of its own, so that a NumPy generator is made for each; `seeds shared by 8` gives each
seed to eight episodes, as `collect` does with the members of a group. A seed of the suite is one pass over everything;
the report gives medians over passes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.envs import BanditVector, make

_ONCE, _EVERY, _GROUPS = "seeded once", "every episode seeded", "seeds shared by 8"


class BareText(gymnasium.Env[str, str]):
    """The least that Gymnasium asks of a text environment: one fixed question, one turn, no reward, nothing drawn."""

    observation_space = gymnasium.spaces.Text(100)
    action_space = gymnasium.spaces.Text(100)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks."""
        super().reset(seed=seed)
        return "Write a number.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Ends the episode."""
        return "Thanks.", 0.0, True, False, {}


class DrawingText(BareText):
    """`BareText` with one number drawn at each reset, which is what a bandit's context takes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks, with a number."""
        super().reset(seed=seed)
        return f"Context {int(self.np_random.integers(100))}. Write a number.", {}


PEER = "Gymnasium: a text environment that draws one number"
_SELLING = (
    "Hello! What kind of car are you looking for?", "This one has every feature you want. It costs $40,000.",
    "It is safe, new and saves fuel.", "I can give it to you for $30,000.", "My last offer: $22,000.",
)  # fmt: skip
_TEACHING = (
    "What do you know about this topic?", "Let me explain the main idea with an example.",
    "Can you say it in your words?", "Well done! Here is an exercise for you.", "Let us sum up what we learned today.",
)  # fmt: skip
ONE_BY_ONE: dict[str, tuple[Callable[[], Any], Sequence[Any], float | None]] = {
    "Gymnasium: the least text environment": (BareText, ("12",), None),
    PEER: (DrawingText, ("12",), None),
    "Gymnasium: Blackjack-v1": (lambda: gymnasium.make("Blackjack-v1", disable_env_checker=True), (0,), None),
    "Bandit": (lambda: make("polyturn/Bandit-v0"), ("I choose arm 12.",), 200e3),
    "PairedBandit": (lambda: make("polyturn/PairedBandit-v0"), ("1 against 2",), 200e3),
    "MatrixGame": (lambda: make("polyturn/MatrixGame-v0"), ("rock",), None),
    "TabularGame": (lambda: make("polyturn/TabularGame-v0"), ("1",), None),
    "TokenBandit": (lambda: make("polyturn/TokenBandit-v0"), ("1 2 3 4 5 6 7 8 9",), None),
    "Guess": (lambda: make("polyturn/Guess-v0"), ("5", "2", "8"), None),
    "CarDealer": (lambda: make("polyturn/CarDealer-v0"), _SELLING, 20e3),
    "EducationDialogue": (lambda: make("polyturn/EducationDialogue-v0"), _TEACHING, 20e3),
}
"""What is played, the lines said in turn, and the turns a CPU-second that are the goal."""
TOGETHER: dict[str, tuple[Callable[[int], VectorEnv[Any, Any, Any]], Callable[[int], Any], float | None]] = {
    "Gymnasium: SyncVectorEnv of that text environment": (
        lambda n: SyncVectorEnv([DrawingText] * n, autoreset_mode=AutoresetMode.SAME_STEP),
        lambda n: ["12"] * n,
        None,
    ),
    "BanditVector": (BanditVector, lambda n: np.full(n, 12), 1e6),
}
"""Vector environments by their number of members, their actions, and the goal."""


def cells(quick: bool, seeds: int) -> Sequence[Cell]:
    """One cell for each pass."""
    options = {"turns": 300 if quick else 20_000, "widths": [4] if quick else [16, 256, 4096]}
    return [Cell("all environments", seed, options) for seed in range(seeds)]


def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Turns a CPU-second of everything, one after the other."""
    turns, first = cell.options["turns"], cell.seed * 1_000_000
    found: dict[str, dict[str, float]] = {}
    for name, (made, lines, _) in ONE_BY_ONE.items():
        env = made()
        one_by_one(env, lines, turns // 10, first, share=1)  # what is done once in a process is not measured
        found[name] = {
            _ONCE: one_by_one(env, lines, turns, first, share=None),
            _EVERY: one_by_one(env, lines, turns, first + turns, share=1),
            _GROUPS: one_by_one(env, lines, turns, first + 4 * turns, share=8),
        }
    for name, (vector, actions, _) in TOGETHER.items():
        for width in cell.options["widths"]:
            found[f"{name}, {width:,} at once"] = {
                _ONCE: together(vector(width), actions(width), max(turns, 20 * width), first)
            }
    started = time.process_time()
    for seed in range(first, first + turns):
        seeding.np_random(seed)
    found["a generator"] = {"us": (time.process_time() - started) / turns * 1e6}
    return found


def one_by_one(env: Any, lines: Sequence[Any], turns: int, first: int, *, share: int | None) -> float:
    """Turns a CPU-second of episodes one after the other, their resets included.

    Args:
        env: The environment.
        lines: What is said, in turn.
        turns: How many at least.
        first: The first seed.
        share: How many episodes have the same seed; None seeds the first one only.
    """
    env.reset(seed=first)
    played = episode = 0
    started = time.process_time()
    while played < turns:
        env.reset(seed=None if share is None else first + 1 + episode // share)
        episode += 1
        done = False
        while not done:
            _, _, ended, cut, _ = env.step(lines[played % len(lines)])
            played += 1
            done = ended or cut
    return played / (time.process_time() - started)


def together(vector: VectorEnv[Any, Any, Any], actions: Any, turns: int, first: int) -> float:
    """Turns a CPU-second of a vector environment whose members begin a new episode by themselves."""
    vector.reset(seed=first)
    started = time.process_time()
    steps = -(-turns // vector.num_envs)
    for _ in range(steps):
        vector.step(actions)
    return steps * vector.num_envs / (time.process_time() - started)


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Medians over the passes, and the goals."""
    results = [outcome.result for outcome in outcomes]
    goals = {name: goal for name, (*_, goal) in ONE_BY_ONE.items()}
    rows = []
    for name in (name for name in results[0] if name != "a generator"):
        ratios = [result[name][_ONCE] / result[PEER][_ONCE] for result in results]
        goal = goals[name] if name in goals else TOGETHER[name.split(",")[0]][2]
        once = statistics.median(result[name][_ONCE] for result in results)
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        met = ["", ""] if goal is None else [_thousands(goal), "yes" if once >= goal else "NO"]
        shown = [_thousands(once)]
        for column in (_EVERY, _GROUPS):
            found = [result[name][column] for result in results if column in result[name]]
            shown.append(_thousands(statistics.median(found)) if found else "")
        rows.append([name, *shown, f"{statistics.median(ratios):.2f}{spread}", *met])
    generator = statistics.median(result["a generator"]["us"] for result in results)
    return "\n".join(
        [
            "# Environments: turns a CPU-second\n",
            "Thousands of turns a CPU-second (user and system), resets included, one thread, medians of "
            f"{len(results)} passes in one process; `times` is `{_ONCE}` over the same of `{PEER}`, with its range "
            f"over passes. Goals are held against `{_ONCE}`.\n",
            table(["environment", _ONCE, _EVERY, _GROUPS, "times", "goal", "met"], rows),
            "",
            f"Gymnasium takes {generator:.1f} us of CPU to make a generator from a seed (`np_random`).",
            "",
        ]
    )


def _thousands(value: float) -> str:
    return f"{value / 1000:,.0f}"


SUITE = Suite("environments", "turns a CPU-second by environment, beside Gymnasium's own", cells, run, report, seeds=5)
"""Suite `environments`: turns a CPU-second by environment, beside Gymnasium's own."""
