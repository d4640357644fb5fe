"""The suite runner: resuming, refusing, reporting; intervals by hand; pages that escape."""

from __future__ import annotations

import functools
import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyturn.benchmarks.running import code
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


PACKAGE = {
    "__init__.py": "",
    "suite.py": """
from polyturn.benchmarks.running.suite import Cell, Suite
from {name}.report import report
def cells(quick, seeds): return [Cell("c", 0)]
def run(cell, work):
    from . import sums
    return {{"value": sums.total()}}
SUITE = Suite("own", "adds", cells, run, report)
""",
    "sums.py": "from .deep.numbers import ONE\ndef total(): return ONE + 1\n",
    "deep/__init__.py": "",
    "deep/numbers.py": "ONE = 1\n",
    "report.py": "from {name}.words import TITLE\ndef report(outcomes, out): return TITLE\n",
    "words.py": "TITLE = 'sum'\n",
    "unused.py": "",
}


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A suite in a package of its own, of a name that no other test has."""
    name = f"suite_{tmp_path.name.replace('-', '_')}"
    for file, text in PACKAGE.items():
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name, tmp_path / name
    for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("deep/numbers.py", "ONE = 2\n", ".deep.numbers"),
        ("sums.py", "from .deep.numbers import ONE\ndef total(): return ONE + 2\n", ".sums"),
        ("deep/numbers.py", '"""One."""\n\nONE = 1  # the same\n', ""),
        ("words.py", "TITLE = 'total'\n", ""),
        ("unused.py", "X = 1\n", ""),
    ],
    ids=["imported by an import", "imported in a function", "only words", "of the report", "not imported"],
)
def test_a_result_of_other_code_is_named(
    own_package: tuple[str, Path], tmp_path: Path, file: str, text: str, changed: str
) -> None:
    """As after an edit of a module that the suite imports: its saved cells are used, and that is said."""
    name, folder = own_package
    suite = load(f"{name}.suite:SUITE")
    run_suite(suite, tmp_path / "out", progress=False)
    (folder / file).write_text(text)
    code._reached.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        record = run_suite(suite, tmp_path / "out", progress=False)
    assert record["cells"][0]["result"]["value"] == 2
    told = [str(each.message) for each in said if each.category is ChangedSuiteWarning]
    assert [f"(changed: {name}{changed})" in each for each in told] == [True] * bool(changed), told


def test_the_code_of_a_suite_is_what_it_imports_of_its_package_and_of_polyturn(tmp_path: Path) -> None:
    found = code.modules_of(load("coverage").cells)
    expected = {"benchmarks.coverage.training", "algorithms.losses", "envs.games.bandits"}
    assert {f"polyturn.{each}" for each in expected} <= set(found)
    assert not {name.partition(".")[0] for name in found} - {"polyturn"}
    counting = Counting()
    assert code.home_of(functools.partial(counting.run, work=tmp_path)) == code.home_of(counting) == __name__


def test_modules_beside_a_suite_in_a_single_file_are_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lone_suite_of_a_test.py").write_text("import json, lone_helper_of_a_test\ndef run(): pass\n")
    (tmp_path / "lone_helper_of_a_test.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = importlib.import_module("lone_suite_of_a_test").run
    assert list(code.modules_of(run)) == ["lone_helper_of_a_test", "lone_suite_of_a_test"]
