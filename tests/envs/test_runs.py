"""`polyturn runs`: what state a run is in, from its files and locks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shown
from filelock import FileLock

from polyturn import cli
from polyturn.envs.store import Store
from polyturn.envs.viewing.runs import RunState, list_runs


def training(folder: Path, step: int, steps: int, *, seen: int | None = None) -> Path:
    """A training with a checkpoint at a step and figures up to another."""
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(json.dumps({"step": step, "settings": {"steps": steps}}))
    lines = [json.dumps({"step": number, "loss": 1.0}) for number in range(1, (seen or step) + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9')
    return folder


def only(folder: Path) -> RunState:
    (found,) = list_runs(folder)
    return found


def test_a_training_is_finished_stopped_or_running(tmp_path: Path) -> None:
    training(tmp_path / "a", 10, 10)
    training(tmp_path / "b", 4, 10, seen=6)
    done, stopped = list_runs(tmp_path)
    assert (done.path, done.state, done.progress) == (tmp_path / "a", "finished", "step 10 of 10")
    assert (stopped.state, stopped.progress) == ("stopped", "step 6 of 10")
    assert "goes on from step 4" in stopped.resume
    with FileLock(tmp_path / "b" / ".lock"):
        running = list_runs(tmp_path)[1]
        assert (running.state, running.resume) == ("running", f"polyturn view {tmp_path / 'b'} --serve follows it")
    assert list_runs(tmp_path)[1].state == "stopped"


def test_an_iterative_run_counts_iterations_and_covers_its_trainings(tmp_path: Path) -> None:
    run = shown.run_folder(tmp_path / "run")
    training(run / "iteration-1" / "train2", 3, 9)
    assert only(tmp_path) == RunState(
        run, "iterations of MDPO", "finished", "2 iterations done",
        "the command that started it goes on with it if --iterations is larger",
    )  # fmt: skip
    (run / "iteration-3").mkdir()
    assert (only(tmp_path).state, only(tmp_path).progress) == ("stopped", "2 iterations done, iteration-3 begun")
    with Store(run / "iteration-3" / "trajectories.jsonl"):
        assert only(tmp_path).state == "running"


def test_suites(tmp_path: Path) -> None:
    (tmp_path / "half" / "work").mkdir(parents=True)
    (tmp_path / "half" / "work" / "a-seed0.json").write_text("{}")
    shown.results_folder(tmp_path / "whole")
    half, whole = list_runs(tmp_path)
    assert (half.state, half.progress) == ("stopped", "1 cells done")
    assert (whole.kind, whole.state, whole.progress) == ("suite tool_math", "finished", "2 cells")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs under {tmp_path}\n"
    training(tmp_path / "a\x1b[31m", 10, 10)
    assert cli.main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert r"a\x1b[31m  training  finished  step 10 of 10" in out
    assert "\x1b" not in out
    assert cli.main(["runs", str(tmp_path / "missing")]) == 1
