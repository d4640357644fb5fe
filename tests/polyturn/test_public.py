"""The public surface: what `import *` of a floor gives is enough to use the floor, and examples use nothing else."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("sandbox", "envs", "agents", "algorithms")
PACKAGES = ("polyturn", *(f"polyturn.{floor}" for floor in FLOORS))
# Made by public functions; a caller passes them on or enters them as a context.
RESULTS = {"Caller", "ChatTemplate", "Engine", "Forest", "Minibatches", "Snapshot", "TabularModel", "WithoutAdapters"}


def names(package: str) -> dict[str, Any]:
    """What `from package import *` gives."""
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


PUBLIC = {name: value for floor in FLOORS for name, value in names(f"polyturn.{floor}").items()}


def functions(value: Any) -> Iterator[Any]:
    """A public function, or the public methods and properties of a public class."""
    if inspect.isfunction(value):
        yield value
    if inspect.isclass(value):
        for name, part in vars(value).items():
            part = part.__func__ if isinstance(part, classmethod | staticmethod) else part
            part = part.fget if isinstance(part, property) else part
            if inspect.isfunction(part) and (not name.startswith("_") or name in ("__init__", "__call__")):
                yield part


def classes(hint: Any) -> Iterator[type]:
    """The classes of this package that a type is made of."""
    if inspect.isclass(hint) and hint.__module__.startswith("polyturn."):
        yield hint
    for part in typing.get_args(hint):
        yield from classes(part)


def test_every_class_that_a_public_signature_names_is_public() -> None:
    hidden = {
        f"{name}.{function.__name__}: {found.__qualname__}"
        for name, value in PUBLIC.items()
        for function in functions(value)
        for hint in typing.get_type_hints(function).values()
        for found in classes(hint)
        if found.__name__ not in RESULTS and PUBLIC.get(found.__name__) is not found
    }
    assert hidden == set()


def test_every_error_that_a_public_docstring_names_can_be_caught_by_a_public_name() -> None:
    known = {*vars(builtins), *PUBLIC, "ResetNeeded"}  # the last is Gymnasium's
    hidden = set()
    for name, value in PUBLIC.items():
        for documented in (value, *functions(value)):
            raised = re.search(r"^Raises:\n((?:    .*\n?)+)", inspect.getdoc(documented) or "", re.MULTILINE)
            errors = re.findall(r"^    (\w+):", raised[1], re.MULTILINE) if raised else []
            hidden |= {f"{name}: {error}" for error in errors if error not in known}
    assert hidden == set()


def test_every_built_in_environment_and_method_is_public() -> None:
    from gymnasium.envs.registration import registry

    import polyturn

    built_in = [polyturn.envs.registration._BUILT_IN[key] for key in registry if key.startswith("polyturn/")]
    assert {place.split(":")[1] for place in built_in} <= set(names("polyturn.envs"))
    methods = names("polyturn.algorithms")["METHODS"]
    assert {method.__name__ for method in methods.values()} <= set(names("polyturn.algorithms"))


def test_a_name_means_one_thing_in_all_floors() -> None:
    places: dict[str, list[Any]] = {}
    for package in PACKAGES:
        for name, value in names(package).items():
            places.setdefault(name, []).append(value)
    assert [name for name, values in places.items() if any(value is not values[0] for value in values)] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/SECURITY.md"])
def test_examples_import_public_names_from_floors(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    wrong = []
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyturn"):
            given = names(node.module) if node.module in PACKAGES else {}  # type: ignore[arg-type]
            wrong += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in given]
    assert wrong == []
    assert blocks or page != "README.md"
