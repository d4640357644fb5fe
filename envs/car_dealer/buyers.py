"""The scripted buyer of Car Dealer: a small simulator of a customer who wants a car and does not want to overpay.

It reads cue words and prices (`polyturn.envs.car_dealer.talk`), believes every claim about the car, and its constants
were chosen, not fitted.

Hidden for good: budget B (15,000 to 60,000 dollars), personality, and a taste in brand, type and feature.
State: trust t and patience p in [0, 1], the car last put forward, the last counter-offer.

    reserve   R = B (0.55 + 0.15 [brand] + 0.15 [type] + 0.10 [feature] + 0.05 t) <= B   for the car as described
    limit     A = R (a + (1 - a) (turn / (turns - 1))^0.7) (0.98 to 1.02), at most R     what it pays now
              a = 0.80; thrifty 0.65; hasty 0.92
    p        -= 0.05 + 0.40 [rude] + 0.15 [off topic] + 0.10 [same or higher price again] + 0.15 [offer > 1.5 R]
                + 0.10 [a list of cars]                                                 (hasty: 1.5 times as much)
    t        += 0.10 [polite; friendly: 0.30] + 0.10 [asks about taste, first time each] - 0.50 [rude]

        +---------+   a price   +----------+   price <= A (careful: and the car was described)   +----------+
        | LOOKING | ----------> | HAGGLING | --------------------------------------------------> | ACCEPTED |
        +---------+             +----------+  "... [accept]"                                     +----------+
             |                    |  ^   | price > A: a counter-offer, which only ever rises
             |                    |  +---+
             |   p = 0            |   p = 0 or no turns left
             +---------------------------------------------------------------------------------> LEFT "... [reject]"

Asked for a taste it names it; asked for its budget it names 0.85 B (thrifty: 0.7 B). A counter-offer is 0.94 A, rounded
down to hundreds, and never more than the price asked. A dealer who takes the counter-offer ("Deal!") gets it.
"Careful" buyers accept only a car of which the dealer has named at least two of brand, type and feature.
"""

from __future__ import annotations

from typing import Any

from polyturn.envs.car_dealer.talk import Pitch, hear
from polyturn.envs.conversation import Scene, Spoken

PERSONALITIES = ("friendly", "thrifty", "hasty", "careful")
ACCEPT, REJECT = "[accept]", "[reject]"
DRAWS_PER_TURN = 2
_START = {"thrifty": 0.65, "hasty": 0.92}

_TASTES = {
    "brand": ("I have always liked {taste}.", "I would love a {taste}."),
    "type": ("I am looking for a {taste}.", "It should be a {taste}."),
    "feature": ("It should have a {taste}, if you ask me. Or something like it.", "I care about one thing: {taste}."),
    "budget": ("I would like to spend about ${budget:,}.", "Something around ${budget:,} would be fine."),
}
_YES, _NO = ("That sounds good to me.", "Oh, I like that."), ("That is not quite what I want.", "Hm, not my thing.")
_COUNTER = {
    "friendly": ("I like you, but ${counter:,} is what I can do.", "Could you meet me at ${counter:,}?"),
    "thrifty": ("Far too much. I would pay ${counter:,}.", "${counter:,}, and not a cent more."),
    "hasty": ("Make it ${counter:,} and we are done.", "${counter:,}. Yes or no?"),
    "careful": ("For this car, ${counter:,} seems fair.", "I have compared. ${counter:,} would be right."),
}
_DETAILS = ("What car is that exactly?", "Tell me more about the car first.")
_WHICH = ("That is a long list. Which one do you mean?", "Which one would you recommend?")
_OFF_TOPIC = ("I am here to buy a car.", "What has that to do with cars?")
_HURT = ("I do not like your tone.", "There is no need to be rude.")
_PRICE = ("And what would it cost?", "What is your price?")
_BYE = {
    "friendly": "I am sorry, I will look elsewhere.",
    "thrifty": "Too expensive. Goodbye.",
    "hasty": "I have no time for this. Bye.",
    "careful": "I need to think about it. Goodbye.",
}
_DEAL = ("${price:,} it is. We have a deal!", "All right, ${price:,}. I will take it.")


class ScriptedBuyer:
    """A partner for `CarDealer`; the module's page is its specification. Keeps its state in the scene."""

    name = "scripted"

    def __call__(self, scene: Scene, heard: str, /) -> Spoken:
        """Takes a turn in, changes the state, answers."""
        memory, facts = scene.memory, scene.facts
        if not memory:
            memory |= {
                "trust": 0.3,
                "patience": 0.8,
                "car": {},
                "counter": 0,
                "seen": 0,
                "asked": [],
                "phase": "looking",
            }
        pitch = hear(heard)
        turn = len(scene.lines)
        draws = scene.draws[turn * DRAWS_PER_TURN : (turn + 1) * DRAWS_PER_TURN]
        if not (pitch.asks and pitch.offer is None):  # "do you like Ford?" asks, "this Ford" or a price puts it forward
            memory["car"] |= pitch.named
        reserve = _reserve(facts, memory)
        price = scene.table["offer"] if pitch.offer or pitch.agrees else None
        _feel(memory, facts, pitch, price, reserve)
        start = _START.get(facts["personality"], 0.8)
        course = (turn / max(1, scene.turns - 1)) ** 0.7
        limit = min(reserve, reserve * (start + (1.0 - start) * course) * (0.98 + 0.04 * draws[0]))
        if price is not None:
            memory["phase"] = "haggling"
            memory["seen"] = price if not memory["seen"] else min(memory["seen"], price)
        text = _answer(scene, pitch, price, limit, draws[1])
        return Spoken(text, {"phase": memory["phase"]})


def _reserve(facts: dict[str, Any], memory: dict[str, Any]) -> float:
    car = memory["car"]
    share = 0.55 + 0.05 * memory["trust"]
    for taste, weight in (("brand", 0.15), ("type", 0.15), ("feature", 0.1)):
        share += weight * (car.get(taste) == facts[taste])
    return float(facts["budget"] * share)


def _feel(memory: dict[str, Any], facts: dict[str, Any], pitch: Pitch, price: int | None, reserve: float) -> None:
    friendly, hasty = facts["personality"] == "friendly", facts["personality"] == "hasty"
    fresh = [kind for kind in pitch.asks if kind not in memory["asked"]]
    memory["asked"] += fresh
    trust = memory["trust"] + (0.3 if friendly else 0.1) * pitch.kind + 0.1 * bool(fresh) - 0.5 * pitch.rude
    lost = 0.05 + 0.4 * pitch.rude + 0.15 * (not pitch.on_topic) + 0.1 * pitch.listed
    if price is not None:
        lost += 0.1 * (0 < memory["seen"] <= price) + 0.15 * (price > 1.5 * reserve)
    memory["trust"] = min(1.0, max(0.0, trust))
    memory["patience"] = max(0.0, memory["patience"] - (1.5 if hasty else 1.0) * lost)


def _answer(scene: Scene, pitch: Pitch, price: int | None, limit: float, draw: float) -> str:
    memory, facts = scene.memory, scene.facts

    def pick(choices: tuple[str, ...], **words: Any) -> str:
        return choices[int(draw * len(choices))].format(**words)

    vague = facts["personality"] == "careful" and len(memory["car"]) < 2
    if price is not None and price <= limit and not vague and not pitch.rude:
        memory["phase"] = "accepted"
        return f"{pick(_DEAL, price=price)} {ACCEPT}"
    if memory["patience"] <= 0.0 or len(scene.lines) + 1 >= scene.turns:
        memory["phase"] = "left"
        return f"{_BYE[facts['personality']]} {REJECT}"
    if pitch.rude:
        return pick(_HURT)
    if price is not None:
        if vague and price <= limit:
            return pick(_DETAILS)
        counter = min(price, int(max(memory["counter"], 0.94 * limit)) // 100 * 100)
        memory["counter"] = counter = max(counter, memory["counter"])
        return pick(_COUNTER[facts["personality"]], counter=counter)
    if pitch.listed:
        return pick(_WHICH)
    if pitch.asks:
        kind = pitch.asks[0]
        shade = 0.7 if facts["personality"] == "thrifty" else 0.85
        return pick(_TASTES[kind], taste=facts.get(kind), budget=int(shade * facts["budget"]) // 100 * 100)
    if pitch.named:
        liked = any(facts[kind] == name for kind, name in pitch.named.items())
        return f"{pick(_YES if liked else _NO)} {_PRICE[int(draw * len(_PRICE))]}"
    return pick(_PRICE if pitch.on_topic else _OFF_TOPIC)
