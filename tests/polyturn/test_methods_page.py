"""The page docs/methods.md: every method has a section that says what its code says."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.algorithms import METHODS, Example, collate
from polyturn.algorithms.batch import Batch
from polyturn.benchmarks.running.suite import names
from polyturn.envs.trajectory import Trajectory, Turn

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
WAYS = {"kl": 0.1}
"""Settings that make a loss report more than its default does."""


def line(name: str, label: str) -> str:
    """What a section says after a label."""
    (found,) = re.findall(rf"^- \*\*{label}:\*\* (.*)$", SECTIONS[name], re.MULTILINE)
    return str(found)


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def row(seed: int, *actions: list[int]) -> Trajectory:
    turns = tuple(
        Turn("o", "a", 0.0, context_ids=np.array([100 + seed, 50], np.int32), action_ids=np.array(action, np.int32),
             logps=np.full(len(action), -1.0, np.float32))
        for action in actions
    )  # fmt: skip
    return Trajectory("Toy-v0", seed, turns, terminated=True)


def batch(*, mismatched: bool) -> Batch:
    """Two groups of a better and a worse row of two turns, with everything that any method reads."""
    examples = [
        Example(
            (row(seed, [1, 2], [3]), row(seed, [4], [5, 6])),
            np.array([[0, 1]]),
            scores=np.array([1.0, 0.0]),
            desirable=np.array([1.0, 0.0]),
        )
        for seed in (0, 1)
    ]
    made = collate(examples, mismatched=mismatched)
    zero = torch.zeros(made.ids.shape, dtype=torch.float64)
    return replace(made, outputs={"values": zero, "kl": zero})


def reported(method: Any) -> set[str]:
    made = batch(mismatched=method.needs.mismatched)
    logps = torch.full(made.ids.shape, -1.0, dtype=torch.float64)
    return set(method.loss(logps, logps - 0.5, made).metrics)


def test_every_method_has_a_section_and_no_other_thing_has() -> None:
    assert sorted(SECTIONS) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
class TestSection:
    def test_settings_and_defaults_are_the_classs(self, name: str) -> None:
        table = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \| .+ \|$", SECTIONS[name], re.MULTILINE))
        wanted = {}
        for field in fields(METHODS[name]):  # type: ignore[arg-type]
            assert field.default is not MISSING
            wanted[field.name] = getattr(field.default, "__name__", None) or repr(field.default).replace("'", '"')
        assert table == wanted

    def test_needs_are_those_it_declares(self, name: str) -> None:
        needs = METHODS[name]().needs
        said = {each.name for each in fields(needs)} & quoted(line(name, "Needs"))
        assert said == {each.name for each in fields(needs) if getattr(needs, each.name)}

    def test_what_to_watch_is_reported(self, name: str) -> None:
        made = METHODS[name]
        settings = {each.name for each in fields(made)}  # type: ignore[arg-type]
        found = reported(made()) | reported(made(**{k: v for k, v in WAYS.items() if k in settings}))
        watched = quoted(line(name, "Watch"))
        assert watched
        assert watched <= found

    def test_suites_exist_and_a_paper_is_named(self, name: str) -> None:
        suites = {command.removeprefix("polyturn bench ") for command in quoted(line(name, "Shown by"))}
        assert suites
        assert suites <= set(names())
        assert "arXiv" in line(name, "Paper")
        assert re.search(r"^```text\n.+?^```$", SECTIONS[name], re.MULTILINE | re.DOTALL), "no equation"


def test_every_link_of_the_page_to_itself_has_a_section() -> None:
    for place in re.findall(r"\]\(#(\w+)\)", PAGE):
        assert place in SECTIONS
