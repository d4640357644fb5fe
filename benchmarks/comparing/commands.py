"""`polyturn compare` and `polyturn leaderboard`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

COMPARE_HELP = """\
examples:
  polyturn compare runs/q/mdpo/held-out/sft.jsonl runs/q/mdpo/held-out/iteration-3.jsonl
  polyturn compare a.jsonl b.jsonl c.jsonl --measure return --page compare.html
  polyturn compare benchmarks/results/nash runs/bench/nash

Stores are paired over the starts that all of them have (environment, options, seed, task), results of a suite over
cells and seeds. Evaluate policies with the same --seed and problems, and --out, to get such stores.
"""
LEADERBOARD_HELP = """\
examples:
  polyturn leaderboard
  polyturn leaderboard runs/bench --out mine.html

Every figure stands with the command, seeds, versions and machine that it came from.
"""


def add_comparing(subparsers: Any) -> None:
    """Adds the commands to the parser of `polyturn`."""
    raw = argparse.RawDescriptionHelpFormatter
    compare = subparsers.add_parser(
        "compare",
        help="compare policies, runs or results, paired over tasks and seeds",
        epilog=COMPARE_HELP,
        formatter_class=raw,
    )
    compare.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="two or three stores, or results")
    compare.add_argument(
        "--measure",
        choices=("success", "return"),
        help="of episodes (default: success where the environment says what it is, else return)",
    )
    compare.add_argument("--tasks", type=int, default=20, help="rows of the per-task table (default 20)")
    compare.add_argument("--page", type=Path, help="write the viewer's page of the stores; the table links into it")
    compare.set_defaults(run=_compare)

    board = subparsers.add_parser(
        "leaderboard",
        help="write a page of committed benchmark results",
        epilog=LEADERBOARD_HELP,
        formatter_class=raw,
    )
    board.add_argument(
        "folder", type=Path, nargs="?", default=Path("benchmarks/results"), help="default benchmarks/results"
    )
    board.add_argument("--out", type=Path, default=Path("leaderboard.html"), help="default leaderboard.html")
    board.set_defaults(run=_leaderboard)


def _compare(args: argparse.Namespace) -> int:
    from polyturn.benchmarks.comparing.report import comparison, figures_table
    from polyturn.benchmarks.comparing.sides import NotComparable, episodes, figures, stores_of
    from polyturn.envs.viewing.page import write_page

    paths: list[Path] = args.paths
    if not 2 <= len(paths) <= 3:
        raise NotComparable(f"compare: expected two or three paths, got {len(paths)}")
    if args.tasks < 0:
        raise NotComparable(f"compare: expected --tasks >= 0, got {args.tasks}")
    if all(path.name == "results.json" or (path / "results.json").is_file() for path in paths):
        if args.measure or args.page:
            raise NotComparable("compare: --measure and --page belong to stores of episodes, got results")
        print(figures_table(figures(paths)))
        return 0
    sides = episodes(paths, args.measure)
    text = comparison(sides, page=None if args.page is None else args.page.name, tasks=args.tasks)
    print(text, end="")
    if args.page is not None:
        title = " and ".join(side.name for side in sides.sides)
        print(f"\nwrote {write_page(stores_of(paths), args.page, title=title, note=text)}")
    return 0


def _leaderboard(args: argparse.Namespace) -> int:
    from polyturn.envs.viewing.book import bind
    from polyturn.envs.viewing.page import write_book
    from polyturn.envs.viewing.sources import Found, NothingToShow, find

    results = find([args.folder]).results
    if not results:
        raise NothingToShow(f"{args.folder}: expected results of suites, found none; polyturn bench --out writes them")
    book = bind(Found((), (), results), title=f"Results of {len(results)} suites")
    print(f"wrote {write_book(book, args.out)}")
    book.chunks.close()
    return 0
