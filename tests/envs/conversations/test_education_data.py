"""Recorded dialogues: the released layout to trajectories of either side, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.envs import make
from polyturn.envs.education.data import (
    BACKGROUND,
    Dialogue,
    DialogueFormatError,
    dialogue_of,
    load_dialogues,
    read_dialogues,
    write_dialogues,
)

RECORD = {
    "background_info": {
        "topic": "the water cycle",
        "student_prefrences": "stories",
        "teacher_prefrences": "lecture",
        "student_reactions": "daydreams",
        "teacher_reactions": "insists",
    },
    "conversation": [
        {"role": "Student", "text": "Hi."},
        {"role": "Teacher", "text": "Rain falls."},
        {"role": "Teacher", "text": "Then it rises."},
        {"role": "Student", "text": " "},
        {"role": "Student", "text": "Oh. [end of conversation]"},
    ],
}


def test_the_shipped_dialogues_are_in_the_released_layout() -> None:
    shipped = list(read_dialogues())
    assert len(shipped) >= 4
    for dialogue in shipped:
        assert tuple(dialogue.to_json()["background_info"]) == BACKGROUND
        assert Dialogue.from_json(dialogue.to_json()) == dialogue
    assert {trajectory.task_id for trajectory in load_dialogues()} >= {"photosynthesis", "fractions"}


def test_a_teachers_trajectory_begins_as_the_environment_does() -> None:
    """What is imitated is what will be asked for: the first observation is the environment's own for that topic."""
    env = make("polyturn/EducationDialogue-v0", topics=["the water cycle"])
    opening, info = env.reset(seed=0)
    trajectory = Dialogue.from_json(RECORD).trajectory("teacher")
    assert trajectory.task_id == info["task_id"]
    assert [(turn.observation, turn.action) for turn in trajectory.turns] == [
        (f"{opening}\n\nHi.", "Rain falls.\nThen it rises.")
    ]
    assert trajectory.final_observation == "Oh. [end of conversation]"
    assert trajectory.valid
    assert trajectory.total_reward == 0.0


def test_a_students_trajectory_knows_its_brief_and_acts_as_the_student() -> None:
    trajectory = Dialogue.from_json(RECORD).trajectory("student")
    assert [turn.action for turn in trajectory.turns] == ["Hi.", "Oh. [end of conversation]"]
    assert "the water cycle" in trajectory.turns[0].observation
    assert "stories" in trajectory.turns[0].observation
    assert trajectory.turns[1].observation == "Rain falls.\nThen it rises."


def test_played_conversations_go_to_the_layout_and_back(tmp_path: Path) -> None:
    """Teacher's turns and the student's answers are all there; only the opening, which is the task, is not a turn."""
    groups = collect(ScriptedTeacher(), "polyturn/EducationDialogue-v0", groups=3, group_size=2, progress=False)
    played = [member for group in groups for member in group]
    path = tmp_path / "played.json"
    write_dialogues(path, map(dialogue_of, played))
    for mine, again in zip(played, load_dialogues(path), strict=True):
        assert [turn.action for turn in again.turns] == [turn.action for turn in mine.turns]
        assert [turn.observation for turn in again.turns] == [turn.observation for turn in mine.turns]
        assert again.final_observation == mine.final_observation
    with pytest.raises(DialogueFormatError, match="did not"):
        dialogue_of(load_dialogues()[0].__class__("e", 0, ()))


@pytest.mark.parametrize("lines", [False, True])
def test_lists_and_lines_are_read_and_mistakes_are_placed(tmp_path: Path, lines: bool) -> None:
    path = tmp_path / "data.json"

    def write(*records: object) -> None:
        path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records), "utf-8")

    write(RECORD, RECORD)
    assert len(load_dialogues(path, "student")) == 2
    write(RECORD, {**RECORD, "conversation": [{"role": "Parent", "text": "x"}]})
    with pytest.raises(DialogueFormatError, match=r"record 2, turn 1: expected role Teacher or Student"):
        load_dialogues(path)
    write({"conversation": []})
    with pytest.raises(DialogueFormatError, match="record 1: expected an object with background_info"):
        load_dialogues(path)
    path.write_text('{"background_info": ')
    with pytest.raises(DialogueFormatError, match="broken JSON"):
        load_dialogues(path)
    with pytest.raises(ValueError, match="side 'teacher' or 'student'"):
        load_dialogues(path, "both")  # type: ignore[arg-type]
