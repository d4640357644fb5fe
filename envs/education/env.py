"""Education Dialogue: teach a topic to a student whose way of learning is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from polyturn.envs.conversation import Partner, Scene, defused, ends, own_words
from polyturn.envs.education.student import DRAWS_PER_TURN, ScriptedStudent
from polyturn.envs.education.topics import (
    BY_ID,
    STUDENT_PREFERENCES,
    STUDENT_REACTIONS,
    TEACHER_PREFERENCES,
    TEACHER_REACTIONS,
    TOPICS,
    opening,
    student_brief,
)
from polyturn.envs.partner_env import TIME_UP, PartnerEnv, Start

Reward = Literal["none", "outcome", "progress"]
Side = Literal["student", "teacher", "either"]

KNOWLEDGE = ("nothing", "a little", "some of it")
_LEGAL: dict[str, tuple[Any, ...]] = {
    "preference": tuple(STUDENT_PREFERENCES),
    "reaction": tuple(STUDENT_REACTIONS),
    "knowledge": (0, 1, 2),
    "pace": (1, 2),
}


class EducationDialogue(PartnerEnv):
    """The agent teaches; observations are the student's turns; nothing is rewarded unless asked for.

    After Shani et al. 2024 (arXiv 2405.14655, section 6 and appendix): a hidden learning preference, a hidden reaction
    where it is not met, 10 teacher turns, feedback on whole conversations. What differs: by default the student is a
    documented simulator (`polyturn.envs.education.student`) in place of a language model, topics and wordings are our
    own, and the student has prior knowledge and a pace. `polyturn.envs.education.oracle` is the exact judge.

    The student says when it is over: it has understood, has had enough, or time is up. Its turn then ends with
    "[end of conversation]". The same words from the side that may not end the conversation are words like any others,
    and so are lines that begin with the other speaker's name.

    Infos: `task_id` and `noise` at reset; at every step what the student's player recorded (the scripted one:
    `outcome` and `phase` after this turn); at the end `background_info` in the layout of the released data, with
    `student_knowledge`, and `ended_by`. Observations hold none of these.

    Options of `reset`: `task`, an index into the topics; `student`, a dict that fixes hidden attributes (preference,
    reaction, knowledge, pace); `noise`, an int: another number gives other noise from the identical start. Starts and
    noise 0 depend on the seed only.

    Args:
        student: "scripted", or a `polyturn.envs.conversation.Partner` (`polyturn.agents.collecting.roles.AgentPartner`
            makes one of any agent).
        turns: Turns the teacher has; the student says so at the start.
        teacher_style: Whether the teacher is given its own preference and reaction, stated in the first
            observation.
        reward: "none"; "outcome": at the end the mean of the student's understanding, enjoyment and participation;
            "progress": after every turn how much that mean changed (the same total). Scripted students only.
        ends: The role that may end the conversation by writing the marker.
        topics: Ids or names of the topics to teach; all 80 by default.

    Raises:
        ValueError: An unknown option or topic; a reward asked of a student that has no outcome.
    """

    roles = ("student", "teacher")

    def __init__(
        self,
        student: str | Partner = "scripted",
        turns: int = 10,
        teacher_style: bool = False,
        reward: Reward = "none",
        ends: Side = "student",
        topics: Sequence[str] | None = None,
    ) -> None:
        super().__init__(student, ScriptedStudent(), turns, DRAWS_PER_TURN)
        self._one_of("reward", reward, get_args(Reward))
        self._one_of("ends", ends, get_args(Side))
        if self.blocking and reward != "none":
            raise ValueError(
                f"EducationDialogue: expected reward='none' with a custom student, got {reward!r}; "
                "only the scripted student has an outcome to reward"
            )
        by_name = BY_ID | {topic.name: topic for topic in TOPICS}
        for name in topics or ():
            self._one_of("topics", name, tuple(by_name))
        if topics is not None and not topics:
            raise ValueError("EducationDialogue: expected at least one topic, got none")
        self.topics = TOPICS if topics is None else tuple(by_name[name] for name in topics)
        self.teacher_style, self.reward, self.ends = teacher_style, reward, ends

    def _start(self, task: int | None, given: Any) -> Start:
        draws = self.np_random.random(7).tolist()
        index = int(draws[0] * len(self.topics)) if task is None else task
        topic = self.topics[index % len(self.topics)]
        facts = {"topic": topic.id, **self._attributes(draws[1:5], _LEGAL, given)}
        teacher = {
            "preference": tuple(TEACHER_PREFERENCES)[int(draws[5] * len(TEACHER_PREFERENCES))],
            "reaction": tuple(TEACHER_REACTIONS)[int(draws[6] * len(TEACHER_REACTIONS))],
        }
        note = f"({teacher_brief(teacher)})" if self.teacher_style else ""
        return Start(topic.id, facts, opening(topic.name, self.turns), {"teacher": teacher, "paid": 0.0}, note)

    def _brief(self, facts: dict[str, Any]) -> str:
        return student_brief(
            BY_ID[facts["topic"]].name,
            STUDENT_PREFERENCES[facts["preference"]],
            STUDENT_REACTIONS[facts["reaction"]],
            KNOWLEDGE[facts["knowledge"]],
        )

    def _agent_ends(self, action: str) -> bool:
        return self.ends != "student" and ends(action)

    def _heard(self, scene: Scene, action: str) -> str:
        return defused(own_words(action, "teacher", "student"))

    def _answer(self, scene: Scene, said: str) -> tuple[str, str]:
        return (said, "student") if self.ends != "teacher" and ends(said) else (defused(said), "")

    def _settle(self, scene: Scene, info: dict[str, Any], ended: str) -> float:
        reward = self._pay(scene, info, last=bool(ended))
        if ended:
            facts, teacher = scene.facts, scene.table["teacher"]
            # The last turn ends the conversation, also if the student asks for more.
            info["ended_by"] = ended if len(scene.lines) < scene.turns else TIME_UP
            info["background_info"] = {
                "topic": BY_ID[facts["topic"]].name,
                "student_prefrences": facts["preference"],
                "teacher_prefrences": teacher["preference"],
                "student_reactions": facts["reaction"],
                "teacher_reactions": teacher["reaction"],
                "student_knowledge": KNOWLEDGE[facts["knowledge"]],
            }
        return reward

    def _pay(self, scene: Scene, info: dict[str, Any], *, last: bool) -> float:
        if self.reward == "none" or "outcome" not in info or not (last or self.reward == "progress"):
            return 0.0
        total = sum(info["outcome"].values()) / len(info["outcome"])
        reward, scene.table["paid"] = total - scene.table["paid"], total
        return float(reward)


def teacher_brief(teacher: dict[str, str]) -> str:
    """The brief of a teacher with its own style."""
    return (
        f"You are the teacher. You like {TEACHER_PREFERENCES[teacher['preference']]}. When that does not work, "
        f"somebody like you {TEACHER_REACTIONS[teacher['reaction']]}."
    )
