"""Agents x environments -> groups of trajectories.

Asynchronous inside, plain outside: every episode is a coroutine, the engine batches whoever is ready, environments
that wait for something (a sandbox, a server) step in threads. What comes back depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import gymnasium
import numpy as np
from tqdm import tqdm

from turnwise.agents.agent import Action, Agent, ContextFull, Episode, Reply
from turnwise.envs.registration import make
from turnwise.envs.store import Store, read
from turnwise.envs.trajectory import Group, Trajectory, Turn
from turnwise.sandbox.sandbox import ImageMissing, SandboxUnavailable

TextEnvironment = gymnasium.Env[str, str]
EnvironmentSource = str | Callable[[], TextEnvironment]
_T = TypeVar("_T")

# An episode whose infrastructure failed is tried again this often before it is recorded as invalid.
_RETRIES = 1


class CollectError(RuntimeError):
    """Every episode, or many in a row, failed: the infrastructure is down. What was finished is in the store."""


class _Left(Exception):
    """An agent stopped the collection by a KeyboardInterrupt of its own."""


@dataclass(frozen=True)
class _Job:
    group: int
    member: int
    seed: int
    task: int | None


def collect(
    agent: Agent | Sequence[Agent],
    env: EnvironmentSource,
    *,
    groups: int | None = None,
    group_size: int = 1,
    seed: int = 0,
    tasks: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
    concurrency: int = 64,
    store: Store | None = None,
    progress: bool = True,
    label: str = "collect",
) -> list[Group]:
    """Runs episodes and returns them as groups from identical starts.

    Args:
        agent: Who acts; or one agent for each member of a group (`group_size` of them), for example 20 of the
            current policy and 10 of the previous one.
        env: Registered id, or a function that makes the environment.
        groups: How many starts; default one a task, or 1.
        group_size: Episodes per start.
        seed: Fixes everything: each start's environment seed comes from (seed, group), each episode's generator from
            (seed, group, member).
        tasks: Task index of each start, passed to the environment's `reset(options={"task": index})`; without it the
            environment picks by its seed.
        env_options: Keyword arguments for the environment.
        concurrency: Episodes under way at once; changes speed, never a result.
        store: Where to append every finished trajectory. Episodes already in it (of the same environment, options,
            seed, task, agent and version of its weights) are not run again, so an interrupted collection goes on
            where it stopped; failed ones are tried anew.
        progress: Show a progress bar.
        label: What the bar says.

    Returns:
        Groups in order, members in order. An episode whose infrastructure failed twice is there with its `error`.

    Raises:
        CollectError: All episodes failed, or many in a row and none succeeded between; the last failure is its cause.
        SandboxUnavailable: The environment's sandbox cannot run here.
        ValueError: Arguments that do not fit together.
    """
    if group_size < 1 or concurrency < 1:
        raise ValueError(f"collect: expected positive group_size and concurrency, got {group_size} and {concurrency}")
    count = (len(tasks) if tasks is not None else 1) if groups is None else groups
    if tasks is not None and len(tasks) != count:
        raise ValueError(f"collect: expected one task a group ({count}), got {len(tasks)} tasks")
    members = list(agent) if isinstance(agent, Sequence) else [agent] * group_size
    if len(members) != group_size:
        raise ValueError(f"collect: expected one agent for each of {group_size} members, got {len(members)}")
    options = dict(env_options or {})
    factory = env if callable(env) else lambda: cast("TextEnvironment", make(env, **options))
    env_id = getattr(env, "__name__", type(env).__name__) if callable(env) else env
    recorded = plain_options(options)

    jobs = [
        _Job(group, member, group_seed(seed, group), None if tasks is None else int(tasks[group]))
        for group in range(count)
        for member in range(group_size)
    ]
    done = _already_there(store, env_id, recorded, jobs, members)
    todo = [job for job in jobs if (job.group, job.member) not in done]
    runner = _Runner(members, factory, env_id, recorded, seed, store)
    # One agent that holds many episodes bounds all of them; waiting for two such agents at once could deadlock.
    width = min([concurrency, len(todo) or 1, *(getattr(a, "max_concurrency", concurrency) for a in members)])
    with tqdm(total=len(jobs), initial=len(done), desc=label, unit="ep", disable=not progress, leave=False) as bar:
        done |= _block(lambda: runner.run(todo, width, bar))
    runner.check_any(done.values())
    return [_group([done[group, member] for member in range(group_size)]) for group in range(count)]


def _group(members: Sequence[Trajectory]) -> Group:
    """The group of a start; who failed before the environment named the task is given the task of the others."""
    task = next((member.task_id for member in members if member.task_id), "")
    return Group(tuple(m if m.task_id or m.error is None else replace(m, task_id=task) for m in members))


def group_seed(seed: int, group: int) -> int:
    """The environment seed of a run's n-th start."""
    return int(np.random.SeedSequence([seed, group]).generate_state(1)[0])


def episode_rng(seed: int, group: int, member: int) -> np.random.Generator:
    """The generator of one episode's agent; independent of every other episode's and of the environment's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, group, member + 1])))


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's options as trajectories record them: JSON values."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    """An option as a JSON value: itself where it is one, else its name."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return str(getattr(value, "name", type(value).__name__))


def _already_there(
    store: Store | None, env_id: str, options: Mapping[str, Any], jobs: Iterable[_Job], members: Sequence[Agent]
) -> dict[tuple[int, int], Trajectory]:
    if store is None:
        return {}
    wanted = {(job.seed, job.member): job for job in jobs}
    plain = json.dumps(dict(options), sort_keys=True)
    found: dict[tuple[int, int], Trajectory] = {}
    for trajectory in read(store.path):
        job = wanted.get((trajectory.seed, trajectory.member))
        if (
            job is not None
            and trajectory.env_id == env_id
            and trajectory.error is None
            and json.dumps(dict(trajectory.env_options), sort_keys=True) == plain
            and trajectory.info.get("task_index") == job.task
            and (trajectory.agent, trajectory.policy_version) == _who(members[job.member])
        ):
            found[job.group, job.member] = trajectory
    return found


def _who(agent: Agent) -> tuple[str, str]:
    """Name and version of an agent, as trajectories record them."""
    return str(getattr(agent, "name", type(agent).__name__)), str(getattr(agent, "version", ""))


class _Runner:
    def __init__(
        self,
        members: Sequence[Agent],
        factory: Callable[[], TextEnvironment],
        env_id: str,
        options: Mapping[str, Any],
        seed: int,
        store: Store | None,
    ) -> None:
        self._members, self._factory, self._store = members, factory, store
        self._env_id, self._options, self._seed = env_id, options, seed
        self._failures_in_a_row = 0
        self._last_failure: Exception | None = None

    def check_any(self, trajectories: Iterable[Trajectory]) -> None:
        """Raises CollectError if nothing but failures came back."""
        if self._last_failure is not None and all(trajectory.error is not None for trajectory in trajectories):
            raise self._all_failed("every episode") from self._last_failure

    def _all_failed(self, which: str) -> CollectError:
        failure = self._last_failure
        kept = "finished episodes are in the store; " if self._store is not None else ""
        return CollectError(
            f"{which} failed, the last with {type(failure).__name__}: {failure}; {kept}"
            "mend the cause and run the same command again"
        )

    async def run(self, jobs: Sequence[_Job], width: int, bar: tqdm[Any]) -> dict[tuple[int, int], Trajectory]:
        results: dict[tuple[int, int], Trajectory] = {}
        queue = iter(jobs)
        limit = max(16, 2 * width)
        with ThreadPoolExecutor(max_workers=min(width, 64), thread_name_prefix="turnwise-env") as pool:
            async with asyncio.TaskGroup() as workers:
                for _ in range(width):
                    workers.create_task(self._work(queue, pool, limit, results, bar))
        return results

    async def _work(
        self,
        queue: Iterator[_Job],
        pool: ThreadPoolExecutor,
        limit: int,
        results: dict[tuple[int, int], Trajectory],
        bar: tqdm[Any],
    ) -> None:
        env: TextEnvironment | None = None
        try:
            for job in queue:
                for attempt in range(_RETRIES + 1):
                    if env is None:
                        env = self._factory()
                    trajectory = await self._episode(env, job, pool)
                    if trajectory.error is None:
                        break
                    # Whatever state it is in, it is not worth trusting again.
                    broken, env = env, None
                    await self._close(broken, pool)
                    if attempt == _RETRIES:
                        break
                self._failures_in_a_row = 0 if trajectory.error is None else self._failures_in_a_row + 1
                results[job.group, job.member] = trajectory
                if self._store is not None:
                    self._store.append(trajectory)
                bar.update()
                if self._failures_in_a_row >= limit:
                    raise self._all_failed(f"{limit} episodes in a row") from self._last_failure
        finally:
            if env is not None:
                await self._close(env, pool)

    async def _close(self, env: TextEnvironment, pool: ThreadPoolExecutor) -> None:
        """Closes an environment; one that fails even at that takes nothing finished with it."""
        try:
            await _call(env, pool, env.close)
        except Exception as error:
            warnings.warn(
                f"closing {self._env_id} failed: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2
            )

    async def _episode(self, env: TextEnvironment, job: _Job, pool: ThreadPoolExecutor) -> Trajectory:
        agent = self._members[job.member]
        episode: Episode | None = None
        turns: list[Turn] = []
        observation, task_id, error = "", "", None
        info: dict[str, Any] = {"group": job.group} | ({} if job.task is None else {"task_index": job.task})
        name, version = _who(agent)
        terminated = truncated = False
        try:
            reset_options = None if job.task is None else {"task": job.task}
            observation, first = await _call(env, pool, lambda: env.reset(seed=job.seed, options=reset_options))
            info |= first
            task_id = str(first.get("task_id", ""))
            rng = episode_rng(self._seed, job.group, job.member)
            episode = Episode(self._env_id, job.seed, task_id, job.member, rng, observation, turns, first)
            while not (terminated or truncated):
                try:
                    action = await _reply(agent.act(episode))
                except ContextFull as full:
                    truncated = True
                    info |= {"truncated_by": "context", "context": str(full)}
                    break
                said, step = observation, functools.partial(env.step, action.text)
                observation, reward, terminated, truncated, step_info = await _call(env, pool, step)
                turns.append(
                    Turn(
                        said, action.text, float(reward), action.context_ids, action.action_ids, action.logps, step_info
                    )
                )
                episode.observation = observation
                # Where neither agent nor environment ever waits, this is when Ctrl-C is heard.
                await asyncio.sleep(0)
            if turns:
                info |= turns[-1].info
        except KeyboardInterrupt as stop:
            # Left to itself it would tear the event loop down with every other episode's traceback.
            raise _Left(*stop.args) from None
        except (SandboxUnavailable, ImageMissing):
            raise  # no episode can go on without it; what is finished is in the store
        except Exception as failure:  # infrastructure: recorded on the trajectory, never turned into a reward
            error = f"{type(failure).__name__}: {failure}".strip()
            self._last_failure = failure
        finally:
            release = getattr(agent, "release", None)
            if release is not None and episode is not None:
                release(episode)
        return Trajectory(
            env_id=self._env_id,
            seed=job.seed,
            turns=tuple(turns),
            task_id=task_id,
            agent=name,
            policy_version=version,
            member=job.member,
            final_observation=observation if turns else "",
            terminated=terminated,
            truncated=truncated,
            error=error,
            env_options=self._options,
            info=info,
        )


async def _reply(reply: Reply | Awaitable[Reply]) -> Action:
    value = await reply if inspect.isawaitable(reply) else reply
    return Action(value) if isinstance(value, str) else value


async def _call(env: TextEnvironment, pool: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    """Calls into an environment: in a thread if it says that it waits for something, here otherwise."""
    if getattr(env.unwrapped, "blocking", False):
        return await asyncio.get_running_loop().run_in_executor(pool, function)
    return function()


def _block(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Runs a coroutine to its end, also where an event loop is already running (notebooks)."""
    outer, inside = None, True
    try:
        outer = asyncio.current_task()
    except RuntimeError:
        inside = False
    if not inside:
        return _run(work)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def announced() -> _T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await work()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="turnwise-collect") as pool:
        result = pool.submit(_run, announced)
        try:
            # Ctrl-C reaches this thread alone, as an exception or as a request to the loop that waits for us.
            while not wait([result], timeout=0.1).done:
                if outer is not None and outer.cancelling():
                    raise asyncio.CancelledError
            return result.result()
        except BaseException:
            if not result.done():
                loop, task = started.result()
                loop.call_soon_threadsafe(task.cancel)
            raise


def _run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    try:
        return asyncio.run(work())
    except BaseExceptionGroup as errors:  # a task group wraps even a single error
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, _Left):
            raise KeyboardInterrupt(*first.args) from None
        raise first from first.__cause__
