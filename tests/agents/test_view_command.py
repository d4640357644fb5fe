"""`polyturn view` as it is typed."""

from __future__ import annotations

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
    assert "conversations in page-data, keep it beside the page" in capsys.readouterr().out


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
