"""The report of the suite `sandbox`: tables of every figure, the goals that were reached, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.plots import COLOURS, GREY, Dot, picture
from polyturn.benchmarks.running.reporting import by_name
from polyturn.benchmarks.running.suite import Outcome, table
from polyturn.benchmarks.sandbox.peers import WAYS

CALLERS = (1, 2, 8, 32)
SIZES = (1_000, 10_000, 100_000, 900_000)
_MEASURED = ("p50_ms", "p99_ms")
GRACE_S = 0.5

# The goals of the design on two quiet cores: name, cell, place in its result, bound, whether more is better.
GOALS: tuple[tuple[str, str, tuple[str, ...], float, bool], ...] = (
    ("warm print, Unix socket, p50 ms", "latency ours: Docker, Unix socket", ("print", "p50_ms"), 0.3, False),
    ("warm print, attach stream, p50 ms", "latency ours: Docker, attach stream", ("print", "p50_ms"), 0.4, False),
    ("calls/s, 32 callers, Unix socket", "latency ours: Docker, Unix socket", ("callers", "32"), 10_000, True),
    ("warm sympy solve, p50 ms", "sessions", ("sympy, warm call", "p50_ms"), 2.5, False),
    ("new session and its first print, p50 ms", "sessions", ("open and first print, new", "p50_ms"), 3.0, False),
    ("session from a spare, p50 ms", "sessions", ("open, from a spare", "p50_ms"), 0.3, False),
    ("first sympy call of a session, p50 ms", "sessions", ("first sympy, from a spare", "p50_ms"), 10.0, False),
    ("fork of 400 MB, p50 ms", "sessions", ("fork of 400 MB", "p50_ms"), 4.0, False),
    ("idle session, MB", "sessions", ("memory_mb", "idle"), 2.5, False),
    ("session after sympy, MB", "sessions", ("memory_mb", "after sympy"), 8.5, False),
    ("one turn of 1,000 sessions, s", "sessions", ("many", "one turn of all (s)"), 0.2, False),
    ("gVisor: warm print, attach stream, p50 ms", "latency ours: Docker, gVisor", ("print", "p50_ms"), 2.0, False),
    ("honest p99 beside 16 hostile, ms", "neighbours", ("beside 16 hostile", "p99_ms"), 25.0, False),
    ("worst overrun beyond the grace, s", "neighbours", ("worst overrun alone, beyond the grace (s)",), 0.1, False),
    (
        "worst overrun beside 16 hostile, s",
        "neighbours",
        ("worst overrun beside 16 hostile (s)",),
        GRACE_S + 0.1,
        False,
    ),
    ("false alarms over 10,000 honest programs", "neighbours", ("false alarms",), 0, False),
    ("containers left by 50 kill -9", "kills", ("left after the next start",), 0, False),
)


class _Figures:
    """The results by part; with several seeds a figure is the median over seeds."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.found = by_name(outcomes)

    def look(self, name: str, *path: str) -> float | None:
        """A figure of a part; None where it was not measured."""
        values = []
        for result in self.found.get(name, []):
            value: Any = result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)):
                values.append(float(value))
        return statistics.median(values) if values else None

    def way(self, way: str, *path: str) -> float | None:
        """A figure of one way to run a snippet; None where it was not measured."""
        return self.look(f"latency {way}", *path)

    def missing(self, way: str) -> str:
        """What was not run of a way, and why."""
        for result in self.found.get(f"latency {way}", []):
            if "failed" in result:
                return str(result["failed"])
            short = [f"{count} callers {value}" for count, value in result["callers"].items() if isinstance(value, str)]
            if short:
                return "; ".join(short)
        return ""


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Draws the picture and returns the report."""
    figures = _Figures(outcomes)
    text = [
        "# The sandbox, measured\n",
        "Medians; `results.json` holds every figure, the machine and the command.\n",
        "## Against other ways\n",
        table(
            ["way", "print p50 ms", "p99 ms", "sympy p50 ms", "p99 ms", "not run"],
            [
                [
                    way,
                    *(_shown(figures.way(way, code, which)) for code in ("print", "sympy") for which in _MEASURED),
                    figures.missing(way),
                ]
                for way in WAYS
            ],
        ),
        "\nOurs keeps the interpreter and its variables from call to call, as the Jupyter kernel does; the other ways "
        "start an interpreter for each call, so their sympy time includes its import.\n",
        "## Cost by callers and by size\n",
        "Calls of `print(1+1)` a second by the number of concurrent callers, each with its own session (kernel, "
        "process):\n",
        table(
            ["way", *map(str, CALLERS)],
            [[way, *(_shown(figures.way(way, "callers", str(count))) for count in CALLERS)] for way in WAYS],
        ),
        "\nMilliseconds, p50, by the size of the snippet in bytes (a comment of that length, then the print), for one "
        "caller:\n",
        table(
            ["way", *(f"{size:,}" for size in SIZES)],
            [[way, *(_shown(figures.way(way, "size", str(size), "p50_ms")) for size in SIZES)] for way in WAYS],
        ),
        "\n![print(1+1) by way, by callers, by size](latency.svg)\n",
        "## Goals\n",
        table(["figure", "measured", "goal", "met"], _goals(figures)),
        "",
    ]
    for part in ("sessions", "gVisor", "neighbours", "episodes", "soak", "kills", "restart"):
        for result in figures.found.get(part, []):
            text += [f"## {part if part == 'gVisor' else part.capitalize()}\n"]
            text += [table(["figure", "value"], [[key, _flat(value)] for key, value in result.items()]), ""]
    _draw(figures, out)
    return "\n".join(text)


def _goals(figures: _Figures) -> list[list[str]]:
    rows = []
    for label, name, path, bound, more in GOALS:
        value = figures.look(name, *path)
        met = value is not None and (value >= bound if more else value <= bound)
        judged = "not run" if value is None else "yes" if met else "NO"
        rows.append([label, _shown(value), f"{'at least' if more else 'at most'} {bound:g}", judged])
    return rows


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(figures: _Figures, out: Path) -> None:
    """Latency of every way as dots; throughput by callers and latency by size as lines."""
    known = [(way, value) for way in WAYS if (value := figures.way(way, "print", "p50_ms")) is not None]
    if not known:
        return
    # The sandbox's own ways in colours, the others in grey; lines are labelled at their ends.
    own = dict(zip((way for way, _ in known if way.startswith("ours")), COLOURS, strict=False))
    note = "Medians. Grey: other ways. A line without a label has no value at its last point."
    with picture(out / "latency", 1, 3, width=5.0, height=3.6, note=note, share_y=False) as (panels,):
        left, middle, right = panels
        left.dots([Dot(way, [value], own.get(way, GREY)) for way, value in known])
        left.axes.set_xscale("log")
        left.words(title="print(1+1), one caller", x="milliseconds")
        for way, _ in known:
            for panel, points in (
                (middle, [(count, figures.way(way, "callers", str(count))) for count in CALLERS]),
                (right, [(size, figures.way(way, "size", str(size), "p50_ms")) for size in SIZES]),
            ):
                measured = [(x, y) for x, y in points if y is not None]
                if measured:
                    xs, ys = zip(*measured, strict=True)
                    label = way if len(measured) == len(points) else ""
                    panel.line(xs, ys, colour=own.get(way, GREY), label=label, marker="o")
        middle.axes.set(xscale="log", yscale="log")
        middle.axes.set_xticks(CALLERS, [str(count) for count in CALLERS])
        middle.axes.minorticks_off()
        middle.words(title="calls a second", x="concurrent callers")
        right.axes.set(xscale="log", yscale="log")
        right.words(title="one caller, milliseconds", x="bytes of the snippet")
