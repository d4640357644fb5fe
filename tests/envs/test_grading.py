r"""Grading: what equals what, what does not, and that nothing hostile gets through.

Every pair was written by hand from what the answer means; none was produced by running the grader.
"""

# ruff: noqa: RUF001  (answers come with look-alike characters)

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings, strategies as st

from polyturn.envs.grading.grade import extract_answer, grade


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
# other ways of writing
{1, 2, 3} <> \{3,2,1\}
[3, 1, 2] <> 1,2,3
0.5\sqrt3 <> \frac{\sqrt{3}}{2}
sqrt(3)/2 <> \frac{3}{2\sqrt3}
x**2 + 2*x + 1 <> (x+1)^2
+\infty <> \infty
\text{infinity} <> \infty
x \ne 3 <> (-\infty,3)\cup(3,\infty)
\text{all real numbers} <> (-\infty,\infty)
three <> 3
3 to 4 <> 3:4
f^{-1}(x) = x+3 <> x+3
f(2) = 5 <> 5
\frac{dy}{dx} = 2x <> 2x
a + b = 5 <> 5
P(A) = \frac12 <> 0.5
m\angle ABC = 30^\circ <> 30
5 \pmod{7} <> 5
x \equiv 5 \pmod 7 <> 5
0.\bar{3} <> \frac13
5 m/s <> 5
5 m/s <> 5\text{ m/s}
60\text{ km/h} <> 60 km/h
2^\frac{3}{4} <> \sqrt[4]{8}
\log_3 2 <> \frac{\ln 2}{\ln 3}
e^{i\pi} <> -1
x = \pm 2 <> x=2 \text{ or } x=-2
(-1,0) \text{ and } (1,0) <> (1,0),(-1,0)
y-3=2(x-1) <> y=2x+1
7.0711 <> \sqrt{50}
\dfrac{3}{4}\text{ cups} <> 0.75
\frac{3}{4}\,\text{cm} <> 3/4 cm
$3,\!000$ <> 3000
\$3{,}000.00 <> 3000
3000.00 dollars <> \$3,000
\frac{\pi}{6} \text{ radians} <> \frac{\pi}{6}
x=-\frac{b}{2a} <> -b/(2a)
(x,y) = (2, -3) <> (2,-3)
x \in \{1, 2\} <> 1,2
x\in[0,\infty) <> x\ge0
0 \le x < 1 <> [0,1)
(2, 5] \cup [7, \infty) <> [7,\infty)\cup(2,5]
\left( \dfrac{1}{2}, -\dfrac{3}{2} \right) <> (0.5, -1.5)
\frac{1}{4} <> 25 / 100
25\% <> 25 percent
\text{Monday} <> monday
\textbf{Monday} <> Monday
\mathrm{(C)} <> C
C. <> (C)
(C) <> C
10:30 \text{ a.m.} <> 10:30 AM
1{,}234{,}567 <> 1234567
2.5 \times 10^{-3} <> 0.0025
2.5\cdot10^{-3} <> 0.0025
-5 <> - 5
\!-5 <> -5
3 + 4i <> 4i + 3
\sqrt{-4} <> 2i
\frac{1}{1-i} <> \frac{1+i}{2}
2x^2-3 <> -3+2x^2
(2x+1)(x-3) <> 2x^2-5x-3
\frac{(x+1)(x-1)}{x-1} <> x+1
x^{-1} <> 1/x
\sqrt{x^3} <> x\sqrt{x}
a^2 - b^2 <> (a-b)(a+b)
\tan x <> \frac{\sin x}{\cos x}
\cos 2x <> 2\cos^2 x-1
\begin{pmatrix}1&2\\3&4\end{pmatrix} <> \begin{pmatrix} 1.0 & 2 \\ 3 & 8/2 \end{pmatrix}
\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right] <> \begin{pmatrix}1&2\\3&4\end{pmatrix}
\begin{vmatrix}1&2\\3&4\end{vmatrix} <> \begin{vmatrix}1&2\\3&4\end{vmatrix}
\left(\begin{array}{c} 1 \\ 2 \end{array}\right) <> \begin{pmatrix}1\\2\end{pmatrix}
11001_2 <> 11001_{2}
(11001)_2 <> 11001_2
1A3_{16} <> 1A3_{16}
A5_{12} <> A5_{12}
ABC_{16} <> ABC_{16}
5\frac{1}{2}\% <> 5.5\%
$\frac{1}{2}$ <> \frac12
\frac{1}{2}. <> \frac12
The answer is $\frac{1}{2}$. <> \frac12
so the final answer is 42 <> 42
42 is the answer <> 42
\approx 3.1416 <> \pi
45^\circ\text{C} <> 45
98.6^\circ F <> 98.6
2 \text{ hours } <> 2 hours
x = 3 \text{ and } y = 4 <> (3,4)
\frac{2+\sqrt{3}}{1} <> 2+\sqrt 3
3\sqrt{2}+2\sqrt{3} <> 2\sqrt3+3\sqrt2
\sqrt{2}\sqrt{3} <> \sqrt 6
(\sqrt{2}) <> \sqrt2
5\sqrt{2}/2 <> \frac{5}{\sqrt 2}
\frac{\ln 8}{\ln 2} <> 3
\log_{10}{1000} <> 3
e <> 2.71828
\{x | x>3\} <> (3,\infty)
(-\infty, 2) \cup (2, \infty) <> x\neq 2
y = x^2 <> y=x\cdot x
3x+2y=6 <> y = -\frac32x+3
x=2y+1 <> 2y+1
-4/3 <> -1\frac13
-1.3333 <> -\frac43
\frac{-4}{3} <> -\dfrac{4}{3}
\frac{4}{-3} <> -4/3
7 \text{ or } 8 <> 8, 7
1, 2, 3, \text{ and } 6 <> 6,3,2,1
\text{(2, 3)} <> (2,3)
\text{5} <> 5
\mathbf{5} <> 5
{5} <> 5
((5)) <> 5
1/2 \pi <> \frac{\pi}{2}
\pi/2 <> \frac12 \pi
2\pi r <> 2 \pi r
\dfrac{x}{y} <> x/y
\frac{a}{b}\cdot\frac{c}{d} <> \frac{ac}{bd}
n(n+1)/2 <> \frac{n^2+n}{2}
2^{n+1} <> 2\cdot 2^n
\frac{n!}{(n-1)!} <> n
n^2 <> n\times n
\lvert x\rvert <> |x|
\left| -3 \right| <> 3
\lceil 2.1\rceil <> 3
1\text{ : }2 <> 1:2
12\text{ in}^3 <> 12 in^3
12 cubic inches <> 12\text{ in}^3
12 in. <> 12
\text{east} <> \text{ East }
$-\frac{1}{2}$ <> -1/2
-.5 <> -\frac12
00123 <> 123
\text{none} <> none
\infty <> infinity
5 \text{ and } -5 <> \pm 5
10\,000 <> 10,000
10 000 <> 10000
\$10,\!000 <> 10000
10^4 <> 10000
i\sqrt{2} <> \sqrt{2}i
\sqrt{2}\,i <> i\sqrt2
-i <> -1i
\operatorname{arctan} 1 <> \pi/4
\sin^{-1} 1 <> \frac{\pi}{2}
\arcsin(1) <> 90^\circ/180^\circ \cdot \pi
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
[1, 2] <> 1,2
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


# Boxes


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} \fbox{3}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}} rest }", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{}", ""),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\boxed{4} cut off: \boxed{5", "4"),
        (r"\boxed{\text{a } b}{c}", r"\text{a } b"),
        (r"\boxedness{5}", None),
        ("no box, 5", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_the_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


BOX = "\\boxed{"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (BOX * 10**5, None),
        (BOX * 10**5 + "5" + "}" * 10**5, "5"),
        ("{" * 10**6, None),
        (BOX + "{" * 10**6, None),
        ("\\boxed{5}" + BOX * 10**5, "5"),
        ("\\boxed" * 10**5, None),
        (("\\boxed" + " " * 3000) * 100, None),
        ("\\" * 10**6, None),
        ("\\boxed{" + "a" * 10**6 + "}", "a" * 10**6),
    ],
    ids=range(9),
)
def test_boxes_in_hostile_text_are_found_in_linear_time(text: str, answer: str | None) -> None:
    start = time.process_time()
    assert extract_answer(text) == answer
    assert time.process_time() - start < 5  # a quadratic search takes minutes


# Hostile answers

HOSTILE = [
    "10**10**10", "10^{10^{10}}", "9^{9^{9^{9}}}", "9^9^9^9^9^9", "2004!!!", "2500!" * 100, "(10^6)!", "1e9999",
    "(" * 3000 + "1" + ")" * 3000, "{" * 3000, "\\frac" * 700, "1" * 10**6, "9" * 900 + "^" + "9" * 900,
    "-" * 3000 + "5",
    "+".join(["1/2499!"] * 250), "\\sin(" * 20 + "x" + ")" * 20, "e^{e^{e^{e^{e}}}}", "\\binom{x}{y}" * 80, "|" * 200,
    "\\{" + ",".join(f"\\sin({i}x)^{{{i}}}" for i in range(100)) + "\\}", "\\pm1" * 300, "1<" * 200 + "2",
    "a=" * 300 + "5",
    "\\begin{pmatrix}" + "&".join("1" * 300), "\\text{" * 500, "\x00\ud800", "\\", "\\sqrt[", "\\log_", "x_{",
    "5_", "$" * 4000,
    "__import__('os').system('true')", "\\tan(\\pi/2)", "\\lfloor 10^{10^{5}} \\rfloor", "0^{-1}",
    "\\infty-\\infty", "(1+i)^{1000000}",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_wrong_and_cheap(text: str) -> None:
    start = time.process_time()
    for gold in ("5", "x", r"\sin x", r"\{1,2\}"):
        assert not grade(text, gold)
        assert not grade(gold, text)
    assert time.process_time() - start < 5


def test_a_hostile_answer_still_equals_itself() -> None:
    """Beyond every bound on size, only the way it is written can be compared."""
    assert grade("10^{10^{10}}", "10^{10^{10}}")
    assert grade("10^{10^{10}}", "10^{ 10^{10} }")
    assert not grade("10^{10^{10}}", "10^{10^{11}}")


def test_grading_works_in_threads_as_outside() -> None:
    """Eight threads, each all pairs; a time limit by signals would raise in every one of them."""
    wrong: list[tuple[str, str]] = []

    def work() -> None:
        wrong.extend(pair for pair in RIGHT if not grade(*pair))
        wrong.extend(pair for pair in WRONG if grade(*pair))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_time_limit_stops_the_comparison_of_values() -> None:
    """With no time at all, only what is written alike or plain numbers can be right."""
    assert grade(r"\sqrt{8}", r"2\sqrt{2}")
    assert not grade(r"\sqrt{8}", r"2\sqrt{2}", time_limit_s=-1.0)
    assert grade("18.0", "18", time_limit_s=-1.0)


PIECES = st.sampled_from(
    ["\\frac", "{", "}", "(", ")", "[", "]", "1", "2", "3.5", "x", "y", "+", "-", "*", "/", "^", "_", "!", ",",
    ";", "=", "<", "\\le ",
     "\\sqrt", "\\pi", "\\infty", "\\cup", "\\pm", "\\text{", "\\{", "\\}", "|", "%", "$", "\\$", ":", "\\circ",
    "sin", "and", " ", "&",
     "\\\\", "\\begin{pmatrix}", "\\end{pmatrix}", "\\in ", "\\log", "\\overline{", "degrees", "e", "i",
    "\\boxed{", "°", "½", "base"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(PIECES, max_size=14).map("".join))
def test_grading_never_raises_and_is_symmetric(one: str, other: str) -> None:
    assert grade(one, other) == grade(other, one)
    assert grade(one, one) == bool(one.strip())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_may_be_graded(one: str, other: str) -> None:
    assert grade(one, other) == grade(other, one)
    extract_answer(one + "\\boxed{" + other)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_every_fraction_equals_its_rewritings_and_not_its_neighbours(top: int, bottom: int) -> None:
    gold = f"\\frac{{{top}}}{{{bottom}}}"
    assert grade(f"{top}/{bottom}", gold)
    assert grade(f"\\dfrac{{{3 * top}}}{{{3 * bottom}}}", gold)
    assert grade(repr(top / bottom), gold)
    assert not grade(f"{top + 1}/{bottom}", gold)
    if top:
        assert not grade(f"{-top}/{bottom}", gold)
        assert not grade(f"{100 * top}/{bottom}", gold)
