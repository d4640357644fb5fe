"""The gold agent: replays a data set's own worked solutions, so that an environment can be checked end to end."""

from __future__ import annotations

import re

from polyturn.agents.agent import Episode
from polyturn.envs.tool_math.gold_programs import gold_program
from polyturn.envs.tool_math.problems import Problem, Problems

_OUTPUT = re.compile(r"\A```output\n(.*)\n```\Z", re.DOTALL)


class GoldAgent:
    """Knows the answers: runs the worked solution's calculations with the tool where there are any.

    With a program (GSM8K's calculator marks, a generated problem's steps) it runs it in the first turn and boxes what
    the tool printed, so a right grade shows that tool and grading work. Without one (MATH) it boxes the gold answer.

    Args:
        problems: The environment's problems.
    """

    name = "gold"
    blocking = False

    def __init__(self, problems: Problems) -> None:
        self._problems: dict[str, Problem] = {problem.id: problem for problem in problems}

    def act(self, episode: Episode) -> str:
        """The next turn of the worked solution."""
        problem = self._problems[episode.task_id]
        program = gold_program(problem)
        if not program:
            return f"{problem.solution}\n\nThe answer is \\boxed{{{problem.answer}}}."
        if not episode.turns:
            return f"```python\n{program}\n```"
        match = _OUTPUT.match(episode.observation)
        return f"The answer is \\boxed{{{match.group(1).strip() if match else ''}}}."
