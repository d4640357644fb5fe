"""`polyturn eval`: how good a policy is in an environment."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from polyturn.agents.cli import (
    AGENT_HELP,
    add_env_arguments,
    add_sampling_arguments,
    env_options,
    make_agent,
    model_agent,
)

EXAMPLES = """\
examples:
  polyturn eval --model runs/mdpo/iteration-3/policy --problems gsm8k_test.jsonl
  polyturn eval --agent acme.agents:Haggler --env polyturn/CarDealer-v0 --samples 4
  polyturn eval --model my/model --problems generated:2:200 -o split=test --samples 8 --json scores.json

Mean return is the mean over problems of the total reward, with a 95% interval over problems. Success is the share of
episodes that the environment counts as one (tool_math: a right answer), pass@k the share of problems that at least one
of k samples solves; an environment that does not say what success is has neither.
"""


def add_command(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    parser = subparsers.add_parser(
        "eval",
        help="measure a policy: mean return, success, turns, tool errors, with intervals",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="folder or Hub id of a policy")
    parser.add_argument("--agent", metavar="AGENT", help=f"instead of --model: {AGENT_HELP}")
    parser.add_argument("--base-url", metavar="URL", help="of server:MODEL (default: OPENAI_BASE_URL, or OpenAI's)")
    add_env_arguments(parser, positional=False)
    add_sampling_arguments(parser)
    parser.add_argument("--limit", type=int, help="only the first problems (default: all; without problems 100)")
    parser.add_argument(
        "--success-return",
        type=float,
        help="total reward from which an episode is a success (default: the environment's)",
    )
    parser.add_argument("--samples", type=int, default=1, help="episodes per problem (default 1)")
    parser.add_argument("--out", type=Path, help="store to append the trajectories to; also resumes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints the report."""
    from contextlib import nullcontext

    from polyturn.algorithms.protocols.evaluate import evaluate
    from polyturn.envs.store import Store

    if (args.model is None) == (args.agent is None):
        raise ValueError(f"eval: expected either --model or --agent, got {'both' if args.model else 'neither'}")
    options = env_options(args)
    args.concurrency = args.slots
    agent = make_agent(args.agent, args, options) if args.model is None else model_agent(args.model, args)
    if args.json is not None:
        args.json.open("a").close()  # an evaluation may take hours; a path that cannot be written is reported now
    tasks = None
    if "problems" in options:
        tasks = range(min(len(options["problems"]), args.limit or len(options["problems"])))
    try:
        with Store(args.out) if args.out else nullcontext() as store:
            result = evaluate(
                agent,
                args.env,
                tasks=tasks,
                problems=(args.limit or 100) if tasks is None else None,
                samples=args.samples,
                seed=args.seed,
                env_options=options,
                success_return=args.success_return,
                concurrency=args.slots,
                store=store,
                progress=not args.quiet,
            )
    except KeyboardInterrupt:
        how = f"run the same command again to go on with {args.out}" if args.out else "--out keeps what is finished"
        raise KeyboardInterrupt(how) from None
    print(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result.to_json(), indent=1) + "\n", "utf-8")
    return 0
