"""A preference of your own: of two games of "guess the number", the one that ignores fewer of its hints is better.

    python docs/examples/own_preference.py            about a minute of processor time
    python docs/examples/own_preference.py --small    a few seconds; shows that everything runs

It shows the pieces, not a result: in its 60 steps the small policy ignored 1.34 hints a game before and 1.32 after.

No reward is used: the environment's own says who found the number, this preference says who plays sensibly.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from polyturn.agents import CollectOptions, Episode, Sampling, TransformerAgent, collect, tiny_policy
from polyturn.algorithms import IPO, TrainOptions, imitation_options, online, train, warm_start
from polyturn.envs import Judged, Store, Trajectory

ENV, GAME = "polyturn/Guess-v0", {"high": 9, "turns": 4}


# 1. What is judged: whole trajectories, turn by turn. A turn has `observation` (what the agent read) and `action`.
def ignored(game: Trajectory) -> int:
    """How many guesses contradict a hint that was given before."""
    low, high, found = 1, 9, 0
    for turn in game.turns:
        if hint := re.search(r"My number is (higher|lower) than (\d)", turn.observation):
            side, number = hint[1], int(hint[2])
            low, high = (max(low, number + 1), high) if side == "higher" else (low, min(high, number - 1))
        guess = re.search(r"\d", turn.action)
        found += guess is None or not low <= int(guess[0]) <= high
    return found


# 2. A judge of pairs: the probability that the first is better; 1/2 is a tie, nan is "do not ask me".
def sensible(pairs: Sequence[tuple[Trajectory, Trajectory]]) -> list[float]:
    """P(first beats second): 1 where the first ignores fewer hints, 0 where it ignores more."""
    return [0.5 if ignored(a) == ignored(b) else float(ignored(a) < ignored(b)) for a, b in pairs]


# Anything from a Group to a Preference will do; `Judged` makes one of a judge of pairs. This one treats both places
# alike, so one order is enough; a language model is asked in both.
preference = Judged(sensible, source="oracle", both_orders=False)


class Guesser:
    """Says any number."""

    name, blocking = "guesser", False

    def act(self, episode: Episode) -> str:
        return str(episode.rng.integers(1, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_preference"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()

    # 3. A policy that plays at random, from imitation.
    shown = collect(Guesser(), ENV, groups=20 if args.small else 200, env_options=GAME, progress=False)
    games = [group[0] for group in shown]
    policy = tiny_policy([turn.observation for game in games for turn in game.turns], seed=0, hidden=64, layers=2)
    steps = 3 if args.small else 60
    warm_start(policy, games, steps=steps, options=imitation_options(steps, lr=3e-3), progress=False)
    reference = policy.copy()

    # 4. Online IPO: fresh groups at every step, compared by the preference above.
    how = CollectOptions(
        groups=2 if args.small else 16,
        group_size=4,
        env_options=GAME,
        sampling=Sampling(max_new_tokens=3),
        max_tokens=512,
    )

    def hints_ignored(policy: object, step: int) -> dict[str, float]:
        agent = TransformerAgent(policy, **how.acting)  # type: ignore[arg-type]
        played = collect(
            agent, ENV, groups=5 if args.small else 100, seed=99, env_options=GAME, progress=False, store=store
        )
        mean = sum(ignored(group[0]) for group in played) / len(played)
        print(f"step {step:>3}: {mean:.2f} hints ignored a game")
        agent.policy.version = f"after-{step + 1}"  # stores tell policies apart by their version
        return {"hints_ignored": mean}

    args.out.mkdir(parents=True, exist_ok=True)
    with Store(args.out / "games.jsonl") as store:
        train(
            IPO(tau=0.1),
            policy,
            reference,
            online(policy, ENV, preference=preference, collect=how),
            steps=2 if args.small else 60,
            options=TrainOptions(lr=1e-3, clip=1.0, evaluate_every=1 if args.small else 20),
            evaluate=hints_ignored,
            out=args.out / "ipo",
        )
    print(f"look at the games: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
