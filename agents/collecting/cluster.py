"""Collections spread over a Ray cluster: whole groups go to workers, finished ones come back to one store.

Ray places workers, starts them again, carries data and tells of deaths. What is decided here is only which worker plays
which group next: the one with the fewest, none with more than it can play. A worker is a process with agents and
environments of its own; where environments run code, in the sandbox of its own node.

What is sent in either direction is pickled by Ray: agents, options and trajectories of this package and of the code
that called `collect`. Text by models and servers travels as strings inside of those. Any client that can connect to a
Ray cluster can run code on it; Ray's documentation says how it is closed to others.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyturn.agents.collecting.playing import Job
from polyturn.agents.collecting.running import CollectError, EpisodeFailed, Failures
from polyturn.agents.collecting.work import Parcel, Pinned, Work, same
from polyturn.agents.collecting.worker import RayWorker
from polyturn.agents.shipping import Shipped, Ticket
from polyturn.envs.extras import how_to_install
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.trajectory import Trajectory

_Done = Mapping[tuple[int, int], Trajectory]

# A worker that could not be made ready so often in a row is given up.
_STARTS = 3
# Seconds between looks at whether anything still moves, and for workers to close what they hold.
_LOOK_S = 5.0
_LEAVING_S = 20.0


@dataclass(eq=False)
class _Worker:
    """A worker as this process knows it: `playing` groups, and starts that failed in a row."""

    actor: Any
    number: int
    ready: bool = False
    failed: int = 0
    playing: set[int] = field(default_factory=set)


class RayCluster:
    """Where `collect(..., on=...)` plays its episodes: workers on a Ray cluster.

    Workers are started at the first collection and kept for the next, with what they loaded, until `close` or the end
    of the process. The process that collects writes the store, whole groups at a time as they come back: if it is
    killed, or the cluster's head is lost, the same call goes on where it stopped, on this cluster, another, or none.

    A worker that dies (its process, its node, or memory that ran out) loses nothing that the store has: its groups are
    played again, from the same seeds, by other workers or by itself as soon as Ray has started it again.

    Args:
        address: Of the cluster, as for `ray.init`; None: the one that `RAY_ADDRESS` names, or else a local one that
            ends with this process. A connection that is there already is used.
        workers: How many; default as many as the cluster has room for at the first collection.
        cpus: Of each worker.
        gpus: Of each worker; a fraction lets several share one.
        resources: Ray's own resources that each worker takes, as {"sandbox": 1} for nodes that were started with such.
        weights: A folder that all nodes see under one path, through which policies travel (see
            `polyturn.agents.transformer.engines.weights`); None: a temporary one, for a cluster of one machine.
        replays: How often a group is played again whose worker died while it played nothing else, before the
            collection ends with an error: one whose episodes kill every worker would go on doing so.
        patience: Seconds without any ready worker until the collection ends with an error.

    Raises:
        ImportError: Ray is not installed.
        ValueError: A setting out of range.
    """

    _collections = itertools.count()

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus: float = 1,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        weights: str | os.PathLike[str] | None = None,
        replays: int = 3,
        patience: float = 600.0,
    ) -> None:
        _ray()
        check_count("RayCluster(workers)", workers, optional=True)
        check_range("RayCluster(cpus)", cpus, 0)
        check_range("RayCluster(gpus)", gpus, 0)
        check_count("RayCluster(replays)", replays, 0)
        check_range("RayCluster(patience)", patience, 0, above=True)
        self._address, self._count = address, workers
        self._needs = {"CPU": cpus, "GPU": gpus, **(resources or {})}
        self._resources = dict(resources or {})
        self._shared = None if weights is None else Path(weights).absolute()
        self._root: Path | None = None
        self._replays, self._patience = replays, patience
        self._workers: list[_Worker] = []
        self._folders: deque[frozenset[str]] = deque(maxlen=4)
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and removes the weights written for them; the next collection starts them again."""
        workers, self._workers = self._workers, []
        if workers and (ray := _ray()).is_initialized():
            ends = [worker.actor.__ray_terminate__.remote() for worker in workers]
            ray.wait(ends, num_returns=len(ends), timeout=_LEAVING_S)
            for worker in workers:
                ray.kill(worker.actor)
        folder, self._root = self._root, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def pin(self, things: Sequence[Any]) -> list[Any]:
        """Agents or options as they are now, for a collection that begins or goes on while their weights change.

        What travels as weights is written at once; everything else is copied.
        """
        self._connected()
        root = self._root_folder()
        unique = {id(thing): thing for thing in things}
        tickets = {
            key: thing.ship(root) if isinstance(thing, Shipped) else Ticket(partial(same, copy.deepcopy(thing)))
            for key, thing in unique.items()
        }
        self._folders.append(frozenset(folder for ticket in tickets.values() for folder in ticket.folders))
        pinned = {key: Pinned(unique[key], ticket) for key, ticket in tickets.items()}
        return [pinned[id(thing)] for thing in things]

    def _play(
        self,
        work: Work,
        left: Sequence[Job],
        done: _Done,
        ended: Callable[[Trajectory], object],
        stored: bool,
    ) -> dict[tuple[int, int], Trajectory]:
        """`play_on`, one collection at a time."""
        ray = self._connected()
        reference = self._sent(work)
        groups: dict[int, list[Job]] = {}
        for job in left:
            groups.setdefault(job.group, []).append(job)
        finished: dict[int, dict[tuple[int, int], Trajectory]] = {group: {} for group in groups}
        for (group, member), trajectory in done.items():
            if group in finished:
                finished[group][group, member] = trajectory
        run = _Collection(
            ray,
            self._workers,
            (f"{os.getpid()}.{next(self._collections)}", [reference]),
            {group: (jobs, finished[group]) for group, jobs in groups.items()},
            # One group more than is played at once, so that none waits for the way to and fro.
            1 + math.ceil(work.width / max(map(len, groups.values()))),
            self._replays,
            self._patience,
        )
        failures = Failures(work.width * len(self._workers), stored)
        found: dict[tuple[int, int], Trajectory] = {}
        last: EpisodeFailed | None = None
        try:
            for trajectories, failure in run:
                last = last if failure is None else EpisodeFailed(failure)
                for trajectory in trajectories:
                    assert trajectory.group is not None
                    found[trajectory.group, trajectory.member] = trajectory
                    ended(trajectory)
                    failures.note(trajectory, last)
        finally:
            run.stop()
            self._workers = [worker for worker in self._workers if worker.failed < _STARTS]
        failures.check_any([*done.values(), *found.values()], last)
        return found

    def _connected(self) -> Any:
        """Ray, connected, with workers."""
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=self._address, configure_logging=False)
        if not self._workers:
            threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
            make = ray.remote(RayWorker).options(
                num_cpus=self._needs["CPU"],
                num_gpus=self._needs["GPU"],
                resources=self._resources,
                scheduling_strategy="SPREAD",
                max_restarts=-1,
            )
            self._workers = [_Worker(make.remote(threads), number) for number in range(self._room(ray))]
        return ray

    def _root_folder(self) -> Path:
        if self._root is None:
            if self._shared is not None:
                self._shared.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="polyturn-weights-", dir=self._shared))
        return self._root

    def _room(self, ray: Any) -> int:
        """How many workers to start.

        Raises:
            ValueError: No node has room for one.
        """
        asked = {name: amount for name, amount in self._needs.items() if amount > 0}
        nodes = [node["Resources"] for node in _alive(ray)]
        room = [min([int(n.get(name, 0) // amount) for name, amount in asked.items()], default=1) for n in nodes]
        if not sum(room):
            raise ValueError(
                f"RayCluster: expected a node with {asked} for a worker, got nodes with {nodes}; ask for less, or "
                "start nodes that have it"
            )
        return sum(room) if self._count is None else self._count

    def _sent(self, work: Work) -> Any:
        """A reference to the packed work.

        Raises:
            ValueError: It cannot be pickled.
        """
        ray = _ray()
        root = self._root_folder()
        parcel = Parcel.of(work, root)
        if parcel.folders and self._shared is None and len({node["NodeManagerAddress"] for node in _alive(ray)}) > 1:
            raise ValueError(
                "RayCluster: expected weights=FOLDER, a folder that all nodes see under the same path, for policies on "
                "a cluster of several machines; got none"
            )
        # Weights of the collections before this one may still be read, or be pinned for the next.
        self._folders.append(parcel.folders)
        for folder in root.iterdir():
            if not any(str(folder) in used for used in self._folders):
                shutil.rmtree(folder, ignore_errors=True)
        try:
            return ray.put(parcel)
        except Exception as error:
            raise ValueError(
                "collect(on=RayCluster): expected agents, options and an environment that can be pickled, got "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}; give agents a method ship(root) (see "
                "polyturn.agents.collecting.work), or name the environment by its id"
            ) from error


def play_on(
    cluster: RayCluster,
    work: Work,
    left: Sequence[Job],
    done: _Done,
    ended: Callable[[Trajectory], object],
    stored: bool,
) -> dict[tuple[int, int], Trajectory]:
    """Plays the jobs of a collection on a cluster.

    Args:
        cluster: Where.
        work: What they have in common.
        left: The jobs.
        done: Trajectories that are there already, by group and member.
        ended: Called with every trajectory that came back.
        stored: Whether `ended` keeps them.

    Raises:
        CollectError: All or many in a row failed; a group was lost with its worker too often; no worker is left.
        ValueError: Something that cannot be sent to another process, or workers that no node has room for.
    """
    if not left:
        return {}
    with cluster._one_at_a_time:
        return cluster._play(work, left, done, ended, stored)


class _Collection:
    """Which worker plays which group: an iterator over finished groups, in whatever order they come back.

    Args:
        ray: The package, connected.
        workers: Those that there are.
        what: The first arguments of a worker's calls.
        groups: The others of `RayWorker.play`, by group.
        room: Groups that a worker has at most.
        replays: As in `RayCluster`.
        patience: As in `RayCluster`.
    """

    def __init__(
        self,
        ray: Any,
        workers: Sequence[_Worker],
        what: tuple[str, list[Any]],
        groups: Mapping[int, tuple[Sequence[Job], _Done]],
        room: int,
        replays: int,
        patience: float,
    ) -> None:
        self._ray, self._workers, self._what, self._groups = ray, list(workers), what, groups
        self._room, self._replays, self._patience = room, replays, patience
        self._todo = deque(groups)
        self._flying: dict[Any, tuple[_Worker, int | None]] = {}  # by what Ray will answer; None: a start
        self._lost: Counter[int] = Counter()
        self._suspected: set[int] = set()
        for worker in self._workers:
            worker.playing.clear()
            self._start(worker)

    def __iter__(self) -> Iterator[tuple[list[Trajectory], str | None]]:
        waited, count = time.monotonic(), len(self._groups)
        while count:
            self._send()
            came, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=_LOOK_S)
            for reference in came:
                worker, group = self._flying.pop(reference)
                answer = self._answer(reference, worker, group)
                if answer is not None:
                    count -= 1
                    yield answer
            # Groups may take as long as they like; workers may not.
            if came or any(worker.ready for worker in self._workers):
                waited = time.monotonic()
            elif time.monotonic() - waited > self._patience:
                raise CollectError(
                    f"no worker was ready within {self._patience:g} s; see whether the cluster has nodes left (ray "
                    "status), and run the same command again: it goes on with what the store has"
                )

    def stop(self) -> None:
        """Cancels what is under way and has workers close their environments; waits for those that are alive."""
        for reference, (_, group) in self._flying.items():
            if group is not None:
                self._ray.cancel(reference)
        left = [worker.actor.leave.remote() for worker in self._workers if worker.ready]
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=_LEAVING_S)

    def _send(self) -> None:
        """Gives groups to the workers that have the fewest, while any has room.

        A group whose worker died is played alone, so that the next death shows whether it is what kills workers.
        """
        while self._todo:
            group = self._todo[0]
            room = 1 if group in self._suspected else self._room
            free = [
                worker
                for worker in self._workers
                if worker.ready and len(worker.playing) < room and self._suspected.isdisjoint(worker.playing)
            ]
            if not free:
                return
            worker = min(free, key=lambda each: (len(each.playing), each.number))
            self._todo.popleft()
            worker.playing.add(group)
            self._flying[worker.actor.play.remote(*self._what, *self._groups[group])] = worker, group

    def _start(self, worker: _Worker) -> None:
        worker.ready = False
        self._flying[worker.actor.ready.remote(*self._what)] = worker, None

    def _answer(self, reference: Any, worker: _Worker, group: int | None) -> tuple[list[Trajectory], str | None] | None:
        """What came back of a group; None of a start, or where the worker is dead.

        Raises:
            CollectError: A group was lost too often, or no worker is left.
        """
        errors = self._ray.exceptions
        dead = (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError)
        if group is not None:
            worker.playing.discard(group)
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:  # raised by the code itself: as in this process
            cause = error.cause if isinstance(error.cause, Exception) else error
            cause.add_note(f"on worker {worker.number} of a Ray cluster")
            raise cause from None
        except dead as error:
            self._bury(worker, group, error)
            return None
        worker.failed = 0
        if group is None:
            worker.ready = True
            return None
        trajectories, failure = answer
        return trajectories, failure

    def _bury(self, worker: _Worker, group: int | None, error: Exception) -> None:
        """Puts a dead worker's group back, before all others, and has it started again."""
        said = str(error).strip().splitlines()[0]
        if group is None:
            worker.failed += 1
        else:
            self._lost[group] += group in self._suspected
            if self._lost[group] > self._replays:
                raise CollectError(
                    f"group {group}, played alone, lost its worker {self._lost[group]} times, the last: {said}; what "
                    "is finished is in the store. Find what ends the process (memory? a crash in a library?), then run "
                    "the same command again"
                ) from error
            self._suspected.add(group)
            self._todo.appendleft(group)
        if worker.failed >= _STARTS:
            self._workers.remove(worker)
            if not self._workers:
                raise CollectError(f"no worker could be started, the last said: {said}") from error
        elif worker.ready or group is None:
            self._start(worker)


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f'RayCluster needs the extra "ray": {how_to_install("ray")}') from error
    return ray
