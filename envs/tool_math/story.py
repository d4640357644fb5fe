"""The words of a generated problem: names, things, and several wordings of each operation."""

from __future__ import annotations

import numpy as np

PEOPLE = ("Tom", "Ann", "Sam", "Mia", "Ben", "Eve", "Lea", "Max", "Ida", "Leo", "Zoe", "Kai")
THINGS = ("apples", "books", "coins", "pens", "eggs", "cards", "stamps", "shells", "beads", "stickers")

# {0} and {1} are the step's numbers, {who} the main name, {other} a second one, {things} what is counted.
_WORDINGS: dict[str, tuple[str, ...]] = {
    "set": ("{who} has {0} {things}.", "{who} starts with {0} {things}."),
    "add": (
        "{who} finds {0} more.",
        "{other} gives {who} {0} more.",
        "{who} buys {0} more.",
        "Then {who} gets {0} {things} from {other}.",
    ),
    "sub": (
        "{who} loses {0}.",
        "{who} gives {0} to {other}.",
        "{who} sells {0} of them.",
        "Then {other} takes {0} {things} away.",
    ),
    "mul": (
        "Then {who} has {0} times as many.",
        "The number of {things} grows to {0} times what it was.",
        "A magic box turns each of them into {0} {things}.",
    ),
    "div": (
        "{who} splits them into {0} equal parts and keeps one part.",
        "Only one in every {0} of the {things} is good, and {who} keeps just those.",
    ),
    "add_groups": (
        "{who} buys {0} bags with {1} {things} each.",
        "{who} gets {0} boxes of {1} {things}.",
        "On each of the next {0} days {who} finds {1} more.",
    ),
    "sub_groups": (
        "{who} gives {1} {things} to each of {0} friends.",
        "On each of the next {0} days {who} uses {1} of them.",
        "{who} fills {0} bags with {1} {things} each and sells the bags.",
    ),
    "percent_off": ("{who} loses {0}% of them.", "{other} takes {0}% of the {things}."),
    "percent_more": ("The collection grows by {0}%.", "{who} then gets {0}% more {things}."),
    "mul_price": ("{who} sells all of them for {0} dollars each.",),
    "div_share": ("{who} shares all of them equally among {0} friends.",),
    "add_times": ("{other} has {0} times as many {things} as {who} has now.",),
    "add_more": ("{other} has {0} more {things} than {who} has now.",),
}
_PLAIN = {"set": 2, "add": 3, "sub": 3}
"""How many of the wordings the easiest level uses, to keep its vocabulary small."""

_QUESTIONS = {
    "mul_price": "How many dollars does {who} get?",
    "div_share": "How many {things} does each friend get?",
    "add_times": "How many {things} do {who} and {other} have together?",
    "add_more": "How many {things} do {who} and {other} have together?",
}


def sentence(
    name: str, numbers: list[int], names: tuple[str, str], things: str, rng: np.random.Generator, *, plain: bool
) -> str:
    """One step in words; `plain` keeps to the few wordings of the easiest level."""
    wordings = _WORDINGS[name][: _PLAIN[name]] if plain else _WORDINGS[name]
    wording = wordings[int(rng.integers(len(wordings)))]
    return wording.format(*numbers, who=names[0], other=names[1], things=things)


def ask(last: str, names: tuple[str, str], things: str) -> str:
    """The question that fits the last step."""
    question = _QUESTIONS.get(last, "How many {things} does {who} have now?")
    return question.format(who=names[0], other=names[1], things=things)
