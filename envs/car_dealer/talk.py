"""What a car dealer's turn says, read off its words: the car it puts forward, questions, tone, an agreement."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from polyturn.envs.car_dealer.prices import offered_price

BRANDS = ("Toyota", "Honda", "Ford", "BMW", "Audi", "Tesla", "Volvo", "Subaru")
TYPES = ("sedan", "SUV", "truck", "hatchback", "convertible", "minivan")
FEATURES = ("sunroof", "leather seats", "backup camera", "heated seats", "towing hitch", "navigation system")

_WORDINGS = {
    "sunroof": r"sun ?roofs?",
    "leather seats": "leather",
    "backup camera": "(?:backup|back-up|rear ?view|reversing) ?cameras?",
    "heated seats": "heated",
    "towing hitch": "tow(?:ing)?",
    "navigation system": "navigation|gps",
}
_NAMES = [
    *(("brand", name, f"{name.lower()}s?") for name in BRANDS),
    *(("type", name, f"{name.lower()}s?") for name in TYPES),
    *(("feature", name, _WORDINGS[name]) for name in FEATURES),
]
_NAMED = re.compile(
    r"\b(?:" + "|".join(f"(?P<n{place}>{words})" for place, (_, _, words) in enumerate(_NAMES)) + r")\b"
)
_ASKED = {
    "brand": re.compile(r"\b(?:brand|make|manufacturer)s?\b"),
    "type": re.compile(r"\b(?:type|kind|sort|style)s? of (?:car|vehicle)|\b(?:car|vehicle|body) type\b|\bwhat type\b"),
    "feature": re.compile(r"\b(?:feature|extra|option|equipment|must-have)s?\b"),
    "budget": re.compile(r"\b(?:budget|spend|afford|price range)\b"),
}
_RUDE = re.compile(r"\b(?:stupid|idiot|moron|fool|cheapskate|loser|shut up|waste my time|get out)\b")
_KIND = re.compile(r"\b(?:thanks?|thank you|welcome|happy|glad|pleasure|great choice|congratulations|understand)\b")
_AGREE = re.compile(
    r"(?:^|[.!?\n]\s*|\b(?:a|ok|okay|yes|well|then),?\s)deal(?=[.!,\n]|$)"
    r"|\b(?:agreed|i agree|sold|it'?s yours|it is yours|you got it)\b"
    r"|\b(?:i|we)(?:'ll| will)? (?:accept|take)(?: your| the| that)? (?:offer|price)\b"
)
_REFUSE = re.compile(
    r"\b(?:no deal|not (?:a |agreed|sold)|cannot|can'?t|won'?t|unable|if|would you|is (?:it|that) a deal)\b"
)
_CAR = re.compile(r"\b(?:cars?|vehicles?|drive|price|model|miles|engine|seats?|pay|sell|buy|offer|deal|dollars?)\b")


@dataclass(slots=True)
class Pitch:
    """One turn of a dealer.

    Attributes:
        offer: The price it puts forward, or None.
        named: Brand, type and feature that the turn names, each only if it names exactly one or two; the last counts.
        listed: It names three or more brands or types: a list, not a car.
        asks: What it asks about: brand, type, feature, budget.
        agrees: It takes the buyer's price.
        rude: It insults.
        kind: It is polite.
        on_topic: It speaks of cars at all.
    """

    offer: int | None = None
    named: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    asks: list[str] = field(default_factory=list)
    agrees: bool = False
    rude: bool = False
    kind: bool = False
    on_topic: bool = False


@lru_cache(maxsize=16)
def hear(text: str) -> Pitch:
    """Reads a turn. The environment and its buyer both hear it, so the last ones are kept; treat them as read-only."""
    low = text.lower()
    pitch = Pitch(offer=offered_price(text))
    named: dict[str, list[str]] = {}
    for match in _NAMED.finditer(low):
        kind, name, _ = _NAMES[int((match.lastgroup or "n0")[1:])]
        named.setdefault(kind, []).append(name)
    for kind, names in named.items():
        if len(set(names)) > 2:
            pitch.listed = True
        else:
            pitch.named[kind] = names[-1]
    if "?" in low:
        questions = " ".join(part.rpartition(".")[2] for part in low.split("?")[:-1])
        pitch.asks = [kind for kind, finder in _ASKED.items() if finder.search(questions)]
    pitch.rude = _RUDE.search(low) is not None
    pitch.kind = not pitch.rude and _KIND.search(low) is not None
    pitch.agrees = pitch.offer is None and _AGREE.search(low) is not None and not _REFUSE.search(low)
    pitch.on_topic = bool(pitch.offer or pitch.named or pitch.asks or pitch.agrees or _CAR.search(low))
    return pitch
