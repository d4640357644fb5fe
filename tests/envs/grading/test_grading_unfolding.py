r"""Grading of sums, products, integrals, limits and cis: evaluated by rule with bounded work, or refused with a reason.

Every value is by hand; none was produced by running the grader.
"""

from __future__ import annotations

import contextlib

import pytest

from polyturn.envs.grading import grade, unreadable
from polyturn.envs.grading.reading.reader import readings
from polyturn.envs.grading.unfolding import MOST_NODES, unfolded
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import WORK, TooHard, Work

RIGHT = [
    (r"\sum_{k=1}^{9} k", "45"),
    (r"\sum_{k=1}^{100} k", "5050"),
    (r"2\sum_{i=0}^{4} 2^i", "62"),
    (r"1+\sum_{k=1}^{3} k + 2", "9"),
    (r"\sum_{i=1}^{3}\sum_{j=1}^{i} j", "10"),
    (r"\sum_{k=1}^{2}\sum_{k=1}^{3} k", "12"),
    (r"\sum_{k=1}^{3} x^k", "x+x^2+x^3"),
    (r"\sum\limits_{k=0}^{2}\binom{2}{k}", "4"),
    (r"\sum_{e=1}^{3} e", "6"),
    (r"\sum_{n=3}^{3} n", "3"),
    (r"\sum_{n=3}^{2} n", "0"),
    (r"\prod_{k=1}^5 k", "120"),
    (r"\prod_{k=4}^{3} k", "1"),
    (r"\prod_{n=2}^{10}\left(1-\frac1{n^2}\right)", r"\frac{11}{20}"),
    (r"\int_0^1 x^2\,dx", r"\frac13"),
    (r"\int_0^1 \frac12 dx", "0.5"),
    (r"\int_0^1 dx", "1"),
    (r"\int_{1}^{2} \frac{1}{x} dx", r"\ln 2"),
    (r"\int_1^2 \frac{3}{x^2} dx", r"\frac32"),
    (r"\int_1^4 \sqrt{x} dx", r"\frac{14}{3}"),
    (r"\int_0^{\pi} \sin x\, dx", "2"),
    (r"\int_0^{\pi/4} \cos 2t \,\mathrm{d}t", r"\frac12"),
    (r"\int_0^1 e^{2x} dx", r"\frac{e^2-1}{2}"),
    (r"\int_0^1\int_0^x y \,dy\,dx", r"\frac16"),
    (r"\int_0^a (2x+3)^2 dx", r"\frac{(2a+3)^3-27}{6}"),
    (r"\lim_{x\to 2}\frac{x^2-4}{x-2}", "4"),
    (r"\lim_{x\rightarrow 1}\frac{x^3-1}{x^2-1}", r"\frac32"),
    (r"\lim_{x\to\infty}\frac{3x^2+1}{2x^2-x}", r"\frac32"),
    (r"\lim_{n \to \infty} \frac{1}{n}", "0"),
    (r"\lim_{x\to 0^+} \cos x", "1"),
    (r"\lim_{x\to 4^{-}} \sqrt{x}", "2"),
    (r"\operatorname{cis} 60^\circ", r"\frac12+\frac{\sqrt3}{2}i"),
    (r"2\text{cis}\frac{\pi}{2}", "2i"),
    (r"3 cis(\pi)", "-3"),
    (r"\text{cis }90^\circ", "i"),
    (r"4\operatorname{cis}330^\circ", r"2\sqrt3-2i"),
]  # fmt: skip
WRONG = [
    (r"\sum_{k=1}^{9} k", "44"),
    (r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{4} k"),
    (r"\sum_{k=1}^{3} k+1", "9"),
    (r"\prod_{k=1}^{5} k", "24"),
    (r"\int_0^1 x^2\,dx", r"\frac12"),
    (r"\int_0^2 x^2\,dx", r"\int_0^2 x^3\,dx"),
    (r"\lim_{x\to 2}\frac{x^2-4}{x-2}", "0"),
    (r"\operatorname{cis} 60^\circ", r"\frac12-\frac{\sqrt3}{2}i"),
    (r"\operatorname{cis} 60^\circ", r"\operatorname{cis} 60"),
]
REFUSED = {
    r"\sum_{k=1}^{\infty} \frac{1}{2^k}": ("1", "no whole numbers"),
    r"\sum_{k=1}^{n} k": (r"\frac{n(n+1)}{2}", "no whole numbers"),
    r"\sum_{k=1}^{k} k": ("1", "a bound that depends on k"),
    r"\sum_{k=5}^{1} k": ("0", "from 5 to 1"),
    r"\sum_{k=1}^10 k": ("55", "several digits without braces"),
    r"\int x dx": (r"\frac{x^2}{2}", "without its ends"),
    r"\int_0^1 x": (r"\frac12", "without its d"),
    r"\int_0^\infty e^{-x}dx": ("1", "without bounds"),
    r"\int_{-1}^{1}\frac1x dx": ("0", "not known to be positive"),
    r"\int_{-1}^1 \frac{1}{x^2}dx": ("-2", "not known to be positive"),
    r"\int_0^1 \frac{1}{x}dx": ("0", "not known to be positive"),
    r"\int_0^1 \lfloor 2x \rfloor dx": ("0.5", "of another kind"),
    r"\int_0^1 |x| dx": ("0.5", "of another kind"),
    r"\int_0^1 e^{x^2} dx": ("1.4627", "of another kind"),
    r"\lim_{x\to0}\frac{|x|}{x}": ("1", "has no value"),
    r"\lim_{x\to0}\lfloor x\rfloor": ("0", "may jump"),
    r"\lim_{x\to0} 0^x": ("1", "not known to be positive"),
    r"\lim_{x\to 0}\frac1x": ("0", "infinite"),
    r"\lim_{x\to\infty} x": ("0", "infinite"),
    r"\lim_{x\to 0}\frac{\sin x}{x}": ("1", "has no value"),
    r"\lim_{x\to0}\sin\frac1x": ("0", "has no value"),
    r"\lim_{x\to\frac{\pi}{2}}\tan x": ("0", "has no value"),
    r"\lim_{n\to\infty}(-1)^n": ("1", "at infinity"),
    r"\lim_{h\to 0}\frac{\sin(x+h)-\sin x}{h}": (r"\cos x", "several variables"),
}


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_what_can_be_evaluated_is_its_value(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)
    assert unreadable(answer) == ""


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_another_value_is_wrong(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)


@pytest.mark.parametrize(("text", "other", "reason"), [(text, *rest) for text, rest in REFUSED.items()])
def test_what_takes_more_than_rules_is_refused_with_a_reason(text: str, other: str, reason: str) -> None:
    """Even where a number would come out: divergent integrals and limits that do not exist have none."""
    assert reason in unreadable(text)
    assert not grade(text, other)
    assert not grade(other, text)
    assert grade(text, text)


@pytest.mark.parametrize(
    "hostile",
    [
        r"\sum_{k=1}^{10^{10^{10}}} k",
        r"\sum_{k=1}^{1000}" * 6 + " 1",
        r"\sum_{k=1}^{" * 20 + "2" + "}1" * 20,
        r"\prod_{k=1}^{1000}10^{1000}",
        r"\prod_{k=1}^{1000} k!",
        r"\sum_{k=1}^{999} k^{999}",
        r"\int_0^1 (x+1)^{40}(x+2)^{40} dx",
        r"\int_0^1 (x+a)^{40} dx",
        r"\int_0^1 " + "(x+a)(x+b)" * 15 + "dx",
        r"\int_0^x " * 8 + "t " + "dt" * 8,
        r"\int_0^1 " * 150 + "1 " + "dx" * 150,
        r"\lim_{x\to 1}\frac{" + "(x-1)" * 40 + "}{" + "(x-1)" * 40 + "}",
        r"\lim_{x\to 0}" * 200 + "x",
    ],
    ids=lambda text: text[:24],
)
def test_hostile_bounds_and_nests_cost_no_more_than_the_budget(hostile: str) -> None:
    assert not grade(hostile, "7")
    assert not grade(hostile + "+1", hostile)
    for tree in readings(hostile):
        evaluator = Evaluator()
        with contextlib.suppress(TooHard):
            unfolded(tree, evaluator)
        assert evaluator.work.left > WORK - 8 * MOST_NODES


def test_a_used_up_budget_ends_the_unfolding() -> None:
    evaluator = Evaluator()
    evaluator.work = Work(50)
    with pytest.raises(TooHard, match="budget"):
        unfolded(readings(r"\sum_{k=1}^{100} k")[0], evaluator)
