"""Powers, roots, logarithms and the other functions at one point, on the principal branch, to any number of digits.

Each function works on a `Trace`, which holds the precision and the budget and records what limits the value: digits
lost to cancellation, and branches taken outside the real domain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import MPContext  # type: ignore[import-untyped]  # it ships no types

from polyturn.envs.grading.work import TooHard, Work

_MAX_EXPONENT = 1 << 20
_MAX_ANGLE = 10**6
_MAX_BINOMIAL = 10**4
_MAX_GAMMA = 10**6
_GUARD = 24
"""Bits at the end of a number that rounding may have spoilt."""

_local = threading.local()
_library = threading.Lock()
"""mpmath keeps constants and series in module-level caches that two threads must not fill at once."""


class Undefined(ArithmeticError):
    """The expression has no value at this point: a pole, or a number too large to hold."""


class OutsideDomain(ArithmeticError):
    """A function of real numbers met a number that is not real."""


def context() -> Any:
    """This thread's own mpmath context: the shared one keeps its precision in a global."""
    if not hasattr(_local, "context"):
        _local.context = MPContext()
    return _local.context


class Trace:
    """One evaluation at one point.

    Attributes:
        mp: The mpmath context, at the precision of this evaluation.
        branched: Whether a root, power, logarithm or inverse function of something that varies was taken outside its
            real domain, so that the value depends on the choice of a branch.
        lost: Bits of precision lost to cancellation so far.
        vanished: Whether all digits of a sum cancelled, so that it is zero or too small to distinguish from zero.
    """

    def __init__(self, bits: int, work: Work) -> None:
        self.mp = context()
        self.mp.prec = bits
        self.work = work
        self.branched = False
        self.lost = 0
        self.vanished = False
        self._cost = max((bits // 256) ** 2, 1)

    def spend(self, amount: int) -> None:
        self.work.spend(amount * self._cost)

    def sized(self, value: Any) -> Any:
        """The value without imaginary or real parts that are only rounding.

        Raises:
            Undefined: It is infinite or too large.
        """
        mp = self.mp
        if not mp.isfinite(value):
            raise Undefined
        if not value:
            return value
        if abs(mp.mag(value)) > _MAX_EXPONENT:
            raise Undefined
        real, imaginary = mp.re(value), mp.im(value)
        if imaginary == 0:
            return real
        if real == 0 or mp.mag(real) < mp.mag(imaginary) - mp.prec + _GUARD:
            return mp.mpc(0, imaginary)
        return real if mp.mag(imaginary) < mp.mag(real) - mp.prec + _GUARD else value

    def add(self, parts: list[Any]) -> Any:
        """A sum; what is left when all digits cancel is taken for zero."""
        mp = self.mp
        total = mp.fsum(parts)
        largest = max((mp.mag(part) for part in parts if part), default=0)
        dropped = int(largest - mp.mag(total)) if total else mp.prec
        if dropped > mp.prec - _GUARD:
            self.vanished |= any(parts)
            return mp.mpf(0)
        self.lost += max(dropped, 0)
        return self.sized(total)

    def constant(self, name: str) -> Any:
        with _library:
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[name]

    def power(self, base: Any, exponent: Any, varies: bool) -> Any:
        """A power; odd roots of negative real numbers are real, as at school."""
        mp = self.mp
        self.spend(8)
        if base == 0:
            if mp.re(exponent) <= 0 and exponent != 0:
                raise Undefined
            return mp.mpf(1) if exponent == 0 else mp.mpf(0)
        if abs(exponent) * max(abs(mp.mag(base)), 1) > _MAX_EXPONENT:
            raise Undefined
        self.lost += max(int(mp.mag(exponent)), 0) if exponent else 0
        whole = mp.im(exponent) == 0 and mp.isint(mp.re(exponent))
        positive = mp.im(base) == 0 and mp.re(base) > 0
        if not whole and not positive:
            root = self._odd_root(base, exponent)
            if root is not None:
                return root
            self.branched |= varies
        with _library:
            return self.sized(mp.power(base, exponent))

    def _odd_root(self, base: Any, exponent: Any) -> Any:
        mp = self.mp
        if mp.im(base) != 0 or mp.im(exponent) != 0:
            return None
        ratio = Fraction(str(mp.nstr(mp.re(exponent), 30))).limit_denominator(99)
        if (
            ratio.denominator % 2 == 0
            or abs(exponent - mp.mpf(ratio.numerator) / ratio.denominator) > mp.mpf(10) ** -40
        ):
            return None
        with _library:
            root = mp.power(-mp.re(base), exponent)
        return -root if ratio.numerator % 2 else root

    def logarithm(self, value: Any, varies: bool) -> Any:
        mp = self.mp
        self.spend(8)
        if value == 0:
            raise Undefined
        if mp.im(value) != 0 or mp.re(value) < 0:
            self.branched |= varies
        elif value != 1:
            # Near 1 the logarithm keeps only the digits in which the number differs from 1.
            close = max(-int(mp.mag(value - 1)), 0)
            if close > mp.prec - _GUARD:
                self.vanished = True
                return mp.mpf(0)
            self.lost += close
        with _library:
            return mp.log(value)

    def factorial(self, value: Any) -> Any:
        self.spend(60)
        if self.mp.im(value) != 0:
            raise OutsideDomain
        if abs(value) > _MAX_GAMMA:
            raise Undefined
        with _library:
            return self.sized(self._gamma(value + 1))

    def _gamma(self, value: Any) -> Any:
        try:
            return self.mp.gamma(value)
        except ValueError:  # a pole
            raise Undefined from None

    def function(self, name: str, x: list[Any], varies: bool) -> Any:
        """A named function of its arguments.

        Raises:
            TooHard: The function is unknown.
            Undefined: It has no value there.
            OutsideDomain: It is only for real numbers.
        """
        mp = self.mp
        first = x[0]
        match name:
            case "root":
                return self.power(first, 1 / x[1] if x[1] else mp.inf, varies)
            case "abs":
                return abs(first)
            case "floor" | "ceil":
                return self._rounded(name, first)
            case "binom":
                self.spend(150)
                if any(mp.im(each) != 0 for each in x):
                    raise OutsideDomain
                if max(abs(first), abs(x[1])) > _MAX_BINOMIAL:
                    raise Undefined
                with _library:
                    return self.sized(mp.binomial(first, x[1]))
            case "ln":
                return self.logarithm(first, varies)
            case "log":
                over = self.logarithm(first, varies)
                under = self.logarithm(x[1] if len(x) > 1 else mp.mpf(10), varies)
                return self._quotient(over, under)
            case "exp":
                return self.power(self.constant("e"), first, varies)
        self.spend(10)
        if abs(first) > _MAX_ANGLE:
            raise Undefined
        self.lost += max(int(mp.mag(first)), 0) if first else 0
        with _library:
            return self.sized(self._transcendental(name, first, varies))

    def _rounded(self, name: str, value: Any) -> Any:
        """A number rounded down or up; within rounding of a whole number it is that number."""
        mp = self.mp
        if mp.im(value) != 0:
            raise OutsideDomain
        nearest = mp.nint(value)
        if abs(value - nearest) <= max(abs(value), 1) * mp.ldexp(1, 60 - mp.prec):
            return nearest
        return mp.floor(value) if name == "floor" else mp.ceil(value)

    def _transcendental(self, name: str, x: Any, varies: bool) -> Any:
        mp = self.mp
        match name:
            case "sin":
                return self._vanishing(mp.sin(x), x)
            case "cos":
                return self._vanishing(mp.cos(x), x)
            case "tan":
                return self._quotient(self._vanishing(mp.sin(x), x), self._vanishing(mp.cos(x), x))
            case "cot":
                return self._quotient(self._vanishing(mp.cos(x), x), self._vanishing(mp.sin(x), x))
            case "sec":
                return self._quotient(1, self._vanishing(mp.cos(x), x))
            case "csc":
                return self._quotient(1, self._vanishing(mp.sin(x), x))
            case "arcsin" | "arccos":
                return self._inverse(name, x, varies)
            case "arcsec" | "arccsc":
                return self._inverse("arccos" if name == "arcsec" else "arcsin", self._quotient(1, x), varies)
            case "arctan":
                return mp.atan(x)
            case "arccot":
                return mp.pi / 2 - mp.atan(x)
        hyperbolic: dict[str, Callable[[Any], Any]] = {"sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh}
        if name not in hyperbolic:
            raise TooHard(f"the function {name} is unknown")
        return hyperbolic[name](x)

    def _inverse(self, name: str, x: Any, varies: bool) -> Any:
        """An inverse sine or cosine; near 1 and -1 it loses half of the digits that x shares with them."""
        mp = self.mp
        self.branched |= varies and (mp.im(x) != 0 or abs(x) > 1)
        margin = abs(1 - x * x)
        self.lost += max(-int(mp.mag(margin)), 0) // 2 if margin else 0
        return mp.asin(x) if name == "arcsin" else mp.acos(x)

    def _vanishing(self, value: Any, angle: Any) -> Any:
        """A sine or cosine; near its zeros it loses digits of the angle, and at them all."""
        mp = self.mp
        scale = int(mp.mag(angle)) if angle else 0
        if not value or scale < 0:
            return value
        dropped = scale - int(mp.mag(value))
        if dropped > mp.prec - _GUARD:
            self.vanished = True
            return mp.mpf(0)
        self.lost += max(dropped, 0)
        return value

    def _quotient(self, over: Any, under: Any) -> Any:
        if under == 0:
            raise Undefined
        return self.sized(over / under)
