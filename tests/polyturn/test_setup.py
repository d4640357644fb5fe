"""The set-up behind `make`: what it says on machines that lack something, and when it installs again."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)) == set(phony[1].split())


def setup(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/setup.sh in a folder with only the shell's own commands and what `folder/bin` adds."""
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", **variables}
    return subprocess.run(["sh", "scripts/setup.sh"], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder the set-up could run in."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_setup_without_a_suitable_python_says_what_to_install(checkout: Path) -> None:
    program(checkout / "bin" / "oldpython", 'exec false "$@"\n')
    done = setup(checkout, PYTHON="oldpython")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Python >= 3.11 found as oldpython" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_setup_without_ensurepip_says_what_to_install(checkout: Path) -> None:
    """Debian's python3 comes without the means to make a virtual environment."""
    refuse = 'case "$*" in *ensurepip*|*virtualenv*) exit 1;; esac\n'
    program(checkout / "bin" / "debianpython", refuse + f'exec {sys.executable} "$@"\n')
    done = setup(checkout, PYTHON="debianpython")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "apt-get install python3-venv" in done.stderr


def fake_python(checkout: Path) -> None:
    """A Python whose pip notes its arguments in pip.log and exits with what `answer` says; probes succeed."""
    (checkout / "answer").write_text("0")
    program(
        checkout / "bin" / "fakepython",
        'case "$*" in\n'
        '    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;\n'
        '    *"pip "*) echo "$*" >> pip.log; exit "$(cat answer)";;\n'
        "esac\n",
    )


def installs(checkout: Path) -> list[str]:
    return (checkout / "pip.log").read_text().splitlines()


def test_setup_is_repeated_only_when_its_inputs_change(checkout: Path) -> None:
    """A failed installation is done again; a finished one is not, until the constraints change."""
    fake_python(checkout)
    (checkout / "answer").write_text("1")
    assert setup(checkout, PYTHON="fakepython").returncode == 1
    (checkout / "answer").write_text("0")
    assert setup(checkout, PYTHON="fakepython").returncode == 0
    assert len(installs(checkout)) == 2
    assert "--constraint constraints.txt" in installs(checkout)[1]
    assert "up to date" in setup(checkout, PYTHON="fakepython").stdout
    assert len(installs(checkout)) == 2
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert setup(checkout, PYTHON="fakepython").returncode == 0
    assert len(installs(checkout)) == 3


@pytest.mark.parametrize(
    ("system", "gpu", "small"),
    [("Linux x86_64", False, True), ("Linux x86_64", True, False), ("Darwin arm64", False, False)],
)
def test_only_linux_without_a_gpu_takes_the_small_torch(checkout: Path, system: str, gpu: bool, small: bool) -> None:
    fake_python(checkout)
    program(checkout / "bin" / "uname", f"echo {system}\n")
    program(checkout / "bin" / "nvidia-smi", f"exit {0 if gpu else 1}\n")
    assert setup(checkout, PYTHON="fakepython").returncode == 0
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in installs(checkout)[0]) is small


def test_mutation_testing_finds_the_tests_of_a_module() -> None:
    """Through the module's own name and through its floor's public names; other test files are left out."""
    path = ROOT / "scripts" / "mutate.py"
    spec = importlib.util.spec_from_file_location("mutate", path)
    assert spec is not None
    assert spec.loader is not None
    mutate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutate)
    assert mutate.module_of("algorithms/methods/pairwise.py") == "polyturn.algorithms.methods.pairwise"
    assert "tests/algorithms/losses/test_losses.py" in mutate.importers("algorithms/losses.py")
    assert "tests/algorithms/methods/test_examples.py" in mutate.importers(
        "algorithms/methods/pairwise.py"
    )  # MDPO, by its floor
    assert mutate.importers("envs/grading/units.py") == []
    done = subprocess.run([sys.executable, path, "envs/none.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected a source file of the repository, got 'envs/none.py'" in done.stderr
