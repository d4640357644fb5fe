"""How a turn calls tools, by name: fenced blocks, JSON in `<tool_call>` tags, or as the agent's chat template has it.

A format finds the calls in a turn, says in the first observation how to make them, and words their results. It reads
text of a model: whatever the text, the answer is a list of calls, some of which may be errors.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyturn.envs.suggest import did_you_mean
from polyturn.envs.tools.tool import Tool

# How models write the language of a fence, for tools whose language has several names.
_LANGUAGES = {
    "python": r"(?:i?python|py|tool_code)[\d.]*|\{\.?python\}",
    "shell": r"(?:shell|bash|sh|zsh)",
}
MESSAGES, TOOLS = "chat_messages", "chat_tools"
"""Where an environment's info holds its observation as chat messages, and (at reset) its tools for chat templates."""

_SPELLED = '{"role": "assistant", '
_SHOWN_NAME = 60
_DEEPEST = 64


@dataclass(frozen=True)
class Call:
    """One call found in a turn.

    Attributes:
        name: The tool; as the turn has it, also where there is no such tool.
        arguments: By name; empty where they cannot be read.
        problem: Why it cannot be made, or "".
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


class CallFormat(Protocol):
    """A way of writing calls."""

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls of a turn, in order; none makes the turn an answer."""

    def describe(self, tools: Sequence[Tool]) -> str:
        """How to call these tools, for the first observation."""

    def results(self, outputs: Sequence[str]) -> str:
        """The results of a turn's calls, in their order, as one observation."""


class Fenced:
    """Fenced blocks named after a tool: code for tools that take one text, a JSON object for others.

    A fence as Markdown has it: indented perhaps (in a list), three marks or more, the name, attributes perhaps. The
    block ends at the next fence of the same kind, or with the text. Blocks of one tool that takes code make one call,
    as the cells of one program; blocks with other names are no calls.
    """

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls of a turn."""
        found: list[Call] = []
        programs: dict[str, int] = {}
        for match, tool in _fences(text, tools):
            body = _unindented(match["code"], match["indent"] or "")
            if tool.name in _LANGUAGES and tool.text:
                if tool.name in programs:
                    earlier = found[programs[tool.name]]
                    body = f"{earlier.arguments[tool.text]}\n{body}"
                    found[programs[tool.name]] = Call(tool.name, {tool.text: body})
                    continue
                programs[tool.name] = len(found)
                found.append(Call(tool.name, {tool.text: body}))
            else:
                found.append(_from_block(tool, body))
        return found

    def describe(self, tools: Sequence[Tool]) -> str:
        """How to call these tools."""
        lines = [
            "You may use tools: write a block fenced with three back ticks and the tool's name, end your turn, and its "
            "output comes back. A turn without such a block is your final answer."
        ]
        for tool in tools:
            holds = f"the block holds its {tool.text}" if tool.text else f"the block holds JSON: {_schema(tool)}"
            lines.append(f"```{tool.name}: {tool.description.rstrip('.') or tool.name}; {holds}")
        return "\n".join(lines)

    def results(self, outputs: Sequence[str]) -> str:
        """Each result in a block named output."""
        return "\n".join(f"```output\n{text}\n```" for text in outputs)


class Tagged:
    """JSON in tags, as Hermes, Qwen and many others are trained to write it.

    `<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>`; several tags are several calls. A tag that
    is not closed holds the rest of the text.
    """

    _TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls of a turn."""
        return [_from_json(match[1], tools) for match in self._TAG.finditer(text)]

    def describe(self, tools: Sequence[Tool]) -> str:
        """How to call these tools."""
        listed = [json.dumps(schema_of(tool), ensure_ascii=False) for tool in tools]
        return "\n".join(
            [
                "You may use tools. Their signatures:",
                "<tools>",
                *listed,
                "</tools>",
                "To call them, write one or more of the following, end your turn, and the results come back:",
                '<tool_call>{"name": NAME, "arguments": {ARGUMENT: VALUE}}</tool_call>',
                "A turn without a call is your final answer.",
            ]
        )

    def results(self, outputs: Sequence[str]) -> str:
        """Each result in a tag; text in it cannot close the tag."""
        shown = (text.replace("</tool_response", "<\\/tool_response") for text in outputs)
        return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in shown)


class Structured(Tagged):
    """Calls as the agent's own chat template writes them, which the agent takes apart itself.

    Tools go to the template and results come back as messages of the role "tool" (in `info`, under `TOOLS` and
    `MESSAGES`), and a turn is the text of `spelled`. To an agent without a template everything looks as in `Tagged`.
    """

    def calls(self, text: str, tools: Mapping[str, Tool]) -> list[Call]:
        """The calls of a turn."""
        reply = _unspelled(text)
        if reply is None:
            return super().calls(text, tools)
        if reply.get("problem"):
            return [Call("", problem=f"this tool call cannot be read: {str(reply['problem'])[:200]}")]
        listed = reply.get("tool_calls") or []
        return [_from_json(json.dumps(call["function"]), tools) for call in listed]

    def content(self, text: str) -> str:
        """What a turn says besides its calls: what is scored where it makes none."""
        reply = _unspelled(text)
        return text if reply is None else str(reply.get("content") or "")

    def messages(self, text: str, calls: Sequence[Call], outputs: Sequence[str]) -> list[dict[str, Any]]:
        """The results of a turn's calls as messages; of what could not be read as a call, as a user's."""
        reply = _unspelled(text)
        if reply is None or reply.get("problem"):
            return [{"role": "user", "content": self.results(outputs)}]
        ids = [str(call.get("id") or "") for call in reply.get("tool_calls") or []]
        return [
            {"role": "tool", "name": call.name, "content": output, "tool_call_id": ids[place]}
            for place, (call, output) in enumerate(zip(calls, outputs, strict=True))
        ]


def call_id(number: int) -> str:
    """The id of an episode's n-th call: nine letters and digits, which is what the strictest templates ask for."""
    return f"c{number:08d}"


def spelled(reply: Mapping[str, Any]) -> str:
    """A reply as one text that an environment with `calls="template"` reads as the message it is."""
    return json.dumps({"role": "assistant", **{key: value for key, value in reply.items() if key != "role"}})


def schema_of(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _unspelled(text: str) -> dict[str, Any] | None:
    """The message that a turn spells, or None for a turn of text."""
    if not text.startswith(_SPELLED):
        return None
    value, problem = read_json(text)
    calls = value.get("tool_calls") if isinstance(value, dict) else None
    listed = calls is None or (
        isinstance(calls, list) and all(isinstance(call, dict) and "function" in call for call in calls)
    )
    return value if not problem and isinstance(value, dict) and listed else None


FORMATS: dict[str, CallFormat] = {"fenced": Fenced(), "tool_call": Tagged(), "template": Structured()}
"""The formats by name."""


def code_blocks(text: str) -> str | None:
    """The program of a turn: its fenced python blocks, in order; None where there is none.

    Fences are those of Markdown: three back ticks or tildes or more and the word python (or py, python3, ipython,
    tool_code). A fence may be indented, as in a list; then its code loses that indentation.
    """
    blocks = [_unindented(match["code"], match["indent"] or "") for match in _fence_of("python").finditer(text)]
    return "\n".join(blocks) if blocks else None


def _fence_of(*names: str) -> re.Pattern[str]:
    words = "|".join(f"(?P<t{place}>{_LANGUAGES.get(name, re.escape(name))})" for place, name in enumerate(names))
    return re.compile(
        rf"(?P<indent>^[ \t]*)?(?P<fence>`{{3,}}|~{{3,}})[ \t]*(?:{words})"
        r"(?:[ \t]+(?:\{[^`\n]*\}|[\w.-]+=[^\s`]+))*[ \t]*\r?\n(?P<code>.*?)(?:(?P=fence)|\Z)",
        re.DOTALL | re.IGNORECASE | re.MULTILINE,
    )


def _fences(text: str, tools: Mapping[str, Tool]) -> list[tuple[re.Match[str], Tool]]:
    if not tools:
        return []
    listed = list(tools.values())
    found = []
    for match in _fence_of(*tools).finditer(text):
        place = next(place for place in range(len(listed)) if match[f"t{place}"] is not None)
        found.append((match, listed[place]))
    return found


def _unindented(code: str, indent: str) -> str:
    """The code of a block without the indentation of its fence."""
    if not indent:
        return code.rstrip()
    width = len(indent)
    lines = [line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in code.split("\n")]
    return textwrap.dedent("\n".join(lines)).rstrip()


def _from_block(tool: Tool, body: str) -> Call:
    value, problem = read_json(body) if body.strip() else ({}, "")
    known = tool.parameters.get("properties", {})
    named = isinstance(value, dict) and set(value) <= set(known) and (bool(value) or not tool.text)
    if not problem and isinstance(value, dict) and (named or not tool.text):
        return Call(tool.name, value)
    if tool.text:
        return Call(tool.name, {tool.text: body})
    return Call(
        tool.name, problem=f"{tool.name}: expected a JSON object in the block, got {problem or 'another value'}"
    )


def _from_json(body: str, tools: Mapping[str, Tool]) -> Call:
    value, problem = read_json(body)
    if problem:
        return Call("", problem=f"this tool call cannot be read: {problem}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return Call("", problem='this tool call cannot be read: expected {"name": text, "arguments": object}')
    name, arguments = value["name"], value.get("arguments")
    if isinstance(arguments, str):  # some models write the arguments as text, as in OpenAI's messages
        arguments, problem = read_json(arguments) if arguments.strip() else ({}, "")
    arguments = {} if arguments is None else arguments
    if problem or not isinstance(arguments, dict):
        problem = f"{name[:_SHOWN_NAME]}: expected arguments as a JSON object, got {problem or 'another value'}"
        return Call(name[:_SHOWN_NAME], problem=problem)
    if name not in tools:
        hint = did_you_mean(name[:_SHOWN_NAME], tools)
        problem = f"there is no tool {name[:_SHOWN_NAME]!r}.{hint} Tools: {', '.join(tools)}"
        return Call(name[:_SHOWN_NAME], arguments, problem)
    return Call(name, arguments)


def read_json(text: str) -> tuple[Any, str]:
    """A JSON value that can be written as JSON again, and "", or None and why there is none."""

    def number(written: str) -> float:
        value = float(written)
        if not math.isfinite(value):
            raise ValueError(f"{written[:20]} is too large for a number")
        return value

    def constant(written: str) -> float:
        raise ValueError(f"{written} is no JSON value")

    try:
        value = json.loads(text.strip(), parse_float=number, parse_constant=constant)
        return (None, "JSON that is nested too deep") if _deeper_than(value, _DEEPEST) else (value, "")
    except RecursionError:
        return None, "JSON that is nested too deep"
    except ValueError as error:
        return None, f"text that is no JSON ({str(error)[:120]})"


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            part
            for each in layer
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not layer:
            return False
    return True


def _schema(tool: Tool) -> str:
    return json.dumps(dict(tool.parameters), ensure_ascii=False)
