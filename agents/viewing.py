"""`polyturn view` and `polyturn show`: stores, runs and results in a browser, trajectories in a terminal."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyturn.envs.preference import Annotator
    from polyturn.envs.viewing.book import Pieces

SHOW_HELP = """\
examples:
  polyturn show runs.jsonl
  polyturn show runs.jsonl --limit 3 --start 100
  polyturn show runs.jsonl --tokens --tokenizer runs/sft/policy
  polyturn show runs.jsonl --skip-damaged --limit 0 | less

Text is shown as it is, in colour on a terminal (NO_COLOR=1 or --color never: without). Control, formatting and
unassigned characters appear as escapes such as \\x1b.
"""
VIEW_HELP = """\
examples:
  polyturn view runs.jsonl
  polyturn view runs/mdpo --out mdpo.html
  polyturn view before.jsonl after.jsonl --tokenizer runs/sft/policy
  polyturn view benchmarks/results
  polyturn view runs/mdpo --serve        follows the run; Ctrl-C ends it

The page opens from the disk, without a server or a network: send it to others as it is. Tokens are shown as text where
a run's folder holds one tokenizer, or --tokenizer names one. Keys: ? in the page lists them.
"""


def add_view(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    view = subparsers.add_parser(
        "view",
        help="write a page of stored trajectories, runs and results for a browser",
        epilog=VIEW_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    view.add_argument("paths", metavar="PATH", nargs="+", help="a store, or the folder of a run or of results")
    view.add_argument(
        "--out", type=Path, default=Path("view.html"), help="the page (default view.html); an existing one is replaced"
    )
    view.add_argument("--title", help="heading (default: the paths)")
    view.add_argument("--tokenizer", metavar="FOLDER", help="folder with tokenizer.json: tokens are shown as text")
    view.add_argument(
        "--preference",
        metavar="MODULE:ATTRIBUTE",
        help="what compares the members of a group: a function from a Group to a Preference (default: the return)",
    )
    view.add_argument(
        "--form",
        choices=("auto", "page", "folder"),
        default="auto",
        help="one file, or side files for large stores (default auto: one file up to 60 MB)",
    )
    view.add_argument("--skip-damaged", action="store_true", help="go on after damaged records")
    view.add_argument("--open", action="store_true", help="open the page in the browser")
    view.add_argument("--serve", action="store_true", help="serve it to this machine and follow what is written")
    view.add_argument("--port", type=int, default=0, help="of --serve (default: a free one)")
    view.set_defaults(run=_view)


def add_show(subparsers: Any) -> None:
    """Adds the command to the parser of `polyturn`."""
    show = subparsers.add_parser(
        "show",
        help="print stored trajectories for a person to read",
        epilog=SHOW_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("store", metavar="STORE", help="a file of trajectories")
    show.add_argument("--start", type=int, default=1, metavar="N", help="first trajectory to show (default 1)")
    show.add_argument("--limit", type=int, default=10, metavar="N", help="how many to show; 0 for all (default 10)")
    show.add_argument("--tokens", action="store_true", help="tokens of every turn, the agent's with their log-probs")
    show.add_argument("--tokenizer", metavar="FOLDER", help="folder with tokenizer.json: --tokens shows text")
    show.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default auto")
    show.add_argument("--skip-damaged", action="store_true", help="go on behind damaged records")
    show.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> int:
    from polyturn.envs.store import read
    from polyturn.envs.viewing.terminal import print_trajectory, wants_colour, write
    from polyturn.envs.viewing.text import printable

    if args.start < 1 or args.limit < 0:
        raise ValueError(f"show: expected --start >= 1 and --limit >= 0, got {args.start} and {args.limit}")
    if args.tokenizer is not None and not args.tokens:
        raise ValueError(f"show: --tokenizer belongs to --tokens, got --tokenizer {args.tokenizer} without it")
    pieces = None if args.tokenizer is None else tokenizer_pieces(args.tokenizer)
    colour = wants_colour(args.color, sys.stdout)
    stop = args.start - 1 + args.limit if args.limit else None
    stored = read(args.store, corrupt="skip" if args.skip_damaged else "raise")
    number = 0
    for number, trajectory in enumerate(itertools.islice(stored, args.start - 1, stop), args.start):
        print_trajectory(trajectory, number, colour=colour, tokens=args.tokens, pieces=pieces)
    if number == 0:
        write(f"no trajectory from number {args.start} on in {printable(args.store)}")
    return 0


def _view(args: argparse.Namespace) -> int:
    from polyturn.envs.viewing.page import write_page
    from polyturn.envs.viewing.serving import ViewServer
    from polyturn.envs.viewing.text import printable

    if args.port and not args.serve:
        raise ValueError(f"view: --port belongs to --serve, got --port {args.port} without it")
    if not 0 <= args.port < 65536:
        raise ValueError(f"view: expected --port from 0 to 65535, got {args.port}")
    title = args.title or ", ".join(args.paths[:3])
    pieces = _pieces(args.paths, args.tokenizer)
    shown: dict[str, Any] = {"pieces": pieces, "corrupt": "skip" if args.skip_damaged else "raise"}
    if args.preference is not None:
        shown["annotate"] = annotator(args.preference)
    if not args.serve:
        page = write_page(args.paths, args.out, title=title, form=args.form, **shown)
        print(f"wrote {printable(str(page))} ({_size(page)})")
        if args.open:
            webbrowser.open(page.absolute().as_uri())
        return 0
    server = ViewServer(args.paths, title=title, port=args.port, **shown)
    print(f"{server.url}\nCtrl-C ends it", flush=True)
    if args.open:
        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        return 0
    finally:
        server.release()
    return 0


def annotator(name: str) -> Annotator:
    """The function named MODULE:ATTRIBUTE, from a group to its preference.

    Raises:
        ValueError: The name has another form, or what it names cannot be called.
    """
    from importlib import import_module

    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"--preference: expected MODULE:ATTRIBUTE, got {name!r}")
    found = getattr(import_module(module), attribute, None)
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ValueError(f"--preference: expected a function from a Group to a Preference at {name!r}, got {found!r}")
    return found  # type: ignore[no-any-return]


def tokenizer_pieces(folder: str | os.PathLike[str]) -> Pieces:
    """The text of tokens under the tokenizer in a folder.

    A token that is no text by itself, such as half of a character, is shown as its vocabulary spells it.

    Raises:
        FileNotFoundError: The folder has no `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    file = Path(folder)
    file = file if file.name == "tokenizer.json" else file / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(2, "No such tokenizer", str(file))
    tokenizer = Tokenizer.from_file(str(file))
    added = tokenizer.get_added_tokens_decoder()

    def pieces(ids: Sequence[int]) -> list[tuple[str, bool]]:
        found = []
        for number in ids:
            special = number in added and bool(added[number].special)
            spelled = tokenizer.id_to_token(number) if number >= 0 else None
            if spelled is None:  # beyond the vocabulary: another tokenizer's, or a model's padding
                found.append(("", False))
                continue
            text = "" if special else tokenizer.decode([number], skip_special_tokens=False)
            if not text or "\ufffd" in text:
                text = spelled
            found.append((text, special))
        return found

    return pieces


def _pieces(paths: Sequence[str], named: str | None) -> Pieces | None:
    """The tokenizer that was named, or the one that the runs were sampled with where all of them have the same."""
    from polyturn.envs.files import digest

    if named is not None:
        return tokenizer_pieces(named)
    found = {
        digest(file): file
        for path in map(Path, paths)
        if path.is_dir()
        for file in sorted(path.rglob("policy/tokenizer.json"))
    }
    if len(found) > 1:
        print(
            f"view: {len(found)} different tokenizers; tokens are shown as ids (name one: --tokenizer)", file=sys.stderr
        )
        return None
    return tokenizer_pieces(next(iter(found.values()))) if found else None


def _size(page: Path) -> str:
    text = f"{page.stat().st_size / 1e6:.1f} MB"
    with page.open(encoding="utf-8") as file:
        beside = any(line.startswith("<body data-mode=folder") for line in file)
    return f"{text}; conversations in {page.stem}-data, keep it in the folder of the page" if beside else text
