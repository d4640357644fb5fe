"""Task sets: sequences of mappings, or JSONL files of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tasks = Sequence[Mapping[str, Any]]


def read_tasks(source: str | Path | Tasks) -> Tasks:
    """The tasks of a JSONL file, or the sequence that was given.

    Raises:
        ValueError: No such file, a line that is no JSON object, or no task at all.
    """
    if not isinstance(source, str | Path):
        if not len(source):
            raise ValueError("tasks: expected at least one task, got none")
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"tasks: expected a JSONL file or a sequence of mappings, got {str(path)!r}: no such file")
    tasks = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            task = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got text that is no JSON: {error}"
            ) from None
        if not isinstance(task, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]}")
        tasks.append(task)
    if not tasks:
        raise ValueError(f"{path}: expected at least one task, got none")
    return tasks


def question_of(task: Mapping[str, Any], number: int) -> str:
    """What a task asks: its "question", or its "prompt", which may be chat messages.

    Raises:
        ValueError: It has neither.
    """
    asked = task.get("question", task.get("prompt"))
    if isinstance(asked, str):
        return asked
    if isinstance(asked, Sequence) and asked and all(isinstance(each, Mapping) for each in asked):
        return "\n\n".join(str(each.get("content", "")) for each in asked)
    raise ValueError(
        f'task {number}: expected "question" (text) or "prompt" (text or messages), got {", ".join(map(str, task))}'
    )
