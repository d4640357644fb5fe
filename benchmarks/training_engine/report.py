"""The report of the suite `training_engine`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.suite import Outcome, table
from polyturn.benchmarks.training_engine.shapes import SHAPES

TARGETS = {"pairs": (5.0, 3.5, 3.0), "one pair": (4.0, 3.0, 3.0), "group": (12.0, None, 5.0), "tree": (15.0, None, 5.0)}
"""By shape: times faster than TRL's default, than its best, and how much less memory was aimed at."""


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Tables of costs and ratios, then growth by size."""
    steps = [o for o in outcomes if "quantity" not in o.cell.options]
    growth = [o for o in outcomes if "quantity" in o.cell.options]
    options = steps[0].cell.options
    text = [
        "# training_engine: what a preference step costs\n",
        f"Llama-shaped random models ({options['layers']} layers, hidden {options['hidden']}), float32, one thread, "
        f"one "
        f""
        f"process a row of a table; medians over {options['repeats']} steps after one that warms up, their smallest "
        f"and "
        "largest in brackets. CPU-s are user and system seconds. The peak is that of resident memory over what the "
        "loaded models take, so it has the optimizer's state in it on both sides. Weights, tokens, pairs, loss (DPO, "
        "beta "
        "0.1) and optimizer (AdamW) are the same on both sides; where the loss looks at the same tokens, the gradient "
        "norm of the first step is compared too.\n",
    ]
    for outcome in steps:
        text += _shape(outcome)
    text += _growth(growth)
    text.append(
        "\nNot run on a GPU. The peer is made by `sh scripts/peers.sh`; its best setting is without activation "
        "checkpointing and with precomputed reference log-probabilities, which is compared with this package's cached "
        "reference. Its default checkpoints activations, so its memory is compared with this package's checkpointed "
        "form too.\n"
    )
    return "\n".join(text) + "\n"


def _shape(outcome: Outcome) -> list[str]:
    options, result = outcome.cell.options, outcome.result
    floor = result["floor"]
    rows = []
    for way, figures in result.items():
        if way in ("floor", "profile"):
            continue
        if "failed" in figures:
            rows.append([way, figures["failed"], "", "", ""])
            continue
        cached = "cached" in way or "best" in way
        least = floor["cached_s" if cached else "default_s"]
        reached = "" if "MKTO" in way or "KTO" in way else f"{least / _median(figures['cpu']):.0%}"
        rows.append(
            [way, _middle(figures["cpu"]), f"{_median(figures['wall']):.2f}", f"{figures['peak_mb']:.0f}", reached]
        )
    lines = [
        f"\n## {SHAPES[options['shape']].said}; vocabulary {options['vocabulary']:,}\n",
        table(["way", "CPU-s a step", "wall s", "peak MB", "share of the arithmetic"], rows),
    ]
    own = result["polyturn, default"]
    if "failed" not in own:
        lines.append(
            f"\n{own['tokens']:.0f} tokens in rows, {own['distinct_tokens']:.0f} distinct. The arithmetic alone, at "
            f"torch.mm's rate here ({floor['gflops']['body']:.0f} GFLOP/s in the layers, {floor['gflops']['head']:.0f} "
            f"in the head): {floor['default_s']:.2f} s, {floor['cached_s']:.2f} s with a cached reference."
        )
    return [
        *lines,
        *(_profile(result["profile"], own) if "profile" in result else []),
        *_ratios(options["shape"], result),
    ]


def _profile(figures: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Where a step's time goes."""
    if "failed" in figures or "failed" in own:
        return [f"\nProfile: {figures.get('failed', 'not run')}"]
    total = sum(figures["seconds"].values())
    parts = [f"{kind} {seconds / total:.0%}" for kind, seconds in figures["seconds"].items()]
    return [f"\nBy torch's profiler, of {total:.2f} s in operations of one step: {', '.join(parts)}."]


def _ratios(shape: str, result: Mapping[str, Any]) -> list[str]:
    """How many times faster and smaller, beside what was aimed at."""
    default, best = TARGETS.get(shape, (None, None, None))[:2]
    memory = TARGETS.get(shape, (None, None, None))[2]
    pairs = [
        ("polyturn, default", "TRL DPO, default", default),
        ("polyturn, reference cached", "TRL DPO, its best", best),
        ("polyturn, checkpointed", "TRL DPO, default", None),
        ("polyturn MKTO, default", "TRL KTO, default", None),
    ]
    lines = []
    for mine, theirs, aim in pairs:
        a, b = result.get(mine, {}), result.get(theirs, {})
        if "cpu" not in a or "cpu" not in b:
            continue
        ratio, smaller = _median(b["cpu"]) / _median(a["cpu"]), b["peak_mb"] / max(a["peak_mb"], 1e-9)
        least = result["floor"]["cached_s" if "cached" in mine else "default_s"]
        bound = f"; the arithmetic alone would be {_median(b['cpu']) / least:.1f} times faster"
        aimed = "" if aim is None else f" (aim {aim:g}{bound})"
        room = "" if memory is None or "KTO" in mine else f" (aim {memory:g})"
        lines.append(
            f"- {mine} beside {theirs}: {ratio:.1f} times faster{aimed}, {smaller:.1f} times less memory{room}."
        )
        if "grad_norm" in b and shape in ("pairs", "one pair", "small", "group") and "KTO" not in mine:
            apart = abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"]
            lines.append(f"  First gradient norm {a['grad_norm']:.6g} and {b['grad_norm']:.6g}, {apart:.1e} apart.")
    return ["", *lines] if lines else []


def _growth(outcomes: Sequence[Outcome]) -> list[str]:
    """Time and memory by length, members, shared share and vocabulary, with "
    "exponents."""
    lines = [
        "\n## Growth\n",
        "One group (2 layers, hidden 128, vocabulary 8,000, rows of 512 tokens of which half are shared, 4 members), "
        "one "
        "quantity changed at a time; by length, 2 members. The exponent is the slope between neighbours on logarithmic "
        "axes, of CPU-s over the quantity and over distinct tokens.\n",
    ]
    series: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        series.setdefault(outcome.cell.options["quantity"], []).append(outcome)
    for quantity, points in series.items():
        rows, before = [], None
        for point in points:
            figures = point.result["scaling"]
            value = point.cell.options[quantity]
            if "failed" in figures:
                rows.append([str(value), figures["failed"], "", "", "", ""])
                continue
            cpu, distinct = _median(figures["cpu"]), figures["distinct_tokens"]
            slopes = ["", ""]
            if before is not None:
                slopes[0] = _slope(before[1], cpu, before[0], value) if quantity != "share" else ""
                slopes[1] = _slope(before[1], cpu, before[2], distinct) if quantity != "vocabulary" else ""
            rows.append(
                [f"{value:g}", f"{distinct:.0f}", _middle(figures["cpu"]), f"{figures['peak_mb']:.0f}", *slopes]
            )
            before = (value, cpu, distinct)
        head = [quantity, "distinct tokens", "CPU-s a step", "peak MB", f"exponent by {quantity}", "by distinct tokens"]
        lines += ["", table(head, rows)]
    return lines


def _slope(cost_before: float, cost: float, size_before: float, size: float) -> str:
    if size == size_before or min(size, size_before) <= 0:
        return ""
    return f"{math.log(cost / cost_before) / math.log(size / size_before):.2f}"


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _middle(values: Sequence[float]) -> str:
    return f"{_median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
