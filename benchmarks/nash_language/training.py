"""What the suite `nash_language` trains: the start, the learned feedback, and many policies in one pass.

The policies are GPT-2s with random weights (one layer, width 16), stacked along an axis of runs; every run has its
own method, learning rate and mixture, and all runs of a seed have the same start, prompts and feedback. The losses are
those of `polyturn.algorithms.losses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.benchmarks.coverage.policies import GPT, draw, gpt2, stacked
from polyturn.benchmarks.nash_language.task import LENGTH, TOKENS, Array, Ids, Learned, Oracle, fitted, start_mass

METHODS = ("online DPO", "online IPO", "SLiC", "RLHF", "IPO-MD", "Nash-MD-PG", "Nash-EMA-PG")
NASH = ("Nash-MD-PG", "Nash-EMA-PG")
AVERAGE = 0.95
"""Share of the moving average of Nash-EMA-PG that stays at each update."""
SIZE: Mapping[str, int] = {"layers": 1, "heads": 2, "width": 16}
HEADS = SIZE["heads"]


@dataclass(frozen=True)
class Run:
    """One policy to train.

    Attributes:
        method: One of `METHODS`.
        lr: Adam's learning rate.
        reach: The pull to the reference, in nats, on one scale for all methods: the log-ratio at which a difference
            settles between an answer that always wins and one that always loses (IPO and Nash: 1 / (2 tau)), at which
            SLiC's hinge is flat (1 / beta), or which log-odds of 2 are worth (DPO: 2 / beta, RLHF: 2 / kl).
        mixture: The reference's share in the mixture, of IPO-MD and Nash-MD-PG.
    """

    method: str
    lr: float
    reach: float
    mixture: float = 0.0


@dataclass(frozen=True, eq=False)
class Feedback:
    """A seed's start and what was learned from comparisons of its answers.

    Attributes:
        start: Parameters of one network, `[1, ...]` each.
        preference: The pairwise model.
        reward: The Bradley-Terry model, fitted to the same comparisons.
        accuracy: Share of pairs whose likelier winner is named, by each model and by one label.
    """

    start: Mapping[str, Tensor]
    preference: Learned
    reward: Learned
    accuracy: Mapping[str, float]


def prepare(options: Mapping[str, Any], oracle: Oracle, seed: int) -> Feedback:
    """Fits the start to its digits, and both models to the same comparisons of its answers.

    Each label is drawn with the oracle's probability, as of an annotator who is asked once.
    """
    start = _start(seed, options["start_steps"])
    rng = np.random.default_rng([seed, 4])
    size = options["comparisons"] + options["held_out"]
    prompt = rng.integers(TOKENS, size=size)
    tokens, _ = GPT(start, heads=HEADS, length=LENGTH).sample(np.zeros(1, np.int64), prompt[None], 2, rng)
    answers = tokens[0]
    true = oracle(answers[:, 0], answers[:, 1])
    label = (rng.random(size) < true).astype(np.float64)
    told, held = slice(None, options["comparisons"]), slice(options["comparisons"], None)
    preference, reward = (
        fitted(prompt[told], answers[told], label[told], pairwise=pairwise, seed=seed, **options["models"])
        for pairwise in (True, False)
    )
    accuracy = {"one label": float(((label > 0.5) == (true > 0.5))[held].mean())}
    # Of held-out pairs of the start, and of pairs of random digits, which are where training may lead.
    far = rng.integers(TOKENS, size=(options["held_out"], 2, LENGTH))
    for where, shown in (("the start's answers", answers[held]), ("random answers", far)):
        right = oracle(shown[:, 0], shown[:, 1]) > 0.5
        for name, model in (("preference model", preference), ("reward model", reward)):
            odds = model.odds(*(torch.from_numpy(each) for each in (prompt[held], shown[:, 0], shown[:, 1])))
            accuracy[f"{name}, {where}"] = float(((odds.numpy() > 0) == right).mean())
    return Feedback(start, preference, reward, accuracy)


def _start(seed: int, steps: int) -> dict[str, Tensor]:
    """A GPT-2 whose every prediction was fitted to the digits' distribution by KL, on prefixes drawn from it."""
    stack = GPT(stacked(gpt2(TOKENS, length=LENGTH, seed=seed, **SIZE), 1), heads=HEADS, length=LENGTH)
    mass, rng = torch.tensor(start_mass(), dtype=torch.float32), np.random.default_rng([seed, 100])
    optimizer = torch.optim.Adam(stack.parameters.values(), lr=3e-3)
    for _ in range(steps):
        prompt = rng.integers(TOKENS, size=(1, 64, 1))
        body = draw(mass.expand(1, 64, 1, -1), rng.random((1, 64, LENGTH - 1)))
        ids = torch.from_numpy(np.concatenate([prompt, body], -1))
        loss = -(mass * torch.log_softmax(stack.logits(stack.parameters, ids), -1)).sum(-1).mean()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    return {name: value.detach() for name, value in stack.parameters.items()}


def mixed_sample(policy: GPT, other: GPT, share: Tensor, prompt: Ids, rng: np.random.Generator) -> Ids:
    """Answers `[R, G, K, L]` to prompts `[R, G]`, each digit drawn from softmax((1 - share) log pi + share log other).

    Args:
        policy: R policies.
        other: R others: the reference, or the moving average.
        share: `[R, K]` the other's share, for each member of a group.
        prompt: `[R, G]`.
        rng: Source of randomness.
    """
    runs, groups = prompt.shape
    size = share.shape[1]
    caches: list[list[list[Tensor]]] = [[[] for _ in range(stack.layers)] for stack in (policy, other)]
    weight = share[:, None].expand(runs, groups, size).reshape(runs, -1, 1)
    last = torch.from_numpy(np.repeat(prompt, size, axis=1))
    tokens = []
    with torch.no_grad():
        for _ in range(LENGTH):
            own, theirs = (
                torch.log_softmax(stack.logits(stack.parameters, last[..., None], cache)[:, :, 0], -1)
                for stack, cache in zip((policy, other), caches, strict=True)
            )
            mass = torch.softmax((1.0 - weight) * own + weight * theirs, -1)
            # One uniform number for each prompt, member and place: the same for all runs.
            uniform = np.broadcast_to(rng.random((1, last.shape[1], 1)), (*last.shape, 1))
            last = torch.from_numpy(draw(mass[:, :, None], uniform)[..., 0])
            tokens.append(last)
    return torch.stack(tokens, -1).numpy().reshape(runs, groups, size, LENGTH)


def objective(run: Run, logps: Tensor, reference: Tensor, prompt: Tensor, tokens: Tensor, feedback: Feedback) -> Tensor:
    """`[R]` the losses of runs with the same method and reach.

    Args:
        run: Any of the runs.
        logps: `[R, G, K, L]` of each digit under the policies.
        reference: `[R, G, K, L]` under the start.
        prompt: `[R, G]`.
        tokens: `[R, G, K, L]`; of the Nash methods, the second half of the members are the opponent's.
        feedback: The learned models.
    """
    runs, groups, size, _ = tokens.shape
    # The log-ratio from each digit on.
    to_go = (logps.detach() - reference).flip(-1).cumsum(-1).flip(-1)
    if run.method == "RLHF":
        score = feedback.reward.scores(prompt[..., None].expand(runs, groups, size), tokens)
        advantage = (score - score.mean(-1, keepdim=True)) * size / (size - 1)  # leave-one-out
        values = losses.policy_gradient(logps, advantage[..., None] - 2.0 / run.reach * to_go)
        return values.sum(-1).mean((1, 2))
    first, second = np.triu_indices(size, 1)
    own = size // 2
    if run.method in NASH:
        first, second = (each.ravel() for each in np.meshgrid(np.arange(own), np.arange(own, size), indexing="ij"))
    x = prompt[..., None].expand(runs, groups, len(first))
    p = torch.sigmoid(feedback.preference.odds(x, tokens[:, :, first], tokens[:, :, second]))
    if run.method in NASH:
        wins = p.reshape(runs, groups, own, size - own).mean(-1, keepdim=True)
        values = losses.nash_md(logps[:, :, :own], wins, to_go[:, :, :own], tau=0.5 / run.reach)
        return values.sum(-1).mean((1, 2))
    logratio = logps.sum(-1) - reference.sum(-1)
    margin = logratio[..., first] - logratio[..., second]
    if run.method == "online DPO":
        values = losses.gpo(margin, beta=2.0 / run.reach, f=losses.logistic, probability=p)
    elif run.method == "SLiC":
        values = losses.gpo(margin, beta=1.0 / run.reach, f=losses.hinge, probability=p)
    else:
        values = losses.ipo(margin, tau=0.5 / run.reach, probability=p)
    return values.mean((1, 2))


def learn(
    runs: Sequence[Run], feedback: Feedback, *, steps: int, groups: int, group_size: int, answers: int, seed: int
) -> tuple[Ids, Array]:
    """Trains all runs with equally many answers and updates, and lets them answer.

    Args:
        runs: What to train.
        feedback: The start and the models.
        steps: Updates of each run.
        groups: Prompts in an update.
        group_size: Answers to each; an opponent's count.
        answers: Answers to each prompt that are drawn at the end.
        seed: Of all sampling.

    Returns:
        `[runs + 1, prompts, answers, L]` answers of each policy at the end, the start's last; `[runs + 1]` KL to the
        start, in nats, estimated on them.
    """
    policy = trained(runs, feedback, steps=steps, groups=groups, group_size=group_size, seed=seed)
    reference = GPT(feedback.start, heads=HEADS, length=LENGTH)
    rng = np.random.default_rng([seed, 9])
    prompt = np.tile(np.arange(TOKENS), (len(runs), 1))
    tokens, logps = policy.sample(np.arange(len(runs)), prompt, answers, rng)
    start, _ = reference.sample(np.zeros(1, np.int64), prompt[:1], answers, rng)
    with torch.no_grad():
        before = reference.logps(prompt.reshape(1, -1), tokens.reshape(1, -1, answers, LENGTH))
    spent = (logps - before.reshape(logps.shape)).sum(-1).mean((1, 2)).numpy()
    return np.concatenate([tokens, start]), np.append(np.asarray(spent, np.float64), 0.0)


def trained(runs: Sequence[Run], feedback: Feedback, *, steps: int, groups: int, group_size: int, seed: int) -> GPT:
    """The policies of all runs at the end; arguments as for `learn`."""
    count = len(runs)
    parameters = {name: value.expand(count, *value.shape[1:]) for name, value in feedback.start.items()}
    policy, reference, other = (GPT(parameters, heads=HEADS, length=LENGTH) for _ in range(3))
    share = torch.tensor([_shares(run, group_size) for run in runs])
    by_kind: dict[tuple[str, float], list[int]] = {}
    for row, run in enumerate(runs):
        by_kind.setdefault((run.method, run.reach), []).append(row)
    alike = list(by_kind.values())
    averaged = [row for row, run in enumerate(runs) if run.method == "Nash-EMA-PG"]
    names = list(policy.parameters)
    # Adam's direction does not depend on its rate, so each run moves by its own rate along it.
    optimizer = torch.optim.Adam(policy.parameters.values(), lr=1.0)
    rates = torch.tensor([run.lr for run in runs])
    rng = np.random.default_rng([seed, 8])
    for step in range(steps):
        # The same prompts for all runs.
        prompt = np.tile(rng.integers(TOKENS, size=groups), (count, 1))
        tokens = mixed_sample(policy, other, share, prompt, rng)
        with torch.no_grad():
            before = reference.logps(prompt, tokens)
        logps = policy.logps(prompt, tokens)
        x, ids = torch.from_numpy(prompt), torch.from_numpy(tokens)
        parts = [
            objective(runs[rows[0]], logps[rows], before[rows], x[rows], ids[rows], feedback).sum() for rows in alike
        ]
        optimizer.zero_grad()
        torch.autograd.backward([torch.stack(parts).sum()])
        old = [policy.parameters[name].detach().clone() for name in names]
        optimizer.step()
        with torch.no_grad():
            for name, was in zip(names, old, strict=True):
                value = policy.parameters[name]
                scale = (rates * (1.0 - step / steps)).reshape(-1, *[1] * (value.ndim - 1))
                value.copy_(was + scale * (value - was))
                if averaged:
                    other.parameters[name][averaged] = torch.lerp(
                        value[averaged], other.parameters[name][averaged], AVERAGE
                    )
    return policy


def _shares(run: Run, size: int) -> list[float]:
    """The other policy's share in what each member of a group is drawn from."""
    if run.method == "IPO-MD":
        return [run.mixture] * size
    rival = {"Nash-MD-PG": run.mixture, "Nash-EMA-PG": 1.0}.get(run.method, 0.0)
    own = size // 2
    return [0.0] * own + [rival] * (size - own)
