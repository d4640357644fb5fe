"""Agents for tests of clusters: workers load this module by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from polyturn.agents.agent import Episode


class Counting:
    """Guesses by its own random numbers; optionally slowly."""

    name = "counting"
    max_concurrency = 4

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def act(self, episode: Episode) -> str:
        time.sleep(self.seconds)
        return str(int(episode.rng.integers(1, 51)))


class Killer(Counting):
    """Kills its process in the middle of an episode: of one task, as long as there is a file to remove.

    Args:
        lives: A folder; each death takes one file out of it.
        seed: Of the start whose episodes do it; None: any.
    """

    def __init__(self, lives: Path, seed: int | None = None) -> None:
        super().__init__()
        self.lives, self.seed = lives, seed

    def act(self, episode: Episode) -> str:
        if len(episode.turns) == 1 and self.seed in (None, episode.seed):
            for life in sorted(self.lives.iterdir()):
                try:
                    life.unlink()
                except FileNotFoundError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().act(episode)


class Waiting(Counting):
    """Says where it is, and waits on one node until that is gone; elsewhere until it has been there.

    Args:
        folder: Takes a file named after the node.
        node: Ray's id of the node on which it waits.
    """

    def __init__(self, folder: Path, node: str) -> None:
        super().__init__()
        self.folder, self.node = folder, node

    def act(self, episode: Episode) -> str:
        import ray

        here = ray.get_runtime_context().get_node_id()
        (self.folder / here).touch()
        while here == self.node or not (self.folder / self.node).exists():
            time.sleep(0.05)
        return super().act(episode)


class Unsendable(Counting):
    """Holds what no other process can have."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
