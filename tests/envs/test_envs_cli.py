"""`polyturn envs`, `check-env`, `show` and `export`, as a person types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from polyturn.cli import main
from polyturn.envs import Store, Trajectory, Turn
from polyturn.envs.games.guess import Guess
from polyturn.envs.viewing.text import printable


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    with Store(path) as opened:
        for member, reward in enumerate((1.0, 0.0, 0.0)):
            turn = Turn("2 + 3?\nThink.", f"\x1b[31mred\u202e {member}\ud800", reward)
            opened.append(Trajectory("acme/Sum-v0", 1, (turn,), "t", "policy", "v1", member, "bye", terminated=True))
        opened.append(Trajectory("acme/Sum-v0", 1, (), member=3, error="SandboxLost: \x07gone"))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_envs_lists_ids_and_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "envs")
    assert code == 0
    assert re.search(
        r'^polyturn/Guess-v0 +Find a hidden whole number; every guess is answered with "higher"', out, re.M
    )


def test_check_env_lists_the_rules_it_held(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check-env", "polyturn/Guess-v0", "-o", "high=10", "-o", "turns=3")
    assert code == 0
    assert "ok  restore " in out
    assert "polyturn/Guess-v0 holds all " in out
    assert "the longest episode 3)" in out
    assert "note:" not in out


def test_check_env_takes_plausible_actions_and_says_if_they_got_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "check-env", "polyturn/Guess-v0", "-o", "turns=1", "-o", "high=9", "-a", "5", "-a", "no")
    assert "note: every episode ended after one turn" in out


def test_check_env_says_which_rule_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    class Endless(Guess):
        def step(self, action: str) -> Any:
            return "\x1b[31m", 0.0, False, False, {}

    gymnasium.register("contract/Endless-v0", Endless)
    try:
        code, out, _ = run(capsys, "check-env", "contract/Endless-v0")
    finally:
        del gymnasium.registry["contract/Endless-v0"]
    assert code == 1
    assert out.startswith("contract/Endless-v0 breaks the rule before-reset: expected an exception")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["polyturn/Gess-v0"], "Did you mean 'polyturn/Guess-v0'?"),
        (["polyturn/Guess-v0", "-o", "hihg=3"], "Did you mean 'high'?"),
        (["polyturn/Guess-v0", "-o", "high"], "expected NAME=VALUE, got 'high'"),
        (["polyturn/Guess-v0", "-o", "high=1"], "Guess(high): expected a whole number of at least 2, got 1"),
        (["polyturn/Guess-v0", "-o", "seeds=1"], "cannot pass the option 'seeds'"),
        (["polyturn/Guess-v0", "--max-turns", "x"], "invalid int value"),
    ],
)
def test_wrong_use_of_check_env_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, out, err = run(capsys, "check-env", *argv)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_show_is_readable_and_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    code, out, _ = run(capsys, "show", store)
    assert code == 0
    first, second = out.split("\n\n")[:2]
    assert first.split("\n") == [
        "=== 1: acme/Sum-v0, seed 1, member 0, task t, policy v1, return 1, terminated",
        "    env | 2 + 3?",
        "        | Think.",
        r"  agent | \x1b[31mred\u202e 0\ud800",
        "  reward: 1",
        "    env | bye",
    ]
    assert second.startswith("=== 2:")
    assert r"  error | SandboxLost: \x07gone" in out
    assert "INVALID, not ended" in out


def test_show_a_part(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    heads = lambda text: [line[4] for line in text.split("\n") if line.startswith("===")]  # noqa: E731
    assert heads(run(capsys, "show", store, "--start", 2, "--limit", 2)[1]) == ["2", "3"]
    assert heads(run(capsys, "show", store, "--limit", 0)[1]) == ["1", "2", "3", "4"]
    assert "no trajectory from number 9 on" in run(capsys, "show", store, "--start", 9)[1]
    assert run(capsys, "show", store, "--start", 0)[0] == 2


def test_damage_is_reported_and_can_be_skipped(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    store.write_bytes(store.read_bytes().replace(b"red", b"rod", 1))
    code, _, err = run(capsys, "show", store)
    assert code == 2
    assert "record 1 (line 2, byte" in err
    with pytest.warns(RuntimeWarning, match="record 1"):
        code, out, _ = run(capsys, "show", store, "--skip-damaged")
    assert code == 0
    assert out.startswith("=== 1: acme/Sum-v0, seed 1, member 1")


def test_show_on_a_terminal_that_knows_no_unicode(store: Path) -> None:
    with Store(store) as opened:
        opened.append(Trajectory("e", 1, (Turn("\u6211", "ok"),), terminated=True))
    done = subprocess.run(
        [sys.executable, "-m", "polyturn", "show", str(store)],
        capture_output=True, check=True, env={"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert rb"env | \u6211" in done.stdout


def test_text_that_printable_does_not_change() -> None:
    assert printable("plain \u00e9\u6211\U0001f600\n\t") == "plain \u00e9\u6211\U0001f600\n\t"
    assert printable("\r\x00\x7f\x85\u2028\u200f\ue000\udfff") == r"\r\x00\x7f\x85\u2028\u200f\ue000\udfff"


def test_export(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "export", store, "--to", "sft", tmp_path / "sft.jsonl", "--min-return", 1)
    assert (code, out) == (0, f"wrote 1 row to {tmp_path / 'sft.jsonl'}\n")
    code, out, _ = run(capsys, "export", store, "--to", "dpo", tmp_path / "dpo.jsonl", "--pairs-per-group", 1)
    assert out.startswith("wrote 1 row ")
    assert json.loads((tmp_path / "dpo.jsonl").read_text())["prompt"][0]["content"] == "2 + 3?\nThink."
    code, out, _ = run(capsys, "export", store, "--to", "parquet", tmp_path / "runs.parquet")
    assert out.startswith("wrote 4 rows ")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--to", "sft", "{store}"], 1, "will not replace an existing file"),
        (["--to", "dpo", "{tmp}/out", "--min-return", "1"], 2, "--min-return belongs to --to sft"),
        (["--to", "sft", "{tmp}/out", "--pairs-per-group", "1"], 2, "--pairs-per-group belongs to --to dpo"),
        (["--to", "paquet", "{tmp}/out"], 2, "Did you mean 'parquet'?"),
        (["--to", "sft", "{tmp}/no/such/folder"], 1, "No such file or directory"),
    ],
)
def test_wrong_use_of_export_is_one_line(
    capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path, argv: list[str], code: int, message: str
) -> None:
    words = [word.format(store=store, tmp=tmp_path) for word in argv]
    got, _, err = run(capsys, "export", store, *words)
    assert got == code
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["envs", "check-env", "show", "export"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "examples:\n  polyturn " + command in out
