"""How one episode is played: from its start, or from where its group's shared prefix was left; and how a shared prefix
is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import numpy as np

from polyturn.agents.agent import Action, Agent, ContextFull, Episode
from polyturn.agents.collecting.blocking import Lane, call
from polyturn.agents.collecting.branching import SharedPrefix
from polyturn.agents.loop_thread import LoopInterrupted
from polyturn.envs.outcomes import SUCCESS_KEYS
from polyturn.envs.plain import plain
from polyturn.envs.returns import at_least, total
from polyturn.envs.tools.calls import MESSAGES, spelled
from polyturn.envs.trajectory import TREE, Trajectory, Turn, tree_name
from polyturn.sandbox.sandbox import ImageMissing, SandboxUnavailable

TextEnvironment = gymnasium.Env[str, str]
JobKind = Literal["episode", "shared prefix", "trunk"]
"""What a job plays: a member's episode, the turns that a group shares, or an episode from which others part."""


class RewardBoundsWarning(RuntimeWarning):
    """An episode's total reward lies outside of what its environment declares."""


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
        slot: Which of the collection's agents plays it; None: the member's.
        tree: Name of the tree whose trunk it parts from, or None.
    """

    group: int
    member: int
    seed: int
    task: int | None
    branch_at: int | None = None
    kind: JobKind = "episode"
    slot: int | None = None
    tree: str | None = None

    @property
    def agent(self) -> int:
        """Position of its agent among the collection's."""
        return self.member if self.slot is None else self.slot

    @property
    def prefix(self) -> tuple[int, int | None]:
        """What names its shared prefix: the group and the turn at which it parts."""
        return self.group, self.branch_at


@dataclass
class EpisodeState:
    """An episode in the making.

    `before` is the environment's state before the last turn, where that is kept; `snapshots` those before every turn.
    """

    observation: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    task_id: str = ""
    first: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    before: Any = None
    snapshots: list[Any] = field(default_factory=list)
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
        members: One agent a member.
        prefix_agent: The agent of the shared prefixes.
        env_id: What trajectories say of the environment.
        options: Its options, as recorded.
        seed: Of the collection.
        same_noise: Whether the members of a group share the environment's noise.
        timeout: Seconds for a turn of the agent, or None.

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
        self._out_of_bounds = False

    def _agent(self, job: Job) -> Agent:
        return self._prefix_agent if job.kind == "shared prefix" else self._members[job.agent]

    def failed(self, failure: Exception, prefix: SharedPrefix | None = None) -> EpisodeState:
        """An episode that failed before it began."""
        self.last_failure = failure
        found = EpisodeState(error=_said(failure))
        return found if prefix is None else replace(found, task_id=prefix.task_id, first=dict(prefix.info))

    async def play(self, env: TextEnvironment, job: Job, prefix: SharedPrefix | None, lane: Lane) -> EpisodeState:
        """Plays an episode to its end, or a shared prefix to where it is left.

        Args:
            env: The environment.
            job: What to play.
            prefix: What the group shares, where it parts later than at the start.
            lane: The thread of whatever may wait; what says `blocking = False` is called in the event loop.
        """
        pool = lane if may_wait(env.unwrapped) else None
        agent = self._agent(job)
        state, episode = EpisodeState(), None
        try:
            await self._begin(env, job, prefix, state, pool)
            shared = job.kind == "shared prefix"
            numbers = prefix_rng(self._seed, job.group) if shared else episode_rng(self._seed, job.group, job.member)
            at, place = state.observation, 0 if shared else job.member
            episode = Episode(
                self._env_id, job.seed, state.task_id, place, numbers, at, state.turns, state.first, state.messages
            )
            while not state.over and not (shared and len(state.turns) == job.branch_at):
                action = await self._ask(agent, episode, state, lane)
                if action is not None:
                    if job.kind == "trunk":
                        state.snapshots.append(await call(env.get_wrapper_attr("snapshot"), pool))
                    await self._turn(env, episode, action, state, pool, keep=shared)
            if shared:
                await self._leave(env, state, pool)
            else:
                _note_success(env, state)
                self._check_bounds(env, state)
        except KeyboardInterrupt as stop:
            raise LoopInterrupted(*stop.args) from None
        except LoopInterrupted:
            raise
        except (SandboxUnavailable, ImageMissing):
            raise  # no episode can go on without it; what is finished is in the store
        except Exception as failure:  # infrastructure: recorded on the trajectory, never turned into a reward
            state.error = _said(failure)
            self.last_failure = failure
        finally:
            release = getattr(agent, "release", None)
            if release is not None and episode is not None:
                release(episode)
        return state

    async def _begin(
        self, env: TextEnvironment, job: Job, prefix: SharedPrefix | None, state: EpisodeState, pool: Lane | None
    ) -> None:
        """Brings the environment to the start, or to where the group's shared prefix was left."""
        noisy = bool(getattr(env.unwrapped, "takes_noise", False)) and job.kind != "shared prefix"
        noise = noise_of(job, self._same_noise)
        if noisy:
            state.extra["noise"] = noise
        if prefix is None:
            options = ({} if job.task is None else {"task": job.task}) | ({"noise": noise} if noisy else {})
            reset = functools.partial(env.reset, seed=job.seed, options=options or None)
            state.observation, first = _began(await call(reset, pool))
            state.messages = tuple(first.pop(MESSAGES, ()))
            state.first |= first
            state.task_id = str(first.get("task_id", ""))
            return
        state.extra["shared_prefix"] = prefix.record()
        state.observation, state.task_id = prefix.observation, prefix.task_id
        state.messages = tuple(prefix.messages)
        state.first |= prefix.info
        state.turns += prefix.turns
        # A copy: an environment may go on writing into what it was given.
        snapshot = json.loads(json.dumps(prefix.snapshot))
        await call(functools.partial(env.get_wrapper_attr("restore"), snapshot), pool)
        if noisy and not self._same_noise:
            await call(functools.partial(env.get_wrapper_attr("renew_noise"), noise), pool)

    async def _ask(self, agent: Agent, episode: Episode, state: EpisodeState, lane: Lane) -> Action | None:
        """The agent's action; None where its context is full and the episode therefore over."""
        try:
            return await _reply(agent, episode, lane, self._timeout)
        except ContextFull as full:
            state.truncated = True
            state.extra |= {"truncated_by": "context", "context": str(full)}
            return None

    async def _turn(
        self,
        env: TextEnvironment,
        episode: Episode,
        action: Action,
        state: EpisodeState,
        pool: Lane | None,
        *,
        keep: bool,
    ) -> None:
        if keep:
            before, state.before = state.before, await call(env.get_wrapper_attr("snapshot"), pool)
            await forget(env, before, pool)
        said, heard = state.observation, state.messages
        step = functools.partial(env.step, action.text if action.reply is None else spelled(action.reply))
        observation, reward, terminated, truncated, info = _stepped(await call(step, pool))
        if action.info:
            info["agent"] = plain(action.info, "info of the action")
        state.messages = tuple(info.pop(MESSAGES, ()))
        turn = Turn(
            said, action.text, reward, action.context_ids, action.action_ids, action.logps, info, heard, action.reply,
            action.forced,
        )  # fmt: skip
        state.observation, state.terminated, state.truncated = observation, terminated, truncated
        state.turns.append(turn)
        episode.observation, episode.messages = state.observation, state.messages
        # Where neither agent nor environment ever waits, Ctrl-C is handled here.
        await asyncio.sleep(0)

    def _check_bounds(self, env: TextEnvironment, state: EpisodeState) -> None:
        """Says once where an environment's rewards are not what it declares: its returns are then compared wrongly."""
        bounds = env.get_wrapper_attr("reward_bounds") if env.has_wrapper_attr("reward_bounds") else None
        if bounds is None or self._out_of_bounds:
            return
        low, high = map(float, bounds)
        found = total(turn.reward for turn in state.turns)
        if not (at_least(found, low) and at_least(high, found)):
            self._out_of_bounds = True
            warnings.warn(
                f"{self._env_id}: expected a total reward in reward_bounds [{low:g}, {high:g}], got {found:g}; correct "
                f"reward_bounds or the reward (polyturn check-env {self._env_id} helps to find out which)",
                RewardBoundsWarning,
                stacklevel=2,
            )

    async def _leave(self, env: TextEnvironment, state: EpisodeState, pool: Lane | None) -> None:
        """Takes the state a shared prefix is left in: the present one, or that before the last turn of one that
        ended."""
        if state.over and state.turns:
            last = state.turns.pop()
            state.observation, state.messages = last.observation, last.messages
        else:
            before, state.before = state.before, await call(env.get_wrapper_attr("snapshot"), pool)
            await forget(env, before, pool)

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
            messages=state.messages,
        )

    def trajectory(self, job: Job, state: EpisodeState) -> Trajectory:
        """The record of an episode."""
        name, version = agent_id(self._agent(job))
        info: dict[str, Any] = {"group": job.group} | ({} if job.task is None else {"task_index": job.task})
        last = {key: value for key, value in state.turns[-1].info.items() if key != "agent"} if state.turns else {}
        info |= {**state.first, **last, **state.extra}
        if job.kind == "trunk":
            # What parts from it begins with these; a snapshot stands for each turn.
            info[TREE] = {"name": tree_name(state.turns), "info": state.first, "snapshots": state.snapshots}
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
            group=job.group,
        )


async def forget(env: TextEnvironment, snapshot: Any, pool: Lane | None) -> None:
    """Lets an environment go of what it keeps for a snapshot, such as a session of the sandbox, where it keeps any."""
    if snapshot is not None and env.has_wrapper_attr("forget"):
        await call(functools.partial(env.get_wrapper_attr("forget"), snapshot), pool)


def _note_success(env: TextEnvironment, state: EpisodeState) -> None:
    """Records how the episode came out, where the environment declares from which total reward one is a success."""
    ends = [state.first, *(turn.info for turn in state.turns[-1:])]
    if any(isinstance(end.get(key), bool) for end in ends for key in SUCCESS_KEYS):
        return  # it says so itself
    bound = env.get_wrapper_attr("success_return") if env.has_wrapper_attr("success_return") else None
    if bound is not None:
        state.extra["success"] = at_least(total(turn.reward for turn in state.turns), float(bound))


def _said(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".strip()


def may_wait(thing: object) -> bool:
    """Whether an agent or environment may wait for something: yes, unless it says `blocking = False`."""
    return bool(getattr(thing, "blocking", True))


async def _reply(agent: Agent, episode: Episode, lane: Lane, timeout: float | None) -> Action:
    """What an agent answers.

    Raises:
        TimeoutError: It took longer than `timeout` seconds.
        TypeError: It is no action.
    """
    waits = may_wait(agent) and not inspect.iscoroutinefunction(agent.act)
    try:
        reply = await call(lambda: agent.act(episode), lane if waits else None, timeout=timeout)
    except TimeoutError as error:
        if str(error):  # the agent's own
            raise
        raise TimeoutError(f"the agent did not answer within {timeout} s") from error
    return as_action(reply)


def as_action(reply: object) -> Action:
    """An agent's answer as an action.

    Raises:
        TypeError: It is neither text nor an `Action` with text.
    """
    if isinstance(reply, str):
        return Action(reply)
    if isinstance(reply, Action) and isinstance(reply.text, str):
        return reply
    found = (
        f"an Action whose text is {type(reply.text).__name__}" if isinstance(reply, Action) else type(reply).__name__
    )
    remedy = (
        "decode it" if isinstance(reply, bytes) else "return text, and the empty text where there is nothing to say"
    )
    raise TypeError(f"expected text (str) or an Action from the agent's act, got {found}; {remedy}")


def _began(result: Any) -> tuple[str, dict[str, Any]]:
    """What `reset` gave, checked.

    Raises:
        TypeError, ValueError: It is not (observation, info).
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise TypeError(f"expected (observation, info) from the environment's reset, got {_shape(result)}")
    return _text(result[0], "reset"), plain(result[1], "info of reset")


def _stepped(result: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """What `step` gave, checked: nothing that an episode cannot be learned from passes for valid.

    Raises:
        TypeError, ValueError: It is not (observation, reward, terminated, truncated, info).
    """
    if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], Mapping):
        raise TypeError(
            "expected (observation, reward, terminated, truncated, info) from the environment's step, got "
            f"{_shape(result)}"
        )
    observation, reward, terminated, truncated, info = result
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"expected True or False as {name} from the environment's step, got {flag!r:.80}")
    number = reward.item() if callable(getattr(reward, "item", None)) else reward
    if not isinstance(number, numbers.Real):
        raise TypeError(f"expected a number as reward from the environment's step, got {reward!r:.80}")
    if not math.isfinite(number):
        raise ValueError(f"expected a finite reward from the environment's step, got {reward!r:.80}")
    made = plain(info, "info of step")
    return _text(observation, "step"), float(number), bool(terminated), bool(truncated), made


def _text(observation: object, method: str) -> str:
    if not isinstance(observation, str):
        raise TypeError(
            f"expected text (str) as observation from the environment's {method}, got {_shape(observation)}"
        )
    return str(observation)


def _shape(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(each).__name__ for each in value)}"
    return type(value).__name__
