"""Docker tests cannot vanish unseen: a skipped one fails where Docker is required and is counted where it is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.docker
def test_in_a_container():
    pytest.skip("the image is missing")

def test_says_docker():
    pytest.skip("needs Docker")

def test_elsewhere():
    pytest.skip("only on another system")

@pytest.mark.xfail(reason="docker has a bug")
def test_known():
    assert False
"""


WHOLE_FILE = "import pytest\npytest.skip('no docker', allow_module_level=True)\n"


def outcome(folder: Path, tests: str, required: str, *options: str) -> str:
    """What pytest prints for some tests beside this suite's conftest.py."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder)
    (folder / "test_them.py").write_text(tests)
    (folder / "test_whole_file.py").write_text(WHOLE_FILE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = docker: needs Docker\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "POLYTURN_REQUIRE_DOCKER": required}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment).stdout


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["alone", "workers"])
def test_a_skipped_docker_test_fails_where_docker_is_required(tmp_path: Path, options: list[str]) -> None:
    """A whole file that skips itself is an error, whereupon pytest would run nothing else."""
    said = outcome(tmp_path, TESTS, "1", "--continue-on-collection-errors", *options)
    # Where no engine answers the marked test is stopped in its set-up, which pytest counts as an error.
    assert re.search("(2 failed, 1 skipped, 1 xfailed, 1 error|1 failed, 1 skipped, 1 xfailed, 2 errors) in", said)
    for name in ("test_in_a_container", "test_says_docker"):
        assert f"{name}: skipped although POLYTURN_REQUIRE_DOCKER=1" in said


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["alone", "workers"])
def test_skipped_docker_tests_are_counted_where_it_is_not(tmp_path: Path, options: list[str]) -> None:
    said = outcome(tmp_path, TESTS, "0", *options)
    assert "Docker tests skipped: 3" in said
    assert "4 skipped, 1 xfailed" in said.splitlines()[-1]
