"""Writes a book as a page that opens from the disk: one file, or a folder where it is large."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Literal

from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.store import Corrupt
from polyturn.envs.viewing.book import Book, Pieces, bind, compressed, sha256
from polyturn.envs.viewing.sources import find

Form = Literal["auto", "page", "folder"]
Mode = Literal["page", "folder", "server"]

LARGEST_PAGE = 60 * 2**20
"""Bytes up to which one file is written; browsers open that in seconds, and little of it is held in memory."""

_SCRIPTS = ("base.js", "text.js", "data.js", "list.js", "tokens.js", "episode.js", "group.js", "run.js", "main.js")
_NEEDS_SCRIPT = (
    "This page needs JavaScript. It loads nothing from a network. Without a browser: polyturn show STORE prints the "
    "same conversations."
)


def write_page(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    title: str | None = None,
    annotate: Annotator = by_return,
    pieces: Pieces | None = None,
    form: Form = "auto",
    corrupt: Corrupt = "raise",
    note: str = "",
) -> Path:
    """Writes a page about stores, runs and results that opens from the disk, without a server or a network.

    Args:
        paths: Stores, and folders of runs or results.
        out: The HTML file; in the form of a folder, side files go to the folder of its name with "-data" added.
        title: Heading; by default the first path.
        annotate: What compares the members of a group; the default compares returns.
        pieces: The text of tokens; without it their ids are shown.
        form: "page" writes one file, "folder" writes conversations to side files, "auto" takes one file up to
            `LARGEST_PAGE`.
        corrupt: What to do at a damaged record: "raise", or "skip" it with a warning.
        note: Text for the first view, a report for example.

    Returns:
        The HTML file.

    Raises:
        NothingToShow: A path holds nothing to look at.
        StoreError: A store cannot be read.
        OSError: The page cannot be written.
    """
    paths = [Path(path) for path in paths]
    book = bind(
        find(paths),
        title=title or ", ".join(map(str, paths[:3])),
        annotate=annotate,
        pieces=pieces,
        corrupt=corrupt,
        note=note,
    )
    try:
        return write_book(book, Path(out), form=form)
    finally:
        book.chunks.close()


def write_book(book: Book, out: Path, *, form: Form = "auto") -> Path:
    """Writes a book that has been bound; as `write_page`."""
    mode: Mode = ("page" if book.chunks.size * 4 / 3 <= LARGEST_PAGE else "folder") if form == "auto" else form
    side = out.with_name(f"{out.stem}-data")
    if mode == "folder":
        side.mkdir(parents=True, exist_ok=True)
        for number in range(len(book.chunks)):
            # The two names come from numbers and the text from base64, so nothing in it can end the script early.
            text = f'polyturnChunk({number},"{_base64(book.chunks[number])}");\n'
            (side / f"{number}.js").write_text(text, "ascii")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for part in html(book, mode, side.name if mode == "folder" else ""):
                file.write(part)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def html(book: Book, mode: Mode, side: str = "") -> Iterator[str]:
    """The page in pieces.

    The script stands before the conversations, so that the list appears before a browser has read all of them.
    """
    style, script = asset("viewer.css"), program()
    yield "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
    yield f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(style, script, mode))}">\n'
    yield '<meta name=viewport content="width=device-width, initial-scale=1">\n'
    yield "<meta name=referrer content=no-referrer>\n"
    yield f"<title>{escape(_one_line(book.title))}</title>\n<style>{style}</style>\n</head>\n"
    yield f'<body data-mode={mode} data-side="{escape(side)}">\n<noscript>{_NEEDS_SCRIPT}</noscript>\n'
    yield f"<script type=text/plain id=index>{_base64(compressed(book.index))}</script>\n"
    yield f"<script>{script}</script>\n"
    if mode == "page":
        for number in range(len(book.chunks)):
            yield f"<script type=text/plain id=chunk-{number}>{_base64(book.chunks[number])}</script>\n"
    yield "</body>\n</html>\n"


def policy_of(mode: Mode) -> str:
    """The content security policy of the page in a form."""
    return policy(asset("viewer.css"), program(), mode)


def policy(style: str, script: str, mode: Mode) -> str:
    """The page's content security policy: one script and one style by their hashes, pictures from the page itself."""
    scripts = sha256(script) + (" 'strict-dynamic'" if mode == "folder" else "")
    rules = [
        "default-src 'none'",
        f"script-src {scripts}",
        f"style-src {sha256(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*rules, *(["connect-src 'self'"] if mode == "server" else [])])


def program() -> str:
    """The page's one script."""
    parts = "\n".join(asset(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


def asset(name: str) -> str:
    """A file that belongs to the page."""
    return (files("polyturn.envs.viewing") / "assets" / name).read_text("utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _one_line(text: str) -> str:
    from polyturn.envs.viewing.text import printable

    return " ".join(printable(text).split())
