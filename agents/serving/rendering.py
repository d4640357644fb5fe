"""A client's messages as tokens, and a client's words for what a chat template cannot render."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from polyturn.agents.serving.messages import BadRequest, Message, Reply, ToolCall, decoded, read_reply
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.template import ChatTemplateError
from polyturn.envs.trajectory import TokenIds


class Renderer:
    """From messages to tokens, for one policy.

    Args:
        policy: Whose template and tokenizer.
    """

    def __init__(self, policy: Policy) -> None:
        self._chat = policy.chat

    @property
    def thinking(self) -> bool:
        """Whether the template opens `<think>` before every answer."""
        return self._chat.template.header.rstrip().endswith("<think>")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> TokenIds:
        """`[C]` tokens of a whole conversation, up to where the model is to answer.

        Raises:
            BadRequest: The template cannot render it.
        """
        try:
            return self._chat.messages.prompt([_plain(message) for message in messages], tools)
        except ChatTemplateError as error:
            raise BadRequest(f"messages: {error}") from error

    def continuation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], action: TokenIds, calls: int
    ) -> TokenIds | None:
        """`[C]` tokens of new messages after an action as it was sampled; None where the template cannot append them.

        Args:
            messages: What followed, none of it the model's.
            tools: As in `prompt`.
            action: `[A]` the tokens sampled before.
            calls: How many calls of tools it held.
        """
        try:
            return self._chat.messages.continuation(
                [_plain(message) for message in messages], tools, action, calls=calls
            )
        except ChatTemplateError:
            return None

    def reply(self, text: str, tools: Sequence[Mapping[str, Any]], call_id: str) -> Reply:
        """Takes an answer apart, calls as the template writes them; where it has none, as `<tool_call>` JSON.

        Args:
            text: What was sampled, marks spelled out.
            tools: What could be called.
            call_id: Stem of the calls' ids.
        """
        if not tools or not self._reads_calls:
            return read_reply(text, tools=bool(tools), thinking=self.thinking, call_id=call_id)
        found = self._chat.calls.reply(text, tools, 0)
        calls = tuple(
            ToolCall(call["function"]["name"], _written(call["function"]["arguments"]), f"{call_id}-{place}")
            for place, call in enumerate(found.get("tool_calls", ()))
        )
        return Reply(found["content"], found.get("reasoning_content"), calls)

    @cached_property
    def _reads_calls(self) -> bool:
        try:
            return bool(self._chat.calls)
        except ChatTemplateError:
            return False


def _written(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates take it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": decoded(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.name:
        plain["name"] = message.name
    return plain
