"""Episodes of ToolMath a second: with a live interpreter for each episode, and with a new interpreter for each call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.gold import GoldAgent
from polyturn.benchmarks.sandbox.peers import WAYS, Call
from polyturn.envs.outcomes import success_of
from polyturn.envs.tool_math.env import ToolMath
from polyturn.envs.tool_math.problems import Problems, load_problems
from polyturn.sandbox import Capabilities, Limits, Result, Sandbox, Session, Status, open_sandbox

LIVE = {"ours: Docker": "docker", "ours: local, rootless": "local"}
NEW_EACH_CALL = ("subprocess on the host", "docker exec, command line", "docker run, command line")
AT_ONCE = (8, 64)

REPLAY = """
import contextlib, io
names = {{"__name__": "__main__"}}
with contextlib.redirect_stdout(io.StringIO()):
    for block in {earlier!r}:
        try:
            exec(block, names)
        except Exception:
            pass
exec({block!r}, names)
"""


class ReplayingSession:
    """A session of a tool that starts an interpreter for each call: the earlier programs of the episode run again."""

    def __init__(self, call: Call) -> None:
        self._call, self._blocks = call, list[str]()

    def run(self, code: str, *, wall_s: float | None = None) -> Result:
        """Runs the program after all earlier ones; its output is the result."""
        said = self._call(REPLAY.format(earlier=self._blocks, block=code))
        self._blocks.append(code)
        return Result(Status.OK, stdout=said)

    async def arun(self, code: str, *, wall_s: float | None = None) -> Result:
        """`run`, which blocks."""
        return self.run(code)

    def fork(self) -> Session:
        """A session with the same earlier programs."""
        twin = ReplayingSession(self._call)
        twin._blocks = list(self._blocks)
        return twin

    def interrupt(self) -> None:
        """Does nothing: these tools cannot be interrupted."""

    def close(self) -> None:
        """Does nothing: the session holds no resources."""


class ReplayingSandbox:
    """The sandbox protocol over a tool without sessions."""

    capabilities = Capabilities("replay", False, False, False, False, False, False, True, False)

    def __init__(self, way: str) -> None:
        self._stack = contextlib.ExitStack()
        self._worker = self._stack.enter_context(WAYS[way]())

    def open(self, limits: Limits | None = None, *, seed: int = 0) -> Session:
        """A session without earlier programs."""
        return ReplayingSession(self._worker())

    def close(self) -> None:
        """Ends the tool's processes and containers."""
        self._stack.close()

    def __enter__(self) -> ReplayingSandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def opened(way: str) -> Iterator[Sandbox]:
    """A sandbox by the name of its way to run programs."""
    with open_sandbox(LIVE[way], spares=8) if way in LIVE else ReplayingSandbox(way) as sandbox:
        yield sandbox


def problems_here() -> tuple[str, Problems]:
    """GSM8K if the checkout has it in `shared/data`, otherwise generated problems; with the name of the source."""
    for parent in Path(__file__).resolve().parents:
        if (path := parent / "shared" / "data" / "gsm8k_test_a.jsonl").is_file():
            return "GSM8K", load_problems(path)
    return "generated:2:660", load_problems("generated:2:660")


def episodes(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Episodes a second of the gold agent, which runs one program in an episode, by way and by concurrency."""
    name, problems = problems_here()
    result: dict[str, Any] = {"problems": name}
    for way in (*LIVE, *NEW_EACH_CALL):
        count = options["live"] if way in LIVE else options["starting"]
        tasks = [number % len(problems) for number in range(count)]
        with opened(way) as sandbox:
            play(problems, sandbox, tasks[: max(8, count // 20)], 8)  # warm up
            result[way] = {}
            for at_once in AT_ONCE:
                start = time.perf_counter()
                right = play(problems, sandbox, tasks, at_once)
                taken = time.perf_counter() - start
                result[way] |= {f"a second, {at_once} at once": round(count / taken, 1), f"right, {at_once}": right}
            result[way]["episodes"] = count
    return result


def play(problems: Problems, sandbox: Sandbox, tasks: list[int], at_once: int) -> int:
    """Plays the tasks and returns the number of right answers."""
    groups = collect(
        GoldAgent(problems),
        lambda: ToolMath(problems, sandbox=sandbox, time_limit_s=60.0),
        tasks=tasks,
        concurrency=at_once,
        progress=False,
    )
    return sum(member.valid and bool(success_of(member)) for group in groups for member in group)
