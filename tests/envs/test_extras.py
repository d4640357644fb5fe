"""Messages about missing extras name an installation that exists: polyturn is on no index yet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polyturn.envs import extras


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ({"url": "file:///a%20b/polyturn", "dir_info": {"editable": True}}, 'pip install -e "/a b/polyturn[peft]"'),
        ({"url": "file:///src/polyturn", "dir_info": {}}, 'pip install "/src/polyturn[peft]"'),
        ({"url": "file:///d/p.whl", "archive_info": {}}, 'pip install "polyturn[peft] @ file:///d/p.whl"'),
        ({}, 'pip install "PATH[peft]", where PATH is the repository or the wheel that polyturn was installed from'),
    ],
)
def test_the_command_names_where_polyturn_came_from(
    note: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return json.dumps(note) if note and name == "direct_url.json" else None

    monkeypatch.setattr(extras, "distribution", lambda name: Installed())
    assert extras.how_to_install("peft") == expected
