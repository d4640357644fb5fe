"""The iterative protocol: collect with the newest policies, compare, train, let the new policy be the reference.

Multi-turn iterative preference learning (arXiv 2409.02392, Algorithm 1): each iteration gives a prompt N trajectories,
some from the current policy and some from the one before it; pairs are made by outcome; the reference is the policy the
iteration starts from. Every file an iteration writes makes the next run of the same call go on where this one stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from polyturn.agents.collecting.collect import collect, plain_options
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.methods.base import Method, needs_reference
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import CheckpointError
from polyturn.algorithms.training.data_source import minibatches, steps_of
from polyturn.algorithms.training.loop import train
from polyturn.envs.preference import Annotator, Preference, by_return
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group


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
        policy: Folder of its weights, seen from the run's.
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
        out: Folder of the run. Calling again with the same arguments goes on with what is there, from the starting
            policy saved in it; `iterations` may have grown.
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
        CheckpointError: The folder holds a run of another architecture.
        ValueError: Arguments that do not fit together, or not with those that the run in the folder was started with.
    """
    if not 0 <= from_previous < group_size:
        raise ValueError(f"iterate: expected 0 <= from_previous < group_size ({group_size}), got {from_previous}")
    if iterations < 1 or groups < 1:
        raise ValueError(f"iterate: expected at least one iteration and one group, got {iterations} and {groups}")
    sampling = Sampling() if sampling is None else sampling
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(
        folder / "run.json",
        {
            "method": _described(method), "env": env, "env_options": plain_options(env_options or {}), "groups": groups,
            "group_size": group_size, "from_previous": from_previous, "tasks": None if tasks is None else len(tasks),
            "reference": reference, "sampling": repr(sampling), "max_tokens": max_tokens, "slots": slots,
            "epochs": epochs, "batch_size": batch_size, "seed": seed,
        },
    )  # fmt: skip
    if (folder / "iteration-0" / "done.json").is_file():
        # The policy given may have been trained already, by the call that was interrupted.
        _load_into(policy, folder / "iteration-0" / "policy")
    records = [_once(folder / "iteration-0", lambda place: _start(place, policy, evaluate))]
    anchored = needs_reference(method)
    first = policy.copy() if anchored and reference == "first" else None
    previous: Policy | None = None
    for number in range(1, iterations + 1):
        place = folder / f"iteration-{number}"
        # Every copy is a whole model: one is made only for whoever needs the policy as it is now.
        current = policy.copy() if from_previous or (anchored and first is None) else None

        def run(
            place: Path, number: int = number, current: Policy | None = current, previous: Policy | None = previous
        ) -> Iteration:
            place.mkdir(exist_ok=True)
            acting = TransformerAgent(policy, sampling=sampling, max_tokens=max_tokens, slots=slots)
            members = [acting] * group_size
            if previous is not None:
                older = TransformerAgent(previous, sampling=sampling, max_tokens=max_tokens, slots=slots)
                members[group_size - from_previous :] = [older] * from_previous
            with Store(place / "trajectories.jsonl") as store:
                collected = collect(
                    members,
                    env,
                    groups=groups,
                    group_size=group_size,
                    seed=_derive(seed, number, 0),
                    tasks=tasks_of(tasks, number, groups, seed),
                    env_options=env_options,
                    concurrency=slots,
                    store=store,
                    progress=progress,
                    label=f"iteration {number}: collect",
                )
            rng = np.random.default_rng([seed, number, 1])
            taught = [group for group in map(learnable, collected) if group is not None]
            found = [method.examples(group, annotate(group), rng) for group in taught]
            examples = [example for example in found if example is not None]
            if not examples:
                raise NothingToLearn(
                    f"iteration {number}: expected groups with better and worse trajectories, got {len(collected)} "
                    "groups without a difference; use a larger group_size, a higher temperature or other tasks"
                )
            policy.version = f"iteration-{number}"
            steps = steps_of(len(examples), batch_size, epochs=epochs)
            train(
                method,
                policy,
                (first or current) if anchored else None,
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
                f"iteration-{number}/policy",
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
        previous = current if from_previous else None
    return records


def learnable(group: Group) -> Group | None:
    """The members that may be compared: valid, and with at least one action (a prompt may not fit the context)."""
    members = tuple(member for member in group if member.valid and member.turns)
    return Group(members, group.branched_at) if members else None


def _described(method: OfflineMethod) -> dict[str, str]:
    """The method's settings as text; functions by their name, which is the same in every process."""
    names: list[str] = [f.name for f in fields(method)] if is_dataclass(method) else []
    values = {name: getattr(method, name) for name in names}
    return {"class": type(method).__name__} | {n: getattr(v, "__qualname__", repr(v)) for n, v in values.items()}


def _same_run(note: Path, settings: Mapping[str, Any]) -> None:
    """Writes down what a run is, or holds it against what was written when it began."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    if not note.is_file():
        _write_whole(note, plain)
        return
    before = json.loads(note.read_text("utf-8"))
    for name, value in plain.items():
        if before.get(name) != value:
            raise ValueError(
                f"iterate: expected to go on with the run in {str(note.parent)!r}, whose {name} is "
                f"{before.get(name)!r}, got {value!r}; pass the same, or another out"
            )


def _start(place: Path, policy: Policy, evaluate: Callable[[Policy], Mapping[str, Any]] | None) -> Iteration:
    policy.save_pretrained(place / "policy")
    return Iteration(0, "iteration-0/policy", 0, 0, float("nan"), 0, dict(evaluate(policy)) if evaluate else {})


def _once(place: Path, work: Callable[[Path], Iteration]) -> Iteration:
    """Does the work of a folder, or reads what it was if it is done."""
    note = place / "done.json"
    if note.is_file():
        return Iteration(**json.loads(note.read_text("utf-8")))
    record = work(place)
    _write_whole(note, record.__dict__)
    return record


def _write_whole(note: Path, value: Mapping[str, Any]) -> None:
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    os.replace(temporary, note)


def _load_into(policy: Policy, folder: Path) -> None:
    """Puts saved weights into the policy, bit for bit."""
    saved = Policy.from_pretrained(folder, device="cpu")
    mine, theirs = checkpoint.parameters(policy.model), checkpoint.parameters(saved.model)
    if different := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
        raise CheckpointError(
            f"expected in {str(folder)!r} the weights of this architecture, got others: parameter {different[0]!r} is "
            f"{theirs.get(different[0], 'missing')} there and {mine.get(different[0], 'missing')} here; "
            "pass another out, or the model that the run was started with"
        )
    policy.model.load_state_dict(saved.model.state_dict())
    policy.version = saved.version


def tasks_of(tasks: Sequence[int] | None, number: int, groups: int, seed: int) -> list[int] | None:
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
