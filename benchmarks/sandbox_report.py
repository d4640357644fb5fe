"""The sandbox suite's page: tables of every figure, which goals were reached, a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise.benchmarks.plots import figure, save
from turnwise.benchmarks.reporting import by_name
from turnwise.benchmarks.sandbox_peers import WAYS
from turnwise.benchmarks.suite import Outcome, table

CALLERS = (1, 2, 8, 32)
GRACE_S = 0.5

# What the design set out to reach on two quiet cores: name, where it is, the bound.
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


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Tables and a plot; with several seeds the median of each figure."""
    found = by_name(outcomes)

    def look(name: str, path: Sequence[str]) -> float | None:
        values = []
        for result in found.get(name, []):
            value: Any = result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)):
                values.append(float(value))
        return statistics.median(values) if values else None

    def shown(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"

    rows = []
    for way in WAYS:
        name = f"latency {way}"
        failed = next((str(result["failed"]) for result in found.get(name, []) if "failed" in result), "")
        for result in found.get(name, []):
            ready = result.get("callers", {})
            short = [f"{count} callers {value}" for count, value in ready.items() if isinstance(value, str)]
            failed = failed or "; ".join(short)
        figures = [look(name, ("print", "p50_ms")), look(name, ("print", "p99_ms")), look(name, ("sympy", "p50_ms"))]
        figures += [look(name, ("callers", str(count))) for count in CALLERS]
        figures += [look(name, ("size", "900000", "p50_ms"))]
        rows.append([way, *map(shown, figures), failed])
    header = [
        "way",
        "print p50 ms",
        "p99 ms",
        "sympy p50 ms",
        *[f"calls/s, {n}" for n in CALLERS],
        "900 kB p50 ms",
        "not run",
    ]
    goals = []
    for label, name, path, bound, more in GOALS:
        value = look(name, path)
        met = value is not None and (value >= bound if more else value <= bound)
        judged = "not run" if value is None else "yes" if met else "NO"
        goals.append([label, shown(value), f"{'at least' if more else 'at most'} {bound:g}", judged])
    text = [
        "# The sandbox, measured",
        "",
        "Medians; `results.json` holds every figure, the machine and the command.",
        "",
    ]
    text += [
        "## Beside other ways",
        "",
        table(header, rows),
        "",
        "Ours keeps the interpreter and its variables from call to call,",
    ]
    text += [
        "as the Jupyter kernel does; the others start an interpreter each time, so their sympy pays its import.",
        "",
    ]
    text += [
        "![print(1+1) by way](latency.png)",
        "",
        "## Goals",
        "",
        table(["figure", "measured", "goal", "met"], goals),
        "",
    ]
    for part in ("sessions", "gVisor", "neighbours", "episodes", "soak", "kills", "restart"):
        for result in found.get(part, []):
            text += [f"## {part[0].upper()}{part[1:]}", ""]
            text += [table(["figure", "value"], [[key, _flat(value)] for key, value in result.items()]), ""]
    drawn = [(way, look(f"latency {way}", ("print", "p50_ms"))) for way in WAYS]
    known = [(way, value) for way, value in drawn if value is not None]
    if known:
        with figure(8, 3.6) as (drawing, axes):
            axes.barh([way for way, _ in known][::-1], [value for _, value in known][::-1], color="#4477aa")
            axes.set_xscale("log")
            axes.set_xlabel("milliseconds for print(1+1), median, one caller (log scale)")
            save(drawing, out / "latency")
    return "\n".join(text)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
