"""What a process of a cluster does: it plays groups with agents and environments of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyturn.agents.collecting.blocking import first_of
from polyturn.agents.collecting.playing import Job
from polyturn.agents.collecting.running import EpisodeRunner
from polyturn.agents.collecting.work import Parcel
from polyturn.envs.trajectory import Trajectory


class RayWorker:
    """A process of a cluster that plays groups; made by `RayCluster`, an actor of Ray.

    Args:
        threads: torch's threads, as in the process that collects: sums differ in their last bits with another number.
    """

    def __init__(self, threads: int | None) -> None:
        self._threads = threads
        self._key = ""
        self._kept: dict[str, Any] = {}
        self._runner: EpisodeRunner | None = None
        self._player: Any = None

    async def ready(self, key: str, parcel: Sequence[Any]) -> bool:
        """Whether it can play groups of a collection: makes agents, which may load weights."""
        await self._open(key, parcel)
        return True

    async def play(
        self, key: str, parcel: Sequence[Any], jobs: Sequence[Job], done: Mapping[tuple[int, int], Trajectory]
    ) -> tuple[list[Trajectory], str | None]:
        """Plays jobs of one group.

        Args:
            key: Of the collection.
            parcel: A reference to its `Parcel`, in a list.
            jobs: What to play.
            done: Finished members of the group, of which the shared prefix is taken.

        Returns:
            Their trajectories, and what the last failure said.
        """
        runner = await self._open(key, parcel)
        try:
            found = await runner.run(runner.plan(jobs, done), len(jobs))
        except BaseExceptionGroup as errors:
            first = first_of(errors)
            raise first from first.__cause__
        runner.forget(jobs[0].group)
        last = self._player.last_failure
        return list(found.values()), None if last is None else f"{type(last).__name__}: {last}"

    async def leave(self) -> None:
        """Closes the environments of a collection that is over; what was loaded stays."""
        runner, self._runner, self._key = self._runner, None, ""
        if runner is not None:
            await runner.close()

    async def _open(self, key: str, parcel: Sequence[Any]) -> EpisodeRunner:
        if self._runner is not None and self._key == key:
            return self._runner
        packed: Parcel = await parcel[0]
        if self._runner is not None and self._key == key:  # another call has opened it meanwhile
            return self._runner
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        former = self._runner
        # Nothing is awaited from here to the end, so that two calls cannot open it twice.
        work = packed.open(self._kept)
        self._player = work.player()
        self._runner = EpisodeRunner(self._player, work.make, work.env_id, work.width, lambda _: None, work.branches)
        self._key, runner = key, self._runner
        if former is not None:
            await former.close()
        return runner
