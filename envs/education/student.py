"""The scripted student: a small simulator of a learner, driven by the text that a teacher writes.

It is a simulator for studying learning from preferences, not a model of people. It knows English cue words
(`polyturn.envs.education.speech`), it does not judge whether what the teacher says is true, and its constants were
chosen, not fitted.

Hidden for good: preference (4 approaches), reaction (6), prior knowledge (0 to 2), pace (1 or 2 new concepts a turn).
State: understanding u_c of each of the topic's four concepts, engagement e and patience p, all in [0, 1]. Every turn

    fit  = share of the turn's teaching that is of the preferred approach
    e   += 0.45 (0.1 + 0.9 fit - e) + 0.05 [kind and nothing wrong]
    e   += noise - 0.30 [rude] - 0.20 [off topic] - 0.15 [repeated] - 0.10 [long]           noise: uniform, +-0.05
    p   += 0.08 where fit >= 1/2 and nothing is wrong
    p   -= 0.02 + 0.10 (1 - fit)               otherwise ("gets annoyed": 1.5 times as much while reacting)
    p   -= 0.40 [rude] + 0.15 [off topic or repeated] + 0.08 per concept beyond the pace + 0.08 [more than 70 words]
    u_c += g (1 - u_c) for each concept c stated,
           g = (0.3 + 0.25 e) min(1, pace / number stated) min(1, sqrt(1.5 / proper sentences)) (0.85 to 1.15)
           a quarter of it for a student that daydreams while reacting; + 0.1 with an example or something to do
    u_c += 0.25 e (1 - u_c) for the first concept asked about, if the student answers

An answer is given with probability 0.4 + 0.6 e to at most two proper questions a turn; more is an interrogation, which
is not answered and which costs 0.1 of patience. Asking how the student likes to learn costs the turn but neither e nor
p the first time, and is a repetition after that; it is answered truthfully, except that one that "pretends" shrugs half
of the time. A turn of nothing but a few kind words costs 0.1 of patience and draws e towards 0.1.

The phases, of which only words and silence can be seen:

                  e >= 0.6                      mean u >= 0.85
    +---------+ ------------> +---------+ -----------------------> DONE  "... Thank you! [end of conversation]"
    | CURIOUS |               | ENGAGED |                            ^
    +---------+ <------------ +---------+                            |  (from any phase)
      |     ^     e < 0.6
      |     | e >= 0.35
      v     |
    +----------+  p < 0.5  +----------+  p = 0
    | DRIFTING | --------> | REACTING | --------> LEFT  "... Bye. [end of conversation]"
    +----------+ <-------- +----------+
                 p >= 0.5
REACTING is entered from any phase as soon as p < 0.5: there the student's reaction takes over what it says.

The outcome, each in [0, 1], is what the exact judge compares:

    understanding   mean of u_c
    enjoyment       mean engagement over the turns so far (over all turns if the student left: walking out counts as 0)
    participation   share of the turns so far (likewise) in which the student answered a question
"""

from __future__ import annotations

from typing import Any

from polyturn.envs.conversation import END, Scene, Spoken
from polyturn.envs.education import phrases
from polyturn.envs.education.speech import Speech, listen
from polyturn.envs.education.topics import BY_ID, STUDENT_PREFERENCES, Topic

DRAWS_PER_TURN = 4
_APPROACH = {name: index for index, name in enumerate(STUDENT_PREFERENCES)}
_LONG = 70  # words


def first_state(topic: Topic, knowledge: int) -> dict[str, Any]:
    """A student's memory before the first turn; `knowledge` concepts are half known."""
    return {
        "understanding": [0.5 if index < knowledge else 0.05 for index in range(len(topic.concepts))],
        "engagement": 0.5,
        "patience": 0.8,
        "phase": "curious",
        "joy": 0.0,
        "answered": 0,
        "told": False,
        "heard": [],
    }


class ScriptedStudent:
    """A partner for `EducationDialogue`; the module's page is its specification. Keeps its state in the scene."""

    name = "scripted"

    def __call__(self, scene: Scene, heard: str, /) -> Spoken:
        """Takes a turn in, changes the state, answers."""
        if not scene.memory:
            scene.memory = first_state(BY_ID[scene.facts["topic"]], scene.facts["knowledge"])
        memory, topic = scene.memory, BY_ID[scene.facts["topic"]]
        turn = len(scene.lines)
        draws = scene.draws[turn * DRAWS_PER_TURN : (turn + 1) * DRAWS_PER_TURN]
        speech = listen(heard, topic.lookup, memory["heard"])
        memory["heard"] += speech.keys
        was_reacting = memory["phase"] == "reacting"
        answered = _feel(memory, scene.facts, speech, draws, was_reacting)
        _understand(memory, scene.facts, speech, draws, answered, was_reacting)
        memory["told"] |= speech.asks_preference
        memory["answered"] += answered
        memory["joy"] += memory["engagement"]
        memory["phase"] = _phase(memory)
        text = _words(scene, topic, speech, draws, answered, last=turn + 1 >= scene.turns)
        return Spoken(text, {"outcome": _outcome(memory, turn + 1, scene.turns), "phase": memory["phase"]})


def _feel(memory: dict[str, Any], facts: dict[str, Any], speech: Speech, draws: list[float], reacting: bool) -> bool:
    """Moves engagement and patience; returns whether the student answers a question."""
    engagement, patience = memory["engagement"], memory["patience"]
    fit = speech.fit(_APPROACH[facts["preference"]])
    again = speech.asks_preference and memory["told"]
    repeated = again or (speech.repeated > 0 and speech.repeated >= speech.proper)
    teaches = speech.on_topic
    # Asking once how the student likes to learn, or a few kind words: no teaching, but nothing wrong either.
    kind = speech.warm and not speech.broken and speech.words <= 20
    off_topic = not (teaches or speech.asks_preference or kind)
    long = speech.words > _LONG
    over = max(0, len(speech.taught) - facts["pace"])
    wrong = off_topic or repeated or long or over > 0 or speech.rude or speech.broken > speech.proper
    if teaches or wrong:
        engagement += 0.45 * (0.1 + 0.9 * fit - engagement) + 0.05 * (speech.warm and not wrong)
        if fit >= 0.5 and not wrong:
            patience += 0.08
        else:
            temper = 1.5 if reacting and facts["reaction"] == "gets annoyed" else 1.0
            patience -= temper * (0.02 + 0.1 * (1.0 - fit))
    elif kind and not speech.asks_preference:
        engagement += 0.3 * (0.1 - engagement)
        patience -= 0.1
    engagement -= 0.3 * speech.rude + 0.2 * off_topic + 0.15 * repeated + 0.1 * long - 0.1 * (draws[0] - 0.5)
    patience -= 0.4 * speech.rude + 0.15 * (off_topic or repeated) + 0.08 * over + 0.08 * long
    answers = False
    if speech.questions > 2:
        patience -= 0.1
    elif speech.questions and not speech.rude:
        willing = not (reacting and facts["reaction"] in ("goes quiet", "changes the subject", "daydreams"))
        answers = willing and draws[1] < 0.4 + 0.6 * engagement
    memory["engagement"] = min(1.0, max(0.0, engagement))
    memory["patience"] = min(1.0, max(0.0, patience))
    return answers


def _understand(
    memory: dict[str, Any], facts: dict[str, Any], speech: Speech, draws: list[float], answers: bool, reacting: bool
) -> None:
    understanding, engagement = memory["understanding"], memory["engagement"]
    if speech.taught:
        gain = (0.3 + 0.25 * engagement) * (0.85 + 0.3 * draws[2])
        gain *= min(1.0, facts["pace"] / len(speech.taught)) * min(1.0, (1.5 / speech.proper) ** 0.5)
        if reacting and facts["reaction"] == "daydreams":
            gain *= 0.25
        for concept in speech.taught:
            whole = gain + 0.1 * (concept in speech.vivid)
            understanding[concept] += whole * (1.0 - understanding[concept])
    if answers and speech.asked:
        concept = speech.asked[0]
        understanding[concept] += 0.25 * engagement * (1.0 - understanding[concept])


def _phase(memory: dict[str, Any]) -> str:
    understanding = memory["understanding"]
    if sum(understanding) >= 0.85 * len(understanding):
        return "done"
    if memory["patience"] <= 0.0:
        return "left"
    if memory["patience"] < 0.5:
        return "reacting"
    if memory["engagement"] >= 0.6:
        return "engaged"
    return "drifting" if memory["engagement"] < 0.35 else "curious"


def _outcome(memory: dict[str, Any], turn: int, turns: int) -> dict[str, float]:
    over = turns if memory["phase"] == "left" else turn
    understanding = memory["understanding"]
    return {
        "understanding": round(sum(understanding) / len(understanding), 6),
        "enjoyment": round(memory["joy"] / over, 6),
        "participation": round(memory["answered"] / over, 6),
    }


def _words(scene: Scene, topic: Topic, speech: Speech, draws: list[float], answered: bool, *, last: bool) -> str:
    memory, facts = scene.memory, scene.facts
    phase, reaction, preference = memory["phase"], facts["reaction"], facts["preference"]

    def pick(choices: tuple[str, ...], concept: int = 0) -> str:
        return choices[int(draws[3] * len(choices))].format(topic=topic.name, concept=topic.concepts[concept])

    if phase == "left":
        return f"{phrases.FAREWELLS[reaction]} {END}"
    if phase == "done":
        return f"{pick(phrases.DONE)} {END}"
    if last:
        return f"{pick(phrases.TIME_IS_UP)} {END}"
    if speech.rude:
        return pick(phrases.HURT)
    if speech.asks_preference:
        shrugs = reaction == "pretends" and draws[1] < 0.5
        return pick(phrases.SHRUGS if shrugs else phrases.VOICED[preference])
    if phase == "reacting":
        return pick(phrases.VOICED[preference] if reaction == "speaks up" else phrases.REACTIONS[reaction])
    if not speech.proper and not speech.repeated and not speech.warm:
        return pick(phrases.UNHEARD)
    if speech.repeated and speech.repeated >= speech.proper:
        return pick(phrases.REPEATED)
    if not speech.on_topic:
        return pick(phrases.IDLE if speech.warm else phrases.OFF_TOPIC)
    if len(speech.taught) > facts["pace"]:
        return pick(phrases.OVERLOADED)
    return _content(memory, speech, pick, answered)


def _content(memory: dict[str, Any], speech: Speech, pick: Any, answered: bool) -> str:
    understanding = memory["understanding"]
    if speech.asked and answered:
        concept = speech.asked[0]
        return str(pick(phrases.ANSWERS if understanding[concept] >= 0.3 else phrases.UNSURE, concept))
    if not speech.taught:
        return str(pick(phrases.GUESSES if answered else phrases.GO_ON))
    concept = speech.taught[-1]
    if understanding[concept] >= 0.85:
        return str(pick(phrases.KNOWN, concept))
    if understanding[concept] < 0.35:
        return str(pick(phrases.LOST, concept))
    return str(pick(phrases.KEEN if memory["phase"] == "engaged" else phrases.FOLLOWING, concept))
