"""What a store holds already of a collection: the same episodes by the same agents, with the same weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.playing import Job, agent_id, noise_of
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import TREE, Trajectory, tree_of

_WEIGHTS = "weights"


class SameNameWarning(UserWarning):
    """A store holds episodes of other weights under the name and version of an agent that collects into it."""


class Signed:
    """A store whose trajectories say, beside a name, which weights acted: a digest in `info["weights"]`.

    What is returned to the caller does not have it, so that a collection is the same with and without a store.

    Args:
        store: Where to append.
        agents: Who acts. Those with `fingerprint()` have weights.
    """

    def __init__(self, store: Store, agents: Iterable[Agent]) -> None:
        self.store = store
        unique = {id(agent): agent for agent in agents}
        known = {key: getattr(agent, "fingerprint", None) for key, agent in unique.items()}
        self._of = {agent_id(unique[key]): made() for key, made in known.items() if made is not None}

    def weights(self, agent: tuple[str, str]) -> str | None:
        """The digest of an agent's weights, by its name and version; None where it has none."""
        return self._of.get(agent)

    def unsigned(self, trajectory: Trajectory) -> Trajectory | None:
        """A stored trajectory as its collection returns it; None where its agent had other weights.

        Stores of earlier versions say nothing of weights.
        """
        info, weights = dict(trajectory.info), self.weights((trajectory.agent, trajectory.policy_version))
        return replace(trajectory, info=info) if info.pop(_WEIGHTS, weights) == weights else None

    def warn_of_others(self, count: int, stacklevel: int) -> None:
        """Warns, where there are any, of episodes that `unsigned` has refused."""
        if count:
            warnings.warn(
                f"{str(self.store.path)!r} holds {count} of these episodes by agents of the same name and version with "
                "other weights; they are collected anew, beside those. Give trained weights another policy.version, or "
                "another store, so that readers can tell them apart",
                SameNameWarning,
                stacklevel=stacklevel + 1,
            )

    def append(self, trajectory: Trajectory) -> None:
        """Writes a trajectory with the digest of its agent's weights."""
        weights = self.weights((trajectory.agent, trajectory.policy_version))
        extra = {} if weights is None else {_WEIGHTS: weights}
        self.store.append(replace(trajectory, info={**trajectory.info, **extra}))


def already_there(
    signed: Signed,
    env_id: str,
    options: Mapping[str, Any],
    jobs: Iterable[Job],
    members: Sequence[Agent],
    prefix_agent: Agent,
    same_noise: bool,
) -> dict[tuple[int, int], Trajectory]:
    """Finished episodes of a collection by group and member.

    Warns:
        SameNameWarning: Some are by the same name and version but other weights; they are not taken.
    """
    wanted = {(job.group, job.seed, job.member): job for job in jobs}
    plain = json.dumps(dict(options), sort_keys=True)
    found: dict[tuple[int, int], Trajectory] = {}
    others = 0
    for trajectory in read(signed.store.path):
        job = None if trajectory.group is None else wanted.get((trajectory.group, trajectory.seed, trajectory.member))
        if (
            job is not None
            and trajectory.env_id == env_id
            and trajectory.error is None
            and json.dumps(dict(trajectory.env_options), sort_keys=True) == plain
            and trajectory.info.get("task_index") == job.task
            and (TREE in trajectory.info) == (job.kind == "trunk")
            and (None if job.kind == "trunk" else tree_of(trajectory)) == job.tree
            and (trajectory.agent, trajectory.policy_version) == agent_id(members[job.agent])
            and _parted(trajectory) == (None if job.branch_at is None else (job.branch_at, *agent_id(prefix_agent)))
            and trajectory.info.get("noise", noise_of(job, same_noise)) == noise_of(job, same_noise)
        ):
            kept = signed.unsigned(trajectory)
            if kept is None:
                others += 1
            else:
                found[job.group, job.member] = kept
    signed.warn_of_others(others, 3)
    return found


def _parted(trajectory: Trajectory) -> tuple[int, str, str] | None:
    """Where its group was to part, and who played the shared prefix."""
    prefix = trajectory.info.get("shared_prefix")
    return None if prefix is None else (prefix["asked"], prefix["agent"], prefix["version"])
