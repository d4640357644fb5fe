"""A bound on the error of a computation in double precision, by which printed floats are recognised.

A double keeps 53 bits, 15 to 17 decimal digits. `print(math.sqrt(7))` gives 2.6457513110645907, whose last digits are
not those of the root of 7; a rule about decimal places cannot accept it and refuse a wrong number of the same length.
The bound therefore follows the expression itself as if it were computed in doubles: every operation adds half a unit
in its last place and passes on the errors of its parts, and the error grows in proportion where digits cancel. A
decimal of at least 15 digits is right if it is within `SLACK` times that bound. For a root that is about 1e-15 of its
size, so 15 digits decide, and more only where the expression loses digits itself.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from polyturn.envs.grading.functions import OutsideDomain, Trace, Undefined
from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.values import BITS
from polyturn.envs.grading.work import Work

DIGITS = 15
"""A decimal written with this many digits or more may be a double."""
SLACK = 4
"""Another order of the same operations, or another formula of the same value, may round a few times more."""
_UNIT = Fraction(1, 2**53)
_LIBRARY_ROUNDINGS = 2
"""Roundings of a library function; those of the usual libraries err by less than one unit in the last place."""
_TURNING = ("sin", "cos", "tan", "sec", "csc", "cot")


def double_error(node: Node, work: Work) -> Fraction | None:
    """A bound on the error of a constant expression computed in doubles, or None where it has no value.

    Raises:
        TooHard: The tree is no number, or the budget is used up.
    """
    trace = Trace(BITS, work)
    try:
        _, error = _followed(node, trace, angle=False)
    except (Undefined, OutsideDomain, ZeroDivisionError, ValueError, OverflowError):
        return None
    mp = trace.mp
    return Fraction(int(mp.nint(error * mp.mpf(2) ** 200)), 2**200)


def _followed(node: Node, trace: Trace, *, angle: bool) -> tuple[Any, Any]:
    """An expression's value and the error bound of its computation in doubles."""
    mp = trace.mp
    unit = mp.mpf(_UNIT.numerator) / _UNIT.denominator
    trace.spend(2)
    match node.kind:
        case "num":
            value = mp.mpf(node.value.numerator) / node.value.denominator
            exact = node.value.denominator == 1 and abs(node.value) <= 2**53
            return value, mp.mpf(0) if exact else unit * abs(value)
        case "const":
            value = trace.function("exp", [mp.mpf(1)], False) if node.name == "e" else trace.constant(node.name)
            return value, mp.mpf(0) if node.name == "i" else unit * abs(value)
    turning = angle or (node.kind == "func" and node.name in _TURNING)
    pairs = [_followed(part, trace, angle=turning) for part in node.parts]
    numbers, errors = [number for number, _ in pairs], [error for _, error in pairs]
    # Sums add errors; products and quotients add relative errors; each operation rounds once more.
    match node.kind:
        case "neg":
            return -numbers[0], errors[0]
        case "add":
            rounding = unit * sum(abs(number) for number in numbers) * (len(numbers) - 1)
            return trace.add(numbers), sum(errors) + rounding
        case "mul":
            product, error = numbers[0], errors[0]
            for number, own in zip(numbers[1:], errors[1:], strict=True):
                error = error * abs(number) + own * abs(product) + unit * abs(product * number)
                product = trace.sized(product * number)
            return product, error
    # Any other function passes an error on in proportion to its slope, which is measured.
    value = _applied(node, numbers, trace, angle)
    error = _LIBRARY_ROUNDINGS * unit * abs(value)
    for index, own in enumerate(errors):
        if own:
            moved = [number + own if index == at else number for at, number in enumerate(numbers)]
            error += abs(_applied(node, moved, trace, angle) - value)
    return value, error


def _applied(node: Node, numbers: list[Any], trace: Trace, angle: bool) -> Any:
    match node.kind:
        case "div":
            return trace.sized(numbers[0] / numbers[1])
        case "pow":
            return trace.power(numbers[0], numbers[1], False)
        case "fact":
            return trace.factorial(numbers[0])
        case "degrees":
            return numbers[0] * trace.constant("pi") / 180 if angle else numbers[0]
    return trace.function(node.name, numbers, False)
