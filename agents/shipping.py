"""How agents travel to other processes: by pickle, or as a ticket that makes the same one there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Ticket:
    """How to make something in another process.

    Attributes:
        make: Makes it; picklable, as are its arguments.
        key: Equal for equal things, so that one that was made is kept for the next collection; None: made anew.
        folders: That it reads.
    """

    make: Callable[[], Any]
    key: str | None = None
    folders: tuple[str, ...] = ()


@runtime_checkable
class Shipped(Protocol):
    """An agent or option that is not pickled as it stands: weights travel as files."""

    def ship(self, root: Path) -> Ticket:
        """What makes the same thing elsewhere.

        Args:
            root: A folder that both processes see, for files.
        """
        ...
