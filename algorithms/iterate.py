"""The iterative protocol: collect with the newest policies, compare, train, let the new policy be the reference.

Multi-turn iterative preference learning (arXiv 2409.02392, Algorithm 1): each iteration gives a prompt N trajectories,
some from the current policy and some from the one before it; pairs are made by outcome; the reference is the policy the
iteration starts from. Every file an iteration writes makes the next run of the same call go on where this one stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from turnwise.agents.collecting import collect
from turnwise.agents.generation import Sampling
from turnwise.agents.policy import Policy
from turnwise.agents.transformer import TransformerAgent
from turnwise.algorithms.feed import minibatches
from turnwise.algorithms.methods import Method, needs_reference
from turnwise.algorithms.pairing import Example
from turnwise.algorithms.training import train
from turnwise.envs.preference import Annotator, Preference, by_return
from turnwise.envs.store import Store
from turnwise.envs.trajectory import Group


class OfflineMethod(Method, Protocol):
    """A method that says what it takes of an annotated group."""

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """What is learned from the group, or None where it teaches nothing."""
        ...


class NothingToLearn(RuntimeError):
    """No group of an iteration held anything the method can learn from."""


@dataclass(frozen=True)
class Iteration:
    """What one iteration did.

    Attributes:
        number: 0 for the starting policy, then 1, 2, ...
        policy: Folder of its weights.
        episodes: Episodes collected for it.
        invalid: How many of them failed for reasons outside the agent.
        mean_return: Mean return of the valid ones: how good the policy was that they came from.
        examples: Groups that taught something.
        evaluation: What `evaluate` said of the resulting policy.
    """

    number: int
    policy: str
    episodes: int
    invalid: int
    mean_return: float
    examples: int
    evaluation: Mapping[str, Any]


def iterate(
    method: OfflineMethod,
    policy: Policy,
    env: str,
    *,
    out: str | Path,
    iterations: int = 3,
    groups: int = 64,
    group_size: int = 8,
    from_previous: int = 0,
    tasks: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
    annotate: Annotator = by_return,
    reference: Literal["previous", "first"] = "previous",
    sampling: Sampling | None = None,
    max_tokens: int = 2048,
    slots: int = 64,
    epochs: float = 1.0,
    batch_size: int = 32,
    evaluate: Callable[[Policy], Mapping[str, Any]] | None = None,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Iteration]:
    """Runs the protocol; the policy is trained in place and every iterate is saved.

    Args:
        method: What is learned from annotated groups: `MDPO`, `MKTO`, `RAFT`, ...
        policy: The starting policy, usually after supervised fine-tuning.
        env: Registered id of the environment.
        out: Folder of the run. Calling again with the same arguments goes on with what is there.
        iterations: How many.
        groups: Starts per iteration.
        group_size: Trajectories per start (N).
        from_previous: How many of them the previous iterate samples, from the second iteration on.
        tasks: Task indices to draw from, without repetition until all were used; default: the environment draws.
        env_options: Keyword arguments of the environment.
        annotate: From a group to its preference.
        reference: "previous": the policy each iteration starts from; "first": the starting policy for ever.
        sampling: How training episodes are sampled.
        max_tokens: Tokens of an episode.
        slots: Episodes sampled at once.
        epochs: Passes over an iteration's examples.
        batch_size: Examples an update.
        evaluate: Called with each iterate, the starting policy included.
        seed: Fixes everything.
        progress: Show progress bars.
        options: Further arguments of `train`.

    Returns:
        One record for the starting policy and each iteration.

    Raises:
        NothingToLearn: All groups of an iteration were alike, right throughout or wrong throughout.
        ValueError: Arguments that do not fit together.
    """
    if not 0 <= from_previous < group_size:
        raise ValueError(f"iterate: expected 0 <= from_previous < group_size ({group_size}), got {from_previous}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    first = policy.copy()
    previous = first
    records = [_once(folder / "iteration-0", lambda place: _start(place, policy, evaluate))]
    for number in range(1, iterations + 1):
        place = folder / f"iteration-{number}"
        current = policy.copy()

        def run(place: Path, number: int = number, current: Policy = current, previous: Policy = previous) -> Iteration:
            place.mkdir(exist_ok=True)
            acting = TransformerAgent(current, sampling=sampling, max_tokens=max_tokens, slots=slots)
            members = [acting] * group_size
            if from_previous and number > 1:
                older = TransformerAgent(previous, sampling=sampling, max_tokens=max_tokens, slots=slots)
                members[group_size - from_previous :] = [older] * from_previous
            with Store(place / "trajectories.jsonl") as store:
                collected = collect(
                    members,
                    env,
                    groups=groups,
                    group_size=group_size,
                    seed=_derive(seed, number, 0),
                    tasks=_tasks_of(tasks, number, groups, seed),
                    env_options=env_options,
                    concurrency=slots,
                    store=store,
                    progress=progress,
                    label=f"iteration {number}: collect",
                )
            rng = np.random.default_rng([seed, number, 1])
            found = [method.examples(group, annotate(group), rng) for group in collected if group.valid is not None]
            examples = [example for example in found if example is not None]
            if not examples:
                raise NothingToLearn(
                    f"iteration {number}: expected groups with better and worse trajectories, got {len(collected)} "
                    "groups without a difference; use a larger group_size, a higher temperature or other tasks"
                )
            policy.version = f"iteration-{number}"
            steps = max(1, round(epochs * len(examples) / batch_size))
            anchor = (first if reference == "first" else current) if needs_reference(method) else None
            train(
                method,
                policy,
                anchor,
                minibatches(examples, batch_size, seed=_derive(seed, number, 2)),
                steps=steps,
                out=place / "train",
                resume=True,
                keep=1,
                progress=progress,
                **options,
            )
            policy.save_pretrained(place / "policy")
            valid = [m for group in collected for m in group if m.valid]
            return Iteration(
                number,
                "policy",
                episodes=groups * group_size,
                invalid=groups * group_size - len(valid),
                mean_return=float(np.mean([m.total_reward for m in valid])),
                examples=len(examples),
                evaluation=dict(evaluate(policy)) if evaluate else {},
            )

        done = (place / "done.json").is_file()
        records.append(_once(place, run))
        if done:
            _load_into(policy, place / "policy")
        previous = current
    return records


def _start(place: Path, policy: Policy, evaluate: Callable[[Policy], Mapping[str, Any]] | None) -> Iteration:
    policy.save_pretrained(place / "policy")
    return Iteration(0, "policy", 0, 0, float("nan"), 0, dict(evaluate(policy)) if evaluate else {})


def _once(place: Path, work: Callable[[Path], Iteration]) -> Iteration:
    """Does the work of a folder, or reads what it was if it is done."""
    note = place / "done.json"
    if note.is_file():
        return Iteration(**json.loads(note.read_text("utf-8")))
    record = work(place)
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps(record.__dict__, indent=1) + "\n", "utf-8")
    os.replace(temporary, note)
    return record


def _load_into(policy: Policy, folder: Path) -> None:
    saved = Policy.from_pretrained(folder, device=policy.device)
    policy.model.load_state_dict(saved.model.state_dict())
    policy.version = saved.version


def _tasks_of(tasks: Sequence[int] | None, number: int, groups: int, seed: int) -> list[int] | None:
    """The iteration's share of the tasks: consecutive slices of a shuffled order, a new order for every pass."""
    if tasks is None:
        return None
    if not tasks:
        raise ValueError("iterate: expected tasks to draw from, got an empty sequence")
    orders: dict[int, np.ndarray[Any, Any]] = {}
    chosen = []
    for position in range((number - 1) * groups, number * groups):
        lap, place = divmod(position, len(tasks))
        if lap not in orders:
            orders[lap] = np.random.default_rng([seed, 3, lap]).permutation(len(tasks))
        chosen.append(int(tasks[int(orders[lap][place])]))
    return chosen


def _derive(seed: int, number: int, use: int) -> int:
    return int(np.random.SeedSequence([seed, number, use]).generate_state(1)[0])
