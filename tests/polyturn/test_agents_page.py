"""The page docs/agents.md: its Python runs as it stands, and is short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agents.md"


def test_the_page_runs_in_at_most_forty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    code = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(blocks) == 3
    assert len(code) <= 40
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert [len(segment) for segment in names["groups"][0][0].segments] == [1, 1]
    assert len(names["examples"]) == 1


@pytest.mark.parametrize("name", ["sandboxed_programs.md", "steps.md"])
def test_a_page_beside_it_runs_in_at_most_forty_lines(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PAGE.parent / name).read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 40
    exec(compile(blocks[0], name, "exec"), {})
