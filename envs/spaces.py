"""A Gymnasium space of arbitrary text; `gymnasium.spaces.Text` must be given every allowed character."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.spaces import Space

# (first, last) code point of what a sample draws from: scripts of one to four UTF-8 bytes, right-to-left and combining
# characters, controls, separators that `str.splitlines` splits on, private use and the last plane.
_BLOCKS = np.array(
    [
        (0x20, 0x7E), (0x09, 0x0D), (0x00, 0x1F), (0xA0, 0xFF), (0x300, 0x36F), (0x391, 0x3C9), (0x410, 0x44F),
        (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939), (0xE01, 0xE3A), (0x200B, 0x200F), (0x2028, 0x202E),
        (0x2200, 0x22FF), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xFF01, 0xFF5E),
        (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x10FF00, 0x10FFFF),
    ]
)  # fmt: skip
_SAMPLE_LENGTH = 256


class UnicodeText(Space[str]):
    """Every `str` of a length between the bounds, both included, of any characters.

    Samples mix plain ASCII with a handful of Unicode blocks and can always be encoded as UTF-8: lone surrogates, which
    a Python `str` may hold, are in the space but are never sampled. Vector environments work; asynchronous ones need
    `shared_memory=False`, as text has no fixed size.

    Args:
        max_length: Most characters (code points).
        min_length: Fewest characters.
        seed: Seed or generator for `sample`.

    Raises:
        ValueError: The bounds are negative or the wrong way round.
    """

    def __init__(
        self, max_length: int = 1_000_000, *, min_length: int = 0, seed: int | np.random.Generator | None = None
    ) -> None:
        if not 0 <= min_length <= max_length:
            raise ValueError(
                f"UnicodeText: expected 0 <= min_length <= max_length, got min_length={min_length}, "
                f"max_length={max_length}"
            )
        self.min_length = int(min_length)
        self.max_length = int(max_length)
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Draws text of at most 256 characters (or `min_length`, if that is more).

        Raises:
            ValueError: A mask or probabilities were given; the space has too many characters for either.
        """
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText.sample: expected no mask and no probability; this space supports neither")
        rng = self.np_random
        longest = min(self.max_length, max(_SAMPLE_LENGTH, self.min_length))
        length = int(rng.integers(self.min_length, longest + 1))
        # One string keeps to a few blocks, as text does; the first block is ASCII.
        chosen = np.concatenate([[0], rng.integers(len(_BLOCKS), size=3)])
        blocks = _BLOCKS[chosen[rng.integers(len(chosen), size=length)]]
        return "".join(map(chr, rng.integers(blocks[:, 0], blocks[:, 1] + 1).tolist()))

    def contains(self, x: Any) -> bool:
        """Whether `x` is text of a fitting length."""
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """A list of the samples; text is JSON already."""
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """Reads what `to_jsonable` gave."""
        return [str(sample) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and (self.min_length, self.max_length) == (
            other.min_length,
            other.max_length,
        )

    def __hash__(self) -> int:
        return hash((UnicodeText, self.min_length, self.max_length))

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length}, min_length={self.min_length})"
