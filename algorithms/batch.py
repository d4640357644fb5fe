"""Examples as padded tensors: rows are trajectories, comparisons are row indices.

Everything here is deterministic; random choices were made before, when examples were made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyturn.agents.transformer.rows import Rows
from polyturn.algorithms.estimators import mismatched_partners
from polyturn.algorithms.pairing import Example
from polyturn.envs.trajectory import Trajectory

_MAPPINGS = ("statistics", "outputs")
_Row = tuple[NDArray[np.int32], NDArray[np.integer[Any]], NDArray[np.floating[Any]]]


class TooLongWarning(UserWarning):
    """Trajectories were left out because they do not fit the length limit."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N trajectories, right padded to T tokens, and P comparisons between them.

    Attributes:
        ids: `[N, T]` int64 tokens, exactly as sampled.
        mask: `[N, T]` bool, True on real tokens.
        turn_ids: `[N, T]` int16, the turn whose action wrote the token; -1 where the agent did not write it.
        behaviour_logps: `[N, T]` float32, log-probability as sampled; nan where none was recorded, 0 outside actions.
        pairs: `[P, 2]` int64 row indices (winner, loser).
        probability: `[P]` float32, P(first beats second).
        weight: `[P]` float32, how much each pair counts.
        scores: `[N]` float32, nan where there are none.
        rewards: `[N, H]` float32, the reward of each turn as its trajectory records it; 0 for turns a row has not.
        desirable: `[N]` float32, 1 desirable, 0 undesirable, nan unknown.
        group: `[N]` int64, which example the row came from. Rows of one group stay together.
        mismatched: `[N]` bool, rows that join one example's prompt with another's continuation. They estimate how far
            the policy is from the reference; nothing is learned from them.
        statistics: Means over a whole training step that couple its rows, and "step", how many steps were done before
            this one (both set by `train`); scalars by name.
        segments: `[N, T]` int16, which segment of its trajectory (`Trajectory.segments`) a token is in; a model reads
            every segment from its own beginning. None where each row is one segment.
        outputs: What the policy's network says of each token besides its log-probability, `[N, T]` by name, with
            gradient (set by `train`): "values" of a value network, "kl" over the whole vocabulary.
    """

    ids: Tensor
    mask: Tensor
    turn_ids: Tensor
    behaviour_logps: Tensor
    pairs: Tensor
    probability: Tensor
    weight: Tensor
    scores: Tensor
    rewards: Tensor
    desirable: Tensor
    group: Tensor
    mismatched: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    segments: Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            mapping = name in _MAPPINGS
            if value is not None:
                moved[name] = {key: x.to(device) for key, x in value.items()} if mapping else value.to(device)
        return Batch(**moved)

    def select(self, rows: Tensor) -> Batch:
        """The given rows in the given order, without the columns that only padding is left in.

        Args:
            rows: `[M]` row indices, or `[N]` bool. A pair stays where both its rows do.
        """
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        place = self.group.new_full((len(self),), -1)
        place[rows] = torch.arange(len(rows), device=self.ids.device)
        pairs = place[self.pairs]
        kept = (pairs >= 0).all(1)
        mask = self.mask[rows]
        width = int(mask.sum(1).max()) if len(rows) else 0
        per_token = {n: getattr(self, n)[rows][:, :width] for n in ("ids", "mask", "turn_ids", "behaviour_logps")}
        per_row = {n: getattr(self, n)[rows] for n in ("scores", "rewards", "desirable", "group", "mismatched")}
        per_pair = {"pairs": pairs[kept], "probability": self.probability[kept], "weight": self.weight[kept]}
        outputs = {name: value[rows][:, :width] for name, value in self.outputs.items()}
        segments = None if self.segments is None else self.segments[rows][:, :width]
        if segments is not None and not bool(segments.any()):
            segments = None
        return Batch(**per_token, **per_row, **per_pair, statistics=self.statistics, outputs=outputs, segments=segments)

    def rows(self) -> Rows:
        """The tokens, packed into the forest of distinct ones, as a scorer reads them."""
        return Rows.of(self.ids, self.mask, self.segments)

    def with_statistics(self, values: Mapping[str, Tensor]) -> Batch:
        """The same batch with these `statistics` added."""
        return replace(self, statistics={**self.statistics, **values})

    def save(self, stem: str | Path) -> None:
        """Writes `stem.safetensors` and a readable `stem.json`; all but `outputs`, which come from the weights."""
        names = [f.name for f in fields(self) if f.name not in _MAPPINGS]
        tensors: dict[str, Tensor] = {
            name: value.cpu().contiguous() for name in names if (value := getattr(self, name)) is not None
        }
        tensors |= {f"statistics.{name}": value.cpu().contiguous() for name, value in self.statistics.items()}
        save_file(tensors, f"{stem}.safetensors")
        text = {name: value.tolist() for name, value in tensors.items() if value.ndim < 2 or name == "pairs"}
        text["lengths"] = self.mask.sum(1).tolist()
        Path(f"{stem}.json").write_text(json.dumps(text, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, stem: str | Path) -> Batch:
        """Reads what `save` wrote."""
        tensors = load_file(f"{stem}.safetensors")
        statistics = {name.removeprefix("statistics."): tensors.pop(name) for name in list(tensors) if "." in name}
        loaded: dict[str, Any] = tensors
        return cls(**loaded, statistics=statistics)


def collate(
    examples: Sequence[Example], *, mismatched: bool = False, pad_id: int = 0, partners: Sequence[Example] = ()
) -> Batch:
    """Pads examples into one batch; rows in order, then the mismatched rows.

    Args:
        examples: At least one. Every trajectory enters whole.
        mismatched: Add one row for each row, joining its prompt (the context of its first turn) with the continuation
            of a row with another prompt; of another start, where all prompts read the same. Of a continuation with
            several segments the first has the other prompt; later segments keep their contexts.
        pad_id: Token to pad with. No result depends on it.
        partners: Examples that are in no row, but whose continuations may stand in mismatched rows: for a step that has
            a single start of its own.

    Raises:
        ValueError: No examples; or `mismatched` with fewer than two different starts.
    """
    if not examples:
        raise ValueError("collate: expected at least one example, got none")
    # Rows: the trajectories of all examples in order.
    sizes = [len(example.trajectories) for example in examples]
    offset = np.concatenate([[0], np.cumsum(sizes)])
    trajectories = [row for example in examples for row in example.trajectories]
    group = np.repeat(np.arange(len(examples)), sizes)
    rows = [_row(trajectory) for trajectory in trajectories]
    parts = [trajectory.segment_lengths for trajectory in trajectories]
    # Then one mismatched row for each: its prompt with a continuation from another prompt.
    if mismatched:
        # Starts with other seeds may ask the same question, and its answer would be no mismatch at all.
        every = [*trajectories, *(row for example in partners for row in example.trajectories)]
        prompts = [trajectory.turns[0].context_ids.tobytes() for trajectory in every]
        starts = [trajectory.start for trajectory in every]
        other = mismatched_partners(prompts if len(set(prompts)) > 1 else starts)[: len(trajectories)]
        rows += [_joined(trajectories[i], every[j]) for i, j in enumerate(other)]
        for i, j in enumerate(other):
            lengths = every[j].segment_lengths
            moved = len(trajectories[i].turns[0].context_ids) - len(every[j].turns[0].context_ids)
            parts.append((lengths[0] + moved, *lengths[1:]))
    # Tokens, padded on the right.
    width = max(len(ids) for ids, _, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    turn_ids = torch.full((len(rows), width), -1, dtype=torch.int16)
    behaviour = torch.zeros((len(rows), width), dtype=torch.float32)
    for index, (row_ids, row_turn, row_logps) in enumerate(rows):
        size = len(row_ids)
        ids[index, :size] = torch.from_numpy(row_ids)
        mask[index, :size] = True
        turn_ids[index, :size] = torch.from_numpy(row_turn)
        behaviour[index, :size] = torch.from_numpy(row_logps)
    segments = None
    if any(len(sizes) > 1 for sizes in parts):
        segments = torch.zeros((len(rows), width), dtype=torch.int16)
        for index, lengths in enumerate(parts):
            segments[index, : sum(lengths)] = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    # What belongs to rows and to pairs; mismatched rows have no feedback.
    extra = len(rows) - len(trajectories)

    def joined(name: str, fill: int = 0) -> Tensor:
        parts = [getattr(example, name) for example in examples]
        return torch.from_numpy(np.concatenate([*parts, np.full(fill, np.nan)]).astype(np.float32))

    rewards = behaviour.new_zeros((len(rows), max(len(trajectory.turns) for trajectory in trajectories)))
    for index, trajectory in enumerate(trajectories):
        rewards[index, : len(trajectory.turns)] = torch.tensor([step.reward for step in trajectory.turns])
    pairs = np.concatenate([example.pairs + start for example, start in zip(examples, offset[:-1], strict=True)])
    return Batch(
        ids=ids,
        mask=mask,
        turn_ids=turn_ids,
        behaviour_logps=behaviour,
        pairs=torch.from_numpy(pairs.astype(np.int64)),
        probability=joined("probability"),
        weight=joined("weight"),
        scores=joined("scores", extra),
        rewards=rewards,
        desirable=joined("desirable", extra),
        group=torch.from_numpy(np.concatenate([group, group[:extra]]).astype(np.int64)),
        mismatched=torch.arange(len(rows)) >= len(trajectories),
        segments=segments,
    )


def drop_long(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Leaves out trajectories of more than `max_length` tokens, and the comparisons they were in; never cuts one.

    Rows that are in no comparison any more go with them. One warning says how many trajectories are gone.
    """
    fitting = [example.keep(example.lengths <= max_length) for example in examples]
    kept = [example for example in fitting if example is not None]
    before = sum(len(example.trajectories) for example in examples)
    after = sum(len(example.trajectories) for example in kept)
    if after < before:
        warnings.warn(
            f"left out {before - after} of {before} trajectories and {len(examples) - len(kept)} of {len(examples)} "
            f"examples: longer than {max_length} tokens, or compared with one that is; raise max_length to keep them",
            TooLongWarning,
            stacklevel=2,
        )
    return kept


def _row(trajectory: Trajectory) -> _Row:
    ids, turn_ids = trajectory.tokens
    logps = [
        np.concatenate(
            [
                np.zeros(len(step.context_ids)),
                step.logps if len(step.logps) else np.full(len(step.action_ids), np.nan),
            ]
        )
        for step in trajectory.turns
    ]
    return ids, turn_ids, np.concatenate(logps)


def _joined(prompt: Trajectory, continuation: Trajectory) -> _Row:
    head = prompt.turns[0].context_ids
    skip = len(continuation.turns[0].context_ids)
    ids, turn_ids, logps = _row(continuation)
    return (
        np.concatenate([head, ids[skip:]]),
        np.concatenate([np.full(len(head), -1), turn_ids[skip:]]),
        # This row was not sampled, so no recorded log-probabilities belong to it.
        np.concatenate([np.zeros(len(head)), np.full(len(logps) - skip, np.nan)]),
    )
