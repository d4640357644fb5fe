"""Many episodes at once in one event loop: which is played when, in which environment, and what is done when it
fails."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from polyturn.agents.collecting.blocking import Lane, call
from polyturn.agents.collecting.branching import SharedPrefix, Todo
from polyturn.agents.collecting.playing import EpisodePlayer, EpisodeState, Job, TextEnvironment, forget, may_wait
from polyturn.agents.collecting.trees import branch_jobs, trunk_prefix
from polyturn.agents.loop_thread import LoopInterrupted
from polyturn.envs.trajectory import Trajectory
from polyturn.envs.viewing.text import printable
from polyturn.sandbox.sandbox import ImageMissing, SandboxUnavailable

# An episode whose infrastructure failed is tried again this often before it is recorded as invalid.
_RETRIES = 1
# Errors that say that an environment was asked for in a wrong way.
_WRONG_USE = (ValueError, TypeError, LookupError, AttributeError, ImportError)
# Seconds for closing an environment that is still in the middle of a call when a collection is stopped.
_CLOSING_S = 10.0


class CollectError(RuntimeError):
    """Every episode, or many in a row, failed: the infrastructure is down. What was finished is in the store."""


class Failures:
    """Tells a broken infrastructure from single episodes that fail.

    Args:
        width: Episodes under way at once.
        stored: Whether finished episodes are in a store.
    """

    def __init__(self, width: int, stored: bool) -> None:
        self._limit, self._stored = max(16, 2 * width), stored
        self._in_a_row = 0

    def note(self, trajectory: Trajectory, last: BaseException | None) -> None:
        """Counts an episode that has ended.

        Args:
            trajectory: Its record.
            last: What made the last invalid one fail.

        Raises:
            CollectError: It is one of many in a row that failed.
        """
        self._in_a_row = 0 if trajectory.error is None else self._in_a_row + 1
        if self._in_a_row >= self._limit:
            raise self._error(f"{self._limit} episodes in a row", last) from last

    def check_any(self, trajectories: Iterable[Trajectory], last: BaseException | None) -> None:
        """Raises CollectError if nothing but failures came back."""
        if last is not None and all(trajectory.error is not None for trajectory in trajectories):
            raise self._error("every episode", last) from last

    def _error(self, which: str, last: BaseException | None) -> CollectError:
        kept = "finished episodes are in the store; " if self._stored else ""
        said = str(last) if isinstance(last, EpisodeFailed) else f"{type(last).__name__}: {last}"
        return CollectError(
            f"{which} failed, the last with {said}; {kept}mend the cause and run the same command again"
        )


class EpisodeFailed(RuntimeError):
    """What an episode that was played in another process says of its failure."""


class EpisodeRunner:
    """Plays jobs in environments that it makes, holds for the next job, and closes.

    Args:
        player: Plays one.
        factory: Makes an environment.
        env_id: What warnings call it.
        width: Episodes under way at once.
        ended: Called with every trajectory as soon as it has ended.
        branches: Members that part from an episode at each of its turns.
    """

    def __init__(
        self,
        player: EpisodePlayer,
        factory: Callable[[], TextEnvironment],
        env_id: str,
        width: int,
        ended: Callable[[Trajectory], object],
        branches: int = 0,
    ) -> None:
        self._player, self._factory, self._env_id, self._ended = player, factory, env_id, ended
        self._width, self._branches = width, branches
        self._prefixes: dict[tuple[int, int | None], SharedPrefix] = {}
        self._left: Counter[tuple[int, int | None]] = Counter()  # members still to be played, by their prefix
        self._idle: list[tuple[TextEnvironment, Lane]] = []
        self._making, self._any_made = asyncio.Lock(), False
        self._room = asyncio.Semaphore(width)

    def plan(self, jobs: Sequence[Job], done: Mapping[tuple[int, int], Trajectory]) -> Todo[Job]:
        """What can be played at once, and what after a shared prefix; a shared prefix that a finished member has kept
        stands."""
        for (group, _), member in done.items():
            if "shared_prefix" in member.info:
                kept = SharedPrefix.of(member)
                self._prefixes.setdefault((group, kept.asked), kept)
        self._left.update(job.prefix for job in jobs)
        after: dict[tuple[int, int | None], list[Job]] = {}
        for job in jobs:
            if job.tree is not None:
                self._prefixes.setdefault(job.prefix, trunk_prefix(done[job.group, 0], cast("int", job.branch_at)))
            elif job.branch_at is not None and job.prefix not in self._prefixes:
                after.setdefault(job.prefix, []).append(job)
        trunks = [(job, ()) for job in jobs if job.kind == "trunk"]
        ready = [job for job in jobs if job.prefix not in after and job.kind != "trunk"]
        prefixes = [(replace(jobs[0], kind="shared prefix"), jobs) for jobs in after.values()]
        return Todo(ready, [*trunks, *prefixes])

    async def run(self, todo: Todo[Job], jobs: int) -> dict[tuple[int, int], Trajectory]:
        """Plays them all.

        Args:
            todo: What `plan` gave.
            jobs: How many those are.

        Returns:
            Trajectories by group and member. Several calls may be under way at once; they share the width.
        """
        results: dict[tuple[int, int], Trajectory] = {}
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._width if self._branches else min(self._width, jobs)):
                workers.create_task(self._work(todo, results))
        return results

    async def close(self) -> None:
        """Closes the environments that are held."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(self._close(*each) for each in idle))

    def forget(self, group: int) -> None:
        """Drops the shared prefixes of a group whose members have all been played."""
        for known in (self._prefixes, self._left):
            for key in [key for key in known if key[0] == group]:
                del known[key]

    async def _work(self, todo: Todo[Job], results: dict[tuple[int, int], Trajectory]) -> None:
        while (job := await todo.next()) is not None:
            async with self._room:
                held = [self._idle.pop()] if self._idle else []
                try:
                    state = await self._tried(held, job)
                    if job.kind != "shared prefix":
                        await self._played(job, held)
                finally:
                    self._idle += held
            if job.kind == "shared prefix":
                self._prefixes[job.prefix] = self._player.prefix(job, state)
                await todo.stands(job)
                continue
            trajectory = self._player.trajectory(job, state)
            results[job.group, job.member] = trajectory
            self._ended(trajectory)
            if job.kind == "trunk":
                parting = branch_jobs(job, trajectory, self._branches)
                for branch in parting:
                    self._prefixes[branch.prefix] = trunk_prefix(trajectory, cast("int", branch.branch_at))
                self._left.update(branch.prefix for branch in parting)
                await todo.stands(job, parting)

    async def _played(self, job: Job, held: Sequence[tuple[TextEnvironment, Lane]]) -> None:
        """After a group's last member, what the environment keeps of its shared prefix is let go."""
        self._left[job.prefix] -= 1
        prefix = self._prefixes.get(job.prefix)
        if self._left[job.prefix] == 0 and prefix is not None and held:
            env, lane = held[0]
            await forget(env, prefix.snapshot, lane if may_wait(env.unwrapped) else None)

    async def _tried(self, held: list[tuple[TextEnvironment, Lane]], job: Job) -> EpisodeState:
        """Plays a job in the environment that is held, or in a new one; once more if it fails."""
        prefix = self._prefixes.get(job.prefix)
        if prefix is not None and prefix.error is not None:
            return EpisodeState(task_id=prefix.task_id, first=dict(prefix.info), error=prefix.error)
        for _ in range(_RETRIES + 1):
            if not held:
                lane = Lane()
                try:
                    held.append((await self._made(lane), lane))
                except (SandboxUnavailable, ImageMissing, LoopInterrupted):
                    raise  # no episode can be played without it
                except Exception as failure:
                    lane.close()
                    # What was never made and is asked for in a wrong way fails each time in the same way.
                    if not self._any_made and isinstance(failure, _WRONG_USE):
                        raise
                    state = self._player.failed(failure, prefix)
                    continue
            env, lane = held[0]
            state = await self._player.play(env, job, prefix, lane)
            if state.error is None:
                break
            # Whatever state it is in, it is not worth trusting again.
            await self._close(*held.pop())
        return state

    async def _made(self, lane: Lane) -> TextEnvironment:
        """A new environment, made in its thread; the first one before any other, as it may import and load."""
        async with self._making:
            if not self._any_made:
                env = await lane.run(self._factory)
                self._any_made = True
                return env
        return await lane.run(self._factory)

    async def _close(self, env: TextEnvironment, lane: Lane) -> None:
        """Closes an environment; one that fails even at that takes nothing finished with it."""
        stuck = lane.busy
        if stuck:  # in the middle of a call that nothing waits for any more: closing it from outside may end the call
            lane.close()
            lane = Lane("polyturn-close")
        try:
            limit = _CLOSING_S if stuck else None
            await call(env.close, lane if stuck or may_wait(env.unwrapped) else None, timeout=limit)
        except Exception as error:
            warnings.warn(
                printable(f"closing {self._env_id} failed: {type(error).__name__}: {error}"),
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            lane.close()
