"""The budget of one comparison, counted in operations: a verdict never depends on how fast or busy the machine is."""

from __future__ import annotations

WORK = 250_000
"""Operations one comparison may take; one is an addition of 80-digit numbers, about a microsecond on a desktop."""


class TooHard(ArithmeticError):
    """A value is too large, or a tree is no number; other values of the same comparison may still be had."""


class OutOfWork(TooHard):
    """The budget is used up; nothing more can be compared."""


class Work:
    """Counts operations down.

    Args:
        amount: How many may be spent.

    Attributes:
        left: How many are left; negative once more was asked for than there was.
    """

    def __init__(self, amount: int = WORK) -> None:
        self.left = amount

    def spend(self, amount: int = 1) -> None:
        """Takes operations off the budget.

        Raises:
            OutOfWork: There are not that many left, now or earlier.
        """
        self.left -= amount
        if self.left < 0:
            raise OutOfWork("the budget of operations is used up")
