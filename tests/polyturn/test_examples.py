"""The scripts of docs/examples: short enough to read, and their small form runs from beginning to end."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from polyturn.cli import parse
from polyturn.envs.viewing.page import write_page

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LAST = {  # what each says when it has done its work
    "agent_program": r"segments of each: \[2, 2, 2, 2\]",
    "education": r"step   2: wins \d+% against the imitation",
    "hub_model": r"iteration-1: success",
    "own_environment": r"iteration-1    success",
    "own_method": r"hinge: loss 1\.000 to .*\n(.*\n)*mdpo: loss 0\.693 to",
    "own_preference": r"step   2: .* hints ignored a game",
}


@pytest.fixture
def registry() -> Iterator[None]:
    before = set(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_small_form_runs_and_leaves_something_to_look_at(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], registry: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--small", "--out", "out"])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(LAST[script.stem], printed), printed
    (command,) = re.findall(r"polyturn (view out .*)$", printed, re.MULTILINE)
    assert parse(command.split())
    assert write_page(["out"], "page.html").stat().st_size > 50_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_is_read_from_top_to_bottom_in_at_most_120_lines(script: Path) -> None:
    lines = script.read_text("utf-8").splitlines()
    assert len(lines) <= 120
    assert lines[0].startswith('"""')
    assert f"python docs/examples/{script.name} --small" in "\n".join(lines)
