"""The pictures of the reports: one style and a few forms. matplotlib comes with the extra "plots".

A picture is a grid of small panels. A panel shows learning curves (every run thin, their mean thick, a band for the
95% Student interval) or dots with intervals, one row a quantity. Panels hold at most three bands, quantities with
bounds are drawn within them, lines are labelled at their ends, and the colours are distinguishable for readers who are
colour-blind. Nothing here needs a display or changes matplotlib's global state, and the same figures give the same
bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyturn.benchmarks.running.suite import mean_interval
from polyturn.envs.extras import how_to_install

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY, LIGHT = "#222222", "#767676", "#C8C8C8"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""The palette of Okabe and Ito, without its yellow."""

Bounds = tuple[float | None, float | None]
"""Smallest and largest value that a quantity can have; None where there is none."""
SHARE: Bounds = (0.0, 1.0)
PERCENT: Bounds = (0.0, 100.0)
NOT_NEGATIVE: Bounds = (0.0, None)
UNBOUNDED: Bounds = (None, None)

RUNS = "Thin: single runs. Thick: their mean. Band: 95% Student interval over runs, cut at the bounds of the quantity."
MEANS = "Line: mean over runs. Band: 95% Student interval over runs, cut at the bounds of the quantity."
DOTS = "Dot: mean. Bar: 95% Student interval over runs, cut at the bounds of the quantity. Ticks: single runs."

MOST_BANDS = 3
_STYLE: Any = {
    "svg.hashsalt": "polyturn",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.xmargin": 0.015,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "text.color": BLACK,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Dot:
    """One row of a dot plot.

    Attributes:
        label: Shown next to the row.
        values: One a run; the dot is their mean.
        colour: Of the row.
        interval: Lower and upper end of the bar; by default the 95% Student interval of the values.
        hollow: Draws a ring, for the second of two kinds of rows.
    """

    label: str
    values: Sequence[float]
    colour: str = BLUE
    interval: tuple[float, float] | None = None
    hollow: bool = False


class Panel:
    """One pair of axes of a picture.

    Args:
        axes: matplotlib's axes.
    """

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.bands = 0
        self._labels: list[Any] = []

    def curve(
        self,
        x: Sequence[float],
        runs: ArrayLike,
        *,
        colour: str = BLUE,
        label: str = "",
        bounds: Bounds = UNBOUNDED,
        dashes: str = "-",
        each: bool = True,
        band: bool = True,
    ) -> None:
        """Draws the mean of several runs, with every run and a band around it.

        Args:
            x: `[points]`.
            runs: `[runs, points]`.
            colour: Of the line and its band.
            label: Stands at the end of the line.
            bounds: Runs and band are cut here.
            dashes: matplotlib's line style.
            each: Draws every run as a thin line.
            band: Draws the 95% Student interval over runs, where there are at least two.

        Raises:
            ValueError: It would be the panel's fourth band.
        """
        values = np.asarray(runs, np.float64)
        inside = _cut(values, bounds)
        if band and len(values) > 1:
            self._count_band()
            ends = _cut(np.array([mean_interval(column)[1:] for column in values.T.tolist()]), bounds)
            self.axes.fill_between(x, ends[:, 0], ends[:, 1], color=colour, alpha=0.16, linewidth=0)
        if each and len(values) > 1:
            for run in inside:
                self.axes.plot(x, run, color=colour, alpha=0.4, linewidth=0.7, linestyle=dashes)
        mean = _cut(values.mean(axis=0), bounds)
        self.axes.plot(x, mean, color=colour, linewidth=1.9, linestyle=dashes)
        if len(x) <= 12:
            self.axes.plot(x, mean, color=colour, linestyle="none", marker="o", markersize=3)
        self.name(label, float(x[-1]), float(mean[-1]), colour)

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float],
        *,
        colour: str = BLACK,
        label: str = "",
        dashes: str = "-",
        marker: str = "",
        width: float = 1.6,
    ) -> None:
        """Draws one line without a band, labelled at its end."""
        self.axes.plot(x, y, color=colour, linewidth=width, linestyle=dashes, marker=marker or None, markersize=3.5)
        self.name(label, float(x[-1]), float(y[-1]), colour)

    def context(self, x: Sequence[float], y: Sequence[float]) -> None:
        """Draws a line of another panel in light grey, for comparison."""
        self.axes.plot(x, y, color=LIGHT, linewidth=1.0, zorder=1)

    def level(self, value: float, label: str = "", colour: str = GREY) -> None:
        """Draws a dotted horizontal line, labelled at its right end."""
        self.axes.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1.5)
        if label:
            place = self.axes.get_yaxis_transform()
            self._labels.append(self._text(label, (1.0, value), place, colour))

    def dots(self, rows: Sequence[Dot], *, bounds: Bounds = UNBOUNDED, zero: float | None = None) -> None:
        """Draws one row a quantity: its mean, the interval, and every run as a tick below.

        Args:
            rows: From top to bottom.
            bounds: Intervals are cut here.
            zero: Draws a vertical line, for example where a difference is zero.
        """
        if zero is not None:
            self.axes.axvline(zero, color=BLACK, linewidth=0.9, zorder=1.5)
        for place, row in enumerate(rows):
            mean, low, high = mean_interval([float(value) for value in row.values])
            low, high = row.interval or (low, high)
            if np.isfinite([low, high]).all():
                low, high = _cut(np.array([low, high]), bounds)
                self.axes.plot([low, high], [place, place], color=row.colour, linewidth=2.2, alpha=0.55)
            filled = "white" if row.hollow else row.colour
            self.axes.plot([mean], [place], "o", color=row.colour, markerfacecolor=filled, markersize=5.5)
            if len(row.values) > 1:
                below = [place + 0.28] * len(row.values)
                self.axes.plot(row.values, below, "|", color=row.colour, markersize=5, alpha=0.8, markeredgewidth=0.9)
        self.axes.set_yticks(range(len(rows)), [row.label for row in rows])
        self.axes.set_ylim(len(rows) - 0.4, -0.6)
        self.axes.grid(axis="y", visible=False)
        self.axes.tick_params(axis="y", length=0)
        self.axes.margins(x=0.05)
        self.axes.locator_params(axis="x", nbins=5)

    def missing(self, why: str) -> None:
        """Says in an empty panel why nothing is drawn."""
        self.axes.set_axis_off()
        self.axes.text(0.5, 0.5, why, transform=self.axes.transAxes, ha="center", va="center", color=GREY)

    def name(self, label: str, x: float, y: float, colour: str) -> None:
        """Writes a label to the right of a point; labels of a panel are kept apart."""
        if label:
            self._labels.append(self._text(label, (x, y), self.axes.transData, colour))

    def limits(self, *, x: Bounds | None = None, y: Bounds | None = None) -> None:
        """Shows the whole range of a bounded quantity, with room for the lines at its ends."""
        for axis, bounds in (("x", x), ("y", y)):
            if bounds is None:
                continue
            low, high = bounds
            now = self.axes.get_xlim() if axis == "x" else self.axes.get_ylim()
            margin = 0.03 * ((high if high is not None else max(now)) - (low if low is not None else min(now)))
            setting = (None if low is None else low - margin, None if high is None else high + margin)
            self.axes.set(**{f"{axis}lim": setting})
            if low is not None and high is not None:
                self.axes.set(**{f"{axis}ticks": np.linspace(low, high, 5)})

    def words(self, *, title: str = "", x: str = "", y: str = "") -> None:
        """Titles the panel and its axes."""
        self.axes.set(title=title, xlabel=x, ylabel=y)

    def _count_band(self) -> None:
        self.bands += 1
        if self.bands > MOST_BANDS:
            raise ValueError(f"expected at most {MOST_BANDS} bands in a panel, got another; draw small multiples")

    def _text(self, label: str, point: tuple[float, float], transform: Any, colour: str) -> Any:
        return self.axes.annotate(
            label, point, xycoords=transform, xytext=(5, 0), textcoords="offset points", va="center", ha="left",
            fontsize=8, color=_darker(colour), annotation_clip=False,
        )  # fmt: skip

    def spread_labels(self) -> None:
        """Moves the labels of the panel up or down until none covers another."""
        labels = sorted(self._labels, key=lambda text: float(text.get_window_extent().y0))
        if len(labels) < 2:
            return
        boxes = [text.get_window_extent() for text in labels]
        wanted = np.array([(box.y0 + box.y1) / 2 for box in boxes])
        size = max(box.height for box in boxes) * 1.02
        frame = self.axes.get_window_extent()
        placed = _spread(wanted, size, float(frame.y0), float(frame.y1))
        for text, move in zip(labels, (placed - wanted) * 72.0 / self.axes.figure.dpi, strict=True):
            text.set_position((5, float(move)))


def _spread(wanted: NDArray[np.float64], size: float, low: float, high: float) -> NDArray[np.float64]:
    """The places nearest to the wanted ones, in ascending order, that lie at least `size` apart.

    Least squares, by pooling neighbours that are too close; then all are moved into [low, high] as far as they fit.
    """
    steps = size * np.arange(len(wanted))
    pools: list[list[float]] = []
    for place in wanted - steps:
        pools.append([float(place)])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + steps
    return np.asarray(np.maximum(np.minimum(placed, high - (steps[-1] - steps)), low + steps), np.float64)


@contextmanager
def picture(
    stem: Path,
    rows: int,
    columns: int,
    *,
    width: float = 3.0,
    height: float = 2.3,
    note: str = "",
    share_y: bool = True,
) -> Iterator[list[list[Panel]]]:
    """A grid of panels, written to `stem.png` and `stem.svg` when it is done.

    Args:
        stem: Of both files.
        rows: Of panels.
        columns: Of panels.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
        note: What lines, bands and dots stand for; written below the panels.
        share_y: Panels of a row share their vertical axis.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'plots need the extra "plots": {how_to_install("plots")}') from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.25 * bool(note)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False, sharey="row" if share_y else False)
        panels = [[Panel(axes) for axes in row] for row in grid]
        yield panels
        if note:
            figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
        figure.draw_without_rendering()
        for row in panels:
            for panel in row:
                panel.spread_labels()
        _save(figure, stem)


def _save(figure: Any, stem: Path) -> None:
    """Writes both files, the same bytes for the same figure."""
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def _cut(values: NDArray[np.float64], bounds: Bounds) -> NDArray[np.float64]:
    low, high = bounds
    return values if low is None and high is None else np.clip(values, low, high)


def _darker(colour: str) -> str:
    """The colour mixed with black, so that small letters can be read on white."""
    parts = [int(int(colour[place : place + 2], 16) * 0.72) for place in (1, 3, 5)]
    return "#" + "".join(f"{part:02X}" for part in parts)
