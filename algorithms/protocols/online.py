"""Fresh groups for every training step: the policy as it is now acts, an annotator compares, the method learns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.cluster import RayCluster
from polyturn.agents.collecting.collect import (
    EnvironmentSource,
    GroupSource,
    collect as collect_groups,
    derived_seed,
)
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.collecting.playing import agent_id
from polyturn.agents.shipping import Shipped
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.networks.moving_average import MovingAverage
from polyturn.algorithms.protocols.iterate import learnable, name_of, tasks_of
from polyturn.algorithms.training.data_source import AnnotatedGroup
from polyturn.envs.preference import Annotator, Preference, by_return, by_score
from polyturn.envs.settings import check_count
from polyturn.envs.trajectory import Group, Trajectory

TurnReward = Callable[[Group], Sequence[NDArray[np.float64]]]
"""From a group to `[H]` rewards for each of its members, H that member's turns."""


def online(
    policy: Policy | Agent,
    env: EnvironmentSource | GroupSource,
    *,
    preference: Annotator | None = None,
    reward: Callable[[Trajectory], float] | None = None,
    turn_reward: TurnReward | None = None,
    collect: CollectOptions | None = None,
    opponent: Policy | Agent | MovingAverage | None = None,
    opponents: int | None = None,
    actor: Policy | Agent | None = None,
    reuse: int = 1,
    moving_baseline: float | None = None,
    on: RayCluster | None = None,
    staleness: int = 0,
    progress: bool = False,
    seed: int = 0,
) -> Online:
    """A source for `train` that collects as training goes on.

    Online DPO (arXiv 2402.04792) is `train(GPO(), policy, reference, online(policy, env, preference=judge))`; online
    IPO the same with `IPO`; IPO-MD (arXiv 2403.08635) has `actor=MixtureAgent(policy, reference, beta=...)`; Nash-MD-PG
    (arXiv 2312.00886) is `NashPG` with that mixture as the `opponent`, Nash-EMA-PG with a `MovingAverage`, self-play
    with none; RLOO and GRPO are those methods with groups of more members and a `reward`.

    What is drawn depends on the seed, the draw and the weights only, so a resumed run goes on bit for bit. With
    several processes either all draw the same groups and share them out, or, with `train(..., sharded=False)`, each
    draws its own: give each another seed.

    Args:
        policy: Whose weights are trained; its sampler follows them. One that is an agent itself (`TabularPolicy`) acts
            for itself: `sampling` and `max_tokens` are not for it.
        env: Registered id, a function that makes the environment, or an agent program.
        preference: From a group to its preference; an oracle, a judge, a learned model. Default: by total reward.
        reward: From a valid trajectory to its score, instead of `preference`.
        turn_reward: From a group of valid members to a reward for each turn of each, which replaces what the
            environment paid before anything else looks at the group: for `PPO(reward="turns")`.
        collect: What each draw collects, and how the policy samples; default 8 groups of 2. Policy gradients and the
            Nash methods score at the temperature of the samples, so what they optimise is the policy at that
            temperature; they refuse top_p below 1 and temperature 0.
        opponent: The agent that draws the members they are compared with; None: they are compared with each other.
            Methods know it from the policy by its name and version, so one of them must be another than the policy's. A
            group in which the episodes of either side all failed is left out.
        opponents: How many of those per start; default `group_size`.
        actor: The agent that draws in the policy's place; default the policy itself.
        reuse: Training steps on each draw (inner steps). Above 1 the groups are no longer on-policy; methods that
            look at the log-probabilities as sampled (PPO, GRPO) correct for it.
        moving_baseline: Decay of the average of earlier draws' mean score, which is taken off all scores; None for
            scores as they are. The first draw, with none before it, has its own mean taken off.
        on: Where draws are collected, as in `collect`.
        staleness: 1 collects each draw, on the cluster `on`, while training goes on with the draw before it, whose
            weights at its first step are those that sample; the second draw is sampled by the weights that the first
            was. Log-probabilities are recorded as sampled, so PPO and GRPO correct for it; policy gradients without
            such ratios refuse it. What is learned depends on the seed only, as without. "sample/lag" says how many
            steps the trained weights were ahead.
        progress: Show a bar for each draw.
        seed: Fixes everything.

    Raises:
        ValueError: Arguments that do not fit together.
    """
    if staleness not in (0, 1) or isinstance(staleness, bool):
        raise ValueError(f"online: expected a staleness of 0 or 1, got {staleness!r}")
    if staleness and on is None:
        raise ValueError(
            "online: expected on=RayCluster(...) to go with staleness=1, got none: a process that samples while it "
            "trains does neither reproducibly, as torch has one choice of attention kernels for both; "
            'RayCluster("local") starts workers on this machine'
        )
    if preference is not None and reward is not None:
        raise ValueError("online: expected a preference or a reward, got both")
    collect = CollectOptions(groups=8, group_size=2) if collect is None else collect
    check_count("online: reuse", reuse)
    if opponent is None and opponents is not None:
        raise ValueError("online: expected an opponent to go with opponents, got none")
    if moving_baseline is not None and not 0 <= moving_baseline < 1:
        raise ValueError(f"online: expected a moving_baseline in [0, 1), got {moving_baseline}")

    def speaking(speaker: Policy | Agent) -> Agent:
        if isinstance(speaker, Policy):
            return TransformerAgent(speaker, **collect.acting)
        if isinstance(speaker, type) or not isinstance(speaker, Agent):
            raise ValueError(f"online: expected a policy, or an agent with act(episode), got {speaker!r:.200}")
        return speaker

    average = opponent if isinstance(opponent, MovingAverage) else None
    members = [speaking(policy if actor is None else actor)] * collect.group_size
    # The opponent's members follow the policy's in every group.
    if opponent is not None:
        rival = speaking(opponent.average if isinstance(opponent, MovingAverage) else opponent)
        if agent_id(rival) == agent_id(members[0]):
            raise ValueError(
                f"online: expected an opponent of another name or version than the policy, got {agent_id(rival)} for "
                "both, which cannot be distinguished; name its weights, as in policy.copy(version='opponent'), or "
                "leave the opponent out for self-play"
            )
        members += [rival] * (collect.group_size if opponents is None else opponents)
    # How groups are compared, and how each draw collects them: seeds follow from the number of the draw.
    annotate = preference or (by_return if reward is None else _by_reward(reward))

    def prepare(number: int) -> Callable[[], list[Group]]:
        if average is not None:
            average.update(number)
        # What is collected beside training is collected with the weights of now.
        speakers, options = members, collect.env_options
        if staleness and on is not None:
            speakers = on.pin(members)
            live = {name: value for name, value in options.items() if isinstance(value, Shipped)}
            options = {**options, **dict(zip(live, on.pin(list(live.values())), strict=True))}
        return partial(draw, number, speakers, options)

    def draw(number: int, speakers: Sequence[Agent], options: Mapping[str, Any]) -> list[Group]:
        return collect_groups(
            speakers,
            env,
            groups=collect.groups,
            group_size=len(members),
            seed=derived_seed(seed, number),
            tasks=tasks_of(collect.tasks, number + 1, collect.groups, seed),
            branch_at=collect.branch_at,
            env_options=options,
            concurrency=collect.slots,
            on=on,
            progress=progress,
            label=f"draw {number}",
        )

    return Online(
        lambda number: prepare(number)(),
        annotate,
        turn_reward=turn_reward,
        reuse=reuse,
        moving_baseline=moving_baseline,
        ahead=prepare if staleness else None,
        seed=seed,
        samplers=(agent_id(members[0])[0],),
        made_of={
            "env": env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__),
            "collect": collect.recorded(),
            "preference": name_of(annotate),
            "opponent": None if opponent is None else agent_id(members[-1])[0],
            "members": len(members),
        },
    )


class Online:
    """An endless source of annotated groups that knows its place: what `online` returns.

    Args:
        draw: From the number of a draw, counted from 0, to its groups.
        annotate: From a group of valid members to its preference.
        turn_reward: As in `online`.
        reuse: Steps on each draw.
        moving_baseline: As in `online`.
        ahead: The same in two steps, the second of which, with the weights of the first, is called in a thread beside
            training: from the number of a draw to what collects it. None: no draw is collected beside training.
        seed: Of what methods draw at random from the groups.
        samplers: Names of the agents whose turns are learned from.
        made_of: What else decides the groups, as JSON values by name; compared when a run is resumed.

    Attributes:
        samplers: As given.
        staleness: Draws between the weights that sampled and those that are trained: 1 with `ahead`, else 0.
        metrics: Of the last draw: "sample/return" (mean total reward of valid episodes), "sample/score" (mean score as
            annotated), "sample/tokens" (mean tokens written), "sample/invalid" (episodes left out), "sample/draw", and
            with staleness "sample/lag" (steps between the weights that sampled and those that are trained).
    """

    def __init__(
        self,
        draw: Callable[[int], list[Group]],
        annotate: Annotator,
        *,
        turn_reward: TurnReward | None = None,
        reuse: int = 1,
        moving_baseline: float | None = None,
        ahead: Callable[[int], Callable[[], list[Group]]] | None = None,
        seed: int = 0,
        samplers: Sequence[str] = (),
        made_of: Mapping[str, Any] | None = None,
    ) -> None:
        self._made_of = dict(made_of or {})
        self.samplers = tuple(samplers)
        self._draw, self._annotate, self._turn_reward, self._seed = draw, annotate, turn_reward, seed
        self._reuse, self._decay = reuse, moving_baseline
        self._ahead, self.staleness = ahead, int(ahead is not None)
        self._next: _Draw | None = None  # collected beside training
        self._draws = self._used = 0
        self._baseline: float | None = None
        self._held: list[tuple[Group, Preference]] = []
        self._written: list[dict[str, Any]] | None = None
        self.metrics: dict[str, float] = {}

    def __iter__(self) -> Iterator[list[AnnotatedGroup]]:
        return self

    def __next__(self) -> list[AnnotatedGroup]:
        """The next step's groups: fresh ones, or those of the last draw where they are used again."""
        if not 0 < self._used < self._reuse:
            beside, self._next = self._next, None
            self._held = self._collected(self._draws, self._draw(self._draws) if beside is None else beside.groups())
            self._draws, self._used, self._written = self._draws + 1, 0, None
            if self._ahead is not None:
                self._next = _Draw(self._ahead(self._draws))
        if self._ahead is not None:
            # The first draw has the weights of its own first step, every other those of the first step before it.
            self.metrics["sample/lag"] = float(self._used + (self._reuse if self._draws > 1 else 0))
        self._used += 1
        return [
            AnnotatedGroup(group, preference, (self._seed, self._draws, self._used, index))
            for index, (group, preference) in enumerate(self._held)
        ]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the groups beside the policy's weights, as JSON values."""
        own = {"seed": self._seed, "reuse": self._reuse, "moving_baseline": self._decay}
        return {**self._made_of, **own, **({"staleness": self.staleness} if self.staleness else {})}

    def state_dict(self) -> dict[str, Any]:
        """Where it is, as JSON values: with the groups themselves if they are going to be used again.

        A draw that is collected beside training is waited for, since the weights that sample it are no longer there.
        """
        again = 0 < self._used < self._reuse
        if again and self._written is None:
            self._written = [_to_json(group, preference) for group, preference in self._held]
        return {
            "draws": self._draws,
            "used": self._used,
            "baseline": self._baseline,
            "metrics": dict(self.metrics),
            "held": self._written if again else [],
            **({} if self._next is None else {"next": [_group_to_json(group) for group in self._next.groups()]}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was asked."""
        self._draws, self._used, self._baseline = state["draws"], state["used"], state["baseline"]
        self._held, self._written = [_from_json(item) for item in state["held"]], None
        self.metrics = dict(state["metrics"])
        ahead = [_group_from_json(item) for item in state["next"]] if "next" in state else None
        self._next = None if ahead is None else _Draw(lambda: ahead)

    def _collected(self, number: int, collected: list[Group]) -> list[tuple[Group, Preference]]:
        members = [member for group in collected for member in group]
        valid = [member for member in members if member.valid]
        kept = [group for group in map(_comparable, collected) if group is not None]
        if self._turn_reward is not None:
            kept = [_repaid(group, self._turn_reward(group)) for group in kept]
        annotated = [(group, self._annotate(group)) for group in kept]
        if self._decay is not None and any(preference.scores is None for _, preference in annotated):
            raise ValueError(
                "online: expected a reward, or a preference with scores, to take a moving_baseline off, got "
                "only preferences; leave moving_baseline out, as a win rate has its own mean of 1/2"
            )
        self.metrics = {"sample/draw": float(number), "sample/invalid": float(len(members) - len(valid))}
        if valid:
            written = [sum(len(turn.action_ids) for turn in member.turns) for member in valid]
            self.metrics["sample/return"] = float(np.mean([member.total_reward for member in valid]))
            self.metrics["sample/tokens"] = float(np.mean(written))
        scores = [p.scores for _, p in annotated if p.scores is not None]
        known = np.concatenate(scores) if scores else np.zeros(0)
        if len(known := known[~np.isnan(known)]):
            self.metrics["sample/score"] = float(known.mean())
            if self._decay is not None:
                annotated = self._centred(annotated, float(known.mean()))
        return annotated

    def _centred(self, annotated: list[tuple[Group, Preference]], mean: float) -> list[tuple[Group, Preference]]:
        """Takes the baseline of earlier draws off, then moves it on."""
        assert self._decay is not None
        before = mean if self._baseline is None else self._baseline
        self._baseline = self._decay * before + (1.0 - self._decay) * mean
        return [(g, p if p.scores is None else replace(p, scores=p.scores - before)) for g, p in annotated]


class _Draw:
    """Groups that a thread collects; it keeps no process alive.

    Args:
        collect: What it calls.
    """

    def __init__(self, collect: Callable[[], list[Group]]) -> None:
        self._found: Future[list[Group]] = Future()
        threading.Thread(target=self._run, args=(collect,), name="polyturn-draw", daemon=True).start()

    def groups(self) -> list[Group]:
        """Waits for them; raises what collecting raised."""
        return self._found.result()

    def _run(self, collect: Callable[[], list[Group]]) -> None:
        try:
            self._found.set_result(collect())
        except BaseException as error:
            self._found.set_exception(error)


def _comparable(group: Group) -> Group | None:
    """The members that may be compared, if each side still has some.

    Without its opponents a policy would be compared with itself; without the policy's members the opponents would be
    taken for it.
    """
    found = learnable(group)
    return found if found is not None and _sides(found) == _sides(group) else None


def _sides(group: Group) -> set[tuple[str, str]]:
    return {(member.agent, member.policy_version) for member in group}


def _by_reward(reward: Callable[[Trajectory], float]) -> Annotator:
    def annotate(group: Group) -> Preference:
        return by_score(np.array([reward(m) if m.valid else np.nan for m in group], np.float64))

    return annotate


def _repaid(group: Group, rewards: Sequence[NDArray[np.float64]]) -> Group:
    """The group with other rewards on its turns.

    Raises:
        ValueError: Not one finite reward a turn.
    """
    expected = [len(member.turns) for member in group]
    if [len(each) for each in rewards] != expected or not all(np.isfinite(each).all() for each in rewards):
        found = [np.asarray(each).tolist() for each in rewards]
        raise ValueError(f"online: expected finite turn_rewards for {expected} turns, got {found}")
    paid = [
        replace(
            member,
            turns=tuple(replace(turn, reward=float(r)) for turn, r in zip(member.turns, each, strict=True)),
        )
        for member, each in zip(group, rewards, strict=True)
    ]
    return Group(tuple(paid), group.branched_at)


def _group_to_json(group: Group) -> dict[str, Any]:
    return {"trajectories": [member.to_json() for member in group], "branched_at": group.branched_at}


def _group_from_json(item: Mapping[str, Any]) -> Group:
    return Group(tuple(Trajectory.from_json(member) for member in item["trajectories"]), item["branched_at"])


def _to_json(group: Group, preference: Preference) -> dict[str, Any]:
    return {
        **_group_to_json(group),
        "matrix": preference.matrix.tolist(),
        "source": preference.source,
        "scores": None if preference.scores is None else preference.scores.tolist(),
    }


def _from_json(item: Mapping[str, Any]) -> tuple[Group, Preference]:
    group = _group_from_json(item)
    scores = None if item["scores"] is None else np.array(item["scores"], np.float64)
    return group, Preference(np.array(item["matrix"], np.float64), item["source"], scores)
