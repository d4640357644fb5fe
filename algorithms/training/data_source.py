"""Where a training run's batches come from, step by step, and how a resumed run finds its place again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.pairing import Example
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.trajectory import Group


@dataclass(frozen=True, eq=False)
class AnnotatedGroup:
    """A group and what is preferred in it, before a method has taken from it what it learns from.

    Attributes:
        group: Valid trajectories from one start.
        preference: Over all members of `group`.
        seed: Of the method's random choices: which pairs, which winners.
    """

    group: Group
    preference: Preference
    seed: tuple[int, ...]


# Steps of a function that are looked at for a row with another prompt.
_LOOK_AHEAD = 16

Step = Batch | Sequence[Example] | Sequence[AnnotatedGroup]
Source = Callable[[int], Step] | Iterable[Step]
"""What `train` takes: a function of a number counted from 0, or an iterable.

A step is a batch, or examples, or annotated groups that the method makes examples of.

A function is asked with 0, 1, 2, ...; a step's groups that teach nothing are left out, and the next number is asked. A
sequence, or anything else that can be iterated again, starts over at its end. An iterator ends the training where it
ends. A resumed run goes on with what would have come next: an iterable with `state_dict` and `load_state_dict` (JSON
values) is put back where it was, any other source is moved on by the number of steps that were asked for. A source with
`samplers`, names of the agents whose turns will be learned from, lets a run refuse them before they act; one with
`staleness`, draws between the weights that sampled and those that are trained, lets methods refuse that. One with
`fingerprint()`, JSON values that decide what it gives, lets a resumed run notice other data.
"""


@dataclass(frozen=True, eq=False)
class Minibatches:
    """What `minibatches` returns: from the number of a step to its examples.

    Attributes:
        examples: All of them.
        size: Examples a step.
        seed: Of the orders.
    """

    examples: tuple[Example, ...]
    size: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.examples) // self.size)

    def __call__(self, step: int) -> list[Example]:
        """The examples of a step, counted from 0."""
        epoch, position = divmod(step, self.steps)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        return [self.examples[i] for i in np.array_split(order, self.steps)[position]]

    def fingerprint(self) -> dict[str, Any]:
        """What decides every step, as JSON values; the examples by a digest of all they hold."""
        return {"examples": examples_digest(self.examples), "batch_size": self.size, "order": self.seed}


def examples_digest(examples: Iterable[Example]) -> str:
    """A digest of the tokens, labels and comparisons of examples, with their number."""
    found = hashlib.blake2b(digest_size=16)
    count = 0

    def add(part: NDArray[Any]) -> None:
        found.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())

    for example in examples:
        count += 1
        for row in example.trajectories:
            for tokens in row.tokens:
                add(tokens)
            for turn in row.turns:
                add(turn.logps)
            found.update(repr([turn.reward for turn in row.turns]).encode())
        for part in (example.pairs, example.probability, example.weight, example.scores, example.desirable):
            add(part)
    return f"{count} {found.hexdigest()}"


def source_fingerprint(source: Source) -> dict[str, Any] | None:
    """What a source says of its data, as JSON values; of a list of examples their digest; else None."""
    said = getattr(source, "fingerprint", None)
    if said is not None:
        return dict(said())
    if isinstance(source, Sequence) and all(isinstance(step, Sequence) for step in source):
        every = [item for step in source for item in cast("Sequence[Any]", step)]
        if all(isinstance(item, Example) for item in every):
            return {"examples": examples_digest(every), "steps": len(source)}
    return None


def minibatches(examples: Sequence[Example], size: int, *, seed: int) -> Minibatches:
    """Batches of at most `size` examples; every epoch in a new order that only `seed` and the epoch decide.

    No example is skipped or repeated in an epoch; where the numbers do not divide, batches differ by one in size
    rather than leaving a small last one.

    Args:
        examples: One for each group that can be learned from.
        size: Examples a step.
        seed: Decides the orders.

    Raises:
        ValueError: There are no examples.
    """
    check_count("minibatches: size", size)
    if not examples:
        raise ValueError(
            "minibatches: expected at least one example, got none; groups teach nothing where no member is better than "
            "another, where all failed, or where their first prompt is longer than the agent's max_tokens"
        )
    return Minibatches(tuple(examples), size, seed)


def steps_of(count: int, size: int, *, epochs: float = 1.0) -> int:
    """Steps in which `minibatches` of `count` examples passes over them `epochs` times; at least one.

    An epoch has the last, incomplete batch's step too: 33 examples in batches of 32 make two steps of 17 and 16.
    """
    check_count("steps_of: count", count)
    check_count("steps_of: size", size)
    check_range("steps_of: epochs", epochs, 0, above=True)
    return max(1, round(epochs * -(-count // size)))


class DataSource:
    """One step's examples after another.

    Args:
        source: See `Source`.
        start: Steps that are done; where the source is if there is no `state`.
        state: What `state` gave when they were.
    """

    def __init__(self, source: Source, *, start: int = 0, state: Any = None) -> None:
        self._source = source
        knows = not callable(source) and hasattr(source, "load_state_dict")
        # More may have been asked for than there were steps: what taught nothing made none.
        self._asked = state if isinstance(state, int) and not knows else start
        self._items: Iterator[Step] | None = None
        if callable(source):
            return
        if knows and state is not None:
            cast("Any", source).load_state_dict(state)
            self._items = iter(source)
        elif isinstance(source, Sequence):
            self._items = iter(source[self._asked % len(source) :] if source else [])
        else:
            self._items = iter(source)
            for _ in range(self._asked):
                self._following()

    @property
    def state(self) -> Any:
        """Position as JSON values: the source's own where it knows it, else how many steps were asked for."""
        own = getattr(self._source, "state_dict", None)
        return self._asked if own is None else own()

    @property
    def metrics(self) -> dict[str, float]:
        """What a source reports of the step it gave last, for the run's records; nothing unless it has `metrics`."""
        return dict(getattr(self._source, "metrics", {}))

    def next(self) -> Step | None:
        """The next step's examples; None where an iterator has ended."""
        if self._items is None:
            item: Step | None = cast("Callable[[int], Step]", self._source)(self._asked)
        else:
            item = self._following()
        self._asked += 1
        return item

    def ahead(self) -> Iterator[Step]:
        """The next steps, at most one pass of a sequence, without moving on; none where only `next` knows."""
        source: Any = self._source
        if self._items is None:
            yield from (source(self._asked + more) for more in range(_LOOK_AHEAD))
        elif isinstance(source, Sequence) and not hasattr(source, "load_state_dict"):
            yield from (source[(self._asked + more) % len(source)] for more in range(len(source)))

    def _following(self) -> Step | None:
        source = cast("Iterable[Step]", self._source)
        items = cast("Iterator[Step]", self._items)
        found = list(islice(items, 1))
        if not found and iter(source) is not items:
            self._items = iter(source)
            found = list(islice(self._items, 1))
        return found[0] if found else None
