"""Which code a suite's cells depend on: the modules they are made of, each with a digest.

Covered are the modules of `cells` and `run` and, from there on, whatever they import, also inside functions, of the
suite's own package and of polyturn. For a suite in a single file, the modules beside that file are its own package. Not
covered are other packages, modules whose names are made when the code runs, data files, and the module of `report`,
which makes no cell. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

_INSTALLED = ("site-packages", "dist-packages")


def modules_of(*functions: Callable[..., Any], without: Callable[..., Any] | None = None) -> Mapping[str, str]:
    """Digests of the modules that functions stand in and of those these import.

    Args:
        functions: Where to begin.
        without: A function whose module is left out, with what only that one imports, unless the others stand in it.

    Returns:
        From a module's name to its digest. Modules without a file, as of a prompt, are not in it.
    """
    starts = tuple(sorted({home_of(function) for function in functions}))
    left_out = None if without is None else home_of(without)
    return _reached(starts, None if left_out in starts else left_out)


def home_of(function: Callable[..., Any]) -> str:
    """The module in which a function, a method, a partial or the class of a callable object stands."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    home = getattr(function, "__module__", None) or type(function).__module__
    return str(home)


@functools.cache
def _reached(starts: tuple[str, ...], left_out: str | None) -> Mapping[str, str]:
    found: dict[str, str] = {}
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name in found or name == left_out:
            continue
        file = _file_of(name)
        if file is None:
            continue
        tree = ast.parse(file.read_bytes())
        found[name] = _digest(tree)
        waiting += [each for each in _imported(tree, name) if _is_ours(each, starts)]
    return dict(sorted(found.items()))


def _is_ours(name: str, starts: tuple[str, ...]) -> bool:
    """Whether a module belongs to polyturn, to the package of a start, or lies beside a start that is a single file."""
    top = name.partition(".")[0]
    if top == "polyturn" or any("." in start and start.partition(".")[0] == top for start in starts):
        return True
    if top in sys.stdlib_module_names:
        return False
    file = _file_of(top)
    folder = None if file is None else (file.parent.parent if file.name == "__init__.py" else file.parent)
    beside = {home.parent for start in starts if "." not in start and (home := _file_of(start)) is not None}
    return folder in beside and folder is not None and folder.name not in _INSTALLED


def _file_of(name: str) -> Path | None:
    """The Python file of a module, without importing it (but its packages)."""
    loaded = sys.modules.get(name)
    try:
        place = getattr(loaded, "__file__", None) if loaded is not None else getattr(find_spec(name), "origin", None)
    except (ImportError, ValueError, AttributeError):
        return None
    file = Path(place) if place and place.endswith(".py") else None
    return file if file is not None and file.is_file() else None


def _imported(tree: ast.Module, name: str) -> Iterator[str]:
    """The modules that a module's import statements name, with the packages they lie in."""
    file = _file_of(name)
    package = name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            yield from _with_packages(base)
            for alias in node.names:
                yield f"{base}.{alias.name}"  # where it is a module
                yield from _with_packages(_lazy_names(base).get(alias.name, ""))


def _with_packages(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


@functools.cache
def _lazy_names(package: str) -> Mapping[str, str]:
    """For a package whose names a stub file lists: from each name to the module that it comes from."""
    if package.partition(".")[0] != "polyturn":
        return {}
    file = _file_of(package)
    stub = None if file is None else file.with_suffix(".pyi")
    if stub is None or not stub.is_file():
        return {}
    return {
        alias.asname or alias.name: resolve_name("." * node.level + (node.module or ""), package)
        for node in ast.walk(ast.parse(stub.read_bytes()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _digest(tree: ast.Module) -> str:
    """Of what the code does: without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.blake2b(ast.dump(tree).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
