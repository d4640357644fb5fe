"""What a scorer of an episode is given, and the scorers that have names."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyturn.envs.grading import extract_answer, grade


@dataclass(frozen=True)
class Outcome:
    """An episode at its end.

    Attributes:
        task: The task.
        answer: The agent's final answer, or None where the limit on turns ended the episode.
        actions: The agent's turns, in order.
        instances: The objects whose methods were tools, as the agent left them; in the order of `tools`.
    """

    task: Mapping[str, Any]
    answer: str | None
    actions: Sequence[str] = ()
    instances: Sequence[Any] = field(default=(), repr=False)


Scorer = Callable[[Outcome], float]


def exact(outcome: Outcome) -> float:
    """1 if the answer is the task's "answer", without regard to case and surrounding blanks, else 0."""
    return float(outcome.answer is not None and _plain(outcome.answer) == _plain(str(outcome.task["answer"])))


def contains(outcome: Outcome) -> float:
    """1 if the task's "answer" occurs in the answer, without regard to case, else 0."""
    return float(outcome.answer is not None and _plain(str(outcome.task["answer"])) in _plain(outcome.answer))


def math(outcome: Outcome) -> float:
    r"""1 if the answer, or what is in its last `\boxed{}`, equals the task's "answer" as mathematics, else 0."""
    if outcome.answer is None:
        return 0.0
    boxed = extract_answer(outcome.answer)
    return float(grade(outcome.answer if boxed is None else boxed, str(outcome.task["answer"])))


def environment(outcome: Outcome) -> float:
    """What the `get_reward()` of the episode's objects gives, added up.

    Raises:
        TypeError: No object has such a method.
    """
    paying = [instance for instance in outcome.instances if callable(getattr(instance, "get_reward", None))]
    if not paying:
        raise TypeError('the scorer "environment": expected tools whose object has get_reward(), got none')
    return float(sum(float(_waited(instance.get_reward())) for instance in paying))


SCORERS: dict[str, Scorer] = {"exact": exact, "contains": contains, "math": math, "environment": environment}
"""The scorers by name."""


def _waited(value: Any) -> Any:
    """A value, or what a coroutine gives: TRL's classes may have either."""
    if not inspect.isawaitable(value):
        return value

    async def awaited() -> Any:
        return await value

    return asyncio.run(awaited())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
