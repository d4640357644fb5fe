"""The suite of environments: everything is played, and the report holds medians against the goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyturn.benchmarks.rollouts import environments
from polyturn.benchmarks.running.suite import Cell, Outcome


def test_every_environment_is_measured(tmp_path: Path) -> None:
    result = environments.run(Cell("all environments", 0, {"turns": 20, "widths": [2]}), tmp_path)
    assert all(value > 0 for measured in result.values() for value in measured.values())
    alone = {name for name, measured in result.items() if "every episode seeded" in measured}
    assert alone == set(environments.ONE_BY_ONE)
    assert {"BanditVector, 2 at once", "Gymnasium: SyncVectorEnv of that text environment, 2 at once"} <= set(result)


@pytest.mark.parametrize(("share", "expected"), [(None, [None] * 4), (1, [11, 12, 13, 14]), (3, [11, 11, 11, 12])])
def test_episodes_are_seeded_as_said(share: int | None, expected: list[Any]) -> None:
    seeds: list[Any] = []

    class Watched(environments.BareText):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    environments.one_by_one(Watched(), ("1",), 4, 10, share=share)
    assert seeds == [10, *expected]


def test_the_report_says_which_goals_are_missed(tmp_path: Path) -> None:
    """A bandit of 100k, 300k, 250k turns beside 500k each: the median is 250k, half of the other, and meets 200k."""
    outcomes = [
        Outcome(
            Cell("all environments", seed),
            {
                environments.PEER: {"seeded once": 500e3, "every episode seeded": 90e3},
                "Bandit": {"seeded once": turns, "every episode seeded": 80e3, "seeds shared by 8": 150e3},
                "CarDealer": {"seeded once": 19e3, "every episode seeded": 18e3},
                "BanditVector, 16 at once": {"seeded once": 2e6},
                "a generator": {"us": 7.76},
            },
        )
        for seed, turns in enumerate((100e3, 300e3, 250e3))
    ]
    text = environments.report(outcomes, tmp_path)
    rows = {
        row.split("|")[1].strip(): [each.strip() for each in row.split("|")[2:8]]
        for row in text.splitlines()
        if "|" in row
    }
    assert rows["Bandit"] == ["250", "80", "150", "0.50 (0.20 to 0.60)", "200", "yes"]
    assert rows["CarDealer"][4:] == ["20", "NO"]
    assert rows["BanditVector, 16 at once"] == ["2,000", "", "", "4.00 (4.00 to 4.00)", "1,000", "yes"]
    assert "takes 7.8 us" in text
