"""Two speakers who take turns: the agent, and a partner that the environment or another agent plays.

A partner is a plain callable. It is given the whole scene, which is a JSON value, and what it just heard; everything it
wants to remember goes into `scene.memory`, so an environment can be snapshotted between any two turns, whatever plays
the partner. Words never travel in one concatenated string, so no text can pass for the other speaker's turn; where text
*looks* like one ("Student: ..." in the teacher's turn, or the end marker) it is cut or defused before it is heard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

END = "[end of conversation]"
"""What the side that may end a conversation writes, as the last thing of its turn, to end it."""

LONGEST_HEARD = 4_000
"""Characters of a turn that the other side takes in."""

_MARKER = re.compile(re.escape(END), re.IGNORECASE)
_AT_END = re.compile(re.escape(END) + r"\W*\Z", re.IGNORECASE)
# Controls, separators that some programs take for line breaks, invisible and direction-changing marks, surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff\ud800-\udfff]"
)

# What other scripts write for a colon would make a speaker's name a heading all the same.
_COLONS = dict.fromkeys(map(ord, "\uff1a\ufe55\ufe13\u2236\ua789"), ":")


class PartnerFull(Exception):
    """The partner's context holds no more: the episode is truncated here, not failed."""


@dataclass(frozen=True)
class Spoken:
    """A partner's turn.

    Attributes:
        text: The words.
        record: JSON values that the environment puts into the step's info: `outcome` (numbers a judge may use),
            or the tokens of a model that plays the partner (`polyturn.agents.collecting.roles.other_side` reads them).
    """

    text: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Line:
    """One exchange: what the partner heard, what it said, and its record."""

    heard: str
    said: str
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class Scene:
    """A conversation from the partner's side; every field is a JSON value.

    Attributes:
        role: The role of the partner, for example "student".
        other: The role of the agent.
        brief: The partner's description of itself. The agent never sees it.
        opening: What the partner said to the agent at the start.
        facts: The partner's hidden attributes.
        turns: How many turns the agent has in all.
        seed: Fixes a sampling partner's randomness, and what noise is drawn if it is drawn anew.
        draws: Uniform numbers in [0, 1) for a scripted partner, several a turn.
        table: What the environment keeps for the episode: offers, payments. A partner only reads it.
        memory: The partner's own state.
        lines: What was said so far.
    """

    role: str
    other: str
    brief: str
    opening: str
    facts: dict[str, Any]
    turns: int
    seed: int
    draws: list[float] = field(default_factory=list)
    table: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A copy as a JSON value, which `from_json` reads back."""
        copied: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return copied

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """Reads what `to_json` gave, into another copy."""
        copied = json.loads(json.dumps(dict(data)))
        return cls(**{**copied, "lines": [Line(**line) for line in copied["lines"]]})


class Partner(Protocol):
    """Answers one turn; may change `scene.memory` and nothing else.

    Optional, looked up by name: `name` (str) is recorded; `release(scene)` is called when the scene is over.

    Raises:
        PartnerFull: It cannot take in any more.
    """

    def __call__(self, scene: Scene, heard: str, /) -> Spoken: ...


def ends(text: str) -> bool:
    """Whether a turn of the side that may end the conversation ends it: the marker is the last thing it says."""
    return "]" in text[-64:] and _AT_END.search(text, max(0, len(text) - 64)) is not None


def defused(text: str) -> str:
    """Text in which the end marker is mere words in round brackets."""
    return _MARKER.sub("(end of conversation)", text) if "[" in text else text


def own_words(text: str, speaker: str, other: str) -> str:
    """What a speaker really said: no control characters, not beyond `LONGEST_HEARD`, no lines of the other speaker.

    Everything from the first line that begins with the other's name and a colon is dropped; the speaker's own name at
    the start of a line is removed.
    """
    text = text[:LONGEST_HEARD]
    if not text.isprintable():
        text = _UNSEEN.sub(" ", text)
    if not text.isascii():
        text = text.translate(_COLONS)
    if ":" in text:
        kept = []
        for line in text.split("\n"):
            label, colon, rest = line.partition(":")
            name = label.strip(" \t*_#>[]()").lower() if colon and len(label) < 40 else ""
            if name == other:
                break
            kept.append(rest.lstrip(" *_") if name == speaker else line)
        text = "\n".join(kept)
    return text.strip()


def transcript(lines: list[tuple[str, str]], *, limit: int = LONGEST_HEARD) -> str:
    """A conversation for a reader, one numbered line a turn, in which no turn can pass for another.

    Args:
        lines: (role, text) in order.
        limit: Characters kept of a turn.
    """
    names = "|".join(sorted({re.escape(role) for role, _ in lines}))
    label = re.compile(rf"\b({names})(\s*):", re.IGNORECASE) if names else None
    shown = []
    for number, (role, text) in enumerate(lines, 1):
        flat = " ".join(_UNSEEN.sub(" ", text[:limit]).translate(_COLONS).split())
        # Only the reader's own labels end in a colon after a speaker's name, and only they stand in square brackets.
        flat = flat.replace("[", "(").replace("]", ")")
        if label:
            flat = label.sub(r"\1 -", flat)
        shown.append(f"[{number}] {role.capitalize()}: {flat}")
    return "\n".join(shown)
