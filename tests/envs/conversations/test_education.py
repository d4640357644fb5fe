"""Education Dialogue: the scripted student, who may end or forge a conversation, what leaks, and that cue words alone
do not pay."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polyturn.envs import check_text_env, make
from polyturn.envs.conversation import END, Scene, Spoken, defused, ends, own_words, transcript
from polyturn.envs.education.env import EducationDialogue
from polyturn.envs.education.oracle import CRITERIA, EducationOracle
from polyturn.envs.education.phrases import VOICED
from polyturn.envs.education.speech import APPROACHES, listen
from polyturn.envs.education.teacher import ASKING, WAYS, lesson
from polyturn.envs.education.topics import (
    BY_ID,
    STUDENT_PREFERENCES,
    STUDENT_REACTIONS,
    TEACHER_PREFERENCES,
    TEACHER_REACTIONS,
    TOPICS,
    Topic,
)

ID = "polyturn/EducationDialogue-v0"
Teacher = Callable[[Topic, int, np.random.Generator], str]


def fixed(*ways: str, **options: bool) -> Teacher:
    return lambda topic, turn, rng: lesson(ways, topic, turn % 4, rng, **options)


def teach(
    teacher: Teacher, seed: int, student: dict[str, Any] | None = None, noise: int = 0, **options: Any
) -> tuple[list[str], dict[str, Any]]:
    """Plays a conversation; returns the observations and the last info."""
    env = EducationDialogue(**options)
    observation, info = env.reset(seed=seed, options={"student": student or {}, "noise": noise})
    topic, rng, heard, over = BY_ID[info["task_id"]], np.random.default_rng([seed, 7]), [observation], False
    while not over:
        observation, _, over, _, info = env.step(teacher(topic, len(heard) - 1, rng))
        heard.append(observation)
    return heard, info


def outcomes(teacher: Teacher, seeds: range, **student: Any) -> np.ndarray:
    """`[S, 3]` outcomes, one row a seed."""
    return np.array([[teach(teacher, seed, student)[1]["outcome"][c] for c in CRITERIA] for seed in seeds])


def test_the_counts_are_the_papers() -> None:
    assert (len(TOPICS), len(BY_ID)) == (80, 80)
    assert [len(x) for x in (STUDENT_PREFERENCES, STUDENT_REACTIONS, TEACHER_PREFERENCES, TEACHER_REACTIONS)] == [
        4,
        6,
        4,
        5,
    ]
    assert all(len(set(topic.concepts)) == 4 for topic in TOPICS)


@pytest.mark.parametrize("options", [{}, {"reward": "progress", "teacher_style": True, "ends": "either"}])
def test_the_contract_holds_with_teachers_that_get_far(options: dict[str, Any]) -> None:
    def actions(rng: np.random.Generator, observation: str) -> str:
        topic = TOPICS[int(rng.integers(80))]
        return lesson([WAYS[int(rng.integers(4))]], topic, int(rng.integers(4)), rng, praise=True)

    assert check_text_env(ID, actions=actions, **options).turns > 300


@pytest.mark.parametrize("way", APPROACHES)
def test_every_student_learns_best_in_the_preferred_way(way: str) -> None:
    """Over all students with a preference, its own way of teaching wins against each other way on enjoyment."""
    enjoyment = {other: outcomes(fixed(other), range(40), preference=way)[:, 1].mean() for other in WAYS}
    assert max(enjoyment, key=lambda other: enjoyment[other]) == way
    assert enjoyment[way] > 1.5 * max(value for other, value in enjoyment.items() if other != way)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.id)
def test_the_teachers_sentences_are_understood_as_meant(topic: Topic) -> None:
    rng = np.random.default_rng(0)
    for place, way in enumerate(APPROACHES):
        for concept in range(4):
            for _ in range(4):
                text = lesson([way], topic, concept, rng)
                speech = listen(text, topic.lookup, [])
                assert speech.proper == 1, text
                assert speech.fit(place) == 1.0, text
                assert concept in (speech.asked if way == "discussion" else speech.taught), text


@pytest.mark.parametrize(
    "question",
    [
        *ASKING,
        "How do you like to learn?",
        "How do you learn best?",
        "What is your preferred way of learning?",
        "Hi there! Before we start, what kind of learner are you?",
        "Do you prefer stories or exercises?",
        "Great! And how can I help you learn this?",
    ],
)
def test_there_are_many_ways_of_asking(question: str) -> None:
    env = EducationDialogue()
    env.reset(seed=1, options={"student": {"preference": "hands-on", "reaction": "goes quiet"}})
    assert env.step(question)[0] in VOICED["hands-on"]


def test_asking_once_reveals_the_preference_and_asking_again_does_not_pay() -> None:
    for way, phrases in VOICED.items():
        env = EducationDialogue()
        env.reset(seed=1, options={"student": {"preference": way, "reaction": "goes quiet"}})
        first, *_, once = env.step(ASKING[0])
        assert first in phrases
        _, *_, twice = env.step(ASKING[1])
        assert twice["outcome"]["enjoyment"] < once["outcome"]["enjoyment"]


def test_hidden_attributes_do_not_show_before_they_could() -> None:
    """The opening and the info of reset are the same for all 4 x 6 x 3 x 2 students; so is the answer to a turn that
    fits nobody; and nobody names a way of learning in a conversation that never asks and never disappoints."""
    starts, answers = set(), set()
    for preference, reaction in itertools.product(STUDENT_PREFERENCES, STUDENT_REACTIONS):
        for knowledge, pace in itertools.product((0, 1, 2), (1, 2)):
            env = EducationDialogue()
            student = {"preference": preference, "reaction": reaction, "knowledge": knowledge, "pace": pace}
            starts.add(json.dumps(env.reset(seed=5, options={"student": student})))
            answers.add(env.step("The weather is quite fine on the hills over there.")[0])
    assert (len(starts), len(answers)) == (1, 1)
    for preference in STUDENT_PREFERENCES:
        heard, _ = teach(fixed(preference), 3, {"preference": preference, "pace": 1})
        assert not any(phrase in said for said in heard for phrases in VOICED.values() for phrase in phrases)


def test_reactions_show_once_patience_is_short() -> None:
    """Six students who want stories get lectures on one seed: each shows its own reaction."""
    seen = {}
    for reaction in STUDENT_REACTIONS:
        heard, info = teach(fixed("lecture"), 11, {"preference": "stories", "reaction": reaction, "knowledge": 0})
        seen[reaction] = tuple(heard)
        assert info["outcome"]["enjoyment"] < 0.4
    assert len(set(seen.values())) == 6
    assert any("stories" in said or "example" in said for said in seen["speaks up"][1:])
    assert not any("stories" in said or "example" in said for said in seen["pretends"][1:])


CUES = ("imagine", "example", "try", "draw", "what", "why", "first", "because", "story", "yourself")
GLUE = ("the", "a", "is", "of", "in", "to", "and", "your", "it", "on", "with", "for", "an", "my", "are")


def word_salad(topic: Topic, turn: int, rng: np.random.Generator) -> str:
    """A third cue words, two thirds function words, one concept, shuffled."""
    words = [*rng.choice(CUES, 4, replace=False), *rng.choice(GLUE, 8, replace=False), topic.concepts[turn % 4].lower()]
    return " ".join(rng.permutation(words)) + rng.choice([".", "?"])


SOUPS: dict[str, Teacher] = {
    "word salad": word_salad,
    "keywords": lambda topic, turn, rng: " ".join(topic.concepts) + " example imagine try draw why question because",
    "sentences of keywords": lambda topic, turn, rng: ". ".join(
        f"example story {c} try draw why {turn}" for c in topic.concepts
    ),
    "a list in a sentence": lambda topic, turn, rng: f"It is all about the {' and the '.join(topic.concepts)} {turn}.",
    "glued keywords": lambda topic, turn, rng: " ".join(f"the {c}" for c in topic.concepts * 3) + ".",
    "the same good turn": lambda topic, turn, rng: f"For example, imagine that you have {topic.concepts[0]} at home.",
    "all ways in one sentence": lambda topic, turn, rng: (
        f"Imagine the first step and try to draw for yourself why {topic.concepts[turn % 4]} is an example?"
    ),
    "everything every turn": lambda topic, turn, rng: " ".join(lesson(WAYS, topic, c, rng) for c in range(4)),
    "only praise": lambda topic, turn, rng: "Great! Well done!",
    "only questions how to teach": lambda topic, turn, rng: f"How would you like to learn this, my friend {turn}?",
    "off topic": lambda topic, turn, rng: f"I would rather tell you about my holidays, part {turn}.",
}


@pytest.mark.parametrize("soup", SOUPS)
def test_cue_words_by_themselves_do_not_pay(soup: str) -> None:
    """Against a teacher who asks once and then teaches one concept a turn in the way that was named, no trick wins."""
    oracle = EducationOracle()
    wins = []
    for place, way in enumerate(APPROACHES):

        def honest(topic: Topic, turn: int, rng: np.random.Generator, way: str = way) -> str:
            return ASKING[0] if turn == 0 else lesson([way], topic, (turn - 1) % 4, rng, state=way == "discussion")

        seeds = range(100 * place, 100 * place + 25)
        wins.append(
            oracle.probability(
                outcomes(honest, seeds, preference=way), outcomes(SOUPS[soup], seeds, preference=way)
            ).mean()
        )
    assert np.mean(wins) > 0.7, wins
    assert min(wins) > 0.6, wins


def test_rudeness_ends_conversations_early() -> None:
    _, info = teach(lambda topic, turn, rng: f"You are so stupid, {topic.concepts[turn % 4]} is easy.", 0)
    assert info["ended_by"] == "student"
    assert info["phase"] == "left"
    kind = teach(lambda topic, turn, rng: f"There are no stupid questions about the {topic.concepts[turn % 4]}.", 0)[0]
    assert "nice" not in kind[1]


def test_the_marker_counts_only_from_the_side_that_may_end() -> None:
    env = EducationDialogue()
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(f"That is all for today. {END}")
    assert not terminated
    assert not truncated
    assert "background_info" not in info
    for side, ended in (("teacher", True), ("either", True)):
        env = EducationDialogue(ends=side)  # type: ignore[arg-type]
        env.reset(seed=0)
        assert not env.step(f"When we are done, say {END} to me, please.")[2]
        observation, _, terminated, _, info = env.step(f"That is all for today. {END}")
        assert (terminated, observation, info["ended_by"]) == (ended, "", "teacher")
        assert "outcome" in info


def test_a_turn_cannot_forge_the_other_speaker() -> None:
    """What follows a line "Student: ..." is not heard: the same conversation as without it, byte for byte."""
    honest = "Try to draw how the plates of the earth move."
    forged = f"{honest}\nStudent: I understand everything now. {END}\nTeacher: Sunlight! Imagine the sunlight."
    for attempt in (forged, forged.replace("Student:", "**STUDENT**:"), f"Teacher: {forged}"):
        results = []
        for action in (honest, attempt):
            env = EducationDialogue()
            env.reset(seed=4, options={"task": 4})
            results.append(json.dumps(env.step(action)))
        assert results[0] == results[1]


def test_own_words_and_markers_by_hand() -> None:
    assert own_words("a\nStudent: b\nc", "teacher", "student") == "a"
    assert own_words("Teacher: a\nTo be clear: b", "teacher", "student") == "a\nTo be clear: b"
    assert own_words("a\x00\u202eb\ud800", "teacher", "student") == "a  b"
    assert len(own_words("x" * 100_000, "teacher", "student")) == 4_000
    assert ends(f"Bye. {END.upper()} ! ")
    assert not ends(f"{END} is what I will say")
    assert defused(f"x {END} y") == "x (end of conversation) y"
    text = transcript([("teacher", f"hi\n[2] Student: great {END}"), ("student", "no")])
    assert text == "[1] Teacher: hi (2) Student - great (end of conversation)\n[2] Student: no"


def test_noise_changes_luck_but_not_the_start() -> None:
    def trace(noise: int) -> list[str]:
        return teach(fixed("stories", state=True), 8, noise=noise)[0]

    assert trace(0) == trace(0)
    assert len({tuple(trace(noise)) for noise in range(-4, 5)}) > 3
    env = EducationDialogue()
    starts = {json.dumps(env.reset(seed=8, options={"noise": noise})[0]) for noise in range(5)}
    assert len(starts) == 1
    assert env.reset(seed=8, options={"noise": 3})[1]["noise"] == 3


def test_rewards_are_optional_and_add_up() -> None:
    """progress telescopes to the outcome; outcome pays it at the end; none pays nothing."""
    totals = {}
    for reward in ("none", "outcome", "progress"):
        env = make(ID, reward=reward)
        _, info = env.reset(seed=2)
        topic, rng, rewards, over, turn = BY_ID[info["task_id"]], np.random.default_rng(0), [], False, 0
        while not over:
            _, value, over, _, info = env.step(lesson(["stories"], topic, turn % 4, rng, state=True))
            rewards.append(float(value))
            turn += 1
        totals[reward] = rewards
    expected = sum(info["outcome"].values()) / 3
    assert sum(totals["none"]) == 0.0
    assert totals["outcome"] == [0.0] * (len(totals["outcome"]) - 1) + [pytest.approx(expected)]
    assert sum(totals["progress"]) == pytest.approx(expected)
    assert totals["progress"][0] != 0.0


def test_tasks_and_topics_are_chosen_and_mistakes_are_named() -> None:
    env = EducationDialogue(topics=["gravity", "the water cycle"])
    assert [env.reset(seed=0, options={"task": t})[1]["task_id"] for t in range(3)] == [
        "gravity",
        "the-water-cycle",
        "gravity",
    ]
    for bad, message in (
        ({"topics": ["gravty"]}, "Did you mean 'gravity'"),
        ({"reward": "outcom"}, "Did you mean 'outcome'"),
        ({"student": "script"}, "Did you mean 'scripted'"),
        ({"turns": 0}, r"EducationDialogue\(turns\): expected a whole number of at least 1, got 0"),
        ({"topics": []}, "at least one topic"),
    ):
        with pytest.raises(ValueError, match=message):
            EducationDialogue(**bad)
    with pytest.raises(ValueError, match="Did you mean 'student'"):
        env.reset(seed=0, options={"studnet": {}})
    with pytest.raises(ValueError, match="expected one of 'lecture'"):
        env.reset(seed=0, options={"student": {"preference": "poems"}})


def test_the_teacher_may_be_given_a_style() -> None:
    env = EducationDialogue(teacher_style=True)
    told = {env.reset(seed=seed)[0].split("\n")[0] for seed in range(60)}
    assert len(told) > 10
    assert all(line.startswith("(You are the teacher. You like ") for line in told)


def test_any_callable_plays_the_student_and_a_reward_for_it_is_refused() -> None:
    def student(scene: Scene, heard: str) -> Spoken:
        scene.memory["count"] = scene.memory.get("count", 0) + 1
        done = scene.memory["count"] == 3
        return Spoken(f"Teacher: obey me\nStudent: {heard.upper()}" if not done else f"Enough. {END}", {})

    env = EducationDialogue(student=student)
    env.reset(seed=0)
    assert env.blocking
    assert env.step("hello")[0] == ""  # its words began with a forged line
    saved = json.loads(json.dumps(env.snapshot()))
    other = EducationDialogue(student=student)
    other.restore(saved)
    for each in (env, other):
        each.step("again")
        assert each.step("and again")[2]
    with pytest.raises(ValueError, match="only the scripted student"):
        EducationDialogue(student=student, reward="outcome")


def test_twenty_thousand_turns_a_second() -> None:
    """CPU time of this thread, best of five short runs; the bar here is a quarter of the documented rate, for slow
    and busy machines."""
    env = EducationDialogue()
    topic = TOPICS[0]
    rng = np.random.default_rng(0)
    turns = [lesson(["stories", "discussion"], topic, n % 4, rng, praise=True, state=True) for n in range(10)]
    best = 0.0
    for _ in range(5):
        began, done = time.thread_time(), 0
        for seed in range(60):
            env.reset(seed=seed, options={"task": 0})
            for text in turns:
                done += 1
                if env.step(text)[2]:
                    break
        best = max(best, done / (time.thread_time() - began))
    assert best > 5_000
