"""The shapes that are measured: groups of token rows, and the pairs compared among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.pairing import Example
from polyturn.envs.trajectory import Trajectory, Turn

Tokens = NDArray[np.int32]
Row = list[tuple[Tokens, Tokens]]
"""A row's turns: what was read, and what the agent wrote."""


@dataclass(frozen=True)
class Shape:
    """One step's data.

    Attributes:
        said: What it is, for the report.
        groups: From a function that draws tokens to groups of rows.
        pairs: Rows compared in every group.
    """

    said: str
    groups: Callable[[Callable[[int], Tokens]], list[list[Row]]]
    pairs: tuple[tuple[int, int], ...]


def _pairs(draw: Callable[[int], Tokens]) -> list[list[Row]]:
    prompts = [draw(256) for _ in range(4)]
    return [[[(prompt, draw(512))] for _ in range(2)] for prompt in prompts]


def _one_pair(draw: Callable[[int], Tokens]) -> list[list[Row]]:
    prompt = draw(96)
    return [[[(prompt, draw(682))], [(prompt, draw(578))]]]


def _group(draw: Callable[[int], Tokens]) -> list[list[Row]]:
    prompt = draw(1000)
    return [[[(prompt, draw(128))] for _ in range(8)]]


def _tree(draw: Callable[[int], Tokens]) -> list[list[Row]]:
    def turn(context: int = 64) -> tuple[Tokens, Tokens]:
        return draw(context), draw(64)

    rows: list[Row] = []
    first = turn(256)
    for _ in range(2):  # branches at the second turn
        second = [turn(), turn()]
        rows += [[first, *second, turn(), turn(), turn()] for _ in range(4)]  # and at the fourth
    return [rows]


def _small(draw: Callable[[int], Tokens]) -> list[list[Row]]:
    prompt = draw(24)
    return [[[(prompt, draw(16))] for _ in range(4)]]


SHAPES: Mapping[str, Shape] = {
    "pairs": Shape("4 pairs, prompts of 256 tokens and 2 x 512 tokens each", _pairs, ((0, 1),)),
    "one pair": Shape("one pair of 778 and 674 tokens after a prompt of 96", _one_pair, ((0, 1),)),
    "group": Shape("8 members after a prompt of 1,000 tokens, 128 tokens each, as 4 pairs", _group, (
        (0, 1), (2, 3), (4, 5), (6, 7))),
    "tree": Shape(
        "8 conversations of 6 turns that branch at turns 2 and 4 (contexts of 256, then 64; actions of 64), as 4 pairs",
        _tree, ((0, 4), (1, 5), (2, 6), (3, 7))),
    "small": Shape("4 members after a prompt of 24 tokens, 16 tokens each", _small, ((0, 1), (2, 3))),
}  # fmt: skip


def draw_groups(shape: str, vocabulary: int, seed: int = 0) -> list[list[Row]]:
    """The shape's rows; tokens are uniform."""
    rng = np.random.default_rng(seed)
    return SHAPES[shape].groups(lambda count: rng.integers(10, vocabulary, count).astype(np.int32))


def examples(shape: str, groups: list[list[Row]]) -> list[Example]:
    """The rows as this package's examples."""
    pairs = np.array(SHAPES[shape].pairs)
    made = []
    for number, group in enumerate(groups):
        trajectories = tuple(
            Trajectory(
                "Tokens-v0",
                number,
                tuple(Turn("o", "a", 0.0, context_ids=context, action_ids=action) for context, action in row),
                terminated=True,
            )
            for row in group
        )
        desirable = np.array([float(any(row == winner for winner, _ in pairs)) for row in range(len(group))])
        made.append(Example(trajectories, pairs, desirable=desirable.astype(np.float32)))
    return made


def peer_rows(shape: str, groups: list[list[Row]]) -> list[dict[str, Any]]:
    """The rows as prompt, chosen and rejected token lists, one a pair; the prompt is the first context."""

    def rest(row: Row) -> list[int]:
        parts = [part for turn in row for part in turn][1:]
        return [int(token) for part in parts for token in part]

    return [
        {
            "prompt_ids": [int(token) for token in group[winner][0][0]],
            "chosen_ids": rest(group[winner]),
            "rejected_ids": rest(group[loser]),
        }
        for group in groups
        for winner, loser in SHAPES[shape].pairs
    ]
