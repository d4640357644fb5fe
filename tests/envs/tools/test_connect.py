"""The examples of docs/connect.md run as they stand, and none is longer than 40 lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "connect.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def marks(block: str) -> list[pytest.MarkDecorator]:
    """Where a block is run: a block of a package with an environment of its own says so in its first line."""
    if peer := re.match(r"# in the environment (\w+)", block):
        return [pytest.mark.peer(name=peer[1])]
    return [pytest.mark.adapters] if block.startswith("# needs the extra") else []


PARAMETERS = [pytest.param(block, marks=marks(block), id=str(place)) for place, block in enumerate(BLOCKS)]


@pytest.mark.parametrize("block", PARAMETERS)
def test_an_example_runs(block: str) -> None:
    assert len(block.splitlines()) <= 40
    exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})


def test_no_example_is_missed() -> None:
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python\n") > 4
