"""The commands in README and CONTRIBUTING exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path

import pytest

from polyturn import cli

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in any of some languages."""
    text = (ROOT / page).read_text()
    return [body for language, body in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL) if language in languages]


def commands(page: str) -> Iterator[list[str]]:
    for block in blocks(page, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_the_pages_exist(page: str) -> None:
    """Every `make` target is in the Makefile and every `polyturn` line parses."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = list(commands(page))
    assert found
    for words in found:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[0].endswith("polyturn"):
            with suppress(SystemExit) if {"--help", "--version"} & {*words} else nullcontext():
                cli.parse(words[1:])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_names_imported_in_the_pages_exist_and_are_public(page: str) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "polyturn":
                assert (node.module or "").count(".") < 2, f"{page}: {node.module}; import from a floor"
                module = import_module(node.module or "")
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page}: {node.module} has no {missing}"
