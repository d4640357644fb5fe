"""How a conversation becomes tokens: append-only, headers never the agent's, environment text never special.

The chat template is rendered around markers and cut at them (`template.py`); what the environment and the agent write
is put between the pieces, and each stretch is read in one pass in which only the template and the agent can write marks
(`spelling.py`). So the tokens are those that `apply_chat_template` gives for the same conversation, while a mark that
is spelled in an observation stays text. A turn costs only the tokens of its observation. What the agent sampled is kept
as it is; nothing is ever rendered again, so a template that rewrites earlier turns cannot change what was said (it is
reported when the format is made).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from polyturn.agents.transformer.chat.calling import CallReader
from polyturn.agents.transformer.chat.messages import MessageRenderer
from polyturn.agents.transformer.spelling import Piece, continued, speller_of
from polyturn.agents.transformer.template import ChatTemplate, ChatTemplateError
from polyturn.envs.tools.calls import TOOLS
from polyturn.envs.trajectory import TokenIds, Trajectory, Turn

__all__ = ["ChatFormat", "ChatTemplateError", "HistoryRewrittenWarning", "VocabularyError"]

_MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
# Added tokens that are text and no more: SentencePiece models with a token for each of these write HTML with them.
_HTML = re.compile(
    r"</?(?:a|abbr|address|article|aside|b|big|blockquote|body|br|caption|center|cite|code|col|colgroup|dd|del|div|dl|"
    r"dt|em|figcaption|figure|font|footer|h[1-6]|head|header|hr|html|i|img|ins|kbd|li|main|mark|nav|ol|p|pre|q|s|samp|"
    r"section|small|span|strike|strong|sub|sup|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|var)/?>",
    re.IGNORECASE,
)


_LIKE_A_MARK = re.compile(r"\s*(<\|?/?[A-Za-z][\w./ -]{0,40}\|?>)")


class HistoryRewrittenWarning(UserWarning):
    """The chat template renders earlier turns differently once later ones follow."""


class VocabularyError(ValueError):
    """The tokenizer makes tokens that the model has no embedding for."""


class ChatFormat:
    """Turns observations into the tokens that stand before the agent's next action.

    Attributes:
        system: System prompt, or None.
        stop_ids: Tokens that end an action.
        end_id: The one that the template itself puts after an assistant's turn.
        messages: Chat messages of every role, with tools, as tokens.

    Args:
        tokenizer: A tokenizer with a chat template.
        system: System prompt put before the conversation.
        stop_ids: The model's end tokens; the tokenizer's and the template's end of turn are added.
        vocabulary: Tokens that the model has embeddings for; None: all that the tokenizer makes.

    Raises:
        ChatTemplateError: There is no template, it cannot render user/assistant turns (with `system`, if given) or
            changes what an assistant said, the tokenizer lacks the mark that ends a turn, or it reads its pieces
            otherwise than the whole.
        VocabularyError: The conversations need tokens that are not below `vocabulary`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        stop_ids: frozenset[int] = frozenset(),
        vocabulary: int | None = None,
    ) -> None:
        self._template = template = ChatTemplate(tokenizer, system=system)
        self.system = system
        self._tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        ends = stop_ids | (frozenset([eos]) if isinstance(eos, int) else frozenset())
        marks = _marks(tokenizer, ends, template.source)
        number_of = {token.content: number for number, token in marks.items()}
        # The mark that the template puts right after an assistant's text ends its turn; a space may stand before it.
        spelled = sorted(number_of, key=len, reverse=True)
        found = re.match(rf"(\s*)({'|'.join(map(re.escape, spelled)) or '(?!)'})", template.middle)
        self._trail, self._end = ("", "") if found is None else found.groups()
        if found is None and (missing := _LIKE_A_MARK.match(template.middle)):
            raise ChatTemplateError(
                f"expected a tokenizer with a token for {missing[1]!r}, which its chat template writes after an "
                "assistant's turn, got one that reads it as letters; add the token, or use the template of the "
                "tokenizer's own family"
            )
        self._rest = template.middle[len(self._trail + self._end) :]
        self._number_of = number_of
        self.stop_ids: frozenset[int] = ends | ({number_of[self._end]} if self._end else frozenset())
        if not self.stop_ids:
            raise ChatTemplateError("expected an end-of-turn or end-of-text token, got a tokenizer with neither")
        self.end_id: int = number_of[self._end] if self._end else eos if isinstance(eos, int) else min(ends)
        # The agent may write every mark but those that separate turns.
        written = f"{template.first}\0{template.middle}\0{template.header}"
        apart = {number for number, token in marks.items() if token.content in written} | self.stop_ids
        others = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "pad", "unk"))
        apart |= {number for number in others if isinstance(number, int)}
        own = {n for n in marks.keys() - apart if vocabulary is None or n < vocabulary}
        self._own = frozenset(marks[number].content for number in own)
        self._apart = frozenset(token.content for token in marks.values()) - self._own
        self._speller = speller_of(tokenizer, marks, own)
        self._after_mark = self._ends_in_mark(template.header)
        self._check_whole()
        self.messages = MessageRenderer(self, tokenizer)
        if vocabulary is not None:
            self._check_vocabulary(vocabulary)
        if template.rewrites:
            warnings.warn(
                "this chat template rewrites earlier turns (or drops their reasoning) once later ones follow; "
                "polyturn keeps every token as it was sampled, so the model sees its own turns unabridged",
                HistoryRewrittenWarning,
                stacklevel=3,
            )

    def context(self, observation: str, previous_action: TokenIds | None = None) -> TokenIds:
        """Tokens to append before the next action.

        Args:
            observation: What the environment said. Text in it that looks like a special token stays text.
            previous_action: `[A]` the agent's last action as sampled, or None before the first.

        Returns:
            `[C]` int32: the close of the previous turn (unless it sampled its own end), the observation with its
            headers, and the header that opens the agent's turn.
        """
        return np.asarray(self._tokens(self._context(observation, previous_action), previous_action), np.int32)

    def answered(
        self, observation: str, answer: str, previous_action: TokenIds | None = None, *, ended: bool = False
    ) -> tuple[TokenIds, TokenIds]:
        """`context`, and the tokens of a given answer in the agent's own words right after it.

        Args:
            observation: What the environment said.
            answer: What the agent says: its own marks, such as `<think>`, become the tokens that the template gives;
                those that separate turns stay text.
            previous_action: As in `context`.
            ended: Whether the end of the turn is among the answer's tokens.
        """
        before = self._context(observation, previous_action)
        context = self._tokens(before, previous_action)
        said: list[Piece] = [("agent", self._template.said(answer))]
        if ended and self._end:
            said += [("template", self._trail), ("template", self._end)]
        whole = self._tokens([*before, *said], previous_action)
        # Where the answer's first letters would merge with the header, it is read as what goes on after it.
        ids = whole[len(context) :] if whole[: len(context)] == context else continued(self._speller, said)
        if ended and not self._end:
            ids = [*ids, self.end_id]
        return np.asarray(context, np.int32), np.asarray(ids, np.int32)

    def written(self, trajectory: Trajectory) -> Trajectory:
        """The same trajectory with tokens, for text that was written and never sampled.

        Actions are the agent's own words, and end with the end of a turn; see `answered`.

        Raises:
            ValueError: A turn has tokens already: what was sampled is never tokenized again.
        """
        if any(len(turn.action_ids) for turn in trajectory.turns):
            raise ValueError("ChatFormat.written: expected turns without tokens, got one that was sampled")
        if TOOLS in trajectory.info or any(turn.structure for turn in trajectory.turns):
            return self.messages.written(trajectory)
        turns: list[Turn] = []
        previous: TokenIds | None = None
        for index, turn in enumerate(trajectory.turns):
            if index in trajectory.segment_starts:
                previous = None
            context, previous = self.answered(turn.observation, turn.action, previous, ended=True)
            turns.append(replace(turn, context_ids=context, action_ids=previous))
        return replace(trajectory, turns=tuple(turns))

    @property
    def template(self) -> ChatTemplate:
        """The template as pieces of text."""
        return self._template

    @property
    def marks(self) -> tuple[frozenset[str], frozenset[str]]:
        """Spellings that have a meaning: those that tell turns apart, and those that the agent itself may write."""
        return self._apart, self._own

    @property
    def ends(self) -> frozenset[str]:
        """Spellings of the tokens that end an action."""
        return frozenset(text for text, number in self._number_of.items() if number in self.stop_ids)

    @cached_property
    def calls(self) -> CallReader:
        """Reads calls of tools as the template writes them.

        Raises:
            ChatTemplateError: The template has no tools, or calls that cannot be read.
        """
        template = self._template
        return CallReader(self._tokenizer, self.messages, template.opening)

    def following(self, pieces: Sequence[Piece]) -> TokenIds:
        """Tokens of pieces that go on after text that stands already."""
        return np.asarray(continued(self._speller, pieces), np.int32)

    def read(
        self, pieces: Sequence[Piece], previous_action: TokenIds | None = None, *, end: str | None = None
    ) -> TokenIds:
        """Tokens of pieces of a rendered conversation, each with its writer.

        Args:
            pieces: From the beginning of a conversation; or what the template puts after an action.
            previous_action: That action as sampled; if it ended its turn itself, the pieces begin with that end, which
                is not said twice.
            end: The mark that ends the action in these pieces, where it is another than usual.
        """
        end = self._end if end is None else end
        said, ended = list(pieces), self._ended(previous_action, end)
        if ended:
            writer, text = said[0] if said else ("template", "")
            rest = text.removeprefix(self._trail).removeprefix(end)
            if writer != "template" or not text.removeprefix(self._trail).startswith(end):
                raise ChatTemplateError(f"expected the end of a turn {end!r} after an action, got {text[:40]!r}")
            said[:1] = [("template", end), ("template", rest)]
        return np.asarray(self._tokens(said, previous_action, end), np.int32)

    def plain(self, text: str) -> TokenIds:
        """Tokens of text from outside: never one that has a meaning in the template, even where the text spells it."""
        return np.asarray(self._speller.encode([("outside", text)]), np.int32)

    def text(self, action: TokenIds) -> str:
        """What an agent said: its marks spelled out; without the end of its turn, and spaces that the template adds."""
        ids = action.tolist()
        stop = next((place for place, number in enumerate(ids) if number in self.stop_ids), len(ids))
        # Spaces may follow the end in a rendered conversation; anything else was written by the agent.
        ended = stop < len(ids) and not self._speller.decode(ids[stop + 1 :], after_mark=True).strip()
        said = self._speller.decode(ids[:stop] if ended else ids, after_mark=self._after_mark)
        if self._template.lead.isspace():
            said = said.removeprefix(self._template.lead)
        return said.removesuffix(self._trail) if ended else said

    def _context(self, observation: str, previous_action: TokenIds | None) -> list[Piece]:
        template, first = self._template, previous_action is None
        said: Piece = ("outside", template.observed(observation, first=first))
        opening: list[Piece] = [("template", template.first if first else template.middle)]
        if self._ended(previous_action):
            opening = [("template", self._end), ("template", self._rest)]
        return [*opening, said, ("template", template.header)]

    def _ended(self, previous_action: TokenIds | None, end: str | None = None) -> bool:
        """Whether the agent itself wrote the end of a turn that the template would write."""
        end = self._end if end is None else end
        if previous_action is None or not end or not len(previous_action):
            return False
        return int(previous_action[-1]) == self._number_of[end]

    def _tokens(self, pieces: Sequence[Piece], previous_action: TokenIds | None, end: str | None = None) -> list[int]:
        if previous_action is None:
            return self._speller.encode(pieces)
        # The end that the agent wrote is read with the rest, which may depend on it, and stands there already.
        if self._ended(previous_action, end):
            return self._speller.encode(pieces)[1:]
        return continued(self._speller, pieces)

    def _ends_in_mark(self, header: str) -> bool:
        """Whether nothing stands between the last mark of the header and what the agent says."""
        ids = self._speller.encode([("template", header)])
        marks = self._tokenizer.added_tokens_decoder
        return bool(ids) and ids[-1] in marks

    def _check_whole(self) -> None:
        """Compares tokens with those that the tokenizer makes of the whole conversation.

        Raises:
            ChatTemplateError: They differ.
        """
        template = self._template
        asked, replied = ("What is 2 + 2?", "3"), "4"
        end = np.array([self.end_id], np.int32)
        for observations, actions in (asked[:1], []), (asked, [replied]):
            previous = end if actions else None
            pieces = self._context(observations[-1], previous)[:-1]
            mine = self._tokens([*pieces, ("template", template.prompt_ending)], previous)
            text = template.render(observations, actions)
            whole: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if mine != whole[len(whole) - len(mine) :] or (not actions and len(mine) != len(whole)):
                raise ChatTemplateError(
                    f"expected a tokenizer that reads the pieces of its chat template as it reads the whole, got "
                    f"{type(self._tokenizer).__name__}, which reads {text!r} as "
                    f"{self._tokenizer.convert_ids_to_tokens(whole)} and its pieces as "
                    f"{self._tokenizer.convert_ids_to_tokens(mine)}; add marks of the template to the tokenizer with "
                    "normalized=False, and use a fast tokenizer"
                )

    def _check_vocabulary(self, vocabulary: int) -> None:
        tokenizer = self._tokenizer
        used = {self.end_id, *self.context("").tolist(), *self.context("", np.array([self.end_id], np.int32)).tolist()}
        beyond = sorted(n for n in used | {tokenizer.vocab_size - 1} if n >= vocabulary)
        if beyond:
            named = ", ".join(f"{tokenizer.convert_ids_to_tokens(n)!r} ({n})" for n in beyond[:3])
            raise VocabularyError(
                f"expected a model with an embedding for every token of a conversation, got one with {vocabulary} and "
                f"a tokenizer that also makes {named}; after adding tokens call "
                "model.resize_token_embeddings(len(tokenizer)) and train the new rows, or load the tokenizer that "
                "belongs to the model"
            )


def _marks(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], source: str) -> dict[int, AddedToken]:
    """Added tokens with a meaning: declared special, ends, and structure such as <think> or <tool_call>."""
    found: dict[int, AddedToken] = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        text = token.content
        structure = text in source and not text.replace("_", "").isalnum()
        structure = structure or (bool(_MARKUP.fullmatch(text)) and not _HTML.fullmatch(text))
        if text.strip() and (token.special or number in ends or structure):
            found[number] = token
    return found
