"""How a conversation becomes tokens: append-only, headers never the agent's, environment text never special.

The chat template is rendered once around markers, cut at them, and the pieces are tokenized once. A turn then costs
only the tokens of its observation. What the agent sampled is kept as it is; nothing is ever rendered again, so a
template that rewrites earlier turns cannot change what was said (it is reported when the format is made).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from polyturn.envs.trajectory import TokenIds, Trajectory, Turn

# Private-use characters: no template trims or escapes them, and no tokenizer gives them meaning.
_OBSERVATIONS = ("\ue000A\ue001", "\ue000B\ue001", "\ue000C\ue001")
_ACTIONS = ("\ue002D\ue003", "\ue002E\ue003")
_MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_THOUGHT = "<think>\nx\n</think>\n\n"


class ChatTemplateError(ValueError):
    """The tokenizer has no chat template, or one that cannot serve multi-turn conversations."""


class HistoryRewrittenWarning(UserWarning):
    """The chat template renders earlier turns differently once later ones follow."""


class ChatFormat:
    """Turns observations into the tokens that stand before the agent's next action.

    Attributes:
        system: System prompt, or None.
        stop_ids: Tokens that end an action.
        end_id: The one that the template itself puts after an assistant's turn.

    Args:
        tokenizer: A tokenizer with a chat template.
        system: System prompt put before the conversation.
        stop_ids: The model's end tokens; the tokenizer's and the template's end of turn are added.

    Raises:
        ChatTemplateError: There is no template, or it cannot render user/assistant turns (with `system`, if given).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateError(
                "expected a tokenizer with a chat template, got one without; set tokenizer.chat_template or use an "
                "instruction-tuned model (polyturn.agents.transformer.tiny.CHAT_TEMPLATE is a plain one to start from)"
            )
        self.system = system
        self._tokenizer = tokenizer
        once = self._render([_OBSERVATIONS[0]], [])
        twice = self._render(_OBSERVATIONS[:2], _ACTIONS[:1])
        thrice = self._render(_OBSERVATIONS, _ACTIONS)
        before, header = _cut(once, _OBSERVATIONS[0])
        _, tail = _cut(twice, _ACTIONS[0])
        middle, header_again = _cut(tail, _OBSERVATIONS[1])
        if header_again != header:
            raise ChatTemplateError(
                "expected a chat template that opens every assistant turn alike, got "
                f"{header!r} after the first observation and {header_again!r} after the second"
            )
        self._first, self._next, self._header = (self._special(piece) for piece in (before, middle, header))
        thoughtful = self._render(_OBSERVATIONS[:2], [_THOUGHT + _ACTIONS[0]])
        appended = [
            before + _OBSERVATIONS[0] + header,
            "".join((_ACTIONS[0], middle, _OBSERVATIONS[1], header)),
            "".join((_ACTIONS[1], middle, _OBSERVATIONS[2], header)),
        ]
        # Spaces around what an assistant said are trimmed here and added there; that rewrites nothing.
        if "".join(thrice.split()) != "".join("".join(appended).split()) or _THOUGHT not in thoughtful:
            warnings.warn(
                "this chat template rewrites earlier turns (or drops their reasoning) once later ones follow; "
                "polyturn keeps every token as it was sampled, so the model sees its own turns unabridged",
                HistoryRewrittenWarning,
                stacklevel=3,
            )
        special = frozenset(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        eos = tokenizer.eos_token_id
        ends = stop_ids | (frozenset([eos]) if isinstance(eos, int) else frozenset())
        # What the template puts right after an assistant's text ends its turn; a space may stand before it.
        closing = next((int(token) for token in self._next if int(token) in special | ends), -1)
        if closing >= 0 and self.text(self._next[: self._next.tolist().index(closing)]).strip():
            closing = -1
        self._close = self._next.tolist().index(closing) + 1 if closing >= 0 else 0
        self.end_id: int = closing if closing >= 0 else eos if isinstance(eos, int) else next(iter(sorted(ends)), -1)
        self.stop_ids: frozenset[int] = ends | (frozenset([closing]) if closing >= 0 else frozenset())
        if not self.stop_ids:
            raise ChatTemplateError("expected an end-of-turn or end-of-text token, got a tokenizer with neither")
        added, source = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
        # Added tokens that are not declared special may still be structure, such as <think> or <tool_call>.
        marks = {n for n, token in added.items() if token.content in source or _MARKUP.fullmatch(token.content)}
        meaning = special | (marks | self.stop_ids) & added.keys()
        self._never_text = {n for n in meaning if str(added.get(n, "")).strip()} - {tokenizer.unk_token_id}
        contents = sorted((added[number].content for number in self._never_text if number in added), key=len)
        self._spelled = re.compile("|".join(re.escape(text) for text in reversed(contents) if len(text) > 1) or r"(?!)")

    def context(self, observation: str, previous_action: TokenIds | None = None) -> TokenIds:
        """Tokens to append before the next action.

        Args:
            observation: What the environment said. Text in it that looks like a special token stays text.
            previous_action: `[A]` the agent's last action as sampled, or None before the first.

        Returns:
            `[C]` int32: the close of the previous turn (unless it sampled its own end), the observation with its
            headers, and the header that opens the agent's turn.
        """
        if previous_action is None:
            opening = self._first
        elif self._close and len(previous_action) and previous_action[-1] == self.end_id:
            opening = self._next[self._close :]
        else:
            opening = self._next
        return np.concatenate([opening, self.plain(observation), self._header])

    def written(self, trajectory: Trajectory) -> Trajectory:
        """The same trajectory with tokens, for text that was written by somebody else and never sampled.

        Raises:
            ValueError: A turn has tokens already: what was sampled is never tokenized again.
        """
        turns: list[Turn] = []
        previous: TokenIds | None = None
        for turn in trajectory.turns:
            if len(turn.action_ids):
                raise ValueError("ChatFormat.written: expected turns without tokens, got one that was sampled")
            context = self.context(turn.observation, previous)
            previous = np.append(self.plain(turn.action), np.int32(self.end_id)).astype(np.int32)
            turns.append(replace(turn, context_ids=context, action_ids=previous))
        return replace(trajectory, turns=tuple(turns))

    def plain(self, text: str) -> TokenIds:
        """Tokens of text from outside: never one that has a meaning in the template, whatever the text spells."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        # Tokenizers split only what is declared special; other added tokens, such as <think>, are cut apart here.
        pieces, start = [], 0
        for match in self._spelled.finditer(clean):
            middle = (match.start() + match.end()) // 2
            pieces.append(clean[start:middle])
            start = middle
        ids: list[int] = []
        for piece in [*pieces, clean[start:]]:
            ids += self._tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # What a tokenizer's normalisation still makes of it is left out: better a gap than a forged turn.
        return np.asarray([token for token in ids if token not in self._never_text], np.int32)

    def text(self, action: TokenIds) -> str:
        """Text of an action, without special tokens."""
        ids = action.tolist()
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _special(self, piece: str) -> TokenIds:
        ids = self._tokenizer(piece, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return np.asarray(ids, np.int32)

    def _render(self, observations: Sequence[str], actions: Sequence[str]) -> str:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for index, observation in enumerate(observations):
            messages.append({"role": "user", "content": observation})
            if index < len(actions):
                messages.append({"role": "assistant", "content": actions[index]})
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # jinja raises whatever the template's author chose
            raise ChatTemplateError(
                "expected a chat template that renders "
                + ("a system prompt and " if self.system is not None else "")
                + f"alternating user and assistant turns; it said: {error}"
            ) from error
        return str(text)


def _cut(text: str, marker: str) -> tuple[str, str]:
    if text.count(marker) != 1:
        raise ChatTemplateError(
            "expected a chat template that renders each message once and unchanged, got one that "
            f"renders it {text.count(marker)} times"
        )
    head, _, tail = text.partition(marker)
    return head, tail
