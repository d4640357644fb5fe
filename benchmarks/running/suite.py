"""The suite runner: independent cells of work, resumable, with a report of tables, plots and words.

A suite is cells (one seeded piece of work each), a function that runs one, and a function that turns all results into
a report. The runner saves every finished cell, so an interrupted run goes on where it stopped, and writes
`results.json` (figures, versions, machine, command), `report.md` and plots.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from polyturn.agents.cli import no_loading_bars
from polyturn.benchmarks.running.code import modules_of
from polyturn.envs.files import alone_in_out
from polyturn.envs.suggest import did_you_mean


class SuiteError(ValueError):
    """An unknown suite, or results that do not belong together."""


class ChangedSuiteWarning(UserWarning):
    """A saved result is of other code than the suite's.

    The code is that of the modules in which `cells` and `run` stand and of what these import from the suite's own
    package and from polyturn (see `polyturn.benchmarks.running.code`).
    """


@dataclass(frozen=True)
class Cell:
    """One independent, seeded piece of a suite's work.

    Attributes:
        name: What is run; with `seed` it names the cell.
        seed: Seed of everything random in it.
        options: Settings; JSON values only. A saved result counts only while they are the same.
    """

    name: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The cell's file name."""
        return re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{self.name}-seed{self.seed}")


@dataclass(frozen=True)
class Outcome:
    """A cell and what running it returned (JSON values)."""

    cell: Cell
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
        name: What `polyturn bench` calls it.
        summary: One line: which claim is measured.
        cells: From (quick, seeds) to the cells; seeds is how many.
        run: Runs a cell; gets the folder for files, which all cells share. Returns JSON values.
        report: From all outcomes and the output folder to the text of `report.md`; draws its plots there.
        seeds: Default number of seeds.
        parallel: Cells may run at the same time, in separate processes; what they share they must lock.
        takes_model: Cells understand the option "model", the folder or Hub id of a policy to start from.
    """

    name: str
    summary: str
    cells: Callable[[bool, int], Sequence[Cell]]
    run: Callable[[Cell, Path], Mapping[str, Any]]
    report: Callable[[Sequence[Outcome], Path], str]
    seeds: int = 3
    parallel: bool = False
    takes_model: bool = False


BUILT_IN: dict[str, str] = {
    "car_dealer": "polyturn.benchmarks.conversations.car_dealer:SUITE",
    "distillation": "polyturn.benchmarks.distillation:SUITE",
    "coverage": "polyturn.benchmarks.coverage.suite:SUITE",
    "education": "polyturn.benchmarks.conversations.education:SUITE",
    "environments": "polyturn.benchmarks.rollouts.environments:SUITE",
    "gpo_frontier": "polyturn.benchmarks.gpo_frontier:SUITE",
    "ipo_vs_dpo": "polyturn.benchmarks.ipo_vs_dpo:SUITE",
    "nash": "polyturn.benchmarks.nash:SUITE",
    "nash_language": "polyturn.benchmarks.nash_language.suite:SUITE",
    "online_vs_offline": "polyturn.benchmarks.online_vs_offline:SUITE",
    "pmpo_control": "polyturn.benchmarks.pmpo_control:SUITE",
    "rollouts": "polyturn.benchmarks.rollouts.suite:SUITE",
    "sandbox": "polyturn.benchmarks.sandbox.suite:SUITE",
    "training_engine": "polyturn.benchmarks.training_engine.suite:SUITE",
    "stochastic_bias": "polyturn.benchmarks.stochastic_bias.suite:SUITE",
    "tool_math": "polyturn.benchmarks.tool_math:SUITE",
    "unpaired": "polyturn.benchmarks.unpaired:SUITE",
}
"""Suites of this package by name, imported when asked for."""


def names() -> dict[str, str]:
    """Every suite's name and where it is: the built-in ones and plug-ins of the entry-point group
    "polyturn.benchmarks"."""
    plugins = {point.name: point.value for point in entry_points(group="polyturn.benchmarks")}
    return {**plugins, **BUILT_IN}


def load(name: str) -> Suite:
    """A suite by name, or by "module:attribute".

    Raises:
        SuiteError: There is none of that name, or what is there is no suite.
    """
    known = names()
    place = known.get(name, name if ":" in name else "")
    if not place:
        raise SuiteError(
            f"expected a suite out of {', '.join(sorted(known))} (or module:attribute), got {name!r}."
            f"{did_you_mean(name, known)}"
        )
    module, _, attribute = place.partition(":")
    from importlib import import_module

    try:
        suite = getattr(import_module(module), attribute or "SUITE", None)
    except (Exception, SystemExit) as error:  # a package of others may raise anything
        raise SuiteError(
            f"expected the suite {name!r} at {place}, got {type(error).__name__} while its module was imported: {error}"
        ) from error
    if not isinstance(suite, Suite):
        raise SuiteError(f"expected a polyturn.benchmarks.running.suite.Suite at {place!r}, got {type(suite).__name__}")
    return suite


@alone_in_out
def run_suite(
    suite: Suite,
    out: Path,
    *,
    quick: bool = False,
    seeds: int | None = None,
    jobs: int = 1,
    model: str | None = None,
    progress: bool = True,
) -> Mapping[str, Any]:
    """Runs what is not done yet, then writes the report.

    Args:
        suite: What to run.
        out: Folder for `results.json`, `report.md`, plots, and `work/` with each cell's files.
        quick: A small form for trying it out; its figures support no claim.
        seeds: How many seeds; default the suite's (1 when quick).
        jobs: Cells at once, each in its own process with an equal share of the processors.
        model: Folder or Hub id of a policy to start from, for suites that take one.
        progress: Show a progress bar.

    Returns:
        What was written to `results.json`.

    Raises:
        SuiteError: Fewer than one seed or job, more jobs or a model where the suite can do nothing with them, or
            results of other settings in `out`.
    """
    count = (1 if quick else suite.seeds) if seeds is None else seeds
    if count < 1:
        raise SuiteError(f"expected at least one seed, got {count}")
    if jobs < 1 or (jobs > 1 and not suite.parallel):
        why = "at least one" if jobs < 1 else f"one, as the cells of {suite.name} run one after another"
        raise SuiteError(f"jobs: expected {why}, got {jobs}")
    if model is not None and not suite.takes_model:
        raise SuiteError(f"{suite.name}: expected no model, as it starts from none, got {model!r}")
    cells = list(suite.cells(quick, count))
    if model is not None:
        cells = [replace(cell, options={**cell.options, "model": model}) for cell in cells]
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(cells), desc=suite.name, unit="cell", disable=None if progress else True) as bar:
        outcomes = _one_by_one(suite, cells, work, bar) if jobs == 1 else _at_once(suite, cells, work, jobs, bar)
    record = {
        "suite": suite.name,
        "summary": suite.summary,
        "quick": quick,
        "seeds": count,
        "command": "polyturn bench "
        + suite.name
        + (" --quick" if quick else "")
        + f" --seeds {count}"
        + (f" --jobs {jobs}" if jobs > 1 else "")
        + (f" --model {model}" if model is not None else ""),
        "cpu_s": _cpu_seconds(cells, work),
        "machine": machine(),
        "cells": [
            {"name": o.cell.name, "seed": o.cell.seed, "options": dict(o.cell.options), "result": dict(o.result)}
            for o in outcomes
        ],
    }
    write_json(out / "results.json", record)
    text = suite.report(outcomes, out)
    (out / "report.md").write_text(text, "utf-8")
    return record


def _one_by_one(suite: Suite, cells: Sequence[Cell], work: Path, bar: tqdm[Any]) -> list[Outcome]:
    outcomes = []
    for cell in cells:
        bar.set_postfix_str(cell.key)
        outcomes.append(Outcome(cell, _result(suite, cell, work)))
        bar.update()
    return outcomes


def _at_once(suite: Suite, cells: Sequence[Cell], work: Path, jobs: int, bar: tqdm[Any]) -> list[Outcome]:
    """Cells in worker processes; each result is saved by its worker, so a failure loses no finished one."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, threads))  # read by the workers when they start
    try:
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_worker) as pool:
            waiting = {pool.submit(_result, suite, cell, work): cell for cell in cells}
            try:
                for done in as_completed(waiting):
                    done.result()
                    bar.set_postfix_str(waiting[done].key)
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return [Outcome(cell, done.result()) for done, cell in waiting.items()]


def _start_worker() -> None:
    """A worker whose runner is gone, killed for example, must not go on computing or wait indefinitely."""
    no_loading_bars()
    runner = os.getppid()

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="polyturn-runner-watch", daemon=True).start()


def _result(suite: Suite, cell: Cell, work: Path) -> Mapping[str, Any]:
    note = work / f"{cell.key}.json"
    options = json.loads(json.dumps(dict(cell.options)))
    modules = modules_of(suite.cells, suite.run, without=suite.report)
    code = hashlib.blake2b(json.dumps(modules, sort_keys=True).encode(), digest_size=16).hexdigest()
    listed = work / "code"  # which modules each digest stands for, once for all cells
    if note.is_file():
        saved = json.loads(note.read_text("utf-8"))
        if saved["options"] == options:
            if saved.get("code", code) != code:
                warnings.warn(
                    f"{note}: taken from a run of other code than the suite {suite.name} has now"
                    f"{_changed(listed, saved['code'], modules)}; delete it, or use another --out, to run the "
                    "cell again",
                    ChangedSuiteWarning,
                    stacklevel=2,
                )
            found: Mapping[str, Any] = saved["result"]
            return found
        raise SuiteError(
            f"{note}: expected a result of {options}, found one of {saved['options']}; use another --out, or delete it"
        )
    started = time.process_time()
    result = suite.run(cell, work)
    spent = round(time.process_time() - started, 1)
    listed.mkdir(exist_ok=True)
    write_json(listed / f"{code}.json", modules)
    write_json(note, {"options": options, "code": code, "cpu_s": spent, "result": dict(result)})
    return result


def _cpu_seconds(cells: Sequence[Cell], work: Path) -> float | None:
    """Seconds of processor time of all cells, in whatever runs they were computed; None where a note has none.

    What the cells started in processes of their own, such as a sandbox, is not in it.
    """
    notes = [json.loads((work / f"{cell.key}.json").read_text("utf-8")) for cell in cells]
    spent = [note.get("cpu_s") for note in notes]
    return None if None in spent else round(sum(spent), 1)


def _changed(listed: Path, code: str, now: Mapping[str, str]) -> str:
    """Which modules differ from those that another digest stands for."""
    before = listed / f"{code}.json"
    if not before.is_file():  # of a version that kept only one digest
        return ""
    then = json.loads(before.read_text("utf-8"))
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" (changed: {', '.join(names[:5])}{more})"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader finds the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor count, system, versions."""
    found = {}
    for package in ("polyturn", "torch", "transformers", "numpy", "gymnasium"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": found,
        "accelerator": _accelerator(),
    }


def _accelerator() -> str:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "none"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [list(header), *[[str(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95% Student interval; the interval is infinite for one value."""
    import numpy as np

    array = np.asarray(values, float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, float("-inf"), float("inf")
    half = _T95.get(len(array) - 1, 1.96 + 2.4 / (len(array) - 1)) * float(array.std(ddof=1)) / len(array) ** 0.5
    return mean, mean - half, mean + half


# 97.5% quantiles of Student's distribution by degrees of freedom; beyond, 1.96 + 2.4 / df is within 0.01.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
