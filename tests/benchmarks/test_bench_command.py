"""`polyturn bench`: a broken suite hides no other, and nothing that a suite writes drives the terminal."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyturn.benchmarks.running import suite as running
from polyturn.benchmarks.running.suite import BUILT_IN, Cell, Suite
from polyturn.cli import main

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m done \u202e"


def plug_in(monkeypatch: pytest.MonkeyPatch, **places: str) -> None:
    points = [EntryPoint(name, place, "polyturn.benchmarks") for name, place in places.items()]
    monkeypatch.setattr(running, "entry_points", lambda group: [p for p in points if p.group == group])


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> str:
    made = ModuleType(name)
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, name, made)
    return f"{name}:SUITE"


def test_the_list_names_every_suite_also_beside_broken_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not there, one that is no suite, one that raises, one that ends the process as it is imported."""
    (tmp_path / "acme_raises.py").write_text("raise RuntimeError('two\\nlines')")
    (tmp_path / "acme_leaves.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    plug_in(
        monkeypatch, gone="acme_gone:SUITE", other=module(monkeypatch, "acme_other", SUITE=3),
        raises="acme_raises:SUITE", leaves="acme_leaves:SUITE",
    )  # fmt: skip
    assert main(["bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*BUILT_IN, "gone", "other", "raises", "leaves"])
    broken = {line.split()[0]: line for line in lines if "(cannot be used: " in line}
    assert set(broken) == {"gone", "other", "raises", "leaves"}
    assert "No module named 'acme_gone'" in broken["gone"]
    assert "two lines" in broken["raises"]
    for name in broken:
        assert main(["bench", name]) != 0
        assert name in capsys.readouterr().err


def test_what_a_suite_says_and_writes_is_printed_with_its_control_characters_visible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Suite("evil", EVIL, lambda quick, seeds: [Cell("c", 0)], lambda cell, work: {"v": 1}, lambda o, out: EVIL)
    plug_in(monkeypatch, evil=module(monkeypatch, "acme_evil", SUITE=made))
    for command in (["bench"], ["bench", "evil", "--quiet", "--out", str(tmp_path)],
                    ["bench", "evil", "--render", "--out", str(tmp_path)]):  # fmt: skip
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert all(character.isprintable() or character == "\n" for character in shown)
        assert r"\x1b[2J" in shown
    assert main(["bench", f"no{EVIL}"]) != 0
    assert all(character.isprintable() or character == "\n" for character in capsys.readouterr().err)
