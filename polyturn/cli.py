"""The command `polyturn`: finds the floor that owns a command, runs it, and turns what goes wrong into one line.

Exit codes:
    0    done.
    1    failed: files, network, sandbox, a bug.
    2    wrong use: an unknown command or option, a bad value.
    130  Ctrl-C. A command that can go on later raises `KeyboardInterrupt("how to resume")`; the text is printed.
    141  the reader of standard output went away (`polyturn envs | head`).
    143  SIGTERM, which stops a command as Ctrl-C does: what can be saved is saved, and what is open is closed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from polyturn import __version__

if TYPE_CHECKING:
    from polyturn.sandbox.stopping import SigtermAsCtrlC

# One line a command, here and not in the floors, so that `polyturn --help` and `polyturn sandbox` load no torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("benchmarks", "the main job in three minutes: SFT, then three preference iterations, then a table"),
    "train": ("algorithms", "train a policy with a preference method"),
    "eval": ("algorithms", "measure a policy: mean return, success, turns, tool errors, with intervals"),
    "fit": ("algorithms", "fit a reward or preference model to comparisons"),
    "weigh": ("algorithms", "add to a store what a method trains on: log-ratio and weight in the loss of every token"),
    "rollout": ("agents", "collect trajectories of an agent in an environment"),
    "serve": ("agents", "answer agent programs over HTTP; each run of a program becomes a trajectory"),
    "compare": ("benchmarks", "compare policies, runs or results, paired over tasks and seeds"),
    "leaderboard": ("benchmarks", "write a page of committed benchmark results"),
    "bench": ("benchmarks", "run a benchmark suite over seeds and report it"),
    "new": ("envs", "write a small package to begin with: env, agent, method or suite"),
    "envs": ("envs", "list the environments"),
    "check-env": ("envs", "hold an environment to the contract of multi-turn text environments"),
    "serve-env": ("envs", "serve an environment to OpenEnv's clients"),
    "view": ("agents", "write a page of stored trajectories, runs and results for a browser"),
    "runs": ("envs", "list runs, their state and how to go on"),
    "show": ("agents", "print stored trajectories for a person to read"),
    "push": ("agents", "upload a policy or stored trajectories to the Hugging Face Hub"),
    "export": ("envs", "write stored trajectories as Parquet or chat messages"),
    "sandbox": ("sandbox", "build, check and try the place where model-written code runs"),
}

_EXAMPLES = """\
examples:
  polyturn quickstart
  polyturn envs
  polyturn train --help

POLYTURN_DEBUG=1 (or --debug before the command) shows whole tracebacks."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line with a suggestion; subparsers inherit it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # An abbreviation that works today is ambiguous after the next option is added.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.set_defaults(_parser=self)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"polyturn: error: {_one_line(message)} (see '{self.prog} --help')\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
        self.error(
            f"unknown {what or action.dest} {value!r}.{_near(str(value), choices)} Choose from {', '.join(choices)}."
        )

    def reject(self, extra: Sequence[str]) -> NoReturn:
        """Refuses unknown arguments."""
        word = extra[0].partition("=")[0]
        if word.startswith("-"):
            self.error(f"unknown option {word!r}.{_near(word, self._option_string_actions)}")
        self.error(f"unexpected argument {word!r}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; `run` of the result executes it.

    Raises:
        SystemExit: Wrong use (2), or `--help` and `--version` were answered (0).
    """
    parser = _Parser(
        prog="polyturn",
        description="Multi-turn agents trained from preferences over whole trajectories.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"polyturn {__version__}")
    parser.add_argument("--debug", action="store_true", help="show whole tracebacks")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    command = next((word for word in argv if not word.startswith("-")), None)
    floor = COMMANDS[command][0] if command in COMMANDS else None
    if floor is not None:
        import_module(f"polyturn.{floor}.cli").add_commands(subparsers)
    for name, (owner, summary) in COMMANDS.items():
        if owner != floor:
            subparsers.add_parser(name, help=summary)

    args, extra = parser.parse_known_args(argv)
    chosen: _Parser = args.__dict__.pop("_parser")
    if extra:
        chosen.reject(extra)
    if not hasattr(args, "run"):
        chosen.print_help(sys.stderr)
        raise SystemExit(2)
    return args


def wait_asleep() -> None:
    """Lets the threads of matrix products sleep while they wait for each other; to be called before torch is loaded.

    By default they spin. Beside a busy program, whose core they wait for, a training step then takes 3 to 12 times as
    long; asleep it takes twice as long there, and a tenth longer on a quiet machine. What the user has set stands.
    """
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        return
    # OpenMP's own setting, and those of the two libraries that torch is built with, which know more exactly.
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def quiet_libraries() -> None:
    """Keeps off the terminal what optional libraries say, on import, of kernels for hardware that is not there."""
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    wait_asleep()
    quiet_libraries()
    debug = os.environ.get("POLYTURN_DEBUG", "0") not in ("", "0")
    stop = None
    try:
        try:
            with _sigterm_as_ctrl_c() as stop:
                args = parse(argv)
                debug = debug or args.debug
                code: int = args.run(args)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        what, code = ("terminated", 143) if stop is not None and stop.received else ("interrupted", 130)
        return _say(what + (f": {interrupt}" if str(interrupt) else ""), code)
    except BrokenPipeError:
        # Python flushes standard output once more at exit and would print a second complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error, debug)


def _report(error: Exception, debug: bool) -> int:
    """Prints one line about an error and returns the exit code it deserves."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError) or type(error).__module__ == "gymnasium.error":
        return _say(f"error: {text}", 2)
    ours = type(error).__module__.partition(".")[0] == "polyturn"
    if ours or isinstance(error, OSError | ImportError):
        return _say(f"error: {text}", 1)
    # Unexpected: one line would lose what a bug report needs after hours of training.
    where = "" if debug else f" The traceback is in {_keep_traceback()}."
    return _say(f"error: unexpected {type(error).__name__}: {text}.{where}", 1)


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="polyturn-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[SigtermAsCtrlC | None]:
    """Lets SIGTERM do what Ctrl-C does, so that files are whole and containers closed before the process ends."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield None
        return
    from polyturn.sandbox.stopping import SigtermAsCtrlC

    handler = SigtermAsCtrlC()
    signal.signal(signal.SIGTERM, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(text: str, code: int) -> int:
    line = f"polyturn: {_one_line(text)}"
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    """One line that cannot drive a terminal: servers, models and files write a part of what goes wrong."""
    from polyturn.envs.viewing.text import printable  # only an error pays for importing the floor below

    return printable(" ".join(text.split()))


def _near(word: str, choices: Iterable[str]) -> str:
    # Only an error pays for importing the floor below.
    from polyturn.envs.suggest import did_you_mean

    return did_you_mean(word, choices)
