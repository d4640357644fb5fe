"""How one episode is played: from its start, or from where its group's trunk was left; and how a trunk is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gymnasium
import numpy as np

from polyturn.agents.agent import Action, Agent, ContextFull, Episode, Reply
from polyturn.agents.collecting.blocking import Left
from polyturn.agents.collecting.branching import Trunk
from polyturn.envs.trajectory import Trajectory, Turn
from polyturn.sandbox.sandbox import ImageMissing, SandboxUnavailable

TextEnvironment = gymnasium.Env[str, str]
TRUNK = -1
"""The member of a job that plays a trunk."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        group: Which start.
        member: Position in its group, or `TRUNK`.
        seed: The start's environment seed.
        task: The start's task index, or None.
        branch_at: The turn at which the group is to part; None: at the start.
    """

    group: int
    member: int
    seed: int
    task: int | None
    branch_at: int | None = None


@dataclass
class Course:
    """An episode in the making; `before` is the environment's state before the last turn, where that is kept."""

    observation: str = ""
    task_id: str = ""
    first: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    before: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    terminated: bool = False
    truncated: bool = False
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether no turn is left to take."""
        return self.terminated or self.truncated


def episode_rng(seed: int, group: int, member: int) -> np.random.Generator:
    """The generator of one episode's agent; independent of every other episode's and of the environment's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, group, member + 1])))


def trunk_rng(seed: int, group: int) -> np.random.Generator:
    """The generator of a group's trunk; independent of every member's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, group], spawn_key=(0,))))


def noise_of(job: Job, same_noise: bool) -> int:
    """Which noise a member has; 0 is that of the start itself, which a trunk has used already."""
    return 0 if same_noise else job.member + (job.branch_at is not None)


def who(agent: Agent) -> tuple[str, str]:
    """Name and version of an agent, as trajectories record them."""
    return str(getattr(agent, "name", type(agent).__name__)), str(getattr(agent, "version", ""))


class Player:
    """Plays the episodes of one collection.

    Args:
        members: Who acts, one agent a member.
        trunk_agent: Who plays the trunks.
        env_id: What trajectories say of the environment.
        options: Its options, as recorded.
        seed: Of the collection.
        same_noise: Whether the members of a group share the environment's noise.
        timeout: Seconds for a turn of an agent that is awaited, or None.

    Attributes:
        last_failure: What made the last invalid episode fail.
    """

    def __init__(
        self,
        members: Sequence[Agent],
        trunk_agent: Agent,
        env_id: str,
        options: Mapping[str, Any],
        seed: int,
        same_noise: bool,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._members, self._trunk_agent = members, trunk_agent
        self._env_id, self._options, self._seed, self._same_noise = env_id, options, seed, same_noise
        self.last_failure: Exception | None = None

    def _agent(self, job: Job) -> Agent:
        return self._trunk_agent if job.member == TRUNK else self._members[job.member]

    async def play(self, env: TextEnvironment, job: Job, trunk: Trunk | None, pool: ThreadPoolExecutor) -> Course:
        """Plays an episode to its end, or a trunk to where it is left."""
        agent = self._agent(job)
        course, episode = Course(), None
        try:
            await self._begin(env, job, trunk, course, pool)
            growing = job.member == TRUNK
            numbers = trunk_rng(self._seed, job.group) if growing else episode_rng(self._seed, job.group, job.member)
            at, place = course.observation, max(job.member, 0)
            episode = Episode(self._env_id, job.seed, course.task_id, place, numbers, at, course.turns, course.first)
            while not course.over and not (growing and len(course.turns) == job.branch_at):
                await self._turn(env, agent, episode, course, pool, keep=growing)
            if growing:
                await self._leave(env, course, pool)
        except KeyboardInterrupt as stop:
            raise Left(*stop.args) from None
        except (SandboxUnavailable, ImageMissing):
            raise  # no episode can go on without it; what is finished is in the store
        except Exception as failure:  # infrastructure: recorded on the trajectory, never turned into a reward
            course.error = f"{type(failure).__name__}: {failure}".strip()
            self.last_failure = failure
        finally:
            release = getattr(agent, "release", None)
            if release is not None and episode is not None:
                release(episode)
        return course

    async def _begin(
        self, env: TextEnvironment, job: Job, trunk: Trunk | None, course: Course, pool: ThreadPoolExecutor
    ) -> None:
        """Brings the environment to the start, or to where the group's trunk was left."""
        noisy = bool(getattr(env.unwrapped, "takes_noise", False)) and job.member != TRUNK
        noise = noise_of(job, self._same_noise)
        if noisy:
            course.extra["noise"] = noise
        if trunk is None:
            options = ({} if job.task is None else {"task": job.task}) | ({"noise": noise} if noisy else {})
            reset = functools.partial(env.reset, seed=job.seed, options=options or None)
            course.observation, first = await call(env, pool, reset)
            course.first |= first
            course.task_id = str(first.get("task_id", ""))
            return
        course.extra["trunk"] = trunk.record()
        course.observation, course.task_id = trunk.observation, trunk.task_id
        course.first |= trunk.info
        course.turns += trunk.turns
        # A copy of its own: an environment may go on writing into what it was given.
        state = json.loads(json.dumps(trunk.snapshot))
        await call(env, pool, functools.partial(env.get_wrapper_attr("restore"), state))
        if noisy and not self._same_noise:
            await call(env, pool, functools.partial(env.get_wrapper_attr("renew_noise"), noise))

    async def _turn(
        self,
        env: TextEnvironment,
        agent: Agent,
        episode: Episode,
        course: Course,
        pool: ThreadPoolExecutor,
        *,
        keep: bool,
    ) -> None:
        try:
            action = await _reply(agent.act(episode), self._timeout)
        except ContextFull as full:
            course.truncated = True
            course.extra |= {"truncated_by": "context", "context": str(full)}
            return
        if keep:
            course.before = await call(env, pool, env.get_wrapper_attr("snapshot"))
        said, step = course.observation, functools.partial(env.step, action.text)
        course.observation, reward, course.terminated, course.truncated, info = await call(env, pool, step)
        if action.info:
            info = {**info, "agent": dict(action.info)}
        course.turns.append(
            Turn(said, action.text, float(reward), action.context_ids, action.action_ids, action.logps, info)
        )
        episode.observation = course.observation
        # Where neither agent nor environment ever waits, this is when Ctrl-C is heard.
        await asyncio.sleep(0)

    async def _leave(self, env: TextEnvironment, course: Course, pool: ThreadPoolExecutor) -> None:
        """Takes the state a trunk is left in: the present one, or that before the last turn of one that ended."""
        if course.over and course.turns:
            course.observation = course.turns.pop().observation
        else:
            course.before = await call(env, pool, env.get_wrapper_attr("snapshot"))

    def trunk(self, job: Job, course: Course) -> Trunk:
        """What the members of a group go on from."""
        name, version = who(self._trunk_agent)
        assert job.branch_at is not None
        return Trunk(
            asked=job.branch_at,
            agent=name,
            version=version,
            turns=tuple(course.turns),
            observation=course.observation,
            task_id=course.task_id,
            info=course.first,
            snapshot=course.before,
            error=course.error,
        )

    def trajectory(self, job: Job, course: Course) -> Trajectory:
        """What an episode leaves behind."""
        name, version = who(self._agent(job))
        info: dict[str, Any] = {"group": job.group} | ({} if job.task is None else {"task_index": job.task})
        last = {key: value for key, value in course.turns[-1].info.items() if key != "agent"} if course.turns else {}
        info |= {**course.first, **last, **course.extra}
        return Trajectory(
            env_id=self._env_id,
            seed=job.seed,
            turns=tuple(course.turns),
            task_id=course.task_id,
            agent=name,
            policy_version=version,
            member=job.member,
            final_observation=course.observation if course.turns else "",
            terminated=course.terminated,
            truncated=course.truncated,
            error=course.error,
            env_options=self._options,
            info=info,
        )


async def _reply(reply: Reply | Awaitable[Reply], timeout: float | None) -> Action:
    if inspect.isawaitable(reply):
        try:
            reply = await asyncio.wait_for(reply, timeout)
        except TimeoutError as error:
            if str(error):  # the agent's own
                raise
            raise TimeoutError(f"the agent did not answer within {timeout} s") from error
    return Action(reply) if isinstance(reply, str) else reply


async def call(env: TextEnvironment, pool: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    """Calls into an environment: in a thread if it says that it waits for something, here otherwise."""
    if getattr(env.unwrapped, "blocking", False):
        return await asyncio.get_running_loop().run_in_executor(pool, function)
    return function()
