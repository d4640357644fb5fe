"""From a source's next step to the batch that is learned from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from polyturn.algorithms.batch import Batch, collate, drop_long
from polyturn.algorithms.methods.base import Hooks
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training.data_source import AnnotatedGroup, DataSource
from polyturn.algorithms.training.own_samples import temperature_of

# A source of fresh groups is asked this often for something to learn from before training gives up.
_EMPTY_DRAWS = 16


def next_batch(data: DataSource, method: Hooks, max_length: int | None) -> Batch | None:
    """The next step's batch; None where the source has ended.

    Fresh groups may hold nothing to compare (all right, all wrong); then the source is asked again.
    """
    for _ in range(_EMPTY_DRAWS):
        item: Any = data.next()
        if item is None:
            return None
        if isinstance(item, Batch):
            return _checked(item, method, max_length)
        items = list(item) if isinstance(item, Iterable) else []
        strange = [one for one in items if not isinstance(one, (Example, AnnotatedGroup))]
        if not isinstance(item, Iterable):
            strange = [item]
        if strange:
            raise ValueError(
                "batches: expected step after step, each a Batch or a list of Examples or AnnotatedGroups, got a step "
                f"that is or holds one {type(strange[0]).__name__}; minibatches(examples, size, seed=0) makes steps of "
                "examples, method.examples(group, preference, rng) an example of a group"
            )
        examples = [one if isinstance(one, Example) else _taken(method, one) for one in items]
        found = [example for example in examples if example is not None]
        kept = found if max_length is None else drop_long(found, max_length)
        mismatched = method.needs.mismatched
        fresh = not items or any(isinstance(one, AnnotatedGroup) for one in items)
        # Of fresh groups a single one may be left, which has no other prompt to be mismatched with.
        single = fresh and mismatched and len({example.trajectories[0].start for example in kept}) < 2
        if kept and not single:
            partners = _partners(data, kept, max_length) if mismatched else ()
            batch = collate(kept, mismatched=mismatched, partners=partners)
            if not method.needs.sampled:
                return batch
            names = {row.agent for example in kept for row in example.trajectories}
            at = torch.tensor(temperature_of(method, names), dtype=torch.float64)
            return batch.with_statistics({"temperature": at})
        if (found and not kept) or not fresh:
            raise ValueError(f"expected examples to learn from, got none of at most {max_length} tokens")
    raise ValueError(
        f"{method.name}: expected groups with something to learn from, got none in {_EMPTY_DRAWS} draws; "
        "use larger groups, a higher temperature or other tasks"
    )


def _partners(data: DataSource, examples: Sequence[Example], max_length: int | None) -> list[Example]:
    """Examples of later steps whose continuations make mismatched rows, where a step's rows have a single start."""
    starts = {example.trajectories[0].start for example in examples}
    if len(starts) > 1:
        return []
    for step in data.ahead():
        items = [] if isinstance(step, Batch) else [one for one in step if isinstance(one, Example)]
        fitting = [
            each.keep(each.lengths <= (each.lengths.max() if max_length is None else max_length)) for each in items
        ]
        if others := [one for one in fitting if one is not None and one.trajectories[0].start not in starts]:
            return others
    return []


def _taken(method: Hooks, annotated: AnnotatedGroup) -> Example | None:
    """What the method takes of a group."""
    if method.examples is None:
        raise ValueError(
            f"{method.name}: expected a method with examples(group, preference, rng) to learn from "
            "annotated groups, got one without; give it batches or examples"
        )
    return method.examples(annotated.group, annotated.preference, np.random.default_rng(annotated.seed))


def _checked(batch: Batch, method: Hooks, max_length: int | None) -> Batch:
    if max_length is not None:
        raise ValueError("max_length: expected examples to choose from, got a ready batch; use drop_long before")
    if method.needs.mismatched and not bool(batch.mismatched.any()):
        raise ValueError(f"{method.name} needs collate(examples, mismatched=True), got a batch without")
    labels = batch.desirable[~batch.desirable.isnan()]
    if bool(((labels != 0) & (labels != 1)).any()):
        raise ValueError("Batch.desirable: expected 1 (desirable), 0 (undesirable) or nan (unknown), got other numbers")
    return batch
