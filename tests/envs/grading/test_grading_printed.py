r"""Grading: what Python, sympy and numpy print for an answer, against gold answers in LaTeX, right and nearly right."""

from __future__ import annotations

import pytest
import sympy as sp

from polyturn.envs.grading import grade

X = sp.Symbol("x", real=True)
LOW, HIGH = -sp.sqrt(5), sp.Rational(13, 4)

RIGHT = [
    (sp.Interval(LOW, HIGH), r"\left[-\sqrt{5}, \frac{13}{4}\right]"),
    (sp.Interval.open(LOW, HIGH), r"-\sqrt5 < x < 3.25"),
    (sp.Interval.Lopen(1, 3), r"(1,3]"),
    (sp.Interval.Ropen(1, 3), r"1 \le x < 3"),
    (sp.Interval(2, sp.oo), r"[2,\infty)"),
    (sp.Interval(-sp.oo, sp.pi), r"x \le \pi"),
    (sp.Union(sp.Interval.open(-sp.oo, 1), sp.Interval(3, 4)), r"(-\infty,1)\cup[3,4]"),
    (sp.Union(sp.Interval(0, 1), sp.FiniteSet(3)), r"[0,1]\cup\{3\}"),
    (sp.Complement(sp.S.Reals, sp.FiniteSet(3, -3), evaluate=False), r"x \ne \pm 3"),
    ((X > 1) & (sp.sqrt(7) > X), r"(1,\sqrt7)"),
    ((X < 1) | (X >= 3), r"(-\infty,1)\cup[3,\infty)"),
    (sp.Eq(X, 3), r"x=3"),
    (sp.Ne(X, 3), r"x \neq 3"),
    (sp.S.Reals, r"(-\infty,\infty)"),
    (sp.S.EmptySet, r"\emptyset"),
    (sp.FiniteSet(2, sp.Rational(1, 2)), r"\left\{\frac12, 2\right\}"),
    (sp.Abs(X - 3), r"|3-x|"),
    (sp.E**2 + 1, r"e^2+1"),
    (sp.binomial(X, 2), r"\binom{x}{2}"),
    (sp.factorial(X), r"x!"),
    (sp.Max(X, 3, evaluate=False), r"\frac{x+3+|x-3|}{2}"),
    ({X: 3}, r"x=3"),
    ({sp.Symbol("y"): 5, X: 3}, r"x=3,\ y=5"),
    ([{X: -2}, {X: 7}], r"-2, 7"),
    ([{sp.Symbol("y"): 1, X: 2}, {X: 4, sp.Symbol("y"): 3}], r"(2,1),(4,3)"),
    (set(), r"\text{no solution}"),
    (frozenset({1, 2}), r"\{1,2\}"),
    ("Decimal('2.50')", r"\frac52"),
    ("[[1 2]\n [3 4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("[[1. 0.5]\n [3. 4. ]]", r"\begin{pmatrix}1&\frac12\\3&4\end{pmatrix}"),
    ("[1, 2, 3]", r"(1,2,3)"),
    ("gcd(12, 18)", "6"),
    ("max(3, 5, 4)", "5"),
    ("min(-3, 5)", "-3"),
    ("comb(5, 2)", "10"),
]
WRONG = [
    (sp.Interval(LOW, HIGH), r"\left(-\sqrt{5}, \frac{13}{4}\right)"),
    (sp.Interval.Lopen(1, 3), r"[1,3)"),
    (sp.Interval.open(1, 3), r"[1,3]"),
    (sp.Union(sp.Interval(0, 1), sp.Interval(2, 3)), r"[0,1]\cup[2,3)"),
    (sp.Complement(sp.S.Reals, sp.FiniteSet(3), evaluate=False), r"x = 3"),
    ((X > 1) & (X < 3), r"(-\infty,1)\cup(3,\infty)"),
    ((X < 1) | (X > 3), r"(1,3)"),
    (sp.Eq(X, 3), r"x \ne 3"),
    (sp.Abs(X - 3), r"x-3"),
    (sp.Max(X, 3, evaluate=False), r"x"),
    (sp.Max(X, 3, evaluate=False), r"\frac{x+3-|x-3|}{2}"),
    ({sp.Symbol("y"): 3, X: 5}, r"x=3,\ y=5"),
    ([{sp.Symbol("y"): 2, X: 1}, {X: 4, sp.Symbol("y"): 3}], r"(2,1),(4,3)"),
    ({X: 3}, r"y=3"),
    (set(), r"\text{all real numbers}"),
    ("Decimal('2.51')", r"\frac52"),
    ("[[1 3]\n [2 4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("[1, 3]", r"(1,3)"),
    ("[3, 2, 1]", r"(1,2,3)"),
    ("E**2", r"2e"),
    ("gcd(12, 18)", "36"),
    ("lcm(4, 6)", "24"),
    ("min(3, 5)", "5"),
    ("comb(5, 2)", "20"),
]


@pytest.mark.parametrize(("printed", "gold"), RIGHT, ids=lambda value: str(value))
def test_what_a_program_prints_is_read(printed: object, gold: str) -> None:
    assert grade(str(printed), gold)


@pytest.mark.parametrize(("printed", "gold"), WRONG, ids=lambda value: str(value))
def test_what_a_program_prints_is_not_mistaken(printed: object, gold: str) -> None:
    assert not grade(str(printed), gold)


@pytest.mark.parametrize(
    "text", ["Interval(1)", "Max()", "gcd(3)", "Complement(Reals)", "factorial(1, 2)", "{x: 1, x: 2}"]
)
def test_a_call_with_too_few_or_too_many_arguments_is_not_read(text: str) -> None:
    assert not any(grade(text, gold) for gold in ("1", "3", "(1,2)", "x=1", "x=2", r"(-\infty,\infty)"))


@pytest.mark.parametrize(("text", "number"), [("30 min (rounded)", "30"), ("5 min", "5"), ("5 min (average)", "5")])
def test_words_that_are_also_functions_stay_words(text: str, number: str) -> None:
    assert grade(text, number)
