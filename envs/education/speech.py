"""What a teacher's turn does, read off its words: fast, English only, and made to be hard to please with keywords.

A cue counts only inside a *proper sentence*: 4 to 40 words, between a fifth and four fifths of them function words
("the", "is", "of", ...; all but one in a short sentence), at least 60% of the words distinct, at most seven content
words in a row, at most two concepts, no article or possessive at the end or before a word that cannot follow one ("the
of", "my is"). A list of keywords breaks several of these. A sentence with cues of several approaches is split among
them, and a sentence that was said before counts for nothing. Nothing here understands language: nonsense in the shape
of a sentence passes, and nothing checks whether what is said is true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

APPROACHES = ("lecture", "discussion", "hands-on", "stories")

_FUNCTION, _LECTURE, _HANDS, _DO, _STORY, _WARM, _RUDE, _NO, _YOU, _ASK, _LEARN = (1 << n for n in range(11))
_OPENER, _DETERMINER, _NO_NOUN = 1 << 11, 1 << 12, 1 << 13

_WORDS: dict[int, str] = {
    _FUNCTION: """a an the this that these those i you he she it we they me him her us them my your his its our their
        is are was were be been being am do does did have has had will would can could shall should may might must
        of in on at to from by with without about into over under between through for as and or but so if then than
        because when while where what which who why how not no nor there here all each every some any more most very
        just only also too let's it's that's don't isn't up out off down again once now your's what's you're we'll
        let one two first next like""",
    _LECTURE: """because therefore thus means first second third next finally called definition defined key rule step
        important fact consists causes explains""",
    _HANDS: "experiment activity exercise hands-on yourself",
    _DO: """try build draw make measure fold cut take mix write sketch act sort test use find collect count model
        practise practice play pick place put grab""",
    _STORY: "imagine example instance story suppose everyday once picture",
    _WARM: """good great nice well wonderful excellent welcome thanks thank glad happy lovely right exactly fantastic
        proud""",
    _RUDE: "stupid idiot dumb lazy useless hopeless moron fool pathetic loser hate ignorant",
    _NO: "not no never nobody nothing isn't don't aren't wasn't won't cannot can't without neither",
    _YOU: "you your you're yourself you'd you've",
    _ASK: "what which who whom why how when where whose",
    _LEARN: """learn learning learner prefer preferred teach taught study studying lesson lessons helps help explain
        explained""",
    _DETERMINER: "a an the my your his its our their every",
    _NO_NOUN: """a an the my your his its our their every is are was were be been am of in on at to from by with without
        about into for as and or but so if than because when while not nor i you he she it we they me him us them""",
    _OPENER: "do does did is are was were can could would will should have has shall may",
}
_TAGS: dict[str, int] = {}
for _bit, _list in _WORDS.items():
    for _word in _list.split():
        _TAGS[_word] = _TAGS.get(_word, 0) | _bit

_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+(?=\s|$)|[^.!?\n]+")
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_SHUT_UP = re.compile(r"\bshut (?:up|your)\b")


@dataclass(slots=True)
class Speech:
    """One turn as a listener takes it in.

    Attributes:
        words: English words said.
        proper: Proper sentences that were not said before.
        broken: Sentences of four words or more that are not proper.
        repeated: Sentences that were said before.
        approach: Weight of each of `APPROACHES`, in sentences.
        taught: Concepts stated, in order.
        asked: Concepts asked about, in order.
        vivid: Concepts stated with an example or something to do.
        questions: Proper questions on the matter.
        on_topic: A proper sentence names the topic or a concept.
        asks_preference: Asks how the listener likes to learn.
        warm: Says something kind.
        rude: Insults the listener.
        keys: A number for each sentence of four words or more, to notice repetition.
    """

    words: int = 0
    proper: int = 0
    broken: int = 0
    repeated: int = 0
    approach: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])
    taught: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    vivid: list[int] = field(default_factory=list)
    questions: int = 0
    on_topic: bool = False
    asks_preference: bool = False
    warm: bool = False
    rude: bool = False
    keys: list[int] = field(default_factory=list)

    def fit(self, approach: int) -> float:
        """Share of the turn's teaching that is of one approach, in [0, 1]; 0 where nothing is taught."""
        total = sum(self.approach)
        return self.approach[approach] / total if total else 0.0


def listen(text: str, concepts: Mapping[str, int], before: list[int]) -> Speech:
    """Reads one turn.

    Args:
        text: What was said.
        concepts: Lower-case word to concept; -1 for words of the topic's name.
        before: `keys` of earlier turns.
    """
    speech = Speech()
    if "'" not in text and "\u2019" in text:
        text = text.replace("\u2019", "'")
    for sentence in _SENTENCE.findall(text.lower()):
        words = _WORD.findall(sentence)
        if words:
            _sentence(speech, sentence, words, concepts, before)
    if not speech.on_topic:  # an approach to something else is no approach
        speech.approach = [0.0, 0.0, 0.0, 0.0]
        speech.questions = 0
    return speech


def _sentence(speech: Speech, sentence: str, words: list[str], concepts: Mapping[str, int], before: list[int]) -> None:
    count = len(words)
    speech.words += count
    tags, function, run, longest, previous, salad = 0, 0, 0, 0, 0, False
    named: list[int] = []
    for word in words:
        tag = _TAGS.get(word, 0)
        tags |= tag
        if previous & _DETERMINER and tag & _NO_NOUN:
            salad = True
        previous = tag
        if tag & _FUNCTION:
            function += 1
            run = 0
        else:
            run += 1
            if run > longest:
                longest = run
        concept = concepts.get(word)
        if concept is not None and concept not in named:
            named.append(concept)
    if (tags & _RUDE and tags & _YOU and not tags & _NO) or ("shut" in words and _SHUT_UP.search(sentence)):
        speech.rude = True
    elif tags & _WARM and not tags & _NO:
        speech.warm = True
    if count < 4:
        return
    key = crc32(" ".join(words).encode())
    if key in before or key in speech.keys:
        speech.repeated += 1
        return
    speech.keys.append(key)
    topics = len(named) - (-1 in named)
    if (
        count > 40
        or not 0.2 * count <= function <= max(0.8 * count, min(count - 1, 7))
        or len(set(words)) < 0.6 * count
        or longest > 7
        or topics > 2
        or salad
        or previous & _DETERMINER
    ):
        speech.broken += 1
        return
    speech.proper += 1
    question = sentence.endswith("?") and bool(tags & _ASK or _TAGS.get(words[0], 0) & _OPENER)
    if question and tags & _YOU and tags & _LEARN and not topics:
        speech.asks_preference = True
        return
    if named:
        speech.on_topic = True
    _approach(speech, words, tags, question, bool(named))
    vivid = bool(tags & (_STORY | _HANDS))
    for concept in named:
        if concept < 0:
            continue
        if question:
            speech.asked.append(concept)
        elif concept not in speech.taught:
            speech.taught.append(concept)
            if vivid:
                speech.vivid.append(concept)


def _approach(speech: Speech, words: list[str], tags: int, question: bool, named: bool) -> None:
    kinds = []
    if question:
        kinds.append(1)
        speech.questions += 1
    # "Make a model" is something to do, "plants make sugar" is not: the verb must stand near the start.
    if tags & _HANDS or (tags & _DO and any(_TAGS.get(word, 0) & _DO for word in words[:3])):
        kinds.append(2)
    if tags & _STORY:
        kinds.append(3)
    if not kinds:
        if not named and not tags & _LECTURE:
            return
        kinds.append(0)
    for kind in kinds:
        speech.approach[kind] += 1.0 / len(kinds)
