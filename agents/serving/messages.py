"""Messages of agent programs: one form for all interfaces, and what counts when a history is recognised."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"\A\s*(?:<think>)?.*?</think>", re.DOTALL)
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
ROLES = ("system", "user", "assistant", "tool")


class BadRequest(ValueError):
    """A request that cannot be served as it is; asking again would not help.

    Attributes:
        code: A word for programs, such as "context_length_exceeded".
    """

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ToolCall:
    """A tool call; `arguments` is the text of a JSON object, as the model wrote it where it is the model's."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `content` is text, "" where there is none."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def fingerprint(self) -> str:
        """Equal for messages that say the same, however a client has written them.

        White space around the text, reasoning, ids, and how arguments are spelled as JSON do not count: clients drop
        and rewrite them. What the model reads is never taken from here, but from stored tokens.
        """
        content = _THOUGHT.sub("", self.content, count=1) if self.role == "assistant" else self.content
        calls = [[call.name, decoded(call.arguments)] for call in self.tool_calls]
        text = json.dumps([self.role, content.strip(), calls], sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Request:
    """What an agent program asks for, in whatever interface it was asked.

    Attributes:
        messages: The whole conversation so far.
        tools: Tools in OpenAI's form, as chat templates take them.
        max_tokens: The client's limit, or None.
        stop: Texts that end an answer.
        stream: Whether the answer is to come in pieces.
        logprobs: Whether log-probabilities are wanted.
        forced: A tool call was demanded, which sampling does not do; recorded with the episode.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    logprobs: bool = False
    forced: bool = False

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role not in ("user", "tool"):
            last = self.messages[-1].role if self.messages else "no message"
            raise BadRequest(f"messages: expected the last one to be a user's or a tool's, got {last}")


@dataclass(frozen=True)
class Reply:
    """What the model said, taken apart: text, reasoning and tool calls."""

    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def message(self) -> Message:
        """The reply as the message that a client sends back."""
        return Message("assistant", self.content, self.tool_calls)


def decoded(arguments: str) -> Any:
    """The value of a call's arguments; the text itself where it is no JSON. Empty text means no arguments."""
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def read_reply(text: str, *, tools: bool, thinking: bool, call_id: str) -> Reply:
    """Takes a sampled answer apart.

    Args:
        text: What was sampled, marks spelled out.
        tools: Whether there were tools to call; a call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`,
            and what is none stays text.
        thinking: Whether the template has opened `<think>` before the answer.
        call_id: Stem of the calls' ids.
    """
    reasoning = None
    head, mark, rest = text.partition("</think>")
    if mark and (head.lstrip().startswith("<think>") or thinking):
        reasoning, text = head.lstrip().removeprefix("<think>").strip(), rest.lstrip("\n")
    calls: list[ToolCall] = []
    if tools:

        def taken(found: re.Match[str]) -> str:
            call = decoded(found[1])
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                return found[0]
            arguments = call.get("arguments", call.get("parameters", {}))
            given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(call["name"], given, f"{call_id}-{len(calls)}"))
            return ""

        text = _CALL.sub(taken, text)
        text = text.strip() if calls else text
    return Reply(text, reasoning, tuple(calls))


def listed(body: Mapping[str, Any], name: str) -> list[Any]:
    """A field that holds a list, or nothing."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequest(f"{name}: expected a list, got {type(value).__name__}")
    return value


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise BadRequest(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def text_of(value: Any, what: str) -> str:
    """The text of a content field: a text, a list of parts that hold text, or nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRequest(f"{what}: expected text or a list of parts, got {type(value).__name__}")
    parts: list[str] = []
    for part in value:
        found = part if isinstance(part, str) else mapping(part, what).get("text", part.get("refusal"))
        if not isinstance(found, str):
            raise BadRequest(f"{what}: expected parts of text, got one of type {str(part.get('type'))[:40]!r}")
        parts.append(found)
    return "".join(parts)


def whole_number(body: Mapping[str, Any], *names: str) -> int | None:
    """The first of these fields that is given: a whole number of at least 1."""
    for name in names:
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name}: expected a whole number of at least 1, got {str(value)[:40]!r}")
            return value
    return None


def arguments_of(value: Any) -> str:
    """A call's arguments as the text of a JSON object; some clients send the object itself."""
    return value if isinstance(value, str) else json.dumps(value or {})


def stops_of(value: Any) -> tuple[str, ...]:
    """Stop texts: one, several, or none."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(text, str) for text in texts):
        raise BadRequest("stop: expected a text or a list of at most 16 texts")
    return tuple(text for text in texts if text)


def tool_of(name: Any, description: Any, parameters: Any) -> Mapping[str, Any]:
    """A tool in OpenAI's form."""
    if not isinstance(name, str) or not name:
        raise BadRequest(f"tools: expected a name, got {str(name)[:40]!r}")
    schema = {"type": "object", "properties": {}} if parameters is None else dict(mapping(parameters, f"tool {name}"))
    function = {"name": name, "description": str(description or ""), "parameters": schema}
    return {"type": "function", "function": function}


def digest_of(*values: object) -> str:
    """One name for equal JSON values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def shown(messages: Sequence[Message]) -> str:
    """New messages as the observation that a person reads: a user's text as it is, others under their role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    parts: list[str] = []
    for message in messages:
        called = "".join(f"\n{call.name}({call.arguments})" for call in message.tool_calls)
        parts.append(f"[{message.role}]\n{message.content}{called}")
    return "\n".join(parts)
