"""`polyturn weigh`: what a method would train on in a store, token by token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from polyturn.algorithms.commands.shared import add_preference_arguments

EXAMPLES = """\
examples:
  polyturn weigh runs/mdpo/iteration-1/trajectories.jsonl --policy runs/mdpo/iteration-1/policy \\
      --reference runs/mdpo/iteration-0/policy --method mdpo --out weighed.jsonl
  polyturn view weighed.jsonl --tokenizer runs/mdpo/iteration-1/policy
  polyturn show weighed.jsonl --tokens

OUT is the store with two numbers more for each of the agent's tokens: the log-ratio of policy to reference, and the
weight, the derivative of the method's loss in the token's log-probability. A step of training lowers the loss, so a
negative weight pushes the token up. Trajectories stand in OUT group after group.
"""


def add_command(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    parser = subparsers.add_parser(
        "weigh",
        help="add to a store what a method trains on: log-ratio and weight in the loss of every token",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", type=Path, help="a file of trajectories with tokens")
    parser.add_argument("--policy", required=True, help="folder or Hub id of the weights to be trained")
    parser.add_argument("--reference", help="folder or Hub id of what log-ratios are taken to")
    parser.add_argument("--method", required=True, help="as for polyturn train: mdpo, ipo, mkto, sft, grpo, ...")
    parser.add_argument(
        "-m", "--method-option", action="append", default=[], metavar="KEY=VALUE", help="of the method; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, help="the store to write; must not exist")
    add_preference_arguments(parser)
    parser.add_argument(
        "--batch-size", type=int, default=32, help="groups of a step, over which a loss is a mean (default 32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs that are drawn (default 0)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores the store under both policies and writes the other."""
    from polyturn.agents.cli import no_loading_bars
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.feedback.annotators import annotator
    from polyturn.algorithms.methods import table
    from polyturn.algorithms.protocols.weigh import weigh
    from polyturn.envs.cli import parse_option
    from polyturn.envs.settings import record
    from polyturn.envs.store import Store, read_groups

    # What is asked for, checked before any work.
    if args.out.exists():
        raise ValueError(f"weigh: expected --out to name a new file, got {args.out}, which exists")
    method = table.make(args.method, **dict(parse_option(text) for text in args.method_option))
    annotate = annotator(args.preference, question=args.question)
    no_loading_bars()
    policy = Policy.from_pretrained(args.policy, dtype="float32")  # as for train
    reference = None if args.reference is None else Policy.from_pretrained(args.reference, dtype="float32")
    note = {
        "method": {"name": method.name, **(record(method) if hasattr(method, "__dataclass_fields__") else {})},
        "policy": policy.fingerprint(),
        "reference": None if reference is None else reference.fingerprint(),
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    groups = read_groups(args.store)
    weighed = weigh(method, policy, reference, groups, annotate, batch_size=args.batch_size, seed=args.seed, note=note)
    # Written beside and renamed, so that a half-finished store is never taken for a whole one.
    part = args.out.with_name(f".{args.out.name}.part")
    count = taken = 0
    try:
        with Store(part) as store:
            for trajectory in weighed:
                store.append(trajectory)
                count += 1
                taken += trajectory.info["trained_on"]["taken"]
        part.rename(args.out)
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {args.out}: {count} trajectories, of which {method.name} takes {taken}")
    return 0
