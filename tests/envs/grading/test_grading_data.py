"""Grading on all gold answers of GSM8K and MATH: re-written ones are right, plausible wrong ones are wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from polyturn.envs.grading.grade import extract_answer, grade, unreadable
from polyturn.envs.tool_math.problems import Problem, load_problems

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [Path(os.environ[name]) for name in ("POLYTURN_DATA",) if os.environ.get(name)]
FOLDERS += [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), None)
pytestmark = pytest.mark.skipif(
    DATA is None, reason="no data: set POLYTURN_DATA to a folder with gsm8k_*, math_*.jsonl"
)

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
PAIR = re.compile(r"\((-?[^(),]*),(-?[^(),]*)\)")


def rewritten(gold: str) -> Iterator[str]:
    """The same answer written in another way."""
    yield f"  {gold} "
    yield gold + "."
    yield f"\\boxed{{{gold}}}"
    if not gold.startswith("\\$"):
        yield f"${gold}$"
    yield gold.replace("\\frac", "\\dfrac")
    yield re.sub(r"\\d?frac", r"\\tfrac", gold)
    yield re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", gold)
    yield re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", gold)
    yield re.sub(r"\\(?:left|right)", "", gold)
    yield re.sub(r"(?<!left)\(", r"\\left(", re.sub(r"(?<!right)\)", r"\\right)", gold))
    yield gold.replace("\\!", "")
    yield gold.replace("\\%", "")
    yield gold.replace("\\$", "")
    yield re.sub(r"\\text\{([^{}]*)\}", r"\\mbox{\1}", gold)
    yield re.sub(r"\\text\{([^{}]*)\}", r"\\textbf{\1}", gold)
    yield re.sub(r"\\text\{([^{}]*)\}", r" \1", gold)
    yield gold.replace("pmatrix", "bmatrix")
    yield "\\cup".join(reversed(gold.split("\\cup")))
    if not re.search(r"cos|sin", gold):
        yield re.sub(r"\^\{?\\circ\}?", "", gold)
        yield re.sub(r"\^\{?\\circ\}?", " degrees", gold)
    if not re.search(r"\\(?:text|mbox|begin)|\\[a-zA-Z]+ [a-zA-Z]|\\ | and ", gold):
        yield gold.replace(" ", "")
    if not re.search(r"\d\s*\\[dt]?frac", gold):  # a mixed number is not a product
        yield re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", gold)
    if re.fullmatch(r"[^()\[\]{}]*,[^()\[\]{}]*", gold) and not re.search(r",\\!|\d,\d{3}", gold):
        yield ", ".join(reversed(gold.split(",")))
    if INTEGER.fullmatch(gold):
        number = int(gold)
        yield from (
            f"{number:,}",
            f"{number}.0",
            f"x = {number}",
            f"\\${number}",
            f"{number} apples",
            f"{number}^\\circ",
        )
        yield from (f"{number}\\text{{ dollars}}", f"\\frac{{{2 * number}}}{{2}}", f"{3 * number}/3", f"{number}\\%")
    if match := FRACTION.fullmatch(gold):
        value = Fraction(int(match[1] + match[2]), int(match[3]))
        yield from (str(value), f"\\frac{{{5 * value.numerator}}}{{{5 * value.denominator}}}", repr(float(value)))
        yield f"x={value}"


def mistaken(gold: str) -> Iterator[str]:
    """Plausible wrong answers: one more, a flipped sign, a factor of 100, swapped coordinates, another bracket."""
    if match := re.search(r"\d+", gold):
        yield gold[: match.start()] + str(int(match.group()) + 1) + gold[match.end() :]
    plain = re.sub(r",\\!|\{,\}|\\!|,(?=\d{3})", "", gold)
    if re.fullmatch(r"-?\d*\.?\d+", plain):
        value = Fraction(plain)
        others = (value + 1, value - 1, -value, 100 * value, value / 100, 10 * value, value * 1001 / 1000)
        yield from (str(other) for other in others if other != value)
        yield from (repr(float(other)) for other in others if other != value)
    if match := FRACTION.fullmatch(gold):
        yield gold[1:] if match[1] else "-" + gold
        yield f"100 \\cdot {gold}"
        if match[2] != match[3]:
            yield f"{match[1]}\\frac{{{match[3]}}}{{{match[2]}}}"
    if (match := PAIR.fullmatch(gold)) and match[1].strip() != match[2].strip():
        yield from (f"({match[2]},{match[1]})", f"[{match[1]},{match[2]}]", f"({match[1]},{match[2]}]")
    if gold.startswith("["):
        yield "(" + gold[1:]
    if gold.endswith("\\%"):
        yield repr(float(gold[:-2]) / 100)


def problems(pattern: str) -> list[Problem]:
    assert DATA is not None
    return [problem for path in sorted(DATA.glob(pattern)) for problem in load_problems(path)]


@pytest.mark.parametrize(("pattern", "share"), [("gsm8k_*.jsonl", 1.0), ("math_*.jsonl", 0.999)])
def test_gold_answers_are_right_rewritten_and_wrong_changed(pattern: str, share: float) -> None:
    """Every gold answer counts as one; one misjudged rewriting or mistake spoils it."""
    misjudged: dict[str, tuple[str, str]] = {}
    rows = problems(pattern)
    assert rows
    for row in rows:
        for answer in rewritten(row.answer):
            if not grade(answer, row.answer):
                misjudged[row.id] = (answer, row.answer)
        for answer in mistaken(row.answer):
            if grade(answer, row.answer):
                misjudged[row.id] = (answer, row.answer)
    assert len(misjudged) <= (1 - share) * len(rows), misjudged


def test_every_gold_answer_can_be_read() -> None:
    golds = [row.answer for pattern in ("gsm8k_*.jsonl", "math_*.jsonl") for row in problems(pattern)]
    assert golds
    assert [gold for gold in golds if unreadable(gold)] == []


def bare(gold: str) -> str | Fraction:
    """A gold answer without money, units, names, brackets and spaces; a fraction, decimal or ratio as its value."""
    text = re.sub(r"\\(?:text|mbox)\{[^{}]*\}(?:\^\d)?|\\[!,$%]|\^\{?\\circ\}?|^[a-z]\s*=|\s", "", gold)
    text = re.sub(r"\\sqrt\{?(\d+)\}?", r"\\sqrt\1", text)
    text = re.sub(r"\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?", r"+\1/\2", text).strip("()")
    if match := re.fullmatch(r"(-?)(\d*)\+?(?:(\d+)[/:](\d+))?", text):
        sign, whole, top, bottom = match.groups()
        value = Fraction(int(whole or 0)) + (Fraction(int(top), int(bottom)) if top else 0)
        return -value if sign else value
    return Fraction(text) if re.fullmatch(r"-?\d*\.\d+", text) else text


def test_a_gold_answer_is_wrong_for_other_problems() -> None:
    """All pairs of a third of MATH's gold answers that are no plain numbers."""
    golds = sorted({row.answer for row in problems("math_*.jsonl") if not INTEGER.fullmatch(row.answer)})[::3]
    pairs = [(one, other) for at, one in enumerate(golds) for other in golds[at + 1 :] if grade(one, other)]
    assert [pair for pair in pairs if bare(pair[0]) != bare(pair[1])] == []


def test_answers_extract_from_mathematics_solutions() -> None:
    for row in problems("math_*.jsonl"):
        answer = extract_answer(row.solution)
        assert answer is not None
        assert grade(answer, row.answer)
