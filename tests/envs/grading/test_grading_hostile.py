r"""Grading of hostile and random text, and boxes in it: it ends soon, raises nothing, lets nothing wrong through."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings, strategies as st

from polyturn.envs.grading.equality import equal
from polyturn.envs.grading.grade import extract_answer, grade
from polyturn.envs.grading.reading.reader import readings
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import OutOfWork, Work

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


# The budget


def test_a_budget_counts_operations_and_stays_used_up() -> None:
    work = Work(3)
    work.spend()
    work.spend(2)
    for _ in range(2):
        with pytest.raises(OutOfWork, match="budget"):
            work.spend()


def spent(answer: str, gold: str) -> int:
    """Operations that a comparison takes."""
    evaluator = Evaluator(10**9)
    assert equal(readings(answer)[0], readings(gold)[0], evaluator)
    return 10**9 - evaluator.work.left


@pytest.mark.parametrize("element", [r"\sqrt{%d}", r"\sin %d", r"\sqrt{x+%d}"])
def test_a_list_of_irrationals_costs_one_evaluation_an_element(element: str) -> None:
    """Sixteen elements in the opposite order cost four times what four cost, and not sixteen times."""
    costs = []
    for count in (4, 16):
        elements = [element % number for number in (2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19, 21, 22, 23, 26)[:count]]
        costs.append(spent(", ".join(reversed(elements)), ", ".join(elements)))
    assert costs[1] <= 4.5 * costs[0]


def test_the_verdict_does_not_depend_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps an hour at every look, as after a pause of the machine, changes nothing."""
    now = iter(range(0, 10**9, 3600))
    for name in ("monotonic", "time", "perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(now)))
    assert grade(r"\sqrt{8}", r"2\sqrt{2}")
    assert grade(r"\sqrt{x^2}", "|x|")
    assert not grade(r"\sqrt{8}", r"3\sqrt{2}")


def test_without_a_budget_only_identical_text_is_right() -> None:
    def right(answer: str, gold: str) -> bool:
        return equal(readings(answer)[0], readings(gold)[0], Evaluator(work=0))

    assert right(r"\sqrt{8}", r"\sqrt 8")
    assert not right(r"\sqrt{8}", r"2\sqrt{2}")
    assert not right(r"\sqrt{8}", r"\sqrt{18}")


# Random text

PIECES = st.sampled_from(
    ["\\frac", "{", "}", "(", ")", "[", "]", "1", "2", "3.5", "x", "y", "+", "-", "*", "/", "^", "_", "!", ",",
    ";", "=", "<", "\\le ",
     "\\sqrt", "\\pi", "\\infty", "\\cup", "\\pm", "\\text{", "\\{", "\\}", "|", "%", "$", "\\$", ":", "\\circ",
    "sin", "and", " ", "&",
     "\\\\", "\\begin{pmatrix}", "\\end{pmatrix}", "\\in ", "\\log", "\\overline{", "degrees", "e", "i",
    "\\boxed{", "°", "½", "base", "'", "\\lfloor", "\\rfloor", "!=", "\\ne", "P(", "I", "j", "T", "\\mid",
    "Fraction(", "\\approx", "or", "-1", "cm", "."]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(PIECES, max_size=14).map("".join))
def test_grading_never_raises_and_is_symmetric(one: str, other: str) -> None:
    # Only an answer may write a list in square brackets, so these are not symmetric.
    assert "[" in one + other or grade(one, other) == grade(other, one)
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
