"""Whether two expressions are the same function of their variables, decided at points.

What one point shows:
    both have a value: it must be the same, to fifty digits, or the expressions differ;
    one has no real value (a logarithm of a negative number), the other has one: they differ, so that `\\ln x` is not
        `\\ln|x|`;
    both depend on the choice of a branch: if the principal values agree, the point counts for equality; if not, it
        counts for nothing, since `\\sqrt{x^3}` and `x\\sqrt{x}` are the same where they are real;
    one has a pole, is too large to hold, or contains a sum of which no digit is left: the point may count for
        equality, but not against it.

Two expressions are equal if enough points count for it and none shows a difference. If too few points count, or the
borders between regions cannot all be searched for, the result is undecided, and the caller must not call them equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polyturn.envs.grading.functions import context
from polyturn.envs.grading.points import Domain, border_points, first_points, general_points
from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.values import BITS, Evaluator, Point, Value, close

AGREE = 50
"""Decimal digits in which two values must agree; the evaluator carries thirty more, which absorb rounding."""
_ENOUGH = 4
"""Points that must count for equality, at which neither side depends on a branch ..."""
_ENOUGH_BRANCHED = 8
"""... or points of any kind, if every point counted."""
_SEARCH_SHARE = 2
"""The search for borders may use one part in this many of the budget."""


class _Tally:
    """The evidence of the points so far.

    Args:
        up_to_factor: Whether the values may differ by a factor that is the same everywhere.
        digits: Decimal digits in which values must agree.
    """

    def __init__(self, up_to_factor: bool, digits: int) -> None:
        self.up_to_factor, self.digits = up_to_factor, digits
        self.agreed = self.regular = self.passed_over = 0
        self.factor: Any = None

    def refuted_by(self, one: Value, other: Value) -> bool:
        """Counts one point; True if it shows that the expressions differ."""
        if one.number is None or other.number is None:
            return _only_outside(one, other) or _only_outside(other, one)
        if self._agree(one.number, other.number):
            self.agreed += 1
            self.regular += not (one.branched or other.branched)
            return False
        # A difference shows nothing where it may be one of branches, or of a sum that was taken for zero.
        if (one.branched and other.branched) or one.vanished or other.vanished:
            self.passed_over += 1
            return False
        return True

    def _agree(self, one: Any, other: Any) -> bool:
        if not self.up_to_factor:
            return close(one, other, self.digits)
        if one == 0 or other == 0:
            return bool(one == other)
        context().prec = BITS
        ratio = one / other
        if self.factor is None:
            self.factor = ratio
        return close(ratio, self.factor, self.digits)

    def decided(self) -> bool:
        """Whether enough points counted for equality."""
        if self.up_to_factor and self.factor is None:
            return False
        return self.regular >= _ENOUGH or (self.agreed >= _ENOUGH_BRANCHED and not self.passed_over)


def _only_outside(one: Value, other: Value) -> bool:
    """Whether a value lies outside the real domain of its functions while the other is one any definition gives."""
    return one.number is None and one.branched and other.number is not None and not other.branched


def identical(
    one: Node, other: Node, evaluator: Evaluator, *, up_to_factor: bool = False, digits: int = AGREE
) -> bool | None:
    """Whether two expressions are equal for all values of their variables.

    Args:
        one: A tree of numbers, variables and functions.
        other: Another.
        evaluator: Where the work is counted.
        up_to_factor: Whether they may differ by a constant factor.
        digits: Decimal digits in which values must agree.

    Returns:
        None if that cannot be decided at points.

    Raises:
        TooHard: A tree is no number at any point, or the budget is used up.
    """
    domain = Domain((one, other), evaluator)
    if not domain.names:
        values = evaluator.constant(one), evaluator.constant(other)
        if values[0].number is None or values[1].number is None:
            return None
        same = close(values[0].number, values[1].number, digits)
        return None if not same and (values[0].vanished or values[1].vanished) else same
    tally = _Tally(up_to_factor, digits)
    for index, point in enumerate(first_points(domain)):
        if tally.refuted_by(evaluator.at(one, point, index), evaluator.at(other, point, index)):
            return False
    for point in _further_points(domain, (one, other), evaluator):
        if tally.refuted_by(evaluator.at(one, point), evaluator.at(other, point)):
            return False
    return True if tally.decided() else None


def _further_points(domain: Domain, nodes: tuple[Node, Node], evaluator: Evaluator) -> Iterator[Point]:
    yield from general_points(domain)
    if not domain.bordered:
        return
    allowed = max(evaluator.work.left, 0) // _SEARCH_SHARE
    searcher = Evaluator(allowed)
    try:
        yield from border_points(domain, nodes, searcher)
    finally:
        evaluator.work.left -= allowed - max(searcher.work.left, 0)
