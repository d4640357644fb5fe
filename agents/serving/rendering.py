"""A client's messages as tokens: the chat template's, with tools and every role, and what outside text spells is text.

A mark such as `<|im_end|>` in a message, a tool's description or a tool's result is replaced by a private name before
the template is rendered, and read as ordinary text afterwards. In assistant messages the agent's own marks (`<think>`,
`<tool_call>`) keep their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polyturn.agents.serving.messages import BadRequest, Message, decoded
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.spelling import Piece
from polyturn.agents.transformer.template import ChatTemplateError
from polyturn.envs.trajectory import TokenIds

_OPEN, _CLOSE, _FIRST = "\uf8f0", "\uf8f1", 0xE000
_SAID = "16180339887498948482"


class Renderer:
    """From messages to tokens, for one policy.

    Args:
        policy: Whose template and tokenizer.
    """

    def __init__(self, policy: Policy) -> None:
        self._chat, self._tokenizer = policy.chat, policy.tokenizer
        apart, own = self._chat.marks
        self._marks = sorted(apart | own, key=len, reverse=True)
        self._name = {mark: f"{_OPEN}{chr(_FIRST + place)}{_CLOSE}" for place, mark in enumerate(self._marks)}
        self._every, self._turns = _any_of(self._marks), _any_of(apart)
        self._hidden = re.compile(f"{_OPEN}(.){_CLOSE}")

    @property
    def thinking(self) -> bool:
        """Whether the template opens `<think>` before every answer."""
        return self._chat.template.header.rstrip().endswith("<think>")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> TokenIds:
        """`[C]` tokens of a whole conversation, up to where the model is to answer.

        Raises:
            BadRequest: The template cannot render it.
        """
        said = list(messages)
        if self._chat.system is not None and said[0].role != "system":
            said.insert(0, Message("system", self._chat.system))
        return self._chat.read(self._pieces(self._rendered(said, tools)))

    def continuation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], action: TokenIds
    ) -> TokenIds | None:
        """`[C]` tokens of new messages after an action as it was sampled; None where the template cannot append them.

        Args:
            messages: What followed, none of it the model's.
            tools: As in `prompt`.
            action: `[A]` the tokens sampled before.
        """
        before = [Message("user", "0"), Message("assistant", _SAID)]
        try:
            _, mark, after = self._rendered([*before, *messages], tools).rpartition(_SAID)
            return self._chat.read(self._pieces(after), action) if mark else None
        except (BadRequest, ChatTemplateError):
            return None

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        template = self._chat.template
        try:
            text = self._tokenizer.apply_chat_template(
                [self._plain(message) for message in messages],
                tools=[self._without_marks(tool) for tool in tools] or None,
                chat_template=template.source,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            raise BadRequest(f"messages: the model's chat template cannot render them: {str(error)[:200]}") from error
        rendered = str(text)
        # What a model is given before its answer is the same as everywhere else.
        if template.prompt_ending and rendered.endswith(template.prompt_ending):
            rendered = rendered.removesuffix(template.prompt_ending) + template.header
        return rendered

    def _pieces(self, rendered: str) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        for found in self._hidden.finditer(rendered):
            place = ord(found[1]) - _FIRST
            if 0 <= place < len(self._marks):
                pieces += [("template", rendered[start : found.start()]), ("outside", self._marks[place])]
                start = found.end()
        return [*pieces, ("template", rendered[start:])]

    def _plain(self, message: Message) -> dict[str, Any]:
        """A message as templates take it."""
        own = message.role == "assistant"
        plain: dict[str, Any] = {"role": message.role, "content": self._text(message.content, own=own)}
        if message.tool_calls:
            plain["tool_calls"] = [
                {
                    "id": self._text(call.id),
                    "type": "function",
                    "function": {
                        "name": self._text(call.name),
                        "arguments": self._without_marks(decoded(call.arguments)),
                    },
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            plain["tool_call_id"] = self._text(message.tool_call_id)
        if message.name:
            plain["name"] = self._text(message.name)
        return plain

    def _without_marks(self, value: Any) -> Any:
        """A JSON value in which no text spells a mark."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(str(name)): self._without_marks(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._without_marks(each) for each in value]
        return value

    def _text(self, text: str, *, own: bool = False) -> str:
        return (self._turns if own else self._every).sub(lambda found: self._name[found[0]], text)


def _any_of(marks: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")
