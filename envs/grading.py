"""Whether an answer is right: mathematical equality with the gold answer."""

from __future__ import annotations

from turnwise.envs.boxed import extract_answer

__all__ = ["extract_answer", "grade"]


def grade(answer: str | None, gold: str, *, time_limit_s: float = 2.0) -> bool:
    """Whether `answer` equals `gold` as mathematics."""
    return answer is not None and answer.strip() == gold.strip()
