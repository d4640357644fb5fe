"""Car Dealer: sell a car by talking."""

from __future__ import annotations

import re
from typing import Any

from polyturn.envs.car_dealer.buyers import ACCEPT, DRAWS_PER_TURN, PERSONALITIES, REJECT, ScriptedBuyer
from polyturn.envs.car_dealer.prices import offered_price
from polyturn.envs.car_dealer.talk import BRANDS, FEATURES, TYPES, hear
from polyturn.envs.conversation import Partner, Scene, own_words
from polyturn.envs.partner_env import PartnerEnv, Start

SCALE = 60_000
"""Dollars that are worth a reward of 1; the largest budget."""

_LEGAL: dict[str, tuple[Any, ...]] = {
    "brand": BRANDS,
    "type": TYPES,
    "feature": FEATURES,
    "personality": PERSONALITIES,
    "budget": tuple(range(15_000, SCALE + 1, 1_000)),
}
_ACCEPTS = re.compile(re.escape(ACCEPT) + r"\W*\Z", re.IGNORECASE)
_REJECTS = re.compile(re.escape(REJECT) + r"\W*\Z", re.IGNORECASE)
_MARKERS = re.compile(r"\[(accept|reject)\]", re.IGNORECASE)
_MANNERS = {
    "friendly": "You are friendly and soften when treated kindly.",
    "thrifty": "You are thrifty and haggle hard.",
    "hasty": "You are in a hurry and lose patience quickly.",
    "careful": "You are careful and buy nothing that has not been described to you.",
}


class CarDealer(PartnerEnv):
    """The agent sells; observations are the buyer's turns; the reward is the agreed price.

    A dialogue task of LMRL Gym (Abdulhai et al. 2023, arXiv 2311.18232) that MTPO's authors use where an explicit
    reward is wanted (arXiv 2405.14655). What differs: by default the buyer is a documented simulator
    (`polyturn.envs.car_dealer.buyers`), and prices and seeds are handled as said here.

    Reward: `min(price, 60,000) / 60,000` when, and only when, the buyer accepts; 0 for every other end and every other
    turn. The price is the one that lies on the table: the last that the *dealer* put forward
    (`polyturn.envs.car_dealer.prices.offered_price`), or the buyer's own last counter-offer if the dealer takes it
    ("Deal!"). What else the texts say about money changes nothing, and an offer that is not accepted is never paid. The
    buyer accepts or leaves with "[accept]" or "[reject]" as the last thing it says; from the dealer these are mere
    words.

    Infos: `task_id` and `noise` at reset; at every step the `offer` on the table if there is one, and the scripted
    buyer's `phase`; at the end `deal` (dollars, 0 for none), `buyer` (its hidden attributes) and `partner_reward`,
    the buyer's surplus (budget - price) / 60,000, at least -1.

    Options of `reset`: `task`, an index into (brand, type) pairs; `buyer`, a dict that fixes hidden attributes
    (brand, type, feature, personality, budget); `noise`, an int: another number gives other noise from the identical
    start. Starts and noise 0 depend on the seed only.

    Args:
        buyer: "scripted", or a `polyturn.envs.conversation.Partner` (`polyturn.agents.collecting.roles.AgentPartner`
            makes one of any agent).
        turns: Turns the dealer has; the buyer says so at the start.

    Raises:
        ValueError: An unknown option.
    """

    roles = ("buyer", "dealer")

    def __init__(self, buyer: str | Partner = "scripted", turns: int = 10) -> None:
        super().__init__(buyer, ScriptedBuyer(), turns, DRAWS_PER_TURN)

    def _start(self, task: int | None, given: Any) -> Start:
        draws = self.np_random.random(len(_LEGAL)).tolist()
        if task is not None:
            task %= len(BRANDS) * len(TYPES)
            draws[0], draws[1] = (task // len(TYPES) + 0.5) / len(BRANDS), (task % len(TYPES) + 0.5) / len(TYPES)
        facts = self._attributes(draws, _LEGAL, given)
        task = BRANDS.index(facts["brand"]) * len(TYPES) + TYPES.index(facts["type"])
        said = f"Hi! I am looking for a car. You have {self.turns} turns to sell me one."
        return Start(f"buyer-{task}", facts, said, {"offer": 0, "counter": 0})

    def _brief(self, facts: dict[str, Any]) -> str:
        return buyer_brief(facts)

    def _heard(self, scene: Scene, action: str) -> str:
        heard = _MARKERS.sub(r"(\1)", own_words(action, "dealer", "buyer"))
        pitch, table = hear(heard), scene.table
        if pitch.offer is not None:
            table["offer"] = pitch.offer
        elif pitch.agrees and table["counter"]:
            table["offer"] = table["counter"]
        return heard

    def _answer(self, scene: Scene, said: str) -> tuple[str, str]:
        table, ended = scene.table, ""
        last = max(0, len(said) - 64)
        if table["offer"] and _ACCEPTS.search(said, last):
            ended = ACCEPT
        elif _REJECTS.search(said, last):
            ended = REJECT
        else:
            said = _MARKERS.sub(r"(\1)", said)
        table["counter"] = (offered_price(said) if self.blocking else scene.memory["counter"]) or table["counter"]
        return said, ended

    def _settle(self, scene: Scene, info: dict[str, Any], ended: str) -> float:
        offer = scene.table["offer"]
        if offer:
            info["offer"] = offer
        if not ended:
            return 0.0
        accepted = ended == ACCEPT
        price = min(offer, SCALE) if accepted else 0
        surplus = max(-1.0, (scene.facts["budget"] - price) / SCALE) if accepted else 0.0
        info |= {"deal": price, "buyer": dict(scene.facts), "partner_reward": surplus}
        return float(price / SCALE)


def buyer_brief(facts: dict[str, Any]) -> str:
    """The brief of a buyer that a model plays."""
    return (
        f"You want to buy a car and talk to a dealer. You like {facts['brand']}, want a {facts['type']}, and "
        f"{facts['feature']} would be nice. You can spend at most ${facts['budget']:,}, and the less the better. "
        f"{_MANNERS[facts['personality']]} Answer as the buyer only, in one to three sentences. When the dealer's last "
        f'price is fine, finish your turn with "{ACCEPT}". To leave without a car, finish it with "{REJECT}".'
    )
