"""Rows packed as a forest: they come back exactly, a token sees its own past only, and what is shared is held once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from polyturn.agents.transformer.forest import Forest, chains, cut, distinct, pack, spread
from polyturn.agents.transformer.rows import leaf_batches

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=9)


def packed(rows: list[list[int]]) -> Forest:
    return pack(*spread([np.array(row, np.int64) for row in rows]))


def ancestors(forest: Forest) -> NDArray[np.bool_]:
    """`[P, P]` by walking up, token by token."""
    found = np.zeros((len(forest), len(forest)), bool)
    for query in range(len(forest)):
        token = query
        while token >= 0:
            found[query, token] = True
            token = int(forest.parent[token])
    return found


def test_a_forest_by_hand() -> None:
    """abcd, abx, ab and y: two trees; ab is shared, abcd parts from abx after it, ab ends inside."""
    forest = packed([[1, 2, 3, 4], [1, 2, 9], [1, 2], [7]])
    assert forest.ids.tolist() == [1, 2, 3, 4, 9, 7]
    assert forest.depth.tolist() == [0, 1, 2, 3, 2, 0]
    assert forest.parent.tolist() == [-1, 0, 1, 2, 1, -1]
    assert forest.end.tolist() == [5, 5, 4, 4, 5, 6]
    assert forest.place.tolist() == [[0, 1, 2, 3], [0, 1, 4, -1], [0, 1, -1, -1], [5, -1, -1, -1]]
    assert forest.leaves().tolist() == [0, 1, 3]
    assert forest.row_tokens == 10


@settings(max_examples=300, deadline=None)
@given(ROWS)
def test_rows_come_back_and_a_token_sees_its_own_past(rows: list[list[int]]) -> None:
    forest = packed(rows)
    assert [row.tolist() for row in forest.rows()] == rows
    assert len(forest) == len({tuple(row[:k]) for row in rows for k in range(1, len(row) + 1)})
    every = np.arange(len(forest))
    assert (forest.sees(every, every) == ancestors(forest)).all()
    assert (forest.depth == ancestors(forest).sum(1) - 1).all()
    ids, lengths = spread([np.array(row, np.int64) for row in rows])
    assert distinct(ids, lengths) == len(forest)
    assert [row.tolist() for row in chains(ids, lengths).rows()] == rows
    assert len(chains(ids, lengths)) == sum(map(len, rows))


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_leaves_hold_every_token_and_none_is_the_beginning_of_another(rows: list[list[int]]) -> None:
    forest = packed(rows)
    leaves = forest.leaves()
    held = {int(place) for leaf in leaves for place in forest.place[leaf] if place >= 0}
    assert held == set(range(len(forest)))
    texts = [rows[leaf] for leaf in leaves]
    assert not any(a is not b and b[: len(a)] == a for a in texts for b in texts)
    batches = leaf_batches(forest)
    assert sorted(int(leaf) for batch in batches for leaf in batch) == leaves.tolist()
    for batch in batches:
        lengths = [len(rows[leaf]) for leaf in batch]
        assert sum(lengths) >= 0.9 * max(lengths) * len(lengths)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(1, 12))
def test_cut_rows_fit_the_limit_and_none_is_lost(rows: list[list[int]], limit: int) -> None:
    ids, lengths = spread([np.array(row, np.int64) for row in rows])
    sets = cut(ids, lengths, limit)
    assert sorted(int(row) for each in sets for row in each) == list(range(len(rows)))
    for each in sets:
        assert distinct(ids[each], lengths[each]) <= limit or len({tuple(rows[row]) for row in each}) == 1


def test_rows_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected rows of 1 to 3 tokens, got lengths \[2, 0\]"):
        pack(np.zeros((2, 3), np.int64), np.array([2, 0]))
    with pytest.raises(ValueError, match="got lengths"):
        pack(np.zeros((1, 3), np.int64), np.array([4]))
