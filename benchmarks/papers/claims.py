"""What a claim is, and the rule that gives its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polyturn.benchmarks.running.reporting import paired_p, plus_minus, told_apart
from polyturn.benchmarks.running.suite import mean_interval

Verdict = Literal["reproduced", "in direction", "not"]


@dataclass(frozen=True)
class Claim:
    """One thing that a paper says, as a number that should be above 0, or near it.

    Attributes:
        text: What is claimed, with the names of the two that are compared.
        suite: Whose committed cells show it.
        values: One a seed, paired where two things are compared; the claim says that their mean is above 0.
        unit: Of the values.
        scale: What values are multiplied with to be shown.
        same: For claims that two things are alike: the largest mean that counts as alike; the mean should then be
            within this distance of 0, on both sides.
        reason: Where the verdict is not "reproduced": what an experiment said about why.
    """

    text: str
    suite: str
    values: Sequence[float]
    unit: str
    scale: float = 1.0
    same: float | None = None
    reason: str = ""

    @property
    def mean(self) -> float:
        """Of the values."""
        return mean_interval(self.values)[0]

    @property
    def shown(self) -> str:
        """The mean with its 95% Student interval over seeds, and the unit."""
        scaled = [self.scale * value for value in self.values]
        size = max(abs(mean_interval(scaled)[0]), 1e-9)
        digits = 1 if size >= 1 else 3 if size >= 0.01 else 4
        within = "" if self.same is None else f" (alike: within {self.scale * self.same:g})"
        return f"{plus_minus(scaled, digits)} {self.unit}{within}"


def verdicts(claims: Sequence[Claim]) -> list[Verdict]:
    """One rule for the claims of a paper.

    "reproduced": the mean is above 0 and told apart from it by Student's t over seeds, at 5% for all the claims that
    are given together (Holm). Of a claim that two things are alike: the 95% interval lies within the distance. "in
    direction": the mean is on the claimed side, or within the distance, and no more can be said. "not": it is on the
    other side.
    """
    compared = [claim for claim in claims if claim.same is None]
    apart = dict(zip(map(id, compared), told_apart([paired_p(claim.values) for claim in compared]), strict=True))
    found: list[Verdict] = []
    for claim in claims:
        mean, low, high = mean_interval(claim.values)
        if claim.same is not None:
            inside = -claim.same <= low and high <= claim.same
            found.append("reproduced" if inside else "in direction" if abs(mean) <= claim.same else "not")
        elif mean <= 0:
            found.append("not")
        else:
            found.append("reproduced" if apart[id(claim)] else "in direction")
    return found


@dataclass(frozen=True)
class Paper:
    """A paper and its claims.

    Attributes:
        key: Of its picture's file.
        title: Short.
        arxiv: Its number.
        claims: What is looked at.
        setting: The paper's setting, then ours.
        gpu: The paper's own protocol on a GPU: model, data, flags, expected cost.
    """

    key: str
    title: str
    arxiv: str
    claims: Sequence[Claim]
    setting: str
    gpu: str
