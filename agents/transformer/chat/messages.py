"""Chat messages as tokens: the template's, with tools and every role, and what outside text spells is text.

A mark such as `<|im_end|>` in a message, a tool's description or a tool's result is replaced by a private name before
the template is rendered, and read as ordinary text afterwards. In assistant messages the agent's own marks (`<think>`,
`<tool_call>`) keep their meaning. What an agent sampled is never rendered: only what the template writes after it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from polyturn.agents.transformer.spelling import Piece
from polyturn.agents.transformer.template import ChatTemplateError
from polyturn.envs.tools.calls import TOOLS
from polyturn.envs.trajectory import TokenIds, Trajectory, Turn

if TYPE_CHECKING:
    from polyturn.agents.transformer.tokens import ChatFormat

_OPEN, _CLOSE, _FIRST = "\uf8f0", "\uf8f1", 0xE000
_SAID, _ASKED = "16180339887498948482", "0"

Message = Mapping[str, Any]


class MessageRenderer:
    """From chat messages to tokens, for one chat format.

    Args:
        chat: Its template and marks.
        tokenizer: Its tokenizer.
    """

    def __init__(self, chat: ChatFormat, tokenizer: PreTrainedTokenizerBase) -> None:
        self._chat, self._tokenizer = chat, tokenizer
        apart, own = chat.marks
        self._marks = sorted(apart | own, key=len, reverse=True)
        self._name = {mark: f"{_OPEN}{chr(_FIRST + place)}{_CLOSE}" for place, mark in enumerate(self._marks)}
        self._every, self._turns = _any_of(self._marks), _any_of(apart)
        self._hidden = re.compile(f"{_OPEN}(.){_CLOSE}")
        self._ends = _any_of(chat.ends)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Message]) -> TokenIds:
        """`[C]` tokens of a whole conversation, up to where the agent is to answer.

        Args:
            messages: With "role", "content" and perhaps "tool_calls", "tool_call_id", "name".
            tools: In OpenAI's form; none for templates without tools.

        Raises:
            ChatTemplateError: The template cannot render them.
        """
        return self._chat.read(self._opened(messages, tools))

    def continuation(
        self, messages: Sequence[Message], tools: Sequence[Message], action: TokenIds, *, calls: int = 0
    ) -> TokenIds:
        """`[C]` tokens of new messages after an action as it was sampled.

        Args:
            messages: What followed, none of it the agent's.
            tools: As in `prompt`.
            action: `[A]` the tokens sampled before.
            calls: How many calls of tools the action held; templates end such turns otherwise.

        Raises:
            ChatTemplateError: The template cannot append them.
        """
        pieces, end = self._continued(messages, tools, calls)
        return self._chat.read(pieces, action, end=end)

    def _opened(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[Piece]:
        return self._pieces(self._rendered(self._with_system(messages), tools))

    def _continued(
        self, messages: Sequence[Message], tools: Sequence[Message], calls: int
    ) -> tuple[list[Piece], str | None]:
        """What the template writes from an action's end on, and the mark of that end where it is another than usual."""
        asked = {"role": "user", "content": _ASKED}
        # Some templates know no calls and take the results of tools all the same.
        for said in [self._calling(messages, tools, calls)] * bool(calls) + [{"role": "assistant", "content": _SAID}]:
            _, found, after = self._rendered([asked, said, *messages], tools).rpartition(_SAID)
            if not found:
                continue
            if "tool_calls" not in said:
                return self._pieces(after), None
            # What closes the call (brackets, a tag) was the agent's to write; the template goes on at the turn's end.
            if (end := self._ends.search(after)) is not None:
                return self._pieces(after[end.start() :]), end[0]
        raise ChatTemplateError(
            "expected a chat template that renders what an assistant said and ends its turn by a mark, got another"
        )

    def reply(self, before: Sequence[Message], reply: Message, tools: Sequence[Message]) -> str:
        """What the template writes for an assistant's message, from its header to the end of its turn, which is in it.

        Args:
            before: The messages before it; only the last ones matter to common templates.
            reply: The assistant's message.
            tools: As in `prompt`.

        Raises:
            ChatTemplateError: The template renders its prompt otherwise than the turn.
        """
        prompt = self._rendered(before, tools)
        whole = self._rendered([*before, reply], tools, prompt=False)
        # A template may open `<think>` in the prompt alone; then the turn begins where the two part.
        header = self._chat.template.header
        start = len(prompt) if whole.startswith(prompt) else len(prompt) - len(header)
        if not whole.startswith(prompt[:start]):
            raise ChatTemplateError(
                "expected a chat template that renders a prompt as it renders the turn, got another"
            )
        own = whole[start:]
        ends = list(self._ends.finditer(own))
        return own[: ends[-1].end()] if ends else own

    def unended(self, text: str) -> str:
        """A turn's text without the mark that ends it."""
        ends = list(self._ends.finditer(text))
        return text[: ends[-1].start()] if ends and ends[-1].end() == len(text) else text

    def written(self, trajectory: Trajectory) -> Trajectory:
        """A trajectory with messages, given tokens; see `ChatFormat.written`."""
        tools = trajectory.info.get(TOOLS) or []
        turns: list[Turn] = []
        for index, turn in enumerate(trajectory.turns):
            heard = [dict(each) for each in turn.messages] or [{"role": "user", "content": turn.observation}]
            reply = {"role": "assistant", "content": turn.action, **(turn.reply or {})}
            if index == 0 or index in trajectory.segment_starts:
                pieces, end, previous = self._opened(heard, tools), None, None
                before = self._with_system(heard)
            else:
                last = turns[-1]
                (pieces, end), previous = self._continued(heard, tools, len(last.calls)), last.action_ids
                before = [{"role": "user", "content": _ASKED}, self._spoken(last), *heard]
            said = self._pieces(self.reply(before, reply, tools))
            context = self._chat.read(pieces, previous, end=end)
            whole = self._chat.read([*pieces, *said], previous, end=end)
            # Where the answer's first letters would merge with the header, it is read as what goes on after it.
            alike = np.array_equal(whole[: len(context)], context)
            ids = whole[len(context) :] if alike else self._chat.following(said)
            turns.append(replace(turn, context_ids=context, action_ids=ids))
        return replace(trajectory, turns=tuple(turns))

    def _spoken(self, turn: Turn) -> Message:
        return {"role": "assistant", "content": turn.action, **(turn.reply or {})}

    def _calling(self, messages: Sequence[Message], tools: Sequence[Message], calls: int) -> Message:
        """An assistant's message with as many calls as were made, to which these results belong."""
        names = [str(tool["function"]["name"]) for tool in tools] or ["f"]
        ids = [str(message.get("tool_call_id") or "") for message in messages if message.get("role") == "tool"]
        listed = [
            {
                "id": ids[place] if place < len(ids) else f"c{place:08d}",
                "type": "function",
                "function": {"name": names[0], "arguments": {"x": _SAID}},
            }
            for place in range(calls)
        ]
        return {"role": "assistant", "content": "", "tool_calls": listed}

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        system = self._chat.system
        if system is None or (messages and messages[0].get("role") == "system"):
            return list(messages)
        return [{"role": "system", "content": system}, *messages]

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Message], *, prompt: bool = True) -> str:
        template = self._chat.template
        try:
            text = self._tokenizer.apply_chat_template(
                [self._plain(message) for message in messages],
                tools=[self._without_marks(tool) for tool in tools] or None,
                chat_template=template.source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            raise ChatTemplateError(
                f"the model's chat template cannot render these messages: {str(error)[:200]}"
            ) from error
        rendered = str(text)
        # What a model is given before its answer is the same as everywhere else.
        if prompt and template.prompt_ending and rendered.endswith(template.prompt_ending):
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
        """A message as templates take it, in which only the agent spells marks, and only those it may write."""
        own = message["role"] == "assistant"
        plain = {
            name: self._text(value, own=own) if isinstance(value, str) else value
            for name, value in message.items()
            if name not in ("role", "tool_calls")
        }
        plain["role"] = message["role"]
        if message.get("tool_calls"):
            plain["tool_calls"] = [
                {
                    **({"id": self._text(str(call["id"]))} if call.get("id") else {}),
                    "type": "function",
                    "function": {
                        "name": self._text(str(call["function"]["name"])),
                        "arguments": self._without_marks(call["function"].get("arguments", {}), own=own),
                    },
                }
                for call in message["tool_calls"]
            ]
        return plain

    def _without_marks(self, value: Any, *, own: bool = False) -> Any:
        """A JSON value in which no text spells a mark that its writer may not write."""
        if isinstance(value, str):
            return self._text(value, own=own)
        if isinstance(value, Mapping):
            return {self._text(str(name)): self._without_marks(each, own=own) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._without_marks(each, own=own) for each in value]
        return value

    def _text(self, text: str, *, own: bool = False) -> str:
        return (self._turns if own else self._every).sub(lambda found: self._name[found[0]], text)


def _any_of(marks: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")
