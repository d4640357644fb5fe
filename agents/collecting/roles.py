"""An agent in a role: any agent plays the other side of a conversation, and that side's trajectory is kept."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyturn.agents.agent import Action, Agent, AgentFailed, ContextFull, Episode
from polyturn.agents.collecting.blocking import Lane, call
from polyturn.agents.collecting.playing import as_action, may_wait
from polyturn.agents.collecting.work import same
from polyturn.agents.loop_thread import LoopThread
from polyturn.agents.shipping import Shipped, Ticket
from polyturn.envs.conversation import PartnerFull, Scene, Spoken
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Group, Trajectory, Turn


async def reply(agent: Agent, episode: Episode) -> Action:
    """An agent's next action, awaited if need be; one that may wait without being awaitable is called in a thread."""
    if not may_wait(agent) or inspect.iscoroutinefunction(agent.act):
        return as_action(await call(lambda: agent.act(episode), None))
    lane = Lane("polyturn-agent")
    try:
        return as_action(await call(lambda: agent.act(episode), lane))
    finally:
        lane.close()


class AgentPartner:
    """Any agent as the other side of a conversation environment: a student, a buyer.

    The agent sees its brief and the first thing said to it as its first observation, then one observation a turn; its
    own turns are its actions. A transformer reads only what is new, as in any episode. What it sampled is recorded in
    the step's info, so that `other_side` can rebuild its trajectory with every token.

    Use another agent object here than the one that `collect` drives: one rollout engine belongs to one event loop. They
    may share the policy. Collect with `concurrency=1` where two local models must agree to the last bit from run to
    run: their engines work in two threads, and which attention kernel torch uses is one setting for the process.

    Args:
        agent: The agent that plays.
        retries: How often an agent that fails is asked again; then its error ends the episode as invalid. One that
            has tried again itself (`AgentFailed`, as a `ServerAgent` does) is not.
        backoff: Seconds before the first retry; doubled each time.
        timeout: Seconds until an agent that is still waiting has failed; None waits indefinitely.
        sleep: Waits; given for tests.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        retries: int = 3,
        backoff: float = 1.0,
        timeout: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.agent = agent
        self._retries, self._backoff, self._timeout, self._sleep = retries, backoff, timeout, sleep
        self._loop = LoopThread()
        self._episodes: dict[int, tuple[Scene, Episode]] = {}  # the scene too, so that its id is not used again

    @property
    def name(self) -> str:
        """Recorded in the environment's options: the agent and its weights, as both make it another environment."""
        return " ".join(part for part in _who(self.agent) if part)

    @property
    def max_concurrency(self) -> int:
        """Conversations that the agent holds at once; `collect` begins no more: one that waits holds a thread."""
        return int(getattr(self.agent, "max_concurrency", sys.maxsize))

    def __call__(self, scene: Scene, heard: str, /) -> Spoken:
        """The agent's answer.

        Raises:
            PartnerFull: The conversation no longer fits the agent's context.
        """
        _, episode = self._episodes.get(id(scene)) or self._begin(scene)
        turn = len(episode.turns)
        episode.observation = _observation(scene, turn, heard)
        # A generator a turn, so that a conversation goes on from a snapshot as it would have.
        episode.rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([scene.seed, turn])))
        action = self._ask(episode)
        episode.turns.append(_turn(episode.observation, action))
        return Spoken(action.text, {"partner": _recorded(episode.observation, action, self.agent)})

    def ship(self, root: Path) -> Ticket:
        """What makes this partner in another process; see `Shipped`."""
        inner = self.agent.ship(root) if isinstance(self.agent, Shipped) else Ticket(partial(same, self.agent))
        made = partial(
            _partner, inner, retries=self._retries, backoff=self._backoff, timeout=self._timeout, sleep=self._sleep
        )
        return Ticket(made, folders=inner.folders)

    def release(self, scene: Scene) -> None:
        """Forgets a conversation that is over."""
        _, episode = self._episodes.pop(id(scene), (None, None))
        release = getattr(self.agent, "release", None)
        if episode is not None and release is not None:

            async def there() -> None:
                release(episode)

            self._loop.run(there)

    def _begin(self, scene: Scene) -> tuple[Scene, Episode]:
        # A scene that was restored from a snapshot already holds turns; the agent is shown them as its own.
        turns = [_turn(line.record["partner"]["observation"], _action(line.record["partner"])) for line in scene.lines]
        episode = Episode(scene.role, scene.seed, "", 0, np.random.default_rng(scene.seed), "", turns)
        self._episodes[id(scene)] = scene, episode
        return scene, episode

    def _ask(self, episode: Episode) -> Action:
        wait = self._backoff
        for attempt in range(self._retries + 1):
            try:
                return self._loop.run(lambda: reply(self.agent, episode), self._timeout)
            except ContextFull as full:
                raise PartnerFull(str(full)) from full
            except AgentFailed:
                raise
            except Exception:
                if attempt == self._retries:
                    raise
                self._sleep(wait)
                wait *= 2.0
        raise AssertionError("unreachable: the last attempt returns or raises")


def _partner(agent: Ticket, **settings: Any) -> AgentPartner:
    return AgentPartner(agent.make(), **settings)


def other_side(trajectory: Trajectory) -> Trajectory:
    """The partner's own trajectory of a conversation that an `AgentPartner` took part in.

    Its observations are what it heard, its actions what it wrote, with the tokens as sampled; the final reward is the
    environment's `partner_reward` where there is one. It is trained on like any other; groups stay groups, as both
    sides share the start (`other_sides`). Its options say `"side": "partner"`, its info `played_with`: the
    agent it talked to.

    Raises:
        ValueError: The partner was no agent.
    """
    turns: list[Turn] = []
    agent, version = "", ""
    for turn in trajectory.turns:
        record = turn.info.get("partner")
        if record is None:
            if turn is trajectory.turns[-1] and (turns or turn.info.get("truncated_by") == "partner"):
                break  # the agent ended the conversation, or the partner had no room left: it did not speak again
            raise ValueError(
                "other_side: expected turns that record what a partner sampled, got one without; collect with "
                "env_options={'student': AgentPartner(agent)} (or 'buyer')"
            )
        agent, version = record["agent"], record["version"]
        info = {key: value for key, value in turn.info.items() if key not in ("partner", "agent")}
        if record.get("info"):
            info["agent"] = record["info"]
        turns.append(replace(_turn(record["observation"], _action(record)), info=info))
    if turns:
        turns[-1] = replace(turns[-1], reward=float(trajectory.info.get("partner_reward", 0.0)))
    played_with = {"agent": trajectory.agent, "version": trajectory.policy_version}
    return replace(
        trajectory,
        turns=tuple(turns),
        agent=agent,
        policy_version=version,
        final_observation="",
        env_options={**trajectory.env_options, "side": "partner"},
        info={key: value for key, value in trajectory.info.items() if key != "partner"} | {"played_with": played_with},
    )


def other_sides(groups: Iterable[Group]) -> list[Group]:
    """The partner's side of each group, members in order; a group that parts at turn k does so on both sides.

    Raises:
        ValueError: The partner was no agent.
    """
    return [Group(tuple(map(other_side, group)), group.branched_at) for group in groups]


class Appending(Protocol):
    """What a trajectory can be appended to."""

    def append(self, trajectory: Trajectory) -> None: ...


class BothSides:
    """Appends each conversation to one store, and the partner's side of it to another (or the same).

    A process may be killed between the two. So what `known` conversations lack on the other side is made up for.

    Args:
        store: Of the agent's trajectories.
        partner_store: Of the partner's.
        known: Conversations that are in `store` already.

    Raises:
        ValueError: Their partner was no agent.
    """

    def __init__(self, store: Appending, partner_store: Store, known: Iterable[Trajectory] = ()) -> None:
        self._store, self._partner_store = store, partner_store
        there = {_digest(trajectory) for trajectory in read(partner_store.path)}
        for trajectory in known:
            theirs = other_side(trajectory)
            if _digest(theirs) not in there:
                partner_store.append(theirs)

    def append(self, trajectory: Trajectory) -> None:
        """Writes both sides."""
        theirs = other_side(trajectory)
        self._store.append(trajectory)
        self._partner_store.append(theirs)


def _digest(trajectory: Trajectory) -> bytes:
    return sha256(json.dumps(trajectory.to_json(), sort_keys=True).encode()).digest()


def _who(agent: Agent) -> tuple[str, str]:
    return str(getattr(agent, "name", type(agent).__name__)), str(getattr(agent, "version", ""))


def _observation(scene: Scene, index: int, heard: str) -> str:
    return f"{scene.brief}\n\n{heard}" if index == 0 else heard


def _turn(observation: str, action: Action) -> Turn:
    return Turn(
        observation, action.text, 0.0, action.context_ids, action.action_ids, action.logps, forced=action.forced
    )


def _recorded(observation: str, action: Action, agent: Agent) -> dict[str, Any]:
    name, version = _who(agent)
    return {
        "observation": observation,
        "agent": name,
        "version": version,
        "text": action.text,
        "info": dict(action.info),
        "context_ids": action.context_ids.tolist(),
        "action_ids": action.action_ids.tolist(),
        "logps": action.logps.tolist(),
        **({"forced": list(action.forced)} if action.forced else {}),
    }


def _action(record: dict[str, Any]) -> Action:
    return Action(
        record["text"],
        np.asarray(record["context_ids"], np.int32),
        np.asarray(record["action_ids"], np.int32),
        np.asarray(record["logps"], np.float32),
        forced=tuple(record.get("forced", ())),
    )
