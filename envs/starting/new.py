"""Writes a small installable package: an environment, an agent, a method or a suite that runs, to go on from."""

from __future__ import annotations

import keyword
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Literal, get_args

from polyturn.envs.settings import check_choice
from polyturn.envs.starting import templates

Kind = Literal["env", "agent", "method", "suite"]
_PARTS: dict[Kind, tuple[str, str, str, str, str]] = {
    # module, test, commands of the README, group of entry points, what the entry point names
    "env": (templates.ENV, templates.ENV_TEST, templates.ENV_README, "envs", "register"),
    "agent": (templates.AGENT, templates.AGENT_TEST, templates.AGENT_README, "agents", "TITLE"),
    "method": (templates.METHOD, templates.METHOD_TEST, templates.METHOD_README, "methods", "TITLE"),
    "suite": (templates.SUITE, templates.SUITE_TEST, templates.SUITE_README, "benchmarks", "SUITE"),
}


def new_package(kind: Kind, name: str, place: str | Path = ".") -> Path:
    """Writes the package into a new folder with its name.

    Args:
        kind: What it holds.
        name: A name for Python and for the command line: small letters, digits and underscores.
        place: Folder in which its folder is made.

    Returns:
        The package's folder.

    Raises:
        ValueError: A name that Python cannot import or that is taken.
        FileExistsError: The folder is there already.
    """
    check_choice("kind", kind, get_args(Kind))
    if not (name.isascii() and name.isidentifier() and name == name.lower()) or keyword.iskeyword(name):
        raise ValueError(f"expected a name of small letters, digits and underscores, such as word_games, got {name!r}")
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise ValueError(f"expected a name that no installed module has, got {name!r}; take another")
    folder = Path(place) / name
    if folder.exists():
        raise FileExistsError(f"expected a folder that is not there yet, got {str(folder)!r}")
    module, test, commands, group, point = _PARTS[kind]
    title = "".join(part.capitalize() for part in name.split("_"))

    def filled(text: str) -> str:
        for word, value in (("COMMANDS", commands), ("KIND", kind), ("GROUP", group), ("POINT", f"NAME:{point}")):
            text = text.replace(word, value)
        return text.replace("NAME", name).replace("TITLE", title)

    files = {
        f"{name}.py": module,
        f"tests/test_{name}.py": test,
        "README.md": templates.README,
        "pyproject.toml": templates.PYPROJECT,
        ".github/workflows/tests.yml": templates.CI,
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(filled(text), "utf-8")
    return folder
