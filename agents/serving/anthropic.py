"""Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from polyturn.agents.serving.answering import Answer
from polyturn.agents.serving.messages import (
    BadRequest,
    Message,
    Request,
    ToolCall,
    decoded,
    listed,
    mapping,
    stops_of,
    text_of,
    tool_of,
    whole_number,
)

_NONCE = "x-anthropic-billing-header:"
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def request(body: Mapping[str, Any]) -> Request:
    """Reads a request; see `polyturn.agents.serving.chat.request`."""
    choice = mapping(body.get("tool_choice") or {"type": "auto"}, "tool_choice").get("type")
    tools = []
    for tool in listed(body, "tools") if choice != "none" else []:
        if mapping(tool, "tools").get("type", "custom") != "custom":
            raise BadRequest(f"tools: expected tools that you define, got {str(tool.get('type'))[:40]!r}")
        tools.append(tool_of(tool.get("name"), tool.get("description"), tool.get("input_schema")))
    messages = [message for each in listed(body, "messages") for message in _messages(mapping(each, "messages"))]
    if system := _system(body.get("system")):
        messages.insert(0, Message("system", system))
    return Request(
        tuple(messages),
        tuple(tools),
        whole_number(body, "max_tokens"),
        stops_of(body.get("stop_sequences")),
        bool(body.get("stream")),
        forced=choice not in ("auto", "none"),
    )


def _system(value: Any) -> str:
    # Claude Code puts a header that changes with every request into a separate block; as text it would make every
    # request a new conversation.
    if isinstance(value, list):
        value = [p for p in value if not (isinstance(p, dict) and str(p.get("text", "")).startswith(_NONCE))]
    return text_of(value, "system")


def _messages(message: Mapping[str, Any]) -> Iterator[Message]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(f"messages: expected a role out of user, assistant, got {str(role)[:40]!r}")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else listed(message, "content")
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        kind = mapping(block, "content").get("type")
        if kind == "text":
            texts.append(text_of([block], "content"))
        elif kind == "tool_use" and role == "assistant":
            calls.append(ToolCall(str(block.get("name")), json.dumps(block.get("input") or {}), str(block.get("id"))))
        elif kind == "tool_result" and role == "user":
            yield Message("tool", text_of(block.get("content"), "tool_result"), (), str(block.get("tool_use_id")))
        elif kind not in ("thinking", "redacted_thinking"):
            raise BadRequest(f"content: expected text, tool_use or tool_result, got {str(kind)[:40]!r}")
    if texts or calls or role == "assistant":
        yield Message(str(role), "".join(texts), tuple(calls))


def answer(answer: Answer) -> dict[str, Any]:
    """The whole message."""
    return {**_head(answer), "content": _blocks(answer), **_end(answer), "usage": _usage(answer)}


def events(answer: Answer) -> Iterator[tuple[str | None, Mapping[str, Any] | str]]:
    """The message in pieces; it was sampled whole."""
    start = {**_head(answer), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**start, "usage": {**_usage(answer), "output_tokens": 0}})
    for index, block in enumerate(_blocks(answer)):
        empty: dict[str, Any] = {name: "" if isinstance(value, str) else {} for name, value in block.items()}
        opened = {**block, "input": {}} if block["type"] == "tool_use" else {**empty, "type": block["type"]}
        yield _event("content_block_start", index=index, content_block=opened)
        if block["type"] == "tool_use":
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        elif block["type"] == "thinking":
            delta = {"type": "thinking_delta", "thinking": block["thinking"]}
        else:
            delta = {"type": "text_delta", "text": block["text"]}
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_end(answer), usage={"output_tokens": len(answer.call.ids)})
    yield _event("message_stop")


def _event(name: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return name, {"type": name, **fields}


def _head(answer: Answer) -> dict[str, Any]:
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": answer.model}


def _end(answer: Answer) -> dict[str, Any]:
    call = answer.call
    reason = "stop_sequence" if call.finish == "stop" and call.stopped is not None else _REASONS[call.finish]
    return {"stop_reason": reason, "stop_sequence": call.stopped if reason == "stop_sequence" else None}


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    reply = answer.call.reply
    blocks: list[dict[str, Any]] = []
    if reply.reasoning is not None:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.content or not reply.tool_calls:
        blocks.append({"type": "text", "text": reply.content})
    for call in reply.tool_calls:
        value = decoded(call.arguments)
        given = value if isinstance(value, dict) else {"arguments": value}
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return blocks


def _usage(answer: Answer) -> dict[str, int]:
    return {"input_tokens": len(answer.call.prompt), "output_tokens": len(answer.call.ids)}
