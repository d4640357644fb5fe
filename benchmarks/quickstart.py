"""The main job in three minutes: a small policy imitates an imperfect solver, then learns from whole trajectories.

The study of the suite `tool_math` with one seed and M-DPO only, which prints its progress.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyturn.agents.viewing import tokenizer_pieces
from polyturn.algorithms.protocols.evaluate import Proportion
from polyturn.algorithms.protocols.iterate import Iteration
from polyturn.benchmarks.running.plots import PERCENT, Dot, picture
from polyturn.benchmarks.running.suite import machine, table, write_json
from polyturn.benchmarks.tool_math import QUICK, Setting, learn, supervised
from polyturn.envs.files import alone_in_out
from polyturn.envs.viewing.page import write_page
from polyturn.sandbox import open_sandbox

# Measured on two quiet cores; README.md has the table.
_QUIET_S = 177


@alone_in_out
def quickstart(out: Path, *, seed: int = 0, sandbox: str = "auto", quick: bool = False, progress: bool = True) -> None:
    """Runs the job and writes `results.json`, `curve.png`, `trajectories.html` and every policy into `out`.

    Args:
        out: Folder of the run; another run with the same folder continues it.
        seed: Seed of everything random.
        sandbox: Kind of sandbox for the policy's programs.
        quick: A tiny form that only shows that everything runs.
        progress: Show progress bars.

    Raises:
        SandboxUnavailable: The sandbox cannot run here.
    """
    begun = time.perf_counter()
    if not quick:
        print(f"about {_QUIET_S / 60:.0f} minutes on two quiet cores, longer beside a busy program")
    setting = Setting(**{**asdict(QUICK if quick else Setting()), "sandbox": sandbox})
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the local sandbox's warning is printed below instead
        box = open_sandbox(sandbox)
    with box:
        print(
            f"sandbox: {box.capabilities.name}" + (f" ({box.capabilities.warning})" if box.capabilities.warning else "")
        )
        print(f"1/2  an imperfect solver demonstrates {setting.demonstrations} word problems; a policy imitates it")
        policy, demonstrator = supervised(setting, seed, out / "sft", progress=progress)
        print(f"     success of the solver itself: {demonstrator.success}")
        print(f"2/2  {setting.iterations} iterations of M-DPO: collect, compare whole trajectories by outcome, train")
        records = learn(setting, "M-DPO", seed, policy, out / "mdpo", progress=progress)
        pages = _page(out)
    _write(out, setting, seed, records, demonstrator.to_json(), capabilities=asdict(box.capabilities))
    print("\n" + _summary(records) + "\n")
    print(f"curve         {out / 'curve.png'}\nfigures       {out / 'results.json'}\ntrajectories  {pages}")
    print(f"policy        {out / 'mdpo' / f'iteration-{setting.iterations}' / 'policy'}")
    print(f"done in {time.perf_counter() - begun:.0f} s")


def _page(out: Path) -> Path:
    """Everything the run collected: its curves, what it learned from, and the held-out episodes of every policy."""
    pieces = tokenizer_pieces(out / "mdpo" / "iteration-0" / "policy")
    return write_page([out / "mdpo"], out / "trajectories.html", title="quickstart: M-DPO", pieces=pieces)


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
    rows = []
    for record in records:
        success = record.evaluation["sampled"]["success"]
        interval = (100 * success["low"], 100 * success["high"])
        rows.append(Dot(_name(record), [100 * success["value"]], interval=interval))
    note = "Dot: success on the held-out problems. Bar: 95% Wilson interval over problems."
    with picture(out / "curve", 1, 1, width=5.5, height=2.2, note=note) as ((panel,),):
        panel.dots(rows, bounds=PERCENT)
        panel.words(title="M-DPO", x="held-out success, %")
        panel.limits(x=PERCENT)


def _name(record: Iteration) -> str:
    return f"iteration {record.number}" if record.number else "SFT"


def _summary(records: Sequence[Iteration]) -> str:
    rows = []
    for record in records:
        sampled, greedy = record.evaluation["sampled"], record.evaluation["greedy"]
        rows.append(
            [
                _name(record),
                Proportion(**sampled["success"]),
                Proportion(**greedy["success"]),
                f"{100 * sampled['tool_errors']:.1f}%",
                f"{sampled['turns']:.2f}",
            ]
        )
    header = ["policy", "held-out success [95%]", "greedy decoding [95%]", "runs with tool errors", "turns"]
    return table(header, rows)
