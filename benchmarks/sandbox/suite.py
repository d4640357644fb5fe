"""Suite `sandbox`: latency and throughput against other ways, sessions, hostile neighbours, endurance.

    polyturn bench sandbox            or  polyturn bench polyturn.benchmarks.sandbox.suite:SUITE

Needs Docker and the sandbox image. Other ways are compared if they are installed: `jupyter_client` with the image of
`polyturn sandbox build --packages python3-ipykernel`, `gem-llm`, `llm-sandbox`. A way that cannot run is reported with
the reason.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.suite import Cell, Suite
from polyturn.benchmarks.sandbox.engine import OwnEngine, under_load
from polyturn.benchmarks.sandbox.episodes import episodes
from polyturn.benchmarks.sandbox.peers import WAYS, Call, timed
from polyturn.benchmarks.sandbox.report import CALLERS, GRACE_S, SIZES, report
from polyturn.sandbox import Limits, Sandbox, SandboxError, SandboxUnavailable, Session, Status
from polyturn.sandbox.docker import LABEL, DockerSandbox, connect, remove_orphans
from polyturn.sandbox.images import image as images

PRINT = "print(1+1)"
SYMPY = "import sympy\nx = sympy.Symbol('x')\nprint(sympy.solve(x**2 - 5*x + 6, x))"


def milliseconds(taken: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest of seconds, in milliseconds."""
    ordered = sorted(taken)
    return {
        "n": len(ordered),
        "p50_ms": round(1e3 * statistics.median(ordered), 4),
        "p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 4),
        "max_ms": round(1e3 * ordered[-1], 4),
    }


def latency(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One way to run a snippet: latency of one caller, by size of the snippet, and throughput by callers."""
    seconds, repeats = options["seconds"], options["repeats"]
    result: dict[str, Any] = {}
    here = os.getcwd()
    try:
        os.chdir(folder)  # one of the ways leaves folders in the working directory
        with WAYS[options["way"]]() as worker:
            call: Call = worker()
            if call(PRINT).strip() != "2":
                raise SandboxError(f"print(1+1) gave {call(PRINT)!r}")
            # One caller, a short and a long program.
            for name, code in (("print", PRINT), ("sympy", SYMPY)):
                timed(call, code, 20, 1.0)
                result[name] = milliseconds(timed(call, code, repeats, seconds))
            # Longer snippets: a comment before the print.
            result["size"] = {}
            for size in SIZES:
                code = "#" * (size - len(PRINT) - 1) + "\n" + PRINT
                if call(code).strip() != "2":
                    result["size"][str(size)] = {"failed": "no right answer"}
                    continue
                result["size"][str(size)] = milliseconds(timed(call, code, repeats // 20 + 3, seconds / 2))
            # More callers, each with its own worker.
            result["callers"] = {}
            calls = [call]
            started = time.perf_counter()
            for count in CALLERS:
                while len(calls) < count and time.perf_counter() < started + 20 * seconds:
                    calls.append(worker())
                    calls[-1](PRINT)
                if len(calls) < count:  # starting a kernel or a container for each caller takes long
                    result["callers"][str(count)] = f"not run: only {len(calls)} ready after {20 * seconds:.0f} s"
                    break
                result["callers"][str(count)] = throughput(calls[:count], seconds)
    except (ImportError, SandboxError, OSError, subprocess.CalledProcessError, RuntimeError, TimeoutError) as error:
        result["failed"] = f"not run: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    finally:
        os.chdir(here)
    return result


def throughput(calls: Sequence[Call], seconds: float) -> float:
    """Calls a second of all callers together."""
    done = [0] * len(calls)
    start = time.perf_counter()

    def work(index: int) -> None:
        while time.perf_counter() < start + seconds:
            calls[index](PRINT)
            done[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(done) / (time.perf_counter() - start), 1)


def clock(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of an action, and what it returned."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def proportional_mb(session: Session) -> float | None:
    """Proportional set size of a session's interpreter in MB; None where `/proc` does not show it."""
    uid = session.run("import os; os.getuid()").value
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and re.search(rf"^Uid:\s{uid}\s", (entry / "status").read_text(), re.M):
                found = re.search(r"^Pss:\s+(\d+)", (entry / "smaps_rollup").read_text(), re.M)
                return int(found.group(1)) / 1024 if found else None
        except OSError:
            continue
    return None


def _opened(sandbox: Sandbox) -> tuple[Session, float, float, float]:
    """A new session; seconds to open it, to open it and print, and of its first sympy call."""
    opening, session = clock(sandbox.open)
    printing, _ = clock(lambda: session.run(PRINT))
    solving, _ = clock(lambda: session.run(SYMPY))
    return session, opening, opening + printing, solving


def sessions(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """New sessions, warm sympy calls, forks, and many sessions together with their memory."""
    return {**_openings(options["count"]), **_warm_calls_and_forks(options["count"]), **_many(options["many"])}


def _openings(count: int) -> dict[str, Any]:
    """What a new session costs, made on request or taken from the spares."""
    result: dict[str, Any] = {}
    for kind, spares in (("new", 0), ("from a spare", 4)):
        opened, printed, solved, pinged = [], [], [], []
        with DockerSandbox(spares=spares) as sandbox:
            sandbox.open().close()
            for _ in range(count):
                time.sleep(0.1)  # the end of the last session and the start of the next spare are not measured
                # After this pause the processors are asleep: a ping wakes them and is measured separately.
                pinged.append(clock(sandbox.servers[0].ping)[0])
                session, opening, first_print, first_sympy = _opened(sandbox)
                opened.append(opening)
                printed.append(first_print)
                solved.append(first_sympy)
                session.close()
        result["ping after a rest"] = milliseconds(pinged)
        result[f"open, {kind}"] = milliseconds(opened)
        result[f"open and first print, {kind}"] = milliseconds(printed)
        result[f"first sympy, {kind}"] = milliseconds(solved)
    return result


def _warm_calls_and_forks(count: int) -> dict[str, Any]:
    """sympy in a loop inside one program and as separate calls, and the fork of a session that holds 400 MB."""
    loop = (
        "import sympy, time, statistics\nx = sympy.Symbol('x')\nt = []\nfor _ in range(300):\n"
        "  s = time.perf_counter(); str(sympy.solve(x**2 - 5*x + 6, x)); t.append(time.perf_counter() - s)\n"
        "1e3 * statistics.median(t)"
    )
    result: dict[str, Any] = {}
    with DockerSandbox(spares=0) as sandbox:
        session = sandbox.open(Limits(wall_s=60))
        session.run(SYMPY)
        result["sympy inside one program"] = {"p50_ms": round(float(session.run(loop).value or "nan"), 4)}
        warm = [clock(lambda: session.run("print(sympy.solve(x**2 - 5*x + 6, x))"))[0] for _ in range(300)]
        result["sympy, warm call"] = milliseconds(warm)
        big = sandbox.open(Limits(wall_s=60, memory_mb=1024, branches=64))
        big.run("import numpy; a = numpy.ones(50_000_000)")
        forked = []
        for _ in range(count):
            taken, branch = clock(big.fork)
            forked.append(taken)
            branch.close()
            time.sleep(0.1)
        result["fork of 400 MB"] = milliseconds(forked)
    return result


def _many(many: int) -> dict[str, Any]:
    """Many sessions in one container: opening them, memory of one, and one call in each from eight threads."""
    result: dict[str, Any] = {}
    with DockerSandbox(spares=0, sessions=many, memory_mb=8192) as sandbox:
        taken, crowd = clock(lambda: [sandbox.open() for _ in range(many)])
        result["many"] = {"sessions": many, "open all (s)": round(taken, 2)}
        # Few sessions would each count a large share of the zygote's pages, so memory is measured among many.
        crowd[0].run(SYMPY)
        result["memory_mb"] = {"idle": proportional_mb(crowd[1]), "after sympy": proportional_mb(crowd[0])}
        for session in crowd:
            session.run("x = 1")

        def turn(share: Sequence[Session]) -> None:
            for session in share:
                session.run("x += 1; print(x)")

        def all_turn() -> None:
            threads = [threading.Thread(target=turn, args=(crowd[n::8],)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        result["many"]["one turn of all (s)"] = round(statistics.median(clock(all_turn)[0] for _ in range(5)), 4)
    return result


def gvisor(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a container and new sessions cost in gVisor, whose kernel is a program."""
    opened, printed, solved = [], [], []
    try:
        taken, sandbox = clock(lambda: DockerSandbox(runtime="runsc", transport="attach", spares=0))
    except SandboxUnavailable as error:
        return {"failed": f"not run: {error}"}
    with sandbox:
        for _ in range(options["count"]):
            time.sleep(0.1)
            session, opening, first_print, first_sympy = _opened(sandbox)
            opened.append(opening)
            printed.append(first_print)
            solved.append(first_sympy)
            session.close()
    return {
        "container, with the stack imported (s)": round(taken, 2),
        "open, new": milliseconds(opened),
        "open and first print, new": milliseconds(printed),
        "first sympy, new": milliseconds(solved),
    }


# An endless loop, a fork bomb, an endless output that ignores interrupts, and a list that doubles.
HOSTILE = (
    "while True: pass",
    "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: print('x' * 1000)",
    "x = [0]\nwhile True: x = x * 2",
)


def neighbours(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An honest session beside 16 hostile ones; how late time-outs end; false alarms on honest programs."""
    stop = threading.Event()
    overruns: list[float] = []
    with DockerSandbox(spares=2, sessions=64) as sandbox:

        def attack(number: int) -> None:
            session = sandbox.open(Limits(wall_s=0.5, memory_mb=128))
            while not stop.is_set():
                taken, result = clock(lambda: session.run(HOSTILE[number % len(HOSTILE)]))
                if result.status is Status.TIMEOUT:
                    overruns.append(taken - 0.5)

        # The honest session without neighbours.
        honest = sandbox.open(Limits(wall_s=30))
        honest.run(PRINT)
        alone = milliseconds(timed(lambda code: honest.run(code).stdout, PRINT, 10_000, options["seconds"]))

        # The same beside 16 hostile sessions.
        threads = [threading.Thread(target=attack, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        beside = []
        end = time.perf_counter() + options["seconds"]
        while time.perf_counter() < end:
            beside.append(clock(lambda: honest.run(PRINT))[0])
            time.sleep(0.002)
        stop.set()
        for thread in threads:
            thread.join()

        # Time-outs without neighbours: how late they end, beyond the grace where the session was lost.
        late: list[float] = []
        for code in ("while True: pass", "import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass") * 10:
            taken, result = clock(lambda code=code: honest.run(code, wall_s=0.2))  # type: ignore[misc]
            late.append(taken - 0.2 - (GRACE_S if result.state_lost else 0.0))

        # Honest programs, some with large outputs: each must succeed with its value.
        wrong = 0
        session = sandbox.open(Limits(wall_s=10))
        for number in range(options["honest"]):
            size = 1_000_000 if number % 100 == 0 else number % 1000
            result = session.run(f"print('x' * {size})\n{number}")
            wrong += result.status is not Status.OK or result.value != str(number)
    return {
        "alone": alone,
        "beside 16 hostile": milliseconds(beside),
        "worst overrun beside 16 hostile (s)": round(max(overruns, default=0.0), 3),
        "worst overrun alone, beyond the grace (s)": round(max(late), 3),
        "honest programs": options["honest"],
        "false alarms": wrong,
    }


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def resident_kb() -> int:
    """Resident memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except OSError:
        return 0


def soak(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Many calls and sessions: memory and descriptors of host and container after a tenth of them and at the end."""
    with DockerSandbox(spares=1) as sandbox, contextlib.closing(connect()) as client:
        name = sandbox.servers[0].name

        def used() -> dict[str, Any]:
            state = sandbox.servers[0].ping()
            figures = client.api.stats(name, stream=False)
            return {
                "host kB": resident_kb(),
                "host descriptors": descriptors(),
                "container MB": round(figures["memory_stats"].get("usage", 0) / 1e6, 1),
                "container processes": figures.get("pids_stats", {}).get("current", 0),
                "interpreters": state["interpreters"],
            }

        # A new session every ten calls; now and then a program ends its interpreter.
        before: dict[str, Any] = {}
        session = sandbox.open()
        for number in range(options["calls"]):
            session = sandbox.open() if number and number % 10 == 0 else session
            session.run(f"x = {number}\nopen('f', 'w').write('y' * 1000)\nprint(x)")
            if number % 97 == 0:
                session.run("import os; os._exit(1)")
            if number % 10 == 9:
                session.close()
            if number == options["calls"] // 10 + 9:
                time.sleep(1)
                before = used()
        time.sleep(1)
        return {"calls": options["calls"], "after a tenth": before, "at the end": used()}


PROGRAM = """
import threading
from polyturn.sandbox.docker import DockerSandbox
sandbox = DockerSandbox(spares=1)
print(sandbox.servers[0].name, flush=True)
def work():
    while True:
        session = sandbox.open()
        for _ in range(20): session.run("sum(range(10000))")
        session.close()
for _ in range(4): threading.Thread(target=work).start()
"""


def kills(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """kill -9 of the host process at random moments, five at a time; counts the containers that remain."""
    import random

    generator = random.Random(0)
    left = after_start = 0
    with contextlib.closing(connect()) as client:
        for start in range(0, options["kills"], 5):
            programs = [
                subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                for _ in range(min(5, options["kills"] - start))
            ]
            for program in programs:
                assert program.stdout is not None
                if generator.random() < 0.7:  # the rest is killed while the container starts
                    program.stdout.readline()
                time.sleep(generator.random() / 2)
                program.send_signal(signal.SIGKILL)
                program.wait()
                program.stdout.close()
            time.sleep(2.0)
            mine = [{"label": f"{LABEL}.pid={program.pid}"} for program in programs]
            left += sum(len(client.api.containers(all=True, filters=label)) for label in mine)
            remove_orphans(client)
            after_start += sum(len(client.api.containers(all=True, filters=label)) for label in mine)
    return {"kills": options["kills"], "containers left after 2 s": left, "left after the next start": after_start}


def restart(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A second engine is stopped and started under load: calls in flight are lost, and reported as lost."""
    try:
        with OwnEngine() as engine:
            engine.load(images.default_name())

            def again() -> None:
                engine.stop()
                time.sleep(1)
                engine.start()

            with DockerSandbox(engines=[engine.address], spares=0) as sandbox:
                return dict(under_load(sandbox, again, callers=8, seconds=3))
    except SandboxUnavailable as error:
        return {"failed": str(error)}


PARTS: dict[str, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {
    "latency": latency,
    "sessions": sessions,
    "neighbours": neighbours,
    "episodes": episodes,
    "soak": soak,
    "kills": kills,
    "gvisor": gvisor,
    "restart": restart,
}


def cells(quick: bool, seeds: int) -> list[Cell]:
    """One cell for each way, then one for each part."""
    found = []
    for seed in range(seeds):
        for way in WAYS:
            options = {
                "part": "latency",
                "way": way,
                "repeats": 300 if quick else 3000,
                "seconds": 1.0 if quick else 2.0,
            }
            found.append(Cell(f"latency {way}", seed, options))
        found.append(
            Cell("sessions", seed, {"part": "sessions", "count": 10 if quick else 40, "many": 100 if quick else 1000})
        )
        found.append(Cell("gVisor", seed, {"part": "gvisor", "count": 10 if quick else 40}))
        found.append(
            Cell(
                "neighbours",
                seed,
                {"part": "neighbours", "seconds": 3 if quick else 15, "honest": 500 if quick else 10_000},
            )
        )
        found.append(
            Cell(
                "episodes",
                seed,
                {"part": "episodes", "live": 60 if quick else 660, "starting": 8 if quick else 32},
            )
        )
        found.append(Cell("soak", seed, {"part": "soak", "calls": 500 if quick else 10_000}))
        found.append(Cell("kills", seed, {"part": "kills", "kills": 3 if quick else 50}))
        found.append(Cell("restart", seed, {"part": "restart"}))
    return found


def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Runs one part."""
    return PARTS[str(cell.options["part"])](cell.options, folder)


SUITE = Suite("sandbox", "what a call into the sandbox costs, against other ways", cells, run, report, seeds=1)
