"""Agents x environments -> groups of trajectories.

Asynchronous inside, plain outside: every episode is a coroutine, the engine batches all that are ready. Agents and
environments may wait in any way: what is awaitable is awaited, all else is called in a thread of its episode's own,
unless it says `blocking = False`. What comes back depends on the seed only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
from tqdm.auto import tqdm

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.blocking import block
from polyturn.agents.collecting.branching import BranchAt, branch_turns, check_branching
from polyturn.agents.collecting.cluster import RayCluster, play_on
from polyturn.agents.collecting.playing import Job, TextEnvironment
from polyturn.agents.collecting.resuming import Signed, already_there
from polyturn.agents.collecting.roles import BothSides
from polyturn.agents.collecting.running import CollectError as CollectError, EpisodeRunner, Failures
from polyturn.agents.collecting.trees import branch_jobs, tree_members
from polyturn.agents.collecting.work import Work
from polyturn.envs.registration import check_options, make
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.store import Store
from polyturn.envs.trajectory import TREE, Group, Trajectory

EnvironmentSource = str | Callable[[], TextEnvironment]


@runtime_checkable
class GroupSource(Protocol):
    """What makes groups in a way of its own, and stands where an environment does: an agent program."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    def collect(
        self,
        members: Sequence[Agent],
        *,
        groups: int | None,
        seed: int,
        tasks: Sequence[int] | None,
        concurrency: int,
        store: Store | None,
        progress: bool,
        label: str,
    ) -> list[Group]:
        """Groups of as many members, each by its own agent; the arguments are those of `collect`."""
        ...


def collect(
    agent: Agent | Sequence[Agent],
    env: EnvironmentSource | GroupSource,
    *,
    groups: int | None = None,
    group_size: int = 1,
    seed: int = 0,
    tasks: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
    branch_at: BranchAt | None = None,
    prefix_agent: Agent | None = None,
    same_noise: bool = False,
    timeout: float | None = None,
    concurrency: int = 64,
    on: RayCluster | None = None,
    store: Store | None = None,
    partner_store: Store | None = None,
    progress: bool = True,
    label: str = "collect",
) -> list[Group]:
    """Runs episodes and returns them as groups from identical starts.

    The members of a group start from the identical state; what happens by chance after that is drawn for each of them
    anew where the environment can do so (it says `takes_noise`, see `polyturn.envs.text_env`), since a preference is
    an expectation over both conversations' noise. `same_noise=True` gives all of them the same, for paired comparisons.

    With `branch_at=k` they share more than the start: for each group one shared prefix is played to the agent's turn k,
    and every member goes on from there with its own random numbers. The first k turns are the same in all members,
    to the last token and log-probability, and the group says so: `group.branched_at`. A shared prefix whose episode
    ends before it has k turns is left at its last turn, which the members then take anew.

    With `branch_at="every"` a group is a tree: its first member is played through, and at each of its turns the other
    `group_size - 1` part from it, so an episode of T turns makes 1 + T (group_size - 1) members. `group.parted` says
    where each parts; `polyturn.envs.AtBranches` compares those that part at the same turn.

    Args:
        agent: The agent; or one agent for each member of a group (`group_size` of them), for example 20 of the
            current policy and 10 of the previous one.
        env: Registered id, or a function that makes the environment; or an agent program
            (`polyturn.agents.AgentProgram`), which has tasks, limits and no branches of its own.
        groups: How many starts; default one a task, or 1.
        group_size: Episodes per start.
        seed: Fixes everything: each start's environment seed comes from (seed, group), each episode's generator from
            (seed, group, member), a shared prefix's from (seed, group).
        tasks: Task index of each start, passed to the environment's `reset(options={"task": index})`; without it the
            environment picks by its seed.
        env_options: Keyword arguments for the environment.
        branch_at: The agent's turn, counted from 0, at which the members of a group part; or a function of the group's
            index that gives it, the same at every call; or "every". None: they part at the start.
        prefix_agent: The agent of the shared turns; default the first member's agent. A transformer among the members
            needs turns with tokens, so a transformer with the same tokenizer.
        same_noise: Whether members share the environment's noise too.
        timeout: Seconds that an agent may take for a turn; then the episode has failed. None waits indefinitely. A
            model's own limit is `Sampling.max_new_tokens`.
        concurrency: Episodes under way at once, on a cluster in each worker; changes speed, never a result.
        on: Where to play them; None: in this process. On a `RayCluster` whole groups go to workers.
        store: Where to append every finished trajectory. Episodes already in it (of the same environment, options,
            seed, task, branch, agent, version and weights) are not run again, so an interrupted collection goes on
            where it stopped; failed ones are tried anew. Training does not rename a policy: give the new weights
            another `policy.version`, or another store, so that readers can tell the episodes apart; a
            `SameNameWarning` says where they cannot.
        partner_store: Where to append the other side of every conversation (see
            `polyturn.agents.collecting.roles.other_side`) where an `AgentPartner` plays it; `store` itself, or another
            one to train on separately.
        progress: Show a progress bar.
        label: What the bar says.

    Returns:
        Groups in order, members in order. An episode whose infrastructure failed twice is there with its `error`: an
        exception of the environment or its constructor, a reward that is no finite number, an info that is no JSON.

    Warns:
        RewardBoundsWarning: Total rewards lie outside the environment's `reward_bounds`.

    Raises:
        CollectError: All episodes failed, or many in a row and none succeeded between; the last failure is its cause.
        SandboxUnavailable: The environment's sandbox cannot run here.
        ValueError: Arguments that do not fit together.
    """
    # What is asked for, checked before any work.
    check_count("collect(groups)", groups, 0, optional=True)
    check_count("collect(group_size)", group_size)
    check_count("collect(concurrency)", concurrency)
    check_count("collect(seed)", seed, 0)
    if timeout is not None:
        check_range("collect(timeout)", timeout, 0, above=True)
    for name, opened in (("store", store), ("partner_store", partner_store)):
        if opened is not None and not isinstance(opened, Store):
            raise ValueError(f"collect({name}): expected an open Store, got {opened!r:.80}; pass Store(path)")
    if tasks is not None and not isinstance(tasks, Sequence | np.ndarray):
        raise ValueError(f"collect(tasks): expected a sequence of task numbers or None, got {tasks!r:.80}")
    for task in [] if tasks is None else tasks:
        check_count("collect(tasks): each", task, 0)
    count = (len(tasks) if tasks is not None else 1) if groups is None else groups
    if tasks is not None and len(tasks) != count:
        raise ValueError(f"collect: expected one task a group ({count}), got {len(tasks)} tasks")
    if partner_store is not None and store is None:
        raise ValueError("collect: expected a store to go with partner_store, since resuming needs both; got none")
    # What was given, checked before any work.
    members = list(agent) if isinstance(agent, Sequence) else [agent] * group_size
    if len(members) != group_size:
        raise ValueError(f"collect: expected one agent for each of {group_size} members, got {len(members)}")
    for each in members if prefix_agent is None else [*members, prefix_agent]:
        if isinstance(each, type) or not isinstance(each, Agent):
            raise ValueError(
                f"collect: expected agents, anything with act(episode), got {each!r:.200}; of a Policy "
                "TransformerAgent(policy) makes one"
            )
    if isinstance(env, gymnasium.Env):
        raise ValueError(
            f"collect: expected the id of an environment or a function that makes one, got {env!r:.200}, of which many "
            "are needed at once; pass lambda: gymnasium.make(...)"
        )
    if not isinstance(env, str) and isinstance(env, GroupSource):
        given = (prefix_agent, env_options, partner_store, timeout, same_noise, on)
        if branch_at is not None or any(given):
            raise ValueError(
                "collect: expected no branch_at, prefix_agent, env_options, partner_store, timeout, same_noise or on "
                f"for {env.name}, which is no environment"
            )
        return env.collect(
            members,
            groups=groups,
            seed=seed,
            tasks=tasks,
            concurrency=concurrency,
            store=store,
            progress=progress,
            label=label,
        )
    if env_options is not None and not isinstance(env_options, Mapping):
        raise ValueError(f"collect(env_options): expected names and values (a dictionary), got {env_options!r:.80}")
    options = dict(env_options or {})
    if isinstance(env, str):
        check_options(env, options)
    env_id = getattr(env, "__name__", type(env).__name__) if callable(env) else env
    recorded = plain_options(options)

    # Where groups branch; an environment is tried before episodes are played.
    parts, every = branch_turns(branch_at, count), branch_at == "every"
    branches = group_size - 1 if every else 0
    if every and (group_size < 2 or prefix_agent is not None):
        raise ValueError(
            f"collect(branch_at='every'): expected a group_size of 2 or more and no prefix_agent, as the first member "
            f"is played through and the others part from it, got {group_size} and {prefix_agent!r:.80}"
        )
    if prefix_agent is not None and branch_at is None:
        raise ValueError("collect: expected branch_at to go with prefix_agent, got none")
    prefix_agent = members[0] if prefix_agent is None else prefix_agent
    if branch_at is not None:
        probe = env() if callable(env) else cast("TextEnvironment", make(env, **options))
        try:
            check_branching(probe, env_id, prefix_agent, members, same_noise=same_noise)
        finally:
            probe.close()

    # One job an episode, without those that are in the store already.
    jobs = [
        Job(group, member, derived_seed(seed, group), None if tasks is None else int(tasks[group]), parts[group])
        for group in range(count)
        for member in range(1 if every else group_size)
    ]
    jobs = [replace(job, kind="trunk") for job in jobs] if every else jobs
    done: dict[tuple[int, int], Trajectory] = {}
    signed: Signed | None = None
    if store is not None:
        signed = Signed(store, [*members, prefix_agent])
        done = already_there(signed, env_id, recorded, jobs, members, prefix_agent, same_noise)
        if every:
            jobs += [each for job in jobs for each in branch_jobs(job, done.get((job.group, 0)), branches)]
            done = already_there(signed, env_id, recorded, jobs, members, prefix_agent, same_noise)
    left = [job for job in jobs if (job.group, job.member) not in done]
    # Play them, each appended to the store when it ends.
    keep: Signed | BothSides | None = signed
    if signed is not None and partner_store is not None:
        keep = BothSides(signed, partner_store, done.values())
    # One agent that holds many episodes bounds all of them; waiting for two such agents at once could deadlock.
    speakers = [*members, *([] if branch_at is None else [prefix_agent]), *options.values()]
    width = min([concurrency, len(left) or 1, *(getattr(a, "max_concurrency", concurrency) for a in speakers)])
    quiet = None if progress else True  # None: only where standard error is a terminal or a notebook
    with tqdm(total=len(jobs), initial=len(done), desc=label, unit="ep", disable=quiet, leave=False) as bar:

        def ended(trajectory: Trajectory) -> None:
            if keep is not None:
                keep.append(trajectory)
            bar.update()
            if TREE in trajectory.info:
                bar.total = (bar.total or 0) + branches * len(trajectory.turns)

        work = Work(members, prefix_agent, env, options, env_id, recorded, seed, same_noise, timeout, width, branches)
        play = _here if on is None else partial(play_on, on)
        done |= play(work, left, done, ended, store is not None)
    # Groups in order.
    if every:
        return [Group(tuple(tree_members(done.items(), group))) for group in range(count)]
    return [_group([done[group, member] for member in range(group_size)]) for group in range(count)]


def _here(
    work: Work,
    left: Sequence[Job],
    done: Mapping[tuple[int, int], Trajectory],
    ended: Callable[[Trajectory], object],
    stored: bool,
) -> dict[tuple[int, int], Trajectory]:
    """Plays jobs in this process; the arguments and errors are those of `play_on`."""
    failures, player = Failures(work.width, stored), work.player()

    def noted(trajectory: Trajectory) -> None:
        ended(trajectory)
        failures.note(trajectory, player.last_failure)

    runner = EpisodeRunner(player, work.make, work.env_id, work.width, noted, work.branches)

    async def played() -> dict[tuple[int, int], Trajectory]:
        try:
            return await runner.run(runner.plan(left, done), len(left))
        finally:
            await runner.close()

    found = block(played)
    failures.check_any([*done.values(), *found.values()], player.last_failure)
    return found


def _group(members: Sequence[Trajectory]) -> Group:
    """The group of a start; a member that failed before the environment named the task is given the others' task."""
    task = next((member.task_id for member in members if member.task_id), "")
    named = tuple(m if m.task_id or m.error is None else replace(m, task_id=task) for m in members)
    prefix = named[0].info.get("shared_prefix")
    return Group(named, None if prefix is None else prefix["turns"])


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed of 63 bits from a run's and the number of a start, draw or iteration; no two of billions are equal."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0]) >> 1


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's options as trajectories record them: JSON values."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    """An option as a JSON value: itself where it is one, else its name."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return str(getattr(value, "name", type(value).__name__))
