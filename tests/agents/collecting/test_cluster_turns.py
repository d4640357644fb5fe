"""Which worker of a cluster plays which group, without a cluster: a test plans what workers answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from polyturn.agents.collecting import cluster
from polyturn.agents.collecting.cluster import _Collection, _Worker
from polyturn.agents.collecting.running import CollectError

Dies = Callable[[int, int | None, list[int | None]], bool]
"""Whether a worker dies while it plays a group (None: starts) beside others."""


class TaskError(Exception):
    pass


class Dead(Exception):
    pass


class Ray:
    """Answers calls in the order in which they were made; `plan` says which die."""

    exceptions = SimpleNamespace(
        RayTaskError=TaskError, RayActorError=Dead, WorkerCrashedError=Dead, NodeDiedError=Dead, ObjectLostError=Dead
    )

    def __init__(
        self, dies: Callable[[int, int | None, list[int | None]], bool] = lambda number, group, beside: False
    ) -> None:
        self.dies = dies
        self.calls: deque[tuple[int, int | None, object]] = deque()
        self.most: dict[int, int] = {}

    def actor(self, number: int) -> Any:
        def call(group: int | None) -> tuple[int, int | None, object]:
            reference = number, group, object()
            self.calls.append(reference)
            held = sum(each[0] == number and each[1] is not None for each in self.calls)
            self.most[number] = max(held, self.most.get(number, 0))
            return reference

        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda key, parcel: call(None)),
            play=SimpleNamespace(remote=lambda key, parcel, jobs, done: call(jobs)),
        )

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return list(self.calls)[:1], []

    def get(self, reference: Any) -> Any:
        self.calls.remove(reference)
        number, group, _ = reference
        beside = [each[1] for each in self.calls if each[0] == number and each[1] is not None]
        if self.dies(number, group, beside):
            raise Dead("killed")
        return True if group is None else ([group], None)


def played(ray: Ray, groups: int, workers: int = 2, *, room: int = 3, replays: int = 2) -> list[Any]:
    held = [_Worker(ray.actor(number), number) for number in range(workers)]
    jobs: Any = {group: (group, {}) for group in range(groups)}
    run = _Collection(ray, held, ("key", []), jobs, room, replays, patience=0.05)
    return sorted(group for found, _ in run for group in found)


def test_no_worker_has_more_groups_than_room() -> None:
    ray = Ray()
    assert played(ray, 50) == list(range(50))
    assert ray.most == {0: 3, 1: 3}


def test_groups_of_dead_workers_are_played_again_and_only_the_one_that_kills_is_blamed() -> None:
    deaths: list[int | None] = []

    def dies(number: int, group: int | None, beside: list[int | None]) -> bool:
        kills = group is not None and len(deaths) < 7 and (group == 4 or 4 in beside)
        deaths.extend([group] if kills else [])
        return kills

    assert played(Ray(dies), 20, replays=7) == list(range(20))
    assert len(deaths) == 7
    deaths.clear()
    with pytest.raises(CollectError, match=r"group 4, played alone, lost its worker 2 times, the last: killed"):
        played(Ray(dies), 20, replays=1)


def test_workers_that_never_start_end_the_collection() -> None:
    with pytest.raises(CollectError, match="no worker could be started, the last said: killed"):
        played(Ray(lambda number, group, beside: True), 5)
    assert played(Ray(lambda number, group, beside: number == 0), 5) == list(range(5))  # the other one goes on


def test_a_cluster_without_workers_is_not_waited_for_indefinitely(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray()
    monkeypatch.setattr(ray, "wait", lambda references, **options: ([], []))
    with pytest.raises(CollectError, match=r"no worker was ready within 0.05 s.*ray status"):
        played(ray, 5)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r'RayCluster needs the extra "ray": pip install'):
        cluster.RayCluster()
