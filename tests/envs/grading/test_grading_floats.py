r"""Grading: decimals as Python prints them, against numbers that are not rational.

What is printed is right within the rounding of a computation in doubles; a wrong number of the same length is not.
"""

from __future__ import annotations

import cmath
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from polyturn.envs.grading import grade
from polyturn.envs.grading.doubles import double_error
from polyturn.envs.grading.numbers import numbers_agree, places, rounds_to
from polyturn.envs.grading.reading.reader import readings
from polyturn.envs.grading.work import Work


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    pairs = [tuple(line.split(" <> ")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs]


RIGHT = _pairs(r"""
0.3333333333333333 <> 1/3
1.4142135623730951 <> \sqrt2
1.618033988749895 <> \frac{1+\sqrt5}{2}
0.049875621120889946 <> \sqrt{101}-10
2.9999999999999996 <> \log_{10}1000
1.2246467991473532e-16 <> \sin\pi
(2.220446049250313e-16+1j) <> i
1.4142135623730951x <> \sqrt2 x
(1+1.7320508075688772j) <> 1+\sqrt3 i
0.5+0.866i <> \frac12+\frac{\sqrt3}{2}i
""")

WRONG = _pairs(r"""
2.6457513110645999 <> \sqrt7
2.6457513110645807 <> \sqrt7
2.6457513110645 <> \sqrt7+1
2.6457513110745907 <> \sqrt7
2.6467513110645907 <> \sqrt7
0.04987562112089 <> \sqrt{101}-10.01
0.049875621121889946 <> \sqrt{101}-10
1.7320508075688772i <> \sqrt2 i
(1+1.7320508075788772j) <> 1+\sqrt3 i
1.4142135623830951x <> \sqrt2 x
1000000001.0 <> 1000000000
1.0000000001 <> 1
""")


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_printed_floats_are_right_in_either_direction(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_wrong_floats_are_wrong_in_either_direction(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)


COMPUTED = {
    r"9\pi": 9 * math.pi,
    r"\frac{1+\sqrt5}{2}": (1 + math.sqrt(5)) / 2,
    r"\frac{\sqrt6+\sqrt2}{4}": math.cos(math.pi / 12),
    r"\frac{\sqrt5-1}{4}": math.sin(math.pi / 10),
    r"e^2": math.exp(2),
    r"\ln 10": math.log(10),
    r"\log_{10}1000": math.log(1000, 10),
    r"2^{1/3}": 2 ** (1 / 3),
    r"\sqrt[3]{7}": 7 ** (1 / 3),
    r"\tan 50^\circ": math.tan(math.radians(50)),
    r"\arctan 2": math.atan(2),
    r"\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{6}": sum(map(math.sqrt, (2, 3, 5, 6))),
    r"\sqrt{10001}-100": math.sqrt(10001) - 100,
    r"\frac{-5+\sqrt{21}}{2}": (-5 + math.sqrt(21)) / 2,
    r"\frac{\pi^2}{6}": math.pi**2 / 6,
    r"100\pi+\sqrt2": 100 * math.pi + math.sqrt(2),
    r"\sin\pi": math.sin(math.pi),
    r"1000000\sqrt3": 1e6 * math.sqrt(3),
    r"\frac{\sqrt3}{1000000}": math.sqrt(3) / 1e6,
}


@pytest.mark.parametrize("gold", COMPUTED)
def test_what_a_program_prints_for_an_irrational_number_is_right(gold: str) -> None:
    value = COMPUTED[gold]
    assert grade(repr(value), gold)
    assert grade(f"x = {value!r}", gold)
    assert grade(f"[{value!r}, 5]", f"5, {gold}")


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 10**6), st.integers(1, 60), st.integers(-50, 50))
def test_doubles_of_roots_are_right_and_their_neighbours_wrong(inside: int, scale: int, shift: int) -> None:
    """A changed thirteenth digit is no rounding: the double is right to the fifteenth where nothing cancels."""
    if math.isqrt(inside) ** 2 == inside:
        return
    value = scale * math.sqrt(inside) + abs(shift)
    gold = rf"{scale}\sqrt{{{inside}}}+{abs(shift)}"
    assert grade(repr(value), gold)
    for wrong in (value * (1 + 1e-12), value * (1 - 1e-12), value * (1 + 1e-6), -value):
        assert not grade(repr(wrong), gold)


def test_a_complex_number_as_python_prints_it_is_right() -> None:
    assert grade(repr(cmath.sqrt(-7)), r"i\sqrt7")
    assert grade(repr(cmath.exp(1j * math.pi / 3)), r"\frac12+\frac{\sqrt3}{2}i")
    assert grade(repr(cmath.exp(1j * math.pi / 2)), "i")
    assert not grade(repr(cmath.exp(1j * math.pi / 3)), r"\frac12-\frac{\sqrt3}{2}i")
    assert not grade("(0.5+0.8660264037844386j)", r"\frac12+\frac{\sqrt3}{2}i")
    assert not grade("0.5+0.87i", r"\frac12+\frac{\sqrt3}{2}i")
    assert not grade("0.5-0.866i", r"\frac12+\frac{\sqrt3}{2}i")
    assert not grade("1+0.866i", r"\frac12+\frac{\sqrt3}{2}i")


def bound(gold: str) -> float:
    error = double_error(readings(gold)[0], Work())
    assert error is not None
    return float(error)


def test_the_error_of_a_computation_in_doubles_is_followed() -> None:
    """By hand, u = 2^-53: a root rounds twice at most; a difference of numbers near 100 keeps their errors."""
    u = 2.0**-53
    assert bound("5") == 0
    assert bound(r"\pi") == pytest.approx(u * math.pi)
    assert bound(r"\frac13") == pytest.approx(2 * u / 3)
    assert bound(r"\sqrt7") == pytest.approx(2 * u * math.sqrt(7))
    assert bound(r"3\sqrt7") == pytest.approx(3 * u * 3 * math.sqrt(7))
    assert bound(r"\sqrt7+\sqrt5") == pytest.approx(3 * u * (math.sqrt(7) + math.sqrt(5)))
    assert bound(r"\sqrt{10001}-100") == pytest.approx(2 * u * 100.005 + u * 200.005, rel=1e-4)
    assert bound(r"-\pi") == bound(r"\pi")
    assert bound(r"\sin\pi") == pytest.approx(u * math.pi, rel=1e-3)
    assert double_error(readings(r"\frac10")[0], Work()) is None


def test_exact_numbers_are_equal_or_one_is_a_decimal_of_the_other() -> None:
    third = Fraction(1, 3)
    assert numbers_agree(third, -1, third, -1)
    assert not numbers_agree(third, -1, Fraction(1, 4), -1)
    assert numbers_agree(Fraction("0.3333"), 4, third, -1)
    assert numbers_agree(third, -1, Fraction("0.3334"), 4) is False
    assert not numbers_agree(Fraction("0.333"), 3, third, -1)  # right to one part in a thousand only
    assert not numbers_agree(Fraction("0.5001"), 4, Fraction(1, 2), -1)  # a half takes one decimal
    assert numbers_agree(Fraction("18.000000000000004"), 15, Fraction(18), -1)
    assert numbers_agree(Fraction(18), -1, Fraction("18.000000000000004"), 15)
    assert not numbers_agree(Fraction("18.00000000001"), 11, Fraction(18), -1)  # eleven decimals are no double
    assert not numbers_agree(Fraction("18.000000000100004"), 15, Fraction(18), -1)  # off by more than noise
    assert not numbers_agree(Fraction("1000000001.0"), 1, Fraction(10**9), -1)
    assert numbers_agree(Fraction("0.30000000000000004"), 17, Fraction("0.3"), 1)
    assert not numbers_agree(Fraction("0.3001"), 4, Fraction("0.3"), 1)


def test_a_rounding_is_cut_or_rounded_and_right_to_one_part_in_ten_thousand() -> None:
    assert rounds_to(Fraction("3.1415"), 4, Fraction("3.14159"))
    assert rounds_to(Fraction("3.1416"), 4, Fraction("3.14159"))
    assert not rounds_to(Fraction("3.1417"), 4, Fraction("3.14159"))
    assert not rounds_to(Fraction("3.1414"), 4, Fraction("3.14159"))
    assert not rounds_to(Fraction("3.14"), 2, Fraction("3.14159"))
    assert rounds_to(Fraction("-3.1415"), 4, Fraction("-3.14159"))


@pytest.mark.parametrize(
    ("text", "decimals"),
    [("5", -1), ("5.0", 1), ("-0.25", 2), (".5", 1), ("2.5e-3", 4), (r"2.5 \times 10^{-3}", 4), (r"2.5\cdot10^3", 0),
     (r"25\times 10^{-3}", -1), (r"\frac12", -1), ("2.5x", -1), (r"2.5\cdot 3^2", -1), (r"2.5\cdot 10^{0.5}", -1)],
)  # fmt: skip
def test_decimals_are_counted_as_written(text: str, decimals: int) -> None:
    assert places(readings(text)[0]) == decimals
