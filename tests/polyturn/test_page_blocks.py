"""Python blocks of pages that no other test runs, each page in order and in a small form, and docstring examples.

The small form changes numbers and names in the text of a block, so that the rest runs as it is printed.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyturn.agents import Sampling, ScriptedTeacher, collect, tiny_policy
from polyturn.envs import dialogue_of, write_dialogues

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (ROOT / "README.md", ROOT / "docs" / "GPUS.md")
READ_ONLY = ("cluster.md",)
"""Pages whose blocks need machines: a running Ray cluster."""
SMALL: dict[str, dict[str, str]] = {
    "README.md": {
        "max_new_tokens=512": "max_new_tokens=4",
        '"polyturn/ToolMath-v0"': '"polyturn/TokenLength-v0"',  # a reward that random weights earn now and then
        "groups=64, group_size=8": "groups=2, group_size=4",
        "steps=20": "steps=1",
        "CollectOptions(groups=8, group_size=2)": "CollectOptions(groups=1, group_size=2, sampling=SHORT)",
        "Rivals(reference, env, judge)": "Rivals(reference, env, judge, starts=1, sampling=SHORT)",
        "steps=300": "steps=1",
        "epochs=3": "epochs=1",
        "max_new_tokens=64": "max_new_tokens=4",
        "groups=64,\n    group_size=4": "groups=1,\n    group_size=2",
        'open_sandbox("docker")': 'open_sandbox("local")',
    },
}
"""By page, what the small form changes."""


def small(page: Path) -> list[tuple[int, str]]:
    """The page's blocks in their small form, each with its line."""
    text = page.read_text("utf-8")
    # A block begins on the line after its fence.
    blocks = [(text.count("\n", 0, found.start()) + 1, found[1]) for found in BLOCK.finditer(text)]
    for old, new in SMALL.get(page.name, {}).items():
        assert any(old in code for _, code in blocks), f"{page.name} has no {old!r} any more: change SMALL"
        blocks = [(line, code.replace(old, new)) for line, code in blocks]
    return blocks


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the pages speak of: small models of random weights, and recorded dialogues."""
    monkeypatch.chdir(tmp_path)
    groups = collect(ScriptedTeacher(), "polyturn/EducationDialogue-v0", groups=3, progress=False)
    write_dialogues("train.json", [dialogue_of(group[0]) for group in groups])
    texts = [turn.observation + turn.action for group in groups for turn in group[0].turns]
    policy = tiny_policy(texts, seed=0, vocab_size=400, hidden=16, layers=1, heads=2, context=2048)
    for name in ("my/model", "my/base", "runs/sft/policy"):
        policy.save_pretrained(name)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "page", "SHORT": Sampling(max_new_tokens=4)}
    for line, code in small(page):
        # An error is shown at its line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)
    if page.name == "README.md":
        assert names["examples"]
        assert len(names["students"]) == 1
        assert names["result"].value == "[2, 3]"


def test_no_page_with_python_is_missed() -> None:
    tests = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    pages = [page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if BLOCK.search(page.read_text())]
    assert {page.name for page in PAGES} < {page.name for page in pages}
    assert [page.name for page in pages if f'"{page.name}"' not in tests] == []


@pytest.mark.parametrize("page", READ_ONLY)
def test_a_block_that_is_not_run_imports_what_there_is(page: str) -> None:
    for block in BLOCK.findall((ROOT / "docs" / page).read_text("utf-8")):
        exec("".join(f"{line}\n" for line in block.splitlines() if re.match(r"(from|import) ", line)), {})
        compile(block, page, "exec")


def documented() -> Iterator[tuple[str, Any]]:
    """Every public name, and for a public module what it defines."""
    for floor in ("sandbox", "envs", "agents", "algorithms"):
        package = import_module(f"polyturn.{floor}")
        for name in package.__all__:
            value = getattr(package, name)
            if isinstance(value, ModuleType):
                own = {
                    key: each for key, each in vars(value).items() if getattr(each, "__module__", "") == value.__name__
                }
                yield from ((f"{floor}.{name}.{key}", each) for key, each in own.items())
            elif isinstance(value, type) or callable(value):
                yield f"{floor}.{name}", value


EXAMPLES = {
    test.name: test
    for name, value in documented()
    for test in doctest.DocTestFinder(exclude_empty=True).find(value, name, module=False, globs={})
    if test.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_docstring_is_right(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(EXAMPLES[name], out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_examples_are_found() -> None:
    assert {"envs.by_score", "algorithms.losses.gpo"} <= EXAMPLES.keys()
