"""`polyturn view` as it is typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import shown

from polyturn import cli
from polyturn.agents.viewing import annotator, tokenizer_pieces
from polyturn.envs.preference import by_return


def test_it_writes_a_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["view", str(shown.ordinary(tmp_path / "s.jsonl")), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} (0.")
    assert out.read_text().startswith("<!doctype html>")


def test_side_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    command = ["view", str(shown.ordinary(tmp_path / "s.jsonl")), "--out", str(out), "--form", "folder"]
    assert cli.main(command) == 0
    assert "conversations in page-data, keep it in the folder of the page" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--port", "8000"], 2, "--port belongs to --serve"),
        (["--serve", "--port", "70000"], 2, "from 0 to 65535"),
        (["--preference", "by_return"], 2, "expected MODULE:ATTRIBUTE, got 'by_return'"),
        (["--preference", "polyturn.envs:nothing"], 2, "expected a function from a Group to a Preference"),
        (["--tokenizer", "/nowhere"], 1, "/nowhere/tokenizer.json: No such tokenizer"),
    ],
)
def test_wrong_use_is_one_line(
    more: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["view", str(shown.ordinary(tmp_path / "s.jsonl")), "--out", str(tmp_path / "o.html"), *more]) == code
    )
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.html").exists()


def test_a_preference_by_name() -> None:
    assert annotator("polyturn.envs:by_return") is by_return


def test_tokens_as_text(tmp_path: Path) -> None:
    """A special token is marked; an id beyond the vocabulary has no text and stops nothing."""
    pieces = tokenizer_pieces(shown.tokenizer(tmp_path / "t"))
    assert pieces([0, 1, 4, 7, 99, -5]) == [
        ("<|end|>", True), ("\n", False), (" pulls", False), ("\u202e", False), ("", False), ("", False),
    ]  # fmt: skip


def test_runs_with_different_tokenizers_show_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = shown.run_folder(tmp_path / "a"), shown.run_folder(tmp_path / "b")
    assert cli.main(["view", str(first), "--out", str(tmp_path / "o.html")]) == 0
    assert "tokenizers" not in capsys.readouterr().err
    file = second / "iteration-0" / "policy" / "tokenizer.json"
    file.write_text(file.read_text().replace("moon", "sun"))
    assert cli.main(["view", str(first), str(second), "--out", str(tmp_path / "o.html")]) == 0
    assert "2 different tokenizers; tokens are shown as ids" in capsys.readouterr().err


def shown_text(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["show", *words]) == 0
    return capsys.readouterr().out


def test_show_has_colour_only_where_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(shown.ordinary(tmp_path / "s.jsonl", groups=1))
    plain = shown_text(capsys, store)
    assert "\x1b" not in plain
    coloured = shown_text(capsys, store, "--color", "always")
    assert "\x1b[1;31m  error |\x1b[0m sandbox lost" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown_text(capsys, store) == coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown_text(capsys, store) == plain


def test_show_prints_tokens_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside in brackets, the agent's with log-probs; a line end or a direction mark in a token stays an escape."""
    store = str(shown.ordinary(tmp_path / "s.jsonl", groups=1))
    lines = [line for line in shown_text(capsys, store, "--tokens").splitlines() if line.startswith(" tokens |")]
    assert len(lines) == 8
    first = lines[0].split()[2:]
    assert [word.startswith("[") for word in first] == [True] * 4 + [False] * 6
    assert re.fullmatch(r"\d\(-\d\.\d\d\)", first[4])
    named = shown_text(capsys, store, "--tokens", "--tokenizer", str(shown.tokenizer(tmp_path / "t")))
    assert "<|end|>(-" in named
    assert "\\n(-" in named
    assert "\u202e" not in named
    assert cli.main(["show", store, "--tokenizer", str(tmp_path / "t")]) == 2


def test_hostile_text_stays_escaped_in_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_text(capsys, str(shown.hostile(tmp_path / "s.jsonl")), "--color", "always")
    assert re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", re.sub(r"\x1b\[[0-9;]*m", "", text)) is None
    assert r"\x1b[31m" in text
