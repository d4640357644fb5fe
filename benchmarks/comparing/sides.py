"""What is compared: the episodes of a store by their starts, or the figures of results by cell and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from polyturn.envs.outcomes import success_of
from polyturn.envs.store import read
from polyturn.envs.viewing.book import leaves
from polyturn.envs.viewing.sources import find

Key = tuple[str, ...]
Measure = Literal["success", "return"]


class NotComparable(ValueError):
    """What was named cannot be compared."""


@dataclass(frozen=True)
class Side:
    """One of those compared.

    Attributes:
        name: How the report calls it.
        store: The store its episodes are from; None for figures of results.
        values: By task, the values of its valid samples in order.
        places: By task, the position in the store of its first sample.
        invalid: Episodes left out because something outside the agent failed.
    """

    name: str
    store: Path | None
    values: Mapping[Key, Sequence[float]]
    places: Mapping[Key, int]
    invalid: int = 0

    def mean(self, key: Key) -> float:
        """A task's value."""
        return float(np.mean(self.values[key]))


@dataclass(frozen=True)
class Sides:
    """All that are compared, in one measure.

    Attributes:
        measure: Its name.
        sides: Two or more.
        shared: Tasks that all of them have, in the first one's order.
        binary: Every value is a success or a failure of a single sample.
    """

    measure: str
    sides: tuple[Side, ...]
    shared: tuple[Key, ...]
    binary: bool


def stores_of(paths: Sequence[Path]) -> list[Path]:
    """The one store of each path.

    Raises:
        NotComparable: A folder holds several, or none.
    """
    found = []
    for path in paths:
        stores = find([path]).stores
        if len(stores) != 1:
            names = ", ".join(str(store) for store in stores[:6]) or "none"
            raise NotComparable(f"{path}: expected one store of trajectories, got {names}; name the one to compare")
        found.append(stores[0])
    return found


def episodes(paths: Sequence[Path], measure: Measure | None = None) -> Sides:
    """Pairs the episodes of stores by their starts: environment, options, seed and task.

    Args:
        paths: Stores, or folders with one store each.
        measure: "success" or "return"; by default success where every environment says what it is.

    Raises:
        NotComparable: No start is in all of them, or success is asked for where an environment does not say it.
        StoreError: A store cannot be read.
    """
    stores = stores_of(paths)
    collected = []
    decided = True
    for store in stores:
        outcomes: dict[Key, list[tuple[float, bool | None]]] = {}
        places: dict[Key, int] = {}
        invalid = 0
        for number, trajectory in enumerate(read(store), 1):
            if not trajectory.valid:
                invalid += 1
                continue
            env_id, seed, task, options, _ = trajectory.start
            key = (task or env_id, str(seed), env_id, options)
            success = success_of(trajectory)
            decided = decided and success is not None
            outcomes.setdefault(key, []).append((trajectory.total_reward, success))
            places.setdefault(key, number)
        collected.append((store, outcomes, places, invalid))
    if measure == "success" and not decided:
        raise NotComparable("expected episodes whose environment says what a success is, got others; compare returns")
    chosen: Measure = measure or ("success" if decided else "return")
    names = _names(stores)
    sides = tuple(
        Side(
            name,
            store,
            {key: [float(bool(s)) if chosen == "success" else r for r, s in found] for key, found in outcomes.items()},
            places,
            invalid,
        )
        for name, (store, outcomes, places, invalid) in zip(names, collected, strict=True)
    )
    return _together(chosen, sides)


def figures(paths: Sequence[Path]) -> list[Sides]:
    """Pairs the cells of results of one suite by name and seed; one comparison for every figure that all have.

    Raises:
        NotComparable: Results of different suites, or without a common cell.
    """
    names, suites, records = _names(paths), set(), []
    for path in paths:
        file = path / "results.json" if path.is_dir() else path
        record = json.loads(file.read_text("utf-8"))
        if not isinstance(record, dict) or not isinstance(record.get("cells"), list):
            raise NotComparable(f"{file}: expected the results of a suite, found something else")
        suites.add(record.get("suite"))
        records.append({(str(c["name"]), str(c["seed"])): dict(leaves(c["result"])) for c in record["cells"]})
    if len(suites) > 1:
        raise NotComparable(f"expected results of one suite, got {', '.join(sorted(map(str, suites)))}")
    measures = set.intersection(*({name for cell in record.values() for name in cell} for record in records))
    found = []
    for measure in sorted(measures):
        sides = tuple(
            Side(name, None, {key: [cell[measure]] for key, cell in record.items() if measure in cell}, {})
            for name, record in zip(names, records, strict=True)
        )
        if any(all(key in side.values for side in sides) for key in sides[0].values):
            found.append(_together(measure, sides))
    if not found:
        raise NotComparable("expected results with a cell and a figure in common, got none")
    return found


def _together(measure: str, sides: tuple[Side, ...]) -> Sides:
    shared = tuple(key for key in sides[0].values if all(key in side.values for side in sides))
    if not shared:
        raise NotComparable(
            f"expected starts that all of them have, got none in common ({', '.join(s.name for s in sides)}); evaluate "
            "them with the same environment, options, tasks and seed"
        )
    single = all(len(side.values[key]) == 1 for side in sides for key in shared)
    return Sides(measure, sides, shared, binary=bool(sides[0].store) and measure == "success" and single)


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ: the last parts of the paths, the fewest that differ."""
    whole = [path.absolute().with_suffix("") if path.suffix == ".jsonl" else path.absolute() for path in paths]
    for parts in range(1, max(len(path.parts) for path in whole) + 1):
        names = ["/".join(path.parts[-parts:]) for path in whole]
        if len(set(names)) == len(names):
            return names
    raise NotComparable(f"expected different paths, got {', '.join(map(str, paths))}")
