"""What a method trains on, token by token: log-ratios, and how much each token's log-probability weighs in the loss.

The gradient of a loss reaches a policy only through the log-probabilities that it is given. Its derivative in each of
them is therefore the whole of what a step learns from a token, for every method, and needs no trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyturn.algorithms.batch import Batch, collate
from polyturn.algorithms.methods.base import GroupMethod, Hooks, Method, hooks_of
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.protocols.iterate import learnable
from polyturn.algorithms.protocols.offline import examples_of
from polyturn.algorithms.training.metrics import Sums, add, merge
from polyturn.algorithms.training.own_samples import temperature_of
from polyturn.algorithms.training.scoring import Scorable, Scoring
from polyturn.envs.preference import Annotator
from polyturn.envs.trajectory import Group, Trajectory
from polyturn.envs.viewing.trained_on import KEY, TrainedOn


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """A training step's tokens.

    Attributes:
        batch: The rows, as `collate` makes them of the examples; without mismatched ones.
        log_ratio: `[N, T]` float32, log-probability under the policy minus that under the reference, in nats; nan
            where the method asks for no log-probability, and everywhere without a reference.
        weight: `[N, T]` float32, d loss / d log-probability, the loss being sum(values) / sum(count) over the step;
            negative where descent raises the log-probability, exactly 0 where the loss does not read it.
    """

    batch: Batch
    log_ratio: Tensor
    weight: Tensor


def token_weights(
    method: Method,
    policy: Scorable,
    reference: Scorable | None,
    examples: Sequence[Example],
    *,
    partners: Sequence[Example] = (),
    step: int = 0,
) -> TokenWeights:
    """What one training step over these examples would learn from each token; nothing is changed.

    Args:
        method: Any whose loss reads the policy through log-probabilities alone.
        policy: Where it is evaluated, for example as it was before the step.
        reference: What log-ratios are taken to; None where the method needs none.
        examples: The whole step's: a loss is a mean over all of them.
        partners: Examples whose continuations may stand in mismatched rows; see `collate`.
        step: Updates done before; some methods read it.

    Raises:
        ValueError: The method needs a reference and none is given, reads values or a KL over the whole vocabulary, or
            nothing in the examples counts.
    """
    hooks = hooks_of(method)
    if hooks.needs.values or hooks.needs.full_kl is not None:
        raise ValueError(
            f"{hooks.name}: expected a method whose loss reads log-probabilities alone, such as mdpo, ipo, mkto, sft "
            "or grpo, got one that also reads a value network or a KL over the whole vocabulary"
        )
    if hooks.needs.reference and reference is None:
        raise ValueError(f"{hooks.name}: expected a reference, which its loss takes log-ratios to, got none")
    batch = collate(examples, mismatched=hooks.needs.mismatched, partners=partners)
    batch = batch.with_statistics({"step": torch.tensor(float(step))})
    if hooks.needs.sampled:
        names = {row.agent for example in examples for row in example.trajectories}
        at = torch.tensor(temperature_of(hooks, names), dtype=torch.float64)
        batch = batch.with_statistics({"temperature": at})
    device = next(policy.model.parameters()).device
    batch = batch.to(device)
    mask = hooks.token_mask(batch)
    logps = _scores(policy, batch, mask)
    before = None if reference is None else _scores(reference, batch, mask)
    kept = ~batch.mismatched
    learned = batch.select(kept).with_statistics(_statistics(hooks, batch, logps, before))
    width = learned.ids.shape[1]
    leaf = logps[kept, :width].clone().requires_grad_()
    ratios = torch.full_like(leaf, torch.nan).detach()
    if before is not None:
        asked = mask[kept, :width]
        ratios[asked] = (leaf.detach() - before[kept, :width])[asked]
    # What `train` hands to a method that needs no reference is None, whatever is shown beside it.
    loss = hooks.loss(leaf, before[kept, :width] if before is not None and hooks.needs.reference else None, learned)
    count = float(loss.values.numel() if loss.count is None else loss.count.sum())
    if not count:
        raise ValueError(f"{hooks.name}: expected at least one comparison (or row) that counts, got none")
    (slope,) = torch.autograd.grad(loss.values.sum() / count, leaf)
    return TokenWeights(learned.to("cpu"), ratios.float().cpu(), slope.float().cpu())


def weigh(
    method: GroupMethod,
    policy: Scorable,
    reference: Scorable | None,
    groups: Iterable[Group],
    annotate: Annotator,
    *,
    batch_size: int = 32,
    seed: int = 0,
    note: dict[str, Any] | None = None,
) -> Iterator[Trajectory]:
    """Every trajectory of the groups in order, with what is trained on in the info of its turns.

    Groups enter steps in the order they come in. What the method does not take (a tie, a member that was not drawn, an
    invalid episode) has weight 0 and no log-ratio.

    Args:
        method: See `token_weights`.
        policy: As for `token_weights`.
        reference: As for `token_weights`.
        groups: With tokens, such as those of a store.
        annotate: What compares the members of a group.
        batch_size: Groups of a step that teach something.
        seed: Of what the method draws at random.
        note: Added to the info of every trajectory: which method and which weights.

    Raises:
        ValueError: No group teaches anything; as for `token_weights`.
    """
    if batch_size < 1:
        raise ValueError(f"weigh: expected batch_size >= 1, got {batch_size}")
    rng = np.random.default_rng([seed, 5])
    waiting: list[Group] = []
    step: list[list[Example]] = []
    earlier: list[Example] = []
    steps = 0
    for group in groups:
        waiting.append(group)
        known = learnable(Group(tuple(m for m in group if _has_tokens(m)))) if any(map(_has_tokens, group)) else None
        found = [] if known is None else examples_of(method, known, annotate(known), False, rng)
        if taken := [example for example in found if example is not None]:
            step.append(taken)
        if len(step) == batch_size:
            yield from _weighed(method, policy, reference, waiting, step, earlier, steps, note or {})
            earlier, waiting, step, steps = [one for each in step for one in each], [], [], steps + 1
    if not step and not steps:
        raise ValueError(f"{method.name}: expected groups of tokens with better and worse members, got none")
    yield from _weighed(method, policy, reference, waiting, step, earlier, steps, note or {})


def _weighed(
    method: GroupMethod,
    policy: Scorable,
    reference: Scorable | None,
    groups: Sequence[Group],
    step: Sequence[Sequence[Example]],
    partners: Sequence[Example],
    number: int,
    note: dict[str, Any],
) -> Iterator[Trajectory]:
    """The trajectories of one step's groups."""
    examples = [example for each in step for example in each]
    rows: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    if examples:
        found = token_weights(method, policy, reference, examples, partners=partners, step=number)
        lengths = found.batch.mask.sum(1).tolist()
        members = [row for example in examples for row in example.trajectories]
        for row, (member, length) in enumerate(zip(members, lengths, strict=True)):
            ratios, weights = found.log_ratio[row, :length].numpy(), found.weight[row, :length].numpy()
            # A method may take a member more than once; what is learned from its tokens adds up.
            rows[id(member)] = ratios, weights + rows[id(member)][1] if id(member) in rows else weights
    own = {id(member) for group in groups for member in group}
    if not rows.keys() <= own:
        raise ValueError(f"{method.name}: expected examples of the group's own members, got trajectories made anew")
    for group in groups:
        for member in group:
            total = sum(member.segment_lengths)
            nothing = np.full(total, np.nan, np.float32), np.zeros(total, np.float32)
            yield _with(member, *rows.get(id(member), nothing), {**note, "taken": id(member) in rows})


def _with(
    member: Trajectory, ratios: NDArray[np.float32], weights: NDArray[np.float32], note: dict[str, Any]
) -> Trajectory:
    """The trajectory with its `[T]` numbers cut into turns."""
    turns, at = [], 0
    for turn in member.turns:
        middle = at + len(turn.context_ids)
        end = middle + len(turn.action_ids)
        numbers = TrainedOn(ratios[middle:end], weights[middle:end], weights[at:middle])
        turns.append(replace(turn, info={**turn.info, KEY: numbers.to_json()}))
        at = end
    return replace(member, turns=tuple(turns), info={**member.info, KEY: note})


def _has_tokens(member: Trajectory) -> bool:
    return bool(member.turns) and all(len(turn.action_ids) for turn in member.turns)


@torch.no_grad()
def _scores(which: Scorable, batch: Batch, mask: Tensor) -> Tensor:
    """`[N, T]` log-probabilities, one group after another so that memory is that of a group."""
    scoring = Scoring(which.scorer)
    temperature = float(batch.statistics.get("temperature", torch.tensor(1.0)))
    options = {} if temperature == 1.0 else {"temperature": temperature}
    found: Tensor | None = None
    for group in batch.group.unique().tolist():
        index = (batch.group == group).nonzero()[:, 0]
        part = batch.select(index)
        values: Tensor = scoring(part.rows(), mask[index, : part.ids.shape[1]], **options)["logps"]
        found = values.new_zeros(batch.ids.shape) if found is None else found
        found[index, : values.shape[1]] = values.to(found.dtype)
    assert found is not None
    return found


@torch.no_grad()
def _statistics(hooks: Hooks, batch: Batch, logps: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """Means over the step that a method's loss reads, as training computes them."""
    sums: Sums = {}
    if hooks.row_statistics is not None:
        add(sums, hooks.row_statistics(batch.select(~batch.mismatched)))
    if hooks.step_statistics is not None and (hooks.needs.mismatched or hooks.needs.look_ahead):
        rows = batch.mismatched if hooks.needs.mismatched else ~batch.mismatched
        part = batch.select(rows)
        width = part.ids.shape[1]
        before = None if reference is None or not hooks.needs.reference else reference[rows, :width]
        add(sums, hooks.step_statistics(logps[rows, :width], before, part))
    return {name: torch.tensor(mean, dtype=torch.float64) for name, mean in merge([sums]).items()}
