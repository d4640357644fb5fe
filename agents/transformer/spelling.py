"""Text to tokens and back, where a mark such as `<|im_end|>` or `<think>` is a token only if its writer may write it.

A conversation is written by three writers: the chat template, the agent, and everything outside (the environment, a
tool, a file). The tokenizer cannot tell them apart, because it reads one text. So the text is read by a twin of
the tokenizer that knows every mark under another name, made of private-use characters. Where a writer may use a mark,
its spelling is replaced by that name; everywhere else the spelling is ordinary text. All pieces are read in ONE pass,
so merges over their boundaries, prefix spaces (SentencePiece) and stripped spaces are those of the whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from polyturn.agents.transformer.template import ChatTemplateError

Writer = Literal["template", "agent", "outside"]
Piece = tuple[Writer, str]

_LEAD, _NAMES = "\U0010fffd", 0xF0000
# Texts that stand in front of one that continues another: no tokenizer merges all of them with what follows.
_ANCHORS = ("\x01", "0", "a", "\n")


class Speller(Protocol):
    """From pieces of text to tokens, and from an agent's tokens to text."""

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Tokens of the pieces as one text from the start of a sequence."""
        ...

    def decode(self, ids: Sequence[int], *, after_mark: bool) -> str:
        """Text of tokens that continue a sequence, which ended with a mark or with text; marks are spelled out."""
        ...


def speller_of(tokenizer: PreTrainedTokenizerBase, marks: Mapping[int, AddedToken], own: Collection[int]) -> Speller:
    """The speller of a tokenizer.

    Args:
        tokenizer: Any tokenizer.
        marks: Tokens with a meaning, by id: text from outside never makes one.
        own: Those of them that an agent may write.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return TwinSpeller(tokenizer, backend, marks, own)
    return PieceSpeller(tokenizer, marks, own)


def continued(speller: Speller, pieces: Sequence[Piece]) -> list[int]:
    """Tokens of pieces that go on after text that stands already, so that no space is put before them."""
    for anchor in _ANCHORS:
        before = speller.encode([("outside", anchor)])
        ids = speller.encode([("outside", anchor), *pieces])
        if before and ids[: len(before)] == before:
            return ids[len(before) :]
    return speller.encode(pieces)


class TwinSpeller:
    """See the module; for tokenizers of the `tokenizers` library."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        backend: Tokenizer,
        marks: Mapping[int, AddedToken],
        own: Collection[int],
    ) -> None:
        self._backend = backend
        self._marks = dict(sorted(marks.items()))
        self._number = {token.content: place for place, token in enumerate(self._marks.values())}
        self._added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        self._forged = set(self._marks) - {tokenizer.unk_token_id}
        self._twins: dict[int, tuple[Tokenizer, dict[int, int]]] = {}
        # A mark that is looked for after normalisation may not be found within a text: then it is text there.
        found = {n: t.content for n, t in self._marks.items() if n in self._read(f"0{self._name(t.content, 1)}", 1)}
        self._patterns = {
            "template": _any_of(found.values()),
            "agent": _any_of(text for number, text in found.items() if number in own),
        }
        # Older SentencePiece tokenizers put a space before every stretch of text, also after a mark.
        self._spaced = False
        self._anchor = self.encode([("outside", "0")])
        if found:
            after = self.encode([("template", next(iter(found.values()))), ("outside", "0")])[1:]
            self._spaced = self._after_text(after) == " 0"
            self._anchor = after

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """See `Speller.encode`."""
        clean = [(writer, text.encode("utf-8", "replace").decode("utf-8")) for writer, text in pieces]
        # Names begin with more leads than any text holds in a row, so no text can spell one. A power of two, as each
        # number of leads needs another twin.
        held = max((len(run) for _, text in clean for run in re.findall(f"{_LEAD}+", text)), default=0)
        lead = 1 << held.bit_length()
        named = [
            self._patterns[writer].sub(lambda found: self._name(found[0], lead), text)
            if writer in self._patterns
            else text
            for writer, text in clean
        ]
        return self._read("".join(named), lead)

    def decode(self, ids: Sequence[int], *, after_mark: bool) -> str:
        """See `Speller.decode`."""
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, None]:
            if number is not None and number not in self._added:
                run.append(number)
                continue
            text = self._after_text(run)
            spaced = self._spaced and (after_mark or bool(parts)) and text.startswith(" ")
            parts += [text[1:] if spaced else text, "" if number is None else self._added[number]]
            run = []
        return "".join(parts)

    def _after_text(self, ids: list[int]) -> str:
        """Text of tokens that stand after other text: decoders drop a space only at the start of a sequence."""
        if not ids:
            return ""
        before, whole = (self._backend.decode(x, skip_special_tokens=False) for x in (self._anchor, self._anchor + ids))
        if whole.startswith(before):
            return str(whole[len(before) :])
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _read(self, text: str, lead: int) -> list[int]:
        if lead not in self._twins:
            self._twins[lead] = self._twin(lead)
        twin, number_of = self._twins[lead]
        try:
            ids = twin.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises nothing more specific
            raise ChatTemplateError(
                f"expected a tokenizer that reads every text, got one without a token for the unknown ({error}) in "
                f"{text.replace(_LEAD, '')!r:.80}; name one of its vocabulary as unk_token"
            ) from error
        # A mark comes only from its name. One that the tokenizer made in another way is left out: a gap is better than
        # a forged turn.
        return [number_of.get(number, number) for number in ids if number in number_of or number not in self._forged]

    def _twin(self, lead: int) -> tuple[Tokenizer, dict[int, int]]:
        """A twin that knows the marks by names with `lead` leads, and the tokenizer's numbers of its added tokens."""
        twin = _without(
            self._backend, {token.content: self._name(token.content, lead) for token in self._marks.values()}
        )
        names = {
            number: AddedToken(
                self._name(token.content, lead),
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=False,
            )
            for number, token in self._marks.items()
        }
        twin.add_tokens(list(names.values()))
        spelled = self._added | {number: name.content for number, name in names.items()}
        there = {number: twin.token_to_id(text) for number, text in spelled.items()}
        return twin, {int(its): number for number, its in there.items() if its is not None}

    def _name(self, content: str, lead: int) -> str:
        """What a twin calls a mark."""
        return _LEAD * lead + chr(_NAMES + self._number[content])


class PieceSpeller:
    """For tokenizers that are written in Python: pieces are read one by one, marks that are not to be are cut apart.

    Right only where a tokenizer reads a text as it reads its pieces; `ChatFormat` compares the two.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, marks: Mapping[int, AddedToken], own: Collection[int]
    ) -> None:
        self._tokenizer, self._marks, self._own = tokenizer, frozenset(marks), frozenset(own)
        self._spelled = _any_of(token.content for token in marks.values())
        self._mine = _any_of(token.content for number, token in marks.items() if number in own)
        self._unknown = tokenizer.unk_token_id

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """See `Speller.encode`."""
        ids: list[int] = []
        for writer, text in pieces:
            clean = text.encode("utf-8", "replace").decode("utf-8")
            if writer == "template":
                ids += self._tokens(clean, split=False)
            elif writer == "outside":
                ids += self._plain(clean)
            else:
                start = 0
                for match in self._mine.finditer(clean):
                    ids += [*self._plain(clean[start : match.start()]), *self._tokens(match[0], split=False)]
                    start = match.end()
                ids += self._plain(clean[start:])
        return ids

    def decode(self, ids: Sequence[int], *, after_mark: bool) -> str:
        """See `Speller.decode`."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in self._spelled.finditer(text):
            middle = (match.start() + match.end()) // 2
            ids += self._tokens(text[start:middle], split=True)
            start = middle
        ids += self._tokens(text[start:], split=True)
        # What a tokenizer's normalisation still makes of it is left out: better a gap than a forged turn.
        return [number for number in ids if number not in self._marks or number == self._unknown]

    def _tokens(self, text: str, *, split: bool) -> list[int]:
        ids: Any = self._tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        return list(ids)


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of these texts at each place, as tokenizers do."""
    longest_first = sorted(set(contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _without(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """The same tokenizer, in which no text makes one of the marks in `names`, by their spelling."""
    whole: dict[str, Any] = json.loads(backend.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] not in names]
    whole["truncation"] = whole["padding"] = whole["post_processor"] = None
    # The model's own vocabulary may hold a mark too, as which its spelling would then be read.
    model = whole["model"]
    hidden = {text: f"{name}{_LEAD}" for text, name in names.items()}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden.get(text, text), score] for text, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(text, text): number for text, number in model["vocab"].items()}
    if model.get("merges"):
        pairs = [(pair, pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model["merges"]]
        model["merges"] = [pair for pair, (a, b) in pairs if not {a, b, a + b} & names.keys()]
    if model.get("unk_token") in names:
        model["unk_token"] = hidden[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(whole))
