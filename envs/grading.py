r"""Whether an answer is right: mathematical equality with the gold answer, decided without running anything."""

from __future__ import annotations

import re
from fractions import Fraction

from turnwise.envs.boxed import extract_answer
from turnwise.envs.latex_answers import Node, readings
from turnwise.envs.math_equal import equal, numbers_agree
from turnwise.envs.math_values import Evaluator, TooHard

__all__ = ["extract_answer", "grade"]

_PLAIN = re.compile(r"(-?)(\d{1,3}(?:,\d{3})+|\d{1,200})(?:\.(\d{0,200}))?")
_CHOICE = re.compile(r"\s*\\?(?:text|textbf|textrm|mathrm|mathbf|mbox)?\s*\{?\s*\(([A-Za-z])\)\s*\}?")
_LETTER = re.compile(r"\s*(?:\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{)?\s*\(?([A-Z])[.:)]?\s*\}?\s*\.?\s*")


def grade(answer: str | None, gold: str, *, time_limit_s: float = 2.0) -> bool:
    """Whether `answer` equals `gold` as mathematics."""
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
    for letter, choice in ((_LETTER.fullmatch(gold), _CHOICE.match(answer)), (_LETTER.fullmatch(answer), _CHOICE.match(gold))):
        if letter and choice:
            return letter.group(1) == choice.group(1).upper()
    if _words(answer) == _words(gold):
        return True
    return _same(_unboxed(answer), _unboxed(gold), time_limit_s)


def _number(match: re.Match[str]) -> tuple[Fraction, int]:
    sign, whole, decimals = match.groups()
    if decimals is None:
        return Fraction(int(sign + whole.replace(",", ""))), -1
    return Fraction(int(sign + whole.replace(",", "") + decimals), 10 ** len(decimals)), len(decimals)


def _same(answer: str, gold: str, time_limit_s: float) -> bool:
    evaluator = Evaluator(time_limit_s)
    trees: list[Node] = list(readings(answer))
    try:
        return any(equal(ours, theirs, evaluator) for theirs in readings(gold) for ours in trees)
    except (TooHard, RecursionError):
        return False


def _unboxed(text: str) -> str:
    return text if "box" not in text else extract_answer(text) or text


def _words(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{([^{}]*)\}", r"\1", text)).strip(" .$").casefold()
