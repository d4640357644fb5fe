"""A seeded generator of multi-step arithmetic word problems, so that nothing needs a download.

A problem is a chain of steps on one running number, written as a story. Its *signature* is only the chain: the
operations and their numbers, without names, things and wording. Training and test problems cannot overlap, however
many are drawn and whatever the seeds: a signature's hash says to which split it belongs, and a draw that belongs to
the other split is thrown away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polyturn.envs.tool_math.problem_set import Problem, Problems
from polyturn.envs.tool_math.story import PEOPLE, THINGS, ask, sentence

Step = list[str | int]
"""An operation's name and its numbers, for example `["add", 5]`; the first step of a chain is `["set", n]`."""

OPERATIONS: dict[str, str] = {
    "set": "{0}",
    "add": "x + {0}",
    "sub": "x - {0}",
    "mul": "x * {0}",
    "div": "x // {0}",
    "add_groups": "x + {0} * {1}",
    "sub_groups": "x - {0} * {1}",
    "percent_off": "x - x * {0} // 100",
    "percent_more": "x + x * {0} // 100",
    "add_times": "x + {0} * x",
    "add_more": "x + (x + {0})",
}
"""What each operation makes of the running number `x`, as Python. Divisions are exact in every problem drawn."""


@dataclass(frozen=True)
class _Level:
    steps: tuple[int, int]
    """Fewest and most operations after the first number."""
    largest: int
    """Bound of every running number."""
    operand: int
    """Bound of what is added or taken away at once."""
    middle: tuple[str, ...]
    final: tuple[str, ...]
    """Operations that may only come last, because they change what is asked."""


_LEVELS = {
    1: _Level((2, 2), 99, 30, ("add", "sub"), ()),
    2: _Level((2, 3), 120, 40, ("add", "sub", "mul", "add_groups"), ()),
    3: _Level((3, 4), 400, 60, ("add", "sub", "mul", "div", "add_groups", "sub_groups"), ("mul_price", "div_share")),
    4: _Level(
        (4, 6),
        2000,
        90,
        ("add", "sub", "mul", "div", "add_groups", "sub_groups", "percent_off", "percent_more"),
        ("mul_price", "div_share", "add_times", "add_more"),
    ),
}
LEVELS = tuple(_LEVELS)
"""Levels there are. 1: two additions or subtractions. 2: two or three steps, also multiplications and groups. 3: three
or four, also exact divisions, prices, shares. 4: four to six, also percentages and comparisons of two people."""

_TEST_SHARE = 5
"""One signature in this many belongs to the test split."""


def word_problems(level: int, *, split: Literal["train", "test"], seed: int = 0, size: int) -> Problems:
    """Draws problems; number i depends on (seed, split, level, i) only, never on how many are drawn.

    Every running number and every answer is a positive integer, and every division is exact.

    Args:
        level: One of `LEVELS`.
        split: Which side of the division by signature; the two share no signature at any seed.
        seed: Not negative.
        size: How many.

    Returns:
        Problems with ids "generated/LEVEL/SEED/SPLIT/i" and `info["steps"]`, a list of `Step`: `run_steps` gives
        the answer, `OPERATIONS` the Python of each step.

    Raises:
        ValueError: Unknown level or split, or a negative seed or size.
    """
    if level not in _LEVELS:
        raise ValueError(f"word_problems: expected a level among {', '.join(map(str, LEVELS))}, got {level!r}")
    if split not in ("train", "test"):
        raise ValueError(f'word_problems: expected split "train" or "test", got {split!r}')
    if seed < 0 or size < 0:
        raise ValueError(f"word_problems: expected seed >= 0 and size >= 0, got seed {seed} and size {size}")
    drawn = (_problem(level, split, seed, index) for index in range(size))
    return Problems(drawn, name=f"generated/{level}/{split}")


def signature_split(steps: Sequence[Sequence[str | int]]) -> Literal["train", "test"]:
    """The split a chain of steps belongs to: a function of the chain and of nothing else."""
    digest = hashlib.sha256(json.dumps([list(step) for step in steps]).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % _TEST_SHARE == 0 else "train"


def run_steps(steps: Sequence[Sequence[str | int]]) -> int:
    """The number a chain ends with.

    Raises:
        ValueError: An operation that is not in `OPERATIONS`.
    """
    x = 0
    for name, *numbers in steps:
        if name not in OPERATIONS:
            raise ValueError(f"run_steps: unknown operation {name!r}; known: {', '.join(OPERATIONS)}")
        x = _apply(str(name), x, [int(number) for number in numbers])
    return x


def _apply(name: str, x: int, n: list[int]) -> int:
    match name:
        case "set":
            return n[0]
        case "add":
            return x + n[0]
        case "sub":
            return x - n[0]
        case "mul":
            return x * n[0]
        case "div":
            return x // n[0]
        case "add_groups":
            return x + n[0] * n[1]
        case "sub_groups":
            return x - n[0] * n[1]
        case "percent_off":
            return x - x * n[0] // 100
        case "percent_more":
            return x + x * n[0] // 100
        case "add_times":
            return x + n[0] * x
        case _:
            return x + (x + n[0])


def _problem(level: int, split: Literal["train", "test"], seed: int, index: int) -> Problem:
    rng = np.random.default_rng([seed, level, ("train", "test").index(split), index])
    while True:
        chain = _chain(_LEVELS[level], rng)
        steps: list[Step] = [[name.removesuffix("_price").removesuffix("_share"), *numbers] for name, numbers in chain]
        if signature_split(steps) == split:
            break
    answer = run_steps(steps)
    code = [f"x = {OPERATIONS[str(name)].format(*numbers)}" for name, *numbers in steps]
    return Problem(
        id=f"generated/{level}/{seed}/{split}/{index}",
        question=_story(level, chain, rng),
        answer=str(answer),
        solution="\n".join([*code, f"The answer is \\boxed{{{answer}}}."]),
        source="generated",
        level=str(level),
        topic="arithmetic",
        info={"steps": steps},
    )


def _chain(level: _Level, rng: np.random.Generator) -> list[tuple[str, list[int]]]:
    """Draws operations until every running number stays within the level's bounds."""
    count = int(rng.integers(level.steps[0], level.steps[1] + 1))
    x = int(rng.integers(2, level.largest // 2))
    chain: list[tuple[str, list[int]]] = [("set", [x])]
    while len(chain) <= count:
        last = len(chain) == count
        choices = level.middle + (level.final if last else ())
        name = choices[int(rng.integers(len(choices)))]
        numbers = _operands(name, x, level, rng)
        if numbers is None:
            continue
        after = _apply(name.removesuffix("_price").removesuffix("_share"), x, numbers)
        if not 1 <= after <= level.largest or (name == chain[-1][0] == "mul"):
            continue
        chain.append((name, numbers))
        x = after
    return chain


def _operands(name: str, x: int, level: _Level, rng: np.random.Generator) -> list[int] | None:
    """Numbers for an operation on `x`, or None where it cannot be exact."""
    match name:
        case "mul" | "mul_price" | "add_times":
            return [int(rng.integers(2, 6))]
        case "div" | "div_share":
            exact = [k for k in range(2, 10) if x % k == 0]
            return [exact[int(rng.integers(len(exact)))]] if exact else None
        case "add_groups" | "sub_groups":
            return [int(rng.integers(2, 7)), int(rng.integers(2, 10))]
        case "percent_off" | "percent_more":
            exact = [p for p in (10, 20, 25, 30, 40, 50, 60, 75) if x * p % 100 == 0]
            return [exact[int(rng.integers(len(exact)))]] if exact else None
        case _:
            return [int(rng.integers(2, level.operand + 1))]


def _story(level: int, chain: list[tuple[str, list[int]]], rng: np.random.Generator) -> str:
    names, things = _people(rng, level)
    parts = [sentence(name, numbers, names, things, rng, plain=level == 1) for name, numbers in chain]
    return " ".join([*parts, ask(chain[-1][0], names, things)])


def _people(rng: np.random.Generator, level: int) -> tuple[tuple[str, str], str]:
    pool, stuff = (PEOPLE[:6], THINGS[:5]) if level == 1 else (PEOPLE, THINGS)
    first, second = rng.choice(len(pool), size=2, replace=False)
    return (pool[int(first)], pool[int(second)]), stuff[int(rng.integers(len(stuff)))]
