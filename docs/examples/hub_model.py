"""A model of the Hub on one GPU: imitation of right programs, then iterative M-DPO on tool-integrated mathematics.

    python docs/examples/hub_model.py --model Qwen/Qwen2.5-0.5B-Instruct    downloads it; not run on a GPU so far
    python docs/examples/hub_model.py --small    a few seconds on a CPU, without a download

The small form makes the same calls on a model folder that it writes first, and shows that they run; it learns little.
Programs that the model writes run in a Docker container where an engine answers, else in a local sandbox. What a GPU
must hold: docs/GPUS.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyturn.agents import CollectOptions, GoldAgent, Policy, Sampling, TransformerAgent, collect, tiny_policy
from polyturn.algorithms import MDPO, TrainOptions, evaluate, imitation_options, iterate, warm_start
from polyturn.envs import Group, Preference, by_return, by_score, load_problems

ENV = "polyturn/ToolMath-v0"


def a_small_folder(folder: Path) -> Path:
    """What the Hub would give, small and with random weights: weights, configuration, tokenizer, chat template."""
    tiny_policy(["How many apples are there?"], seed=0, hidden=32, layers=1, heads=2).save_pretrained(folder)
    return folder


def shorter(group: Group) -> Preference:
    """For the small form, whose model is never right: with nothing better or worse there would be nothing to learn."""
    return by_score(np.array([-len("".join(turn.action for turn in member.turns)) for member in group]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a Hub id with a chat template"
    )
    parser.add_argument("--problems", default="generated:2:512", help="a JSONL file, a data set, or generated ones")
    parser.add_argument("--sandbox", default="auto", choices=("auto", "docker", "local"))
    parser.add_argument("--out", type=Path, default=Path("runs/hub_model"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        warnings.simplefilter("ignore", RuntimeWarning)  # of the local sandbox: the model's "programs" are noise
        args.model, args.sandbox = a_small_folder(args.out / "model"), "local"

    # 1. Weights in float32: small updates need it. On a GPU the arithmetic is done in bfloat16 (mixed precision).
    policy = Policy.from_pretrained(args.model, dtype="float32")
    gpu = torch.cuda.is_available()
    training: dict[str, Any] = (
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "tokens_per_micro_batch": 16_384} if gpu else {}
    )
    problems = load_problems(args.problems)
    held_out = problems[-2 if args.small else -64 :]
    problems = problems[: 4 if args.small else -64]
    options = {"problems": problems, "sandbox": args.sandbox, "max_turns": 2 if args.small else 6}

    # 2. A warm start on right programs, so that the model knows the form of a tool call.
    gold = collect(GoldAgent(problems), ENV, groups=len(problems), env_options=options, tasks=range(len(problems)))
    lessons = [group[0] for group in gold if group[0].total_reward == 1.0]
    steps = 1 if args.small else 30
    warm_start(policy, lessons, steps=steps, batch_size=8, options=imitation_options(steps, **training))

    # 3. M-DPO: sample eight conversations a problem, compare whole ones by the final answer, train, repeat.
    sampling, limit = Sampling(max_new_tokens=8 if args.small else 400), 1024 if args.small else 4096

    def success(policy: Policy) -> dict[str, Any]:
        agent = TransformerAgent(policy, sampling=sampling, max_tokens=limit)
        report = evaluate(agent, ENV, tasks=range(len(held_out)), env_options={**options, "problems": held_out})
        print(f"{policy.version}: success {report.success}")
        return report.to_json()

    iterate(
        MDPO(beta=0.1),
        policy,
        ENV,
        out=args.out / "mdpo",
        iterations=1 if args.small else 3,
        collect=CollectOptions(
            groups=2 if args.small else 128,
            group_size=2 if args.small else 8,
            tasks=range(len(problems)),
            env_options=options,
            sampling=sampling,
            max_tokens=limit,
        ),
        preference=shorter if args.small else by_return,
        batch_size=32,
        options=TrainOptions(lr=5e-7, **training),
        evaluate=success,
    )
    print(f"look at the conversations: polyturn view {args.out} --open")


if __name__ == "__main__":
    main()
