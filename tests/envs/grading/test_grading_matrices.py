r"""Grading: matrices and vectors as answers, calculated where the answer leaves a sum, product or power standing."""

from __future__ import annotations

import pytest

from polyturn.envs.grading import grade
from polyturn.envs.grading.matrices import as_array
from polyturn.envs.grading.reading.reader import readings
from polyturn.envs.grading.work import TooHard

A = r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"
B = r"\begin{bmatrix}5 & 6 \\ 7 & 8\end{bmatrix}"
V = r"\begin{pmatrix}1 \\ 1\end{pmatrix}"
D = r"\begin{vmatrix}1 & 2 \\ 3 & 4\end{vmatrix}"


def rows(text: str) -> str:
    """A matrix from rows like "1 2, 3 4"."""
    return r"\begin{pmatrix}" + r" \\ ".join(" & ".join(row.split()) for row in text.split(",")) + r"\end{pmatrix}"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (f"{A} + {B}", rows("6 8, 10 12")),
        (f"{B} - {A}", rows("4 4, 4 4")),
        (A + B, rows("19 22, 43 50")),
        (rf"{A}\cdot{V}", rows("3, 7")),
        (f"{A}^2", rows("7 10, 15 22")),
        (f"{A}^3", rows("37 54, 81 118")),
        (f"{A}^{{-1}}", rows("-2 1, 3/2 -1/2")),
        (f"{A}^{{-2}}", rows("11/2 -5/2, -15/4 7/4")),
        (f"{A}^T", rows("1 3, 2 4")),
        (rf"-2{V}-\frac{{{V}}}{{2}}", rows("-5/2, -5/2")),
        (rf"2 \cdot {A} \cdot x", rows("2x 4x, 6x 8x")),
        (f"{D}", "-2"),
        (f"{D}^2+1", "5"),
        (rf"{D}\cdot {A}", rows("-2 -4, -6 -8")),
        (r"\begin{vmatrix}2&0&1\\1&3&-1\\0&5&4\end{vmatrix}", "39"),
        (r"\begin{pmatrix}2&0&1\\1&3&-1\\0&5&4\end{pmatrix}^{-1}", rf"\frac1{{39}}{rows('17 5 -3, -4 8 3, 5 -10 6')}"),
        (r"\begin{pmatrix}4\end{pmatrix}^{-1}", r"\begin{pmatrix}1/4\end{pmatrix}"),
        ("(1,2)+(3,4)", "(4,6)"),
        ("2(1,2)-(1,0)", "(1,4)"),
        (r"(1,2)+t(3,4)", "(1+3t,2+4t)"),
        (r"\frac{(2,4)}{2}", "(1,2)"),
        ("-(1,-2)", "(-1,2)"),
    ],
)
def test_what_is_left_standing_is_calculated(answer: str, gold: str) -> None:
    assert grade(answer, gold)
    assert grade(gold, answer)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (A + B, B + A),
        (f"{A}^2", rows("1 4, 9 16")),
        (f"{A} + {V}", rows("2 3, 4 5")),
        (A + rows("1 2 3"), rows("1 2, 3 4")),
        (f"{D}", "2"),
        (f"{A}^T", A),
        (f"{A}^{{-1}}", rows("-2 1, 3/2 1/2")),
        (f"{A}^{{1/2}}", A),
        (f"{A}^0", rows("1 0, 0 1")),
        (f"{A}+1", rows("2 3, 4 5")),
        (f"5/{A}", rows("5 5, 5 5")),
        ("(1,2)+(3,4,5)", "(4,6,5)"),
        ("(1,2)", "(1,2,3)"),
        ("2[1,2]", "[2,4]"),
        ("(1,2)+[3,4]", "(4,6)"),
        (rows("1 2"), rows("1, 2")),
        (rows("1 2, 3 4"), rows("1 2")),
        (r"\begin{vmatrix}1&2&3\\4&5&6\end{vmatrix}", "0"),
    ],
)
def test_other_matrices_and_what_has_no_meaning_are_wrong(answer: str, gold: str) -> None:
    assert not grade(answer, gold)
    assert not grade(gold, answer)


@pytest.mark.parametrize(
    ("matrix", "array", "same"),
    [
        ("1 2", "[1,2]", True),
        ("1 2", "(1,2)", False),
        ("1 2", "1,2", False),
        ("1 2", "[2,1]", False),
        ("1 2 3", "[1,2,3]", True),
        ("1 2 3", "[1,2]", False),
        ("1, 2", "(1,2)", True),
        ("1, 2", "[1,2]", True),
        ("1, 2", "(2,1)", False),
        ("1, 2", "1,2", False),
        ("1 2, 3 4", "[1,2]", False),
        ("1 2, 3 4", "[1,2,3,4]", False),
        ("1 2, 3 4", "[[1,2],[3,4]]", True),
        ("1 2, 3 4", "[[1,3],[2,4]]", False),
        ("1 2", "[[1,2]]", True),
        ("1 2", "[[1],[2]]", False),
        ("1, 2", "[[1],[2]]", True),
        ("1, 2", "[[1]\n [2]]", True),
        ("1 2", "[[1]\n [2]]", False),
        ("1, 2", "Matrix([[1], [2]])", True),
        ("1 2", "Matrix([[1], [2]])", False),
        ("1, 2", "[[1,2]]", False),
        ("1, 2, 3", "[[1],[2],[3]]", True),
        ("1, 2, 3", "[[1],[3],[2]]", False),
    ],
)
def test_a_row_is_a_list_in_brackets_and_a_column_a_point(matrix: str, array: str, same: bool) -> None:
    assert grade(rows(matrix), array) is same
    assert grade(array, rows(matrix)) is same


def test_large_results_are_refused_before_they_are_made() -> None:
    """An eight by eight matrix to the twelfth would have 8^12 products in every cell."""
    big = rows(", ".join(" ".join(f"x_{{{row}{column}}}" for column in range(8)) for row in range(8)))
    for power in ("^{12}", "^{-1}", "^9", big + "^6"):
        with pytest.raises(TooHard):
            as_array(readings(big + power)[0])
    assert grade(big, big.replace(" & ", "&"))
