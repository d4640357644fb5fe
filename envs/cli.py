"""Commands of this floor: `polyturn envs`, `check-env`, `show` and `export`."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any

from polyturn.envs.viewing.text import printable, roles

if TYPE_CHECKING:
    from polyturn.envs.trajectory import Trajectory

ENVS_HELP = """\
examples:
  polyturn envs
"""
CHECK_HELP = """\
examples:
  polyturn check-env polyturn/Guess-v0
  polyturn check-env polyturn/Guess-v0 -o high=10 -o turns=3
  polyturn check-env polyturn/ToolMath-v0 -o sandbox=local -a $'```python\\nprint(1)\\n```' -a '\\boxed{1}'
  polyturn check-env acme.haggle:acme/Haggle-v0      imports acme.haggle first

exit code 0: every rule holds; 1: a rule is broken, and the output says which and what to do.
"""
SHOW_HELP = """\
examples:
  polyturn show runs.jsonl
  polyturn show runs.jsonl --limit 3 --start 100
  polyturn show runs.jsonl --skip-damaged --limit 0 | less

Text is shown as it is; control, formatting and unassigned characters appear as escapes such as \\x1b.
"""
EXPORT_HELP = """\
examples:
  polyturn export runs.jsonl --to parquet runs.parquet
  polyturn export runs.jsonl --to sft winners.jsonl --min-return 1
  polyturn export runs.jsonl --to dpo pairs.jsonl --pairs-per-group 4

parquet needs the extra "data":  pip install -e ".[data]" in the checkout, or "WHEEL[data]"
"""


def add_commands(subparsers: Any) -> None:
    """Adds this floor's commands to the parser of `polyturn`."""
    raw = argparse.RawDescriptionHelpFormatter

    envs = subparsers.add_parser("envs", help="list the environments", epilog=ENVS_HELP, formatter_class=raw)
    envs.set_defaults(run=_envs)

    check = subparsers.add_parser(
        "check-env",
        help="hold an environment to the contract of multi-turn text environments",
        epilog=CHECK_HELP,
        formatter_class=raw,
    )
    check.add_argument("env_id", metavar="ENV_ID", help="id of the environment, or module:id")
    check.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the environment; VALUE is JSON, or else text (may be repeated)",
    )
    check.add_argument(
        "-a",
        "--action",
        action="append",
        default=[],
        metavar="TEXT",
        help="plausible actions, drawn at random, so that episodes get far (may be repeated)",
    )
    check.add_argument(
        "--max-turns", type=int, default=100, help="turns within which an episode must end (default 100)"
    )
    check.set_defaults(run=_check_env)

    show = subparsers.add_parser(
        "show", help="print stored trajectories for a person to read", epilog=SHOW_HELP, formatter_class=raw
    )
    show.add_argument("store", metavar="STORE", help="a file of trajectories")
    show.add_argument("--start", type=int, default=1, metavar="N", help="first trajectory to show (default 1)")
    show.add_argument("--limit", type=int, default=10, metavar="N", help="how many to show; 0 for all (default 10)")
    show.add_argument("--skip-damaged", action="store_true", help="go on behind damaged records")
    show.set_defaults(run=_show)

    export = subparsers.add_parser(
        "export",
        help="write stored trajectories as Parquet or chat messages",
        epilog=EXPORT_HELP,
        formatter_class=raw,
    )
    export.add_argument("store", metavar="STORE", help="a file of trajectories")
    export.add_argument("--to", required=True, choices=("parquet", "sft", "dpo"), help="format of the output")
    export.add_argument("out", metavar="OUT", help="the new file")
    export.add_argument("--min-return", type=float, help="sft: only trajectories with at least this total reward")
    export.add_argument("--pairs-per-group", type=int, help="dpo: at most so many pairs of each group")
    export.add_argument("--skip-damaged", action="store_true", help="go on behind damaged records")
    export.set_defaults(run=_export)


def _envs(args: argparse.Namespace) -> int:
    from polyturn.envs.registration import creator, env_spec, registered

    rows = []
    for env_id in registered():
        try:
            summary = (inspect.getdoc(creator(env_spec(env_id))) or "").partition("\n")[0]
        except Exception as error:  # one broken plug-in must not hide the others
            summary = f"(cannot be imported: {type(error).__name__}: {error})"
        rows.append((env_id, summary))
    width = max(len(env_id) for env_id, _ in rows)
    for env_id, summary in rows:
        _print(f"{env_id:<{width}}  {printable(summary)}")
    return 0


def _check_env(args: argparse.Namespace) -> int:
    from polyturn.envs.checking.checker import check_text_env
    from polyturn.envs.checking.contract import RULES, Agent, ContractViolation

    options = dict(parse_option(text) for text in args.option)
    # Options are bound first, so that none of them can pass for an argument of the check.
    if reserved := {"env", "actions", "seeds", "max_turns"} & set(options):
        raise ValueError(
            f"check-env: cannot pass the option {min(reserved)!r} from the command line; call check_text_env with a "
            "function that makes the environment"
        )
    texts: list[str] = args.action
    actions: Agent | None = (lambda rng, _: texts[int(rng.integers(len(texts)))]) if texts else None
    try:
        report = check_text_env(args.env_id, actions=actions, max_turns=args.max_turns, **options)
    except ContractViolation as violation:
        _print(f"{args.env_id} breaks the rule {printable(str(violation))}")
        return 1
    for rule in report.rules:
        _print(f"ok  {rule:<14} {RULES[rule]}")
    _print(
        f"{report.name} holds all {len(report.rules)} rules "
        f"({report.episodes} episodes, {report.turns} turns, the longest episode {report.longest})"
    )
    if report.longest == 1:
        _print("note: every episode ended after one turn; give plausible actions (--action) to check later ones")
    return 0


def parse_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE of the command line; VALUE is JSON, or else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--option: expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _show(args: argparse.Namespace) -> int:
    from polyturn.envs.store import read

    if args.start < 1 or args.limit < 0:
        raise ValueError(f"show: expected --start >= 1 and --limit >= 0, got {args.start} and {args.limit}")
    stop = args.start - 1 + args.limit if args.limit else None
    stored = read(args.store, corrupt="skip" if args.skip_damaged else "raise")
    number = 0
    for number, trajectory in enumerate(itertools.islice(stored, args.start - 1, stop), args.start):
        print_trajectory(trajectory, number)
    if number == 0:
        _print(f"no trajectory from number {args.start} on in {printable(args.store)}")
    return 0


def print_trajectory(trajectory: Trajectory, number: int) -> None:
    """Prints a trajectory for a person to read, each turn under the name of who spoke."""
    end = "terminated" if trajectory.terminated else "truncated" if trajectory.truncated else "not ended"
    facts = [
        f"seed {trajectory.seed}",
        f"member {trajectory.member}",
        f"task {trajectory.task_id}" if trajectory.task_id else "",
        " ".join(part for part in (trajectory.agent, trajectory.policy_version) if part),
        f"return {trajectory.total_reward:g}" if trajectory.valid else "INVALID",
        end,
    ]
    _print(printable(f"=== {number}: {trajectory.env_id}, {', '.join(fact for fact in facts if fact)}"))
    env, agent = roles(trajectory)
    for turn in trajectory.turns:
        _block(env, turn.observation)
        _block(agent, turn.action)
        if turn.reward:
            _print(f"  reward: {turn.reward:g}")
    if trajectory.final_observation:
        _block(env, trajectory.final_observation)
    if trajectory.error is not None:
        _block("error", trajectory.error)
    _print("")


def _export(args: argparse.Namespace) -> int:
    from polyturn.envs.export import export_dpo, export_parquet, export_sft

    if args.min_return is not None and args.to != "sft":
        raise ValueError(f"export: --min-return belongs to --to sft, got --to {args.to}")
    if args.pairs_per_group is not None and args.to != "dpo":
        raise ValueError(f"export: --pairs-per-group belongs to --to dpo, got --to {args.to}")
    corrupt: Any = "skip" if args.skip_damaged else "raise"
    if args.to == "parquet":
        count = export_parquet(args.store, args.out, corrupt=corrupt)
    elif args.to == "sft":
        count = export_sft(args.store, args.out, min_return=args.min_return, corrupt=corrupt)
    else:
        count = export_dpo(args.store, args.out, pairs_per_group=args.pairs_per_group, corrupt=corrupt)
    _print(f"wrote {count} {'row' if count == 1 else 'rows'} to {printable(args.out)}")
    return 0


def _block(agent_id: str, text: str) -> None:
    for place, line in enumerate(printable(text).split("\n")):
        _print(f"{agent_id if place == 0 else '':>7} | {line}")


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
