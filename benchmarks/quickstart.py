"""The main job in five minutes: a small policy imitates a hurried solver, then learns from whole trajectories.

The same study as the suite `tool_math`, one seed and M-DPO alone, with everything shown on the way.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyturn.algorithms.protocols.evaluate import Proportion
from polyturn.algorithms.protocols.iterate import Iteration
from polyturn.benchmarks.running.pages import comparison_page
from polyturn.benchmarks.running.suite import machine, table, write_json
from polyturn.benchmarks.tool_math import QUICK, Setting, learn, plot_curves, supervised
from polyturn.envs.store import read
from polyturn.sandbox import open_sandbox

_SHOWN = 12


def quickstart(out: Path, *, seed: int = 0, sandbox: str = "auto", quick: bool = False, progress: bool = True) -> None:
    """Runs the job and writes `results.json`, `curve.png`, `trajectories.html` and every policy into `out`.

    Args:
        out: Folder of the run; running again goes on with what is there.
        seed: Fixes everything.
        sandbox: Kind of sandbox for the policy's programs.
        quick: A tiny form that only shows that everything runs.
        progress: Show progress bars.

    Raises:
        SandboxUnavailable: The asked sandbox cannot run here.
    """
    begun = time.perf_counter()
    setting = Setting(**{**asdict(QUICK if quick else Setting()), "sandbox": sandbox})
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what a local sandbox does not protect is printed below
        box = open_sandbox(sandbox)
    with box:
        print(
            f"sandbox: {box.capabilities.name}" + (f" ({box.capabilities.warning})" if box.capabilities.warning else "")
        )
        print(f"1/2  a hurried solver demonstrates {setting.demonstrations} word problems; a small policy imitates it")
        policy, demonstrator = supervised(setting, seed, out / "sft", progress=progress)
        print(f"     the solver itself is right in {demonstrator.success}")
        print(f"2/2  {setting.iterations} iterations of M-DPO: collect, compare whole trajectories by outcome, train")
        records = learn(setting, "M-DPO", seed, policy, out / "mdpo", progress=progress)
        pages = _before_and_after(out, records)
    _write(out, setting, seed, records, demonstrator.to_json(), capabilities=asdict(box.capabilities))
    print("\n" + _summary(records) + "\n")
    print(f"curve         {out / 'curve.png'}\nfigures       {out / 'results.json'}\ntrajectories  {pages}")
    print(f"policy        {out / 'mdpo' / f'iteration-{setting.iterations}' / 'policy'}")
    print(f"done in {time.perf_counter() - begun:.0f} s")


def _before_and_after(out: Path, records: Sequence[Iteration]) -> Path:
    columns = []
    for name, version in (("SFT", "sft"), (f"iteration {records[-1].number}", f"iteration-{records[-1].number}")):
        shown = sorted(read(out / "mdpo" / "held-out" / f"{version}.jsonl"), key=lambda t: int(t.info["group"]))
        columns.append((name, shown[:_SHOWN]))
    page = out / "trajectories.html"
    comparison_page(
        page,
        "Before and after",
        "The first held-out problems, one sampled episode each, in their order; nothing was chosen by hand.",
        columns,
    )
    return page


def _write(
    out: Path,
    setting: Setting,
    seed: int,
    records: Sequence[Iteration],
    demonstrator: Mapping[str, Any],
    capabilities: Mapping[str, Any],
) -> None:
    figures = {
        "seed": seed,
        "setting": asdict(setting),
        "machine": machine(),
        "sandbox": capabilities,
        "demonstrator": demonstrator,
        "iterations": [asdict(record) for record in records],
    }
    write_json(out / "results.json", figures)
    curve = []
    for record in records:
        success = record.evaluation["sampled"]["success"]
        curve.append((100 * success["value"], 100 * success["low"], 100 * success["high"]))
    plot_curves({"M-DPO": curve}, out / "curve")


def _summary(records: Sequence[Iteration]) -> str:
    rows = []
    for record in records:
        sampled, greedy = record.evaluation["sampled"], record.evaluation["greedy"]
        rows.append(
            [
                f"iteration {record.number}" if record.number else "SFT",
                Proportion(**sampled["success"]),
                Proportion(**greedy["success"]),
                f"{100 * sampled['tool_errors']:.1f}%",
                f"{sampled['turns']:.2f}",
            ]
        )
    header = ["policy", "held-out success [95%]", "greedy decoding [95%]", "runs with tool errors", "turns"]
    return table(header, rows)
