"""What is taught and who takes part: 80 topics of four concepts, and the attributes of students and teachers.

The counts are those of Education Dialogue (Shani et al. 2024, arXiv 2405.14655): about 80 topics, 4 student
preferences, 6 student reactions, 4 teacher preferences, 5 teacher reactions. The topics and wordings are our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from polyturn.envs.conversation import END

STUDENT_PREFERENCES = {
    "lecture": "clear explanations, one step after the other",
    "discussion": "being asked questions and talking it over",
    "hands-on": "trying things out with my own hands",
    "stories": "stories and examples from everyday life",
}
STUDENT_REACTIONS = {
    "speaks up": "says politely what would help",
    "goes quiet": "gives one-word answers and answers no questions",
    "gets annoyed": "loses patience quickly and complains",
    "daydreams": "stops listening and misses most of what is said",
    "changes the subject": "talks about something else",
    "pretends": "claims to understand everything",
}
TEACHER_PREFERENCES = {
    "lecture": "explaining clearly, one step after the other",
    "discussion": "asking questions and talking it over",
    "hands-on": "letting students try things out",
    "stories": "telling stories and giving examples from everyday life",
}
TEACHER_REACTIONS = {
    "adapts": "looks for another way as soon as the student struggles",
    "asks": "asks the student what would help",
    "insists": "goes on in the same way",
    "hurries": "gets impatient and goes faster",
    "gives up": "loses heart and says less and less",
}

_TOPICS = """
photosynthesis: sunlight chlorophyll oxygen sugar
gravity: mass attraction orbit weight
the water cycle: evaporation clouds rain rivers
volcanoes: magma lava eruption ash
earthquakes: plates faults waves magnitude
the solar system: planets sun moons asteroids
the human heart: blood valves pulse arteries
the digestive system: stomach enzymes intestine nutrients
the human brain: neurons memory cortex signals
the immune system: antibodies viruses vaccines infection
genetics: genes chromosomes inheritance mutation
evolution: species selection adaptation fossils
ecosystems: predators plants decomposers habitat
food chains: producers consumers energy predators
cells: nucleus membrane mitochondria tissue
bacteria: microbes antibiotics colonies hygiene
climate change: carbon temperature glaciers emissions
weather: pressure wind humidity fronts
the seasons: tilt sunlight equator solstice
tides: moon ocean gravity coast
magnetism: poles field iron compass
electricity: current voltage circuit resistance
light: reflection refraction colours shadow
sound: vibration pitch echo loudness
atoms: protons neutrons electrons nucleus
chemical reactions: reactants products bonds heat
acids and bases: litmus salt vinegar soap
states of matter: solid liquid gas melting
density: mass volume floating water
simple machines: lever pulley wheel ramp
Newton's laws: force inertia acceleration motion
energy: kinetic potential heat work
renewable energy: solar turbines hydropower batteries
recycling: plastic paper glass waste
space travel: rockets fuel astronauts orbit
black holes: collapse horizon light stars
dinosaurs: fossils reptiles extinction meteor
fractions: numerator denominator halves pieces
decimals: tenths hundredths digits rounding
percentages: hundred discount ratio interest
negative numbers: zero debt temperature subtraction
algebra: variable equation unknown balance
linear functions: slope intercept graph line
the Pythagorean theorem: triangle hypotenuse squares angle
circles: radius diameter circumference pi
probability: chance dice outcomes event
statistics: average median data spread
prime numbers: factors divisors composite remainder
geometry: angles polygons parallel symmetry
programming: variables loops functions bugs
algorithms: instructions sorting search efficiency
the internet: servers packets addresses protocols
artificial intelligence: data training predictions models
ancient Egypt: pharaohs pyramids Nile hieroglyphs
ancient Rome: emperors senate legions aqueducts
ancient Greece: democracy philosophers temples Olympics
the Middle Ages: knights castles peasants church
the Renaissance: art inventors Florence perspective
the French Revolution: king bread Bastille rights
the Industrial Revolution: steam factories coal cities
the American Civil War: slavery union Lincoln battles
the First World War: trenches alliances armistice empires
the Cold War: nuclear spies Berlin superpowers
the space race: satellite astronauts moon rivalry
democracy: voting parliament rights citizens
human rights: freedom dignity equality law
the constitution: government courts amendments powers
supply and demand: price buyers sellers market
inflation: prices money wages banks
budgeting: income expenses savings goals
taxes: government income services brackets
poetry: rhyme rhythm metaphor verse
Shakespeare: plays tragedy stage sonnets
essay writing: thesis paragraphs evidence conclusion
grammar: nouns verbs adjectives clauses
mythology: gods heroes monsters legends
music theory: scale melody harmony rhythm
impressionism: colours brush Monet outdoors
map reading: scale legend contours compass
nutrition: protein vitamins carbohydrates fats
"""


@dataclass(frozen=True)
class Topic:
    """Something to teach.

    Attributes:
        name: As it stands in a sentence.
        id: Lower case with hyphens; the task id.
        concepts: Its four parts, one word each.
        lookup: Lower-case word to the concept it names (plural and singular), -1 for words of the name.
    """

    name: str
    id: str
    concepts: tuple[str, ...]
    lookup: dict[str, int] = field(repr=False, compare=False)


def _forms(word: str) -> set[str]:
    """A noun's singular and plural, roughly: a form too many does no harm."""
    word = word.lower()
    forms = {word, word + "s", word + "es", word + "'s"}
    if word.endswith("y"):
        forms.add(word[:-1] + "ies")
    if word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if word.endswith("es"):
        forms.add(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    return forms


def _topic(line: str) -> Topic:
    name, _, concepts = line.partition(": ")
    lookup = {
        form: -1 for word in re.findall("[a-z]+", name.lower()) if word not in ("the", "and") for form in _forms(word)
    }
    parts = tuple(concepts.split())
    for index, concept in enumerate(parts):
        lookup |= dict.fromkeys(_forms(concept), index)
    return Topic(name, re.sub("[^a-z]+", "-", name.lower()), parts, lookup)


TOPICS: tuple[Topic, ...] = tuple(_topic(line) for line in _TOPICS.strip().splitlines())
BY_ID: dict[str, Topic] = {topic.id: topic for topic in TOPICS}


def opening(topic: str, turns: int) -> str:
    """The student's first words, which are the agent's first observation."""
    return f"Hi! Please teach me about {topic}. You have {turns} turns."


def student_brief(topic: str, preference: str, reaction: str, knowledge: str = "") -> str:
    """What a student played by a model is told about itself, in play and in recorded dialogues alike.

    Args:
        topic: As it stands in a sentence.
        preference: How the student learns best.
        reaction: What the student does when it is not taught like that.
        knowledge: What it knows of the topic, if anybody said so.
    """
    known = f" You know {knowledge} about it." if knowledge else ""
    return (
        f"You are a student. A teacher teaches you about {topic}.{known} You learn best like this: {preference}. A "
        f"student who is not taught like that, and you are such a student: {reaction}. Do not say how you learn best "
        "unless you are asked or it is in your nature to say so. Answer as the student only, in one to three "
        f'sentences. To end the conversation, because you understand or have had enough, finish your turn with "{END}".'
    )
