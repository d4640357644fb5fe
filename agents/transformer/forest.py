"""Token rows as a forest: what several rows share is held, and computed, once.

Rows with the same first tokens are one tree that branches where they differ, token by token: a prompt that all members
of a group share, turns played before a branch, whole duplicates. Trees stand one after another in one packed line,
without padding. Three integers a token describe it all:

- `depth`: how many tokens stand before it in its rows, which is its position;
- `parent`: the packed index of the token before it, -1 at a row's beginning;
- `end`: one past the last packed index of the tokens that follow it in any row. Rows are laid out in sorted order, so
  these stand together, and a token q sees a token k exactly if `k <= q < end[k]`.

In such a forest every token has one predecessor, so "the log-probability of a token" is defined once for all rows that
share it: it belongs to the edge from `parent[k]` to `k`. Rows read it back through `place`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Forest:
    """N rows of tokens, packed into P distinct ones.

    Attributes:
        ids: `[P]` tokens.
        depth: `[P]` position of each in its rows.
        parent: `[P]` packed index of the token before it, -1 for the first of a row.
        end: `[P]` one past the last packed index of its subtree.
        place: `[N, T]` packed index of each row's tokens, -1 beyond a row's length.
        starts: `[S]` packed index at which each stretch begins: the tokens that one row adds to those before it in
            sorted order. Within a stretch every token's parent is its neighbour.
    """

    ids: Index
    depth: Index
    parent: Index
    end: Index
    place: Index
    starts: Index

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows, shared ones counted once a row."""
        return int((self.place >= 0).sum())

    def rows(self) -> list[Index]:
        """The rows' tokens, in the order in which they were given."""
        return [self.ids[line[line >= 0]] for line in self.place]

    def sees(self, query: Index, key: Index) -> NDArray[np.bool_]:
        """`[Q, K]` whether each query token has each key token on its path; every token sees itself."""
        q, k = query[:, None], key[None, :]
        return (k <= q) & (q < self.end[key][None, :])

    def leaves(self) -> Index:
        """Rows that are no beginning of another, one of each set of duplicates; together they hold every token."""
        lengths = (self.place >= 0).sum(1)
        last = self.place[np.arange(len(lengths)), lengths - 1]
        # A row that others continue does not end at a leaf: something follows its last token.
        found = np.flatnonzero(self.end[last] == last + 1)
        _, first = np.unique(last[found], return_index=True)
        return np.sort(found[first])


def pack(ids: Index, lengths: Index) -> Forest:
    """Packs right-padded rows.

    Args:
        ids: `[N, T]` tokens; what stands beyond a row's length is not looked at.
        lengths: `[N]` tokens of each row, at least one.

    Raises:
        ValueError: A row without tokens, or longer than `ids` is wide.
    """
    count, width = ids.shape
    if count == 0 or lengths.min() < 1 or lengths.max() > width:
        raise ValueError(f"pack: expected rows of 1 to {width} tokens, got lengths {lengths.tolist()}")
    order = _sorted(ids, lengths)
    shared = _shared_with_previous(ids, lengths, order)
    total = int((lengths[order] - shared).sum())
    packed, depth, parent, end = (np.empty(total, np.int64) for _ in range(4))
    place = np.full((count, width), -1, np.int64)
    starts: list[int] = []
    path = np.empty(width, np.int64)  # packed index of each token of the row at hand
    open_until = at = 0  # length of the path, whose tokens' subtrees are still open
    for row, prefix in zip(order.tolist(), shared.tolist(), strict=True):
        length = int(lengths[row])
        end[path[prefix:open_until]] = at  # the rows before this one have parted from it here
        new = np.arange(at, at + length - prefix)
        path[prefix:length] = new
        place[row, :length] = path[:length]
        if len(new):
            starts.append(at)
            packed[new], depth[new] = ids[row, prefix:length], np.arange(prefix, length)
            parent[new] = new - 1
            parent[at] = path[prefix - 1] if prefix else -1
        open_until, at = length, at + len(new)
    end[path[:open_until]] = total
    return Forest(packed, depth, parent, end, place, np.array(starts, np.int64))


def chains(ids: Index, lengths: Index) -> Forest:
    """The same rows with nothing shared: each is its own tree, in the order given. What packing is compared with."""
    count, width = ids.shape
    real = np.arange(width)[None] < lengths[:, None]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    place = np.where(real, starts[:, None] + np.arange(width)[None], -1)
    depth = np.broadcast_to(np.arange(width)[None], (count, width))[real].astype(np.int64)
    parent = np.where(depth > 0, np.arange(len(depth)) - 1, -1)
    return Forest(ids[real].astype(np.int64), depth, parent, np.repeat(starts + lengths, lengths), place, starts)


def distinct(ids: Index, lengths: Index) -> int:
    """How many distinct tokens `pack` would find."""
    order = _sorted(ids, lengths)
    return int((lengths[order] - _shared_with_previous(ids, lengths, order)).sum())


def cut(ids: Index, lengths: Index, limit: int) -> list[Index]:
    """Rows in sets of at most `limit` distinct tokens each, neighbours in sorted order together.

    A row longer than the limit is its own set: rows are never cut.

    Args:
        ids: `[N, T]` tokens, right padded.
        lengths: `[N]` tokens of each row.
        limit: Distinct tokens of a set.

    Returns:
        Row indices of each set; together every row once.
    """
    order = _sorted(ids, lengths)
    shared = _shared_with_previous(ids, lengths, order)
    sets: list[list[int]] = []
    held = 0
    for row, prefix in zip(order.tolist(), shared.tolist(), strict=True):
        length = int(lengths[row])
        if not sets or held + length - prefix > limit:
            sets.append([])
            held, prefix = 0, 0
        sets[-1].append(row)
        held += length - prefix
    return [np.array(rows, np.int64) for rows in sets]


def _sorted(ids: Index, lengths: Index) -> Index:
    """Rows in lexicographic order; a row comes before those that it is the beginning of."""
    wide = ids.astype(">u8")  # big-endian bytes sort as the numbers do
    keys = [wide[row, :length].tobytes() for row, length in enumerate(lengths.tolist())]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _shared_with_previous(ids: Index, lengths: Index, order: Index) -> Index:
    """`[N]` how many first tokens each row shares with the row before it in `order`."""
    shared = np.zeros(len(order), np.int64)
    for at in range(1, len(order)):
        before, row = order[at - 1], order[at]
        common = int(min(lengths[before], lengths[row]))
        parted = np.flatnonzero(ids[before, :common] != ids[row, :common])
        shared[at] = parted[0] if len(parted) else common
    return shared


def spread(rows: Sequence[Index]) -> tuple[Index, Index]:
    """Rows of different lengths as `ids [N, T]` and `lengths [N]`."""
    lengths = np.array([len(row) for row in rows], np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, lengths
