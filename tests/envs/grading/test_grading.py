r"""Grading: what equals what and what does not.

Every pair was written by hand from what the answer means; none was produced by running the grader.
"""

# ruff: noqa: RUF001  (answers come with look-alike characters)

from __future__ import annotations

import threading

import pytest

from polyturn.envs.grading.grade import grade


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    pairs = [tuple(line.split(" <> ")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs]


RIGHT = _pairs(r"""
# numbers
18 <> 18
18.0 <> 18
018 <> 18
+5 <> 5
18. <> 18
-3 <> −3
1,234 <> 1234
1,\!000,\!000 <> 1000000
14{,}916 <> 14916
1 000 000 <> 1000000
11,\! 111,\! 111,\! 100 <> 11111111100
.5 <> 0.5
0.50 <> .5
\frac{1}{2} <> 0.5
\frac12 <> 1/2
\dfrac{1}{2} <> \tfrac12
\cfrac{25}{16} <> 25/16
\frac 13 <> \frac{1}{3}
\frac9{19} <> 9/19
{1 \over 2} <> 0.5
2/4 <> 1/2
-1/2 <> -\frac{1}{2}
\frac{-1}{2} <> -\frac{1}{2}
\frac{1}{-2} <> -\frac{1}{2}
0.30000000000000004 <> 0.3
18.000000000000004 <> 18
0.3333 <> 1/3
0.333333 <> \frac13
0.6667 <> \frac{2}{3}
33.3333 <> \frac{100}{3}
0.\overline{3} <> \frac13
0.1\overline{6} <> 1/6
1\frac{1}{2} <> 1.5
-1\frac12 <> -\frac32
1 1/2 <> \frac{3}{2}
137 \frac{1}{2} <> 137.5
8\frac47 <> \frac{60}{7}
1½ <> 1.5
3.2e5 <> 320000
3.2 \times 10^5 <> 320000
6.72 * 10^{-5} <> .0000672
2×10^3 <> 2000
2**10 <> 1024
5 million <> 5000000
1.5 million <> 1,500,000
# wrappings
$18$ <> 18
\$18 <> 18
$18 <> 18
$18.00 <> \$18
-$5 <> -5
\(18\) <> 18
\[18\] <> 18
\boxed{18} <> 18
\left(1,2\right) <> (1,2)
x=5 <> 5
x = 5 <> x=5
5 <> x=5
5=x <> 5
\text{The answer is } 18 <> 18
the answer is 18. <> 18
\text{Area} = 5 <> 5
AB = 5 <> 5
1+1=2 <> 2
f(x)=2x+1 <> 2x+1
x = 2+3 = 5 <> 5
\approx 5 <> 5
\,18\; <> 18
\displaystyle\frac12 <> 1/2
# units, money, percent, degrees
118 dollars <> 118 \text{ dollars}
118 <> 118 \text{ dollars}
\$118 <> 118 dollars
5.4 <> 5.4 \text{ cents}
25 km <> 25 \, \text{km}
25 kilometers <> 25 \, \text{km}
12 square units <> 12\text{ square units}
144 <> 144 \mbox{ m}^3
144 m^3 <> 144 \mbox{ m}^3
440 cm^2 <> 440\text{ cm}^2
440 square centimeters <> 440\text{ cm}^2
18 hours <> 18
5 m <> 5
60 mph <> 60\text{ miles per hour}
60 miles/hour <> 60 mph
50\% <> 50
50% <> 50\%
50 percent <> 50\%
7.2\% <> 7.2
100^\circ <> 100
100° <> 100^{\circ}
100 degrees <> 100^\circ
\frac{270}7\text{ degrees} <> \frac{270}{7}
\$32,\!348 <> 32348
$32,348 <> \$32,\!348
65 \text{ children tickets } <> 65
5th <> 5
\$\frac{1}{2} <> 0.5
90° <> 90
# roots, pi, powers, functions, complex
\sqrt{12} <> 2\sqrt{3}
\sqrt3 <> sqrt(3)
√3 <> \sqrt{3}
2√3 <> 2\sqrt3
\sqrt 5 <> 5^{1/2}
sqrt(5) <> 5^0.5
\frac{1}{\sqrt{2}} <> \frac{\sqrt{2}}{2}
\frac{\sqrt5-1}{2} <> -\frac12+\frac{\sqrt5}{2}
\sqrt[3]{8} <> 2
\sqrt[3]{-8} <> -2
\frac{\pi}{2} <> pi/2
\frac12\pi <> π/2
10\pi <> 10*pi
3.14159265 <> \pi
31.4159 <> 10\pi
2^{10} <> 1024
2^10 <> 1024
5! <> 120
\binom{5}{2} <> 10
\frac{1}{2004!} <> (2004!)^{-1}
\log_2 8 <> 3
\ln e <> 1
\sin 30^\circ <> 1/2
2\cos 15^{\circ} <> \frac{\sqrt{6}+\sqrt{2}}{2}
\sin(3x) <> \sin 3x
\sec x <> \frac{1}{\cos x}
2 \tan x <> \frac{2\sin x}{\cos x}
\sin^2 x <> 1-\cos^2 x
-2 + 7i <> 7i-2
i^2 <> -1
\frac{1}{5} + \frac{3}{5}i <> \frac{1+3i}{5}
|-5| <> 5
\lfloor 2.7 \rfloor <> 2
\left|x\right| <> \sqrt{x^2}
e^{2} <> e \cdot e
2004 \sqrt{2} - 2003 <> -2003+2004\sqrt2
# algebra
(x+3)(x-3) <> x^2-9
7(x+3) (x-3) <> 7x^2 - 63
9z(z^2 - 3z + 3) <> 9z^3-27z^2+27z
\frac{x+2}{7} <> x/7+2/7
(a+b)^2 <> a^2+2ab+b^2
5k <> k*5
4x+5 <> 5+4x
\frac{x^2-1}{x-1} <> x+1
xyz <> zyx
7p+4e <> 4e+7p
x_1+x_2 <> x_{2}+x_{1}
\theta+1 <> 1+\theta
2 x^3-10x^2 <> 2x^2(x-5)
-\sqrt{x-3}+3 <> 3-\sqrt{x-3}
z^{97}\cdot 28+7z^{96} <> 7z^{96}(4z+1)
# equations and inequalities
y=2x <> 2x
2x <> y = 2x
y - 2x = 0 <> y=2x
10x-4y-5z=20 <> 10x - 4y - 5z - 20 = 0
20x-8y-10z-40=0 <> 10x - 4y - 5z - 20 = 0
13 = x^2+y^2 <> x^2 + y^2 = 13
f(4)>f(1)>f(2) <> f(2) < f(1) < f(4)
-2 \le x \le 7 <> x \in [-2,7]
[-2,7] <> x \in [-2,7]
x>5 <> (5,\infty)
5 < x <> (5, \infty)
x \leq 0 <> (-\infty, 0]
x<3 or x>5 <> (-\infty,3)\cup(5,\infty)
# collections
(1, 2) <> \left( 1,2 \right)
(\frac12, 3) <> (0.5,3.0)
3, 1 <> 1,3
1 and 3 <> 1,3
\{1,3\} <> 3,1
19 \text{ and }43 <> 43, 19
x=1 or x=3 <> 1,3
x=1, x=3 <> 3,1
1 \pm \sqrt{19} <> 1-\sqrt{19}, 1+\sqrt{19}
\{1\pm\sqrt{5},-2\} <> -2, 1+\sqrt5, 1-\sqrt5
\pm 2 <> 2,-2
\{1,1,2\} <> \{1,2\}
\emptyset <> \{\}
1,2,-2,-3 <> -3,-2,1,2
\left\{ 1, 2\right\} <> \{2,1\}
(3,-4) <> x=3,y=-4
(x,y)=(3,4) <> (3,4)
4^\circ, 20^\circ <> 20, 4
6,101 <> 6, 101
1, 2, and 3 <> 3,2,1
[46, \infty) <> [46,infinity)
(-\infty,0]\cup[4,\infty) <> [4,\infty) \cup (-\infty,0]
(-∞,3)∪(3,∞) <> (-\infty,3)\cup(3,\infty)
(-inf,3) U (3,inf) <> (-\infty,3)\cup(3,\infty)
\mathbb{R} <> (-\infty,\infty)
\{-1\} \cup [0,7) <> [0,7)\cup\{-1\}
\begin{pmatrix} 1 \\ 3 \end{pmatrix} <> \begin{bmatrix}1\\3\end{bmatrix}
\begin{pmatrix} 1/5 \\ -3/5 \end{pmatrix} <> \begin{pmatrix} 0.2 \\ -0.6 \end{pmatrix}
\frac15\begin{pmatrix} 1 \\ -3 \end{pmatrix} <> \begin{pmatrix} 1/5 \\ -3/5 \end{pmatrix}
(1,3) <> \begin{pmatrix} 1 \\ 3 \end{pmatrix}
[[0,1],[1,0]] <> \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}
\begin{array}{cc}0&1\\1&0\end{array} <> \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}
\begin{pmatrix} 0 & 1 \\[3pt] 1 & 0 \\ \end{pmatrix} <> \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}
\langle 1,3\rangle <> (1,3)
# bases, ratios, times, words
12_5 <> 12_{5}
4210_7 <> 4210_{7}
4210_{\text{seven}} <> 4210_7
4210 base 7 <> 4210_7
3:4 <> 3 : 4
6:8 <> 3:4
3/4 <> 3:4
3:30 <> 3:30
1:03 p.m. <> \text{1:03 PM}
1:03 PM <> \text{1:03 PM}
\text{(A)} <> A
(A) <> \text{A}
A <> \textbf{(A)}
\textbf{(B)}\ 12 <> B
east <> \text{east}
\text{East} <> east
\mbox{Saturday} <> Saturday
\text{B, E, G} <> B,E,G
\text{C},\text{B} <> B, C
even. <> \text{even}
\overline{CD} <> \overline{CD}
VW <> \text{VW}
\text{ellipse} <> ellipse
""")

WRONG = _pairs(r"""
19 <> 18
-18 <> 18
1800 <> 18
0.18 <> 18
\frac{1}{3} <> \frac{1}{2}
2 <> \frac12
0.33 <> 1/3
100001 <> 100000
15481.48 <> 15480.48
1.0001 <> 1
123456789.5 <> 123456790.5
0.5 <> 50\%
50 <> 0.5
50\% <> 0.5
5000\% <> 50
7.0001 <> 7
33334.33 <> \frac{100000}{3}
3.15 <> \pi
1\frac{1}{2} <> \frac12
1\frac{1}{2} <> 0.5
11/2 <> 1\frac12
1,235 <> 1234
(2,1) <> (1,2)
[1,2] <> (1,2)
(1,2] <> [1,2)
(1,2,3) <> (1,2)
1 <> 1,3
1,3,5 <> 1,3
1,1 <> 1,3
\{1,2,3\} <> \{1,2\}
(-\infty,3) <> (-\infty,3)\cup(3,\infty)
(-\infty,3]\cup(3,\infty) <> (-\infty,3)\cup(3,\infty)
[46,\infty) <> [-\infty,46)
-\infty <> \infty
x>5 <> [5,\infty)
x<5 <> (5,\infty)
1+\sqrt{19} <> 1 \pm \sqrt{19}
\sqrt{3} <> \sqrt{2}
2\sqrt{3} <> 3\sqrt{2}
\pi <> 2\pi
x^2-9 <> x^2+9
x+1 <> x
2x <> 3x
y=2x <> y=-2x
x=5 <> y=5
x^2+y^2=14 <> x^2 + y^2 = 13
0=0 <> x=3
x+y=0 <> x-y=0
\sin x <> \cos x
7i-2 <> 2-7i
f(1) < f(2) < f(4) <> f(2) < f(1) < f(4)
\begin{pmatrix} 3 \\ 1 \end{pmatrix} <> \begin{pmatrix} 1 \\ 3 \end{pmatrix}
\begin{pmatrix} 0 & 1 \\ 1 & 1 \end{pmatrix} <> \begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}
\begin{pmatrix} 1 & 3 \end{pmatrix} <> \begin{pmatrix} 1 \\ 3 \end{pmatrix}
12_6 <> 12_5
13_5 <> 12_5
7 <> 12_5
4:3 <> 3:4
2:04 <> 1:02
3:31 <> 3:30
1:03 AM <> \text{1:03 PM}
B <> \text{(A)}
(B) 5 <> A
west <> \text{east}
seat <> east
KAME <> \text{MAKE}
odd <> \text{even}
not 5 <> 5
minus 5 <> 5
5 less <> 5
5 or more <> 5
5 million <> 5
5 cents <> 5\text{ dollars}
25 m <> 25\text{ km}
25 degrees <> 25\%
440 cm <> 440\text{ cm}^2
2.5.1 <> 2.5
5 5 <> 55
\frac{1}{2005!} <> \frac{1}{2004!}
\frac{2}{2004!} <> \frac{1}{2004!}
10^{-40} <> 0
C, B, F <> \text{B, E, G}
\frac{1}{0} <> 0
1/0 <> 2/0
\frac{x}{x-x} <> 5
x=1 or x=4 <> 1,3
none <> 0
\emptyset <> 0
A or B <> A
3, 4 <> 34
1 or 2 <> 1
5, 6 <> 5
4 remainder 2 <> 4
at least 5 <> 5
2/3 <> 3:2
\overline{AB} <> \overline{CD}
x=y <> x=5
5 squared <> 5
1+1=3 <> 3
18 = 19 <> 19
1=1 <> x=x
-x <> x
2x = 5 <> 5
x^2 = 4 <> 4
60 km/h <> 60 mph
f(2) = 5 <> f(3) = 5
{1, 2} <> \{1,3\}
9.42 <> 3\pi
x \ne 3 <> 3
4 to 3 <> 3:4
(2, 5) \cup [7, \infty) <> [7,\infty)\cup(2,5]
11001_3 <> 11001_2
1A4_{16} <> 1A3_{16}
CBA_{16} <> ABC_{16}
6 feet <> 6 inches
12 in^2 <> 12 in^3
45 is not the answer <> 45
e <> 2.72
\{x | x<3\} <> (3,\infty)
3x+2y=6 <> y = \frac32x+3
n! <> n
2^{n+1} <> 2^n+1
10\,000 <> 1000
\tan x <> \frac{\cos x}{\sin x}
1.3333 <> -\frac43
7, 8 <> 7, 9
(1,2),(3,4) <> (1,2),(4,3)
x=3, y=4 <> (4,3)
""")


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_the_same_mathematics_is_right_in_either_direction(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_other_mathematics_is_wrong_in_either_direction(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)


def test_line_breaks_and_outer_space_do_not_matter() -> None:
    assert grade("90\\text{ square\nunits}", "90")
    assert grade("\n 18 ", "18")


def test_no_answer_is_wrong_even_for_an_empty_gold() -> None:
    assert not grade(None, "5")
    assert not grade("", "5")
    assert not grade("5", "")
    assert not grade("", "")
    assert not grade(None, "")


@pytest.mark.parametrize("count", [8, 64])
def test_threads_grade_as_one_does(count: int) -> None:
    """Every thread grades its own pairs while all others do; the longest takes many evaluations."""
    roots = [rf"\sqrt{{{number}}}" for number in (2, 3, 5, 6, 7, 8, 10, 11, 12, 13)]
    pairs = [(", ".join(reversed(roots)), ", ".join(roots)), *RIGHT]
    wrong: list[tuple[str, str]] = []

    def work(start: int) -> None:
        wrong.extend(pair for pair in pairs[start % 5 :: 5] if not grade(*pair))
        wrong.extend(pair for pair in WRONG[start % 5 :: 5] if grade(*pair))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
