"""From per-token numbers to what the losses take: masked sums, quantities to go, baselines, KL estimates.

`turn_ids [N, T]` says which turn of the agent wrote each token, -1 where the agent did not (observations, template
headers, padding). Only tokens with turn >= 0 count, even where the other positions hold nan or inf.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from polyturn.algorithms.losses import safe_exp

Turns = Literal["all", "last"]


def policy_mask(turn_ids: Tensor, *, turns: Turns = "all") -> Tensor:
    """`[N, T]` bool: tokens the agent wrote, in all its turns or only in the last turn of each row.

    Raises:
        ValueError: `turns` is neither "all" nor "last".
    """
    if turns == "all":
        return turn_ids >= 0
    if turns == "last":
        return (turn_ids >= 0) & (turn_ids == turn_ids.max(dim=1, keepdim=True).values)
    raise ValueError(f'turns: expected "all" or "last", got {turns!r}')


def sequence_sum(values: Tensor, turn_ids: Tensor, *, turns: Turns = "all") -> Tensor:
    """Sum of per-token values over the policy's tokens.

    Args:
        values: `[N, T]`.
        turn_ids: `[N, T]` int, -1 where the agent did not write the token.
        turns: "all" for the whole trajectory (M-DPO, M-KTO), "last" for only the last turn (single-turn baselines).

    Returns:
        `[N]`; 0 for a row without policy tokens.
    """
    # where, not multiplication: a masked nan or inf would survive 0 * nan, in value and in gradient.
    return torch.where(policy_mask(turn_ids, turns=turns), values, torch.zeros_like(values)).sum(dim=1)


def sequence_logratio(logps: Tensor, reference: Tensor, turn_ids: Tensor, *, turns: Turns = "all") -> Tensor:
    """g = log pi(y|x) - log pi_ref(y|x), `[N]` nats, summed over the policy's tokens.

    Args:
        logps: `[N, T]` log-probabilities under the policy.
        reference: `[N, T]` under the reference. No gradient flows through it.
        turn_ids: `[N, T]` int, -1 where the agent did not write the token.
        turns: "all" or "last", as in `sequence_sum`.
    """
    mask = policy_mask(turn_ids, turns=turns)
    zero = torch.zeros_like(logps)
    return (torch.where(mask, logps, zero) - torch.where(mask, reference.detach(), zero)).sum(dim=1)


def log_ratio_to_go(logps: Tensor, reference: Tensor, turn_ids: Tensor) -> Tensor:
    """Log-ratio of each policy token and all later policy tokens of its row.

    As an advantage, minus this makes an unbiased gradient of minus KL(pi || pi_ref) (arXiv 2312.00886): a token answers
    for its own log-ratio and for those it leads to. The token's own log-ratio by itself is NOT the gradient of the KL.

    Returns:
        `[N, T]` nats, 0 at tokens the agent did not write; entry of a row's first policy token is `sequence_logratio`.
    """
    mask = policy_mask(turn_ids)
    zero = torch.zeros_like(logps)
    ratio = torch.where(mask, logps, zero) - torch.where(mask, reference.detach(), zero)
    return torch.where(mask, _to_go(ratio), zero)


def _to_go(values: Tensor) -> Tensor:
    """Sum from each column to the end of the row."""
    return values.flip(1).cumsum(1).flip(1)


def turn_sums(values: Tensor, turn_ids: Tensor, *, count: int | None = None) -> Tensor:
    """Per-token values summed turn by turn.

    Args:
        values: `[N, T]`.
        turn_ids: `[N, T]` int, -1 where the agent did not write the token.
        count: H, the number of turns of the result; None for the longest row's.

    Returns:
        `[N, H]`; 0 for turns a row does not have.

    Raises:
        ValueError: A turn index is `count` or more.
    """
    longest = int(turn_ids.max()) + 1 if turn_ids.numel() else 0
    count = longest if count is None else count
    if longest > count:
        raise ValueError(f"turn_sums: expected turns below count={count}, got turn {longest - 1}")
    mask = turn_ids >= 0
    kept = torch.where(mask, values, torch.zeros_like(values))
    # Tokens that the agent did not write go to an extra column that is cut off.
    column = torch.where(mask, turn_ids, torch.full_like(turn_ids, count)).long()
    return values.new_zeros(values.shape[0], count + 1).scatter_add(1, column, kept)[:, :count]


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    discount: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over turns (arXiv 1506.02438).

    A_h = sum_k (discount lam)^k delta_{h+k}, delta_h = r_h + discount V_{h+1} - V_h. A token-level caller passes tokens
    as turns. In MTPO (arXiv 2405.14655) r_h is -alpha KL of the turn plus, at the last turn, the preference.

    Args:
        rewards: `[N, H]`.
        values: `[N, H]` V before each turn.
        mask: `[N, H]` bool, turns that happened: the first n_i of each row.
        discount: Factor per turn.
        lam: 0 for one-step, 1 for Monte Carlo.
        bootstrap: `[N]` V after the last turn of truncated rows, 0 for terminated ones; None for 0.

    Returns:
        Advantages `[N, H]` and value targets `[N, H]` (advantage + value), 0 where there was no turn. No gradient.
    """
    with torch.no_grad():
        mask = mask.to(torch.bool)
        rewards, values = (torch.where(mask, x, torch.zeros_like(x)) for x in (rewards, values))
        advantages = torch.zeros_like(rewards)
        following = rewards.new_zeros(rewards.shape[0]) if bootstrap is None else bootstrap.to(rewards.dtype)
        carried = torch.zeros_like(following)
        for h in range(rewards.shape[1] - 1, -1, -1):
            here = mask[:, h]
            delta = rewards[:, h] + discount * following - values[:, h]
            carried = torch.where(here, delta + discount * lam * carried, carried)
            following = torch.where(here, values[:, h], following)
            advantages[:, h] = torch.where(here, carried, torch.zeros_like(carried))
        return advantages, torch.where(mask, advantages + values, torch.zeros_like(values))


def mismatched_partners(prompts: Sequence[Hashable]) -> list[int]:
    """For each row, another row of the block with a DIFFERENT prompt, for KTO's reference point.

    Row i's prompt with the completion of row `result[i]` makes a mismatched pair. Every completion is used once unless
    one prompt holds more than half of the rows.

    Raises:
        ValueError: All rows (or the only row) have the same prompt, so that nothing can be mismatched.
    """
    rows: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(index)
    if len(rows) < 2:
        raise ValueError(
            f"KTO reference point: expected at least two different prompts in a block, got {len(rows)} in "
            f"{len(prompts)} rows; use blocks over several prompts"
        )
    order = [index for members in rows.values() for index in members]
    largest = max(len(members) for members in rows.values())
    partner = [0] * len(order)
    start = 0
    for members in rows.values():
        outside = order[start + len(members) :] + order[:start]
        for offset, index in enumerate(members):
            # Rotating the sorted rows by the largest group's size leaves every group, and is a permutation.
            if 2 * largest <= len(order):
                partner[index] = order[(start + offset + largest) % len(order)]
            else:
                partner[index] = outside[offset % len(outside)]
        start += len(members)
    return partner


def kto_reference_point(mismatched_logratio: Tensor) -> Tensor:
    """KTO's z0: an estimate of KL(policy || reference) in nats, clamped at 0, without gradient.

    The mean of g over completions put under prompts they do not belong to (arXiv 2402.01306), built with
    `mismatched_partners`. On several processes, average the mean over all of them before clamping: pass the gathered
    log-ratios.

    Args:
        mismatched_logratio: `[M]` g(prompt i, completion j), i != j, summed over policy tokens.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: There are no mismatched pairs.
    """
    if mismatched_logratio.numel() == 0:
        raise ValueError("KTO reference point: expected at least one mismatched pair, got none")
    return mismatched_logratio.detach().mean().clamp(min=0.0)


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref: on the policy's samples an unbiased estimate of KL(pi || pi_ref), of either sign.

    A VALUE for metrics and advantages. Differentiating its average over the policy's own samples gives zero in
    expectation, not a KL penalty; for the gradient weigh log pi with `log_ratio_to_go`.
    """
    return logps - reference


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """r - 1 - log r with r = pi_ref / pi: unbiased for KL(pi || pi_ref) on the policy's samples, never negative.

    Differentiated on the policy's samples it gives, in expectation, the gradient of KL(pi_ref || pi), the other
    direction. Beyond log r = 40 it continues along a tangent.
    """
    log_r = reference - logps
    small = log_r.abs() < 1e-2
    # Near 0 the exact form cancels to noise of either sign in float32; three terms of the series are exact there.
    near = torch.where(small, log_r, torch.zeros_like(log_r))
    series = near.square() * (0.5 + near * (1.0 / 6.0 + near / 24.0))
    return torch.where(small, series, safe_exp(log_r) - 1.0 - log_r)


def leave_one_out(scores: Tensor, group: Tensor) -> Tensor:
    """RLOO's advantage: each score minus the mean of the others in its group (arXiv 2402.14740).

    Args:
        scores: `[N]`, invalid rows removed.
        group: `[N]` int, which group each row belongs to; any numbers.

    Returns:
        `[N]`; 0 for the only member of a group, which nothing can be compared with, and where all scores of a group
        are equal up to rounding.

    Examples:
        >>> import torch
        >>> from polyturn.algorithms import estimators
        >>> estimators.leave_one_out(torch.tensor([1.0, 0.0, 0.0, 5.0, 3.0]), group=torch.tensor([0, 0, 0, 1, 1]))
        tensor([ 1.0000, -0.5000, -0.5000,  2.0000, -2.0000])
    """
    scores = _settled(scores, group)
    mean, size = _group_mean(scores, group)
    # score - mean of others = (score - mean) n / (n - 1)
    return (scores - mean) * size / (size - 1.0).clamp(min=1.0)


def group_normalised(scores: Tensor, group: Tensor, *, scale: bool = True) -> Tensor:
    """GRPO's advantage: score minus the group's mean, over its standard deviation (arXiv 2402.03300).

    Args:
        scores: `[N]`, invalid rows removed.
        group: `[N]` int, which group each row belongs to.
        scale: False leaves out the division, which favours groups that are almost always won or lost.

    Returns:
        `[N]`; 0 where all scores of a group are equal up to rounding.
    """
    scores = _settled(scores, group)
    centred = scores - _group_mean(scores, group)[0]
    if not scale:
        return centred
    deviation = _group_mean(centred.square(), group)[0].sqrt()
    return torch.where(centred == 0, centred, centred / (deviation + 1e-6))


def _settled(values: Tensor, group: Tensor) -> Tensor:
    """`[N]`: where a group's values differ only by rounding, all are its lowest."""
    _, index = torch.unique(group, return_inverse=True)
    count = int(index.max()) + 1 if index.numel() else 0
    empty = values.new_zeros(count)
    low = empty.scatter_reduce(0, index, values, "amin", include_self=False)
    high = empty.scatter_reduce(0, index, values, "amax", include_self=False)
    gap = high - low
    # Infinite scores are no rounding: what they make is not finite, and is refused where it is used.
    alike = torch.isfinite(gap) & (gap <= _rounding(torch.maximum(low.abs(), high.abs())))
    return torch.where(alike[index], low[index], values)


def _rounding(size: Tensor) -> Tensor:
    """A few units in the last place of numbers of this size: differences up to this are rounding."""
    return 8.0 * torch.finfo(size.dtype).eps * size


def _group_mean(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and size of each row's group, `[N]` both; the mean of equal values is that value exactly."""
    _, index = torch.unique(group, return_inverse=True)
    count = int(index.max()) + 1 if index.numel() else 0
    size = values.new_zeros(count).index_add(0, index, torch.ones_like(values))
    # The rounding of a plain mean leaves equal scores 1e-9 apart, which a division by their deviation blows up to 1:
    # the mean is taken of the differences from the group's lowest value, which are exactly 0 then.
    lowest = values.new_zeros(count).scatter_reduce(0, index, values, "amin", include_self=False)
    excess = values.new_zeros(count).index_add(0, index, values - lowest[index])
    return (lowest + excess / size)[index], size[index]


def class_balance(accepted: Tensor) -> Tensor:
    """Weights under which the mean over rows is mean(accepted) + mean(rejected) for any two counts.

    Args:
        accepted: `[N]` bool.

    Returns:
        `[N]` float: N / count of the row's own class.
    """
    good = accepted.to(torch.bool)
    count = torch.where(good, good.sum(), (~good).sum())
    return len(good) / count.to(torch.get_default_dtype())


def whiten(values: Tensor, mask: Tensor | None = None, *, shift_mean: bool = True) -> Tensor:
    """Values over their standard deviation, mean removed, over the mask; 0 outside it, and where all are equal.

    Values are equal where they differ only by rounding.

    Args:
        values: Any shape.
        mask: Same shape, bool, or None for all.
        shift_mean: False keeps the mean (value targets, rewards).
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.to(torch.bool)
    kept = values[mask]
    if kept.numel() == 0:
        return torch.zeros_like(values)
    lowest = kept.min()
    gap = kept.max() - lowest
    if bool(torch.isfinite(gap) & (gap <= _rounding(kept.abs().max()))):
        kept = lowest.expand_as(kept)
    # As in the group mean: equal values must come out as exactly 0, not as amplified rounding.
    mean = lowest + (kept - lowest).mean()
    centred = kept - mean
    result = centred / (centred.square().mean().sqrt() + 1e-8)
    return torch.zeros_like(values).masked_scatter(mask, result if shift_mean else result + mean)
