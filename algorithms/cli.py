"""Commands of this floor: `polyturn train` and `polyturn eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from polyturn.agents.cli import add_env_arguments, add_sampling_arguments, env_options, no_loading_bars, sampling

TRAIN_HELP = """\
examples:
  polyturn train sft  --model my/base --data gold.jsonl --out runs/sft --epochs 3
  polyturn train mdpo --model runs/sft/policy --problems gsm8k_train.jsonl --out runs/mdpo --group-size 8
  polyturn train mkto --model runs/sft/policy --problems generated:2:2000 --out runs/mkto -m beta=0.2
  polyturn train raft --model runs/sft/policy --problems generated:2:2000 --out runs/raft
  polyturn train rloo --model runs/sft/policy --problems gsm8k_train.jsonl --out runs/rloo --online 500 --group-size 4
  polyturn train nash_pg --model my/base --env my/Env-v0 --out runs/nash --online 500 --opponent mixture:0.125
  polyturn train ipo  --model my/base --env my/Env-v0 --out runs/ipo-md --online 500 --actor mixture:0.125
  polyturn train mtpo --model runs/sft/policy --env polyturn/EducationDialogue-v0 --preference education \\
      --out runs/mtpo --online 300 --group-size 2 -m value_warmup=20
  polyturn train ppo  --model runs/sft/policy --env polyturn/EducationDialogue-v0 -m over=turn -m kl=0.01 \\
      --preference reward_model:runs/rm/model --out runs/rlhf --online 300 --group-size 2
  polyturn train distillation --model my/small --teacher my/large --data gold.jsonl --out runs/distilled
  polyturn train distillation --model runs/sft/policy --teacher my/large -m first=student \
      --problems gsm8k_train.jsonl --online 500 --group-size 1 --out runs/distilled

sft imitates stored trajectories; every other method runs the iterative protocol: collect from the current and the
previous policy, compare by outcome, train, take the new policy as reference; distillation learns what a teacher of the
same tokenizer predicts, on stored trajectories or (--online) on its own. With --online each update has fresh groups
of the policy as it is then, and the reference stays the starting policy. An interrupted command goes on where it
stopped: run it again with the same --out.
"""
EVAL_HELP = """\
examples:
  polyturn eval --model runs/mdpo/iteration-3/policy --problems gsm8k_test.jsonl
  polyturn eval --model my/model --problems generated:2:200 -o split=test --samples 8 --json scores.json
"""


FIT_HELP = """\
examples:
  polyturn fit reward_model --model runs/sft/policy --env polyturn/EducationDialogue-v0 --preference education \\
      --groups 600 --out runs/rm
  polyturn fit preference_model --model my/base --env polyturn/CarDealer-v0 --out runs/pm

The model's own policy acts twice from each start, somebody says which conversation was better, and a model learns to
say the same; a tenth of the starts is held out for its accuracy and calibration. Use it as
--preference reward_model:OUT/model. An interrupted command goes on where it stopped.
"""


# Options of `train` that not every way of training looks at: default, and the ways that do.
_OF_WAYS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "data": (None, ("stored",)),
    "epochs": (1.0, ("stored", "protocol")),
    "batch_size": (32, ("stored", "protocol")),
    "iterations": (3, ("protocol",)),
    "from_previous": (0, ("protocol",)),
    "reference": ("previous", ("protocol",)),
    "groups": (64, ("protocol", "online")),
    "group_size": (8, ("protocol", "online")),
    "online": (None, ("online",)),
    "reuse": (1, ("online",)),
}
_WAYS = {
    "stored": "which learns from the trajectories in --data",
    "protocol": "which collects and trains in iterations, unless --online STEPS is given",
    "online": "which with --online has fresh groups at every update and keeps the starting policy as reference",
}


def add_commands(subparsers: Any) -> None:
    """Adds this floor's commands to the parser of `polyturn`."""
    raw = argparse.RawDescriptionHelpFormatter
    train = subparsers.add_parser(
        "train", help="train a policy with a preference method", epilog=TRAIN_HELP, formatter_class=raw
    )
    train.add_argument(
        "method",
        help="sft, raft, mdpo, mkto, gpo, ipo, pmpo, dro_v, best_of_n, rwr, reinforce, rloo, grpo, ppo, mtpo, nash_pg, "
        "distillation",
    )
    train.add_argument("--model", required=True, help="folder or Hub id of the starting policy")
    train.add_argument("--out", type=Path, required=True, help="folder of the run")
    train.add_argument("-m", "--method-option", action="append", default=[], metavar="NAME=VALUE")
    train.add_argument("--data", type=Path, help="sft, distillation: store of trajectories to imitate")
    train.add_argument("--teacher", metavar="MODEL", help="distillation: folder or Hub id of the teacher")
    add_env_arguments(train, positional=False)
    add_sampling_arguments(train)
    train.add_argument("--iterations", type=int, help="of the protocol (default 3)")
    train.add_argument("--groups", type=int, help="starts per iteration (default 64)")
    train.add_argument("--group-size", type=int, help="episodes per start (default 8)")
    train.add_argument("--from-previous", type=int, help="of these, by the previous policy (default 0)")
    train.add_argument("--reference", choices=["previous", "first"], help="default previous")
    train.add_argument("--online", type=int, metavar="STEPS", help="fresh groups for each of so many updates")
    train.add_argument("--reuse", type=int, help="online: updates on each draw (default 1)")
    train.add_argument(
        "--opponent", metavar="KIND:X", help="online: mixture:BETA or average:DECAY (default: the policy itself)"
    )
    train.add_argument(
        "--actor", metavar="mixture:BETA", help="online: who samples in the policy's place (default: the policy)"
    )
    train.add_argument(
        "--turn-reward", metavar="FOLDER", help="online: a reward model of single turns, for ppo -m reward=turns"
    )
    add_preference_arguments(train)
    train.add_argument("--epochs", type=float, help="passes over the data (default 1)")
    train.add_argument("--batch-size", type=int, help="examples an update (default 32)")
    train.add_argument("--lr", type=float, help="learning rate (default 5e-7; sft: 2e-5)")
    train.add_argument(
        "--warmup", type=int, help="steps over which the rate rises (default 0; sft: a tenth, at most 40)"
    )
    train.add_argument(
        "--schedule", choices=["constant", "linear", "cosine"], help="of the rate (default constant; sft: cosine)"
    )
    train.add_argument("--tokens-per-micro-batch", type=int, default=16384, help="memory bound (default 16384)")
    train.add_argument(
        "--mixed-precision",
        choices=["no", "bf16"],
        help="of the computation; weights are float32 (default: as accelerate is configured)",
    )
    train.add_argument("--gradient-checkpointing", action="store_true", help="trade time for memory")
    train.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank (needs peft)")
    train.add_argument("--tracker", action="append", default=[], help="tensorboard, wandb, ... (may be repeated)")
    train.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.set_defaults(run=_train)

    fit = subparsers.add_parser(
        "fit", help="fit a reward or preference model to comparisons", epilog=FIT_HELP, formatter_class=raw
    )
    fit.add_argument("kind", choices=["reward_model", "preference_model"])
    fit.add_argument("--model", required=True, help="folder or Hub id of the policy that acts and is started from")
    fit.add_argument("--out", type=Path, required=True, help="folder for conversations, checkpoints and the model")
    add_env_arguments(fit, positional=False)
    add_sampling_arguments(fit)
    add_preference_arguments(fit)
    fit.add_argument("--groups", type=int, default=500, help="starts (default 500)")
    fit.add_argument("--group-size", type=int, default=2, help="conversations per start (default 2)")
    fit.add_argument("--steps", type=int, default=200, help="updates (default 200)")
    fit.add_argument("--batch-size", type=int, default=32, help="starts an update (default 32)")
    fit.add_argument("--lr", type=float, default=1e-5, help="learning rate (default 1e-5)")
    fit.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    fit.add_argument("--quiet", action="store_true", help="no progress bars")
    fit.set_defaults(run=_fit)

    evaluate = subparsers.add_parser(
        "eval", help="measure a policy: pass@k, turns, tool errors, intervals", epilog=EVAL_HELP, formatter_class=raw
    )
    evaluate.add_argument("--model", required=True, help="folder or Hub id")
    add_env_arguments(evaluate, positional=False)
    add_sampling_arguments(evaluate)
    evaluate.add_argument("--limit", type=int, help="only the first problems (default: all; without problems 100)")
    evaluate.add_argument("--samples", type=int, default=1, help="episodes per problem (default 1)")
    evaluate.add_argument("--out", type=Path, help="store to append the trajectories to; also resumes")
    evaluate.add_argument("--json", type=Path, help="write the figures to this file")
    evaluate.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(run=_eval)


def add_preference_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say who compares trajectories."""
    parser.add_argument(
        "--preference",
        default="return",
        metavar="WHO",
        help="return, education, reward_model:FOLDER, preference_model:FOLDER, judge:MODEL, server:MODEL (at "
        "OPENAI_BASE_URL) or module:attribute (default return)",
    )
    parser.add_argument("--question", help="what judge:MODEL or server:MODEL is asked to judge by")


def _train(args: argparse.Namespace) -> int:
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.feedback.annotators import annotator
    from polyturn.algorithms.methods import table as method_table
    from polyturn.envs.cli import parse_option

    method = method_table.make(args.method, **dict(parse_option(text) for text in args.method_option))
    if args.method == "sft" and args.data is None:
        raise ValueError("train sft: expected --data STORE to imitate, got none (make one with polyturn rollout)")
    values = bool(getattr(method, "needs_values", args.method == "dro_v"))
    if values and args.online is None:
        raise ValueError(f"train {args.method}: expected --online STEPS for a method with a value network, got none")
    if args.online is None and (args.opponent or args.actor or args.turn_reward):
        raise ValueError("train: expected --online STEPS with --opponent, --actor or --turn-reward, got none")
    distilling = args.method == "distillation"
    if distilling != (args.teacher is not None):
        raise ValueError("train: expected --teacher MODEL with distillation and with no other method")
    if distilling and (args.data is None) == (args.online is None):
        raise ValueError("train distillation: expected either --data STORE or --online STEPS")
    stored = args.method == "sft" or (distilling and args.data is not None)
    _settle(args, "stored" if stored else "protocol" if args.online is None else "online")
    options = None if stored else env_options(args)
    annotate = None if stored else annotator(args.preference, question=args.question)
    args.out.mkdir(parents=True, exist_ok=True)
    no_loading_bars()
    # Weights saved in half precision lose updates of these sizes; under adapters they stay as they are.
    policy = Policy.from_pretrained(args.model, dtype="auto" if args.lora is not None else "float32")
    if args.lora is not None:
        policy = _with_adapters(policy, args.lora, args.seed)
    rate = {"lr": args.lr, "warmup": args.warmup, "schedule": args.schedule}
    if options is not None:
        rate["lr"] = 5e-7 if args.lr is None else args.lr
    common = {
        **{name: value for name, value in rate.items() if value is not None},
        "tokens_per_micro_batch": args.tokens_per_micro_batch,
        "mixed_precision": args.mixed_precision,
        "gradient_checkpointing": args.gradient_checkpointing,
        "trackers": args.tracker,
        "progress": not args.quiet,
        "seed": args.seed,
    }
    try:
        if options is None or annotate is None:
            return _distil(args, method, policy, common) if distilling else _imitate(args, policy, common)
        run = _iterate if args.online is None else _online
        return run(args, method, policy, options, annotate, common)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run the same command again to go on with {args.out}") from None


def _settle(args: argparse.Namespace, way: str) -> None:
    """Fills in what was not said.

    Raises:
        ValueError: Something was said that would have no effect.
    """
    for name, (default, ways) in _OF_WAYS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif way not in ways:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"expected no {option} for train {args.method}, {_WAYS[way]}; leave {option} out")


def _imitate(args: argparse.Namespace, policy: Any, common: dict[str, Any]) -> int:
    from polyturn.algorithms.protocols.warmup import warm_start
    from polyturn.envs.store import read

    result = warm_start(
        policy,
        read(args.data),
        epochs=args.epochs,
        batch_size=args.batch_size,
        out=args.out,
        resume=True,
        **common,
    )
    policy.save_pretrained(args.out / "policy")
    print(f"{result.steps} steps, loss {result.history[-1]['loss']:.4f}; the policy is in {args.out / 'policy'}")
    return 0


def _teacher(args: argparse.Namespace, policy: Any) -> Any:
    """The teacher, whose tokens must mean what the policy's do."""
    from polyturn.agents.transformer.policy import Policy

    teacher = Policy.from_pretrained(args.teacher)
    if teacher.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"train distillation: expected a teacher with the tokenizer of {args.model}, got {args.teacher} with "
            "another; its predictions would be read as other words"
        )
    return teacher


def _distil(args: argparse.Namespace, method: Any, policy: Any, common: dict[str, Any]) -> int:
    from polyturn.algorithms.protocols.warmup import demonstrations
    from polyturn.algorithms.training.data_source import minibatches, steps_of
    from polyturn.algorithms.training.loop import train
    from polyturn.envs.store import read

    examples = demonstrations(policy, read(args.data))
    steps = steps_of(len(examples), args.batch_size, epochs=args.epochs)
    source = minibatches(examples, args.batch_size, seed=args.seed)
    common = {"lr": 2e-5, "schedule": "cosine", "warmup": min(40, max(1, steps // 10)), **common}
    result = train(
        method, policy, _teacher(args, policy), source, steps=steps, out=args.out, save_every=max(1, steps // 20),
        resume=True, **common,
    )  # fmt: skip
    policy.save_pretrained(args.out / "policy")
    last = result.history[-1]["divergence"]
    print(f"{result.steps} steps, {last:.4f} nats a token from the teacher; the policy is in {args.out / 'policy'}")
    return 0


def _iterate(
    args: argparse.Namespace, method: Any, policy: Any, options: dict[str, Any], annotate: Any, common: dict[str, Any]
) -> int:
    from polyturn.algorithms.protocols.iterate import iterate

    tasks = range(len(options["problems"])) if "problems" in options else None
    records = iterate(
        method,
        policy,
        args.env,
        out=args.out,
        iterations=args.iterations,
        groups=args.groups,
        group_size=args.group_size,
        from_previous=args.from_previous,
        tasks=tasks,
        env_options=options,
        annotate=annotate,
        reference=args.reference,
        sampling=sampling(args),
        max_tokens=args.max_tokens,
        slots=args.slots,
        epochs=args.epochs,
        batch_size=args.batch_size,
        **common,
    )
    print("iteration  episodes  invalid  mean return of what was sampled  examples")
    for record in records[1:]:
        print(
            f"{record.number:9d}  {record.episodes:8d}  {record.invalid:7d}  {record.mean_return:31.3f}  "
            f"{record.examples:8d}"
        )
    print(f"the policies are in {args.out}/iteration-*/policy")
    return 0


def _online(
    args: argparse.Namespace, method: Any, policy: Any, options: dict[str, Any], annotate: Any, common: dict[str, Any]
) -> int:
    from polyturn.agents.transformer.mixture import MixtureAgent
    from polyturn.algorithms.feedback.reward_models import RewardModel
    from polyturn.algorithms.methods.base import needs_reference
    from polyturn.algorithms.networks.value import ActorCritic
    from polyturn.algorithms.protocols.online import online
    from polyturn.algorithms.training.loop import train

    how = {"sampling": sampling(args), "max_tokens": args.max_tokens, "slots": args.slots}
    kind, _, number = (args.opponent or "").partition(":")
    # Adapters switched off are the reference of a policy that has them.
    share = None if args.actor is None else _share("--actor", args.actor, ("mixture",))[1]
    mixed = kind == "mixture" or share is not None
    if args.teacher is not None:
        anchor = _teacher(args, policy)
    else:
        anchor = policy.copy() if mixed or (needs_reference(method) and args.lora is None) else None
    trained, opponent = _opponent(kind, number, policy, anchor, how)
    if bool(getattr(method, "needs_values", args.method == "dro_v")):
        if trained is not policy:
            raise ValueError(f"train {args.method}: expected no --opponent average, got {args.opponent!r}")
        trained = ActorCritic(policy)
    rewarder = None if args.turn_reward is None else RewardModel.from_pretrained(args.turn_reward)
    source = online(
        policy,
        args.env,
        preference=annotate,
        turn_reward=None if rewarder is None else lambda group: rewarder.turn_scores(list(group)),
        actor=None if share is None or anchor is None else MixtureAgent(policy, anchor, beta=share, **how),
        groups=args.groups,
        group_size=args.group_size,
        opponent=opponent,
        reuse=args.reuse,
        tasks=range(len(options["problems"])) if "problems" in options else None,
        env_options=options,
        seed=args.seed,
        **how,
    )
    result = train(
        method,
        trained,
        anchor if args.lora is None or args.teacher is not None else None,
        source,
        steps=args.online,
        out=args.out,
        save_every=max(1, args.online // 20),
        resume=True,
        **common,
    )
    policy.save_pretrained(args.out / "policy")
    last = result.history[-1].get("sample/return", float("nan"))
    print(f"{result.steps} steps, mean return {last:.3f} at the end; the policy is in {args.out / 'policy'}")
    return 0


def _opponent(kind: str, number: str, policy: Any, anchor: Any, how: dict[str, Any]) -> tuple[Any, Any]:
    """What is trained and who it is compared with."""
    from polyturn.agents.transformer.mixture import MixtureAgent
    from polyturn.algorithms.networks.moving_average import MovingAverage

    if not kind:
        return policy, None
    _, value = _share("--opponent", f"{kind}:{number}", ("mixture", "average"))
    if kind == "mixture":
        return policy, MixtureAgent(policy, anchor, beta=value, **how)
    tracked = MovingAverage(policy, decay=value)
    return tracked, tracked


def _share(option: str, text: str, kinds: tuple[str, ...]) -> tuple[str, float]:
    """A kind and a number in [0, 1], as in mixture:0.125."""
    kind, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if kind not in kinds or not 0 <= value <= 1:
        names = {"mixture": "mixture:BETA", "average": "average:DECAY"}
        expected = " or ".join(names[each] for each in kinds)
        raise ValueError(f"{option}: expected {expected}, a number in [0, 1], got {text}")
    return kind, value


def _fit(args: argparse.Namespace) -> int:
    from polyturn.agents.collecting.collect import collect
    from polyturn.agents.transformer.agent import TransformerAgent
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.feedback.annotators import annotator
    from polyturn.algorithms.feedback.reward_models import PreferenceModel, RewardModel, fit
    from polyturn.algorithms.protocols.iterate import learnable
    from polyturn.envs.store import Store

    if args.groups < 2 or args.group_size < 2:
        got = f"{args.groups} and {args.group_size}"
        raise ValueError(f"fit: expected --groups and --group-size of at least 2, got {got}")
    options = env_options(args)
    annotate = annotator(args.preference, question=args.question)
    args.out.mkdir(parents=True, exist_ok=True)
    no_loading_bars()
    policy = Policy.from_pretrained(args.model, dtype="float32")  # as for train
    try:
        with Store(args.out / "conversations.jsonl") as store:
            groups = collect(
                TransformerAgent(policy, sampling=sampling(args), max_tokens=args.max_tokens, slots=args.slots),
                args.env,
                groups=args.groups,
                group_size=args.group_size,
                seed=args.seed,
                env_options=options,
                store=store,
                progress=not args.quiet,
            )
        kept = [group for group in map(learnable, groups) if group is not None]
        annotated = [(group, annotate(group)) for group in kept]
        # By start, as the same start may have been drawn twice.
        starts = list(dict.fromkeys(group[0].start for group in kept))
        held = set(starts[: max(1, len(starts) // 10)])
        model = (RewardModel if args.kind == "reward_model" else PreferenceModel)(policy)
        found = fit(
            model,
            [item for item in annotated if item[0][0].start not in held],
            [item for item in annotated if item[0][0].start in held],
            steps=args.steps,
            batch_size=args.batch_size,
            lr=args.lr,
            seed=args.seed,
            out=args.out / "train",
            save_every=max(1, args.steps // 5),
            resume=True,
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


def _with_adapters(policy: Any, rank: int, seed: int) -> Any:
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        from polyturn.envs.extras import how_to_install

        raise ImportError(f'--lora needs the extra "peft": {how_to_install("peft")}') from error
    from typing import cast

    from transformers import PreTrainedModel

    from polyturn.agents.transformer.policy import Policy

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = cast("PreTrainedModel", get_peft_model(policy.model, config))
    return Policy(adapted, policy.tokenizer, version=policy.version)


def _eval(args: argparse.Namespace) -> int:
    from contextlib import nullcontext

    from polyturn.agents.transformer.agent import TransformerAgent
    from polyturn.algorithms.protocols.evaluate import evaluate
    from polyturn.envs.store import Store

    options = env_options(args)
    no_loading_bars()
    agent = TransformerAgent.from_pretrained(
        args.model, sampling=sampling(args), max_tokens=args.max_tokens, slots=args.slots
    )
    if args.json is not None:
        args.json.open("a").close()  # an evaluation may take hours; a path that cannot be written is told of now
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
