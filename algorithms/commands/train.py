"""`polyturn train`: any method on stored trajectories, in iterations, or on fresh samples at every update."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyturn.agents.cli import (
    add_env_arguments,
    add_sampling_arguments,
    engine,
    env_options,
    no_loading_bars,
    sampling,
    turn_or_every,
)
from polyturn.algorithms.commands.handing import hand_on
from polyturn.algorithms.commands.shared import add_preference_arguments
from polyturn.envs.preference import AtBranches
from polyturn.envs.settings import add_arguments, from_arguments

EXAMPLES = """\
examples:
  polyturn train sft  --model my/base --data gold.jsonl --out runs/sft --epochs 3
  polyturn train mdpo --model runs/sft/policy --data pairs.jsonl --out runs/dpo
  polyturn train mdpo --model runs/sft/policy --problems gsm8k_train.jsonl --out runs/mdpo --group-size 8
  polyturn train mkto --model runs/sft/policy --problems generated:2:2000 --out runs/mkto -m beta=0.2
  polyturn train rloo --model runs/sft/policy --problems gsm8k_train.jsonl --out runs/rloo --online 500 --group-size 4
  polyturn train nash_pg --model my/base --env my/Env-v0 --out runs/nash --online 500 --opponent mixture:0.125
  polyturn train ipo  --model my/base --env my/Env-v0 --out runs/ipo-md --online 500 --actor mixture:0.125
  polyturn train mtpo --model runs/sft/policy --env polyturn/EducationDialogue-v0 --preference education \\
      --out runs/mtpo --online 300 --group-size 2 -m value_warmup=20
  polyturn train ppo  --model runs/sft/policy --env polyturn/EducationDialogue-v0 -m over=turn -m kl=0.01 \\
      --preference reward_model:runs/rm/model --out runs/rlhf --online 300 --group-size 2
  polyturn train mdpo --model runs/sft/policy --program "python my_agent.py" --tasks tasks.jsonl --out runs/agent
  polyturn train distillation --model my/small --teacher my/large --data gold.jsonl --out runs/distilled
  polyturn train distillation --model runs/sft/policy --teacher my/large -m first=student \\
      --problems gsm8k_train.jsonl --online 500 --group-size 1 --out runs/distilled

With --data a method learns from a store, or from recorded pairs, labels, scores or conversations. Without, it runs the
iterative protocol: collect with the current and the previous policy, compare, train, take the new policy as reference.
With --online STEPS each update has fresh groups of the policy as it is then, and the reference stays the starting
policy. An interrupted command continues: run it again with the same --out.

methods:
"""
SETTINGS = (
    "lr", "warmup", "schedule", "weight_decay", "clip", "accumulate", "tokens_per_micro_batch", "max_length",
    "mixed_precision", "gradient_checkpointing", "kernels", "cache_reference", "save_every", "keep",
)  # fmt: skip
"""The fields of `TrainOptions` that are options of the command."""
_DEFAULTS = {"lr": "5e-7; on --data 2e-5", "warmup": "0; on --data a tenth, at most 40",
             "schedule": "constant; on --data cosine", "tokens_per_micro_batch": 16384}  # fmt: skip
_LR = 5e-7


@dataclass(frozen=True)
class _Way:
    """A way to train: what it is, and the options that it reads with their defaults."""

    what: str
    options: dict[str, Any]


_STORED = _Way("which learns from the trajectories in --data", {"data": None, "epochs": 1.0, "batch_size": 32})
_OFFLINE = _Way(
    "which compares the groups of --data, a store or recorded data, with the starting policy as reference",
    {"data": None, "epochs": 1.0, "batch_size": 32},
)
_PROTOCOL = _Way(
    "which collects and trains in iterations, unless --online STEPS is given",
    {"epochs": 1.0, "batch_size": 32, "iterations": 3, "from_previous": 0, "reference": "previous", "groups": 64,
     "group_size": 8, "branch_at": None},
)  # fmt: skip
_ONLINE = _Way(
    "which with --online has fresh groups at every update and keeps the starting policy as reference",
    {
        "online": None,
        "reuse": 1,
        "groups": 64,
        "group_size": 8,
        "branch_at": None,
        "opponent": None,
        "actor": None,
        "turn_reward": None,
    },
)
_WAYS = (_STORED, _OFFLINE, _PROTOCOL, _ONLINE)


class _Help(argparse.Action):
    """`--help` with one line a method, for which the methods are loaded only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from polyturn.algorithms.methods.table import summaries

        parser.epilog = EXAMPLES + summaries()
        parser.print_help()
        parser.exit()


def add_command(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    from polyturn.algorithms.training.options import TrainOptions

    parser = subparsers.add_parser(
        "train",
        help="train a policy with a preference method",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=_Help, nargs=0, help="show this help message and exit")
    parser.add_argument("method", help="one of those listed below")
    parser.add_argument("--model", required=True, help="folder or Hub id of the starting policy")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "-m", "--method-option", action="append", default=[], metavar="NAME=VALUE", help="a field of the method"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="a store to learn from instead of fresh samples; or JSON lines, Parquet, a saved data set or a Hub id "
        "(user/name[:configuration][@split]) with pairs "
        "(prompt, chosen, rejected), labels or scores (prompt, completion, label), or conversations (messages)",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="folder or Hub id of the teacher, for methods that need one")
    add_env_arguments(parser, positional=False)
    parser.add_argument(
        "--program",
        metavar="COMMAND",
        help="instead of --env: an agent program, run once a task with OPENAI_BASE_URL and OPENAI_API_KEY set for it, "
        "the task as JSON on its standard input; split into arguments, never run by a shell",
    )
    parser.add_argument("--tasks", type=Path, help="with --program: tasks, JSON lines")
    parser.add_argument(
        "--score",
        metavar="MODULE:ATTRIBUTE",
        help='with --program: a function of an Outcome (default: the number, or {"score": number}, of the last line '
        "that the program prints)",
    )
    parser.add_argument(
        "--sandboxed",
        action="store_true",
        help="with --program: a Python file that defines agent(task), a generator that yields messages and is sent "
        "answers; it runs in the sandbox, which has no network",
    )
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload the policy and its card to this (private) repository of the Hub"
    )
    parser.add_argument("--timeout", type=float, help="with --program: seconds of a run (default 600)")
    add_sampling_arguments(parser)
    parser.add_argument("--iterations", type=int, help="of the protocol (default 3)")
    parser.add_argument("--groups", type=int, help="starts per iteration or draw (default 64)")
    parser.add_argument("--group-size", type=int, help="episodes per start (default 8)")
    parser.add_argument(
        "--branch-at",
        type=turn_or_every,
        metavar="K",
        help="a group's episodes share the agent's first K turns; every: a tree that parts at each turn, in which "
        "those that part at the same one are compared",
    )
    parser.add_argument("--from-previous", type=int, help="of these, by the previous policy (default 0)")
    parser.add_argument("--reference", choices=["previous", "first"], help="default previous")
    parser.add_argument("--online", type=int, metavar="STEPS", help="fresh groups for each of STEPS updates")
    parser.add_argument("--reuse", type=int, help="online: updates on each draw (default 1)")
    parser.add_argument(
        "--opponent", metavar="KIND:X", help="online: mixture:BETA or average:DECAY (default: the policy itself)"
    )
    parser.add_argument("--actor", metavar="mixture:BETA", help="online: what samples (default: the policy)")
    parser.add_argument(
        "--turn-reward", metavar="FOLDER", help="online: a reward model of single turns, for ppo -m reward=turns"
    )
    add_preference_arguments(parser)
    parser.add_argument("--epochs", type=float, help="passes over the data (default 1)")
    parser.add_argument("--batch-size", type=int, help="examples an update (default 32)")
    add_arguments(parser, TrainOptions, SETTINGS, defaults=_DEFAULTS)
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of this rank (needs peft)")
    parser.add_argument(
        "--adapter",
        choices=["continue", "merge", "stack"],
        help="what --lora does with adapters that --model has already: train them further, merge them into the base "
        "and train new ones, or keep them frozen and stack new ones on them (default continue)",
    )
    parser.add_argument("--tracker", action="append", default=[], help="tensorboard, wandb, ... (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains in the way that the method and the options ask for."""
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.feedback.annotators import annotator
    from polyturn.algorithms.methods import table
    from polyturn.envs.cli import parse_option

    # What is asked for, checked before any work.
    method = table.make(args.method, **dict(parse_option(text) for text in args.method_option))
    way = _way(args, method)
    options = _training(args, way)
    recorded = way in (_STORED, _OFFLINE)
    environment = None if recorded else {} if args.program is not None else env_options(args)
    source = _source(args)
    annotate = None if way is _STORED else annotator(args.preference, question=args.question)
    annotate = AtBranches(annotate) if args.branch_at == "every" and annotate is not None else annotate
    args.out.mkdir(parents=True, exist_ok=True)
    if args.push is not None:
        from polyturn.agents.hub import make_repository

        make_repository(args.push)
    no_loading_bars()
    # Weights saved in half precision lose updates of these sizes; under adapters they stay as they are.
    policy = Policy.from_pretrained(args.model, dtype="auto" if args.lora is not None else "float32")
    if args.lora is not None:
        policy = _with_adapters(policy, args.lora, args.seed, args.adapter)
    try:
        if recorded or environment is None:
            folder, results = _stored(args, method, policy, annotate)
        else:
            carry_out = _protocol if way is _PROTOCOL else _online
            folder, results = carry_out(args, method, policy, source, environment, annotate, options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run the same command again to go on with {args.out}") from None
    hand_on(args, method, options, environment, folder, results)
    return 0


def _way(args: argparse.Namespace, method: Any) -> _Way:
    """The way to train, with the defaults of its options filled in.

    Raises:
        ValueError: The method cannot be trained so, or an option was given that would have no effect.
    """
    name, needs = args.method, method.needs
    if args.adapter is not None and args.lora is None:
        raise ValueError(f"train {name}: expected --lora RANK to go with --adapter {args.adapter}, got none")
    if needs.teacher != (args.teacher is not None):
        raise ValueError(
            f"train {name}: expected --teacher MODEL, got none"
            if needs.teacher
            else f"train {name}: expected no --teacher, which only methods that learn from a teacher take"
        )
    if not needs.preference and (args.data is None) == (args.online is None):
        raise ValueError(
            f"train {name}: expected either --data STORE or --online STEPS (polyturn rollout makes a store)"
        )
    if needs.values and args.online is None and args.data is None:
        raise ValueError(f"train {name}: expected --online STEPS or --data FILE for a method with a value network")
    if needs.sampled:
        from polyturn.agents.transformer.agent import SampledAs
        from polyturn.algorithms.training.own_samples import check_sampling

        check_sampling(f"train {name}", replace(SampledAs.by(sampling(args)), mixed=args.actor is not None))
    if args.data is not None and args.online is None:
        way = _OFFLINE if needs.preference else _STORED
        if way is _OFFLINE:
            from polyturn.algorithms.protocols.offline import check_offline

            check_offline(method)
        if args.engine is not None:
            raise ValueError(f"train {name}: expected no --engine with --data, which nothing samples for; leave it out")
    else:
        way = _ONLINE if args.online else _PROTOCOL
    every = {option: default for each in _WAYS for option, default in each.options.items()}
    for option in every:
        if getattr(args, option) is None:
            setattr(args, option, way.options.get(option))
        elif option not in way.options:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"expected no {flag} for train {name}, {way.what}; leave {flag} out")
    return way


def _source(args: argparse.Namespace) -> Any:
    """What is collected from: an environment's id, or an agent program.

    Raises:
        ValueError: Options of one with the other.
    """
    if args.program is None:
        for name in ("tasks", "score", "timeout", "sandboxed"):
            if getattr(args, name):
                raise ValueError(f"train {args.method}: expected --program COMMAND to go with --{name}, got none")
        return args.env
    import shlex

    from polyturn.agents.serving.programs import AgentProgram, printed_score, read_tasks
    from polyturn.envs.plugins import attribute

    if args.tasks is None:
        raise ValueError(f"train {args.method}: expected --tasks FILE to go with --program, got none")
    if args.problems is not None or args.option or args.data is not None:
        raise ValueError(f"train {args.method}: expected no --problems, -o or --data with --program, which has --tasks")
    score = printed_score if args.score is None else attribute(args.score, "a score")
    program: Any = shlex.split(args.program)
    if args.sandboxed:
        from polyturn.agents.serving.sandboxed import SandboxedProgram

        program = SandboxedProgram(Path(args.program).read_text("utf-8"))
    return AgentProgram(program, read_tasks(args.tasks), score, args.timeout or 600.0)


def _training(args: argparse.Namespace, way: _Way) -> Any:
    """The run's `TrainOptions`; those of stored data depend on how many steps it makes, and are made later."""
    from polyturn.algorithms.training.options import TrainOptions

    more = {"tokens_per_micro_batch": 16384, "seed": args.seed}
    if way in (_PROTOCOL, _ONLINE):
        more["lr"] = _LR
    if way is _ONLINE:
        more["save_every"] = max(1, args.online // 20)
    return from_arguments(TrainOptions, args, SETTINGS, **more)


def _teacher(args: argparse.Namespace, policy: Any) -> Any:
    """The teacher, whose tokens must mean what the policy's do."""
    from polyturn.agents.transformer.policy import Policy

    teacher = Policy.from_pretrained(args.teacher)
    if teacher.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"train {args.method}: expected a teacher with the tokenizer of {args.model}, got {args.teacher} with "
            "another; its predictions would be read as other words"
        )
    return teacher


def _examples(args: argparse.Namespace, method: Any, policy: Any, annotate: Any) -> Any:
    """What the method learns from --data: a store, or recorded data in one of the layouts that people have."""
    from polyturn.algorithms.protocols.offline import offline_examples, stored_examples
    from polyturn.algorithms.protocols.warmup import demonstrations
    from polyturn.envs.recorded import read_recorded
    from polyturn.envs.store import is_store, read, read_groups

    if not is_store(args.data):
        return offline_examples(method, policy, read_recorded(args.data), seed=args.seed)
    if annotate is None:
        return demonstrations(policy, read(args.data))
    return stored_examples(method, policy, read_groups(args.data), annotate, seed=args.seed)


def _stored(args: argparse.Namespace, method: Any, policy: Any, annotate: Any) -> tuple[Path, dict[str, float | int]]:
    """Learns from stored trajectories or recorded data."""
    from polyturn.algorithms.networks.value import ActorCritic
    from polyturn.algorithms.protocols.warmup import imitation_options
    from polyturn.algorithms.training.data_source import minibatches, steps_of
    from polyturn.algorithms.training.loop import train

    examples = _examples(args, method, policy, annotate)
    steps = steps_of(len(examples), args.batch_size, epochs=args.epochs)
    given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    defaults = {"tokens_per_micro_batch": 16384, "seed": args.seed, "save_every": max(1, steps // 20)}
    anchor = _teacher(args, policy) if method.needs.teacher else policy.snapshot() if method.needs.reference else None
    policy.version = method.name
    result = train(
        method,
        ActorCritic(policy) if method.needs.values else policy,
        anchor,
        minibatches(examples, args.batch_size, seed=args.seed),
        steps=steps,
        options=imitation_options(steps, **{**defaults, **given}),
        out=args.out,
        resume=True,
        trackers=args.tracker,
        progress=not args.quiet,
    )
    policy.save_pretrained(args.out / "policy")
    unit = "" if method.needs.preference else " nats a token"
    loss = result.history[-1]["loss"]
    print(f"{result.steps} steps, loss {loss:.4f}{unit}; the policy is in {args.out / 'policy'}")
    return args.out / "policy", {"steps": result.steps, "loss": loss}


def _collecting(args: argparse.Namespace, source: Any, environment: dict[str, Any]) -> Any:
    """What is collected at a time; over many times, every task."""
    from polyturn.agents.collecting.options import CollectOptions

    tasks = None if isinstance(source, str) else range(len(source.tasks))

    return CollectOptions(
        groups=args.groups,
        group_size=args.group_size,
        tasks=range(len(environment["problems"])) if "problems" in environment else tasks,
        env_options=environment,
        branch_at=args.branch_at,
        sampling=sampling(args),
        max_tokens=args.max_tokens,
        slots=args.slots,
        engine=engine(args, weights="handed"),
    )


def _protocol(
    args: argparse.Namespace,
    method: Any,
    policy: Any,
    source: Any,
    environment: dict[str, Any],
    annotate: Any,
    options: Any,
) -> tuple[Path, dict[str, float | int]]:
    """The iterative protocol."""
    from polyturn.algorithms.protocols.iterate import iterate

    records = iterate(
        method,
        policy,
        source,
        out=args.out,
        iterations=args.iterations,
        collect=_collecting(args, source, environment),
        from_previous=args.from_previous,
        preference=annotate,
        reference=args.reference,
        epochs=args.epochs,
        batch_size=args.batch_size,
        options=options,
        trackers=args.tracker,
        seed=args.seed,
        progress=not args.quiet,
    )
    print("iteration  episodes  invalid  mean return of what was sampled  examples")
    for record in records[1:]:
        print(
            f"{record.number:9d}  {record.episodes:8d}  {record.invalid:7d}  {record.mean_return:31.3f}  "
            f"{record.examples:8d}"
        )
    print(f"the policies are in {args.out}/iteration-*/policy")
    last = records[-1]
    results = {"iterations": last.number, "mean return of what the last iteration sampled": last.mean_return}
    return args.out / last.policy, results


def _online(
    args: argparse.Namespace,
    method: Any,
    policy: Any,
    source: Any,
    environment: dict[str, Any],
    annotate: Any,
    options: Any,
) -> tuple[Path, dict[str, float | int]]:
    """Fresh groups at every update."""
    from polyturn.agents.transformer.adapters import has_adapters
    from polyturn.agents.transformer.mixture import MixtureAgent
    from polyturn.algorithms.feedback.reward_models import RewardModel
    from polyturn.algorithms.networks.value import ActorCritic
    from polyturn.algorithms.protocols.online import online
    from polyturn.algorithms.training.loop import train

    collecting, needs = _collecting(args, source, environment), method.needs
    # The models: what is trained, what it is anchored to, what acts, what it is compared with.
    kind, _, number = (args.opponent or "").partition(":")
    mixing = None if args.actor is None else _fraction("--actor", args.actor, ("mixture",))[1]
    # Of a policy with adapters `train` itself keeps what it was at the start, without a copy of its base.
    wanted = kind == "mixture" or mixing is not None or (needs.reference and not has_adapters(policy.model))
    anchor = _teacher(args, policy) if needs.teacher else policy.copy() if wanted else None
    trained, opponent = _opponent(kind, number, policy, anchor, collecting.acting)
    if needs.values:
        if trained is not policy:
            raise ValueError(f"train {args.method}: expected no --opponent average, got {args.opponent!r}")
        trained = ActorCritic(policy)
    rewarder = None if args.turn_reward is None else RewardModel.from_pretrained(args.turn_reward)
    # The groups, and the run.
    fresh = online(
        policy,
        source,
        preference=annotate,
        turn_reward=None if rewarder is None else lambda group: rewarder.turn_scores(list(group)),
        collect=collecting,
        opponent=opponent,
        actor=None
        if mixing is None or anchor is None
        else MixtureAgent(policy, anchor, beta=mixing, **collecting.acting),
        reuse=args.reuse,
        seed=args.seed,
    )
    result = train(
        method,
        trained,
        anchor,
        fresh,
        steps=args.online,
        options=options,
        out=args.out,
        resume=True,
        trackers=args.tracker,
        progress=not args.quiet,
    )
    policy.save_pretrained(args.out / "policy")
    last = result.history[-1].get("sample/return", float("nan"))
    print(f"{result.steps} steps, mean return {last:.3f} at the end; the policy is in {args.out / 'policy'}")
    return args.out / "policy", {"steps": result.steps, "mean return at the end": last}


def _opponent(kind: str, number: str, policy: Any, anchor: Any, acting: dict[str, Any]) -> tuple[Any, Any]:
    """What is trained, and the opponent it is compared with."""
    from polyturn.agents.transformer.mixture import MixtureAgent
    from polyturn.algorithms.networks.moving_average import MovingAverage

    if not kind:
        return policy, None
    _, value = _fraction("--opponent", f"{kind}:{number}", ("mixture", "average"))
    if kind == "mixture":
        return policy, MixtureAgent(policy, anchor, beta=value, **acting)
    tracked = MovingAverage(policy, decay=value)
    return tracked, tracked


def _fraction(option: str, text: str, kinds: tuple[str, ...]) -> tuple[str, float]:
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


def _with_adapters(policy: Any, rank: int, seed: int, existing: str | None = None) -> Any:
    """The policy with adapters to train; those that it has are continued unless something else is asked for."""
    return policy.with_adapters(rank, existing=existing or "continue", seed=seed)
