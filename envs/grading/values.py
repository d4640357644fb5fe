"""What an expression is worth at a point, to fifty digits or more.

Sizes are bounded and so is the work, which is counted in operations. Where digits cancel, the value is computed again
with the number that was lost added.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from polyturn.envs.grading.exact import exact_value
from polyturn.envs.grading.functions import OutsideDomain, Trace, Undefined, context
from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.work import WORK, TooHard, Work

BITS = 269
"""Precision of a first evaluation: 80 decimal digits."""
_SPARE_BITS = 90
"""Bits that may be lost with fifty digits left."""
_MOST_LOST_BITS = 2000

Coordinate = Fraction | tuple[Fraction, Fraction]
"""A variable's value: a real number, or the real and imaginary part of a complex one."""
Point = Mapping[str, Coordinate]
_TURNING = frozenset({"sin", "cos", "tan", "sec", "csc", "cot"})


class Value(NamedTuple):
    """An expression at a point.

    Attributes:
        number: An mpmath number, or None where the expression has no value.
        branched: Whether the value depends on a choice of branch, or (with None) lies outside a function's real
            domain; a value with neither is the one any definition gives.
        vanished: Whether some sum in it is zero, or too small to distinguish from zero.
    """

    number: Any
    branched: bool
    vanished: bool = False


class Evaluator:
    """Values of trees, within one budget of operations.

    Args:
        work: Operations that may be spent; after that every question raises `OutOfWork`.
    """

    def __init__(self, work: int = WORK) -> None:
        self.work = Work(work)
        # Trees are kept with their values, so that no other tree can come to have the same id.
        self._exact: dict[int, tuple[Node, Fraction | None]] = {}
        self._values: dict[tuple[int, object], tuple[Node, Value]] = {}

    def exact(self, node: Node) -> Fraction | None:
        """The rational value of a tree without variables, or None if it is not rational or too large to write out."""
        if id(node) not in self._exact:
            self._exact[id(node)] = (node, exact_value(node, self.work))
        return self._exact[id(node)][1]

    def at(self, node: Node, point: Point, key: object = None) -> Value:
        """The value at a point that names every variable of the tree.

        Args:
            node: The tree.
            point: Values of its variables.
            key: Names the point, so that a value asked for again is not computed again; None keeps nothing.

        Raises:
            TooHard: The tree is no number at any point.
            OutOfWork: The budget is used up.
        """
        if key is not None and (id(node), key) in self._values:
            return self._values[id(node), key][1]
        value = self._at(node, point)
        if key is not None:
            self._values[id(node), key] = (node, value)
        return value

    def constant(self, node: Node) -> Value:
        """The value of a tree without variables."""
        return self.at(node, {}, "constant")

    def _at(self, node: Node, point: Point) -> Value:
        bits = BITS
        for _ in range(3):
            trace = Trace(bits, self.work)
            try:
                number, _varies = _value(node, point, trace, angle=False)
            except (Undefined, ZeroDivisionError, ValueError, OverflowError):
                return Value(None, branched=False)
            except OutsideDomain:
                return Value(None, branched=True)
            if trace.lost <= _SPARE_BITS + bits - BITS:
                return Value(number, trace.branched, trace.vanished)
            if trace.lost > _MOST_LOST_BITS:
                break
            bits = BITS + trace.lost
        return Value(None, branched=False)


def _value(node: Node, point: Point, trace: Trace, *, angle: bool) -> tuple[Any, bool]:
    """A tree's value, and whether it depends on a variable; inside a function of angles, degrees are degrees."""
    mp = trace.mp
    trace.spend(1)
    match node.kind:
        case "num":
            return mp.mpf(node.value.numerator) / node.value.denominator, False
        case "const":
            if node.name == "inf":
                raise TooHard("infinity is no number")
            return trace.constant(node.name), False
        case "variable":
            return _coordinate(point[node.name], mp), True
        case "degrees":
            inner, varies = _value(node.parts[0], point, trace, angle=angle)
            return (inner * trace.constant("pi") / 180 if angle else inner), varies
    if node.kind not in ("add", "mul", "div", "neg", "pow", "fact", "func"):
        raise TooHard(f"a {node.kind} is no number")
    # The parts, then what is made of them.
    turning = angle or (node.kind == "func" and node.name in _TURNING)
    pairs = [_value(part, point, trace, angle=turning) for part in node.parts]
    parts, varies = [number for number, _ in pairs], any(varies for _, varies in pairs)
    match node.kind:
        case "add":
            return trace.add(parts), varies
        case "mul":
            product = parts[0]
            for factor in parts[1:]:
                product = trace.sized(product * factor)
            return product, varies
        case "div":
            return trace.sized(parts[0] / parts[1]), varies
        case "neg":
            return -parts[0], varies
        case "pow":
            return trace.power(parts[0], parts[1], varies), varies
        case "fact":
            return trace.factorial(parts[0]), varies
    return trace.function(node.name, parts, varies), varies


def _coordinate(value: Coordinate, mp: Any) -> Any:
    if isinstance(value, tuple):
        return mp.mpc(_coordinate(value[0], mp), _coordinate(value[1], mp))
    return mp.mpf(value.numerator) / value.denominator


def close(one: Any, other: Any, digits: int) -> bool:
    """Whether two numbers agree in that many decimal digits."""
    context().prec = BITS
    return bool(abs(one - other) <= context().mpf(10) ** -digits * max(abs(one), abs(other)))


def as_fraction(value: Any) -> Fraction:
    """An mpmath real number as the fraction it is."""
    sign, mantissa, exponent, _ = context().mpf(value)._mpf_
    return Fraction(-int(mantissa) if sign else int(mantissa)) * Fraction(2) ** int(exponent)
