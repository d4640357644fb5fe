"""The pages of docs/ that readers copy from: their Python runs, their commands and messages exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from polyturn.cli import parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# The blocks of one page run in order, in one folder.
RUN = [DOCS / name for name in ("start.md", "concepts.md", "tutorials.md")]
FLOORS = ("sandbox", "envs", "agents", "algorithms", "benchmarks", "polyturn")
SHOWN = sorted(DOCS.rglob("*.md"))  # commands of every page are parsed


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages, in order."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `polyturn` command in a page's shell blocks."""
    found = []
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] and words[0].rpartition("/")[2] == "polyturn":
                found.append(words[1:])
    return found


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registered = set(gymnasium.registry)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), names)
    finally:
        for name in set(gymnasium.registry) - registered:
            del gymnasium.registry[name]


@pytest.mark.parametrize("page", [*SHOWN, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page: Path) -> None:
    for words in commands(page):
        if "--help" in words:
            with pytest.raises(SystemExit) as asked:
                parse(words)
            assert asked.value.code == 0
        else:
            assert callable(parse(words).run), words


def test_the_start_page_has_commands_and_python() -> None:
    assert len(commands(DOCS / "start.md")) > 3
    assert blocks(DOCS / "start.md", "python")


def written() -> list[str]:
    """Every text in the code; a placeholder of an f-string is an ellipsis."""
    found = []
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_of_the_page_of_failures_is_in_the_code() -> None:
    texts = written()
    messages = [block.strip() for block in blocks(DOCS / "failures.md", "text")]
    assert len(messages) > 20
    for message in messages:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)
        assert max(map(len, message.split("..."))) > 15, f"too little of it to be found: {message}"
        assert any(pattern.search(text) for text in texts), message
