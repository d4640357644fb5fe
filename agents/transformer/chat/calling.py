"""Calls of tools as a model's own chat template has them, read by the response parsing of transformers.

The grammar is the tokenizer's `response_template` where it has one; otherwise one of a few that published families
use. Whichever it is, it is used only if it reads back a call that the template itself has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import parse_response

from polyturn.agents.transformer.chat.messages import Message, MessageRenderer
from polyturn.agents.transformer.template import ChatTemplateError
from polyturn.envs.tools.calls import call_id, read_json

_TRIED = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word."}, "most": {"type": "integer"}},
            "required": ["word"],
        },
    },
}
_CALL = {"name": "lookup", "arguments": {"word": 'a "b"', "most": 3}}
_THOUGHT = {"open": "<think>", "close": "</think>"}
_GRAMMARS: dict[str, dict[str, Any]] = {
    "hermes": {  # Hermes, Qwen 2.5 and 3
        "open": "<tool_call>",
        "close": "</tool_call>",
        "content": "json",
        "repeats": True,
        "transform": {"function": "{content}"},
    },
    "qwen3 coder": {
        "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
        "close_pattern": r"</function>\s*(?:</tool_call>)?",
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
        "repeats": True,
        "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
    },
    "llama 3": {
        "open_pattern": r"(?<![\s\S])\s*(?:<\|python_tag\|>)?(?=\{\s*\"(?:type|name)\")",
        "content": "json",
        "repeats": True,
        "transform": {"function": "{content}"},
    },
    "mistral": {
        "open": "[TOOL_CALLS]",
        "content": "json",
        "transform": {"function": {"name": "{name}", "arguments": "{arguments}"}},
        "transform_each": True,
    },
}


class CallReader:
    """Takes an agent's turns apart.

    Args:
        tokenizer: Whose `response_template` is used, where it has one.
        renderer: Its messages.
        header: What stands before each of the agent's turns, and what of it opens the turn's own text.

    Raises:
        ChatTemplateError: The chat template has no tools, or writes calls in a way that no known grammar reads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, renderer: MessageRenderer, header: tuple[str, str]) -> None:
        self._before = "".join(header)
        asked = [{"role": "user", "content": "0"}]
        calls = [{"id": call_id(0), "type": "function", "function": _CALL}]
        with_tools, without = renderer.prompt(asked, [_TRIED]), renderer.prompt(asked, [])
        if np.array_equal(with_tools, without):
            raise ChatTemplateError(
                'expected a chat template with tools, got one that leaves them out; use calls="tool_call", which says '
                "in the first observation how to call them, or a tokenizer whose template has `tools`"
            )
        said = {"role": "assistant", "content": "", "tool_calls": calls}
        written = renderer.unended(renderer.reply(asked, said, [_TRIED]))
        given = getattr(tokenizer, "response_template", None)
        known = (
            {"the tokenizer's response_template": given}
            if given
            else {k: _whole(v, header) for k, v in _GRAMMARS.items()}
        )
        for name, grammar in known.items():
            self._grammar, self.grammar = grammar, name
            if [call["function"] for call in self.reply(written, [_TRIED], 0).get("tool_calls", [])] == [_CALL]:
                return
        raise ChatTemplateError(
            f"expected a chat template whose calls can be read, got one that writes {written!r}, which "
            f"{' and '.join(known)} cannot read back; set tokenizer.response_template (see transformers' documentation "
            'of response parsing), or use calls="tool_call"'
        )

    def reply(self, text: str, tools: Sequence[Message], first: int) -> dict[str, Any]:
        """A turn as a message; never an exception, whatever the text.

        Args:
            text: What the agent wrote, marks spelled out.
            tools: Whose schemas say which arguments are numbers.
            first: Number of the episode's first call in it, from which its id is made.

        Returns:
            "content", perhaps "reasoning_content" and "tool_calls"; or the text and a "problem" where a call in it
            cannot be read.
        """
        try:
            found = parse_response(text, self._grammar, prefix=self._before, tools=[dict(tool) for tool in tools])
            listed = [_call(each, first + place) for place, each in enumerate(found.get("tool_calls") or [])]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return {"role": "assistant", "content": text, "problem": f"{str(error)[:120] or type(error).__name__}"}
        reply: dict[str, Any] = {"role": "assistant", "content": str(found.get("content") or "")}
        if thought := found.get("reasoning_content") or found.get("thinking") or found.get("reasoning"):
            reply["reasoning_content"] = str(thought)
        if listed:
            reply["tool_calls"] = listed
        _, problem = read_json(json.dumps(reply))
        return reply if not problem else {"role": "assistant", "content": text, "problem": problem}


def _whole(calls: Mapping[str, Any], header: tuple[str, str]) -> dict[str, Any]:
    """A response template with these calls, reasoning in `<think>`, and all else as content."""
    fields = {"content": {}, "reasoning_content": dict(_THOUGHT), "tool_calls": dict(calls)}
    return {"start_anchor": header[0] or "\0", "fields": fields}


def _call(found: Any, number: int) -> dict[str, Any]:
    """A call in OpenAI's form.

    Raises:
        ValueError: It is none.
    """
    function = found.get("function", found) if isinstance(found, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError('expected {"name": text, "arguments": object}')
    arguments = function.get("arguments", function.get("parameters"))
    return {
        "id": call_id(number),
        "type": "function",
        "function": {"name": function["name"], "arguments": {} if arguments is None else arguments},
    }
