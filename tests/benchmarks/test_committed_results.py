"""The committed reports are what the suites' code makes of the committed results, and their pictures keep the rules."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from polyturn import cli
from polyturn.benchmarks.running import plots
from polyturn.benchmarks.running.rendering import render
from polyturn.benchmarks.running.suite import SuiteError, load, names

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())


def pictures(text: str) -> set[str]:
    """The files that a page shows."""
    return set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))


def covered(panel: plots.Panel) -> list[tuple[str, str]]:
    """Pairs of labels of a panel that cover each other."""
    boxes = [(text.get_text(), text.get_window_extent().shrunk(0.98, 0.9)) for text in panel._labels]
    return [
        (first, second)
        for place, (first, box) in enumerate(boxes)
        for second, other in boxes[place + 1 :]
        if box.overlaps(other)
    ]


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_report_is_that_of_the_committed_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte. Pictures depend on the version of matplotlib, so only their names are compared; no panel has more
    than three bands (the fourth is refused) or labels that cover each other."""
    problems: list[Any] = []
    spread = plots.Panel.spread_labels

    def spread_and_look(panel: plots.Panel) -> None:
        spread(panel)
        problems.extend(covered(panel))

    monkeypatch.setattr(plots.Panel, "spread_labels", spread_and_look)
    text = render(load(name), RESULTS / name, tmp_path)
    assert text == (RESULTS / name / "report.md").read_text("utf-8")
    assert problems == []
    drawn = {path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")}
    kept = {path.name for path in (RESULTS / name).iterdir() if path.suffix in (".png", ".svg")}
    assert drawn == kept
    assert pictures(text) == {file for file in drawn if file.endswith(".svg")}


def test_every_suite_has_committed_results() -> None:
    assert set(COMMITTED) == set(names())


@pytest.mark.parametrize("name", sorted(names()))
def test_suites_that_run_in_several_processes_can_be_sent_there(name: str) -> None:
    suite = load(name)
    if suite.parallel:
        assert pickle.loads(pickle.dumps(suite)).cells(True, 1) == suite.cells(True, 1)


def test_the_command_renders_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RESULTS / "gpo_frontier" / "results.json", tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    assert cli.main(["bench", "gpo_frontier", "--render", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text("utf-8") in capsys.readouterr().out
    assert (tmp_path / "results.json").read_bytes() == before
    assert not (tmp_path / "work").exists()


def test_rendering_refuses_what_it_cannot_render(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="expected the results of nash, found no file"):
        render(load("nash"), tmp_path)
    shutil.copy(RESULTS / "gpo_frontier" / "results.json", tmp_path)
    with pytest.raises(SuiteError, match="expected results of nash, found results of 'gpo_frontier'"):
        render(load("nash"), tmp_path)


@pytest.mark.parametrize("option", [["--quick"], ["--seeds", "2"], ["--jobs", "2"], ["--model", "m"]])
def test_rendering_refuses_options_of_a_run(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(RESULTS / "nash" / "results.json", tmp_path)
    assert cli.main(["bench", "nash", "--render", "--out", str(tmp_path), *option]) != 0
    assert f"expected --render without {option[0]}" in capsys.readouterr().err
