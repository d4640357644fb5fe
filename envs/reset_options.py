"""What `reset(options=...)` takes: an unknown name is refused, since a mistyped one would be ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polyturn.envs.suggest import did_you_mean


def check_reset_options(env: object, options: Mapping[str, Any] | None, known: Iterable[str] = ()) -> None:
    """Raises ValueError for an option of `reset` that an environment does not have.

    Args:
        env: The environment, whose class messages name.
        options: What `reset` was given.
        known: Names that it has.
    """
    names = tuple(known)
    for name in options or {}:
        if name not in names:
            hint = did_you_mean(name, names) if isinstance(name, str) else ""
            raise ValueError(
                f"{type(env).__name__}: options of reset: expected {', '.join(map(repr, names)) or 'none'}, got "
                f"{name!r}.{hint}"
            )
