"""`polyturn/ToolEnv-v0`: a set of tasks, tools and a scorer as an environment.

The agent reads a task and how to call its tools. A turn with calls runs them, in order, and shows their results; a turn
without a call is the final answer and is scored. A call that cannot be made (text that cannot be read, an unknown tool,
wrong arguments, an exception, too slow) gives an error to read: it costs the turn and is never an exception.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np

from polyturn.envs.settings import check_reset_options
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.tools.calculator import calculator
from polyturn.envs.tools.calls import FORMATS, MESSAGES, TOOLS, Call, CallFormat, Structured, schema_of
from polyturn.envs.tools.held import HELD, Held
from polyturn.envs.tools.kits import Opened, Toolkit, resolve, toolkits
from polyturn.envs.tools.live import LiveTools
from polyturn.envs.tools.sandboxed import PARTS, InSandbox
from polyturn.envs.tools.scoring import SCORERS, Outcome, Scorer
from polyturn.envs.tools.tasks import Tasks, question_of, read_tasks
from polyturn.envs.tools.tool import Output
from polyturn.sandbox.opening import KINDS
from polyturn.sandbox.sandbox import Limits, Sandbox

RENDER_MODES = ("ansi",)
_SHARED = ("tasks", "format", "prompt", "_kits", "_scorer", "_final", "_limits", "_sandbox")

Step = tuple[str, float, bool, bool, dict[str, Any]]


class NotRepeatable(RuntimeError):
    """A snapshot cannot be taken or restored, as the same calls give other results."""


class ToolEnv(gymnasium.Env[str, str]):
    """Tasks, tools and a scorer as an environment.

    `info` after a step holds `calls` (`[{"name", "arguments", "status"}]`), `tool_error` (whether one of them failed),
    and after the last step `answer`, and `success` where `success_return` is given. `reset(options={"task": n})` picks
    the n-th task; otherwise the seed does. A snapshot holds the turns; `restore` goes on from a fork of the tools'
    state where that can be kept, and otherwise makes the calls again and compares their results; `restored_by_fork`
    says which.

    Args:
        tasks: Mappings with "question" (or "prompt"), perhaps "id", "answer", "files" and whatever tools and scorer
            read; or a JSONL file of them.
        tools: What the agent can call, each one of: "python", "shell", "files", "calculator" (built in; the first three
            share a sandbox session), "module:attribute", a typed function, a `Tool`, a class or an object with public
            methods (TRL's `environment_factory` classes work unchanged), a `Toolkit`.
        scorer: "exact", "contains", "math", "environment", "module:attribute", or a function from `Outcome` to the
            return.
        calls: How calls are written: "tool_call" (JSON in tags), "fenced" (blocks), "template" (as the agent's own chat
            template has it; agents without one see "tool_call"), or a `CallFormat`.
        prompt: The first observation; `{question}` stands for the task and `{tools}` for how to call the tools.
        final: Finds the answer in a turn, which then ends the episode even if it holds calls; by default a turn without
            calls is the answer as it stands.
        max_turns: Turns before the episode is truncated.
        max_calls: Calls an episode may make; more are refused.
        calls_per_turn: Calls a turn may make; more are refused.
        time_limit_s: Seconds one call may take.
        output_limit: Characters of one result that come back; the middle is cut out.
        sandbox: "auto" (Docker where an engine answers, else local), "docker", "local", or an open `Sandbox`.
        limits: Limits of the sandbox session; default `Limits()` with `time_limit_s`.
        reward_bounds: Smallest and largest return of the scorer.
        success_return: Return from which an episode is a success; None where there is no such thing.
        render_mode: "ansi", with which `render()` gives the episode so far as text, or None.

    Raises:
        ValueError: An option does not fit; the message says what was expected.
        TypeError: A tool is none.
    """

    metadata = {"render_modes": list(RENDER_MODES)}  # noqa: RUF012  # Gymnasium's own signature
    blocking = True

    def __init__(
        self,
        tasks: str | Path | Tasks,
        tools: Any = (),
        scorer: str | Scorer = "exact",
        *,
        calls: str | CallFormat = "tool_call",
        prompt: str = "{question}\n\n{tools}",
        final: Callable[[str], str | None] | None = None,
        max_turns: int = 8,
        max_calls: int = 64,
        calls_per_turn: int = 8,
        time_limit_s: float = 10.0,
        output_limit: int = 4000,
        sandbox: str | Sandbox = "auto",
        limits: Limits | None = None,
        reward_bounds: tuple[float, float] = (0.0, 1.0),
        success_return: float | None = 1.0,
        render_mode: str | None = None,
    ) -> None:
        name = type(self).__name__
        for option, value, least in (
            ("max_turns", max_turns, 1),
            ("max_calls", max_calls, 1),
            ("calls_per_turn", calls_per_turn, 1),
        ):
            if value < least:
                raise ValueError(f"{name}({option}): expected {least} or more, got {value}")
        if output_limit < 64:
            raise ValueError(f"{name}(output_limit): expected 64 or more characters, got {output_limit}")
        if not time_limit_s > 0:
            raise ValueError(f"{name}(time_limit_s): expected more than 0 seconds, got {time_limit_s}")
        low, high = (float(bound) for bound in reward_bounds)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{name}(reward_bounds): expected (low, high), finite, low < high, got {reward_bounds!r}")
        if isinstance(calls, str) and calls not in FORMATS:
            self._refuse("calls", calls, FORMATS, "or a CallFormat")
        if isinstance(sandbox, str) and sandbox not in KINDS:
            self._refuse("sandbox", sandbox, KINDS, "or an open sandbox")
        if render_mode is not None and render_mode not in RENDER_MODES:
            self._refuse("render_mode", render_mode, RENDER_MODES, "or None")
        if "{question}" not in prompt:
            raise ValueError(f"{name}(prompt): expected a text with {{question}} in it, got {prompt!r}")
        self.tasks = read_tasks(tasks)
        self.format = FORMATS[calls] if isinstance(calls, str) else calls
        self.prompt, self.render_mode = prompt, render_mode
        self.max_turns, self.max_calls, self.calls_per_turn = max_turns, max_calls, calls_per_turn
        self.time_limit_s, self.output_limit = time_limit_s, output_limit
        self.reward_bounds, self._success_return = (low, high), success_return
        self._limits = Limits(wall_s=time_limit_s) if limits is None else limits
        self._sandbox, self._final = sandbox, final
        self._kits = self._toolkits(tools)
        self._scorer: Scorer = resolve(scorer, "scorer", _built(SCORERS)) if isinstance(scorer, str) else scorer
        if not callable(self._scorer):
            raise TypeError(f"{name}(scorer): expected a name or a function of an Outcome, got {self._scorer!r:.80}")
        self._episode: LiveTools | None = None
        self.restored_by_fork = False
        self._holding: set[str] = set()  # names of the states that this instance had kept
        self._index: int | None = None
        self._note = ""
        self._said: list[str] = []
        self._shown: list[str] = []  # what came back from the calls of each turn, in order
        self._made = 0
        self._seen = ""  # digest of the results that a replay must give again
        self._over = False
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()

    @property
    def task(self) -> Mapping[str, Any]:
        """The present episode's task."""
        if self._index is None:
            raise RuntimeError(f"{type(self).__name__}: expected reset() before anything else")
        return self.tasks[self._index]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode with tools opened anew.

        Raises:
            ToolUnavailable: A server of tools cannot be reached; the episode is invalid.
        """
        super().reset(seed=seed)
        check_reset_options(self, options, ("task",))
        self._end()
        chosen = (options or {}).get("task")
        if chosen is None:
            self._index = int(self.np_random.integers(len(self.tasks)))
        elif (
            isinstance(chosen, (int, np.integer))
            and not isinstance(chosen, bool)
            and 0 <= int(chosen) < len(self.tasks)
        ):
            self._index = int(chosen)
        else:
            raise ValueError(f'reset(options={{"task": n}}): expected 0 <= n < {len(self.tasks)}, got {chosen!r}')
        self._said, self._shown, self._made, self._seen, self._over = [], [], 0, "", False
        self._open()
        return self._first_observation(), self._reset_info()

    def step(self, action: str) -> Step:
        """Makes the turn's calls, or scores its answer and ends the episode.

        Raises:
            TypeError: The action is no text.
            SandboxLost, ToolUnavailable: Something outside the agent failed; the episode is invalid.
        """
        name = type(self).__name__
        if not isinstance(action, str):
            remedy = "decode it first" if isinstance(action, bytes) else 'an agent with nothing to say gives ""'
            got = f"{type(action).__name__} {action!r:.40}"
            raise TypeError(f"{name}.step: expected the action as text (str), got {got}; {remedy}")
        if self._index is None or self._over:
            raise RuntimeError(f"{name}: this episode has ended (or never began); call reset() first")
        calls, answer = self._read(action)
        if not calls:
            self._said.append(action)
            return self._finish([], answer, truncated=False)
        outputs = self._make(calls)
        self._said.append(action)
        self._shown.append(self.format.results([output.text for output in outputs]))
        ended = list(zip(calls, outputs, strict=True))
        if len(self._said) >= self.max_turns:
            return self._finish(ended, None, truncated=True)
        info = self._turn_info(ended)
        if isinstance(self.format, Structured):
            texts = [output.text for output in outputs]
            info[MESSAGES] = self.format.messages(action, calls, texts)
        return self._shown[-1], 0.0, False, False, info

    # What a subclass may word otherwise.

    def _reset_info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"task_id": str(self.task.get("id", self._index))}
        if isinstance(self.format, Structured):
            said = self._first_observation("")
            listed = [schema_of(tool) for tool in self._live().tools.values()]
            info |= {MESSAGES: [{"role": "user", "content": said}], TOOLS: json.loads(json.dumps(listed))}
        return info

    def _turn_info(self, ended: Sequence[tuple[Call, Output]]) -> dict[str, Any]:
        made = [
            {"name": call.name, "arguments": json.loads(json.dumps(call.arguments)), "status": output.status}
            for call, output in ended
        ]
        return {"calls": made, "tool_error": any(output.status != "ok" for _, output in ended)}

    def _last_info(self, answer: str | None, score: float) -> dict[str, Any]:
        info: dict[str, Any] = {"answer": answer}
        return info if self._success_return is None else info | {"success": score >= self._success_return}

    # How a turn is read, made and scored.

    def _read(self, action: str) -> tuple[list[Call], str | None]:
        """The calls of a turn, or none and the final answer."""
        calls = self.format.calls(action, self._live().tools)
        said = self.format.content(action) if isinstance(self.format, Structured) else action
        if self._final is None:
            return calls, said
        answer = self._final(said)
        return ([] if answer is not None else calls), answer

    def _make(self, calls: Sequence[Call]) -> list[Output]:
        outputs = []
        for place, call in enumerate(calls):
            if place >= self.calls_per_turn:
                output = Output(f"Error: not called; a turn may make {self.calls_per_turn} calls", "error")
            elif self._made >= self.max_calls:
                output = Output(f"Error: not called; the episode's {self.max_calls} calls are used up", "error")
            else:
                self._made += 1
                output = self._call(call)
            outputs.append(Output(self._cut(output.text), output.status))
        return outputs

    def _call(self, call: Call) -> Output:
        """One call, noted where a replay must give the same."""
        output, checked = self._live().call(call)
        if checked:
            seen = json.dumps([self._seen, call.name, output.text, output.status])
            self._seen = hashlib.sha256(seen.encode()).hexdigest()
        return output

    def _cut(self, text: str) -> str:
        if len(text) <= self.output_limit:
            return text
        half = (self.output_limit - 32) // 2
        return f"{text[:half]}\n... {len(text) - 2 * half} characters cut ...\n{text[-half:]}"

    def _finish(self, ended: Sequence[tuple[Call, Output]], answer: str | None, *, truncated: bool) -> Step:
        score = float(self._scorer(Outcome(self.task, answer, tuple(self._said), self._live().instances)))
        low, high = self.reward_bounds
        if not low <= score <= high:
            raise ValueError(
                f"{type(self).__name__}: expected the scorer to return a number in [{low:g}, {high:g}], got {score}; "
                "correct it, or give reward_bounds"
            )
        self._over = True
        self._end()
        info = self._turn_info(ended) | self._last_info(answer, score)
        return self._shown[-1] if truncated else "", score, not truncated, truncated, info

    # Opening, snapshots and copies.

    def _open(self, forked: Sequence[Opened] | None = None) -> None:
        """Opens every toolkit for the present task, or goes on with tools that were forked."""
        self._episode = LiveTools(self._kits, self.task, self._index or 0, self.time_limit_s, forked)
        if forked is None:
            self._note = self._episode.note

    def _live(self) -> LiveTools:
        if self._episode is None:
            self._open()
        return cast(LiveTools, self._episode)

    def snapshot(self) -> dict[str, Any]:
        """The episode so far as JSON values: `restore` continues it identically.

        Where the tools are stateless or in a sandbox that can fork, their state is kept in this process until `forget`
        or `close` (or until 64 others are kept), and `restore` goes on from a fork of it. Elsewhere the calls are made
        again.

        Raises:
            NotRepeatable: The state cannot be forked, and calls of this episode's tools cannot be made again with the
                same results.
        """
        saved = self._saved()
        if self._made and not self._over and not self._hold(saved):
            self._check_repeatable("no snapshots")
        return saved

    def forget(self, snapshot: Mapping[str, Any]) -> None:
        """Lets go of what this process keeps for a snapshot, which can still be restored by making its calls again."""
        name = self._held_name(snapshot)
        self._holding.discard(name)
        HELD.drop(name)

    def _check_repeatable(self, what: str) -> None:
        if any(kit.replay == "refused" for kit in self._kits):
            raise NotRepeatable(
                f"{type(self).__name__}: {what}, as its tools may answer otherwise when called again; if they do "
                'not, say so with replay="checked" where the tools are given'
            )

    def _hold(self, saved: Mapping[str, Any]) -> bool:
        """Keeps the tools' present state under the snapshot's name, where all of it can be kept."""
        kits = self._live().keep()
        if kits is None:
            return False
        name = self._held_name(saved)
        HELD.put(name, Held(kits, list(self._shown), self._made))
        self._holding.add(name)
        return True

    def _held_name(self, saved: Mapping[str, Any]) -> str:
        """A name that two instances give the same state: the snapshot, the task, and how the tools were made."""
        index = saved["index"]
        made = [type(self).__qualname__, id(self._sandbox), *(repr(kit) for kit in self._kits)]
        task = None if index is None else repr(self.tasks[index])
        return hashlib.sha256(json.dumps([dict(saved), task, made], default=repr).encode()).hexdigest()

    def _saved(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "said": list(self._said),
            "over": self._over,
            "note": self._note,
            "seen": self._seen,
            "rng": None if self._np_random is None else self.np_random.bit_generator.state,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Continues from a snapshot, in this or another instance made with the same options.

        Raises:
            NotRepeatable: The calls gave other results than the first time, or cannot be made again.
        """
        self._end()
        self.restored_by_fork = False
        self._index, self._said, self._over = snapshot["index"], list(snapshot["said"]), snapshot["over"]
        self._note, self._seen = snapshot["note"], snapshot["seen"]
        if snapshot["rng"] is not None:
            self.np_random.bit_generator.state = snapshot["rng"]
        held = None if self._over or self._index is None else HELD.get(self._held_name(snapshot))
        forked = None if held is None else held.open()
        if held is None or forked is None:
            if self._said and not self._over:
                self._check_repeatable("this process does not keep the snapshot's state any more")
            self._run_again()
            return
        self._shown, self._made, self.restored_by_fork = list(held.shown), held.made, True
        self._open(forked)

    def _run_again(self) -> None:
        """Brings fresh tools to where the episode is; an episode that has ended, or never began, needs none."""
        self._shown, self._made, expected = [], 0, self._seen
        if self._over or self._index is None:
            return
        self._seen = ""
        self._open()
        for action in self._said:
            outputs = self._make(self._read(action)[0])
            self._shown.append(self.format.results([output.text for output in outputs]))
        if self._seen != expected:
            raise NotRepeatable(
                f"{type(self).__name__}: expected the same results when the calls of a snapshot are made again, got "
                "others; the tools are not repeatable (a clock, random numbers without a seed, state outside of them)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_episode": None, "_holding": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._run_again()

    def __deepcopy__(self, memo: dict[int, Any]) -> ToolEnv:
        state = self.__getstate__()
        shared = {name: state.pop(name) for name in self._shared() if name in state}
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(state, memo) | shared)
        return twin

    def _shared(self) -> tuple[str, ...]:
        """What a copy shares with the original, as it never changes."""
        return _SHARED

    def __copy__(self) -> ToolEnv:
        """As `deepcopy`: two environments never share their tools' state."""
        return copy.deepcopy(self)

    def render(self) -> str | None:
        """The task, the turns so far and what the tools answered, as text; None without `render_mode`.

        After `restore` of an episode that had ended, the results are left out: its calls are not made again.
        """
        if self.render_mode is None or self._index is None:
            return None
        parts = [self._first_observation()]
        for place, action in enumerate(self._said):
            parts += [action, self._shown[place] if place < len(self._shown) else ""]
        return "\n\n".join(part for place, part in enumerate(parts) if part or place == 0)

    def close(self) -> None:
        """Ends what the episode opened and what is kept for snapshots; a sandbox itself is shared and stays."""
        self._end()
        while self._holding:
            HELD.drop(self._holding.pop())

    def _end(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()

    def _first_observation(self, tools_said: str | None = None) -> str:
        """The first observation; how to call the tools in the format's words, or as given."""
        shown = self.prompt
        if tools_said is not None:
            shown = shown.replace("{tools}", tools_said).rstrip()
        if "{tools}" in shown:
            # An episode that has ended needs no tools, but their names stay in its first observation.
            tools = list(self._live().tools.values())
            if self._over:
                self._end()
            shown = shown.replace("{tools}", self.format.describe(tools) if tools else "").rstrip()
        shown = shown.replace("{question}", question_of(self.task, self._index or 0))
        return f"{shown}\n\n{self._note}" if self._note else shown

    def _toolkits(self, tools: Any) -> list[Toolkit]:
        listed = [tools] if isinstance(tools, str) or not isinstance(tools, Sequence) else list(tools)
        parts = tuple(part for part in PARTS if part in listed)
        kits = toolkits([each for each in listed if not (isinstance(each, str) and each in parts)], _BUILT_IN)
        return [*kits, *([InSandbox(parts, self._sandbox, self._limits)] if parts else [])]

    def _refuse(self, option: str, value: Any, known: Any, other: str) -> None:
        choices = f"one of {', '.join(known)}" if len(known) > 1 else ", ".join(known)
        raise ValueError(
            f"{type(self).__name__}({option}): expected {choices} {other}, got {value!r}."
            f"{did_you_mean(str(value), known)}"
        )


_BUILT_IN: dict[str, Callable[[], Any]] = {"calculator": calculator, **dict.fromkeys(PARTS, InSandbox)}


def _built(named: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    def giving(value: Any) -> Callable[[], Any]:
        return lambda: value

    return {name: giving(value) for name, value in named.items()}
