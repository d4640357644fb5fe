"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    stops_of,
    text_of,
    tool_of,
    whole_number,
)


def request(body: Mapping[str, Any]) -> Request:
    """Reads a request; sampling settings other than lengths and stops are the server's own.

    Raises:
        BadRequest: Something that cannot be served: several choices, images, forced formats.
    """
    if body.get("n") not in (None, 1):
        raise BadRequest("n: expected 1, since every choice is a separate call; ask again for another")
    form = mapping(body.get("response_format") or {}, "response_format").get("type", "text")
    if form != "text":
        raise BadRequest(f"response_format: expected text, as answers are sampled as they are, got {str(form)[:40]!r}")
    if body.get("top_logprobs"):
        raise BadRequest("top_logprobs: expected 0, as only the sampled token's log-probability is kept")
    choice = body.get("tool_choice", "auto")
    tools = () if choice == "none" else tuple(_tool(tool) for tool in listed(body, "tools"))
    return Request(
        tuple(_message(mapping(message, "messages")) for message in listed(body, "messages")),
        tools,
        whole_number(body, "max_completion_tokens", "max_tokens"),
        stops_of(body.get("stop")),
        bool(body.get("stream")),
        bool(body.get("logprobs")),
        choice not in ("auto", "none", None),
    )


def _tool(tool: Any) -> Mapping[str, Any]:
    kind = mapping(tool, "tools").get("type", "function")
    if kind != "function":
        raise BadRequest(f"tools: expected functions, got {str(kind)[:40]!r}")
    function = mapping(tool.get("function"), "tools: function")
    return tool_of(function.get("name"), function.get("description"), function.get("parameters"))


def _message(message: Mapping[str, Any]) -> Message:
    role = {"developer": "system", "function": "tool"}.get(str(message.get("role")), str(message.get("role")))
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRequest(f"messages: expected a role out of system, user, assistant, tool, got {role[:40]!r}")
    calls = []
    for call in listed(message, "tool_calls") if role == "assistant" else []:
        function = mapping(mapping(call, "tool_calls").get("function"), "tool_calls: function")
        calls.append(
            ToolCall(str(function.get("name")), arguments_of(function.get("arguments")), str(call.get("id") or ""))
        )
    return Message(
        role,
        text_of(message.get("content"), "messages: content"),
        tuple(calls),
        str(message.get("tool_call_id") or ""),
        str(message.get("name") or ""),
    )


def answer(answer: Answer) -> dict[str, Any]:
    """The whole completion."""
    reply = answer.call.reply
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or None, "refusal": None}
    if not reply.tool_calls:
        message["content"] = reply.content
    if reply.reasoning is not None:
        message |= {"reasoning": reply.reasoning, "reasoning_content": reply.reasoning}
    if reply.tool_calls:
        message["tool_calls"] = [_call(call) for call in reply.tool_calls]
    choice = {"index": 0, "message": message, "finish_reason": answer.call.finish, "logprobs": _logprobs(answer)}
    return {**_head(answer, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


def events(answer: Answer, *, usage: bool) -> Iterator[tuple[str | None, Mapping[str, Any] | str]]:
    """The completion in pieces; it was sampled whole."""
    head, reply = _head(answer, "chat.completion.chunk"), answer.call.reply

    def piece(delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**head, "choices": [choice], **({"usage": None} if usage else {})}

    yield None, piece({"role": "assistant", "content": ""})
    if reply.reasoning is not None:
        yield None, piece({"reasoning": reply.reasoning, "reasoning_content": reply.reasoning})
    for start in range(0, len(reply.content), 64):
        yield None, piece({"content": reply.content[start : start + 64]}, None, None if start else _logprobs(answer))
    for index, call in enumerate(reply.tool_calls):
        yield None, piece({"tool_calls": [{"index": index, **_call(call)}]})
    yield None, piece({}, answer.call.finish)
    if usage:
        yield None, {**head, "choices": [], "usage": _usage(answer)}
    yield None, "[DONE]"


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": answer.created, "model": answer.model}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage(answer: Answer) -> dict[str, Any]:
    read, written = len(answer.call.prompt), len(answer.call.ids)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": read - len(answer.call.context), "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _logprobs(answer: Answer) -> dict[str, Any] | None:
    if not answer.logprobs:
        return None
    return {
        "content": [
            {"token": token, "logprob": float(logp), "bytes": list(token.encode()), "top_logprobs": []}
            for token, logp in zip(answer.tokens, answer.call.logps, strict=True)
        ],
        "refusal": None,
    }
