"""The package as users get it: what the wheel holds, what importing costs, which way the floors import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib import import_module
from pathlib import Path

import pytest

import polyturn

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("sandbox", "envs", "agents", "algorithms", "benchmarks")


def sources() -> Iterator[tuple[Path, str]]:
    """Every file of the package in this checkout with the name it must have once installed."""
    for folder in ("polyturn", *FLOORS):
        prefix = "polyturn" if folder == "polyturn" else f"polyturn/{folder}"
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and "__pycache__" not in inside.parts and inside.parts[0] != "results":
                yield path, f"{prefix}/{inside.as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution as an installer without a checkout would."""
    # Built from a copy: a build folder in the checkout would put modules deleted long ago into the wheel.
    copy = tmp_path_factory.mktemp("source")
    for name in ("polyturn", *FLOORS, "tests", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel would install."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(program: str, path: Path | None = None) -> str:
    """Runs a program in a fresh interpreter, away from the checkout."""
    code = (f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else "") + program
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=path or "/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_file_of_every_floor_and_nothing_else(wheel: Path) -> None:
    expected = {name: path.read_bytes() for path, name in sources()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(expected)
        changed = [name for name in names if archive.read(name) != expected[name]]
    assert changed == []


def test_the_wheel_says_what_it_is(installed: Path) -> None:
    """One version, in polyturn/__init__.py; one command; the licence text is inside."""
    (info,) = installed.glob("*.dist-info")
    metadata = Parser().parsestr((info / "METADATA").read_text())
    assert metadata["Version"] == polyturn.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()
    assert "polyturn = polyturn.cli:main" in (info / "entry_points.txt").read_text()
    assert f"## {polyturn.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_package_imports(installed: Path) -> None:
    program = "import polyturn, polyturn.cli, polyturn.envs.trajectory as t; print(polyturn.__file__, t.__file__)"
    assert run(program, installed).split() == [
        str(installed / "polyturn" / "__init__.py"),
        str(installed / "polyturn" / "envs" / "trajectory.py"),
    ]


def test_importing_polyturn_loads_only_the_standard_library() -> None:
    """Best of three under half a second, and no module from outside the standard library."""
    program = """
import sys, time
before = set(sys.modules)  # what an editable install's .pth files load is not ours
start = time.perf_counter()
import polyturn
print(time.perf_counter() - start)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names))
"""
    answers = [run(program).splitlines() for _ in range(3)]
    assert {modules for _, modules in answers} == {"['polyturn']"}
    assert min(float(seconds) for seconds, _ in answers) < 0.5


def test_environments_load_no_torch() -> None:
    modules = [f"polyturn.envs.{path.stem}" for path in (ROOT / "envs").glob("*.py") if path.stem != "__init__"]
    assert run(f"import sys, {', '.join(modules)}; print('torch' in sys.modules)") == "False"


def test_every_public_name_resolves() -> None:
    for name in polyturn.__all__:
        assert getattr(polyturn, name) is not None
        assert name in dir(polyturn)
    for floor in FLOORS:
        assert getattr(polyturn, floor) is import_module(f"polyturn.{floor}")
    with pytest.raises(AttributeError, match="Trajektory"):
        polyturn.Trajektory  # noqa: B018


def test_checkers_see_the_same_public_names() -> None:
    """The lazy table and the imports that only type checkers read must not drift apart."""
    tree = ast.parse((ROOT / "polyturn" / "__init__.py").read_text())
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == polyturn._HOME
    assert {*seen, "__version__"} == set(polyturn.__all__)


def layout(folder: Path) -> Path:
    """The package as one plain tree, as type checkers see it."""
    shutil.copytree(ROOT / ".typing", folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return folder


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", ROOT / "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_checkers_see_every_module(tmp_path: Path) -> None:
    seen = {path.relative_to(tmp_path / "t").as_posix() for path in layout(tmp_path / "t").rglob("*.py")}
    assert seen == {name for _, name in sources() if name.endswith(".py")}


def test_floors_import_only_downwards(tmp_path: Path) -> None:
    done = lint_imports(layout(tmp_path / "layout"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("floor", "line"),
    [
        ("sandbox", "import polyturn.envs.trajectory"),
        ("agents", "import polyturn.algorithms"),
        ("envs", "import torch"),
        ("sandbox", "import numpy"),
    ],
)
def test_an_import_upwards_is_found(floor: str, line: str, tmp_path: Path) -> None:
    """The check above can fail."""
    folder = layout(tmp_path / "layout")
    (folder / "polyturn" / floor / "upwards.py").write_text(line + "\n")
    assert f"polyturn.{floor}.upwards -> {line.split()[1]}" in lint_imports(folder).stdout


def test_no_floor_is_imported_by_its_bare_name() -> None:
    """`import envs` works from the repository's root and makes a second copy of every class."""
    wrong = []
    for folder in ("polyturn", *FLOORS, "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                wrong += [f"{path.name}:{name}" for name in names if name.partition(".")[0] in FLOORS]
    assert wrong == []
