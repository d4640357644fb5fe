"""The iterative protocol: collect with the newest policies, compare, train, let the new policy be the reference.

Multi-turn iterative preference learning (arXiv 2409.02392, Algorithm 1): each iteration gives a prompt N trajectories,
some from the current policy and some from the one before it; pairs are made by outcome; the reference is the policy the
iteration starts from. Every file an iteration writes makes the next run of the same call go on where this one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import GeneralTracker

from polyturn.agents.collecting.collect import GroupSource, collect as collect_groups, derived_seed
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.agent import SampledAs, TransformerAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.methods.base import GroupMethod, hooks_of
from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import CheckpointError
from polyturn.algorithms.training.data_source import minibatches, steps_of
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.algorithms.training.own_samples import check_sampling
from polyturn.algorithms.training.scoring import Scorable
from polyturn.envs.files import alone_in_out, digest, write_whole
from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.settings import changes, check_count, check_range, record
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group

Reference = Literal["previous", "first"]
_VERSION = "iteration-"


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


@alone_in_out
def iterate(
    method: GroupMethod,
    policy: Policy,
    env: str | GroupSource,
    *,
    out: str | Path,
    iterations: int = 3,
    collect: CollectOptions | None = None,
    from_previous: int = 0,
    preference: Annotator = by_return,
    reference: Reference = "previous",
    epochs: float = 1.0,
    batch_size: int = 32,
    options: TrainOptions | None = None,
    evaluate: Callable[[Policy], Mapping[str, Any]] | None = None,
    trackers: Sequence[str | GeneralTracker] = (),
    seed: int = 0,
    progress: bool = True,
) -> list[Iteration]:
    """Runs the protocol; the policy is trained in place and every iterate is saved.

    Args:
        method: What is learned from annotated groups: `MDPO`, `MKTO`, `RAFT`, ...
        policy: The starting policy, usually after supervised fine-tuning.
        env: Registered id of the environment, or an agent program (`polyturn.agents.AgentProgram`).
        out: Folder of the run. Calling again with the same arguments goes on with what is there, from the starting
            policy saved in it; `iterations` may have grown. Any other difference is refused.
        iterations: How many.
        collect: What each iteration collects, and how the policies sample; default 64 groups of 8.
        from_previous: How many of a group's members the previous iterate samples, from the second iteration on.
        preference: From a group to its preference.
        reference: "previous": the policy each iteration starts from; "first": the starting policy in all of them.
        epochs: Passes over an iteration's examples.
        batch_size: Examples an update.
        options: How each iteration trains.
        evaluate: Called with each iterate, the starting policy included.
        trackers: Accelerate's trackers, by name or object.
        seed: Fixes everything.
        progress: Show progress bars.

    Returns:
        One record for the starting policy and each iteration.

    Raises:
        NothingToLearn: In every group of an iteration all members were right, or all wrong.
        CheckpointError: The folder holds a run of another architecture.
        ValueError: Arguments that do not fit together, or not with those that the run in the folder was started with.
    """
    # What is asked for, checked before any work.
    collect = CollectOptions() if collect is None else collect
    options = TrainOptions() if options is None else options
    hooks = hooks_of(method)
    if hooks.examples is None:
        raise ValueError(f"iterate: expected a method with examples(group, preference, rng), got {hooks.name}")
    if hooks.needs.sampled:
        check_sampling(hooks.name, SampledAs.by(collect.sampling))
    if not 0 <= from_previous < collect.group_size:
        raise ValueError(
            f"iterate: expected 0 <= from_previous < group_size ({collect.group_size}), got {from_previous}"
        )
    check_count("iterate: iterations", iterations)
    check_count("iterate: batch_size", batch_size)
    check_range("iterate: epochs", epochs, 0, above=True)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _same_run(
        folder / "run.json",
        {
            "method": {"class": type(method).__name__, **_settings_of(method)},
            "env": env if isinstance(env, str) else env.name,
            "collect": collect.recorded(), "from_previous": from_previous, "preference": name_of(preference),
            "reference": reference, "epochs": epochs, "batch_size": batch_size, "options": options.recorded(),
            "seed": seed,
        },
    )  # fmt: skip
    _same_start(folder / "start.json", policy)
    if (folder / "iteration-0" / "done.json").is_file():
        # The policy given may have been trained already, by the call that was interrupted.
        _load_into(policy, folder / "iteration-0" / "policy")
    records = [_once(folder / "iteration-0", lambda place: _start(place, policy, evaluate))]
    anchored = hooks.needs.reference
    first = policy.snapshot() if anchored and reference == "first" else None
    previous: Policy | None = None
    for number in range(1, iterations + 1):
        place = folder / f"iteration-{number}"
        # A copy is a whole model: one is made only where the policy as it is now acts later.
        current = policy.copy() if from_previous else None
        anchor = first if first is not None or not anchored else current if current is not None else policy.snapshot()

        def run(
            place: Path, number: int = number, anchor: Scorable | None = anchor, previous: Policy | None = previous
        ) -> Iteration:
            place.mkdir(exist_ok=True)
            # Collect: the current policy, and the one before it for some members.
            acting = TransformerAgent(policy, **collect.acting)
            members = [acting] * collect.group_size
            if previous is not None:
                older = TransformerAgent(previous, **collect.acting)
                members[collect.group_size - from_previous :] = [older] * from_previous
            with Store(place / "trajectories.jsonl") as store:
                collected = collect_groups(
                    members,
                    env,
                    groups=collect.groups,
                    group_size=collect.group_size,
                    seed=derived_seed(seed, number, 0),
                    tasks=tasks_of(collect.tasks, number, collect.groups, seed),
                    branch_at=collect.branch_at,
                    env_options=collect.env_options,
                    concurrency=collect.slots,
                    store=store,
                    progress=progress,
                    label=f"iteration {number}: collect",
                )
            # Compare, and take from each group what the method learns from.
            rng = np.random.default_rng([seed, number, 1])
            comparable = [group for group in map(learnable, collected) if group is not None]
            found = [method.examples(group, preference(group), rng) for group in comparable]
            examples = [example for example in found if example is not None]
            if not examples:
                raise NothingToLearn(
                    f"iteration {number}: expected groups with better and worse trajectories, got {len(collected)} "
                    "groups without a difference; use a larger group_size, a higher temperature or other tasks"
                )
            # Train, from the policy that collected.
            policy.version = f"{_VERSION}{number}"
            train(
                method,
                policy,
                anchor,
                minibatches(examples, batch_size, seed=derived_seed(seed, number, 2)),
                steps=steps_of(len(examples), batch_size, epochs=epochs),
                options=options.with_changes(keep=1),
                out=place / "train",
                resume=True,
                trackers=trackers,
                progress=progress,
            )
            policy.save_pretrained(place / "policy")
            valid = [m for group in collected for m in group if m.valid]
            return Iteration(
                number,
                f"iteration-{number}/policy",
                episodes=sum(map(len, collected)),
                invalid=sum(map(len, collected)) - len(valid),
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


def _settings_of(method: GroupMethod) -> dict[str, Any]:
    """The method's settings as JSON values; functions by their name, which is the same in every process."""
    return record(method) if hasattr(method, "__dataclass_fields__") else {}


def name_of(preference: Annotator) -> Any:
    """An annotator as a run's record knows it."""
    if hasattr(preference, "__dataclass_fields__"):
        return {"class": type(preference).__name__, **record(preference)}
    return str(getattr(preference, "__qualname__", type(preference).__qualname__))


def _same_run(note: Path, settings: Mapping[str, Any]) -> None:
    """Writes down what a run is, or compares it with what was written when it began.

    Raises:
        ValueError: Something differs.
    """
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    if not note.is_file():
        write_whole(note, json.dumps(plain, indent=1) + "\n")
        return
    before = _kept(note)
    if found := changes(_flat(before), _flat(plain)):
        raise ValueError(
            f"iterate: expected to go on with the run in {str(note.parent)!r} as it was started, got other settings: "
            f"{'; '.join(found)}; pass the same, or another out"
        )


def _kept(note: Path, *names: str) -> dict[str, Any]:
    """What a small file of the run holds: an object with these names, or with any where none are given.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        found = json.loads(note.read_text("utf-8"))
        if not isinstance(found, dict) or (names and set(found) != set(names)):
            wanted = f"an object with {', '.join(names)}" if names else "an object"
            raise ValueError(f"expected {wanted}, got {str(found)[:80]!r}")
    except ValueError as error:
        again = ", or remove it to do its iteration again" if note.name == "done.json" else ""
        raise CheckpointError(f"{str(note)!r} is damaged ({error}); restore it{again}, or pass another out") from error
    return found


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with dotted names."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        inner = _flat(each) if isinstance(each, Mapping) else {"": each}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return flat


def _same_start(note: Path, policy: Policy) -> None:
    """Writes down which weights a run starts from, or compares them.

    Raises:
        ValueError: The run was started from other weights.
    """
    if policy.version.startswith(_VERSION):
        return  # an earlier call with this very policy was interrupted after it had trained
    mine = policy.fingerprint()
    if not note.is_file():
        write_whole(note, json.dumps({"version": policy.version, "weights": mine}) + "\n")
        return
    before = _kept(note, "version", "weights")
    if before["weights"] != mine:
        raise ValueError(
            f"iterate: expected the weights that the run in {str(note.parent)!r} was started from "
            f"({before['version']!r}, {before['weights']}), got {policy.version!r}, {mine}; pass that policy, or "
            "another out"
        )


def _start(place: Path, policy: Policy, evaluate: Callable[[Policy], Mapping[str, Any]] | None) -> Iteration:
    policy.save_pretrained(place / "policy")
    return Iteration(0, "iteration-0/policy", 0, 0, float("nan"), 0, dict(evaluate(policy)) if evaluate else {})


def _once(place: Path, work: Callable[[Path], Iteration]) -> Iteration:
    """Does the work of a folder, or reads what it was if it is done."""
    note = place / "done.json"
    if note.is_file():
        return Iteration(**_kept(note, *Iteration.__dataclass_fields__))
    done = work(place)
    # Before the note: weights that were damaged since are then found when a later call goes on from them.
    files = sorted(path for path in (place / "policy").rglob("*") if path.is_file())
    digests = {path.relative_to(place).as_posix(): digest(path) for path in files}
    write_whole(place / checkpoint.DIGESTS, json.dumps(digests, indent=1) + "\n")
    write_whole(note, json.dumps(done.__dict__, indent=1) + "\n")
    return done


def _load_into(policy: Policy, folder: Path) -> None:
    """Puts saved weights into the policy, bit for bit.

    Raises:
        CheckpointError: They are of another architecture, or not what was written.
    """
    place = folder.parent
    if (place / checkpoint.DIGESTS).is_file() and (damage := checkpoint.damage_of(place)):
        raise CheckpointError(
            f"{str(place)!r} is damaged: {damage}; restore the file, or remove done.json and policy there to do the "
            "iteration again"
        )
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
