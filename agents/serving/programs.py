"""Any agent program as a source of groups: it runs against the served policy, an outcome is scored, a run is a
trajectory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import math
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.blocking import block
from polyturn.agents.collecting.collect import CollectError, derived_seed
from polyturn.agents.collecting.playing import agent_id
from polyturn.agents.collecting.resuming import Signed
from polyturn.agents.serving.episode import ENV_ID, Start
from polyturn.agents.serving.server import AgentServer
from polyturn.agents.serving.wire import ServerLimits
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Group, Trajectory

_KEPT = 1 << 20
_SHOWN = 2000
Task = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """Where a run's model is.

    Attributes:
        base_url: For OpenAI's clients.
        api_key: The run's own key.
        root: For Anthropic's clients.
    """

    base_url: str
    api_key: str
    root: str


@dataclass(frozen=True)
class ProgramOutcome:
    """What a run left behind, for its score.

    Attributes:
        task: The task.
        result: What the function returned, or what the command printed.
        messages: The conversations that the model had: those of every segment, one after another.
    """

    task: Task
    result: Any
    messages: Sequence[Mapping[str, str]] = ()


Function = Callable[[Task, Endpoint], Any]
"""A function, plain or async, that does a task with the model at an endpoint; a plain one runs in a thread."""
Score = Callable[[ProgramOutcome], float | Awaitable[float]]


class ProgramError(RuntimeError):
    """A run failed for reasons outside the policy, or left nothing that can be scored."""


def printed_score(outcome: ProgramOutcome) -> float:
    """The score that a program printed itself: its last line, a number or a JSON object with "score" or "reward".

    Raises:
        ProgramError: There is none.
    """
    lines = str(outcome.result).strip().splitlines()
    with contextlib.suppress(ValueError, IndexError):
        value = json.loads(lines[-1])
        found = value.get("score", value.get("reward")) if isinstance(value, dict) else value
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found)
    last = lines[-1][:80] if lines else ""
    raise ProgramError(f'expected a last line with a number or {{"score": number}}, got {last!r}; or pass a score')


@dataclass(frozen=True)
class AgentProgram:
    """An agent program with tasks and a score; stands where `collect`, `iterate` and `online` take an environment.

    A command is run as a list of arguments, never by a shell: the task is a JSON object on its standard input, and
    OPENAI_BASE_URL, OPENAI_API_KEY, ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY name the served policy. A run that
    crashes, is too slow, leaves an answer unread or has no score is an invalid episode, never one with reward 0.

    Attributes:
        program: A function of task and endpoint, or the arguments of a command.
        tasks: JSON objects; "id", where there is one, names a task.
        score: From the outcome to what the whole run is worth.
        timeout: Seconds of a run.
        name: What trajectories call the program; default its own.
        folder: Where a command runs; default here.
        limits: What a run may ask of the server.

    Raises:
        ValueError: No program, no tasks, or tasks that are no JSON objects.
    """

    program: Function | Sequence[str]
    tasks: Sequence[Task]
    score: Score = printed_score
    timeout: float = 600.0
    name: str = ""
    folder: Path | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        check_range("AgentProgram.timeout", self.timeout, 0, above=True)
        if isinstance(self.program, str) or not (callable(self.program) or self.program):
            raise ValueError(
                f"AgentProgram.program: expected a function or a list of arguments, got {self.program!r}; of a command "
                "line shlex.split makes a list"
            )
        if not self.tasks or not all(isinstance(task, Mapping) for task in self.tasks):
            raise ValueError("AgentProgram.tasks: expected at least one task, each a JSON object")
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.program))

    def collect(
        self,
        members: Sequence[Agent],
        *,
        groups: int | None = None,
        seed: int = 0,
        tasks: Sequence[int] | None = None,
        concurrency: int = 64,
        store: Store | None = None,
        progress: bool = True,
        label: str = "collect",
    ) -> list[Group]:
        """Runs the program once a member and start; see `polyturn.agents.collect` for the arguments.

        Without `tasks` the starts have all tasks in order, over and over; fewer starts than tasks have some of them,
        which the seed decides.

        Raises:
            CollectError: Every run failed.
            ValueError: Members that are no `TransformerAgent`s.
        """
        if not all(isinstance(each, TransformerAgent) for each in members):
            raise ValueError("AgentProgram: expected TransformerAgents, whose policy can be served, got others")
        count = len(self.tasks if tasks is None else tasks) if groups is None else groups
        check_count("groups", count)
        chosen = self._drawn(count, seed) if tasks is None else list(tasks)
        starts = {
            (group, member): Start(
                task_id=self._task_id(chosen[group]),
                seed=derived_seed(seed, group),
                group=group,
                member=member,
                stream=seed,
                options={"program": self.name},
            )
            for group in range(count)
            for member in range(len(members))
        }
        signed = None if store is None else Signed(store, members)
        done = {} if signed is None else self._already_there(signed, starts, members, chosen)
        servers = {id(each): AgentServer(each, limits=self.limits, store=store) for each in members}  # type: ignore[arg-type]
        with contextlib.ExitStack() as open_servers:
            for server in servers.values():
                open_servers.enter_context(server)
            bar = open_servers.enter_context(
                tqdm(total=len(starts), initial=len(done), desc=label, unit="run", disable=not progress, leave=False)
            )
            left = {place: start for place, start in starts.items() if place not in done}

            # With no more runs than slots, what runs beside a run cannot take its cache.
            width = min([concurrency, *(server.slots for server in servers.values())])

            async def every() -> None:
                places = asyncio.Semaphore(width)

                async def one(place: tuple[int, int], start: Start) -> None:
                    async with places:
                        server = servers[id(members[place[1]])]
                        done[place] = await self._run(server, start, chosen[place[0]], pool)
                        bar.update()

                with ThreadPoolExecutor(width, thread_name_prefix="polyturn-program") as pool:
                    async with asyncio.TaskGroup() as runs:
                        for place, start in left.items():
                            runs.create_task(one(place, start))

            block(every)
        if not any(run.valid for run in done.values()):
            reasons = sorted({run.error or "it never ended" for run in done.values()})
            raise CollectError(f"all {len(done)} runs of {self.name} failed: {'; '.join(reasons[:3])[:_SHOWN]}")
        return [Group(tuple(done[group, member] for member in range(len(members)))) for group in range(count)]

    def _drawn(self, count: int, seed: int) -> list[int]:
        """The task of each start, where none are asked for."""
        if count >= len(self.tasks):
            return [start % len(self.tasks) for start in range(count)]
        order = np.random.default_rng([seed, 4]).permutation(len(self.tasks))
        return [int(index) for index in order[:count]]

    def _task_id(self, index: int) -> str:
        return str(self.tasks[index].get("id", index))

    def _already_there(
        self, signed: Signed, starts: Mapping[tuple[int, int], Start], members: Sequence[Agent], chosen: Sequence[int]
    ) -> dict[tuple[int, int], Trajectory]:
        """Valid runs in the store, by group and member: of the same starts and tasks, by the same weights."""
        found: dict[tuple[int, int], Trajectory] = {}
        others = 0
        for run in read(signed.store.path):
            # Those without a group are of earlier versions, which kept it only in `info`.
            place = (run.info.get("group", -1) if run.group is None else run.group, run.member)
            start = starts.get(place)
            task = None if start is None else _digest(self.tasks[chosen[place[0]]])
            if (
                start is not None
                and run.valid
                and run.env_id == ENV_ID
                and (run.task_id, run.seed, dict(run.env_options)) == (start.task_id, start.seed, dict(start.options))
                and (run.agent, run.policy_version) == agent_id(members[place[1]])
                and run.info.get("task", task) == task
            ):
                kept = signed.unsigned(run)
                if kept is None:
                    others += 1
                else:
                    found[place] = replace(kept, group=place[0])
        signed.warn_of_others(others, 3)
        return found

    async def _run(self, server: AgentServer, start: Start, index: int, pool: ThreadPoolExecutor) -> Trajectory:
        """One run, from an open episode to its trajectory."""
        key = server.open(start)
        task = dict(self.tasks[index])
        endpoint = Endpoint(server.url, key, server.root)
        result: Any = None
        reward, error = 0.0, None
        try:
            async with asyncio.timeout(self.timeout):
                if callable(self.program):
                    result = await _called(self.program, task, endpoint, pool)
                else:
                    result = await _executed(self.program, task, endpoint, self.folder)
        except TimeoutError:
            error = f"timeout: the run took more than {self.timeout:g} s"
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"[:_SHOWN]
        if error is None:
            try:
                scored = self.score(ProgramOutcome(task, result, server.messages(key)))
                reward = float(await scored if inspect.isawaitable(scored) else scored)
            except Exception as failure:
                error = f"no score: {type(failure).__name__}: {failure}"[:_SHOWN]
        if error is None and not math.isfinite(reward):
            reward, error = 0.0, f"no score: expected a finite number, got {reward}"
        shown = None if result is None else str(result)[-_SHOWN:].replace(key, "***")
        error = None if error is None else error.replace(key, "***")
        return server.close(key, reward=reward, error=error, info={"result": shown, "task": _digest(task)})


def collect_program(
    program: Function | Sequence[str],
    tasks: Sequence[Task],
    *,
    agent: TransformerAgent,
    score: Score = printed_score,
    groups: int | None = None,
    group_size: int = 1,
    seed: int = 0,
    timeout: float = 600.0,
    concurrency: int = 64,
    store: Store | None = None,
    progress: bool = True,
) -> list[Group]:
    """Runs an agent program several times a task and returns its runs as groups.

    Args:
        program: A function of task and endpoint, or the arguments of a command; see `AgentProgram`.
        tasks: JSON objects.
        agent: Whose policy answers.
        score: From the outcome of a run to what it is worth.
        groups: Starts; default one a task.
        group_size: Runs per start.
        seed: Of the policy's samples. What the program itself draws at random is its own.
        timeout: Seconds of a run.
        concurrency: Runs at once.
        store: Where finished runs are appended; valid ones in it are not run again.
        progress: Show a progress bar.

    Raises:
        CollectError: Every run failed.
        ValueError: Arguments that do not fit.
    """
    check_count("group_size", group_size)
    check_count("concurrency", concurrency)
    return AgentProgram(program, tasks, score, timeout).collect(
        [agent] * group_size, groups=groups, seed=seed, concurrency=concurrency, store=store, progress=progress
    )


def read_tasks(path: str | os.PathLike[str]) -> list[Task]:
    """Tasks from JSON lines, one object each.

    Raises:
        ValueError: A line that is no JSON object, or none at all.
    """
    tasks: list[Task] = []
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                task = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}: line {number}: expected a JSON object, got {error}") from error
            if not isinstance(task, dict):
                raise ValueError(f"{os.fspath(path)}: line {number}: expected a JSON object, got {type(task).__name__}")
            tasks.append(task)
    if not tasks:
        raise ValueError(f"{os.fspath(path)}: expected at least one task, got none")
    return tasks


async def _called(function: Function, task: Task, endpoint: Endpoint, pool: ThreadPoolExecutor) -> Any:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(task, endpoint)
    result = await asyncio.get_running_loop().run_in_executor(pool, function, task, endpoint)
    return await result if inspect.isawaitable(result) else result


async def _executed(arguments: Sequence[str], task: Task, endpoint: Endpoint, folder: Path | None) -> str:
    """Runs a command and returns what it printed; kills it, and what it started, when it is cancelled.

    Raises:
        ProgramError: It ended with another code than 0.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=_environment(endpoint),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.gather(_tail(process.stdout), _tail(process.stderr))
    try:
        with contextlib.suppress(ConnectionError):  # a program need not read its task
            process.stdin.write(json.dumps(task).encode() + b"\n")
            await process.stdin.drain()
        process.stdin.close()
        # `wait` would also wait for the output's end, which children of the program may hold open.
        while process.returncode is None:
            await asyncio.sleep(0.02)
    finally:
        # Nothing that a run started goes on after it, be it finished or cut.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        printed, complaint = await reading
    if process.returncode != 0:
        raise ProgramError(f"the program ended with code {process.returncode}: {complaint.strip()[-_SHOWN:]}")
    return printed


async def _tail(stream: asyncio.StreamReader) -> str:
    """The end of what is written; the rest is dropped, so that no program fills the memory."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece
        del kept[:-_KEPT]
    return kept.decode("utf-8", "replace")


def _environment(endpoint: Endpoint) -> dict[str, str]:
    host = endpoint.root.removeprefix("http://").rpartition(":")[0]
    direct = ",".join(filter(None, (os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), host)))
    return {
        **os.environ,
        "OPENAI_BASE_URL": endpoint.base_url,
        "OPENAI_API_BASE": endpoint.base_url,
        "OPENAI_API_KEY": endpoint.api_key,
        "ANTHROPIC_BASE_URL": endpoint.root,
        "ANTHROPIC_API_KEY": endpoint.api_key,
        "ANTHROPIC_AUTH_TOKEN": endpoint.api_key,
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def _digest(task: Task) -> str:
    """One name for equal tasks, so that a run of a task that has changed since is not taken from a store."""
    return hashlib.blake2b(json.dumps(dict(task), sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()


def _name_of(program: Function | Sequence[str]) -> str:
    if not callable(program):
        return " ".join(program)
    name = getattr(program, "name", None)
    return name if isinstance(name, str) else str(getattr(program, "__qualname__", type(program).__qualname__))
