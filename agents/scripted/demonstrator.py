"""Scripted solvers of ToolMath: gold agents that replay worked solutions, and an imperfect one to imitate."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from polyturn.agents.agent import Episode
from polyturn.envs.tool_math.problems import Problem, Problems
from polyturn.envs.tool_math.word_problems import OPERATIONS

_SWAPPED = {"add": "sub", "sub": "add", "mul": "add", "add_groups": "sub_groups", "sub_groups": "add_groups"}
_OUTPUT = re.compile(r"```output\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True)
class Habits:
    """How often the demonstrator does what; probabilities.

    Attributes:
        in_the_head: Answers at once without the tool.
        head_right: An answer from the head is right.
        slip: Per operation of a program, the wrong operator is written.
        no_print: The program does not print its result.
        wrong_name: The program's last line uses a name that does not exist.
        repair: After an error or an empty output, writes a working last line instead of giving up.
        misread: Boxes a number of the problem instead of the program's output.
    """

    in_the_head: float = 0.2
    head_right: float = 0.1
    slip: float = 0.04
    no_print: float = 0.5
    wrong_name: float = 0.15
    repair: float = 0.4
    misread: float = 0.06


class Demonstrator:
    """Solves generated word problems as a hurried person would: sometimes with the tool, often wrongly.

    What it writes is a mixture of habits that nothing in the problem announces, so a policy that imitates it holds
    the whole mixture, and the good habit can only be preferred by looking at outcomes.

    Args:
        problems: The environment's problems; their `info["steps"]` are the programs.
        habits: How often it does what.
    """

    name = "demonstrator"
    blocking = False

    def __init__(self, problems: Problems, habits: Habits | None = None) -> None:
        self._problems = {problem.id: problem for problem in problems}
        self._habits = Habits() if habits is None else habits

    def act(self, episode: Episode) -> str:
        """The next turn, from the episode's own generator."""
        problem, rng, habits = self._problems[episode.task_id], episode.rng, self._habits
        if not episode.turns:
            if rng.random() < habits.in_the_head:
                return boxed(problem.answer if rng.random() < habits.head_right else _guess(problem, rng))
            return self._program(problem, rng)
        match = _OUTPUT.search(episode.observation)
        shown = match.group(1).strip() if match else ""
        if re.fullmatch(r"-?\d+", shown):
            return boxed(_number(problem, rng) if rng.random() < habits.misread else shown)
        if rng.random() < habits.repair:
            return _fenced("print(x)")
        return "I do not know."

    def _program(self, problem: Problem, rng: np.random.Generator) -> str:
        lines = []
        for name, *numbers in problem.info["steps"]:
            if rng.random() < self._habits.slip:
                name = _SWAPPED.get(name, name)
            lines.append("x = " + OPERATIONS[name].format(*numbers))
        last = "print(x)"
        draw = rng.random()
        if draw < self._habits.no_print:
            last = ""
        elif draw < self._habits.no_print + self._habits.wrong_name:
            last = "print(y)"
        return _fenced("\n".join(line for line in [*lines, last] if line))


def boxed(answer: str) -> str:
    """A final turn."""
    return f"The answer is \\boxed{{{answer}}}."


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def _number(problem: Problem, rng: np.random.Generator) -> str:
    numbers = [number for _, *operands in problem.info["steps"] for number in operands]
    return str(numbers[int(rng.integers(len(numbers)))])


def _guess(problem: Problem, rng: np.random.Generator) -> str:
    return str(max(0, int(problem.answer) + int(rng.integers(1, 20)) * (1 if rng.random() < 0.5 else -1)))
