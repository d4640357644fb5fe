"""How one episode is played: from its start, or from where its group's shared prefix was left; and how a shared prefix
is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import gymnasium
import numpy as np

from polyturn.agents.agent import Action, Agent, ContextFull, Episode, Reply
from polyturn.agents.collecting.blocking import LoopInterrupted
from polyturn.agents.collecting.branching import SharedPrefix
from polyturn.envs.outcomes import SUCCESS_KEYS
from polyturn.envs.returns import at_least, total
from polyturn.envs.trajectory import Trajectory, Turn
from polyturn.sandbox.sandbox import ImageMissing, SandboxUnavailable

TextEnvironment = gymnasium.Env[str, str]
JobKind = Literal["episode", "shared prefix"]
"""What a job plays: a member's episode, or the turns that a group shares."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """One episode, or one group's shared prefix, to play.

    Attributes:
        group: Which start.
        member: Position in its group; without meaning for a shared prefix.
        seed: The start's environment seed.
        task: The start's task index, or None.
        branch_at: The turn at which the group is to part; None: at the start.
        kind: What is played.
    """

    group: int
    member: int
    seed: int
    task: int | None
    branch_at: int | None = None
    kind: JobKind = "episode"


@dataclass
class EpisodeState:
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


def prefix_rng(seed: int, group: int) -> np.random.Generator:
    """The generator of a group's shared prefix; independent of every member's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, group], spawn_key=(0,))))


def noise_of(job: Job, same_noise: bool) -> int:
    """Which noise a member has; 0 is that of the start itself, which a shared prefix has used already."""
    return 0 if same_noise else job.member + (job.branch_at is not None)


def agent_id(agent: Agent) -> tuple[str, str]:
    """Name and version of an agent, as trajectories record them."""
    return str(getattr(agent, "name", type(agent).__name__)), str(getattr(agent, "version", ""))


class EpisodePlayer:
    """Plays the episodes of one collection.

    Args:
        members: Who acts, one agent a member.
        prefix_agent: Who plays the shared prefixes.
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
        prefix_agent: Agent,
        env_id: str,
        options: Mapping[str, Any],
        seed: int,
        same_noise: bool,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._members, self._prefix_agent = members, prefix_agent
        self._env_id, self._options, self._seed, self._same_noise = env_id, options, seed, same_noise
        self.last_failure: Exception | None = None

    def _agent(self, job: Job) -> Agent:
        return self._prefix_agent if job.kind == "shared prefix" else self._members[job.member]

    async def play(
        self, env: TextEnvironment, job: Job, prefix: SharedPrefix | None, pool: ThreadPoolExecutor
    ) -> EpisodeState:
        """Plays an episode to its end, or a shared prefix to where it is left."""
        agent = self._agent(job)
        state, episode = EpisodeState(), None
        try:
            await self._begin(env, job, prefix, state, pool)
            shared = job.kind == "shared prefix"
            numbers = prefix_rng(self._seed, job.group) if shared else episode_rng(self._seed, job.group, job.member)
            at, place = state.observation, 0 if shared else job.member
            episode = Episode(self._env_id, job.seed, state.task_id, place, numbers, at, state.turns, state.first)
            while not state.over and not (shared and len(state.turns) == job.branch_at):
                await self._turn(env, agent, episode, state, pool, keep=shared)
            if shared:
                await self._leave(env, state, pool)
            else:
                _note_success(env, state)
        except KeyboardInterrupt as stop:
            raise LoopInterrupted(*stop.args) from None
        except (SandboxUnavailable, ImageMissing):
            raise  # no episode can go on without it; what is finished is in the store
        except Exception as failure:  # infrastructure: recorded on the trajectory, never turned into a reward
            state.error = f"{type(failure).__name__}: {failure}".strip()
            self.last_failure = failure
        finally:
            release = getattr(agent, "release", None)
            if release is not None and episode is not None:
                release(episode)
        return state

    async def _begin(
        self, env: TextEnvironment, job: Job, prefix: SharedPrefix | None, state: EpisodeState, pool: ThreadPoolExecutor
    ) -> None:
        """Brings the environment to the start, or to where the group's shared prefix was left."""
        noisy = bool(getattr(env.unwrapped, "takes_noise", False)) and job.kind == "episode"
        noise = noise_of(job, self._same_noise)
        if noisy:
            state.extra["noise"] = noise
        if prefix is None:
            options = ({} if job.task is None else {"task": job.task}) | ({"noise": noise} if noisy else {})
            reset = functools.partial(env.reset, seed=job.seed, options=options or None)
            state.observation, first = await call(env, pool, reset)
            state.first |= first
            state.task_id = str(first.get("task_id", ""))
            return
        state.extra["shared_prefix"] = prefix.record()
        state.observation, state.task_id = prefix.observation, prefix.task_id
        state.first |= prefix.info
        state.turns += prefix.turns
        # A copy of its own: an environment may go on writing into what it was given.
        snapshot = json.loads(json.dumps(prefix.snapshot))
        await call(env, pool, functools.partial(env.get_wrapper_attr("restore"), snapshot))
        if noisy and not self._same_noise:
            await call(env, pool, functools.partial(env.get_wrapper_attr("renew_noise"), noise))

    async def _turn(
        self,
        env: TextEnvironment,
        agent: Agent,
        episode: Episode,
        state: EpisodeState,
        pool: ThreadPoolExecutor,
        *,
        keep: bool,
    ) -> None:
        try:
            action = await _reply(agent.act(episode), self._timeout)
        except ContextFull as full:
            state.truncated = True
            state.extra |= {"truncated_by": "context", "context": str(full)}
            return
        if keep:
            state.before = await call(env, pool, env.get_wrapper_attr("snapshot"))
        said, step = state.observation, functools.partial(env.step, action.text)
        state.observation, reward, state.terminated, state.truncated, info = await call(env, pool, step)
        if action.info:
            info = {**info, "agent": dict(action.info)}
        state.turns.append(
            Turn(said, action.text, float(reward), action.context_ids, action.action_ids, action.logps, info)
        )
        episode.observation = state.observation
        # Where neither agent nor environment ever waits, this is when Ctrl-C is heard.
        await asyncio.sleep(0)

    async def _leave(self, env: TextEnvironment, state: EpisodeState, pool: ThreadPoolExecutor) -> None:
        """Takes the state a shared prefix is left in: the present one, or that before the last turn of one that
        ended."""
        if state.over and state.turns:
            state.observation = state.turns.pop().observation
        else:
            state.before = await call(env, pool, env.get_wrapper_attr("snapshot"))

    def prefix(self, job: Job, state: EpisodeState) -> SharedPrefix:
        """What the members of a group go on from."""
        name, version = agent_id(self._prefix_agent)
        assert job.branch_at is not None
        return SharedPrefix(
            asked=job.branch_at,
            agent=name,
            version=version,
            turns=tuple(state.turns),
            observation=state.observation,
            task_id=state.task_id,
            info=state.first,
            snapshot=state.before,
            error=state.error,
        )

    def trajectory(self, job: Job, state: EpisodeState) -> Trajectory:
        """What an episode leaves behind."""
        name, version = agent_id(self._agent(job))
        info: dict[str, Any] = {"group": job.group} | ({} if job.task is None else {"task_index": job.task})
        last = {key: value for key, value in state.turns[-1].info.items() if key != "agent"} if state.turns else {}
        info |= {**state.first, **last, **state.extra}
        return Trajectory(
            env_id=self._env_id,
            seed=job.seed,
            turns=tuple(state.turns),
            task_id=state.task_id,
            agent=name,
            policy_version=version,
            member=job.member,
            final_observation=state.observation if state.turns else "",
            terminated=state.terminated,
            truncated=state.truncated,
            error=state.error,
            env_options=self._options,
            info=info,
        )


def _note_success(env: TextEnvironment, state: EpisodeState) -> None:
    """Records how the episode came out, where the environment declares from which total reward one is a success."""
    ends = [state.first, *(turn.info for turn in state.turns[-1:])]
    if any(isinstance(end.get(key), bool) for end in ends for key in SUCCESS_KEYS):
        return  # it says so itself
    bound = env.get_wrapper_attr("success_return") if env.has_wrapper_attr("success_return") else None
    if bound is not None:
        state.extra["success"] = at_least(total(turn.reward for turn in state.turns), float(bound))


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
