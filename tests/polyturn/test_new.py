"""`polyturn new`: what it writes installs, its tests pass, and polyturn finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyturn.cli import main
from polyturn.envs import new_package

# After installing: a command of its README that runs at once.
COMMANDS = {
    "env": ["check-env", "NAME/FreshEnv-v0"],
    "agent": ["rollout", "polyturn/Guess-v0", "--agent", "NAME", "--groups", "1", "--show", "1"],
    "method": ["train", "NAME", "--help"],
    "suite": ["bench", "NAME", "--quick", "--quiet"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_new_package_installs_and_works(kind: str, tmp_path: Path) -> None:
    name = f"fresh_{kind}"
    folder = new_package(kind, name, tmp_path)  # type: ignore[arg-type]
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    done = subprocess.run([sys.executable, "-m", "pip", *install, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)

    tests = run("pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert tests.returncode == 0, tests.stdout[-2000:]
    shown = run("polyturn", *(word.replace("NAME", name) for word in COMMANDS[kind]))
    assert shown.returncode == 0, shown.stderr[-2000:]


def test_names_that_would_not_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, why in (("Upper", "small letters"), ("with-dash", "small letters"), ("class", "small letters"),
                      ("json", "no installed module has"), ("torch", "no installed module has")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            new_package("env", name, tmp_path)
    new_package("env", "mine", tmp_path)
    with pytest.raises(FileExistsError, match="not there yet"):
        new_package("env", "mine", tmp_path)
    assert main(["new", "env", "mine", "--in", str(tmp_path)]) == 1
    assert "not there yet" in capsys.readouterr().err
