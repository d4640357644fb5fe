"""The command `polyturn`: what a mistyped, failing or interrupted command says and which exit code it leaves."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyturn import __version__, cli
from polyturn.envs.suggest import did_you_mean
from polyturn.sandbox.sandbox import SandboxLost

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Gives the command line one command, `train --steps N --method a|b`, that does what the test wants."""

    def install(run: Run) -> None:
        def add_commands(subparsers: Any) -> None:
            train = subparsers.add_parser("train")
            train.add_argument("--steps", type=int, default=1)
            train.add_argument("--method", choices=["mdpo", "mkto"])
            train.set_defaults(run=run)

        floor = SimpleNamespace(add_commands=add_commands)
        monkeypatch.setattr(cli, "COMMANDS", {"train": ("algorithms", "train"), "eval": ("algorithms", "evaluate")})
        monkeypatch.setattr(cli, "import_module", lambda name: floor)

    return install


def raises(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error, which must be a single line from polyturn."""
    text = capsys.readouterr().err
    assert text.startswith("polyturn: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    return text


def test_a_command_gets_its_arguments_and_its_code_is_returned(command: Callable[[Run], None]) -> None:
    seen: list[dict[str, Any]] = []

    def run(args: argparse.Namespace) -> int:
        seen.append({name: value for name, value in vars(args).items() if name != "run"})
        return 7

    command(run)
    assert cli.main(["train", "--steps", "3"]) == 7
    assert seen == [{"debug": False, "steps": 3, "method": None}]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--step", "3"], "Did you mean '--steps'?"),
        (["train", "--method", "mdop"], "Did you mean 'mdpo'? Choose from mdpo, mkto."),
        (["train", "--steps", "many"], "invalid int value: 'many'"),
        (["train", "extra"], "unexpected argument 'extra'"),
        (["--verbose"], "unknown option '--verbose'"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    argv: list[str], said: str, command: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda args: 0)
    assert cli.main(argv) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("expected a folder,\n  got a file"), 2, "expected a folder, got a file"),
        (SandboxLost("the container died"), 1, "the container died"),
        (FileNotFoundError(2, "No such file", "problems.jsonl"), 1, "problems.jsonl: No such file"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (ImportError("expected matplotlib: pip install"), 1, "expected matplotlib: pip install"),
        (TimeoutError(), 1, "TimeoutError"),
    ],
)
def test_an_expected_error_is_one_line(
    error: Exception, code: int, said: str, command: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(error))
    assert cli.main(["train"]) == code
    assert one_line(capsys) == f"polyturn: error: {said}\n"


def test_an_unknown_environment_is_wrong_use(
    command: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    import gymnasium

    def run(args: argparse.Namespace) -> int:
        gymnasium.make("NoSuchEnvironment-v0")
        return 0

    command(run)
    assert cli.main(["train"]) == 2
    assert "NoSuchEnvironment" in one_line(capsys)


def test_an_unforeseen_error_keeps_its_traceback_in_a_file(
    command: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command(raises(KeyError("logps")))
    assert cli.main(["train"]) == 1
    said = one_line(capsys)
    (saved,) = tmp_path.iterdir()
    assert "unexpected KeyError: 'logps'" in said
    assert str(saved) in said
    assert "in run\n    raise error" in saved.read_text()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(
    how: str, command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raises(ValueError("bad")))
    if how == "variable":
        monkeypatch.setenv("POLYTURN_DEBUG", "1")
    assert cli.main(["--debug", "train"] if how == "option" else ["train"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["", "resume with polyturn train --resume runs/1"])
def test_ctrl_c_leaves_130_and_says_how_to_resume(
    said: str, command: Callable[[Run], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raises(KeyboardInterrupt(*[said] if said else [])))
    assert cli.main(["train"]) == 130
    assert one_line(capsys) == ("polyturn: interrupted" + (f": {said}" if said else "") + "\n")


def test_no_command_prints_help_as_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "examples:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"polyturn {__version__}\n"


def test_sigterm_unwinds_what_is_open(tmp_path: Path) -> None:
    """Containers and files are closed by `with` blocks, which a default SIGTERM would never leave."""
    program = f"""
import sys, time
from types import SimpleNamespace
from polyturn import cli
def run(args):
    try:
        print("open", flush=True)
        time.sleep(60)
    finally:
        open({str(tmp_path / "closed")!r}, "w").close()
def add(subparsers):
    subparsers.add_parser("train").set_defaults(run=run)
cli.import_module = lambda name: SimpleNamespace(add_commands=add)
sys.exit(cli.main(["train"]))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_stops_a_command_as_ctrl_c_does(tmp_path: Path, ignored: bool) -> None:
    """It says how to go on; also where SIGINT is ignored, as in a shell's background jobs."""
    program = f"""
import signal, sys, time
from types import SimpleNamespace
if {ignored}: signal.signal(signal.SIGINT, signal.SIG_IGN)
from polyturn import cli
def run(args):
    try:
        print("open", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run it again") from None
def add(subparsers):
    subparsers.add_parser("train").set_defaults(run=run)
cli.import_module = lambda name: SimpleNamespace(add_commands=add)
sys.exit(cli.main(["train"]))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert process.stderr.read() == "polyturn: terminated: run it again\n"


def test_a_closed_pipe_is_not_an_error() -> None:
    """`polyturn --help | head -1` must not end in a traceback."""
    read, write = os.pipe()
    os.close(read)
    program = "import sys; from polyturn.cli import main; sys.exit(main(['--help']))"
    with os.fdopen(write, "w") as out:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=out, stderr=subprocess.PIPE, text=True, env=buffered
        )
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: polyturn {name}")
    assert f"  polyturn {name}" in text.partition("xample")[2]


def test_the_table_of_commands_is_what_the_floors_offer() -> None:
    for floor in {owner for owner, _ in cli.COMMANDS.values()}:
        parser = argparse.ArgumentParser()
        subparsers = parser.add_subparsers()
        cli.import_module(f"polyturn.{floor}.cli").add_commands(subparsers)
        assert set(subparsers.choices) == {name for name, (owner, _) in cli.COMMANDS.items() if owner == floor}


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    """Best of three under a second of processor time; a shell completion or a typo must not wait for torch."""
    program = (
        "import sys; from polyturn.cli import main; code = main(['--help']); "
        "print(sorted({'torch', 'scipy', 'sympy', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr == "[]\n"
    assert min(seconds) < 1.0


@pytest.mark.parametrize("name", [name for name, (floor, _) in cli.COMMANDS.items() if floor in ("sandbox", "envs")])
def test_the_lower_floors_commands_load_no_torch(name: str) -> None:
    program = (
        f"import sys; from polyturn.cli import main; main([{name!r}, '--help']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_did_you_mean() -> None:
    known = ["polyturn/ToolMath-v0", "polyturn/Education-v0"]
    assert did_you_mean("polyturn/ToolMaths-v0", known) == " Did you mean 'polyturn/ToolMath-v0'?"
    assert did_you_mean("toolmath-v0", known) == " Did you mean 'polyturn/ToolMath-v0'?"
    assert did_you_mean("CartPole", known) == ""


def environment_of_a_command(**given: str) -> dict[str, str]:
    """What a command's floor sees in its environment when it is loaded, and whether torch was there already."""
    program = (
        "import json, os, sys, types\n"
        "from polyturn import cli\n"
        "class Floor(types.ModuleType):\n"
        "    def add_commands(self, subparsers):\n"
        "        seen = {k: v for k, v in os.environ.items() if k.startswith(('OMP_', 'GOMP_', 'KMP_'))}\n"
        "        print(json.dumps(seen | {'torch': str('torch' in sys.modules)}))\n"
        "        subparsers.add_parser('envs').set_defaults(run=lambda args: 0)\n"
        "sys.modules['polyturn.envs.cli'] = Floor('polyturn.envs.cli')\n"
        "sys.exit(cli.main(['envs']))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | given, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_threads_sleep_while_they_wait_unless_the_user_decides() -> None:
    """Spinning threads take several times as long where another program has a core; torch reads this when it loads."""
    assert environment_of_a_command() == {
        "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0", "torch": "False"
    }  # fmt: skip
    assert environment_of_a_command(OMP_WAIT_POLICY="active") == {"OMP_WAIT_POLICY": "active", "torch": "False"}
    assert environment_of_a_command(GOMP_SPINCOUNT="1000") == {"GOMP_SPINCOUNT": "1000", "torch": "False"}
