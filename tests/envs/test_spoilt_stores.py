"""Stores that another program has changed: what happened to them is said in words, with a remedy."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from polyturn.cli import main
from polyturn.envs.store import NotAStore, Store, read
from polyturn.envs.trajectory import Trajectory, Turn

Change = Callable[[bytes], bytes]


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.jsonl"
    with Store(path) as store:
        for seed in range(3):
            store.append(Trajectory("E", seed, (Turn("o", "a", 1.0),), terminated=True))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.replace(b"\n", b"\r\n"), "line ends were changed to CRLF"),
        (lambda raw: b"\xef\xbb\xbf" + raw, "a byte order mark before its header"),
        (gzip.compress, "compressed; decompress it first"),
        (lambda raw: b"<html>", "got a file that begins with"),
        (lambda raw: raw[raw.index(b"\n") + 1 :], "expected a store of trajectories"),
        (lambda raw: raw.decode().encode("utf-16"), "expected a store of trajectories"),
    ],
    ids=["crlf", "bom", "gzip", "html", "no header", "utf-16"],
)
def test_what_happened_to_a_store_is_named(
    change: Change, words: str, written: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never "expected schema 1, got schema 1": by reading, by appending, and on one line of the command."""
    path = tmp_path / "spoilt.jsonl"
    path.write_bytes(change(written))
    with pytest.raises(NotAStore, match=words):
        list(read(path))
    with pytest.raises(NotAStore, match=words):
        Store(path).__enter__()
    assert main(["show", str(path)]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert line.isprintable()


def test_two_stores_joined_are_one(written: bytes, tmp_path: Path) -> None:
    """As `cat a b > c` makes: the second header in the middle is no record, and more can be appended."""
    path = tmp_path / "joined.jsonl"
    path.write_bytes(written + written)
    assert [each.seed for each in read(path)] == [0, 1, 2] * 2
    with Store(path) as store:
        store.append(Trajectory("E", 9, (Turn("o", "a", 1.0),), terminated=True))
    assert [each.seed for each in read(path)] == [*[0, 1, 2] * 2, 9]


@pytest.mark.parametrize("action", [None, b"bytes", 3, ["list"]])
def test_an_action_that_is_no_text_is_refused_by_name(action: object) -> None:
    with pytest.raises(ValueError, match=r"Turn\.action: expected text"):
        Turn("o", action)  # type: ignore[arg-type]
