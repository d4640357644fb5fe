r"""Grading: expressions are equal for all values of their variables, or they are not equal.

Each wrong pair agrees on a part of its domain: for positive numbers, small ones, whole ones, real ones, or inside some
interval. Each right pair is an identity. All were written by hand.
"""

from __future__ import annotations

import pytest

from polyturn.envs.grading import grade
from polyturn.envs.grading.identity import identical
from polyturn.envs.grading.points import Domain, first_points, general_points
from polyturn.envs.grading.reading.reader import readings
from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.values import Evaluator


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    pairs = [tuple(line.split(" <> ")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs]


DIFFERENT = _pairs(r"""
|x^2-10^{-9}| <> x^2-10^{-9}
|x^2-10^{-20}|-3x <> x^2-10^{-20}-3x
|x^2-10^{30}| <> 10^{30}-x^2
\sqrt{(t^3-10^{27})^2} <> 10^{27}-t^3
|x^2y-10^{12}| <> 10^{12}-x^2y
|1000-\frac{1}{x}| <> 1000-\frac1x
|x^{-2}-10^6| <> 10^6-x^{-2}
\sqrt{(\frac{3}{t}-4000)^2} <> 4000-\frac3t
\left|\frac{x-1}{x-1000}\right| <> \frac{x-1}{x-1000}
|\ln x-9| <> 9-\ln x
x <> |x|
x <> \sqrt{x^2}
n <> |n|
n <> \lfloor n\rfloor
n <> \lceil n \rceil
\lfloor x\rfloor+1 <> \lceil x\rceil
\lfloor n/5\rfloor <> \lfloor n/4\rfloor
\lfloor n/100\rfloor <> \lfloor n/7\rfloor
\lfloor n/1000000\rfloor <> 0
\lfloor \frac{x}{3}+\frac{1}{1000}\rfloor <> \lfloor x/3 \rfloor
\lfloor x+\frac12\rfloor <> \lceil x-\frac12\rceil
\lfloor 2x\rfloor <> 2\lfloor x\rfloor
\lceil n/2\rceil <> \lfloor (n+1)/2\rfloor
|x-4|+|x-5| <> |2x-9|
|x-1000000000| <> 1000000000-x
|x^2-4| <> x^2-4
\sqrt{(x-5)^2} <> x-5
\sqrt{(x-5)^2} <> 5-x
\sqrt{x^6} <> x^3
\sqrt[4]{x^4} <> x
(x^2)^{1/2} <> x
\sqrt{x^2y^2} <> xy
\sqrt{a^2+2ab+b^2} <> a+b
|x|y <> x|y|
|x+y| <> |x|+|y|
|a-b| <> a-b
\ln x^2 <> 2\ln x
\ln(x)+C <> \ln|x|+C
\ln(xy) <> \ln x+\ln y
\log_2 (x-3) <> \log_2|x-3|
\sqrt{x-5}|y| <> \sqrt{x-5}y
\arcsin(\sin x) <> x
\arctan(\tan x) <> x
|\sin x| <> \sin x
\sqrt{1-\sin^2 x} <> \cos x
\sqrt{\cos^2 x} <> \cos x
\cos(\pi n) <> 1
\sin(\pi n) <> 0
(-1)^n <> 1
(-1)^n <> -1
(-1)^{2n+1} <> 1
e^{x} <> 1+x+x^2/2
|z-i| <> \sqrt{z^2+1}
|z| <> \sqrt{z^2}
|z|^2 <> z^2
\sqrt{x}\sqrt{x} <> |x|
x^{2/3} <> x^{4/6}+x
\frac{|x|}{x} <> 1
\frac{x}{|x|} <> 1
y=|x| <> y=x
y=\sqrt{x^2} <> y=x
y^2=x^2 <> y=x
|y|=x <> y=x
y=\ln x <> y=\ln|x|
x^2-7x+12 <> |x^2-7x+12|
\lfloor \sqrt{x}\rfloor <> \lfloor\sqrt{|x|}\rfloor
\lfloor\log_2 n\rfloor <> \lfloor \log_3 n\rfloor
\sqrt{x^2+10^{-20}} <> |x|
\sqrt{-x} <> \sqrt{x}
x\sqrt{x} <> \sqrt{x^3}+1
\frac{x}{x-x} <> 5
n! <> n^n
2^n <> n^2
|x|>3 <> x>3
y>5 <> x>5
\lfloor x \rfloor \lfloor y\rfloor <> \lfloor xy\rfloor
|x-y| <> x-y
\frac{x+y+|x-y|}{2} <> x
\sqrt{x^2 - 9} <> |x|-3
x^{\frac{1}{2}\cdot 2} <> |x|
\lfloor -x\rfloor <> -\lfloor x\rfloor
\lceil x\rceil <> -\lfloor x \rfloor
""")

IDENTITIES = _pairs(r"""
|1000-\frac{1}{x}| <> \sqrt{(\frac1x-1000)^2}
|\sqrt{x}-1000| <> |1000-\sqrt{x}|
\sqrt{x^3} <> x\sqrt{x}
\sqrt{x}\sqrt{x} <> x
|x| <> \sqrt{x^2}
\sqrt[3]{x^3} <> x
\sqrt{x^4} <> x^2
\ln(x^2) <> 2\ln|x|
(-1)^n <> \cos(n\pi)
(-1)^{n+1} <> -(-1)^n
(-1)^{2n} <> 1
(-1)^{n} <> (-1)^{-n}
\lfloor x\rfloor+\lfloor x+\frac12\rfloor <> \lfloor 2x\rfloor
-\lfloor -x\rfloor <> \lceil x\rceil
|xy| <> |x||y|
|x-y| <> |y-x|
\sqrt{(x-5)^2} <> |x-5|
\frac{x+y+|x-y|}{2}+\frac{x+y-|x-y|}{2} <> x+y
\cosh^2 x-\sinh^2 x <> 1
\sin^2 x+\cos^2 x-1 <> 0
(x+1)^{97} <> (1+x)(x+1)^{96}
60x\sqrt{2x} <> \sqrt{50x}\cdot\sqrt{18x}\cdot\sqrt{8x}
\frac{n!}{(n-2)!} <> n(n-1)
\binom{n}{2} <> \frac{n(n-1)}{2}
\frac{x^2-1}{x-1} <> x+1
e^{\ln x} <> x
x^{2/3} <> (x^2)^{1/3}
\sqrt{12x^2y} <> 2|x|\sqrt{3y}
\log_2(8x) <> 3+\log_2 x
z\cdot(a+bi) <> za+zbi
\arctan x+\arctan\frac1x <> \arctan\frac1x+\arctan x
\tan x\cos x <> \sin x
\sin 2x <> 2\sin x\cos x
\sqrt{2}+\sqrt{3} <> \sqrt{5+2\sqrt6}
|x|=3y <> 3y=|x|
2|y|=6x <> |y|=3x
n^2\lfloor n/2\rfloor <> \lfloor n/2\rfloor n\cdot n
|z|^2 <> |z^2|
i z+1 <> 1+z i
\frac{1}{z-i} <> \frac{z+i}{z^2+1}
""")


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_agrees_only_on_a_part_of_the_domain_is_different(one: str, other: str) -> None:
    assert not grade(one, other)
    assert not grade(other, one)


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_identities_are_equal(one: str, other: str) -> None:
    assert grade(one, other)
    assert grade(other, one)


@pytest.mark.parametrize(
    "letter", [*"abcdfghjklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", r"\theta", "x_1", "x_{12}"]
)
def test_every_letter_takes_both_signs(letter: str) -> None:
    for other in (f"|{letter}|", rf"\sqrt{{{letter}^2}}", rf"\lfloor {letter}\rfloor", f"-{letter}"):
        assert not grade(letter, other)
        assert not grade(f"3{letter}+1", f"3{other}+1" if not other.startswith("-") else f"1-3{letter}")


@pytest.mark.parametrize("border", [r"\frac13", "4", "100", "12345", r"10^9", r"\sqrt2", r"\frac{\pi}{7}"])
def test_borders_are_found_wherever_they_are(border: str) -> None:
    assert not grade(f"|x-{border}|", f"x-{border}")
    assert not grade(f"|x-{border}|", f"{border}-x")
    assert not grade(f"|2x-{border}|+|y|", f"{border}-2x+|y|")
    assert not grade(rf"\sqrt{{(x+y-{border})^2}}", f"x+y-{border}")
    assert not grade(rf"\ln|x-{border}|", rf"\ln(x-{border})")
    assert grade(rf"\sqrt{{(x+y-{border})^2}}", f"|{border}-y-x|")


def verdict(one: str, other: str, work: int = 10**6) -> bool | None:
    return identical(readings(one)[0], readings(other)[0], Evaluator(work))


def test_what_points_cannot_decide_is_not_called_equal() -> None:
    """No value at all; values at too few points; the choice of a branch everywhere."""
    assert verdict(r"\frac{x}{x-x}", r"\frac{y}{y-y}") is None
    assert verdict(r"\sqrt{-x^2-1}", r"-\sqrt{-x^2-1}") is None
    assert verdict(r"\frac{1}{\sin^2x+\cos^2x-1}", "5") is None
    assert not grade(r"\sqrt{-x^2-1}", r"-\sqrt{-x^2-1}")
    assert verdict("x+1", "x+1+1") is False
    assert verdict("x+2", "x+1+1") is True


def test_where_all_digits_cancel_a_difference_shows_nothing() -> None:
    """e^{-x^2} is too small at large x to survive beside 7, but the expressions are equal."""
    assert grade("2e^{-x^2}+7-7", "2e^{-x^2}")
    assert grade("x^{97}+7-7", "x^{97}")
    assert grade(r"\cosh^2 x-\sinh^2 x", "1")
    assert not grade("2e^{-x^2}+7-7", "2e^{-2x^2}")


def domain(*texts: str) -> Domain:
    return Domain([readings(text)[0] for text in texts], Evaluator())


def test_variables_stand_for_what_the_expressions_say() -> None:
    assert domain("(-1)^n+x").whole == {"n"}
    assert domain("(-2)^{n+k}", "m").whole == {"n", "k"}
    assert domain("i^n").whole == {"n"}
    assert domain("2^n+x^m").whole == set()
    assert domain("x+i").complex == {"x"}
    assert domain("x^2+y").complex == set()
    assert domain("|z|+a").complex == {"z"}
    assert domain("|z|+x").complex == set()
    assert domain("x^2+|y|", "a").names == ["y", "a", "x"]
    assert domain("x^2+2^y").bordered == set()
    assert domain("x^{1/2}").bordered == domain(r"\ln x").bordered == domain(r"\lfloor x\rfloor").bordered == {"x"}


def test_points_have_all_signs_and_sizes_and_are_the_same_every_time() -> None:
    one = domain("|x|+|y|+|z_1|")
    points = [*first_points(one), *general_points(one)]
    assert points == [*first_points(one), *general_points(one)]
    signs = {tuple(point[name] > 0 for name in one.names) for point in points}  # type: ignore[operator]
    assert len(signs) == 8
    for name in one.names:
        sizes = [abs(point[name]) for point in points]  # type: ignore[arg-type]
        assert min(sizes) < 0.01
        assert max(sizes) > 100
        assert any(size.denominator == 1 for size in sizes)  # type: ignore[union-attr]
        assert any(size.denominator > 1 for size in sizes)  # type: ignore[union-attr]


def test_complex_points_leave_the_real_line() -> None:
    points = list(general_points(domain("x+i")))
    assert any(isinstance(point["x"], tuple) for point in points)
    assert any(not isinstance(point["x"], tuple) for point in points)


def test_up_to_a_factor_the_factor_must_be_the_same_everywhere() -> None:
    def proportional(one: str, other: str) -> bool | None:
        return identical(readings(one)[0], readings(other)[0], Evaluator(), up_to_factor=True)

    assert proportional("2x-6y", "3y-x") is True
    assert proportional("|x|-y", "x-y") is False
    assert proportional("x-y", "x^2-xy") is False
    assert proportional("x-x", "y-y") is None


def test_a_value_is_computed_once_where_it_is_asked_for_by_name() -> None:
    tree: Node = readings(r"\sin x+\sqrt{x}")[0]
    evaluator = Evaluator()
    point = next(iter(first_points(domain(r"\sin x"))))
    first = evaluator.at(tree, point, "here")
    left = evaluator.work.left
    assert evaluator.at(tree, point, "here") is first
    assert evaluator.work.left == left
