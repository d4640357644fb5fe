"""Recorded dialogues in the layout of the released Education Dialogue data, to and from trajectories.

A file is a JSON list (or JSON lines) of objects with `background_info` {topic, student_prefrences, teacher_prefrences,
student_reactions, teacher_reactions} (spelt so) and `conversation` [{role, text}]. `dialogues.json`, shipped
in the same folder, holds four example dialogues in that layout. Conversations played here also say
`student_knowledge`.

Dialogues make teachers and students by supervised fine-tuning. A student fitted to recorded ones plays the other side:

    from polyturn.agents import AgentPartner, Sampling, TransformerAgent, collect
    from polyturn.algorithms.protocols.warmup import warm_start

    warm_start(policy, load_dialogues("train.json", "student"), epochs=3, lr=2e-5, out="runs/student")
    student = AgentPartner(TransformerAgent(policy, sampling=Sampling(max_new_tokens=64)))
    collect(teacher, "polyturn/EducationDialogue-v0", groups=64, env_options={"student": student})
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from polyturn.envs.education.topics import STUDENT_PREFERENCES, STUDENT_REACTIONS, opening, student_brief
from polyturn.envs.trajectory import Trajectory, Turn

ENV_ID = "polyturn/EducationDialogue-v0"
BACKGROUND = ("topic", "student_prefrences", "teacher_prefrences", "student_reactions", "teacher_reactions")
KNOWLEDGE = "student_knowledge"
Side = Literal["teacher", "student"]


class DialogueFormatError(ValueError):
    """A record that is not in the released layout; the message says where."""


@dataclass(frozen=True)
class Dialogue:
    """One recorded conversation.

    Attributes:
        background: `BACKGROUND` to text, and `KNOWLEDGE` where it is on record.
        lines: (role, text) in order, role "teacher" or "student"; no role speaks twice in a row.
    """

    background: Mapping[str, str]
    lines: tuple[tuple[str, str], ...]

    @classmethod
    def from_json(cls, data: Any, place: str = "dialogue") -> Dialogue:
        """Reads one record; turns without text are dropped, turns of one speaker in a row joined.

        Raises:
            DialogueFormatError: It is not in the layout.
        """
        background = data.get("background_info") if isinstance(data, Mapping) else None
        conversation = data.get("conversation") if isinstance(data, Mapping) else None
        if not isinstance(background, Mapping) or not isinstance(conversation, list):
            raise DialogueFormatError(
                f"{place}: expected an object with background_info (an object) and conversation (a list), "
                f"got {_short(data)}"
            )
        lines: list[tuple[str, str]] = []
        for number, turn in enumerate(conversation, 1):
            role = str(turn.get("role", "")).strip().lower() if isinstance(turn, Mapping) else ""
            text = turn.get("text") if isinstance(turn, Mapping) else None
            if role not in ("teacher", "student") or not isinstance(text, str):
                raise DialogueFormatError(
                    f"{place}, turn {number}: expected role Teacher or Student and a text, got {_short(turn)}"
                )
            if not text.strip():
                continue
            if lines and lines[-1][0] == role:
                lines[-1] = role, f"{lines[-1][1]}\n{text.strip()}"
            else:
                lines.append((role, text.strip()))
        keys = [*BACKGROUND, *([KNOWLEDGE] if KNOWLEDGE in background else [])]
        return cls({key: str(background.get(key, "")) for key in keys}, tuple(lines))

    def to_json(self) -> dict[str, Any]:
        """The record in the released layout."""
        return {
            "background_info": dict(self.background),
            "conversation": [{"role": role.capitalize(), "text": text} for role, text in self.lines],
        }

    def trajectory(self, side: Side = "teacher", *, index: int = 0, turns: int = 10) -> Trajectory:
        """The dialogue as one side saw it, for imitation; rewards are 0.

        The teacher's first observation is the environment's opening for the topic, so that what is imitated is what
        will be asked for; words with which the student began follow it. The student's first observation holds its
        brief. Actions are the side's texts; text after the side's last turn is the final observation.

        Args:
            side: The role whose turns are the actions.
            index: Recorded as the seed, so that the two sides and copies of a dialogue can be distinguished.
            turns: Turns that the opening promises.
        """
        topic = self.background["topic"]
        heard = [opening(topic, turns)] if side == "teacher" else [self._brief()]
        acted: list[Turn] = []
        for role, text in self.lines:
            if role == side:
                acted.append(Turn("\n\n".join(heard), text))
                heard = []
            else:
                heard.append(text)
        return Trajectory(
            env_id=ENV_ID,
            seed=index,
            turns=tuple(acted),
            task_id=re.sub("[^a-z]+", "-", topic.lower()).strip("-"),
            agent=f"recorded {side}",
            final_observation="\n\n".join(heard) if acted else "",
            terminated=True,
            env_options={} if side == "teacher" else {"side": "partner"},
            info={"background_info": dict(self.background)},
        )

    def _brief(self) -> str:
        """What the environment says to an agent in that role, word for word where the attributes are its own."""
        said = self.background
        preference, reaction = said["student_prefrences"], said["student_reactions"]
        return student_brief(
            said["topic"],
            STUDENT_PREFERENCES.get(preference, preference),
            STUDENT_REACTIONS.get(reaction, reaction),
            said.get(KNOWLEDGE, ""),
        )


def read_dialogues(path: str | Path | None = None) -> Iterator[Dialogue]:
    """Reads a file in the released layout; without a path, the dialogues that are shipped.

    Raises:
        DialogueFormatError: The file or a record is not in the layout.
        OSError: The file cannot be read.
    """
    source = files("polyturn.envs.education") / "dialogues.json" if path is None else Path(path)
    text = source.read_text("utf-8")
    try:
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DialogueFormatError(f"{path}: expected a JSON list or JSON lines, got broken JSON: {error}") from error
    for number, record in enumerate(records, 1):
        yield Dialogue.from_json(record, f"{path or 'shipped dialogues'}, record {number}")


def load_dialogues(path: str | Path | None = None, side: Side = "teacher") -> list[Trajectory]:
    """Recorded dialogues as trajectories of one side, for supervised fine-tuning; arguments and errors as above."""
    if side not in ("teacher", "student"):
        raise ValueError(f"load_dialogues: expected side 'teacher' or 'student', got {side!r}")
    found = (dialogue.trajectory(side, index=index) for index, dialogue in enumerate(read_dialogues(path)))
    return [trajectory for trajectory in found if trajectory.turns]


def dialogue_of(trajectory: Trajectory) -> Dialogue:
    """A teacher's finished trajectory in the released layout; the opening is not a turn of it.

    Raises:
        DialogueFormatError: It did not end, so that its background is not known.
    """
    background = trajectory.info.get("background_info")
    if not isinstance(background, Mapping):
        raise DialogueFormatError(
            "dialogue_of: expected a conversation that ended (its info holds background_info), got one that did not"
        )
    lines: list[tuple[str, str]] = []
    for turn in trajectory.turns:
        if lines:
            lines.append(("student", turn.observation))
        lines.append(("teacher", turn.action))
    lines.append(("student", trajectory.final_observation))
    record = [{"role": role, "text": text} for role, text in lines]
    return Dialogue.from_json({"background_info": background, "conversation": record})


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Writes dialogues in the released layout."""
    text = json.dumps([dialogue.to_json() for dialogue in dialogues], indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", "utf-8")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
