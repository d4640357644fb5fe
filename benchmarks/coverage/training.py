"""The training loop of the suite `coverage`: one method on all rewards and all sources of data in one pass.

The losses are those of `polyturn.algorithms.losses`. What each method takes of a group and how a step is normalised are
as in its method object; a test compares one step of this loop with one step of `polyturn.algorithms.train`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyturn.agents.tabular import mlp_policy
from polyturn.algorithms import losses
from polyturn.benchmarks.coverage.policies import GPT, OneToken, Stack, draw, gpt2, stacked
from polyturn.envs.games.bandits import context_features, data_policy, reward_table

METHODS = ("BoN", "RWR", "REINFORCE", "PPO", "DPO", "IPO")
REWARDS = ("R1", "R2")
DATA: Mapping[str, int] = {"T=1": 1, "T=2": 2, "T=4": 4, "T=8": 8, "T=32": 32, "offline": 0}
"""Updates on each fresh batch of the policy's samples; 0 for a fixed set of samples of the data policy."""
STORED = 100
"""Groups in the offline set; also the MLP's training contexts, each of which has one of these groups."""
VOCABULARY, LENGTH = 100, 9
"""Arms, or distinct tokens; tokens that the sequence variant generates after its prompt."""


def objective(
    method: str,
    logps: Tensor,
    behaviour: Tensor,
    reference: Tensor,
    reward: Tensor,
    *,
    threshold: float,
    temperature: float,
    tau: float = 0.05,
) -> Tensor:
    """`[R]` the loss of each run's batch.

    Args:
        method: One of `METHODS`.
        logps: `[R, G, K, L]` of each token under the policy.
        behaviour: `[R, G, K, L]` when it was sampled.
        reference: `[R, G, K, L]` under the policy before training; only DPO and IPO use it.
        reward: `[R, G, K]` of each answer.
        threshold: Pairs whose rewards differ by at most this are ties and are dropped.
        temperature: RWR's temperature.
        tau: IPO's tau.
    """
    advantage = reward - reward.mean(dim=-1, keepdim=True)
    whole = logps.sum(-1)
    # A group with equal rewards has no best answer and no preferences.
    differs = (reward.amax(-1, keepdim=True) > reward.amin(-1, keepdim=True)).to(logps.dtype)
    if method == "BoN":
        best = whole.gather(-1, reward.argmax(dim=-1, keepdim=True))
        return _mean(losses.nll(best) / logps.shape[-1], differs)
    if method == "RWR":
        return losses.rwr(whole, reward, beta=temperature).mean(dim=(1, 2))
    if method == "REINFORCE":
        return losses.policy_gradient(whole, advantage).mean(dim=(1, 2))
    if method == "PPO":
        clipped = losses.ppo_clip(logps, behaviour, advantage[..., None].expand_as(logps), clip=0.2)
        return _mean(clipped.mean(-1), differs.expand_as(reward))
    # DPO and IPO: all pairs of a group, signed so that the better answer comes first.
    i, j = np.triu_indices(reward.shape[-1], 1)
    logratio = whole - reference.sum(-1)
    gap = reward[..., i] - reward[..., j]
    margin = (logratio[..., i] - logratio[..., j]) * gap.sign()
    pair = losses.gpo(margin, beta=0.05) if method == "DPO" else losses.ipo(margin, tau=tau)
    return _mean(pair, (gap.abs() > threshold).to(logps.dtype))


def train(
    variant: str,
    method: str,
    *,
    groups: int,
    group_size: int,
    lr: float,
    records: Sequence[int],
    seed: int,
    threshold: float = 0.2,
    temperature: float = 0.25,
    tau: float = 0.05,
    fit: int = 100,
    sources: Sequence[str] = tuple(DATA),
) -> NDArray[np.float64]:
    """Trains one method on both rewards with every source of data.

    Args:
        variant: "table", "MLP" or "GPT".
        method: One of `METHODS`.
        groups: Contexts (prompts) in a batch.
        group_size: Samples for each context: best-of-N's N; all their pairs are compared.
        lr: Adam's learning rate.
        records: Numbers of updates (Adam steps, equally many for every source of data) after which the expected reward
            is recorded; training ends at the last.
        seed: Seed of weights and all sampling.
        threshold: As in `objective`.
        temperature: As in `objective`.
        tau: As in `objective`.
        fit: Steps that fit a network to the data policy.
        sources: Names out of `DATA`.

    Returns:
        Expected reward `[records, rewards, sources]`.
    """
    # One run for each reward and source; reuse [R] is the number of updates on a fresh batch, 0 for offline.
    rng = np.random.default_rng([seed, METHODS.index(method)])
    reuse = np.tile([DATA[name] for name in sources], len(REWARDS))
    offline = np.flatnonzero(reuse == 0)
    stack, frozen = policies(variant, len(reuse), seed, fit)
    optimizer = torch.optim.Adam(stack.parameters.values(), lr=lr)
    dtype = next(iter(stack.parameters.values())).dtype
    rewards = [reward_table(name, contexts=1, arms=VOCABULARY)[0] for name in REWARDS]
    values = torch.tensor(np.repeat(rewards, len(sources), axis=0), dtype=dtype)
    length = LENGTH if variant == "GPT" else 1

    # The offline set: answers of the data policy.
    start = data_policy()
    stored_context = np.arange(STORED) % stack.contexts
    mass = torch.from_numpy(start).expand(len(reuse), STORED, 1, -1)
    stored = draw(mass, rng.random((len(reuse), STORED, group_size * length)))
    stored = stored.reshape(len(reuse), STORED, group_size, length)

    # The current batch of every run.
    context = np.zeros((len(reuse), groups), np.int64)
    tokens = np.zeros((len(reuse), groups, group_size, length), np.int64)
    behaviour = torch.zeros(tokens.shape, dtype=dtype)
    found = []
    for update in range(max(records) + 1):
        if update in records:
            # A generator for the record, so that recording does not change what is sampled later.
            rng = np.random.default_rng([seed, METHODS.index(method), update])
            found.append(stack.expected_reward(values, rng).reshape(len(REWARDS), len(sources)))
        if update == max(records):
            break
        # Fresh samples for runs whose batch is used up, and a random offline batch.
        fresh = np.flatnonzero([t > 0 and update % t == 0 for t in reuse])
        context[fresh] = rng.integers(stack.contexts, size=(len(fresh), groups))
        tokens[fresh], behaviour[fresh] = stack.sample(fresh, context[fresh], group_size, rng)
        rows = rng.integers(STORED, size=(len(offline), groups))
        context[offline], tokens[offline] = stored_context[rows], stored[offline[:, None], rows]
        behaviour[offline] = torch.tensor(np.log(start), dtype=dtype)[torch.from_numpy(tokens[offline])]
        # One step of all runs.
        with torch.no_grad():
            reference = frozen.logps(context, tokens) if method in ("DPO", "IPO") else behaviour
        reward = values[torch.arange(len(reuse))[:, None, None, None], torch.from_numpy(tokens)].mean(-1)
        logps = stack.logps(context, tokens)
        settings = {"threshold": threshold, "temperature": temperature, "tau": tau}
        loss = objective(method, logps, behaviour, reference, reward, **settings)
        optimizer.zero_grad()
        torch.autograd.backward([loss.sum()])
        optimizer.step()
    return np.array(found)


def policies(variant: str, runs: int, seed: int, fit: int) -> tuple[Stack, Stack]:
    """The policies to train, equal to the data policy or fitted to it, and a copy as their reference."""
    if variant == "table":
        rows = torch.tensor(np.log(data_policy())).expand(runs, 1, -1)
        return OneToken({"rows": rows}), OneToken({"rows": rows})
    if variant == "MLP":
        network, features = _fitted_mlp(seed, fit)
        parameters = stacked(network, runs)
        return OneToken(parameters, features, train=STORED), OneToken(parameters, features, train=STORED)
    parameters = stacked(_fitted_gpt(seed, fit), runs)
    return GPT(parameters, heads=3, length=LENGTH), GPT(parameters, heads=3, length=LENGTH)


@cache
def _fitted_mlp(seed: int, steps: int) -> tuple[Any, Tensor]:
    """The paper's network, fitted on the training contexts, and features of these and of as many other contexts."""
    features = context_features(2 * STORED, seed=seed)
    policy = mlp_policy(VOCABULARY, [str(context) for context in range(2 * STORED)], features, seed=seed)
    policy.fit(data_policy(), states=range(STORED), steps=steps)
    network: Any = policy.model.policy
    return network, network.features


@cache
def _fitted_gpt(seed: int, steps: int) -> Any:
    """A GPT whose every prediction was fitted to the data policy by KL, on prefixes sampled from the data policy."""
    model = gpt2(VOCABULARY, length=LENGTH, seed=seed)
    stack = GPT(stacked(model, 1), heads=3, length=LENGTH)
    start, rng = torch.tensor(data_policy(), dtype=torch.float32), np.random.default_rng([seed, 100])
    optimizer = torch.optim.Adam(stack.parameters.values(), lr=3e-3)
    for _ in range(steps):
        prompt = rng.integers(VOCABULARY, size=(1, 64, 1))
        body = draw(start.expand(1, 64, 1, -1), rng.random((1, 64, LENGTH - 1)))
        ids = torch.from_numpy(np.concatenate([prompt, body], -1))
        loss = -(start * torch.log_softmax(stack.logits(stack.parameters, ids), -1)).sum(-1).mean()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(stack.parameters[name][0])
    return model


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """`[R]` weighted mean over all axes but the first; 0 where all weights are 0."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1.0)
