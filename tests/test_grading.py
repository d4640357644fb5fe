r"""Grading: what equals what, what does not, and that nothing hostile gets through.

Every pair was written by hand from what the answer means; none was produced by running the grader.
"""

from __future__ import annotations

import pytest
from turnwise.envs.grading import extract_answer, grade

RIGHT = [
    # numbers
    ("18", "18"), ("18.0", "18"), ("018", "18"), ("+5", "5"), ("18.", "18"), ("-3", "−3"), ("1,234", "1234"),
    (r"1,\!000,\!000", "1000000"), ("14{,}916", "14916"), ("1 000 000", "1000000"), (r"11,\! 111,\! 111,\! 100", "11111111100"),
    (".5", "0.5"), ("0.50", ".5"), (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\dfrac{1}{2}", r"\tfrac12"),
    (r"\cfrac{25}{16}", "25/16"), (r"\frac 13", r"\frac{1}{3}"), (r"\frac9{19}", "9/19"), (r"{1 \over 2}", "0.5"),
    ("2/4", "1/2"), ("-1/2", r"-\frac{1}{2}"), (r"\frac{-1}{2}", r"-\frac{1}{2}"), (r"\frac{1}{-2}", r"-\frac{1}{2}"),
    ("0.30000000000000004", "0.3"), ("18.000000000000004", "18"), ("0.3333", "1/3"), ("0.333333", r"\frac13"),
    ("0.6667", r"\frac{2}{3}"), ("33.3333", r"\frac{100}{3}"), (r"0.\overline{3}", r"\frac13"), (r"0.1\overline{6}", "1/6"),
    (r"1\frac{1}{2}", "1.5"), (r"-1\frac12", r"-\frac32"), ("1 1/2", r"\frac{3}{2}"), (r"137 \frac{1}{2}", "137.5"),
    (r"8\frac47", r"\frac{60}{7}"), ("1½", "1.5"), ("3.2e5", "320000"), (r"3.2 \times 10^5", "320000"),
    ("6.72 * 10^{-5}", ".0000672"), ("2×10^3", "2000"), ("2**10", "1024"), ("5 million", "5000000"), ("1.5 million", "1,500,000"),
    # wrappings
    ("$18$", "18"), (r"\$18", "18"), ("$18", "18"), ("$18.00", r"\$18"), ("-$5", "-5"), (r"\(18\)", "18"), (r"\[18\]", "18"),
    (r"\boxed{18}", "18"), (r"\left(1,2\right)", "(1,2)"), ("x=5", "5"), ("x = 5", "x=5"), ("5", "x=5"), ("5=x", "5"),
    (r"\text{The answer is } 18", "18"), ("the answer is 18.", "18"), (r"\text{Area} = 5", "5"), ("AB = 5", "5"),
    ("1+1=2", "2"), ("f(x)=2x+1", "2x+1"), ("x = 2+3 = 5", "5"), (r"\approx 5", "5"), (r"\,18\;", "18"), (r"\displaystyle\frac12", "1/2"),
    # units, money, percent, degrees
    ("118 dollars", r"118 \text{ dollars}"), ("118", r"118 \text{ dollars}"), (r"\$118", "118 dollars"), ("5.4", r"5.4 \text{ cents}"),
    ("25 km", r"25 \, \text{km}"), ("25 kilometers", r"25 \, \text{km}"), ("12 square units", r"12\text{ square units}"),
    (r"144", r"144 \mbox{ m}^3"), ("144 m^3", r"144 \mbox{ m}^3"), ("440 cm^2", r"440\text{ cm}^2"), ("440 square centimeters", r"440\text{ cm}^2"),
    ("18 hours", "18"), ("5 m", "5"), ("60 mph", r"60\text{ miles per hour}"), ("60 miles/hour", "60 mph"), ("90\\text{ square\nunits}", "90"),
    (r"50\%", "50"), ("50%", r"50\%"), ("50 percent", r"50\%"), (r"7.2\%", "7.2"), (r"100^\circ", "100"), ("100°", r"100^{\circ}"),
    ("100 degrees", r"100^\circ"), (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"), (r"\$32,\!348", "32348"), ("$32,348", r"\$32,\!348"),
    (r"65 \text{ children tickets }", "65"), ("5th", "5"), (r"\$\frac{1}{2}", "0.5"), ("90°", "90"),
    # roots, pi, powers, functions, complex
    (r"\sqrt{12}", r"2\sqrt{3}"), (r"\sqrt3", "sqrt(3)"), ("√3", r"\sqrt{3}"), ("2√3", r"2\sqrt3"), (r"\sqrt 5", "5^{1/2}"), ("sqrt(5)", "5^0.5"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"), (r"\frac{\sqrt5-1}{2}", r"-\frac12+\frac{\sqrt5}{2}"), (r"\sqrt[3]{8}", "2"),
    (r"\sqrt[3]{-8}", "-2"), (r"\frac{\pi}{2}", "pi/2"), (r"\frac12\pi", "π/2"), (r"10\pi", "10*pi"), (r"3.14159265", r"\pi"), ("31.4159", r"10\pi"),
    (r"2^{10}", "1024"), ("2^10", "1024"), (r"5!", "120"), (r"\binom{5}{2}", "10"), (r"\frac{1}{2004!}", r"(2004!)^{-1}"),
    (r"\log_2 8", "3"), (r"\ln e", "1"), (r"\sin 30^\circ", "1/2"), (r"2\cos 15^{\circ}", r"\frac{\sqrt{6}+\sqrt{2}}{2}"),
    (r"\sin(3x)", r"\sin 3x"), (r"\sec x", r"\frac{1}{\cos x}"), (r"2 \tan x", r"\frac{2\sin x}{\cos x}"), (r"\sin^2 x", r"1-\cos^2 x"),
    ("-2 + 7i", "7i-2"), ("i^2", "-1"), (r"\frac{1}{5} + \frac{3}{5}i", r"\frac{1+3i}{5}"), (r"|-5|", "5"), (r"\lfloor 2.7 \rfloor", "2"),
    (r"\left|x\right|", r"\sqrt{x^2}"), ("e^{2}", r"e \cdot e"), (r"2004 \sqrt{2} - 2003", r"-2003+2004\sqrt2"),
    # algebra
    ("(x+3)(x-3)", "x^2-9"), ("7(x+3) (x-3)", "7x^2 - 63"), ("9z(z^2 - 3z + 3)", "9z^3-27z^2+27z"), (r"\frac{x+2}{7}", "x/7+2/7"),
    ("(a+b)^2", "a^2+2ab+b^2"), ("5k", "k*5"), ("4x+5", "5+4x"), (r"\frac{x^2-1}{x-1}", "x+1"), ("xyz", "zyx"), ("7p+4e", "4e+7p"),
    (r"x_1+x_2", "x_{2}+x_{1}"), (r"\theta+1", r"1+\theta"), ("2 x^3-10x^2", "2x^2(x-5)"), (r"-\sqrt{x-3}+3", r"3-\sqrt{x-3}"),
    (r"z^{97}\cdot 28+7z^{96}", "7z^{96}(4z+1)"),
    # equations and inequalities
    ("y=2x", "2x"), ("2x", "y = 2x"), ("y - 2x = 0", "y=2x"), ("10x-4y-5z=20", "10x - 4y - 5z - 20 = 0"), ("20x-8y-10z-40=0", "10x - 4y - 5z - 20 = 0"),
    ("13 = x^2+y^2", "x^2 + y^2 = 13"), ("f(4)>f(1)>f(2)", "f(2) < f(1) < f(4)"), (r"-2 \le x \le 7", r"x \in [-2,7]"), ("[-2,7]", r"x \in [-2,7]"),
    ("x>5", r"(5,\infty)"), (r"5 < x", r"(5, \infty)"), (r"x \leq 0", r"(-\infty, 0]"), ("x<3 or x>5", r"(-\infty,3)\cup(5,\infty)"),
    # collections
    ("(1, 2)", r"\left( 1,2 \right)"), (r"(\frac12, 3)", "(0.5,3.0)"), ("3, 1", "1,3"), ("1 and 3", "1,3"), (r"\{1,3\}", "3,1"), (r"19 \text{ and }43", "43, 19"),
    ("x=1 or x=3", "1,3"), ("x=1, x=3", "3,1"), (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"), (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"\pm 2", "2,-2"), (r"\{1,1,2\}", r"\{1,2\}"), (r"\emptyset", r"\{\}"), ("1,2,-2,-3", "-3,-2,1,2"), (r"\left\{ 1, 2\right\}", r"\{2,1\}"),
    ("(3,-4)", "x=3,y=-4"), ("(x,y)=(3,4)", "(3,4)"), (r"4^\circ, 20^\circ", "20, 4"), ("6,101", "6, 101"), ("1, 2, and 3", "3,2,1"),
    (r"[46, \infty)", "[46,infinity)"), (r"(-\infty,0]\cup[4,\infty)", r"[4,\infty) \cup (-\infty,0]"), ("(-∞,3)∪(3,∞)", r"(-\infty,3)\cup(3,\infty)"),
    ("(-inf,3) U (3,inf)", r"(-\infty,3)\cup(3,\infty)"), (r"\mathbb{R}", r"(-\infty,\infty)"), (r"\{-1\} \cup [0,7)", r"[0,7)\cup\{-1\}"),
    (r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}", r"\begin{bmatrix}1\\3\end{bmatrix}"), (r"\begin{pmatrix} 1/5 \\ -3/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -0.6 \end{pmatrix}"),
    (r"\frac15\begin{pmatrix} 1 \\ -3 \end{pmatrix}", r"\begin{pmatrix} 1/5 \\ -3/5 \end{pmatrix}"), ("(1,3)", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("[[0,1],[1,0]]", r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"), (r"\begin{array}{cc}0&1\\1&0\end{array}", r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"),
    (r"\begin{pmatrix} 0 & 1 \\[3pt] 1 & 0 \\ \end{pmatrix}", r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"), (r"\langle 1,3\rangle", "(1,3)"),
    # bases, ratios, times, words
    ("12_5", "12_{5}"), ("4210_7", r"4210_{7}"), (r"4210_{\text{seven}}", "4210_7"), ("4210 base 7", "4210_7"), ("3:4", "3 : 4"), ("6:8", "3:4"), ("3/4", "3:4"),
    ("3:30", "3:30"), ("1:03 p.m.", r"\text{1:03 PM}"), ("1:03 PM", r"\text{1:03 PM}"), (r"\text{(A)}", "A"), ("(A)", r"\text{A}"), ("A", r"\textbf{(A)}"),
    (r"\textbf{(B)}\ 12", "B"), ("east", r"\text{east}"), (r"\text{East}", "east"), (r"\mbox{Saturday}", "Saturday"), (r"\text{B, E, G}", "B,E,G"), (r"\text{C},\text{B}", "B, C"),
    ("even.", r"\text{even}"), (r"\overline{CD}", r"\overline{CD}"), ("VW", r"\text{VW}"), (r"\text{ellipse}", "ellipse"),
]  # fmt: skip

WRONG = [
    ("19", "18"), ("-18", "18"), ("1800", "18"), ("0.18", "18"), ("18", ""), ("", "18"), (r"\frac{1}{3}", r"\frac{1}{2}"), ("2", r"\frac12"), ("0.33", "1/3"),
    ("100001", "100000"), ("15481.48", "15480.48"), ("1.0001", "1"), ("123456789.5", "123456790.5"), ("0.5", r"50\%"), ("50", "0.5"), (r"50\%", "0.5"), (r"5000\%", "50"),
    ("7.0001", "7"), ("33334.33", r"\frac{100000}{3}"), ("3.15", r"\pi"), (r"1\frac{1}{2}", r"\frac12"), (r"1\frac{1}{2}", "0.5"), ("11/2", r"1\frac12"), ("1,235", "1234"),
    ("(2,1)", "(1,2)"), ("[1,2]", "(1,2)"), ("(1,2]", "[1,2)"), ("(1,2,3)", "(1,2)"), ("1", "1,3"), ("1,3,5", "1,3"), ("1,1", "1,3"), (r"\{1,2,3\}", r"\{1,2\}"),
    (r"(-\infty,3)", r"(-\infty,3)\cup(3,\infty)"), (r"(-\infty,3]\cup(3,\infty)", r"(-\infty,3)\cup(3,\infty)"), (r"[46,\infty)", r"[-\infty,46)"), (r"-\infty", r"\infty"),
    ("x>5", r"[5,\infty)"), ("x<5", r"(5,\infty)"), (r"1+\sqrt{19}", r"1 \pm \sqrt{19}"), (r"\sqrt{3}", r"\sqrt{2}"), (r"2\sqrt{3}", r"3\sqrt{2}"), (r"\pi", r"2\pi"),
    ("x^2-9", "x^2+9"), ("x+1", "x"), ("2x", "3x"), ("y=2x", "y=-2x"), ("x=5", "y=5"), ("x^2+y^2=14", "x^2 + y^2 = 13"), ("0=0", "x=3"), ("x+y=0", "x-y=0"),
    (r"\sin x", r"\cos x"), ("7i-2", "2-7i"), ("f(1) < f(2) < f(4)", "f(2) < f(1) < f(4)"), (r"\begin{pmatrix} 3 \\ 1 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    (r"\begin{pmatrix} 0 & 1 \\ 1 & 1 \end{pmatrix}", r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"), (r"\begin{pmatrix} 1 & 3 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ("12_6", "12_5"), ("13_5", "12_5"), ("7", "12_5"), ("4:3", "3:4"), ("2:04", "1:02"), ("3:31", "3:30"), ("1:03 AM", r"\text{1:03 PM}"), ("B", r"\text{(A)}"), ("(B) 5", "A"),
    ("west", r"\text{east}"), ("seat", "east"), ("KAME", r"\text{MAKE}"), ("odd", r"\text{even}"), ("not 5", "5"), ("minus 5", "5"), ("5 less", "5"), ("5 or more", "5"),
    ("5 million", "5"), ("5 cents", r"5\text{ dollars}"), ("25 m", r"25\text{ km}"), ("25 degrees", r"25\%"), ("440 cm", r"440\text{ cm}^2"), ("2.5.1", "2.5"), ("5 5", "55"),
    (r"\frac{1}{2005!}", r"\frac{1}{2004!}"), (r"\frac{2}{2004!}", r"\frac{1}{2004!}"), ("10^{-40}", "0"), ("C, B, F", r"\text{B, E, G}"), (r"\frac{1}{0}", "0"), ("1/0", "2/0"),
    (r"\frac{x}{x-x}", "5"), ("x=1 or x=4", "1,3"), ("none", "0"), (r"\emptyset", "0"), ("A or B", "A"), ("3, 4", "34"), ("1 or 2", "1"), ("5, 6", "5"), ("4 remainder 2", "4"),
    ("at least 5", "5"), ("2/3", "3:2"), (r"\overline{AB}", r"\overline{CD}"), ("x=y", "x=5"), ("5 squared", "5"), ("1+1=3", "3"), ("18 = 19", "19"), ("1=1", "x=x"), ("-x", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_the_same_mathematics_is_right_in_either_direction(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_other_mathematics_is_wrong_in_either_direction(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)
