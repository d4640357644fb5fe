"""Scripted dealers for Car Dealer: demonstrations of mixed quality to imitate."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from polyturn.agents.agent import Episode
from polyturn.envs.car_dealer.prices import offered_price
from polyturn.envs.car_dealer.talk import BRANDS, FEATURES, TYPES, hear

_ASKING = {
    "brand": ("Which brand do you like?", "Is there a brand that you prefer?"),
    "type": ("What type of car do you need?", "What kind of car are you after?"),
    "feature": ("Which feature matters to you?", "Is there a feature that you want?"),
    "budget": ("How much would you like to spend?", "What is your budget?"),
}
_KIND = ("Thank you.", "I am happy to help.", "Great choice.")
_CHOICES = {"brand": BRANDS, "type": TYPES, "feature": FEATURES}
_PITCHES = (
    "I have a {brand} {type} with {feature}.",
    "Look at this {brand} {type} with {feature}.",
)
_PRICES = ("It costs ${price:,}.", "You can have it for ${price:,}.", "My price is ${price:,}.")
_DEALS = ("Deal!", "Agreed.")
_STEP = 500


@dataclass(frozen=True)
class SellingHabits:
    """Probability of each habit of a dealer, drawn once a conversation.

    Attributes:
        asks: Asks about each of brand, type, feature and budget before it offers anything.
        listens: Offers the car that the buyer asked for, and prices it by the budget that the buyer named.
        kind: Begins its turns with a kind word.
        shoots_high: Opens high above what it expects.
        yields: Comes down after every refusal; else it says its price again.
        takes: Takes the buyer's first counter-offer; else only what is near its own price.
    """

    asks: float = 0.35
    listens: float = 0.5
    kind: float = 0.3
    shoots_high: float = 0.4
    yields: float = 0.6
    takes: float = 0.4


class ScriptedSeller:
    """Sells by habits that nothing in the conversation announces.

    A policy that imitates it holds the whole mixture, from dealers who ask, listen and haggle to those who name any
    price for any car, so the better ones can be found by reward or by preferences.

    Args:
        habits: Probability of each habit.
    """

    name = "scripted seller"
    blocking = False

    def __init__(self, habits: SellingHabits | None = None) -> None:
        self._habits = SellingHabits() if habits is None else habits

    def act(self, episode: Episode) -> str:
        """The next turn."""
        asks, *rest = astuple(self._habits)
        # The habits are drawn from the start only, as an agent keeps nothing between turns.
        manner = np.random.default_rng([episode.seed, episode.member])
        questions = [kind for kind in _ASKING if manner.random() < asks]
        listens, kind, high, yields, takes = (manner.random(5) < rest).tolist()
        car = {name: str(manner.choice(choices)) for name, choices in _CHOICES.items()}
        guess = float(manner.uniform(15_000, 60_000))
        rng, turn = episode.rng, len(episode.turns)
        heard = [each.observation for each in episode.turns[1:]] + ([episode.observation] if turn else [])

        def pick(choices: tuple[str, ...]) -> str:
            return choices[int(rng.integers(len(choices)))]

        polite = [pick(_KIND)] if kind and turn > 0 else []
        if turn < len(questions):
            return " ".join([*polite, pick(_ASKING[questions[turn]])])
        if listens:
            for said in heard:
                car |= hear(said).named
            if "budget" in questions:
                guess = offered_price(heard[questions.index("budget")]) or guess
        opening = guess * (1.3 if high else 0.85)
        refused = turn - len(questions)
        asked = opening * (0.9**refused if yields else 1.0)
        counter = offered_price(heard[-1]) if refused else None
        if counter is not None and (takes or counter >= 0.9 * asked):
            return " ".join([*polite, pick(_DEALS)])
        price = max(_STEP, int(asked) // _STEP * _STEP)
        pitch = [pick(_PITCHES).format(**car)] if refused == 0 or rng.random() < 0.3 else []
        return " ".join([*polite, *pitch, pick(_PRICES).format(price=price)])
