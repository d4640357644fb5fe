r"""Whether an answer is right: mathematical equality with the gold answer, decided without running anything.

Both texts are read by a small parser of this project (`reader`) into trees; trees are compared as what they are
(`equality`): tuples in order, sets in any order, intervals by their ends and brackets, numbers as exact fractions,
expressions by their values at points of all signs and sizes (`identity`), to fifty digits. No text of a model reaches
an evaluating parser. Sizes and depth are bounded, and so is the work, which is counted in operations: there is nothing
to kill, no signal, no process, no thread, and no clock, so a verdict is the same on a busy machine, in sixty-four
threads and after a pause.

The package math-verify (0.9.0 with latex2sympy2_extended 1.11.0 and sympy 1.14) was measured on the same pairs and is
not used. It graded 0 of 1,000 wrong answers made from MATH's gold answers as right, as this module does, but passed
1,761 of 2,000 rewritten right ones (this module: all), partly by other conventions on units; it takes `50\%` for `0.5`,
`seat` for `east` and `12_6` for `12_5`; it raises ValueError in every thread but the main one, since its time limit is
`signal.alarm`; `10^{10^{10}}` and three thousand parentheses held the process for its full five seconds each.
"""

from __future__ import annotations

import re
from fractions import Fraction

from polyturn.envs.grading.boxed import extract_answer
from polyturn.envs.grading.equality import equal
from polyturn.envs.grading.numbers import numbers_agree
from polyturn.envs.grading.reading.reader import readings, why_unreadable
from polyturn.envs.grading.reading.tree import Node
from polyturn.envs.grading.unfolding import unfolded
from polyturn.envs.grading.values import Evaluator
from polyturn.envs.grading.work import TooHard

__all__ = ["extract_answer", "grade", "unreadable"]

_PLAIN = re.compile(r"(-?)(\d{1,3}(?:,\d{3})+|\d{1,200})(?:\.(\d{0,200}))?", re.ASCII)
_FONT = r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{"
_CHOICE = re.compile(rf"(?:{_FONT})?\s*(?:\((?=[A-Z]\))|(?=[A-H]\.\s))([A-Z])")
_LETTER = re.compile(rf"(?:{_FONT})?\s*\(?([A-Z])[.:)]?\s*\}}?\s*\.?")
_WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{([^{}]*)\}")
_LONGEST = 4000
_MOST_WORDS = 6
"""Words of a gold answer in words; more are a sentence, which no other answer repeats word for word."""


def grade(answer: str | None, gold: str) -> bool:
    r"""Whether `answer` equals `gold` as mathematics.

    What counts as the same:
        Numbers: exactly equal, however written (`\frac12`, `1/2`, `0.5`, `1\frac12`, `3.2 \times 10^5`, `1,234`). A
            decimal may also be the rounding of a fraction or irrational that takes more decimals, if right to one
            part in 10,000 (`0.3333` for `\frac13`, `3.14159` for `\pi`); two decimals, or a decimal and a whole
            number, get no such slack. A decimal of 15 digits or more, as doubles are printed, may be off by their
            noise: by 1e-12 of a rational number (`18.000000000000004` for `18`), and for an irrational one by the
            rounding of its computation in doubles, a few units of the sixteenth digit (`2.6457513110645907` for
            `\sqrt7`, see `doubles`).
        Percent: a unit. `50\%` is `50` and is not `0.5`; factors of 100 are never forgiven.
        Units, money, degrees, words around a number: dropped (`\$18`, `18 dollars`, `18`), unless both sides name
            different known units (`5` cents, `5` dollars) or a word changes the number (`not`, `minus`, `or more`).
        Names: `x = 5`, `f(x) = 5`, `x \in A` stand for what they name; two different names are different answers.
        Expressions: equal for all real values of their variables, on the principal branch (for complex values where i
            occurs): `\sqrt{x^2}` is `|x|` and is not `x`, and `\ln x` is not `\ln|x|`. Odd roots of negative numbers
            are real; degrees are degrees inside trigonometric functions; `\log` has base 10; the n of `(-1)^n` is a
            whole number. What points cannot decide is not equal.
        Equations: up to a constant factor. Inequalities about one thing, linear or in an absolute value, are sets.
        Lists and sets: in any order; tuples, points, vectors and matrices in order; intervals with their brackets,
            unions as sets. `\pm` is both values. An answer may write a list or set as Python does: `[1, 2]`. Sums,
            products and powers of matrices are calculated.
        Sums and products over whole numbers: written out, up to 1,000 terms. Integrals between numbers of polynomials,
            powers, sines, cosines and exponentials of a line, and limits of quotients of polynomials or of continuous
            functions: evaluated by rule. Others, and those without bounds, have no reading.
        Ratios: up to scaling, but clock times (`3:30`) digit by digit. Bases (`12_5`): digits and base.
        Words: equal but for case and font; a choice (`(B)`, `\text{B}`, `(B) 12`) by its letter.

    Args:
        answer: What was answered, with or without `\boxed{}`; None (no answer) is wrong.
        gold: The gold answer.

    Returns:
        True if they are the same. Never raises, for any texts.
    """
    if answer is None:
        return False
    answer, gold = answer.strip(), gold.strip()
    if not answer or not gold:
        return False
    if answer == gold:
        return True
    ours, theirs = _PLAIN.fullmatch(answer), _PLAIN.fullmatch(gold)
    if ours and theirs:
        return numbers_agree(*_number(ours), *_number(theirs))
    if max(len(answer), len(gold)) > _LONGEST:
        return False
    answer, gold = _unboxed(answer), _unboxed(gold)
    for one, other in ((gold, answer), (answer, gold)):
        if (letter := _LETTER.fullmatch(one)) and (choice := _CHOICE.match(other)):
            return letter.group(1) == choice.group(1)
    if (words := _words(answer)) and words == _words(gold):
        return True
    evaluator = Evaluator()
    wanted = _unfolded(gold, evaluator)
    return any(equal(tree, one, evaluator) for one in wanted for tree in _unfolded(answer, evaluator))


def unreadable(gold: str) -> str:
    """Why a gold answer cannot be read as mathematics, a choice or a few words, so that only its own text equals it.

    Returns:
        The reason, or "" if it can be read.
    """
    text = _unboxed(gold.strip())
    if not text:
        return "it is empty"
    if _PLAIN.fullmatch(text) or _LETTER.fullmatch(text) or _CHOICE.match(text):
        return ""
    words = _words(text)
    if words and not re.search(r"\d", words):
        return "it is a sentence" if len(words.split()) > _MOST_WORDS else ""
    if why := why_unreadable(text):
        return why
    try:
        return "" if _unfolded(text, Evaluator(), strict=True) else "it has no reading"
    except TooHard as error:
        return str(error)


def _unfolded(text: str, evaluator: Evaluator, *, strict: bool = False) -> list[Node]:
    """The trees a text may stand for, with sums, integrals and limits evaluated; those that cannot be are left out.

    Raises:
        TooHard: None of them can be evaluated; only with `strict`.
    """
    found: list[Node] = []
    reason: TooHard | None = None
    for tree in readings(text):
        try:
            found.append(unfolded(tree, evaluator))
        except TooHard as error:
            reason = error
    if strict and reason is not None and not found:
        raise reason
    return found


def _number(match: re.Match[str]) -> tuple[Fraction, int]:
    sign, whole, decimals = match.groups()
    digits = sign + whole.replace(",", "")
    if decimals is None:
        return Fraction(int(digits)), -1
    return Fraction(int(digits + decimals), 10 ** len(decimals)), len(decimals)


def _unboxed(text: str) -> str:
    return text if "box" not in text else extract_answer(text) or text


def _words(text: str) -> str:
    """The text without fonts, case and stray spaces; "" if it is more than words."""
    plain = " ".join(_WORDS.sub(r" \1 ", text).split()).strip(" .$").casefold()
    return plain if re.fullmatch(r"[^\W\d_]{2,}[\w\s'.-]*", plain) else ""
