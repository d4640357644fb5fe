"""Recorded data as examples: a policy's own tokens, masks that leave prompts out, and what a method learns from each.

Source of the data: `polyturn.envs.read_recorded`, or a store.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tokens import ChatFormat
from polyturn.algorithms.methods.base import GroupMethod, hooks_of
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.protocols.iterate import learnable
from polyturn.envs.preference import Annotator, Preference
from polyturn.envs.recorded import Recorded
from polyturn.envs.trajectory import Group, Trajectory


class LeftOutWarning(UserWarning):
    """Groups of the data teach the method nothing."""


def with_tokens(policy: Policy, trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Recorded conversations in the policy's tokens.

    The turns of a prompt (`info["prompt_turns"]`) become context: they are read, and are not the agent's. A system
    message (`env_options["system"]`) stands in the place of the policy's own.
    """

    @lru_cache(maxsize=256)
    def chat(system: str) -> ChatFormat:
        return ChatFormat(policy.tokenizer, system=system, stop_ids=policy.chat.stop_ids)

    found: list[Trajectory] = []
    for trajectory in trajectories:
        system = trajectory.env_options.get("system")
        written = (policy.chat if system is None else chat(str(system))).written(trajectory)
        before = int(trajectory.info.get("prompt_turns", 0))
        read = [ids for turn in written.turns[:before] for ids in (turn.context_ids, turn.action_ids)]
        first = written.turns[before]
        first = replace(first, context_ids=np.concatenate([*read, first.context_ids]))
        said = [f"{turn.observation}\n[assistant]\n{turn.action}\n[user]\n" for turn in written.turns[:before]]
        first = replace(first, observation="".join(said) + first.observation)
        found.append(replace(written, turns=(first, *written.turns[before + 1 :])))
    return found


def check_offline(method: GroupMethod) -> None:
    """Refuses a method that cannot learn from recorded data.

    Raises:
        ValueError: It learns from the policy's own samples or a teacher, or makes no examples of groups.
    """
    hooks = hooks_of(method)
    if hooks.needs.sampled or hooks.needs.behaviour or hooks.needs.teacher:
        raise ValueError(
            f"{hooks.name}: expected a method that learns from recorded data, such as mdpo, ipo, mkto or dro_v, got "
            "one that learns from the policy's own samples or a teacher"
        )
    if hooks.examples is None and hooks.needs.preference:
        raise ValueError(f"{hooks.name}: expected a method with examples(group, preference, rng), got one without")


def offline_examples(method: GroupMethod, policy: Policy, data: Sequence[Recorded], *, seed: int = 0) -> list[Example]:
    """What a method learns from recorded data.

    Labels (KTO's layout) are unpaired rows for a method that takes unpaired rows, and pairs within a prompt for one
    that compares. Groups that teach nothing (one completion for a method that compares, equal scores) are left out, and
    a warning counts them.

    Args:
        method: `MDPO`, `GPO`, `IPO`, `MKTO`, `PMPO`, `DROV`, `SFT`, `RAFT`, ...; not one that learns from its own
            samples.
        policy: Whose tokens and template.
        data: From `read_recorded`.
        seed: Of what the method draws at random.

    Raises:
        ValueError: The method needs samples of the policy, or nothing in the data teaches it.
    """
    check_offline(method)
    rng = np.random.default_rng([seed, 5])
    examples: list[Example | None] = []
    for each in data:
        group = Group(tuple(with_tokens(policy, each.group)))
        examples += examples_of(method, group, each.preference, each.kind == "label", rng)
    return _kept(method, examples)


def stored_examples(
    method: GroupMethod, policy: Policy, groups: Iterable[Group], annotate: Annotator, *, seed: int = 0
) -> list[Example]:
    """What a method learns from a store's groups, compared by an annotator; see `offline_examples`."""
    check_offline(method)
    rng = np.random.default_rng([seed, 5])
    examples: list[Example | None] = []
    for group in groups:
        known = learnable(group)
        if known is not None:
            members = tuple(m if len(m.turns[0].action_ids) else policy.chat.written(m) for m in known)
            examples += examples_of(method, Group(members), annotate(known), False, rng)
    return _kept(method, examples)


def examples_of(
    method: GroupMethod, group: Group, preference: Preference | None, labelled: bool, rng: np.random.Generator
) -> list[Example | None]:
    """The group's examples; None where it teaches nothing."""
    hooks = hooks_of(method)
    if preference is None:
        if hooks.needs.preference:
            raise ValueError(
                f"{hooks.name}: expected pairs, labels or scores, got conversations without any; sft imitates those"
            )
        return [Example((member,)) for member in group]
    if labelled and hooks.needs.mismatched:
        return [Example(group.trajectories, desirable=np.asarray(preference.scores, np.float32))]
    if not hooks.needs.preference:
        winners = preference.pairs()[:, 0].tolist()
        liked = [] if preference.scores is None or not labelled else np.flatnonzero(preference.scores > 0).tolist()
        return [Example((group[place],)) for place in sorted({*winners, *liked})] or [None]
    if preference.scores is not None and bool(np.isnan(preference.scores).any()):
        preference = replace(preference, scores=None)
    assert hooks.examples is not None
    return [hooks.examples(group, preference, rng)]


def _kept(method: GroupMethod, examples: Sequence[Example | None]) -> list[Example]:
    kept = [example for example in examples if example is not None]
    if not kept:
        raise ValueError(f"{method.name}: expected groups with better and worse members, got {len(examples)} without")
    if len(kept) < len(examples):
        warnings.warn(
            f"left out {len(examples) - len(kept)} of {len(examples)} groups, in which nothing is better than another",
            LeftOutWarning,
            stacklevel=3,
        )
    return kept
