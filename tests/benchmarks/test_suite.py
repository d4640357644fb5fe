"""The suite runner: resuming, refusing, reporting; intervals by hand; pages that escape."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from polyturn.benchmarks.running.suite import (
    Cell,
    ChangedSuiteWarning,
    Outcome,
    Suite,
    SuiteError,
    load,
    mean_interval,
    names,
    run_suite,
    table,
)


class Counting:
    """A suite whose cells square their seed, counting how often one was run."""

    def __init__(self, fail_at: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.ran: list[str] = []
        self.fail_at = fail_at
        self.options = options or {}

    def cells(self, quick: bool, seeds: int) -> list[Cell]:
        return [Cell("square", seed, {"quick": quick, **self.options}) for seed in range(seeds)]

    def run(self, cell: Cell, work: Path) -> dict[str, Any]:
        if cell.seed == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(cell.key)
        return {"value": cell.seed**2}

    def report(self, outcomes: Any, out: Path) -> str:
        return table(["seed", "value"], [[o.cell.seed, o.result["value"]] for o in outcomes])

    def suite(self) -> Suite:
        return Suite("counting", "squares", self.cells, self.run, self.report, seeds=3)


def test_an_interrupted_suite_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Cells 0 and 1 are done when 2 is interrupted; the second call runs only 2 and reports all three."""
    first = Counting(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        run_suite(first.suite(), tmp_path, progress=False)
    assert first.ran == ["square-seed0", "square-seed1"]
    assert not (tmp_path / "report.md").exists()

    second = Counting()
    record = run_suite(second.suite(), tmp_path, progress=False)
    assert second.ran == ["square-seed2"]
    assert [cell["result"]["value"] for cell in record["cells"]] == [0, 1, 4]
    assert record["cpu_s"] >= 0.0
    assert json.loads((tmp_path / "results.json").read_text()) == record
    assert (tmp_path / "report.md").read_text().splitlines()[-1].split() == ["|", "2", "|", "4", "|"]


def test_results_of_other_settings_are_refused_not_mixed_in(tmp_path: Path) -> None:
    run_suite(Counting().suite(), tmp_path, seeds=1, progress=False)
    with pytest.raises(SuiteError, match="another --out"):
        run_suite(Counting(options={"size": 7}).suite(), tmp_path, seeds=1, progress=False)


def test_the_quick_form_runs_one_seed_and_says_so(tmp_path: Path) -> None:
    record = run_suite(Counting().suite(), tmp_path, quick=True, progress=False)
    assert record["seeds"] == 1
    assert record["quick"] is True
    assert record["command"] == "polyturn bench counting --quick --seeds 1"


def test_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="at least one seed"):
        run_suite(Counting().suite(), tmp_path, seeds=0, progress=False)


@pytest.mark.parametrize("name", sorted(names()))
def test_every_listed_suite_loads_and_has_cells_in_both_forms(name: str) -> None:
    suite = load(name)
    assert suite.name == name
    for quick in (True, False):
        cells = suite.cells(quick, 2)
        assert len({cell.key for cell in cells}) == len(cells) > 0
        json.dumps([dict(cell.options) for cell in cells])


def test_an_unknown_suite_is_named_with_what_was_meant() -> None:
    with pytest.raises(SuiteError, match="tool_math"):
        load("tool_mth")


def test_a_custom_suite_is_found_by_module_and_attribute() -> None:
    assert load("polyturn.benchmarks.tool_math:SUITE").name == "tool_math"
    with pytest.raises(SuiteError, match="expected a polyturn"):
        load("polyturn.benchmarks.tool_math:ENV")


def test_the_interval_over_seeds_is_students() -> None:
    """1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303; half width 4.303 / sqrt(3) = 2.484."""
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert low == pytest.approx(2 - 2.484, abs=1e-3)
    assert high == pytest.approx(2 + 2.484, abs=1e-3)
    assert mean_interval([5.0]) == (5.0, float("-inf"), float("inf"))


def test_outcomes_keep_their_cells() -> None:
    cell = Cell("a b/c", 3)
    assert Outcome(cell, {"x": 1}).cell.key == "a-b-c-seed3"


def _halves(quick: bool, seeds: int) -> list[Cell]:
    return [Cell("half", seed, {"quick": quick}) for seed in range(seeds)]


def _halve(cell: Cell, work: Path) -> dict[str, Any]:
    import os

    if cell.seed == 3 and not (work / "again").exists():
        (work / "again").touch()
        raise RuntimeError("cell 3 fails once")
    return {"value": cell.seed / 2, "process": os.getpid(), "model": cell.options.get("model", "")}


def _sum(outcomes: Any, out: Path) -> str:
    return str([outcome.result["value"] for outcome in outcomes])


HALVES = Suite("halves", "halves", _halves, _halve, _sum, seeds=4, parallel=True, takes_model=True)


def test_cells_at_once_come_back_in_order_and_a_failure_loses_no_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell 3 fails in the first run; the second runs what is missing and reports as if nothing had happened."""
    import os

    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where workers find this module
    with pytest.raises(RuntimeError, match="cell 3 fails once"):
        run_suite(HALVES, tmp_path, jobs=2, progress=False)
    record = run_suite(HALVES, tmp_path, jobs=2, progress=False)
    assert (tmp_path / "report.md").read_text() == "[0.0, 0.5, 1.0, 1.5]"
    assert os.getpid() not in {cell["result"]["process"] for cell in record["cells"]}
    assert record["command"].endswith("--seeds 4 --jobs 2")


def test_a_model_reaches_the_cells_of_suites_that_take_one(tmp_path: Path) -> None:
    record = run_suite(HALVES, tmp_path, seeds=1, model="my/model", progress=False)
    assert record["cells"][0]["result"]["model"] == "my/model"
    plain = Counting().suite()
    with pytest.raises(SuiteError, match="expected no model"):
        run_suite(plain, tmp_path / "a", model="my/model", progress=False)
    with pytest.raises(SuiteError, match="one after another, got 2"):
        run_suite(plain, tmp_path / "b", jobs=2, progress=False)


def _sleepy(cell: Cell, work: Path) -> dict[str, Any]:
    import os
    import time

    (work / f"pid-{os.getpid()}").touch()
    time.sleep(120)
    return {}


SLEEPY = Suite("sleepy", "sleeps", _halves, _sleepy, _sum, seeds=2, parallel=True)


def test_workers_do_not_outlive_their_runner(tmp_path: Path) -> None:
    """kill -9 of the runner: its two workers end by themselves instead of computing on or waiting indefinitely."""
    import os
    import signal
    import subprocess
    import sys
    import time

    # The workers find the suite by its module's name.
    (tmp_path / "sleepy_suite.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
    place = tmp_path / "sleepy_main.py"
    place.write_text(
        "from pathlib import Path\nimport sleepy_suite\n"
        "if __name__ == '__main__':\n"
        f"    sleepy_suite.run_suite(sleepy_suite.SLEEPY, Path({str(tmp_path)!r}), jobs=2, progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    runner = subprocess.Popen([sys.executable, str(place)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list((tmp_path / "work").glob("pid-*"))) < 2:
            time.sleep(0.05)
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    workers = [int(path.name.removeprefix("pid-")) for path in (tmp_path / "work").glob("pid-*")]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(_lives, workers)):
        time.sleep(0.05)
    assert not any(map(_lives, workers))


def _lives(pid: int) -> bool:
    import os

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_result_of_other_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an edit of the suite: its saved cells are used, and that is said."""
    counting = Counting()
    run_suite(counting.suite(), tmp_path, seeds=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_suite(counting.suite(), tmp_path, seeds=2, progress=False)
    monkeypatch.setattr("polyturn.benchmarks.running.suite.digest", lambda path: "edited")
    with pytest.warns(ChangedSuiteWarning, match="square-seed0.json: taken from a run of other code"):
        run_suite(counting.suite(), tmp_path, seeds=2, progress=False)
    assert counting.ran == ["square-seed0", "square-seed1"]
