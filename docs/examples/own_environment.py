"""From an environment of your own to a trained agent: a lift that must be driven to the floor a passenger names.

    python docs/examples/own_environment.py            under a minute of processor time
    python docs/examples/own_environment.py --small    a few seconds; shows that everything runs, learns little

Then look at what happened: polyturn view runs/own_environment --open
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium

from polyturn.agents import CollectOptions, Episode, Sampling, TransformerAgent, collect, tiny_policy
from polyturn.algorithms import MDPO, TrainOptions, evaluate, imitation_options, iterate, warm_start
from polyturn.envs import UnicodeText, check_text_env

FLOORS = 6


# 1. The environment: text in, text out, every random number from self.np_random.
class Lift(gymnasium.Env[str, str]):
    """The agent says "up", "down" or "open". Opening on the right floor within ten turns earns 1."""

    blocking = False  # it never waits for anything
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (as Gymnasium declares it)
    reward_bounds = (0.0, 1.0)
    success_return = 1.0

    def __init__(self) -> None:
        self.observation_space, self.action_space = UnicodeText(), UnicodeText()
        self.at, self.to, self.left = 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.to = (int(n) for n in self.np_random.choice(FLOORS, size=2, replace=False))
        self.left = 10
        return self._said(), {"task_id": f"{self.at} to {self.to}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.left == 0:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() first")
        self.left -= 1
        word = action.strip()
        if word == "open":
            self.left = 0
        self.at = min(FLOORS - 1, max(0, self.at + {"up": 1, "down": -1}.get(word, 0)))
        reward = float(word == "open" and self.at == self.to)
        return self._said(), reward, self.left == 0, False, {}

    def _said(self) -> str:
        return f"at {self.at}, to {self.to}"

    def snapshot(self) -> dict[str, int]:
        return {"at": self.at, "to": self.to, "left": self.left}

    def restore(self, snapshot: dict[str, int]) -> None:
        self.at, self.to, self.left = snapshot["at"], snapshot["to"], snapshot["left"]


# 2. An agent to imitate, a careless one: a third of the time it says any word.
class Careless:
    name, blocking = "careless", False

    def act(self, episode: Episode) -> str:
        if episode.rng.random() < 1 / 3:
            return str(episode.rng.choice(["up", "down", "open"]))
        at, to = (int(word) for word in episode.observation.replace("at ", "").split(", to "))
        return "open" if at == to else "up" if to > at else "down"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own_environment"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    gymnasium.register("examples/Lift-v0", entry_point=Lift, order_enforce=False, disable_env_checker=True)

    # 3. The contract that agents and trainers rely on: the same seed gives the same text, and so on.
    print("checked", check_text_env(Lift, seeds=range(5), max_turns=12).turns, "turns")

    # 4. A small transformer imitates the careless driver.
    shown = collect(Careless(), "examples/Lift-v0", groups=60 if args.small else 800, seed=0, progress=False)
    demonstrations = [group[0] for group in shown]
    texts = [turn.observation + turn.action for trajectory in demonstrations for turn in trajectory.turns]
    policy = tiny_policy(texts, seed=0, hidden=32 if args.small else 64, layers=2, heads=4, context=256)
    steps = 40 if args.small else 300
    warm_start(policy, demonstrations, steps=steps, options=imitation_options(steps, lr=3e-3))

    # 5. M-DPO: sample groups, compare whole rides by their reward, train, take the new policy as the reference.
    sampling = Sampling(max_new_tokens=6)

    def success(policy: Any) -> dict[str, Any]:
        agent = TransformerAgent(policy, sampling=sampling, max_tokens=256)
        rides = 10 if args.small else 200
        report = evaluate(agent, "examples/Lift-v0", problems=rides, seed=99, progress=False)
        print(f"{policy.version:<14} success {report.success}")
        return report.to_json()

    iterate(
        MDPO(beta=0.1, pairs_per_group=2),
        policy,
        "examples/Lift-v0",
        out=args.out,
        iterations=1 if args.small else 3,
        collect=CollectOptions(groups=16 if args.small else 128, group_size=4, sampling=sampling, max_tokens=256),
        batch_size=16,
        options=TrainOptions(lr=1e-3, clip=1.0),
        evaluate=success,
    )
    print(f"look at the rides: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
