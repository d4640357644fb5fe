"""The GPU kernels' view of a forest: their tiles hold every pair and nothing else, their formula is the blocks'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyturn.agents.transformer.forest import Forest, chains, pack, spread
from polyturn.agents.transformer.forest_attention import ForestMask, Plan, forest_attention
from polyturn.agents.transformer.forest_kernels import _tiles, block_mask, flex, kernel_for

CPU = torch.device("cpu")


def tree(seed: int, *, rows: int = 7, longest: int = 400) -> Forest:
    """Rows that part at random places, some from the beginning."""
    rng = np.random.default_rng(seed)
    lines = [rng.integers(0, 50, longest)]
    for _ in range(rows - 1):
        line = lines[rng.integers(len(lines))].copy()
        line[rng.integers(0, len(line)) :] += 1
        lines.append(line[: rng.integers(1, longest)])
    return pack(*spread(lines))


@pytest.mark.parametrize("window", [None, 5, 100, 300])
@pytest.mark.parametrize("seed", range(4))
def test_tiles_cover_all_pairs_and_full_ones_hold_nothing_else(seed: int, window: int | None) -> None:
    forest = tree(seed)
    every = np.arange(len(forest))
    truth = forest.sees(every, every)
    if window is not None:
        truth &= forest.depth[:, None] - forest.depth[None] < window
    some, full = _tiles(forest, window)
    for i, j in np.ndindex(some.shape):
        tile = truth[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)]
        assert some[i, j] or not tile.any()
        assert not full[i, j] or (tile.all() and tile.shape == (128, 128))
    # Without a window no tile is looked at in vain, and the mask is sparse and has full tiles.
    if window is None:
        assert int(some.sum()) == sum(
            truth[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)].any() for i, j in np.ndindex(some.shape)
        )
        assert full.any()
        assert some.sum() < some.size / 2
    made = block_mask(forest, window, CPU)
    assert np.array_equal(made.to_dense()[0, 0].bool().numpy(), some)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_flex_attention_is_the_attention_of_the_blocks(
    heads: tuple[int, int], window: int | None, softcap: float | None
) -> None:
    forest = tree(1, rows=5, longest=150)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, len(forest), 16, generator=generator) for n in (heads[0], heads[1], heads[1]))
    plan = Plan(forest, CPU)
    mask = ForestMask.of(plan)
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    blocks, _ = forest_attention(torch.nn.Identity(), q, k, v, mask, **options)
    flexed = flex(q, k, v, plan.block_mask(window), scale=0.3, softcap=softcap).transpose(1, 2)
    torch.testing.assert_close(flexed, blocks, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_taken_only_where_its_limits_allow_it() -> None:
    def choice(forest: Forest, *, head: int = 64, dtype: torch.dtype = torch.bfloat16, **options: float | None) -> str:
        class Query:
            """A query on a GPU, as far as the choice looks at it."""

            is_cuda, device, shape = True, "cuda", (1, 4, len(forest), head)

            def __init__(self) -> None:
                self.dtype = dtype

        given = {"softcap": None, "dropout": 0.0, **options}
        return kernel_for(Query(), forest, **given)  # type: ignore[arg-type]

    branching, straight = tree(0), chains(*spread([np.arange(5), np.arange(7)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert choice(branching) == "flex"
        assert choice(straight) == "varlen"
        assert choice(straight, softcap=50.0) == "flex"
        assert choice(straight, dtype=torch.float32) == "flex"
        assert choice(straight, dropout=0.1) == "blocks"
        assert choice(branching, dtype=torch.float64) == "blocks"
        assert choice(branching, head=8) == "blocks"
        assert choice(straight, head=320) == "flex"
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert choice(straight) == "flex"
    assert kernel_for(torch.zeros(1, 4, 12, 64), straight, softcap=None, dropout=0.0) == "blocks"
