"""What a problem is, and an ordered collection of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np


class ProblemFileError(ValueError):
    """A source of problems cannot be read; the message names the place, what was expected and got, and a remedy."""


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    Attributes:
        id: Stable and unique in its collection, for example "gsm8k_train/17" or "generated/2/0/test/42".
        question: What the agent is asked.
        answer: Gold final answer, plain or LaTeX; what `polyturn.envs.grading.grade.grade` compares with.
        solution: Worked solution as the data set gives it, or "".
        source: Where it came from: a file's name, a Hub id, or "generated".
        level: Difficulty as the data set names it, or "".
        topic: Subject as the data set names it, or "".
        info: Anything else; JSON values only. Generated problems keep their arithmetic here under "steps".
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    source: str = ""
    level: str = ""
    topic: str = ""
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Problems(Sequence[Problem]):
    """An immutable sequence of problems; slices and shuffles are views that copy no problem.

    Attributes:
        name: What to call the collection in tables and logs.
    """

    def __init__(self, items: Iterable[Problem], *, name: str = "", order: Sequence[int] | None = None) -> None:
        self._items: Sequence[Problem] = items if isinstance(items, tuple) else tuple(items)
        self._order: Sequence[int] = range(len(self._items)) if order is None else order
        self.name = name

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Problem]:
        return (self._items[position] for position in self._order)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Problems: ...
    def __getitem__(self, index: int | slice) -> Problem | Problems:
        if isinstance(index, slice):
            return Problems(self._items, name=self.name, order=self._order[index])
        return self._items[self._order[index]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problems) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Problems({self.name!r}, {len(self)} problems)"

    def shuffled(self, seed: int) -> Problems:
        """The same problems in an order that depends on `seed` and on nothing else."""
        permutation = np.random.default_rng(seed).permutation(len(self))
        return Problems(self._items, name=self.name, order=tuple(self._order[int(i)] for i in permutation))
