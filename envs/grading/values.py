"""What a tree is worth: an exact fraction where it is one, else its value at a few fixed points.

Two expressions that agree to fifty digits at several points drawn without regard to them are equal for any purpose
of grading, and, unlike a computer algebra system, this always ends: sizes are bounded, so is the work, and the verdict
does not depend on how busy the machine is.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from fractions import Fraction
from typing import Any

from mpmath import MPContext  # type: ignore[import-untyped]  # it ships no types

from polyturn.envs.grading.tree import Node

DIGITS = 80
AGREE = 50
"""Decimal digits two values must share; the rest absorbs rounding."""
POINTS = 4
_MAX_BITS = 1 << 15
_MAX_EXPONENT = 1 << 20
_MAX_FACTORIAL = 2500
_MAX_NODES = 3000

Values = tuple[Any, ...]
"""One mpmath complex number a point, None where the expression has no value there."""


class TooHard(ArithmeticError):
    """The value is too large, the time is over, or the tree is no number."""


_local = threading.local()
_library = threading.Lock()
"""mpmath keeps constants and series in module-level caches that two threads must not fill at once."""


def context() -> Any:
    """This thread's own mpmath context: the shared one keeps its precision in a global."""
    if not hasattr(_local, "context"):
        _local.context = MPContext()
        _local.context.dps = DIGITS
    return _local.context


class Evaluator:
    """Values of trees, with a deadline.

    Args:
        time_limit_s: Seconds after which every further question raises `TooHard`.
    """

    def __init__(self, time_limit_s: float) -> None:
        self._deadline = time.monotonic() + time_limit_s
        self._left = _MAX_NODES * POINTS * 2

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0 or time.monotonic() > self._deadline:
            raise TooHard("out of time")

    def exact(self, node: Node) -> Fraction | None:
        """The rational value of a tree without variables, or None if it is not rational or too large to write out."""
        try:
            return self._exact(node)
        except (ZeroDivisionError, OverflowError):
            return None

    def _exact(self, node: Node) -> Fraction | None:
        self._spend()
        if node.kind == "num":
            return node.value
        if node.kind not in ("add", "mul", "div", "neg", "pow", "fact", "func", "degrees"):
            return None
        parts = [self._exact(part) for part in node.parts]
        numbers = [part for part in parts if part is not None]
        if len(numbers) != len(parts):
            return None
        first = numbers[0]
        match node.kind:
            case "add":
                result = sum(numbers, start=Fraction(0))
            case "mul":
                result = Fraction(1)
                for number in numbers:
                    if _bits(result) + _bits(number) > 2 * _MAX_BITS:
                        return None
                    result *= number
            case "div":
                result = first / numbers[1]
            case "neg":
                result = -first
            case "degrees":
                result = first
            case "pow":
                power = numbers[1]
                if power.denominator != 1 or _bits(first) * abs(power) > _MAX_BITS:
                    return None
                result = first ** int(power)
            case "fact":
                if first.denominator != 1 or not 0 <= first <= _MAX_FACTORIAL:
                    return None
                result = Fraction(math.factorial(int(first)))
            case _:
                return _exact_function(node.name, numbers)
        return result if _bits(result) <= _MAX_BITS else None

    def values(self, node: Node) -> Values:
        """Values at every point; `TooHard` if the tree is no number at all."""
        found = []
        for point in range(POINTS):
            try:
                found.append(self._value(node, point, angle=False))
            except (ZeroDivisionError, ValueError, OverflowError):
                found.append(None)
        return tuple(found)

    def _value(self, node: Node, point: int, *, angle: bool) -> Any:
        self._spend()
        mp = context()
        match node.kind:
            case "num":
                return mp.mpf(node.value.numerator) / node.value.denominator
            case "const":
                if node.name == "inf":
                    raise TooHard("infinity is no number")
                with _library:
                    return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[node.name]
            case "variable":
                return _at(node.name, point, mp)
            case "degrees":
                inner = self._value(node.parts[0], point, angle=angle)
                with _library:
                    return inner * mp.pi / 180 if angle else inner
            case "func":
                turned = angle or node.name in ("sin", "cos", "tan", "sec", "csc", "cot")
                arguments = [self._value(part, point, angle=turned) for part in node.parts]
                with _library:
                    return self._sized(_function(node.name, arguments, mp))
        if node.kind not in ("add", "mul", "div", "neg", "pow", "fact"):
            raise TooHard(f"a {node.kind} is no number")
        parts = [self._value(part, point, angle=angle) for part in node.parts]
        match node.kind:
            case "add":
                return mp.fsum(parts)
            case "mul":
                product = parts[0]
                for factor in parts[1:]:
                    product = self._sized(product * factor)
                return product
            case "div":
                return self._sized(parts[0] / parts[1])
            case "neg":
                return -parts[0]
            case "pow":
                with _library:
                    return self._sized(_power(parts[0], parts[1], mp))
            case _:
                if mp.im(parts[0]) != 0 or abs(parts[0]) > 10**6:
                    raise TooHard("a factorial of no small real number")
                with _library:
                    return self._sized(mp.gamma(parts[0] + 1))

    def _sized(self, value: Any) -> Any:
        mp = context()
        if not mp.isfinite(value):
            raise OverflowError
        if value and abs(mp.mag(value)) > _MAX_EXPONENT:
            raise TooHard("too large")
        return value


def same(first: Values, second: Values) -> bool:
    """Whether two expressions agree wherever both have a value, which must be at two points or more."""
    compared = 0
    for one, other in zip(first, second, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None:
            compared += 1
            if not close(one, other):
                return False
    return compared >= 2


def close(one: Any, other: Any) -> bool:
    """Equal but for rounding."""
    bound = context().mpf(10) ** -AGREE
    return bool(abs(one - other) <= bound * max(abs(one), abs(other), bound))


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length() - 1


def _exact_function(name: str, numbers: list[Fraction]) -> Fraction | None:
    match name:
        case "abs":
            return abs(numbers[0])
        case "floor":
            return Fraction(math.floor(numbers[0]))
        case "ceil":
            return Fraction(math.ceil(numbers[0]))
        case "binom":
            top, bottom = numbers
            if top.denominator == bottom.denominator == 1 and 0 <= bottom <= top <= _MAX_FACTORIAL:
                return Fraction(math.comb(int(top), int(bottom)))
        case "root":
            inside, index = numbers
            if index == 2 and inside >= 0:
                over, under = math.isqrt(inside.numerator), math.isqrt(inside.denominator)
                if over * over == inside.numerator and under * under == inside.denominator:
                    return Fraction(over, under)
    return None


def _at(name: str, point: int, mp: Any) -> Any:
    """A variable's value at a point: of either sign, between 0.3 and 3.3, fixed by its name."""
    digest = int.from_bytes(hashlib.sha256(f"{point}/{name}".encode()).digest()[:16], "big")
    size = mp.mpf(digest >> 1) / (1 << 127) * 3 + mp.mpf(3) / 10
    # The first two points are positive, so that roots and logarithms have a real value somewhere.
    return -size if point >= 2 and digest & 1 else size


def _power(base: Any, exponent: Any, mp: Any) -> Any:
    if base == 0:
        if mp.re(exponent) <= 0 and exponent != 0:
            raise ZeroDivisionError
        return mp.mpf(1) if exponent == 0 else mp.mpf(0)
    if abs(exponent) * max(abs(mp.mag(base)), 1) > _MAX_EXPONENT:
        raise TooHard("too large")
    if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0:
        # Odd roots of negative numbers are real at school.
        ratio = Fraction(str(mp.nstr(mp.re(exponent), 30))).limit_denominator(99)
        if (
            ratio.denominator % 2
            and ratio.denominator > 1
            and close(exponent, mp.mpf(ratio.numerator) / ratio.denominator)
        ):
            root = mp.power(-mp.re(base), exponent)
            return -root if ratio.numerator % 2 else root
    return mp.power(base, exponent)


def _function(name: str, x: list[Any], mp: Any) -> Any:
    first = x[0]
    match name:
        case "root":
            return _power(first, 1 / x[1], mp)
        case "abs":
            return abs(first)
        case "floor" | "ceil":
            if mp.im(first) != 0:
                raise TooHard("rounding a complex number")
            return mp.floor(first) if name == "floor" else mp.ceil(first)
        case "binom":
            if max(abs(first), abs(x[1])) > 10**4:
                raise TooHard("too large")
            return mp.binomial(first, x[1])
        case "log":
            return mp.log(first) / mp.log(x[1] if len(x) > 1 else 10)
        case "ln":
            return mp.log(first)
        case "exp":
            return _power(+mp.e, first, mp)
    if abs(first) > 10**6:
        raise TooHard("too large")
    functions = {
        "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "sec": mp.sec, "csc": mp.csc, "cot": mp.cot,
        "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh,
    }  # fmt: skip
    if name not in functions:
        raise TooHard(f"the function {name} is unknown")
    return functions[name](first)
