"""What a chat template writes around what is said: rendered once around markers, and cut at them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = date(2024, 7, 26)
"""The date that every template is given: a conversation must be rendered the same tomorrow."""

# Digits: templates may trim, escape or change the case of what they are given.
_OBSERVATIONS = ("31415926535897", "27182818284590", "16180339887498")
_ACTIONS = ("14142135623730", "17320508075688")
_SAMPLE = 'Ab "c"\n<d> & \u00e9'
_THOUGHT = "<think>\nx\n</think>\n\n"
_CLOCK = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")


class ChatTemplateError(ValueError):
    """The tokenizer has no chat template, or one that cannot serve multi-turn conversations."""


@dataclass(frozen=True)
class _Shape:
    """The texts of a template.

    Attributes:
        first: Before the first observation, a system prompt included.
        middle: Between an action and the next observation.
        header: Between an observation and the action: what the model is given.
        ending: After an observation in a prompt, as the template renders it.
        lead: What the template puts between `header` and what an assistant said; the agent writes it.
        close: After the last message, an assistant's.
        extra: What the prompt ends with, and no rendered assistant's turn begins with, such as an opened `<think>`.
    """

    first: str
    middle: str
    header: str
    ending: str
    lead: str
    close: str
    extra: str


class ChatTemplate:
    """A tokenizer's chat template as pieces of text that only ever append.

    Attributes:
        source: The template, with today's date pinned to `TEMPLATE_DATE`.
        rewrites: Whether it renders earlier turns otherwise once later ones follow.

    Args:
        tokenizer: A tokenizer with a chat template.
        system: System prompt put before the conversation.

    Raises:
        ChatTemplateError: There is no template, or one that cannot render user/assistant turns (with `system`, if
            given), changes what an assistant said, or depends on a clock or on chance.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None) -> None:
        self.system, self._tokenizer = system, tokenizer
        self.source = _pinned(_source(tokenizer))
        self._shape = self._cut()
        self.rewrites = self._rewrites()

    @property
    def first(self) -> str:
        """Before the first observation."""
        return self._shape.first

    @property
    def middle(self) -> str:
        """Between an action and the next observation."""
        return self._shape.middle

    @property
    def header(self) -> str:
        """Between an observation and the action."""
        return self._shape.header

    @property
    def opening(self) -> tuple[str, str]:
        """The header in two parts: what opens any turn of the assistant, and what opens its text, such as `<think>`."""
        header, extra = self._shape.header, self._shape.extra
        return (header.removesuffix(extra), extra) if extra and header.endswith(extra) else (header, "")

    @property
    def lead(self) -> str:
        """What an assistant's turn begins with before what it says: a space, an empty thought."""
        return self._shape.lead

    @property
    def prompt_ending(self) -> str:
        """What `apply_chat_template(..., add_generation_prompt=True)` itself ends with; mostly `header`."""
        return self._shape.ending

    def observed(self, observation: str, *, first: bool) -> str:
        """What the template makes of an observation: the same text, trimmed, escaped, or in other letters."""
        shape, before = self._shape, "" if first else _ACTIONS[0]
        try:
            if first:
                text, opening = self.render([observation], []), shape.first
            else:
                text, opening = self.render([_OBSERVATIONS[0], observation], _ACTIONS[:1]), shape.middle
        except ChatTemplateError:
            return observation
        text = text.partition(before)[2] if before else text
        if text.startswith(opening) and text.endswith(shape.ending) and len(text) >= len(opening + shape.ending):
            return text[len(opening) : len(text) - len(shape.ending)]
        # A text that changes what stands around it: it is put where it belongs as it is.
        return observation

    def said(self, action: str) -> str:
        """What the template makes of an assistant's text, up to what closes the turn: with its `lead`, or trimmed."""
        shape = self._shape
        if shape.extra and action.startswith(shape.extra):
            action = action[len(shape.extra) :]
        try:
            text = self.render(_OBSERVATIONS[:1], [action], prompt=False).partition(_OBSERVATIONS[0])[2]
        except ChatTemplateError:
            text = ""
        if not shape.extra and text.startswith(shape.header) and text.endswith(shape.close):
            found = text[len(shape.header) : len(text) - len(shape.close)]
            if len(text) >= len(shape.header + shape.close):
                return found
        return shape.lead + action

    def render(self, observations: Sequence[str], actions: Sequence[str], *, prompt: bool = True) -> str:
        """The template's rendering of a conversation.

        Raises:
            ChatTemplateError: It cannot render it.
        """
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for index, observation in enumerate(observations):
            messages.append({"role": "user", "content": observation})
            if index < len(actions):
                messages.append({"role": "assistant", "content": actions[index]})
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template may raise any exception
            raise ChatTemplateError(
                "expected a chat template that renders "
                + ("a system prompt and " if self.system is not None else "")
                + f"alternating user and assistant turns; it said: {error}"
            ) from error
        return str(text)

    def _cut(self) -> _Shape:
        once = self.render(_OBSERVATIONS[:1], [])
        if once != self.render(_OBSERVATIONS[:1], []):
            raise ChatTemplateError("expected a chat template that renders the same every time, got one that does not")
        twice = self.render(_OBSERVATIONS[:2], _ACTIONS[:1])
        first, ending = _parted(once, _OBSERVATIONS[0])
        _, tail = _parted(twice, _ACTIONS[0])
        middle, again = _parted(tail, _OBSERVATIONS[1])
        if again != ending:
            raise ChatTemplateError(
                "expected a chat template that opens every assistant turn the same way, got "
                f"{ending!r} after the first observation and {again!r} after the second"
            )
        _, answered = _parted(self.render(_OBSERVATIONS[:1], _ACTIONS[:1], prompt=False), _OBSERVATIONS[0])
        opening, close = _parted(answered, _ACTIONS[0])
        header, lead, extra = ending, "", ""
        if opening.startswith(ending):
            lead = opening[len(ending) :]
            if lead.strip() and self.render(_OBSERVATIONS[:1], [], prompt=False) == once:
                # `add_generation_prompt` has no effect, so what opens an assistant's turn is taken from one.
                header, lead = opening, ""
        elif ending.startswith(opening):
            extra = ending[len(opening) :]
        sample = self.render(_OBSERVATIONS[:1], [_SAMPLE], prompt=False)
        if _SAMPLE not in sample:
            raise ChatTemplateError(
                "expected a chat template that writes what an assistant said as it was said, got one that renders "
                f"{_SAMPLE!r} as {sample.partition(_OBSERVATIONS[0])[2]!r}; the two cannot be distinguished"
            )
        return _Shape(first, middle, header, ending, lead, close, extra)

    def _rewrites(self) -> bool:
        shape = self._shape
        one, two, three = _OBSERVATIONS
        first, second = (shape.header + shape.lead + action + shape.middle for action in _ACTIONS)
        appended = "".join((shape.first, one, first, two, second, three, shape.ending))
        # Spaces around what an assistant said are trimmed here and added there; that rewrites nothing.
        if _dense(self.render(_OBSERVATIONS, _ACTIONS)) != _dense(appended):
            return True
        return _THOUGHT not in self.render(_OBSERVATIONS[:2], [_THOUGHT + _ACTIONS[0]])


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError(
            "expected a tokenizer with a chat template, got one without; set tokenizer.chat_template or use an "
            "instruction-tuned model (polyturn.agents.transformer.tiny.CHAT_TEMPLATE is a plain one to start from)"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ChatTemplateError(f"expected a tokenizer with a default chat template: {error}") from error


def _pinned(source: str) -> str:
    """The template with the date written out, so that a run that goes on tomorrow reads what it read today."""
    noon = datetime(TEMPLATE_DATE.year, TEMPLATE_DATE.month, TEMPLATE_DATE.day, 12)
    fixed = _CLOCK.sub(lambda found: repr(noon.strftime(found["format"])), source)
    if re.search(r"\bstrftime_now\s*\(", fixed):
        raise ChatTemplateError(
            "expected a chat template that asks for the date in a fixed format, as in strftime_now('%d %b %Y'), got "
            "one that computes the format; write the date into tokenizer.chat_template"
        )
    return fixed


def _parted(text: str, marker: str) -> tuple[str, str]:
    if text.count(marker) != 1:
        raise ChatTemplateError(
            "expected a chat template that renders each message once and unchanged, got one that "
            f"renders it {text.count(marker)} times"
        )
    head, _, tail = text.partition(marker)
    return head, tail


def _dense(text: str) -> str:
    return "".join(text.split())
