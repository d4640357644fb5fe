"""A method of your own: a hinge on the log-ratios of a pair, in forty lines, trained beside M-DPO.

    python docs/examples/own_method.py            under a minute of processor time
    python docs/examples/own_method.py --small    a few seconds; shows that everything runs, learns little

A method is an object with a `name`, `needs` and `loss`; the training loop, accumulation, several processes, checkpoints
and metrics are the same for all methods.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyturn.agents import Episode, Sampling, TransformerAgent, collect, tiny_policy
from polyturn.algorithms import (
    MDPO,
    Batch,
    Example,
    Loss,
    Needs,
    TrainOptions,
    imitation_options,
    minibatches,
    pairs_by_outcome,
    train,
    warm_start,
)
from polyturn.envs import Group, Preference, by_return

ENV, GAME = "polyturn/Guess-v0", {"high": 4, "turns": 2}


@dataclass(frozen=True)
class Hinge:
    """max(0, margin - h), h the winner's log-ratio to the reference minus the loser's (a margin as in SLiC-HF).

    Attributes:
        margin: In nats; a pair that is further apart teaches nothing.
        scale: Multiplies h.
    """

    margin: float = 1.0
    scale: float = 0.1
    name: ClassVar[str] = "hinge"
    needs: ClassVar[Needs] = Needs(reference=True)

    # What is taken of a group that was compared: here one random pair of a better and a worse member.
    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        pairs = pairs_by_outcome(group, preference, rng, pairs_per_group=1)
        rows, places = np.unique(pairs, return_inverse=True)
        return Example(tuple(group[int(row)] for row in rows), places.reshape(-1, 2)) if len(rows) else None

    # logps and reference are [N, T]: N trajectories, T tokens, 0 where the agent wrote nothing. turn_ids: which turn
    # wrote a token (-1: the environment did), pairs [P, 2] which rows are compared. Values [P] are not yet averaged.
    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        assert reference is not None
        ratio = ((logps - reference) * (batch.turn_ids >= 0)).sum(1)
        h = ratio[batch.pairs[:, 0]] - ratio[batch.pairs[:, 1]]
        return Loss(torch.relu(self.margin - self.scale * h), metrics={"h": h.detach(), "accuracy": (h > 0).float()})


class Guesser:
    """Says any number."""

    name, blocking = "guesser", False

    def act(self, episode: Episode) -> str:
        return str(episode.rng.integers(1, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_method"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()

    # A policy that guesses at random, and groups of its games: two guesses at a number from 1 to 4.
    shown = collect(Guesser(), ENV, groups=20 if args.small else 200, env_options=GAME, progress=False)
    games = [group[0] for group in shown]
    start = tiny_policy([turn.observation for game in games for turn in game.turns], seed=0, hidden=64, layers=2)
    steps = 3 if args.small else 60
    warm_start(start, games, steps=steps, options=imitation_options(steps, lr=3e-3), progress=False)
    sampling = Sampling(max_new_tokens=3)
    agent = TransformerAgent(start, sampling=sampling, max_tokens=256)
    groups = collect(agent, ENV, groups=8 if args.small else 300, group_size=4, env_options=GAME, progress=False)

    # The same groups, the same loop, two methods. polyturn train own_method:Hinge finds it by name, too.
    for method in (Hinge(), MDPO(beta=0.1)):
        rng, policy = np.random.default_rng(0), start.copy()
        policy.model.requires_grad_(True)
        found = [method.examples(group, by_return(group), rng) for group in groups]
        examples = [example for example in found if example is not None]
        result = train(
            method,
            policy,
            start.copy(),
            minibatches(examples, 16, seed=0),
            steps=2 if args.small else 60,
            options=TrainOptions(lr=5e-4, clip=1.0),
            out=args.out / method.name,
        )
        last = result.history[-1]
        print(f"{method.name}: loss {result.history[0]['loss']:.3f} to {last['loss']:.3f}")
    print(f"look at the curves: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
