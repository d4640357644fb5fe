"""What others wrote, by `module:attribute` or by an installed package's entry point."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from polyturn.envs.suggest import did_you_mean


class PluginError(ValueError):
    """What was named cannot be loaded, or is of another kind than was asked for."""


def is_reference(name: str) -> bool:
    """Whether a name has the form `module:attribute`, such as "acme.agents:Haggler"."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def attribute(name: str, what: str) -> Any:
    """What stands at `module:attribute`; modules of the working folder count.

    Args:
        name: The reference.
        what: What it is to be, for messages: "an agent".

    Raises:
        PluginError: No such module or attribute, or a module that fails when imported.
    """
    if not is_reference(name):
        raise PluginError(f"expected {what} as module:attribute, got {name!r}")
    module, _, path = name.partition(":")
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            known, owner = dir(found), found
            found = getattr(owner, part)
    except ModuleNotFoundError as error:
        raise PluginError(
            f"expected {what} at {name}, got {error}. Install the package, or run from the folder that holds it."
        ) from error
    except AttributeError as error:
        hint = did_you_mean(part, known)
        raise PluginError(f"expected {what} at {name}, got {error}.{hint}") from error
    except (Exception, SystemExit) as error:  # a module of others may raise anything
        raise PluginError(f"expected {what} at {name}, got {type(error).__name__} on import: {error}") from error
    return found


def plugins(group: str) -> dict[str, Callable[[], Any]]:
    """What installed packages offer under an entry-point group, such as "polyturn.agents", by name.

    Nothing is imported until a value is called.
    """
    return {point.name: point.load for point in entry_points(group=group)}


def named(name: str, group: str, what: str) -> Any:
    """The plug-in of a group with this name, or what stands at `module:attribute`.

    Args:
        name: The name or the reference.
        group: The entry-point group.
        what: What it is to be, for messages.

    Raises:
        PluginError: There is none, or it cannot be loaded.
    """
    found = plugins(group)
    if name not in found:
        return attribute(name, what)
    try:
        return found[name]()
    except (Exception, SystemExit) as error:  # a package of others may raise anything
        raise PluginError(
            f"expected {what} from the plug-in {name!r} of {group}, got {type(error).__name__}: {error}"
        ) from error


def loaded(group: str) -> dict[str, Any]:
    """Every plug-in of a group that loads; one that does not is named in a warning and left out."""
    found: dict[str, Any] = {}
    for name, load in plugins(group).items():
        try:
            found[name] = load()
        except (Exception, SystemExit) as error:  # a broken package of others must not take the others away
            warnings.warn(
                f"the plug-in {name!r} of {group} cannot be used: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return found
