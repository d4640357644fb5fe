"""The exact rational value of a tree, where it has one."""

from __future__ import annotations

import math
from fractions import Fraction

from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.work import Work

_MAX_BITS = 1 << 15
_MAX_FACTORIAL = 2500
_KINDS = frozenset({"num", "add", "mul", "div", "neg", "pow", "fact", "func", "degrees"})


def exact_value(node: Node, work: Work) -> Fraction | None:
    """The rational value of a tree without variables, or None if it is not rational or too large to write out."""
    try:
        return _exact(node, work)
    except (ZeroDivisionError, OverflowError):
        return None


def _exact(node: Node, work: Work) -> Fraction | None:
    work.spend()
    if node.kind == "num":
        return node.value
    if node.kind not in _KINDS:
        return None
    numbers: list[Fraction] = []
    for part in node.parts:
        value = _exact(part, work)
        if value is None:
            return None
        numbers.append(value)
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
            return _function(node.name, numbers)
    return result if _bits(result) <= _MAX_BITS else None


def _function(name: str, numbers: list[Fraction]) -> Fraction | None:
    match name:
        case "abs":
            return abs(numbers[0])
        case "floor":
            return Fraction(math.floor(numbers[0]))
        case "ceil":
            return Fraction(math.ceil(numbers[0]))
        case "gcd" | "lcm" if all(number.denominator == 1 for number in numbers):
            return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, numbers)))
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


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length() - 1
