"""Commands of this floor: `polyturn new`, `envs`, `check-env`, `serve-env`, `runs` and `export`."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from polyturn.envs.viewing.terminal import write as _print
from polyturn.envs.viewing.text import printable

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
SERVE_HELP = """\
examples:
  polyturn serve-env polyturn/Guess-v0 -o high=10
  polyturn serve-env polyturn/ToolMath-v0 -o problems=gsm8k.jsonl --port 8000

OpenEnv's clients connect to the printed address; an action is {"message": "..."}. Needs openenv (pip install
openenv==0.10.0). --host other than this machine's own needs a key in POLYTURN_ENV_KEY. Ctrl-C ends it.
"""
NEW_HELP = """\
examples:
  polyturn new env word_games
  polyturn new method my_method --in ~/work

Writes a folder NAME with NAME.py, a test, a README whose commands work, pyproject.toml with the entry point by which
polyturn finds it, and a workflow for GitHub.
"""
RUNS_HELP = """\
examples:
  polyturn runs
  polyturn runs /data/experiments

Nothing is written. A run is "running" while a process holds its lock on this machine.
"""
EXPORT_HELP = """\
examples:
  polyturn export runs.jsonl --to parquet runs.parquet
  polyturn export runs.jsonl --to sft winners.jsonl --min-return 1
  polyturn export runs.jsonl --to dpo pairs.jsonl --pairs-per-group 4

--to dpo writes a pair as prompt, chosen and rejected messages. After the first turn these hold the environment's words
too: TRL's DPOTrainer counts all tokens of chosen and rejected as the policy's, the environment's included. Train on the
store itself (polyturn train), or on pairs of one turn, where only the agent's own words are to count.

parquet needs the extra "data":  pip install -e ".[data]" in the checkout, or "WHEEL[data]"
"""


def add_commands(subparsers: Any) -> None:
    """Adds this floor's commands to the parser of `polyturn`."""
    raw = argparse.RawDescriptionHelpFormatter

    envs = subparsers.add_parser("envs", help="list the environments", epilog=ENVS_HELP, formatter_class=raw)
    envs.set_defaults(run=_envs)

    new = subparsers.add_parser(
        "new",
        help="write a small package to begin with: env, agent, method or suite",
        epilog=NEW_HELP,
        formatter_class=raw,
    )
    new.add_argument("kind", choices=("env", "agent", "method", "suite"), help="what the package holds")
    new.add_argument("name", help="its name: small letters, digits and underscores")
    new.add_argument("--in", dest="place", type=Path, default=Path(), help="folder to make it in (default: here)")
    new.set_defaults(run=_new)

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

    serve = subparsers.add_parser(
        "serve-env", help="serve an environment to OpenEnv's clients", epilog=SERVE_HELP, formatter_class=raw
    )
    serve.add_argument("env_id", metavar="ENV_ID", help="id of the environment, or module:id")
    serve.add_argument(
        "-o", "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the environment; as above"
    )
    serve.add_argument("--host", default="127.0.0.1", help="interface to listen on (default 127.0.0.1: this machine)")
    serve.add_argument("--port", type=int, default=0, help="port to listen on (default: any free one)")
    serve.add_argument("--sessions", type=int, default=64, help="sessions at once (default 64)")
    serve.set_defaults(run=_serve_env)

    runs = subparsers.add_parser(
        "runs", help="list runs, their state and how to go on", epilog=RUNS_HELP, formatter_class=raw
    )
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="searched through (default runs)")
    runs.set_defaults(run=_runs)

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
    export.add_argument("--pairs-per-group", type=int, help="dpo: at most this many pairs of each group")
    export.add_argument("--skip-damaged", action="store_true", help="go on after damaged records")
    export.set_defaults(run=_export)


def _new(args: argparse.Namespace) -> int:
    from polyturn.envs.starting.new import new_package

    folder = new_package(args.kind, args.name, args.place)
    _print(f"{folder} is there; next:")
    _print(f"  cd {folder} && pip install -e . && pytest")
    return 0


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
        broken = {each.rule for each in violation.breaches}
        for each in violation.breaches:
            _print(f"{args.env_id} breaks the rule {printable(str(each.args[0]))}")
        for rule in RULES:
            if rule not in broken:
                _print(f"{'--' if rule in violation.unchecked else 'ok'}  {rule:<14} {RULES[rule]}")
        if violation.unchecked:
            _print(f"not checked because of that: {', '.join(violation.unchecked)}")
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


def _serve_env(args: argparse.Namespace) -> int:
    from polyturn.envs.adapters.openenv_server import EnvServer

    options = dict(parse_option(text) for text in args.option)
    # Options are bound first, so that none of them can pass for an argument of the server.
    if reserved := {"host", "port", "sessions", "idle_s", "max_message", "key"} & set(options):
        raise ValueError(f"serve-env: cannot pass the option {min(reserved)!r} from the command line; use EnvServer")
    key = os.environ.get("POLYTURN_ENV_KEY") or None
    with EnvServer(args.env_id, host=args.host, port=args.port, sessions=args.sessions, key=key, **options) as server:
        _print(f"listening at {server.url}")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()
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


def _runs(args: argparse.Namespace) -> int:
    from polyturn.envs.viewing.runs import list_runs

    found = list_runs(args.folder)
    if not found:
        _print(f"no runs under {printable(str(args.folder))}")
        return 0
    rows = [("run", "what", "state", "how far", "to go on")]
    rows += [(str(run.path), run.kind, run.state, run.progress, run.resume) for run in found]
    shown = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(len(rows[0]) - 1)]
    for row in shown:
        _print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())
    return 0


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
