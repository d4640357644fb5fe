"""`polyturn compare` and `polyturn leaderboard`: figures checked by hand and against scipy, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import shown
from scipy import stats

from polyturn import cli
from polyturn.benchmarks.comparing.sides import NotComparable, episodes
from polyturn.benchmarks.comparing.statistics import paired
from polyturn.benchmarks.running.reporting import told_apart
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn


def bits(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    """Outcomes of two policies with the given numbers of tasks that both, one or neither solve."""
    a = [1.0] * both + [1.0] * first + [0.0] * second + [0.0] * neither
    return a, [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 8), (5, 5), (12, 3), (0, 20)])
def test_mcnemar_is_the_binomial_test_over_tasks_that_differ(first: int, second: int) -> None:
    found = paired(*bits(7, first, second, 4), binary=True)
    expected = stats.binomtest(second, first + second).pvalue if first + second else 1.0
    assert found.p == pytest.approx(expected)
    assert (found.better, found.worse, found.ties) == (second, first, 11)


def test_the_interval_of_paired_proportions_is_newcombes() -> None:
    """His table II, method 10: 36, 12, 2, 0 of 50 gives 0.2 with 0.0569 to 0.3404; 54, 0, 0, 0 gives 0 -+ 0.0664."""
    found = paired(*reversed(bits(36, 12, 2, 0)), binary=True)
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.2), pytest.approx(0.0569, abs=5e-4), pytest.approx(0.3404, abs=5e-4),
    )  # fmt: skip
    alike = paired(*bits(54, 0, 0, 0), binary=True)
    assert (alike.low, alike.high) == (pytest.approx(-0.0664, abs=5e-4), pytest.approx(0.0664, abs=5e-4))


def test_swapping_the_two_turns_the_signs_only() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, size=40)
    there, back = paired(a, b, binary=False), paired(b, a, binary=False)
    assert (there.value, there.p) == (pytest.approx(-back.value), pytest.approx(back.p))
    assert (there.better, there.worse) == (back.worse, back.better)
    binary, turned = paired(*bits(5, 2, 6, 3), binary=True), paired(*reversed(bits(5, 2, 6, 3)), binary=True)
    assert (binary.low, binary.high) == (pytest.approx(-turned.high), pytest.approx(-turned.low))


def test_sign_flips_are_exact_for_few_tasks_and_near_for_many() -> None:
    """1, 2, 3: of eight sign patterns two have a mean as far from zero: p = 1/4. Many: as scipy draws them."""
    assert paired([0, 0, 0], [1, 2, 3], binary=False).p == 0.25
    rng = np.random.default_rng(1)
    x = rng.normal(0.25, size=60)
    drawn = stats.permutation_test(
        (x, np.zeros(60)), lambda a, b: np.mean(a - b), permutation_type="samples", rng=np.random.default_rng(2)
    )
    assert paired(np.zeros(60), x, binary=False).p == pytest.approx(drawn.pvalue, abs=0.02)


def test_intervals_cover() -> None:
    """Of 60 comparisons with a true difference of 0.3, the 95% interval holds it in at least 52."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        found = paired(np.zeros(25), rng.normal(0.3, size=25), binary=False)
        covered += found.low <= 0.3 <= found.high
    assert 52 <= covered <= 60


def test_no_spread_gives_no_interval() -> None:
    assert math.isnan(paired([0.0, 0.0], [1.0, 1.0], binary=False).low)
    with pytest.raises(ValueError, match="non-empty"):
        paired([], [], binary=False)
    with pytest.raises(ValueError, match="zeros and ones"):
        paired([0.5], [1.0], binary=True)


def test_several_pairs_share_one_level() -> None:
    """Holm: 0.01 < 0.05/3; 0.03 > 0.05/2, so neither it nor 0.04 counts."""
    assert told_apart([0.03, 0.01, 0.04]) == [False, True, False]
    assert told_apart([math.nan, 0.001]) == [False, True]


def store(path: Path, rewards: dict[int, list[float]], *, invalid: int = 0) -> Path:
    """One task a seed with the given returns."""
    with Store(path, fsync="never") as made:
        for seed, values in rewards.items():
            for member, value in enumerate(values):
                turns = (Turn("2 + 3?", "5", value),)
                made.append(Trajectory("acme/Sum-v0", seed, turns, task_id=f"t{seed}", member=member, terminated=True))
        for seed in range(invalid):
            made.append(Trajectory("acme/Sum-v0", seed, (Turn("2 + 3?", "5", 1.0),), task_id=f"t{seed}", error="lost"))
    return path


def test_episodes_are_paired_by_start_and_samples_averaged(tmp_path: Path) -> None:
    """An invalid episode is no zero, and a task that one of them lacks is left out of both."""
    a = store(tmp_path / "a.jsonl", {0: [0.0, 1.0], 1: [0.0], 2: [1.0]}, invalid=2)
    b = store(tmp_path / "b.jsonl", {1: [1.0], 0: [1.0], 3: [0.0]})
    sides = episodes([a, b])
    assert [key[0] for key in sides.shared] == ["t0", "t1"]
    assert [[side.mean(key) for key in sides.shared] for side in sides.sides] == [[0.5, 0.0], [1.0, 1.0]]
    assert (sides.measure, sides.binary, sides.sides[0].invalid) == ("return", False, 2)
    with pytest.raises(NotComparable, match="says what a success is"):
        episodes([a, b], "success")


def test_the_command_says_what_differs_and_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = shown.ordinary(tmp_path / "before.jsonl", "sft", groups=9)
    after = shown.ordinary(tmp_path / "after.jsonl", "trained", groups=9, flipped=True)
    page = tmp_path / "compare.html"
    assert cli.main(["compare", str(before), str(after), "--page", str(page)]) == 0
    out = capsys.readouterr().out
    assert "before and after are not told apart" in out
    assert "1 invalid episodes left out" in out
    assert "compare.html#v=start&e=0:1 " in out
    assert page.is_file()


def test_three_policies_are_compared_two_by_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    paths = [
        store(tmp_path / f"{name}.jsonl", {seed: [rng.normal(mean)] for seed in range(60)})
        for name, mean in (("a", 0.0), ("b", 0.0), ("c", 2.0))
    ]
    assert cli.main(["compare", *map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert "a and b are not told apart" in out
    assert "c is higher than a" in out
    assert "c is higher than b" in out
    assert "(Holm)" in out


def test_results_are_paired_by_cell_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gain in (("a", 0.0), ("b", 1.0)):
        shown.results_folder(tmp_path / name)
        record = json.loads((tmp_path / name / "results.json").read_text())
        for cell in record["cells"]:
            cell["result"]["success"] += gain
        (tmp_path / name / "results.json").write_text(json.dumps(record))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "| success " in out
    assert "not told apart" in out  # two seeds cannot


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "expected two or three paths, got 1"),
        (["a", "a"], "expected different paths"),
        (["a", "other"], "none in common"),
        (["a", "many"], "expected one store of trajectories"),
        (["a", "empty"], "none in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    names: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rewards in (("a", {0: [1.0]}), ("other", {5: [1.0]}), ("empty", {})):
        (tmp_path / name).mkdir()
        store(tmp_path / name / "s.jsonl", rewards)
    (tmp_path / "many").mkdir()
    for number in range(2):
        store(tmp_path / "many" / f"{number}.jsonl", {0: [1.0]})
    assert cli.main(["compare", *(str(tmp_path / name) for name in names)]) == 2
    assert said in capsys.readouterr().err


def test_the_leaderboard_is_a_page_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "board.html"
    shown.results_folder(tmp_path / "results" / "one")
    assert cli.main(["leaderboard", str(tmp_path / "results"), "--out", str(out)]) == 0
    assert "Results of 1 suites" in out.read_text()
    (tmp_path / "none").mkdir()
    shown.ordinary(tmp_path / "none" / "s.jsonl")
    assert cli.main(["leaderboard", str(tmp_path / "none")]) == 2
    assert "expected results of suites" in capsys.readouterr().err
