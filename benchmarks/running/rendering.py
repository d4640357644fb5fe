"""Writes a suite's report and pictures again from its `results.json`, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, SuiteError


def saved_record(suite: str, folder: Path) -> dict[str, Any]:
    """What a folder's `results.json` holds.

    Raises:
        SuiteError: There is no such file, or it holds the results of another suite.
    """
    file = folder / "results.json"
    if not file.is_file():
        raise SuiteError(f"{file}: expected the results of {suite}, found no file; run `polyturn bench` first")
    record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if record.get("suite") != suite:
        raise SuiteError(f"{file}: expected results of {suite}, found results of {record.get('suite')!r}")
    return record


def saved_outcomes(suite: Suite, folder: Path) -> list[Outcome]:
    """The cells and results in a folder's `results.json`.

    Raises:
        SuiteError: As `saved_record`.
    """
    record = saved_record(suite.name, folder)
    return [Outcome(Cell(cell["name"], cell["seed"], cell["options"]), cell["result"]) for cell in record["cells"]]


def render(suite: Suite, results: Path, out: Path | None = None) -> str:
    """Draws the pictures and writes `report.md` from saved results.

    Args:
        suite: The suite of the report.
        results: Folder with `results.json`, which is only read.
        out: Where the report and the pictures go; by default next to the results.

    Returns:
        The report's text.

    Raises:
        SuiteError: As `saved_outcomes`.
    """
    outcomes = saved_outcomes(suite, results)
    out = results if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    text = suite.report(outcomes, out)
    (out / "report.md").write_text(text, "utf-8")
    return text
