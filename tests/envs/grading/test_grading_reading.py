r"""Grading: the many ways in which answers and gold answers are written, and which gold answers cannot be read.

Every pair was written by hand from what the answer means; none was produced by running the grader.
"""

# ruff: noqa: RUF001  (answers come with look-alike characters)

from __future__ import annotations

import pytest

from polyturn.envs.grading import grade, unreadable


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    pairs = [tuple(line.split(" <> ")) for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs]


RIGHT = _pairs(r"""
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

# Units with dots and powers, products of letters, names of quantities, inequalities, matrices, Python's way of writing.
MORE_RIGHT = _pairs(r"""
18\,\mathrm{m} <> 18 meters
18 sec <> 18\text{ seconds}
7 cu cm <> 7\text{ cm}^3
\sec x <> \frac{1}{\cos x}
x \equiv 7 \pmod{12} <> 7 (mod 12)
x = 5 dollars <> \$5
\mathbb{R}\setminus\{3\} <> x \ne 3
\mathbb{R}\setminus\{3,-3\} <> x \ne \pm 3
(0,4)\setminus\{2\} <> (0,2)\cup(2,4)
[0,4]\setminus(1,2) <> [0,1]\cup[2,4]
x \in \mathbb{R}, x \ne 3 <> x \ne 3
x > 1 \wedge x < 3 <> 1<x<3
x < 1 \vee x > 3 <> (-\infty,1)\cup(3,\infty)
\dim V = 3 <> 3
\det A = -2 <> -2
\mathbb{P}(X>1)=\frac12 <> 0.5
\Pr(X>1)=\frac12 <> P(X>1)=\frac12
3.2 x 10^5 <> 320000
6.02 × 10²³ <> 6.02 \times 10^{23}
10⁻³ <> 0.001
{5 \choose 2} <> \binom52
\max(3,5) <> 5
\gcd(12,18) <> 6
\operatorname{lcm}(4,6) <> 12
does not exist <> \text{DNE}
\text{no solutions} <> \emptyset
5 <> 5 \text{ min.}
12 <> 12 \text{ cu. ft.}
12 cubic feet <> 12 \text{ cu. ft.}
7 lb <> 7 \text{ lbs.}
24 <> 24\text{ cm}^2.
100 cm^2 <> 100 \text{ sq. cm}
18 <> 18 \text{ different ways.}
6 <> 6\text{ in.}
36 <> 36\text{ sq. in.}
36 square inches <> 36\text{ sq. in.}
5 <> 5 \mathrm{~m} / \mathrm{s}
5 m/s <> 5 \mathrm{~m} / \mathrm{s}
11.6 <> 11.6 \mathrm{lb} / \mathrm{in}^{2}
80 <> \$80/\text{hour}
45 units^2 <> 45
45 square units <> 45 \text{ units}^2
\frac{a b c}{ab+bc+ca} <> \frac{abc}{ab+bc+ca}
\frac{d\cdot e\cdot f}{de+df+ef} <> \frac{def}{de+df+ef}
\frac{fed}{de+df+ef} <> \frac{def}{de+df+ef}
\sqrt{s t u} <> \sqrt{stu}
\frac{r s t}{r+s} <> \frac{rst}{r+s}
2 d e f <> 2def
u v w <> uvw
t \cdot s <> st
\frac{uvw}{2} <> \frac12 u v w
2\sqrt3 <> |BC| = 2\sqrt3
60 <> \angle ABC = 60^\circ
6 <> S_{\triangle ABC} = 6
0.7 <> P(A \cup B)=0.7
\frac13 <> P(A|B)=\frac13
\frac13 <> P(A \mid B)=\frac13
2 <> E(X)=2
3 <> E[X^2] = 3
4 <> \text{Var}(X)=4
4 <> \operatorname{Var}(X)=4
-1 <> f''(0)=-1
2x <> g'(x)=2x
3 <> y'=3
7 <> f^{-1}(3)=7
19 <> a_{10}=19
n^2 <> S_n=n^2
\frac35 <> \sin A=\frac{3}{5}
3 <> \vec{a}\cdot\vec{b}=3
5 <> |\vec{a}|=5
5 <> |\overrightarrow{AB}|=5
3 <> \|\mathbf{v}\|=3
5 <> |z|=5
4 <> n(A)=4
(1,2) <> \overrightarrow{AB}=(1,2)
10 <> C(5,2)=10
3 <> f(g(2))=3
5 <> f'(2)=5
5 <> P(X=2)=5
1 <> |AB|=1
\frac{1}{\sqrt6} <> \frac{NO}{BO}=\frac{1}{\sqrt6}
7:32 <> S_{MBCN}:S=7:32
11:21 <> V_{1}:V_{2}=11:21
0.5 <> P(1<X<2)=\frac12
0.5 <> P(X\ge 2)=\frac12
0.5 <> P(\text{red})=\frac12
5 <> f^{\prime}(2)=5
5 <> f′(2)=5
x != 3 <> (-\infty,3)\cup(3,\infty)
x != 3 <> x\neq 3
x ≠ 3 <> x\neq 3
x\not=3 <> x\neq 3
-x>-1 <> x<1
2x>10 <> x>5
3-2x \le 7 <> x\ge -2
-3<2x+1<7 <> (-2,3)
1<=|z|<=3/2 <> 1\le|z|\le\frac32
1\leq|z|\leq \frac{3}{2} <> z \in \left[-\frac{3}{2}, -1\right] \cup \left[1, \frac{3}{2}\right]
|x|<3 <> (-3,3)
|x-2| \le 3 <> [-1,5]
|x|>3 <> (-\infty,-3)\cup(3,\infty)
|x|\ge 3 <> x\le -3 \text{ or } x\ge 3
x>3 \text{ and } x<5 <> (3,5)
x<5, x>3 <> 3<x<5
x \ne 1, 2 <> x\ne1, x\ne2
x \ne 1, 2 <> (-\infty,1)\cup(1,2)\cup(2,\infty)
\{x \mid x \geq 0 \text{ and } x \neq 1\} <> [0,1)\cup(1,\infty)
\{x \in \mathbb{R} : x > 3\} <> (3,\infty)
0<f(x)<1 <> (0,1)
(1,2)+(3,4) <> (4,6)
2(1,2)-(1,0) <> (1,4)
(5,2),(7,2) <> p=5,q=2;p=7,q=2
p=7,q=2;p=5,q=2 <> p=5,q=2;p=7,q=2
p=5,q=2 \text{ or } p=7,q=2 <> p=5,q=2;p=7,q=2
q=2,p=5 <> (5,2)
x=1,y=2 \text{ or } x=2,y=1 <> (1,2),(2,1)
1+2*I <> 1+2i
1 + 2j <> 1+2i
2j <> 2i
(1+2j) <> 1+2i
-3.5j <> -\frac72 i
sqrt(3)*I <> i\sqrt3
{1, 2} <> 2,1
[1, 2, 3] <> \{3,2,1\}
Fraction(3, 4) <> \frac34
Rational(3, 4) <> 0.75
Matrix([[1, 2], [3, 4]]) <> \begin{pmatrix}1&2\\3&4\end{pmatrix}
3 283/999 <> 3\frac{283}{999}
3 283/999 <> \frac{3280}{999}
12 345/678 <> 12\frac{345}{678}
10 000/3 <> \frac{10000}{3}
W(x)=1orW(x)=-1 <> W(x)=1 \text{ or } W(x)=-1
63^\circ 45' <> 63.75^\circ
63^{\circ} 45^{\prime} <> 63.75
-317^{\circ} 3^{\prime} 36^{\prime \prime} <> -317.06
np.sqrt(3) <> \sqrt3
math.pi/2 <> \frac{\pi}{2}
x=\frac{\pi}{6}+2k\pi <> x=\frac{\pi}{6}+2k\pi, k\in\mathbb{Z}
2n\pi <> 2 n \pi, \text{ where } n \text{ is an integer}
C <> C. 1-\mathrm{i}
Solution is: (x, y)=(1,2) <> (1,2)
(-\infty,3)\cup\{3\}\cup(3,\infty) <> \mathbb{R}
[1,2]\cup[2,3] <> [1,3]
""")

MORE_WRONG = _pairs(r"""
18^\circ <> 18\text{ inches}
-7° <> -7 meters
18^{\circ} <> 18\%
7 cu cm <> 7 sq cm
18\,\mathrm{m} <> 18\,\mathrm{g}
45 units <> 45 units^2
x \equiv 7 \pmod{13} <> 7 \pmod{12}
7 (mod 13) <> 7 \pmod{12}
x = 5 cents <> 5 dollars
\mathbb{R}\setminus\{3\} <> x=3
(0,4)\setminus\{2\} <> (0,4)
x > 1 \wedge x < 3 <> x < 1 \vee x > 3
\dim V = 3 <> \dim W = 3
\Pr(X>1)=\frac12 <> P(X>2)=\frac12
3.2 x 10^5 <> 3.2 x 10^6
10²³ <> 10²
{5 \choose 2} <> \frac52
\max(3,5) <> \min(3,5)
\gcd(12,18) <> \operatorname{lcm}(12,18)
x \ne \pm 3 <> x \ne 3
45 units^2 <> 45 units^3
45 cm^2 <> 45 units^3
5 ft <> 5\text{ sq. ft.}
x != 3 <> x != 4
x != 3 <> x = 3
-x>-1 <> x>1
-x>-1 <> x<-1
2x>10 <> x<5
1<=|z|<=3/2 <> 1<|z|<=3/2
1<=|z|<=3/2 <> [1,3/2]
|x|<3 <> x<3
|x|<3 <> [-3,3]
y>5 <> x>5
f'(2)=5 <> f(2)=5
f'(2)=5 <> f''(2)=5
f'(2)=5 <> f'(3)=5
P(X=2)=5 <> P(X=3)=5
P(A|B)=1 <> P(B|A)=1
|AB|=1 <> |AC|=1
|x|=1 <> 1
0 <> f(0)
I(0) <> 0
2f(0) <> f(0)
p=5,q=2;p=7,q=2 <> (2,5),(2,7)
p=5,q=2;p=7,q=2 <> (5,7),(2,2)
p=5,q=2;p=7,q=2 <> p=5,q=7;p=2,q=2
1+2*I <> 1-2i
1+2j <> 1+2
[1, 2] <> \{1,3\}
[1, 2] <> 1,2,3
(1, 2) <> \{1,2\}
3 283/999 <> \frac{3283}{999}
3 283/999 <> \frac{849}{999}
63^\circ 45' <> 63.45
seat <> east
e a s t <> seat
KAME <> \text{MAKE}
fed <> def
\frac{def}{de+df} <> \frac{def}{de+df+ef}
2n\pi, n \in \mathbb{N} <> 2n\pi, n \in \mathbb{Z}
(3,5) <> x>3 \text{ or } x<5
x<3 \text{ and } x>5 <> (3,5)
[1,2]\cup(2,3] <> [1,2)\cup(2,3]
5 <> 5 or more
D <> C. 1-\mathrm{i}
\{x \mid x>3\} <> \{x\mid x\ge3\}
4 <> n(B)-4
""")

PYTHON_LISTS = _pairs(r"""
[1, 2] <> \{1,2\}
[2, 1] <> 1,2
[Fraction(1, 2), 3] <> \frac12, 3
[1.4142135623730951, -1.4142135623730951] <> \pm\sqrt2
""")


@pytest.mark.parametrize(("answer", "gold"), [*RIGHT, *MORE_RIGHT])
def test_what_is_written_differently_is_the_same_in_either_direction(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), MORE_WRONG)
def test_what_is_different_is_wrong_in_either_direction(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)


@pytest.mark.parametrize(("answer", "gold"), PYTHON_LISTS)
def test_an_answer_may_write_a_list_in_square_brackets_but_a_gold_pair_in_them_is_an_interval(
    answer: str, gold: str
) -> None:
    assert grade(answer, gold)
    assert not grade(gold, answer)


@pytest.mark.parametrize(
    "gold",
    ["5", "1,000", r"\frac12", "(A)", r"\text{(B)}", "C", "east", r"\text{Saturday}", "all real numbers", r"\boxed{7}",
     r"18\text{ ways.}", r"\frac{def}{de+df+ef}", "f'(2)=5", "P(A|B)=1", r"x=3k, k\in\mathbb{Z}", "11:30",
     "C. 5"],
)  # fmt: skip
def test_readable_gold_answers_have_no_reason_against_them(gold: str) -> None:
    assert unreadable(gold) == ""


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("", "it is empty"),
        (r"\oint_C f", "unknown command 'oint'"),
        ("The object with the longer period weighs more", "it is a sentence"),
        ("5 4.6", "two numbers side by side"),
        ("not 5", "the words 'not' before an answer"),
        ("The mode is 5", "the words 'the mode is' before an answer"),
        ("5 less", "words after an answer that change it: 'less'"),
        ("(1, 2", "expected ) or ], got 'the end'"),
        ("x +", "unexpected 'end'"),
        ("(" * 40 + "1" + ")" * 40, "nested deeper than 24"),
        ("1" * 1001 + "+1", "more than 1000 digits"),
        ("1+" * 1900 + "1", "more than 1200 tokens"),
        ("12_{99}", "a base that is none"),
        ("1e999", "an exponent beyond 400"),
        (r"\begin{cases}1\end{cases}", "unknown environment 'cases'"),
        (r"\begin{pmatrix}1&2\\3\end{pmatrix}", "rows of different lengths"),
    ],
)
def test_gold_answers_that_cannot_be_read_say_why(gold: str, reason: str) -> None:
    assert reason in unreadable(gold)


def test_what_cannot_be_read_still_equals_its_own_text() -> None:
    assert grade(r"\sum_{k=1}^{n} k", r"\sum_{k=1}^{n} k")
    assert not grade(r"\sum_{k=1}^{m} k", r"\sum_{k=1}^{n} k")
