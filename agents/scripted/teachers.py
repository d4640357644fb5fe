"""Scripted teachers for Education Dialogue: demonstrations of mixed quality to imitate."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from polyturn.agents.agent import Episode
from polyturn.envs.education.teacher import ASKING, WAYS, lesson, voiced_preference
from polyturn.envs.education.topics import BY_ID


@dataclass(frozen=True)
class TeachingHabits:
    """How often a teacher does what; probabilities, drawn once a conversation.

    Attributes:
        asks: Begins by asking how the student likes to learn.
        listens: Teaches in the way that the student has named.
        wanders: Draws its way anew every turn while no way was named (else it keeps one).
        questions: Adds a question to its turns.
        states: Adds a plain statement to its turns.
        praises: Begins its turns with a kind word.
        dwells: Stays with a concept for two turns.
    """

    asks: float = 0.3
    listens: float = 0.5
    wanders: float = 0.5
    questions: float = 0.3
    states: float = 0.3
    praises: float = 0.3
    dwells: float = 0.5


class ScriptedTeacher:
    """Teaches by habits that nothing in the conversation announces.

    A policy that imitates it holds the whole mixture, from teachers who never listen to teachers who ask and adapt, so
    the better ones can be found from preferences over conversations only.

    Args:
        habits: Probability of each habit.
    """

    name = "scripted teacher"
    blocking = False

    def __init__(self, habits: TeachingHabits | None = None) -> None:
        self._habits = TeachingHabits() if habits is None else habits

    def act(self, episode: Episode) -> str:
        """The next turn.

        Raises:
            KeyError: The episode is of another environment.
        """
        topic, habits, turn = BY_ID[episode.task_id], self._habits, len(episode.turns)
        # The habits are drawn from the start only, as an agent keeps nothing between turns.
        manner = np.random.default_rng([episode.seed, episode.member])
        asks, listens, wanders, questions, states, praises, dwells = (manner.random(7) < astuple(habits)).tolist()
        own = WAYS[int(manner.integers(len(WAYS)))]
        if asks and turn == 0:
            return ASKING[int(episode.rng.integers(len(ASKING)))]
        heard = [turn.observation for turn in episode.turns[1:]] + ([episode.observation] if turn else [])
        named = next((way for said in reversed(heard) if (way := voiced_preference(said))), None)
        way = WAYS[int(episode.rng.integers(len(WAYS)))] if wanders else own
        if listens and named is not None:
            way = named
        ways = [way, "discussion"] if questions and way != "discussion" else [way]
        concept = ((turn - asks) // (1 + dwells)) % len(topic.concepts)
        return lesson(ways, topic, concept, episode.rng, praise=praises and turn > 0, state=states)
