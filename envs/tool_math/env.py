"""`polyturn/ToolMath-v0`: mathematics with a Python interpreter.

The agent reads a problem, writes reasoning with fenced python blocks, sees what they print, and ends with
`\\boxed{answer}`. The rule of an episode is that of multi-turn iterative preference learning (arXiv 2409.02392):
a turn calls the tool if and only if it holds a fenced python block and no box; any other turn ends the episode, and
its last box is graded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from polyturn.envs.grading import extract_answer, grade
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.tool_math.problems import Problem, Problems, load_problems
from polyturn.envs.tools.calls import Call, code_blocks as code_blocks
from polyturn.envs.tools.env import ToolEnv
from polyturn.envs.tools.scoring import Outcome
from polyturn.envs.tools.tool import Output
from polyturn.sandbox.sandbox import Limits, Sandbox

PROMPTS: Mapping[str, str] = {
    "plain": "{question}",
    "tool": (
        "{question}\n\nReason step by step. You may run Python: write a ```python block, end your turn, and its output "
        "comes back; variables are kept. When you know the answer, write it in \\boxed{}."
    ),
}
"""How the first observation is worded, by name; `{question}` stands for the problem."""


class _Tasks(Sequence[Mapping[str, Any]]):
    """Problems as tasks; nothing is copied."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            return _Tasks(self.problems[index])
        problem = self.problems[index]
        return {"id": problem.id, "question": problem.question, "answer": problem.answer, "level": problem.level}


def _graded(outcome: Outcome) -> float:
    return float(grade(outcome.answer, outcome.task["answer"]))


class ToolMath(ToolEnv):
    """Multi-turn mathematics with tool calls; reward 1 for the right final answer and 0 otherwise, at the end.

    `info` after a step holds `status` (how the program ended, "" where none ran), `tool_error` (whether it failed),
    and after the last step `answer` (what was graded, or None), `correct`, and `format`: 1.0 if the answer was boxed.
    `reset(options={"task": n})` picks the n-th problem; otherwise the seed does.

    Args:
        problems: What `load_problems` reads: a JSONL file, a data set's folder or Hub id, "generated:LEVEL:SIZE", or
            problems themselves.
        split: Which split of it.
        max_turns: Model turns before the episode is truncated.
        time_limit_s: Wall clock of one program.
        output_limit: Characters of a program's output that come back; the middle is cut out.
        prompt: A key of `PROMPTS`, or a text with `{question}` in it.
        sandbox: "auto" (Docker where an engine answers, else local), "docker", "local", or an open `Sandbox`.
        limits: All limits of the interpreter; default `Limits()` with `time_limit_s`.
        render_mode: "ansi", with which `render()` gives the episode so far as text, or None.

    A copy (`copy.deepcopy`, pickle) is an environment with another interpreter, in which the programs so far have
    run again; problems and sandbox are shared with the original.

    Raises:
        ValueError: An option does not fit; the message says what was expected.
        SandboxUnavailable: The asked sandbox cannot run here (raised at the first program).
    """

    success_return = 1.0

    def __init__(
        self,
        problems: str | Problems = "generated:2:512",
        *,
        split: str = "train",
        max_turns: int = 6,
        time_limit_s: float = 5.0,
        output_limit: int = 2000,
        prompt: str = "tool",
        sandbox: str | Sandbox = "auto",
        limits: Limits | None = None,
        render_mode: str | None = None,
    ) -> None:
        if prompt not in PROMPTS and "{question}" not in prompt:
            raise ValueError(
                f"ToolMath(prompt): expected one of {', '.join(PROMPTS)} or a text with {{question}} in it, got "
                f"{prompt!r}.{did_you_mean(prompt, PROMPTS)}"
            )
        self.problems = problems if isinstance(problems, Problems) else load_problems(problems, split=split)
        if not len(self.problems):
            raise ValueError(f"ToolMath(problems): expected at least one problem, got none from {problems!r}")
        super().__init__(
            _Tasks(self.problems),
            ["python"],
            _graded,
            calls="fenced",
            prompt=PROMPTS.get(prompt, prompt),
            final=extract_answer,
            max_turns=max_turns,
            max_calls=max_turns,
            time_limit_s=time_limit_s,
            output_limit=output_limit,
            sandbox=sandbox,
            limits=limits,
            render_mode=render_mode,
        )

    @property
    def problem(self) -> Problem:
        """The present episode's problem."""
        if self._index is None:
            raise RuntimeError("ToolMath: expected reset() before anything else")
        return self.problems[self._index]

    def _reset_info(self) -> dict[str, Any]:
        return {"task_id": self.problem.id, "level": self.problem.level}

    def _turn_info(self, ended: Sequence[tuple[Call, Output]]) -> dict[str, Any]:
        status = ended[0][1].status if ended else ""
        return {"status": status, "tool_error": status not in ("", "ok")}

    def _last_info(self, answer: str | None, score: float) -> dict[str, Any]:
        return {"answer": answer, "correct": score == 1.0, "format": float(answer is not None)}

    def _shared(self) -> tuple[str, ...]:
        return (*super()._shared(), "problems")
