"""The pictures' style and forms: bounds, at most three bands, labels that can be read, the same bytes every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.benchmarks.running import plots
from polyturn.benchmarks.running.plots import PERCENT, SHARE, Dot, Panel, picture

# Means 0.5 and 0.9 with intervals far outside [0, 1]: t(1) = 12.7 makes the half widths 3.8 and 0.6.
RUNS = [[0.2, 0.85], [0.8, 0.95]]


def one_panel(tmp_path: Path, draw: Callable[[Panel], None]) -> Panel:
    with picture(tmp_path / "p", 1, 1) as ((panel,),):
        draw(panel)
    return panel


def test_a_band_ends_where_the_quantity_ends(tmp_path: Path) -> None:
    panel = one_panel(tmp_path, lambda panel: panel.curve([0, 1], RUNS, bounds=SHARE))
    (band,) = panel.axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 1.0)


def test_a_bar_ends_where_the_quantity_ends_and_a_given_interval_is_drawn_as_it_is(tmp_path: Path) -> None:
    rows = [Dot("a", [20.0, 80.0]), Dot("b", [50.0], interval=(40.0, 61.0))]
    panel = one_panel(tmp_path, lambda panel: panel.dots(rows, bounds=PERCENT))
    bars = [line.get_xdata() for line in panel.axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    assert [list(map(float, bar)) for bar in bars] == [[0.0, 100.0], [40.0, 61.0]]
    assert [label.get_text() for label in panel.axes.get_yticklabels()] == ["a", "b"]


def test_one_run_has_no_interval(tmp_path: Path) -> None:
    panel = one_panel(tmp_path, lambda panel: panel.curve([0, 1], RUNS[:1]))
    assert not panel.axes.collections
    dots = one_panel(tmp_path, lambda panel: panel.dots([Dot("a", [1.0])]))
    assert [line.get_linestyle() for line in dots.axes.lines] == ["None"]


def test_a_fourth_band_is_refused(tmp_path: Path) -> None:
    def draw(panel: Panel) -> None:
        for _ in range(4):
            panel.curve([0, 1], RUNS)

    with pytest.raises(ValueError, match="at most 3 bands in a panel"):
        one_panel(tmp_path, draw)


def test_labels_at_line_ends_do_not_cover_each_other(tmp_path: Path) -> None:
    """Five lines that end within a thousandth of the panel's height."""

    def draw(panel: Panel) -> None:
        for number in range(5):
            panel.curve([0, 1], [[0.0, 0.5 + number / 1e4]], label=f"line {number}", bounds=SHARE)
        panel.limits(y=SHARE)

    panel = one_panel(tmp_path, draw)
    boxes = sorted((text.get_window_extent() for text in panel.axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 5
    assert all(below.y1 <= above.y0 + 0.01 for below, above in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([10.0, 50.0], [10.0, 50.0]),  # far apart: nothing moves
        ([49.0, 51.0], [45.0, 55.0]),  # too close: both move equally far
        ([96.0, 100.0], [90.0, 100.0]),  # at the upper end: moved down
        ([0.0, 1.0, 60.0], [0.0, 10.0, 60.0]),  # at the lower end: moved up, the far one stays
    ],
)
def test_labels_move_as_little_as_possible(wanted: list[float], placed: list[float]) -> None:
    """Labels of size 10 between 0 and 100."""
    assert plots._spread(np.array(wanted), 10.0, 0.0, 100.0) == pytest.approx(placed)


def luminance(colour: str) -> float:
    """Relative luminance of a colour, as the Web Content Accessibility Guidelines define it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [*plots.COLOURS, plots.GREY])
def test_labels_can_be_read_on_white(colour: str) -> None:
    """Large-text contrast of 3 to 1 at least, for the darker shade that letters have."""
    assert 1.05 / (luminance(plots._darker(colour)) + 0.05) >= 3.0


def test_a_picture_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    def draw(stem: Path) -> None:
        with picture(stem, 1, 2, note="A note.") as ((left, right),):
            left.curve([0, 1], RUNS, label="a", bounds=SHARE)
            right.dots([Dot("b", [1.0, 2.0])], zero=0)

    draw(tmp_path / "one")
    draw(tmp_path / "two")
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_drawing_changes_no_global_state(tmp_path: Path) -> None:
    import matplotlib

    before: dict[str, Any] = dict(matplotlib.rcParams)
    one_panel(tmp_path, lambda panel: panel.curve([0, 1], RUNS))
    assert dict(matplotlib.rcParams) == before
