"""Gold programs: what an agent that replays worked solutions runs, on hand-written cases and on all of GSM8K."""

from __future__ import annotations

import ast
import math
import os
from fractions import Fraction
from pathlib import Path

import pytest

from polyturn.envs.grading.grade import grade
from polyturn.envs.tool_math.gold_programs import arithmetic_value, gold_program, gsm8k_calculation
from polyturn.envs.tool_math.problems import LEVELS, Problem, load_problems, word_problems

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [Path(os.environ[name]) for name in ("POLYTURN_DATA",) if os.environ.get(name)]
FOLDERS += [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), None)


def printed(program: str) -> str:
    """What a program of assignments and one print would print; anything else in it is an error. Nothing is executed.

    Floats as Python's: `/` gives a float, `round` to a digit count keeps it one.
    """
    names: dict[str, float] = {}
    functions = {"round": round, "math.ceil": math.ceil, "math.floor": math.floor}

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.Name(id=name):
                return names[name]
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -value(inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return value(inner)
            case ast.Call(func=function, args=arguments):
                return functions[ast.unparse(function)](*map(value, arguments))
            case ast.BinOp(left=left, op=operator, right=right):
                one, other = value(left), value(right)
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
                        return one // other
        raise AssertionError(f"not arithmetic: {ast.dump(node)}")

    output: list[str] = []
    for line in ast.parse(program).body:
        match line:
            case ast.Import(names=[ast.alias(name="math")]):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                names[name] = value(expression)
            case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[argument])):
                output.append(str(value(argument)))
            case _:
                raise AssertionError(f"unexpected line: {ast.unparse(line)}")
    assert len(output) == 1
    return output[0]


def problem(solution: str, answer: str, question: str = "?") -> Problem:
    return Problem("p", question, answer, f"{solution}\n#### {answer}")


def test_calculator_marks_become_steps_in_order() -> None:
    marked = problem("Natalia sold 48/2 = <<48/2=24>>24 in May.\nTogether 48+24 = <<48+24=72>>72.", "72")
    assert gsm8k_calculation(marked) == ["step1 = 48/2", "step2 = 48+24", "print(round(step2))"]
    assert printed(gold_program(marked)) == "72"


@pytest.mark.parametrize(
    ("solution", "answer", "question"),
    [
        ("He has 24/6=<<24/6=4>>4.\nSam has 4+6=10 digits.", "10", "?"),  # a mark left out
        ("23 total meters - 13 calculated meters = 10 meters", "10", "?"),
        ("The total is $36 + $7 = $<<36+7=43>>43\nleaving $43 − $18 = $25", "25", "?"),  # noqa: RUF001
        ("It earns $5,400/week * 4 weeks = $21,600", "21,600", "?"),
        ("60% * 50% = 30%\nthen 30% * 50% = 15%", "15", "what percent?"),
        ("2 bags * 50% = <<2*50*.01=1>>1 bag", "1", "?"),
        ("It costs .5*.5=<<.5*.5=.25>>.25", "0.25", "?"),
        ("It is .50-.25 = $<<0.50-.25=0.25>>0.25 a can", "25", "How many cents?"),
        ("He needs 50/8=<<50/8=6.25>>6.25 so 7 boxes", "7", "?"),  # rounded up
        ("That is 768/50=<<768/50=15.36>>15.36 so 15", "15", "?"),  # rounded down
        ("Ann has <<2*3=6>>6, Ben <<2*5=10>>10, so Ben has 4 fewer... no, together 16", "16", "?"),
        ("9m = 27, so m = 3", "3", "?"),
        ("He works 1 1/2 hours x 4 = 6 hours", "6", "?"),
        ("The house is $80 000 + $16 000 = $96 000", "96,000", "?"),
    ],
)
def test_worked_solutions_with_gaps_still_give_a_program(solution: str, answer: str, question: str) -> None:
    assert grade(printed(gold_program(problem(solution, answer, question))), answer)


def test_a_solution_that_does_not_calculate_its_answer_has_no_program() -> None:
    assert gold_program(problem("He gets the prize because <<150/5=30>>30 is enough.", "10,000")) == ""
    assert gold_program(problem("It is obvious.", "a prize")) == ""


def test_only_numbers_and_plain_operations_enter_a_program() -> None:
    """A data set is input like any other: what stands in a mark is written into a program only if it is arithmetic."""
    evil = problem("<<__import__('os').system('id')=5>>5\n<<9**9**9**9=5>>5\n<<2+3=5>>5", "5")
    assert gsm8k_calculation(evil) == ["step1 = 2+3", "print(round(step1))"]
    assert arithmetic_value("9**9") is None
    assert arithmetic_value("(" * 150 + "1") is None
    assert arithmetic_value("1/0") is None
    assert arithmetic_value("x + 1") is None
    assert arithmetic_value("True + 1") is None
    assert arithmetic_value("0.1 + 0.2") == Fraction(3, 10)


@pytest.mark.parametrize("level", LEVELS)
def test_generated_problems_have_programs(level: int) -> None:
    for generated in word_problems(level, split="test", seed=3, size=100):
        assert printed(gold_program(generated)) == generated.answer


@pytest.mark.skipif(DATA is None, reason="GSM8K is not here: set POLYTURN_DATA to a folder with gsm8k_*.jsonl")
def test_programs_reproduce_gsm8k() -> None:
    """At least 99% of the rows; no program prints anything but the gold answer."""
    assert DATA is not None
    problems = [row for path in sorted(DATA.glob("gsm8k_*.jsonl")) for row in load_problems(path)]
    programs = [(row, gold_program(row)) for row in problems]
    wrong = [row.id for row, program in programs if program and not grade(printed(program), row.answer)]
    assert wrong == []
    assert sum(bool(program) for _, program in programs) >= 0.99 * len(problems)
