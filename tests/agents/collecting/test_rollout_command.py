"""`polyturn rollout` and `show` for conversations: both sides, branches, a server, and what a mistake says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polyturn.cli import main
from polyturn.envs.store import read, read_groups

EDUCATION, CARS = "polyturn/EducationDialogue-v0", "polyturn/CarDealer-v0"


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(each) for each in argv])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(("env", "partner", "agent"), [(EDUCATION, "student", "teacher"), (CARS, "buyer", "dealer")])
def test_conversations_can_be_looked_at_in_one_command(
    env: str, partner: str, agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "talks.jsonl"
    code, shown, _ = said(
        capsys, "rollout", env, "--agent", "demonstrator", "--groups", "3", "--show", "2", "--out", out, "--quiet",
        "--concurrency", "1",
    )  # fmt: skip
    assert code == 0
    assert shown.count("=== ") == 2
    assert "episodes     3" in shown
    names = {line.partition("|")[0].strip() for line in shown.splitlines() if line.find("|") == 8}
    assert names == {partner, agent}
    assert said(capsys, "show", out, "--limit", "2")[1] == shown[: shown.index("episodes ")]
    first = next(read(out))
    assert f"{agent:>7} | {first.turns[0].action}".splitlines()[0] in shown


def test_both_sides_are_stored_and_shown_from_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, theirs = tmp_path / "teacher.jsonl", tmp_path / "student.jsonl"
    command = ("rollout", EDUCATION, "--agent", "demonstrator", "--partner", "random", "-o", "turns=3", "--groups", "2",
               "--quiet", "--out", mine, "--partner-out", theirs)  # fmt: skip
    assert said(capsys, *command)[0] == 0
    assert said(capsys, *command)[0] == 0
    assert (len(list(read(mine))), len(list(read(theirs)))) == (2, 2)
    assert {each.agent for each in read(theirs)} == {"random"}
    shown = said(capsys, "show", theirs)[1]
    assert "teacher | You are a student." in shown
    heard = next(read(mine)).turns[0].action.splitlines()[0]
    assert f"        | {heard}" in shown


def test_groups_branch_at_the_given_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.jsonl"
    command = ("rollout", EDUCATION, "--agent", "demonstrator", "--groups", "2", "--group-size", "3", "--quiet")
    assert said(capsys, *command, "--branch-at", "2", "--out", out)[0] == 0
    groups = list(read_groups(out))
    assert [group.branched_at for group in groups] == [2, 2]
    assert sorted(member.info["noise"] for member in groups[0]) == [1, 2, 3]
    assert said(capsys, *command, "--same-noise", "--out", tmp_path / "same.jsonl")[0] == 0
    assert {each.info["noise"] for each in read(tmp_path / "same.jsonl")} == {0}


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = {"content": f"{body['model']} {body['max_tokens']} {body['temperature']} {len(body['messages'])}"}
            data = json.dumps({"choices": [{"message": content}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


def test_a_server_may_speak_for_either_side(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    out = tmp_path / "s.jsonl"
    command = ("rollout", CARS, "--agent", "server:big", "--partner", "server:small", "--base-url", server, "--quiet",
               "-o", "turns=2", "--max-new-tokens", "9", "--temperature", "0.5", "--out", out)  # fmt: skip
    assert said(capsys, *command)[0] == 0
    (talk,) = read(out)
    assert [turn.action for turn in talk.turns] == ["big 9 0.5 1", "big 9 0.5 3"]
    assert [talk.turns[1].observation, talk.final_observation] == ["small 9 0.5 1", "small 9 0.5 3"]


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (f"{EDUCATION} --agent random --partner-out {{tmp}}/b", 2, "--partner AGENT to go with --partner-out"),
        (f"{EDUCATION} --agent random --partner random --partner-out {{tmp}}/b", 2, "--out to go with --partner-out"),
        (f"{EDUCATION} --agent random --partner demonstrator", 2, "leave --partner out for the scripted student"),
        (f"{EDUCATION} --agent random --partner random -o student=scripted", 2, "no -o student="),
        ("polyturn/Guess-v0 --agent random --partner random", 2, "an environment with another side"),
        ("polyturn/Guess-v0 --agent demonstrator", 2, "an environment with problems"),
        (f"{EDUCATION} --agent random --branch-at -1", 2, "0 or more, got -1"),
        (f"{EDUCATION} --agent server:m --base-url localhost:8000", 2, "expected http(s)://host"),
        (f"{EDUCATION} --agent server:m --base-url http://127.0.0.1:9/v1", 1, "ServerUnreachable: m at http"),
    ],
)
def test_every_mistake_is_one_line_with_a_remedy(
    command: str, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = said(capsys, "rollout", *command.format(tmp=tmp_path).split(), "--quiet")
    complaint = [line for line in err.splitlines() if line.startswith("polyturn: ")]
    assert (found, len(complaint)) == (code, 1), err
    assert text in complaint[0]
