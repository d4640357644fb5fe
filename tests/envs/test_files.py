"""A folder has one run at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyturn.benchmarks.running.suite import Cell, Suite, run_suite
from polyturn.envs.files import FolderInUseError, alone_in, alone_in_out

HOLDS = (
    "import sys; from pathlib import Path; from polyturn.envs.files import alone_in\n"
    "with alone_in(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_another_process_in_the_folder_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    @alone_in_out
    def run(count: int, *, out: str) -> int:
        return count

    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(FolderInUseError, match=r"another run is writing; wait for it, stop it, or pass another"):
        run(1, out=str(tmp_path))
    other.kill()
    other.communicate()
    assert run(1, out=str(tmp_path)) == 1


def test_only_the_first_process_of_a_run_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone_in(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(FolderInUseError), alone_in(tmp_path):
            pass


def test_a_suite_is_not_run_twice_in_one_folder(tmp_path: Path) -> None:
    ran: list[str] = []
    suite = Suite(
        "s", "t", lambda quick, seeds: [Cell("c", 0)], lambda cell, folder: ran.append("x") or {}, lambda o, p: ""
    )
    with alone_in(tmp_path), pytest.raises(FolderInUseError):
        run_suite(suite, tmp_path, progress=False)
    assert not ran
    run_suite(suite, tmp_path, progress=False)
    assert ran
