"""A budget for thinking: after so many tokens between `<think>` and `</think>` the closing mark is put there.

Tokens that are put there were not sampled. A turn names them (`Turn.forced`), and they do not count as the agent's: no
loss looks at them, while those after them were sampled given them, with the log-probabilities that are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
# A letter may take up to four tokens, one for each of its bytes.
_WINDOW = 4 * len(CLOSE) + 8


class Thinking:
    """Follows one action, token by token.

    Args:
        tokenizer: Of the policy.
        most: Tokens of thinking in the action, all its thoughts together, without the marks that are sampled.
        context: `[C]` tokens before the action; where a chat template has opened a thought, they end with the mark.

    Attributes:
        closing: Tokens of the closing mark.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int, context: Sequence[int]) -> None:
        self._tokenizer, self._left = tokenizer, most
        self.closing: list[int] = tokenizer.encode(CLOSE, add_special_tokens=False)
        # What the environment said may hold the mark, and never stands at the very end.
        self._inside = self._text(context).rstrip().endswith(OPEN)

    @property
    def exhausted(self) -> bool:
        """Whether a thought is open and may not go on."""
        return self._inside and self._left <= 0

    def close(self) -> None:
        """The closing mark was put there."""
        self._inside = False

    def heard(self, ids: Sequence[int]) -> None:
        """Looks at the newest token of the action's `ids`."""
        before, said = self._inside, self._text(ids)
        opened, closed = said.rfind(OPEN), said.rfind(CLOSE)
        # A mark that was put there or seen before may still be in the window; the last one counts.
        if max(opened, closed) >= 0:
            self._inside = opened > closed
        if before and self._inside:
            self._left -= 1

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids[-_WINDOW:]), skip_special_tokens=False))
