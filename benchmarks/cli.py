"""Commands of this floor: `polyturn bench`, `quickstart`, `compare` and `leaderboard`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyturn.agents.cli import no_loading_bars
from polyturn.benchmarks.comparing.commands import add_comparing
from polyturn.envs.viewing.text import printable

if TYPE_CHECKING:
    from polyturn.benchmarks.running.suite import Suite

BENCH_HELP = """\
examples:
  polyturn bench                           list the suites
  polyturn bench tool_math --quick
  polyturn bench tool_math --seeds 3 --out runs/tool_math
  polyturn bench education --seeds 3 --jobs 2
  polyturn bench education --model my/model     on a GPU
  polyturn bench acme.suites:SUITE         your own suite, by module:attribute
  polyturn bench nash --render --out benchmarks/results/nash     the report again, from saved results

Writes results.json, report.md and plots into --out. An interrupted run goes on where it stopped: run it again.
Cells made by other code are named, with what changed: the suite's modules, and what they import of its package and of
polyturn.
Your own suites register through the entry-point group "polyturn.benchmarks".
"""
QUICKSTART_HELP = """\
examples:
  polyturn quickstart
  polyturn quickstart --out runs/again --seed 1 --sandbox local

Running it again goes on with what is in --out.
"""


def add_commands(subparsers: Any) -> None:
    """Adds this floor's commands to the parser of `polyturn`."""
    raw = argparse.RawDescriptionHelpFormatter
    add_comparing(subparsers)
    bench = subparsers.add_parser(
        "bench", help="run a benchmark suite over seeds and report it", epilog=BENCH_HELP, formatter_class=raw
    )
    bench.add_argument("name", nargs="?", help="the suite; without one the suites are listed")
    bench.add_argument("--quick", action="store_true", help="a small form; its figures support no claim")
    bench.add_argument("--seeds", type=int, help="how many seeds (default: the suite's own; 1 with --quick)")
    bench.add_argument("--jobs", type=int, default=1, help="cells at once, where the suite allows it (default 1)")
    bench.add_argument("--model", help="folder or Hub id of a policy to start from, for suites that take one")
    bench.add_argument("--out", type=Path, help="folder for the results (default runs/bench/NAME)")
    bench.add_argument("--quiet", action="store_true", help="no progress bar")
    bench.add_argument(
        "--render", action="store_true", help="only write report.md and the pictures again, from results.json in --out"
    )
    bench.set_defaults(run=_bench)

    quickstart = subparsers.add_parser(
        "quickstart",
        help="the main job in three minutes: SFT, then three preference iterations, then a table",
        epilog=QUICKSTART_HELP,
        formatter_class=raw,
    )
    quickstart.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder (default runs/quickstart)"
    )
    quickstart.add_argument("--seed", type=int, default=0, help="fixes everything (default 0)")
    quickstart.add_argument("--sandbox", default="auto", help="auto, docker or local (default auto)")
    quickstart.add_argument("--quick", action="store_true", help="a tiny form that only shows that everything runs")
    quickstart.add_argument("--quiet", action="store_true", help="no progress bars")
    quickstart.set_defaults(run=_quickstart)


def _bench(args: argparse.Namespace) -> int:
    from polyturn.benchmarks.running.suite import load, names, run_suite

    if args.name is None:
        for name in sorted(names()):
            print(printable(f"{name:<20} {_summary(name)}"))
        return 0
    suite = load(args.name)
    no_loading_bars()
    out = args.out or Path("runs/bench") / suite.name
    if args.render:
        return _render(suite, out, args)
    try:
        run_suite(
            suite,
            out,
            quick=args.quick,
            seeds=args.seeds,
            jobs=args.jobs,
            model=args.model,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run the same command again to go on with {out}") from None
    print(printable((out / "report.md").read_text("utf-8")))
    print(f"results in {out}")
    return 0


def _summary(name: str) -> str:
    """What a suite measures; one that is broken must not hide the others."""
    from polyturn.benchmarks.running.suite import load

    try:
        return " ".join(str(load(name).summary).split())
    except Exception as error:
        return " ".join(f"(cannot be used: {type(error).__name__}: {error})".split())


def _render(suite: Suite, out: Path, args: argparse.Namespace) -> int:
    from polyturn.benchmarks.running.rendering import render
    from polyturn.benchmarks.running.suite import SuiteError

    given = {"--quick": args.quick, "--seeds": args.seeds, "--jobs": args.jobs != 1, "--model": args.model}
    for option, value in given.items():
        if value:
            raise SuiteError(f"expected --render without {option}: it runs nothing, the results are those in {out}")
    print(printable(render(suite, out)))
    return 0


def _quickstart(args: argparse.Namespace) -> int:
    from polyturn.benchmarks.quickstart import quickstart

    no_loading_bars()
    try:
        quickstart(args.out, seed=args.seed, sandbox=args.sandbox, quick=args.quick, progress=not args.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"run the same command again to go on with {args.out}") from None
    return 0
