"""An answer on its way to a client, in whatever interface it asked."""

from __future__ import annotations

from dataclasses import dataclass

from polyturn.agents.serving.episode import Call


@dataclass(frozen=True)
class Answer:
    """What every interface makes its response of.

    Attributes:
        call: What was asked and sampled.
        id: Name of the answer, without a prefix.
        model: What the policy is called.
        created: Seconds since 1970, for clients that ask when.
        tokens: The sampled tokens as texts, where log-probabilities are wanted.
        logprobs: Whether they are.
    """

    call: Call
    id: str
    model: str
    created: int
    tokens: tuple[str, ...]
    logprobs: bool
