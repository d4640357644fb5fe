"""The tools of a running episode: opened together, called one by one, kept for snapshots."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from polyturn.envs.tools.calls import Call
from polyturn.envs.tools.kits import Functions, Kept, Opened, Toolkit, unique
from polyturn.envs.tools.limited import Caller, CallTimeout
from polyturn.envs.tools.tool import Output, Tool, ToolError, ToolUnavailable, as_text
from polyturn.sandbox.sandbox import SandboxError
from polyturn.sandbox.server import safe_text

_LONGEST_RESULT = 1_000_000
_OPENING_S = 30.0


class LiveTools:
    """Every toolkit's tools, opened for one task.

    Attributes:
        tools: By name.
        note: What the agent is told at the start, or "".

    Args:
        kits: The toolkits.
        task: The episode's task.
        seed: For the tools' own random numbers; it follows the task, so that members of a group share it.
        limit_s: Seconds of a call.
        forked: Tools that go on from a kept state, one of each toolkit; None opens them anew.

    Raises:
        ToolUnavailable: A server of tools cannot be reached, or starts too slowly; the episode is invalid.
    """

    def __init__(
        self,
        kits: Sequence[Toolkit],
        task: Mapping[str, Any],
        seed: int,
        limit_s: float,
        forked: Sequence[Opened] | None = None,
    ) -> None:
        self._kits, self._limit_s = kits, limit_s
        self._opened: list[Opened] = []
        self._callers: list[Caller] = []
        self.tools: dict[str, Tool] = {}
        self._owner: dict[str, int] = {}
        try:
            for place, kit in enumerate(kits):
                caller = Caller()
                self._callers.append(caller)
                opened = _opened(kit, task, seed, caller, limit_s) if forked is None else forked[place]
                self._opened.append(opened)
                unique([*self.tools, *(tool.name for tool in opened.tools)])
                self.tools |= {tool.name: tool for tool in opened.tools}
                self._owner |= {tool.name: place for tool in opened.tools}
        except BaseException:
            self.close()
            raise
        self.note = "\n".join(opened.note for opened in self._opened if opened.note)

    @property
    def instances(self) -> list[Any]:
        """The objects whose methods are tools, for a scorer."""
        return [opened.instance for opened in self._opened if opened.instance is not None]

    def call(self, call: Call) -> tuple[Output, bool]:
        """Makes a call; whatever is wrong with it, or in it, is text for the agent.

        Returns:
            What came back, and whether it must be the same when the call is made again.

        Raises:
            ToolUnavailable, SandboxError: Something outside the agent failed.
        """
        tool = self.tools.get(call.name)
        if call.problem or tool is None:
            return Output(f"Error: {call.problem or f'there is no tool {call.name!r}'}", "error"), False
        place = self._owner[tool.name]
        arguments = copy.deepcopy(dict(call.arguments))
        try:
            if tool.bounded:
                result = tool.call(arguments)
            else:
                result = self._callers[place].run(lambda: tool.call(arguments), self._limit_s)
            output = result if isinstance(result, Output) else Output(as_text(result))
        except (ToolUnavailable, SandboxError):
            raise
        except ToolError as error:
            output = Output(f"Error: {error}", "error")
        except CallTimeout as error:
            output = Output(f"Error: {tool.name}: {error}", "timeout")
        except (Exception, SystemExit) as error:
            output = Output(f"Error: {type(error).__name__}: {error}", "error")
        output = Output(safe_text(output.text[:_LONGEST_RESULT]), output.status)
        return output, self._kits[place].replay == "checked"

    def keep(self) -> list[Kept] | None:
        """Keeps every toolkit's present state; None where one cannot be kept, or where there is nothing to fork."""
        if all(isinstance(kit, Functions) for kit in self._kits):
            return None
        kept: list[Kept] = []
        for opened in self._opened:
            one = opened.keep()
            if one is None:
                for each in kept:
                    each.close()
                return None
            kept.append(one)
        return kept

    def close(self) -> None:
        """Ends what was opened."""
        for opened in self._opened:
            opened.close()
        for caller in self._callers:
            caller.close()


def _opened(kit: Toolkit, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
    try:
        return kit.open(task, seed, caller, max(limit_s, _OPENING_S))
    except CallTimeout as error:
        raise ToolUnavailable(f"the tools of {kit!r:.80} did not start: {error}") from error
