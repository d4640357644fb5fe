"""The suite of rollouts: plans are what they say, ways sample what the plan asks for, the report compares medians."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.benchmarks.rollouts import suite, ways
from polyturn.benchmarks.running.suite import Cell, Outcome

OPTIONS: dict[str, Any] = {
    "conversations": 4, "turns": 2, "prompt": 12, "group_size": 2, "sampled": [2, 4], "hidden": 16, "layers": 1,
}  # fmt: skip


def test_members_of_a_group_share_their_prompt_and_nothing_else() -> None:
    plan = ways.plan(OPTIONS, 0)
    first = [turns[0].context.tolist() for turns in plan]
    assert first[0] == first[1] != first[2] == first[3]
    assert len(first[0]) == 12
    assert not np.array_equal(plan[0][1].context, plan[1][1].context)
    assert {turn.length for turns in plan for turn in turns} <= {2, 3, 4}
    assert [[t.length for t in turns] for turns in plan] == [
        [t.length for t in turns] for turns in ways.plan(OPTIONS, 0)
    ]


def test_every_way_of_a_cell_is_measured_or_says_why_not(tmp_path: Path) -> None:
    result = suite.run(Cell("4 conversations", 0, OPTIONS), tmp_path)
    assert list(result) == list(ways.WAYS)
    for way in ("exact engine", "generate, read again"):
        assert result[way]["cpu_s"] > 0
    assert "cpu_s" in result["continuous batching"] or result["continuous batching"]["failed"].startswith("not run: ")


def test_the_report_gives_medians_and_the_goals_that_are_missed(tmp_path: Path) -> None:
    """Costs 1, 2, 4 against 5 each: 5, 2.5 and 1.25 times, of which 2.5 is the median; the goal is 2.5, then 6."""
    shapes = list(suite.SHAPES)[:2]
    outcomes = [
        Outcome(
            Cell(shape, seed),
            {"exact engine": {"cpu_s": cost}, "generate, read again": {"cpu_s": 5.0},
             "continuous batching": {"failed": "not run: RuntimeError: no"}},
        )
        for shape in shapes
        for seed, cost in enumerate((1.0, 2.0, 4.0))
    ]  # fmt: skip
    text = suite.report(outcomes, tmp_path)
    first, second = (line for line in text.splitlines() if line.startswith(tuple(f"| {shape}" for shape in shapes)))
    assert [cell.strip() for cell in first.split("|")[2:8]] == [
        "2.00",
        "5.00",
        "not run",
        "2.50 (1.25 to 5.00)",
        "2.5",
        "yes",
    ]
    assert [cell.strip() for cell in second.split("|")[5:8]] == ["2.50 (1.25 to 5.00)", "6", "NO"]
    assert "no" in text.split("Not run:")[1]


def test_a_failure_of_the_engine_itself_is_not_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setitem(ways.WAYS, "exact engine", fail)
    with pytest.raises(RuntimeError, match="broken"):
        ways.measured("exact engine", ways.model(16, 1), ways.plan(OPTIONS, 0))
