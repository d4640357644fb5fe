"""Programs that reproduce gold answers, for agents that replay worked solutions as tool calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fractions import Fraction

from polyturn.envs.tool_math.problem_set import Problem
from polyturn.envs.tool_math.word_problems import OPERATIONS

_MARK = re.compile(r"<<([^<>]{1,200})>>")
_PLAIN = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*", "[": "(", "]": ")", "{": "(", "}": ")"})  # noqa: RUF001
_TRAILING = re.compile(r"[\d.+\-*/() ]+$")
_RIGHT_SIDE = re.compile(r"[\s$]*(-?(?:\d[\d,]*(?: \d00\b)*\.?\d*|\.\d+))\s*(%?)")
_ROUNDINGS = ("math.ceil", "math.floor", "round")
_MAX_EXPRESSION = 200


def gold_program(problem: Problem) -> str:
    """A Python program that prints the problem's gold answer by calculating it, or "" where none is known.

    Generated problems carry their steps; GSM8K's worked solutions carry calculator marks. A MATH solution is prose.
    """
    if steps := problem.info.get("steps"):
        lines = [f"x = {OPERATIONS[name].format(*numbers)}" for name, *numbers in steps]
        return "\n".join([*lines, "print(x)"])
    return "\n".join(gsm8k_calculation(problem))


def gsm8k_calculation(problem: Problem) -> list[str]:
    """The calculations of a GSM8K worked solution as the lines of a Python program that prints the final answer.

    The steps are the calculator marks (`<<48/2=24>>`) and, where the writer left one out, equations in the text whose
    two sides agree. The program prints the last step that has the gold value. Where there is none it takes the last
    step rounded to a whole number, or in hundredths (dollars to cents, shares to percent) if the question asks for
    those, the sum or difference of the last two steps (the last sentence often gives it in words), or what the
    solution says a letter equals ("so x = 65"), in this order.

    Returns:
        The lines, or an empty list where the solution does not calculate its answer: 74 of the 8,133 rows of the
        training and half the test split (arithmetic in words only, wrong equations, answers that are a count of steps).
    """
    gold = _gold(problem.answer)
    if gold is None:
        return []
    # Every calculation is a step; the last one with the gold value is printed.
    steps = list(_steps(problem.solution))
    lines = [f"step{index} = {expression}" for index, (expression, _) in enumerate(steps, 1)]
    values = [value for _, value in steps]
    for index in range(len(values), 0, -1):
        if values[index - 1] == gold:
            return [*lines[:index], f"print({_whole(index, values[index - 1])})"]
    # None has it: the last step rounded, in hundredths, added to the one before, or what a letter is said to equal.
    if values and gold.denominator == 1 and abs(values[-1] - gold) < 1:
        rounding = next((name for name in _ROUNDINGS if _rounded(name, values[-1]) == gold), None)
        if rounding is not None:
            return ["import math", *lines, f"print({rounding}(step{len(values)}))"]
    if values and values[-1] * 100 == gold and re.search(r"cent|%", problem.question):
        return [*lines, f"print(round(step{len(values)} * 100, 6))"]
    if len(values) > 1 and (sign := _sign(values[-2], values[-1], gold)):
        return [*lines, f"print(round(step{len(values) - 1} {sign} step{len(values)}, 6))"]
    if stated := _stated(problem.solution, gold):
        return [*lines, f"{stated} = {problem.answer.replace(',', '').lstrip('$')}", f"print({stated})"]
    return []


def _gold(answer: str) -> Fraction | None:
    # Only commas between thousands: "0,1" is two answers.
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer).replace("$", "").rstrip("%. ")
    return Fraction(text) if re.fullmatch(r"-?(?:\d{1,30}(?:\.\d{1,30})?|\.\d{1,30})", text) else None


def _whole(index: int, value: Fraction) -> str:
    """Prints whole numbers without the decimals that Python's division gives them."""
    return f"round(step{index})" if value.denominator == 1 else f"round(step{index}, 6)"


def _rounded(name: str, value: Fraction) -> int:
    return {"math.ceil": -(-value // 1), "math.floor": value // 1}.get(name, round(value))


def _sign(first: Fraction, second: Fraction, gold: Fraction) -> str:
    return "+" if first + second == gold else "-" if first - second == gold else ""


def _steps(solution: str) -> Iterator[tuple[str, Fraction]]:
    """Every calculation in order: its expression in Python's arithmetic, and its value."""
    for line in solution.partition("####")[0].splitlines():
        seen = ""
        for index, piece in enumerate(_MARK.split(line)):
            if index % 2:
                expression = _arithmetic(piece.partition("=")[0])
                value = arithmetic_value(expression)
                if value is not None:
                    yield expression, value
            else:
                yield from _equations(seen, piece)
                seen += piece


def _equations(before: str, text: str) -> Iterator[tuple[str, Fraction]]:
    """Equations of numbers in running text; an equals sign followed by a mark ends its piece and is not one."""
    line, start = before + text, len(before)
    for sign in re.finditer("=", line):
        if sign.start() < start:
            continue
        right = _RIGHT_SIDE.match(line, sign.end())
        left = re.split(r"[=:;]", line[: sign.start()])[-1]
        if right is None:
            continue
        tail = _TRAILING.search(_arithmetic(left))
        words = re.split(r"\s(?=[\d(])", tail.group().strip()) if tail else []
        # The expression may have numbers of the sentence before it; take the longest end that fits the right side.
        stated = Fraction(re.sub("[ ,]", "", right.group(1)).rstrip("."))
        for first in range(len(words)):
            expression = " ".join(words[first:])
            value = arithmetic_value(expression)
            if value is None or not re.search(r"\d\)*\s*[-+*/]", expression):
                continue
            if "%" in left[-_MAX_EXPRESSION:] + right.group(2) and abs(100 * value - stated) <= abs(stated) / 100:
                expression, value = f"({expression}) * 100", 100 * value
            if abs(value - stated) <= abs(stated) / 100:
                yield expression, value
                break


def _arithmetic(text: str) -> str:
    """Text with only numbers, operators and parentheses left in it."""
    text = re.sub(r"(?<=\d)(?:,(?=\d{3})| (?=\d00\b))", "", text[-_MAX_EXPRESSION:].translate(_PLAIN)).replace("$", "")
    text = re.sub(r"(\d+(?:\.\d+)?|\.\d+)\s*%", r"(\1/100)", text)
    text = re.sub(r"(?<![\d.])(\d+) (\d+/\d+)(?![\d.])", r"(\1+\2)", text)
    text = re.sub(r"(?<![A-Za-z])[xX](?=\s*[\d(.])", "*", text)
    text = re.sub(r"/\s*(?=[A-Za-z])", " ", text)
    text = re.sub(r"[A-Za-z'’,;:!?\"]+", " ", text)  # noqa: RUF001
    text = re.sub(r"(?<=[\d)])(?=\((?=[\d.]))|(?<=\))(?=[\d.])", "*", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"\s+", " ", text))
    return text.strip().rstrip(" .")


def arithmetic_value(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, + - * / // and parentheses, or None if it is anything else.

    Nothing is executed: Python's own parser makes the tree, and only these operations are carried out, on numbers of
    bounded length.
    """
    if len(expression) > _MAX_EXPRESSION:
        return None
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            one, other = _value(left), _value(right)
            match operator:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return one / other
                case ast.FloorDiv():
                    return Fraction(one // other)
    raise ValueError("not plain arithmetic")


def _stated(solution: str, gold: Fraction) -> str:
    """The letter the solution says equals the gold answer, or ""."""
    found = ""
    for name, number in re.findall(r"\b([A-Za-z])\s*[<>]?=\s*\$?(-?[\d,]*\.?\d+)", solution):
        if _gold(number) == gold:
            found = name
    for number, name in re.findall(r"(-?[\d,]*\.?\d+)\s*=\s*([A-Za-z])\b", solution):
        if _gold(number) == gold:
            found = name
    return found
