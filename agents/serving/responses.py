"""OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from polyturn.agents.serving.answering import Answer
from polyturn.agents.serving.messages import (
    BadRequest,
    Message,
    Request,
    ToolCall,
    arguments_of,
    listed,
    mapping,
    text_of,
    tool_of,
    whole_number,
)

Earlier = Callable[[str], tuple[Message, ...] | None]
"""From the id of an earlier response to its conversation, without a system message."""


def request(body: Mapping[str, Any], earlier: Earlier) -> Request:
    """Reads a request; see `polyturn.agents.serving.chat.request`.

    Args:
        body: The request.
        earlier: Finds the conversation of `previous_response_id`.
    """
    form = mapping(mapping(body.get("text") or {}, "text").get("format") or {}, "text.format").get("type", "text")
    if form != "text":
        raise BadRequest(f"text.format: expected text, as answers are sampled as they are, got {str(form)[:40]!r}")
    if body.get("background"):
        raise BadRequest("background: expected false; answers are given at once")
    choice = body.get("tool_choice", "auto")
    tools = []
    for tool in listed(body, "tools") if choice != "none" else []:
        if mapping(tool, "tools").get("type") != "function":
            raise BadRequest(f"tools: expected functions, got {str(tool.get('type'))[:40]!r}")
        tools.append(tool_of(tool.get("name"), tool.get("description"), tool.get("parameters")))
    messages: list[Message] = []
    if (previous := body.get("previous_response_id")) is not None:
        before = earlier(str(previous))
        if before is None:
            raise BadRequest(f"previous_response_id: no such response in this episode: {str(previous)[:60]!r}")
        messages += before
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else listed(body, "input")
    for item in items:
        _take(mapping(item, "input"), messages)
    if instructions := text_of(body.get("instructions"), "instructions"):
        messages.insert(0, Message("system", instructions))
    return Request(
        tuple(messages),
        tuple(tools),
        whole_number(body, "max_output_tokens"),
        (),
        bool(body.get("stream")),
        "message.output_text.logprobs" in listed(body, "include"),
        choice not in ("auto", "none", None),
    )


def _take(item: Mapping[str, Any], messages: list[Message]) -> None:
    """Adds an item; items of one answer become one message."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return
    if kind == "function_call_output":
        output = item.get("output")
        messages.append(Message("tool", text_of(output, "output"), (), str(item.get("call_id") or "")))
    elif kind == "function_call":
        call = ToolCall(str(item.get("name")), arguments_of(item.get("arguments")), str(item.get("call_id") or ""))
        before = messages[-1] if messages and messages[-1].role == "assistant" else None
        if before is None:
            messages.append(Message("assistant", "", (call,)))
        else:
            messages[-1] = Message("assistant", before.content, (*before.tool_calls, call))
    elif kind == "message":
        role = {"developer": "system"}.get(str(item.get("role")), str(item.get("role")))
        if role not in ("system", "user", "assistant"):
            raise BadRequest(f"input: expected a role out of system, user, assistant, got {role[:40]!r}")
        messages.append(Message(role, text_of(item.get("content"), "input: content")))
    else:
        raise BadRequest(f"input: expected messages and function calls, got {str(kind)[:40]!r}")


def answer(answer: Answer) -> dict[str, Any]:
    """The whole response."""
    full = answer.call.finish == "length"
    read, written = len(answer.call.prompt), len(answer.call.ids)
    usage = {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "input_tokens_details": {"cached_tokens": read - len(answer.call.context), "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    ended = {"status": "incomplete" if full else "completed", "output": _items(answer), "usage": usage}
    return {**_head(answer), **ended, "incomplete_details": {"reason": "max_output_tokens"} if full else None}


def events(answer_: Answer) -> Iterator[tuple[str | None, Mapping[str, Any] | str]]:
    """The response in pieces; it was sampled whole."""
    number = iter(range(1 << 30))

    def event(name: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        return name, {"type": name, "sequence_number": next(number), **fields}

    empty = {**_head(answer_), "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=empty)
    yield event("response.in_progress", response=empty)
    for index, item in enumerate(_items(answer_)):
        where = {"item_id": item["id"], "output_index": index}
        opened = {**item, "status": "in_progress"}
        if item["type"] == "message":
            yield event("response.output_item.added", output_index=index, item={**opened, "content": []})
            part = item["content"][0]
            where["content_index"] = 0
            yield event("response.content_part.added", **where, part={**part, "text": "", "logprobs": []})
            yield event("response.output_text.delta", **where, delta=part["text"], logprobs=[])
            yield event("response.output_text.done", **where, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **where, part=part)
        elif item["type"] == "function_call":
            yield event("response.output_item.added", output_index=index, item={**opened, "arguments": ""})
            yield event("response.function_call_arguments.delta", **where, delta=item["arguments"])
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield event("response.function_call_arguments.done", **where, **done)
        else:
            yield event("response.output_item.added", output_index=index, item=item)
        yield event("response.output_item.done", output_index=index, item=item)
    last = answer(answer_)
    yield event(f"response.{last['status']}", response=last)


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "model": answer.model,
        "error": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": None,
        "top_p": None,
    }


def _items(answer: Answer) -> list[dict[str, Any]]:
    reply, name = answer.call.reply, answer.id
    items: list[dict[str, Any]] = []
    if reply.reasoning is not None:
        thought = [{"type": "reasoning_text", "text": reply.reasoning}]
        items.append({"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": thought})
    if reply.content or not reply.tool_calls:
        logprobs = [
            {"token": token, "logprob": float(logp), "bytes": list(token.encode()), "top_logprobs": []}
            for token, logp in zip(answer.tokens, answer.call.logps, strict=False)
        ]
        text = {"type": "output_text", "text": reply.content, "annotations": [], "logprobs": logprobs}
        message = {"type": "message", "id": f"msg_{name}", "role": "assistant", "status": "completed"}
        items.append({**message, "content": [text]})
    for place, call in enumerate(reply.tool_calls):
        called = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": "completed"}
        items.append({"type": "function_call", "id": f"fc_{name}_{place}", **called})
    return items
