r"""Whether an answer is right: mathematical equality with the gold answer, decided without running anything.

Both texts are read by a small parser of this project (`reader`) into trees; trees are compared as what they are
(`equality`): tuples in order, sets in any order, intervals by their brackets, numbers as exact fractions, expressions
by their values at fixed points to fifty digits (`values`). No text of a model reaches an evaluating parser, sizes
and depth are bounded, and so is the work: there is nothing to kill, no signal, no process, no thread, and the verdict
does not depend on how busy the machine is.

The package math-verify (0.9.0 with latex2sympy2_extended 1.11.0 and sympy 1.14) was measured on the same pairs and is
not used. It graded 0 of 1,000 wrong answers made from MATH's gold answers as right, as this module does, but passed
1,761 of 2,000 rewritten right ones (this module: all), partly by other conventions on units; it takes `50\%` for `0.5`,
`seat` for `east` and `12_6` for `12_5`; it raises ValueError in every thread but the main one, since its time limit is
`signal.alarm`; `10^{10^{10}}` and three thousand parentheses held the process for its full five seconds each; and it
grades 50 to 700 pairs a second, this module tens of thousands.
"""

from __future__ import annotations

import re
from fractions import Fraction

from polyturn.envs.grading.boxed import extract_answer
from polyturn.envs.grading.equality import equal, numbers_agree
from polyturn.envs.grading.reader import readings
from polyturn.envs.grading.values import Evaluator

__all__ = ["extract_answer", "grade"]

_PLAIN = re.compile(r"(-?)(\d{1,3}(?:,\d{3})+|\d{1,200})(?:\.(\d{0,200}))?", re.ASCII)
_FONT = r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{"
_CHOICE = re.compile(rf"(?:{_FONT})?\s*\(([A-Z])\)")
_LETTER = re.compile(rf"(?:{_FONT})?\s*\(?([A-Z])[.:)]?\s*\}}?\s*\.?")
_WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{([^{}]*)\}")
_LONGEST = 4000


def grade(answer: str | None, gold: str, *, time_limit_s: float = 2.0) -> bool:
    r"""Whether `answer` equals `gold` as mathematics.

    What counts as the same:
        Numbers: exactly equal, however written (`\frac12`, `1/2`, `0.5`, `1\frac12`, `3.2 \times 10^5`, `1,234`). A
            decimal may also be off by floating-point noise (1e-9), or be the rounding of a fraction or irrational
            that takes more decimals, if right to one part in 10,000 (`0.3333` for `\frac13`, `3.14159` for `\pi`).
            Two decimals, or a decimal and a whole number, get no such slack.
        Percent: a unit. `50\%` is `50` and is not `0.5`; factors of 100 are never forgiven.
        Units, money, degrees, words around a number: dropped (`\$18`, `18 dollars`, `18`), unless both sides name
            different known units (`5` cents, `5` dollars) or a word changes the number (`not`, `minus`, `or more`).
        Names: `x = 5`, `f(x) = 5`, `x \in A` stand for what they name; two different names are different answers.
        Expressions: equal for all values of their variables, on the principal branch; odd roots of negative numbers
            are real; degrees are degrees inside trigonometric functions; `\log` has base 10.
        Equations: up to a constant factor. Inequalities in one variable are intervals.
        Lists and sets: in any order; tuples, points, vectors and matrices in order; intervals with their brackets,
            unions in any order. `\pm` is both values.
        Ratios: up to scaling, but clock times (`3:30`) digit by digit. Bases (`12_5`): digits and base.
        Words: equal but for case and font; a choice (`(B)`, `\text{B}`, `(B) 12`) by its letter.

    Args:
        answer: What was answered, with or without `\boxed{}`; None (no answer) is wrong.
        gold: The gold answer.
        time_limit_s: Seconds for pathological input; the bounds on size keep all else far below. Past it an
            answer is right only if it is written as the gold one is.

    Returns:
        True if they are the same. Never raises, whatever the texts.
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
    evaluator = Evaluator(time_limit_s)
    return any(equal(tree, wanted, evaluator) for wanted in readings(gold) for tree in readings(answer))


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
