"""The local sandbox by the name of its level, as root and as nobody: what each promises holds there, too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lazy_loader
import pytest

import polyturn.sandbox
from polyturn.sandbox import SandboxUnavailable
from polyturn.sandbox.local import LocalSandbox, bubblewrap_works

NOBODY = 65534
PROGRAM = (Path(__file__).parent / "level_program.py").read_text()


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """A copy of the sandbox that every user may read, with nothing beside it."""
    with tempfile.TemporaryDirectory(prefix="polyturn-plain-") as name:
        root = Path(name)
        (root / "polyturn").mkdir()
        (root / "polyturn" / "__init__.py").write_text("")
        shutil.copytree(
            Path(polyturn.sandbox.__file__).parent, root / "polyturn" / "sandbox",
            ignore=shutil.ignore_patterns("__pycache__"),
        )  # fmt: skip
        shutil.copytree(Path(lazy_loader.__file__).parent, root / "lazy_loader")
        (root / "own").write_text("the user's own file")
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield root


def interpreter_for_all() -> str:
    """An interpreter that every user may start, new enough."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and all(
            folder.stat().st_mode & 0o001 for folder in Path(os.path.realpath(path)).parents
        ):
            asked = subprocess.run([path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False)
            if asked.returncode == 0:
                return path
    pytest.skip("no interpreter here that every user may read")


def carried_out(package: Path, level: str, user: int | None, kernel: str = "") -> dict[str, Any]:
    """What the program found, run as that user."""
    python = interpreter_for_all() if user is not None or os.geteuid() == 0 else sys.executable
    command = [python, "-c", PROGRAM, level, *([kernel] if kernel else [])]
    if user is not None and os.geteuid() == 0:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(package), "HOME": str(package)}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp, Landlock and user ids are Linux's")
@pytest.mark.parametrize("user", [None, NOBODY], ids=["as started", "as nobody"])
@pytest.mark.parametrize("level", ["plain", "rootless"])
def test_a_level_holds_what_it_promises(package: Path, level: str, user: int | None) -> None:
    if level == "rootless" and not bubblewrap_works():
        pytest.skip("bubblewrap does not work here")
    check(carried_out(package, level, user), level, user)


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp, Landlock and user ids are Linux's")
@pytest.mark.parametrize("level", ["plain", "rootless"])
def test_so_it_does_on_a_kernel_whose_landlock_lets_signals_out(package: Path, level: str) -> None:
    """Before Linux 6.12 nothing but the filter keeps a program from signalling its user's other processes."""
    if level == "rootless" and not bubblewrap_works():
        pytest.skip("bubblewrap does not work here")
    check(carried_out(package, level, NOBODY, "old kernel"), level, NOBODY)


def check(said: dict[str, Any], level: str, user: int | None) -> None:
    root = os.geteuid() == 0 and user is None
    assert said["name"] == f"local/{level}"
    assert said["users"] == root
    assert (said["uid"] == 0) == root
    assert said["answer"] == said["after"] == "42"
    assert said["loop"][:2] == ["timeout", False]
    assert said["state"] == "40"
    assert said["stubborn"][:2] == ["timeout", True]
    assert said["memory"][0] == "memory"
    assert said["flood"][0] == "output-limit"
    assert said["program"][0] == "error"
    assert "PermissionError" in said["program"][2][0]
    assert "PermissionError" in said["socket"]
    assert said["socket"].endswith("(this sandbox has no network)")
    assert said["kill"][0] == "error"
    assert "Error" in said["kill"][2][0]
    for number in range(3):
        for kind in ("SOCK_DGRAM", "SOCK_RAW"):
            assert "PermissionError" in said[f"{kind} {number}"][0], kind
        assert "Error" in said[f"SOCK_STREAM {number}"][0]
    assert said["heard"] == []
    assert said["metadata kept"]
    assert said["own metadata"] == ["ok", False, []]
    if "branch" in said:
        assert said["branch"] == "('A', 'A')"
        assert all("PermissionError" in error or "FileNotFound" in error for error in said["above"])
    for name in ("file", "write"):  # by Landlock or by mount, whichever the level has
        assert said[name][0] == "error" or not said["private"], name
    assert said["threads"][0] == "ok"
    assert said["crash"][:2] == ["crash", True]
    assert said["other"] == "(7, 'kept')"


def test_a_level_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="'auto', 'rootless' or 'plain'"):
        LocalSandbox("plane")


def test_plain_as_root_needs_an_interpreter_that_episodes_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyturn.sandbox.local._others_may_read", lambda path: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="an interpreter that every user may read"):
        LocalSandbox("plain", preload=())
