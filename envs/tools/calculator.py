"""The tool "calculator": arithmetic read by the grading reader, which evaluates nothing by name and bounds its work."""

from __future__ import annotations

from fractions import Fraction

from polyturn.envs.grading.reading.reader import readings, why_unreadable
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import TooHard
from polyturn.envs.tools.tool import Tool, ToolError, function_tool

_LONGEST = 1000
_MOST_DIGITS = 200


def calculator() -> Tool:
    """The tool; exact for fractions, 15 digits for roots and functions."""
    return function_tool(calculate, name="calculator")


def calculate(expression: str) -> str:
    """Calculates an expression such as (2 + 3) * 4^2 / 7, sqrt(2) or 10!.

    Args:
        expression: Plain or LaTeX arithmetic without variables.
    """
    if len(expression) > _LONGEST:
        raise ToolError(f"calculator: expected {_LONGEST} characters or fewer, got {len(expression)}")
    trees = readings(expression)
    if not trees:
        raise ToolError(f"calculator: cannot read the expression: {why_unreadable(expression)[:120]}")
    evaluator = Evaluator()
    try:
        exact = evaluator.exact(trees[0])
        if exact is not None:
            return _written(exact)
        value = evaluator.constant(trees[0]).number
    except (TooHard, KeyError):  # a variable has no value
        value = None
    if value is None:
        raise ToolError("calculator: this has no value as a number; expected arithmetic without variables")
    return f"{complex(value):.15g}" if getattr(value, "imag", 0) else f"{float(value.real):.15g}"


def _written(value: Fraction) -> str:
    """A whole number or a decimal, with the fraction beside a decimal that is not exact."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_DIGITS * 3:
        raise ToolError(f"calculator: the result has more than about {_MOST_DIGITS} digits")
    if value.denominator == 1:
        return str(value.numerator)
    decimal = f"{float(value):.15g}"
    return decimal if Fraction(decimal) == value else f"{value} = {decimal}..."
