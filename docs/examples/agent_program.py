"""An agent program that exists is trained through the endpoint it speaks to; its code stays as it is.

    python docs/examples/agent_program.py            under a minute of processor time
    python docs/examples/agent_program.py --small    a few seconds; shows that everything runs, learns little

Needs the extras "api" (the program's HTTP client) and "serve".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import httpx2

from polyturn.agents import (
    AgentProgram,
    CollectOptions,
    Endpoint,
    ProgramOutcome,
    Sampling,
    TransformerAgent,
    collect_program,
    tiny_policy,
)
from polyturn.algorithms import MDPO, TrainOptions, online, train
from polyturn.envs import Store


# 1. The program. It speaks OpenAI's chat completions to whatever `base_url` it is given, asks twice, and rewrites its
#    history between the calls: a summary of the first answer is all that the second call sees.
async def program(task: Any, endpoint: Endpoint) -> str:
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {endpoint.api_key}"}, timeout=60) as http:

        async def ask(*messages: dict[str, str]) -> str:
            answer = await http.post(f"{endpoint.base_url}/chat/completions", json={"messages": messages})
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])

        draft = await ask({"role": "user", "content": task["question"]})
        summary = {"role": "user", "content": draft[:4]}
        return draft + await ask({"role": "system", "content": "Go on."}, summary)


# 2. What makes a run good: only its outcome is looked at, here how many of its letters are vowels.
def vowels(outcome: ProgramOutcome) -> float:
    letters = str(outcome.result)
    return sum(letter in "aeiou" for letter in letters) / max(1, len(letters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/agent_program"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()

    # 3. The policy behind the endpoint, and the program where an environment would stand.
    policy = tiny_policy([], seed=0, vocab_size=259, hidden=32, layers=1, heads=2, context=128)
    runs = AgentProgram(program, [{"question": "a"}, {"question": "b"}], vowels)
    how = CollectOptions(
        groups=2 if args.small else 4,
        group_size=4 if args.small else 8,
        sampling=Sampling(max_new_tokens=6),
        max_tokens=100,
        slots=32,
    )

    # 4. Each task is run several times, whole runs are compared, and the tokens of all their calls are learned from:
    #    exactly those that were sampled, in both histories.
    result = train(
        MDPO(beta=0.05, pairs_per_group=None),
        policy,
        policy.copy(version="reference"),
        online(policy, runs, collect=how, seed=1),
        steps=2 if args.small else 25,
        options=TrainOptions(lr=0.01, clip=1.0),
        out=args.out / "mdpo",
    )
    scores = [entry["sample/return"] for entry in result.history]
    print(f"share of vowels, mean over runs: {scores[0]:.2f} in the first step, {scores[-1]:.2f} in the last")

    # 5. The runs of the trained policy, with both segments of each, for the viewer.
    policy.version = "trained"
    agent = TransformerAgent(policy, **how.acting)
    with Store(args.out / "runs.jsonl") as store:
        groups = collect_program(
            program, runs.tasks, agent=agent, group_size=4, progress=False, score=vowels, store=store
        )
    print(f"{len(groups[0])} runs of the first task; segments of each: {[len(run.segments) for run in groups[0]]}")
    print(f"look at them: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
