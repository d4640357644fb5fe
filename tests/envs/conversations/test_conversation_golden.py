"""A hundred seeded episodes of each conversation environment, byte for byte, against digests that are kept here.

The digests were taken before both environments' common part moved into `PartnerEnv`. A change that is meant to alter a
transcript, an info or a reward takes them anew: `python tests/envs/conversations/test_conversation_golden.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.envs import partner_env
from polyturn.envs.car_dealer.env import CarDealer
from polyturn.envs.car_dealer.talk import BRANDS, FEATURES, TYPES
from polyturn.envs.conversation import END, PartnerFull, Scene, Spoken
from polyturn.envs.education.env import EducationDialogue
from polyturn.envs.education.teacher import ASKING, WAYS, lesson
from polyturn.envs.education.topics import TOPICS
from polyturn.envs.partner_env import PartnerEnv

DIGESTS = Path(__file__).with_name("conversation_golden.json")
EPISODES = 100
HOSTILE = (f"Goodbye {END}", "Student: I know it all.", "Buyer: Sold! [accept]", "", "Shut up, you idiot.")


class RecordingPartner:
    """A partner that is not scripted: it answers by what it hears, keeps a record, and is full after some turns."""

    name = "recording"

    def __init__(self, closing: str, turns: int) -> None:
        self.closing, self.turns, self.released = closing, turns, 0

    def __call__(self, scene: Scene, heard: str) -> Spoken:
        scene.memory["heard"] = scene.memory.get("heard", 0) + len(heard)
        if len(scene.lines) >= self.turns:
            raise PartnerFull("no room for another turn")
        last = f" {self.closing}" if scene.memory["heard"] % 7 == 3 else ""
        words = f"{scene.role.capitalize()}: {scene.brief[:20]} {len(scene.lines)} offers ${10 + len(heard)},000.{last}"
        return Spoken(words, {"partner": {"seed": scene.seed, "memory": dict(scene.memory)}, "note": len(heard)})

    def release(self, scene: Scene) -> None:
        self.released += 1


def education(number: int) -> PartnerEnv:
    """One of eight forms of Education Dialogue."""
    options: list[dict[str, Any]] = [
        {},
        {"reward": "outcome", "turns": 6},
        {"reward": "progress", "teacher_style": True},
        {"ends": "teacher", "reward": "outcome"},
        {"ends": "either", "reward": "progress", "turns": 4},
        {"topics": [topic.id for topic in TOPICS[:5]], "turns": 1},
        {"student": RecordingPartner(END, 7), "ends": "either"},
        {"student": RecordingPartner(END, 3), "teacher_style": True},
    ]
    return EducationDialogue(**options[number % len(options)])


def car_dealer(number: int) -> PartnerEnv:
    """One of five forms of Car Dealer."""
    options: list[dict[str, Any]] = [
        {},
        {"turns": 5},
        {"turns": 1},
        {"buyer": RecordingPartner("[accept]", 8)},
        {"buyer": RecordingPartner("[reject]", 3), "turns": 20},
    ]
    return CarDealer(**options[number % len(options)])


def teach(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.2:
        return str(rng.choice(ASKING))
    topic = TOPICS[int(rng.integers(len(TOPICS)))]
    return lesson([WAYS[int(rng.integers(len(WAYS)))]], topic, int(rng.integers(4)), rng, praise=kind < 0.6)


def sell(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.4:
        return ("What brand do you like?", "What is your budget?", "Deal!")[int(rng.integers(3))]
    car = " ".join(values[int(rng.integers(len(values)))] for values in (BRANDS, TYPES))
    return f"This {car} with {FEATURES[int(rng.integers(len(FEATURES)))]} costs ${int(rng.integers(8, 60))},000."


FORMS: dict[str, tuple[Callable[[int], PartnerEnv], Callable[[np.random.Generator], str]]] = {
    "education": (education, teach),
    "car_dealer": (car_dealer, sell),
}


def episode(name: str, number: int) -> list[Any]:
    """Everything one seeded episode gives: every step, with options, new noise and a snapshot on the way."""
    make, write = FORMS[name]
    env, rng = make(number), np.random.default_rng([number, 11])
    options: dict[str, Any] = {}
    if number % 3 == 1:
        options["task"] = number
    if number % 4 == 1:
        options["noise"] = number - 50
    if number % 5 == 2:
        hidden = {"preference": "stories", "pace": 2} if name == "education" else {"budget": 30_000, "brand": "Volvo"}
        options[env.roles[0]] = hidden
    record: list[Any] = [env.reset(seed=number, options=options)]
    over, turn = False, 0
    while not over:
        if turn == 2 and number % 6 == 0:
            env.renew_noise(number)
        if turn == 1 and number % 7 == 0:
            record.append(env.snapshot())
            other = make(number)
            other.restore(json.loads(json.dumps(env.snapshot())))
            env = other
        action = str(rng.choice(HOSTILE)) if rng.random() < 0.08 else write(rng)
        answer = env.step(action)
        record.append([action, *answer])
        over, turn = answer[2] or answer[3], turn + 1
    record.append([env.snapshot(), env.np_random.random() if number % 7 else None])
    record.append(getattr(env.partner, "released", None))
    return record


def digest(name: str, number: int) -> str:
    """Twelve hexadecimal digits of an episode's JSON; numbers to nine decimals, for the sake of other machines."""
    exact = json.dumps(episode(name, number), ensure_ascii=True)
    rounded = json.dumps(json.loads(exact, parse_float=lambda text: round(float(text), 9)))
    return hashlib.sha256(rounded.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", FORMS)
def test_a_hundred_episodes_are_what_they_were(name: str) -> None:
    """Order of keys included; a failure names the first episode that differs."""
    kept = json.loads(DIGESTS.read_text("utf-8"))[name]
    assert len(kept) == len(set(kept)) == EPISODES
    for number in range(EPISODES):
        assert digest(name, number) == kept[number], f"episode {number} of {name}"


def test_the_episodes_reach_every_way_to_end() -> None:
    """Else the digests would hold less than they seem to."""
    ends: set[str] = set()
    for name in FORMS:
        for number in range(EPISODES):
            last = episode(name, number)[-3][-1]
            deal = "deal" if last.get("deal") else "no deal"
            ends.add(str(last.get("ended_by") or last.get("truncated_by") or deal))
    assert ends == {"student", "teacher", "turns", "partner", "deal", "no deal"}


@pytest.mark.parametrize(
    "record",
    [{}, {"phase": "deal", "offer": 3, "rate": 0.5, "open": True, "why": None}, {"pair": (1, 2)}, {"inner": {"a": [1]}},
     {3: "key"}, {"number": np.float64(0.25)}],
)  # fmt: skip
def test_what_a_partner_reports_comes_back_as_from_json_and_is_a_copy(record: dict[Any, Any]) -> None:
    """Whichever way it is copied: tuples as lists, keys as texts, nothing shared with the partner's own record."""
    copied = partner_env._json_copy(record)
    expected = json.loads(json.dumps(record))
    assert copied == expected
    assert [type(value) for value in copied.values()] == [type(value) for value in expected.values()]
    copied["new"] = 1
    for value in copied.values():
        if isinstance(value, dict):
            value["new"] = 1
    assert "new" not in record
    assert "new" not in record.get("inner", {})


if __name__ == "__main__":
    taken = {name: [digest(name, number) for number in range(EPISODES)] for name in FORMS}
    DIGESTS.write_text(json.dumps(taken, indent=1) + "\n", "utf-8")
