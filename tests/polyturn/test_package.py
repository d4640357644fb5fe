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

ROOT = Path(__file__).resolve().parents[2]
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


def test_importing_polyturn_is_quick_and_registers_the_environments() -> None:
    """Best of three, in processor time, and nothing heavier than Gymnasium and numpy."""
    program = """
import sys, time
start = time.process_time()
import polyturn
print(time.process_time() - start)
heavy = {"torch", "transformers", "sympy", "scipy", "pandas", "matplotlib", "docker", "accelerate"}
print(sorted(heavy & set(sys.modules)))
from gymnasium.envs.registration import registry
print("polyturn/ToolMath-v0" in registry)
"""
    answers = [run(program).splitlines() for _ in range(3)]
    assert {(heavy, known) for _, heavy, known in answers} == {("[]", "True")}
    assert min(float(seconds) for seconds, _, _ in answers) < 0.3


def test_environments_load_no_torch() -> None:
    files = [name for _, name in sources() if name.startswith("polyturn/envs/") and name.endswith(".py")]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]
    assert run(f"import sys, {', '.join(modules)}; print('torch' in sys.modules)") == "False"


PACKAGES = ("polyturn", *(f"polyturn.{floor}" for floor in FLOORS[:-1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_listed_once_and_all_resolve(package: str) -> None:
    """The stub is the only list: what checkers read, what `import *` gives, what `dir` shows."""
    module = import_module(package)
    folder = ROOT / package.removeprefix("polyturn.")
    listed = [
        alias.asname
        for node in ast.parse((folder / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(listed) == len(set(listed))
    assert {*listed, *(["__version__"] if package == "polyturn" else [])} == set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(listed) <= set(dir(module))
    with pytest.raises(AttributeError, match="Trajektory"):
        module.Trajektory  # noqa: B018


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


def test_the_former_name_stands_in_one_line_of_the_changelog_only() -> None:
    """Another package has it on PyPI, so no message may say to install it."""
    name, found = "turn" + "wise", []
    kinds = {"", ".py", ".pyi", ".md", ".toml", ".txt", ".json", ".sh", ".svg", ".jinja"}
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT)
        hidden = any(part.startswith(".") or part in ("__pycache__", "build", "dist", "runs") for part in inside.parts)
        if path.is_file() and not hidden and path.suffix in kinds:
            lines = path.read_text("utf-8", "ignore").lower().splitlines()
            found += [f"{inside}: {line}" for line in lines if name in line]
    assert len(found) == 1
    assert found[0].startswith("CHANGELOG.md: ")
