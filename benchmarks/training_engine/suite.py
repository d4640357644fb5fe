"""Suite `training_engine`: a preference step beside TRL's trainers, beside its arithmetic, and how it grows.

    sh scripts/peers.sh                       TRL in a separate environment (.cache/peers)
    polyturn bench training_engine

Every way runs in a fresh process with one thread, on the same weights and the same tokens: CPU-seconds and wall seconds
of a step, and the peak of memory over what the loaded models take. Without the peer's environment those rows say so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.suite import Cell, Suite
from polyturn.benchmarks.training_engine.report import report
from polyturn.benchmarks.training_engine.shapes import draw_groups, peer_rows

_PEER = Path(__file__).resolve().parent / "trl_peer.py"
PEERS = "POLYTURN_PEERS"
"""Environment variable: Python of an environment that has TRL."""
_BEST = ("default", "its best")
_TIMEOUT_S = 3600


def cells(quick: bool, seeds: int) -> Sequence[Cell]:
    """Shapes and vocabularies, then what is scaled."""
    model = {"hidden": 64, "layers": 2} if quick else {"hidden": 256, "layers": 6}
    repeats = 2 if quick else 5
    shapes = ["small"] if quick else ["pairs", "one pair", "group", "tree"]
    made = []
    for vocabulary in (1000,) if quick else (32_000, 152_000):
        for shape in shapes:
            # The larger vocabulary only shows the head's share, which one shape does.
            if vocabulary != 152_000 or shape == "one pair":
                settings = {"shape": shape, "vocabulary": vocabulary, "repeats": repeats, **model}
                made.append(Cell(f"{shape}, {vocabulary}", 0, settings))
    base = {"length": 512, "members": 4, "share": 0.5}
    series: dict[str, list[Any]] = {
        "length": [64, 128] if quick else [512, 1024, 2048, 4096, 8192, 16_384],
        "members": [2, 4] if quick else [2, 4, 8, 16, 32, 64],
        "share": [0.0, 0.9] if quick else [0.0, 0.25, 0.5, 0.75, 0.95],
    }
    for quantity, values in series.items():
        for value in values:
            settings = {**base, quantity: value, "quantity": quantity, "repeats": 2 if quick else 5}
            if quantity == "length":
                settings["members"] = 2
            made.append(Cell(f"{quantity} {value}", 0, settings))
    for vocabulary in (500, 1000) if quick else (8_000, 32_000, 128_000):
        settings = {**base, "quantity": "vocabulary", "vocabulary": vocabulary, "repeats": 2 if quick else 5}
        made += [Cell(f"vocabulary {vocabulary}", 0, settings)]
    return made


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """All ways of one shape, or one point of a scaling series."""
    options = cell.options
    folder = folder / f"files-{cell.key}"
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if "quantity" in options:
        _made(model, options.get("vocabulary", 8000), hidden=128, layers=2)
        job = {name: options[name] for name in ("length", "members", "share", "repeats")}
        return {"scaling": _own({"kind": "scaling", "model": str(model), **job})}
    _made(model, options["vocabulary"], hidden=options["hidden"], layers=options["layers"])
    shape = {"shape": options["shape"], "vocabulary": options["vocabulary"], "model": str(model)}
    result: dict[str, Any] = {"floor": _own({"kind": "floor", **shape}), "profile": _own({"kind": "profile", **shape})}
    groups = draw_groups(options["shape"], options["vocabulary"])
    rows = folder / "rows.json"
    rows.write_text(json.dumps(peer_rows(options["shape"], groups)), "utf-8")
    for way in ("default", "reference cached", "checkpointed", "compiled"):
        result[f"polyturn, {way}"] = _own({"kind": "step", **shape, "way": way, "repeats": options["repeats"]})
    # Of large shared prefixes only the default is run: it is what the aims are set against, and takes minutes.
    for settings in _BEST if options["shape"] not in ("group", "tree") else _BEST[:1]:
        result[f"TRL DPO, {settings}"] = _peer("dpo", settings, rows, model, folder, options["repeats"])
    if options["shape"] in ("pairs", "small"):
        kto = {"kind": "step", **shape, "way": "default", "repeats": options["repeats"], "method": "mkto"}
        if len(groups) > 1:
            result["polyturn MKTO, default"] = _own(kto)
            result["TRL KTO, default"] = _peer("kto", "default", rows, model, folder, options["repeats"])
    return result


def peer_python() -> Path:
    """The interpreter that has the peers."""
    return Path(os.environ.get(PEERS, ".cache/peers/bin/python"))


def _made(folder: Path, vocabulary: int, *, hidden: int, layers: int) -> None:
    """The random model, written by a separate process so that this one never loads it."""
    if not (folder / "config.json").exists():
        _own({"kind": "model", "model": str(folder), "vocabulary": vocabulary, "hidden": hidden, "layers": layers})


def _own(job: Mapping[str, Any]) -> dict[str, Any]:
    return _figures([sys.executable, "-m", "polyturn.benchmarks.training_engine.worker", json.dumps(job)])


def _peer(trainer: str, settings: str, rows: Path, model: Path, folder: Path, repeats: int) -> dict[str, Any]:
    python = peer_python()
    if not python.exists():
        return {"failed": f"not run: no {python}; make it with scripts/peers.sh, or set {PEERS}"}
    job = {
        "trainer": trainer,
        "settings": settings,
        "rows": str(rows),
        "model": str(model),
        "folder": str(folder / "peer"),
        "repeats": repeats,
    }
    return _figures([str(python), str(_PEER), json.dumps(job)])


def _figures(command: Sequence[str]) -> dict[str, Any]:
    """The last line that a measuring process prints, as JSON; or why there is none."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        return {"failed": f"not run: exit status {done.returncode}, {reason[:200]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


SUITE = Suite(
    name="training_engine",
    summary="a preference step's time and memory: beside TRL, beside its arithmetic, and by size",
    cells=cells,
    run=run,
    report=report,
    seeds=1,
    parallel=True,
)
