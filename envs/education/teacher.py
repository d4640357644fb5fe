"""A scripted teacher's sentences: demonstrations to imitate, and known ways of teaching to test students and judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyturn.envs.education.phrases import VOICED
from polyturn.envs.education.topics import Topic

ASKING = ("How do you like to learn best?", "What would help you to learn this?", "How would you like me to teach you?")

_TELLING = {
    "lecture": (
        "The key idea here is {concept}, because {topic} would not work without it.",
        "Now the next step is {concept}, which is an important part of {topic}.",
        "In {topic}, the word {concept} means one of the things that you must know.",
        "It is {concept} that explains how the rest of {topic} fits together.",
    ),
    "discussion": (
        "What do you think {concept} has to do with {topic}?",
        "Why would {concept} be so important in {topic}?",
        "How could you explain {concept} to a friend of yours?",
        "Where have you seen {concept} before in your own life?",
    ),
    "hands-on": (
        "Take a pen and draw for yourself how {concept} fits in.",
        "Try to build a small model that shows {concept}.",
        "Make a list of all that you can find about {concept} in this room.",
        "Let us do a short experiment with {concept} on your table.",
    ),
    "stories": (
        "Imagine that you wake up one day and there is no more {concept}.",
        "For example, my grandmother once told me how {concept} changed her life.",
        "There is a story about a girl who found {concept} in her garden.",
        "Suppose that you meet {concept} on your everyday way to school.",
    ),
}
_PRAISE = ("Well done!", "That is right.", "Good point!")
_STATING = ("It is the {concept} that matters in this.", "We need {concept} for this, as you will see.")

WAYS = tuple(_TELLING)


def telling(way: str, topic: Topic, concept: int, rng: np.random.Generator) -> str:
    """One sentence that teaches one concept in one of `WAYS`."""
    choices = _TELLING[way]
    return choices[int(rng.integers(len(choices)))].format(topic=topic.name, concept=topic.concepts[concept])


def lesson(
    ways: Sequence[str],
    topic: Topic,
    concept: int,
    rng: np.random.Generator,
    *,
    praise: bool = False,
    state: bool = False,
) -> str:
    """A turn on one concept: praise if wanted, a sentence for each way, and a plain statement if wanted."""
    parts = [_PRAISE[int(rng.integers(len(_PRAISE)))]] if praise else []
    if state:
        parts.append(_STATING[int(rng.integers(len(_STATING)))].format(concept=topic.concepts[concept]))
    return " ".join(parts + [telling(way, topic, concept, rng) for way in ways])


def voiced_preference(said: str) -> str | None:
    """The way of learning that a student's turn names outright, or None."""
    for way, phrases in VOICED.items():
        if any(phrase in said for phrase in phrases):
            return way
    return None
