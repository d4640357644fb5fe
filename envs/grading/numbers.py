"""Whether two numbers, or two expressions, are the same; and what a written decimal may stand for."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from polyturn.envs.grading.doubles import DIGITS, SLACK, double_error
from polyturn.envs.grading.functions import context
from polyturn.envs.grading.identity import AGREE, identical
from polyturn.envs.grading.reading.tree import INFINITY, Node, variables
from polyturn.envs.grading.values import Evaluator, as_fraction, close

_NOISE = Fraction(1, 10**12)
"""Largest relative error of a printed double that is taken for the rounding of a computation."""
_ROUNDING = Fraction(1, 10**4)
"""Largest relative error of a decimal that is cut or rounded."""
_NEAR_ZERO = Fraction(1, 1000)
"""Numbers smaller than this are held to the noise of a number of this size."""
_AGREE_DOUBLES = 13
"""Digits in which two expressions must agree where a printed double stands in one of them."""
_PYTHON_CONSTANTS = {"I": "i", "j": "i", "J": "i", "E": "e"}


def same_number(answer: Node, gold: Node, evaluator: Evaluator) -> bool | None:
    """Whether two expressions have the same value, for all values of their variables if they have any.

    Returns:
        None if that cannot be decided.

    Raises:
        TooHard: A tree is no number, or the budget is used up.
    """
    infinite = _infinite(answer), _infinite(gold)
    if any(infinite):
        return infinite[0] == infinite[1]
    answer, gold = _with_constants(answer, gold), _with_constants(gold, answer)
    # Fractions and decimals.
    exact_answer, exact_gold = evaluator.exact(answer), evaluator.exact(gold)
    if exact_answer is not None and exact_gold is not None:
        return numbers_agree(exact_answer, places(answer), exact_gold, places(gold))
    # A decimal against a number that is not rational.
    if variables(answer) == variables(gold) == set():
        if exact_answer is not None and places(answer) >= 0:
            return _decimal_is(answer, exact_answer, gold, evaluator)
        if exact_gold is not None and places(gold) >= 0:
            return _decimal_is(gold, exact_gold, answer, evaluator)
    # Anything else by its values.
    digits = _AGREE_DOUBLES if _has_double(answer) or _has_double(gold) else AGREE
    verdict = identical(answer, gold, evaluator, digits=digits)
    if not verdict and not variables(answer) and not variables(gold):
        return _complex_decimal_is(answer, gold, evaluator) or _complex_decimal_is(gold, answer, evaluator) or verdict
    return verdict


# Decimals


def numbers_agree(one: Fraction, one_places: int, other: Fraction, other_places: int) -> bool:
    """Exact numbers must be equal; a written decimal may also be another's rounding.

    Args:
        one: A number.
        one_places: How many decimals it was written with, -1 if it was not written as a decimal.
        other: The other number.
        other_places: Likewise.

    Returns:
        Whether they are equal; or one is a decimal of 15 significant digits or more, as doubles are printed, and off
        by no more than their noise (1e-12 of its size); or one is a decimal and the other a fraction that takes more
        decimals to write and rounds to it, as `rounds_to` says.
    """
    if one == other:
        return True
    if one_places < 0 and other_places < 0:
        return False
    printed = max(_digits(one, one_places), _digits(other, other_places)) >= DIGITS
    if printed and abs(one - other) <= _NOISE * max(abs(one), abs(other), _NEAR_ZERO):
        return True
    if one_places >= 0 and other_places < 0:
        return _decimals(other) > one_places and rounds_to(one, one_places, other)
    return (
        other_places >= 0 and one_places < 0 and _decimals(one) > other_places and rounds_to(other, other_places, one)
    )


def rounds_to(decimal: Fraction, places: int, value: Fraction) -> bool:
    """Whether a decimal with that many places is `value` cut or rounded there, and right to one part in 10,000."""
    error = abs(decimal - value)
    return error <= Fraction(1, 10**places) and error <= _ROUNDING * max(abs(value), abs(decimal))


def places(node: Node) -> int:
    """Decimals of a number written as one, signed or in scientific notation; -1 for anything else."""
    if node.kind == "neg":
        return places(node.parts[0])
    if node.kind == "mul" and [part.kind for part in node.parts] == ["num", "pow"]:
        base, power = node.parts[1].parts
        exponent = power.parts[0] if power.kind == "neg" else power
        if base.kind == exponent.kind == "num" and base.value == 10 and exponent.places < 0 and exponent.value < 400:
            shift = int(exponent.value) * (-1 if power.kind == "neg" else 1)
            return max(node.parts[0].places - shift, 0) if node.parts[0].places >= 0 else -1
    return node.places if node.kind == "num" else -1


def _decimals(value: Fraction) -> float:
    """How many decimals it takes to write a number out, infinity if there is no end to them."""
    bottom, counts = value.denominator, [0, 0]
    for index, prime in enumerate((2, 5)):
        while bottom % prime == 0:
            bottom //= prime
            counts[index] += 1
    return max(counts) if bottom == 1 else math.inf


def _digits(value: Fraction, places: int) -> int:
    """Significant digits of a number written with that many decimals, without zeros at its end; 0 if it is whole."""
    return len(str(int(abs(value) * 10**places)).rstrip("0")) if places >= 0 else 0


def _has_double(node: Node) -> bool:
    return (node.kind == "num" and _digits(node.value, node.places) >= DIGITS) or any(
        _has_double(part) for part in node.parts
    )


def _decimal_is(decimal: Node, exact: Fraction, other: Node, evaluator: Evaluator) -> bool | None:
    """Whether a decimal is the rounding of a constant that is not rational, or a double computation of it."""
    number = evaluator.constant(other).number
    if number is None:
        return None
    if context().im(number) != 0:
        return False
    value = as_fraction(number)
    return rounds_to(exact, places(decimal), value) or _is_double(exact, decimal, other, value, evaluator)


def _is_double(exact: Fraction, decimal: Node, other: Node, value: Fraction, evaluator: Evaluator) -> bool:
    """Whether a decimal of 15 digits or more is what a computation of `other` in doubles may print."""
    if _digits(exact, places(decimal)) < DIGITS:
        return False
    error = double_error(other, evaluator.work)
    most = _NOISE * max(abs(value), _NEAR_ZERO)
    return error is not None and abs(exact - value) <= min(SLACK * error + Fraction(1, 2 * 10 ** places(decimal)), most)


# Complex numbers


def _with_constants(node: Node, other: Node) -> Node:
    """The tree with Python's `I` or `j` as i and its `E` as e, if the other side has them and no such variable."""
    for name in sorted(variables(node) & set(_PYTHON_CONSTANTS)):
        constant = _PYTHON_CONSTANTS[name]
        if name not in variables(other) and _has(other, constant) and not _has(node, constant):
            node = _renamed(node, name, constant)
    return node


def _renamed(node: Node, name: str, constant: str) -> Node:
    if node.kind == "variable" and node.name == name:
        return Node("const", name=constant)
    return replace(node, parts=tuple(_renamed(part, name, constant) for part in node.parts))


def _has(node: Node, constant: str) -> bool:
    return (node.kind == "const" and node.name == constant) or any(_has(part, constant) for part in node.parts)


def _complex_decimal_is(written: Node, other: Node, evaluator: Evaluator) -> bool:
    """Whether a complex number whose parts are decimals, `0.5+0.866i`, is the rounding of another complex number."""
    parts = _real_and_imaginary(written)
    number = evaluator.constant(other).number
    if parts is None or number is None or max(places(part) for part in parts) < 0:
        return False
    values = [as_fraction(context().re(number)), as_fraction(context().im(number))]
    size = max(abs(value) for value in values)
    error = double_error(other, evaluator.work)
    for part, value in zip(parts, values, strict=True):
        exact = evaluator.exact(part)
        if exact is None:
            return False
        if places(part) < 0:
            right = close(context().mpf(exact.numerator) / exact.denominator, _numeric(value), AGREE)
        else:
            noise = min(SLACK * error, _NOISE * size) if error is not None and _has_double(written) else Fraction(0)
            right = rounds_to(exact, places(part), value) or abs(exact - value) <= noise
        if not right:
            return False
    return True


def _numeric(value: Fraction) -> Any:
    return context().mpf(value.numerator) / value.denominator


def _real_and_imaginary(node: Node) -> tuple[Node, Node] | None:
    """The two parts of `a + bi` with a and b written as numbers, either of which may be missing; None otherwise."""
    zero = Node("num", name="0")
    real, imaginary = zero, zero
    for term in node.parts if node.kind == "add" else (node,):
        inner = term.parts[0] if term.kind == "neg" else term
        if inner.kind == "num" and real is zero:
            real = term
        elif inner.kind == "mul" and len(inner.parts) == 2 and imaginary is zero:
            number = [part for part in inner.parts if part.kind == "num"]
            if len(number) != 1 or Node("const", name="i") not in inner.parts:
                return None
            imaginary = Node("neg", (number[0],)) if term.kind == "neg" else number[0]
        elif inner == Node("const", name="i") and imaginary is zero:
            one = Node("num", name="1", value=Fraction(1))
            imaginary = Node("neg", (one,)) if term.kind == "neg" else one
        else:
            return None
    return None if imaginary is zero else (real, imaginary)


def _infinite(node: Node) -> int:
    if node.kind == "neg":
        return -_infinite(node.parts[0])
    return 1 if node == INFINITY else 0
