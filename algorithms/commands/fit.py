"""`polyturn fit`: a reward or preference model learns from comparisons."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from polyturn.agents.cli import add_env_arguments, add_sampling_arguments, env_options, model_options, no_loading_bars
from polyturn.algorithms.commands.shared import add_preference_arguments

EXAMPLES = """\
examples:
  polyturn fit reward_model --model runs/sft/policy --env polyturn/EducationDialogue-v0 --preference education \\
      --groups 600 --out runs/rm
  polyturn fit preference_model --model my/base --env polyturn/CarDealer-v0 --out runs/pm

The model's own policy acts twice from each start, --preference says which conversation was better, and a model learns
to say the same; a tenth of the starts is held out for its accuracy and calibration. Use it as
--preference reward_model:OUT/model. An interrupted command continues: run it again with the same --out.
"""


def add_command(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    parser = subparsers.add_parser(
        "fit",
        help="fit a reward or preference model to comparisons",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["reward_model", "preference_model"])
    parser.add_argument("--model", required=True, help="folder or Hub id of the policy that acts and is started from")
    parser.add_argument("--out", type=Path, required=True, help="folder for conversations, checkpoints and the model")
    add_env_arguments(parser, positional=False)
    add_sampling_arguments(parser)
    add_preference_arguments(parser)
    parser.add_argument("--groups", type=int, default=500, help="starts (default 500)")
    parser.add_argument("--group-size", type=int, default=2, help="conversations per start (default 2)")
    parser.add_argument("--steps", type=int, default=200, help="updates (default 200)")
    parser.add_argument("--batch-size", type=int, default=32, help="starts an update (default 32)")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate (default 1e-5)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collects, compares, fits, and prints accuracy and calibration."""
    from polyturn.agents.collecting.collect import collect
    from polyturn.agents.transformer.agent import TransformerAgent
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.feedback.annotators import annotator
    from polyturn.algorithms.feedback.reward_models import PreferenceModel, RewardModel, fit
    from polyturn.algorithms.protocols.iterate import learnable
    from polyturn.algorithms.training.options import TrainOptions
    from polyturn.envs.store import Store

    # What is asked for, checked before any work.
    if args.groups < 2 or args.group_size < 2:
        got = f"{args.groups} and {args.group_size}"
        raise ValueError(f"fit: expected --groups and --group-size of at least 2, got {got}")
    training = TrainOptions(lr=args.lr, seed=args.seed, save_every=max(1, args.steps // 5))
    options = env_options(args)
    annotate = annotator(args.preference, question=args.question)
    args.out.mkdir(parents=True, exist_ok=True)
    no_loading_bars()
    policy = Policy.from_pretrained(args.model, dtype="float32")  # as for train
    try:
        # Collect, or read what an earlier call has collected.
        with Store(args.out / "conversations.jsonl") as store:
            groups = collect(
                TransformerAgent(policy, **model_options(args)),
                args.env,
                groups=args.groups,
                group_size=args.group_size,
                seed=args.seed,
                env_options=options,
                store=store,
                progress=not args.quiet,
            )
        # Compare, and hold out a tenth by start, as the same start may have been drawn twice.
        kept = [group for group in map(learnable, groups) if group is not None]
        annotated = [(group, annotate(group)) for group in kept]
        starts = list(dict.fromkeys(group[0].start for group in kept))
        held = set(starts[: max(1, len(starts) // 10)])
        # Fit.
        model = (RewardModel if args.kind == "reward_model" else PreferenceModel)(policy)
        found = fit(
            model,
            [item for item in annotated if item[0][0].start not in held],
            [item for item in annotated if item[0][0].start in held],
            steps=args.steps,
            batch_size=args.batch_size,
            options=training,
            out=args.out / "train",
            resume=True,
            seed=args.seed,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run the same command again to go on with {args.out}") from None
    model.save_pretrained(args.out / "model")
    print(f"on {len(held)} held-out starts, {found.after.pairs} pairs:")
    for when, known in (("before", found.before), ("after", found.after)):
        print(
            f"{when:<8} accuracy {known.accuracy:.3f}  log loss {known.log_loss:.3f}  calibration error {known.ece:.3f}"
        )
    print(f"use it as --preference {args.kind}:{args.out / 'model'}")
    return 0
