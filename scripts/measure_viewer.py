"""Measures the viewer's page in headless Chromium: python scripts/measure_viewer.py [100 1000 10000].

Prints a Markdown table: size of the page, time until the list is drawn (median of three openings), until an episode is
open, and until text has been searched through.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn
from polyturn.envs.viewing.page import write_page

WORDS = [
    "the",
    "program",
    "prints",
    "a",
    "number",
    "because",
    "it",
    "sums",
    "all",
    "values",
    "def",
    "return",
    "x",
    "=",
    "3",
    "+",
    "4",
    "for",
    "in",
    "range",
    "answer",
    "is",
]


def make_store(path: Path, count: int) -> None:
    """Trajectories of 20 turns; 30 sampled and 10 other tokens a turn."""
    rng = np.random.default_rng(0)
    with Store(path, fsync="never") as store:
        for number in range(count):
            turns = [
                Turn(
                    " ".join(rng.choice(WORDS, 8)),
                    " ".join(rng.choice(WORDS, 22)),
                    float(step == 19 and rng.random() < 0.5),
                    rng.integers(0, 32000, 10),
                    rng.integers(0, 32000, 30),
                    -rng.exponential(1.0, 30),
                )
                for step in range(20)
            ]
            store.append(
                Trajectory("polyturn/ToolMath-v0", number // 8, tuple(turns), member=number % 8, terminated=True)
            )


def opened(browser: Browser, page: Path) -> tuple[float, float, float]:
    """Seconds until the list is drawn, then until an episode is, then until a search has read everything."""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    begun = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="commit")
    tab.wait_for_selector("body[data-ready] #rows .row")
    listed = time.perf_counter() - begun
    begun = time.perf_counter()
    tab.locator("#rows .row").nth(3).click()
    tab.wait_for_selector(".speech")
    read = time.perf_counter() - begun
    begun = time.perf_counter()
    tab.fill("[name=q]", "no such words")
    tab.wait_for_selector("#count:has-text('0 episodes of'):not(:has-text('searched'))", timeout=300_000)
    searched = time.perf_counter() - begun
    tab.close()
    return listed, read, searched


def main() -> None:
    """Measures every size and prints the table."""
    counts = [int(word) for word in sys.argv[1:]] or [100, 1000, 10000]
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    print("| trajectories | form | size | first list | open an episode | search all text |\n|---|---|---|---|---|---|")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        for count in counts:
            store = Path(folder, f"{count}.jsonl")
            make_store(store, count)
            for form in ("page", "folder"):
                page = write_page([store], Path(folder, f"{count}-{form}.html"), form=form)
                side = page.with_name(f"{page.stem}-data")
                size = page.stat().st_size + sum(file.stat().st_size for file in side.glob("*"))
                times = zip(*(opened(browser, page) for _ in range(3)), strict=True)
                cells = [f"{statistics.median(each):.2f} s" for each in times]
                print(f"| {count:,} | {form} | {size / 1e6:.1f} MB | {' | '.join(cells)} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
