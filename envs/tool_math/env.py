"""`polyturn/ToolMath-v0`: mathematics with a Python interpreter.

The agent reads a problem, writes reasoning with fenced python blocks, sees what they print, and ends with
`\\boxed{answer}`. The rule of an episode is that of multi-turn iterative preference learning (arXiv 2409.02392):
a turn calls the tool if and only if it holds a fenced python block and no box; any other turn ends the episode, and
its last box is graded.
"""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from polyturn.envs.grading import extract_answer, grade
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.tool_math.problems import Problem, Problems, load_problems
from polyturn.sandbox import open_sandbox
from polyturn.sandbox.opening import KINDS
from polyturn.sandbox.sandbox import Limits, Result, Sandbox, Session, Status

PROMPTS: Mapping[str, str] = {
    "plain": "{question}",
    "tool": (
        "{question}\n\nReason step by step. You may run Python: write a ```python block, end your turn, and its output "
        "comes back; variables are kept. When you know the answer, write it in \\boxed{}."
    ),
}
"""How the first observation is worded, by name; `{question}` stands for the problem."""

RENDER_MODES = ("ansi",)

# A fence as Markdown has it: indented perhaps (in a list), three marks or more, the language, attributes perhaps. The
# block ends at the next fence of the same kind, or with the text.
_FENCE = re.compile(
    r"(?P<indent>^[ \t]*)?(?P<fence>`{3,}|~{3,})[ \t]*(?:(?:i?python|py|tool_code)[\d.]*|\{\.?python\})"
    r"(?:[ \t]+(?:\{[^`\n]*\}|[\w.-]+=[^\s`]+))*[ \t]*\r?\n(?P<code>.*?)(?:(?P=fence)|\Z)",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)


def code_blocks(text: str) -> str | None:
    """The program of a turn: its fenced python blocks, in order; None where there is none.

    Fences are those of Markdown: three back ticks or tildes or more and the word python (or py, python3, ipython,
    tool_code). A fence may be indented, as in a list; then its code loses that indentation.
    """
    blocks = [_unindented(match["code"], match["indent"] or "") for match in _FENCE.finditer(text)]
    return "\n".join(blocks) if blocks else None


def _unindented(code: str, indent: str) -> str:
    """The code of a block without the indentation of its fence."""
    if not indent:
        return code.rstrip()
    width = len(indent)
    lines = [line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in code.split("\n")]
    return textwrap.dedent("\n".join(lines)).rstrip()


class ToolMath(gymnasium.Env[str, str]):
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

    metadata = {"render_modes": list(RENDER_MODES)}  # noqa: RUF012  # Gymnasium's own signature
    reward_bounds = (0.0, 1.0)
    success_return = 1.0
    blocking = True

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
        if max_turns < 1:
            raise ValueError(f"ToolMath(max_turns): expected 1 or more, got {max_turns}")
        if output_limit < 64:
            raise ValueError(f"ToolMath(output_limit): expected 64 or more characters, got {output_limit}")
        if not time_limit_s > 0:
            raise ValueError(f"ToolMath(time_limit_s): expected more than 0 seconds, got {time_limit_s}")
        if isinstance(sandbox, str) and sandbox not in KINDS:
            raise ValueError(
                f"ToolMath(sandbox): expected one of {', '.join(KINDS)} or an open sandbox, got {sandbox!r}."
                f"{did_you_mean(sandbox, KINDS)}"
            )
        if prompt not in PROMPTS and "{question}" not in prompt:
            raise ValueError(
                f"ToolMath(prompt): expected one of {', '.join(PROMPTS)} or a text with {{question}} in it, got "
                f"{prompt!r}.{did_you_mean(prompt, PROMPTS)}"
            )
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"ToolMath(render_mode): expected {' or '.join(RENDER_MODES)} or None, got {render_mode!r}."
                f"{did_you_mean(str(render_mode), RENDER_MODES)}"
            )
        self.problems = problems if isinstance(problems, Problems) else load_problems(problems, split=split)
        if not len(self.problems):
            raise ValueError(f"ToolMath(problems): expected at least one problem, got none from {problems!r}")
        self.max_turns, self.output_limit, self.render_mode = max_turns, output_limit, render_mode
        self._prompt = PROMPTS.get(prompt, prompt)
        self._limits = Limits(wall_s=time_limit_s) if limits is None else limits
        self._sandbox = sandbox
        self._session: Session | None = None
        self._index: int | None = None
        self._turns: list[tuple[str, str | None]] = []  # (action, the program it ran)
        self._shown: list[str] = []  # what came back from each program, in order
        self._over = False
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()

    @property
    def problem(self) -> Problem:
        """The present episode's problem."""
        if self._index is None:
            raise RuntimeError("ToolMath: expected reset() before anything else")
        return self.problems[self._index]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode with a fresh interpreter."""
        super().reset(seed=seed)
        self._end_session()
        task = (options or {}).get("task")
        if task is None:
            self._index = int(self.np_random.integers(len(self.problems)))
        elif isinstance(task, (int, np.integer)) and not isinstance(task, bool) and 0 <= int(task) < len(self.problems):
            self._index = int(task)
        else:
            raise ValueError(f'reset(options={{"task": n}}): expected 0 <= n < {len(self.problems)}, got {task!r}')
        self._turns, self._shown, self._over = [], [], False
        return self._first_observation(), {"task_id": self.problem.id, "level": self.problem.level}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Runs the turn's program, or grades its answer and ends the episode.

        Raises:
            TypeError: The action is no text.
            SandboxLost: The interpreter's container died; the episode is invalid.
        """
        if not isinstance(action, str):
            remedy = "decode it first" if isinstance(action, bytes) else 'an agent with nothing to say gives ""'
            got = f"{type(action).__name__} {action!r:.40}"
            raise TypeError(f"ToolMath.step: expected the action as text (str), got {got}; {remedy}")
        if self._index is None or self._over:
            raise RuntimeError("ToolMath: this episode has ended (or never began); call reset() first")
        program = code_blocks(action)
        answer = extract_answer(action)
        if program is None or answer is not None:
            self._turns.append((action, None))
            return self._finish(answer)
        result = self._interpreter().run(program)
        self._turns.append((action, program))
        truncated = len(self._turns) >= self.max_turns
        info = {"status": str(result.status), "tool_error": result.status is not Status.OK}
        if truncated:
            self._over = True
            self._end_session()
            info |= {"answer": None, "correct": False, "format": 0.0}
        self._shown.append(self.observe(result))
        return self._shown[-1], 0.0, False, truncated, info

    def _finish(self, answer: str | None) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._over = True
        self._end_session()
        correct = grade(answer, self.problem.answer)
        info = {
            "status": "",
            "tool_error": False,
            "answer": answer,
            "correct": correct,
            "format": float(answer is not None),
        }
        return "", float(correct), True, False, info

    def observe(self, result: Result) -> str:
        """How a program's result is worded for the agent."""
        parts = [result.stdout.rstrip("\n"), result.value or "", result.error or ""]
        if result.status is Status.TIMEOUT:
            parts.append(f"TimeoutError: stopped after {self._limits.wall_s:g} s")
        elif result.status not in (Status.OK, Status.ERROR):
            parts.append(f"{str(result.status).replace('-', ' ')}: the program was stopped")
        if result.state_lost:
            parts.append("(the interpreter was restarted; its variables are gone)")
        text = "\n".join(part for part in parts if part)
        if len(text) > self.output_limit:
            half = (self.output_limit - 32) // 2
            text = f"{text[:half]}\n... {len(text) - 2 * half} characters cut ...\n{text[-half:]}"
        return f"```output\n{text}\n```"

    def snapshot(self) -> dict[str, Any]:
        """The episode so far as JSON values: `restore` continues it identically by running its programs again."""
        return {
            "index": self._index,
            "said": [list(pair) for pair in self._turns],
            "over": self._over,
            "rng": None if self._np_random is None else self.np_random.bit_generator.state,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continues from a snapshot, in this or another instance made with the same options."""
        self._end_session()
        self._index = snapshot["index"]
        self._turns = [(action, program) for action, program in snapshot["said"]]
        self._over = snapshot["over"]
        if snapshot["rng"] is not None:
            self.np_random.bit_generator.state = snapshot["rng"]
        self._run_again()

    def _run_again(self) -> None:
        """Brings a fresh interpreter to where the episode is; an episode that has ended needs none."""
        self._shown = []
        programs = [program for _, program in self._turns if program is not None]
        if programs and not self._over:
            session = self._interpreter()
            self._shown = [self.observe(session.run(program)) for program in programs]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._run_again()

    def __deepcopy__(self, memo: dict[int, Any]) -> ToolMath:
        shared = {name: self.__dict__[name] for name in ("problems", "_sandbox", "_limits")}
        own = {name: value for name, value in self.__getstate__().items() if name not in shared}
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(own, memo) | shared)
        return twin

    def __copy__(self) -> ToolMath:
        """As `deepcopy`: two environments never share an interpreter."""
        return copy.deepcopy(self)

    def render(self) -> str | None:
        """The problem, the turns so far and what the tool answered, as text; None without `render_mode`.

        After `restore` of an episode that had ended, the tool's answers are left out: its programs do not run again.
        """
        if self.render_mode is None or self._index is None:
            return None
        shown = iter(self._shown)
        turns = [
            part
            for action, program in self._turns
            for part in (action, "" if program is None else next(shown, ""))
            if part
        ]
        return "\n\n".join([self._first_observation(), *turns])

    def close(self) -> None:
        """Ends the interpreter; the sandbox itself is shared and stays."""
        self._end_session()

    def _first_observation(self) -> str:
        return self._prompt.replace("{question}", self.problem.question)

    def _interpreter(self) -> Session:
        if self._session is None:
            sandbox = open_sandbox(self._sandbox) if isinstance(self._sandbox, str) else self._sandbox
            # The interpreter's own random numbers follow the problem, so that members of a group share them too.
            self._session = sandbox.open(self._limits, seed=self._index or 0)
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
