"""Plots without a display and without global state; matplotlib comes with the extra "plots"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyturn.envs.extras import how_to_install


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure of the given inches and its axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'plots need the extra "plots": {how_to_install("plots")}') from error
    with rc_context({"svg.hashsalt": "polyturn", "svg.fonttype": "path"}):
        drawing = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.add_subplot()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        yield drawing, axes


def save(drawing: Any, stem: Path) -> None:
    """Writes `stem.png` and `stem.svg`, the same bytes for the same figure."""
    drawing.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    drawing.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
