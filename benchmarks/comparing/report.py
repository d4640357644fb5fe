"""The words and tables of a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from polyturn.benchmarks.comparing.sides import Key, Side, Sides
from polyturn.benchmarks.comparing.statistics import Difference, paired
from polyturn.benchmarks.running.reporting import told_apart
from polyturn.benchmarks.running.suite import table
from polyturn.envs.viewing.text import printable

_TASKS = 20


def compared(sides: Sides) -> list[tuple[Side, Side, Difference, bool]]:
    """Every pair with its difference, and whether the two are told apart (at 5% for all pairs together)."""
    pairs = list(itertools.combinations(sides.sides, 2))
    differences = [
        paired([a.mean(key) for key in sides.shared], [b.mean(key) for key in sides.shared], binary=sides.binary)
        for a, b in pairs
    ]
    verdicts = told_apart([difference.p for difference in differences])
    return [(a, b, difference, apart) for (a, b), difference, apart in zip(pairs, differences, verdicts, strict=True)]


def comparison(sides: Sides, *, page: str | None = None, tasks: int = _TASKS) -> str:
    """The report as Markdown.

    Args:
        sides: What is compared.
        page: The viewer's page of the same stores in the same order, for links to the episodes that differ.
        tasks: How many tasks the per-task table shows, those with the largest difference first.
    """
    rows, verdicts = [], []
    for a, b, found, apart in compared(sides):
        rows.append(
            [
                f"{b.name} - {a.name}", found.tasks, _number(found.first, sides), _number(found.second, sides),
                _interval(found, sides), f"{found.better} / {found.ties} / {found.worse}", f"{found.p:.3g}",
            ]
        )  # fmt: skip
        verdicts.append(_verdict(a, b, found, apart))
    test = compared(sides)[0][2].test
    header = ["difference", "tasks", "first", "second", "difference [95%]", "better / same / worse", "p"]
    parts = [
        f"# {printable(sides.measure)}, paired over {len(sides.shared)} tasks",
        table(header, [[printable(str(value)) for value in row] for row in rows]),
        "\n".join(f"- {printable(verdict)}" for verdict in verdicts),
        f"Test: {test}" + ("; intervals: Newcombe's for paired proportions." if sides.binary else
                           "; intervals: bootstrap over tasks (BCa).")
        + (" With several pairs the level of 5% holds for all of them together (Holm)." if len(rows) > 1 else ""),
        *_left_out(sides),
        _tasks(sides, page, tasks),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def figures_table(every: Sequence[Sides]) -> str:
    """One row a figure and pair of results.

    The level of 5% holds for each row by itself; a table of many rows shows some by chance.
    """
    rows = []
    for sides in every:
        for a, b, found, apart in compared(sides):
            says = "told apart" if apart else "not told apart"
            rows.append(
                [
                    sides.measure, f"{b.name} - {a.name}", found.tasks, _number(found.first, sides),
                    _number(found.second, sides), _interval(found, sides), f"{found.p:.3g}", says,
                ]
            )  # fmt: skip
    header = ["figure", "difference", "cells", "first", "second", "difference [95%]", "p", ""]
    return table(header, [[printable(str(value)) for value in row] for row in rows])


def flipped(sides: Sides) -> list[Key]:
    """Tasks on which not all agree, the largest difference first, else in order."""
    spread = {key: _spread(sides, key) for key in sides.shared}
    return sorted((key for key in sides.shared if spread[key] > 0), key=lambda key: -spread[key])


def _spread(sides: Sides, key: Key) -> float:
    means = [side.mean(key) for side in sides.sides]
    return max(means) - min(means)


def _verdict(a: Side, b: Side, found: Difference, apart: bool) -> str:
    if not apart:
        return f"{a.name} and {b.name} are not told apart (p = {found.p:.3g} over {found.tasks} tasks)."
    better, worse = (b, a) if found.value > 0 else (a, b)
    return f"{better.name} is higher than {worse.name} (p = {found.p:.3g} over {found.tasks} tasks)."


def _left_out(sides: Sides) -> list[str]:
    notes = []
    for side in sides.sides:
        alone = len(side.values) - len(sides.shared)
        if alone:
            notes.append(f"{printable(side.name)}: {alone} tasks left out, the others do not have them.")
        if side.invalid:
            notes.append(f"{printable(side.name)}: {side.invalid} invalid episodes left out.")
    return notes


def _tasks(sides: Sides, page: str | None, most: int) -> str:
    keys = flipped(sides)
    if not keys:
        return "No task differs."
    rows = []
    for key in keys[:most]:
        link = f"{page}#v=start&e=0:{sides.sides[0].places[key]}" if page and sides.sides[0].store else ""
        row = [key[0], key[1], *(_number(side.mean(key), sides) for side in sides.sides), link]
        rows.append([printable(str(value)).replace("|", "\\|").replace("\n", " ") for value in row])
    header = ["task", "seed", *(printable(side.name) for side in sides.sides), "open" if page else ""]
    more = f"\n\n{len(keys) - most} more tasks differ." if len(keys) > most else ""
    return f"Tasks that differ ({len(keys)} of {len(sides.shared)}):\n\n{table(header, rows)}{more}"


def _number(value: float, sides: Sides) -> str:
    return f"{100 * value:.1f}%" if sides.measure == "success" else f"{value:.4g}"


def _interval(found: Difference, sides: Sides) -> str:
    scale, unit = (100, " points") if sides.measure == "success" else (1, "")
    if math.isnan(found.low):
        return f"{scale * found.value:+.4g}{unit} [no interval: the tasks show no spread]"
    return f"{scale * found.value:+.4g}{unit} [{scale * found.low:+.4g}, {scale * found.high:+.4g}]"
