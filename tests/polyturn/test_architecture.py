"""The page that shows newcomers around: every path and name in it exists, and its drawing is that of the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
SPANS = re.compile(r"`([^`]+)`")
ELSEWHERE = {"reset", "gymnasium", "pytest", "make", "polyturn"}  # names of others


def defined(path: Path) -> set[str]:
    """Names that a file, or the files of a folder, define: classes, functions, fields, constants."""
    found: set[str] = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def sections() -> list[str]:
    """List items and paragraphs, each with the paths that its names belong to."""
    text = PAGE.partition("## Rooms")[0]
    return [part for part in re.split(r"\n\n|\n(?=\d+\. |- |\| )", text) if "`" in part]


@pytest.mark.parametrize("section", sections(), ids=lambda text: " ".join(text.split())[:40])
def test_every_path_and_name_exists(section: str) -> None:
    spans = SPANS.findall(section)
    paths = [span for span in spans if "/" in span and " " not in span]
    for path in paths:
        assert (ROOT / path).exists(), path
    known = set().union(*(defined(ROOT / path) for path in paths if path.endswith((".py", "/"))))
    names = [span for span in spans if re.fullmatch(r"[A-Za-z_][\w.]*", span) and not span.startswith("polyturn.")]
    for name in names:
        if name.partition(".")[0] not in ELSEWHERE:
            assert name.rpartition(".")[2] in known, f"{name} is defined in none of {paths}"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = util.spec_from_file_location("architecture", ROOT / "scripts" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "architecture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, "run `python scripts/architecture.py`" + done.stderr


def test_rooms_make_no_circles_and_none_is_a_list(script: Any) -> None:
    """A circle of rooms is one room; a folder of more than twenty files is none."""
    for floor in script.FLOORS:
        _, arrows = script.arrows(floor)
        TopologicalSorter(arrows).prepare()  # raises CycleError
        folders = [ROOT / floor, *(path for path in (ROOT / floor).rglob("*") if path.is_dir())]
        for folder in folders:
            if "results" not in folder.parts:
                files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
                assert len(files) <= 20, folder
