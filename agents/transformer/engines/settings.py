"""Which engine samples, as a value: it travels with an agent's or a run's settings and is recorded with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polyturn.agents.http_client import checked_url
from polyturn.agents.transformer.generation import Sampling
from polyturn.envs.settings import check_choice, check_count, check_range

Weights = Literal["served", "handed"]
LOCAL = ("exact", "transformers", "vllm")
"""Engines in this process, by name."""


@dataclass(frozen=True, kw_only=True)
class TokenServers:
    """Servers that take token ids and return token ids with their log-probabilities: vLLM's `/v1/completions`.

    Attributes:
        urls: Their addresses, up to and with "/v1"; a conversation stays with one of them while that answers.
        weights: "served": the servers hold the policy's weights, and keep them. "handed": they are given the policy's
            weights, now and whenever those have changed: the adapter of a policy with adapters (the server needs
            `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1), else all weights (VLLM_SERVER_DEV_MODE=1).
        folder: Where weights are written for the servers, which must see it under this path; None: a temporary folder
            of this machine.
        model: What the servers call the model; None: the first that they list.
        tolerance: Nats by which a server's log-probabilities may differ from the policy's own, of a few tokens that are
            compared whenever weights are new to it. Half precision on either side takes 0.05 and more.
        api_key_env: The environment variable with the servers' key.
        timeout: Seconds that an answer may take.
        retries: Rounds over all servers after the first.
        backoff: Seconds before the first of them.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    urls: tuple[str, ...]
    weights: Weights = "served"
    folder: str | None = None
    model: str | None = None
    tolerance: float = 0.02
    api_key_env: str = "VLLM_API_KEY"
    timeout: float = 600.0
    retries: int = 6
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.urls, str) or not self.urls:
            raise ValueError(f"TokenServers(urls): expected a tuple of addresses, got {self.urls!r:.80}")
        object.__setattr__(self, "urls", tuple(checked_url("TokenServers(urls)", url) for url in self.urls))
        if odd := next((url for url in self.urls if "?" in url or "#" in url), None):
            raise ValueError(f"TokenServers(urls): expected no '?' or '#', got {odd.partition('?')[0]}?...")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"TokenServers(urls): expected different addresses, got {', '.join(self.urls)}")
        check_choice("TokenServers(weights)", self.weights, ("served", "handed"))
        check_range("TokenServers(tolerance)", self.tolerance, 0, above=True)
        check_range("TokenServers(timeout)", self.timeout, 0, above=True)
        check_count("TokenServers(retries)", self.retries, 0)
        check_range("TokenServers(backoff)", self.backoff, 0)


EngineChoice = str | Sequence[str] | TokenServers
"""An engine's name, the address of a server that samples, several of them, or `TokenServers` with options."""


def chosen_engine(choice: EngineChoice, *, weights: Weights = "served") -> str | TokenServers:
    """An engine by name, or servers.

    Args:
        choice: What was asked for; a text may hold several addresses with commas between.
        weights: Of servers that are given by addresses only.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(choice, TokenServers) or choice in LOCAL:
        return choice
    urls = tuple(choice.split(",")) if isinstance(choice, str) else tuple(choice)
    if not all(isinstance(url, str) and url.startswith(("http://", "https://")) for url in urls):
        raise ValueError(f"engine: expected {', '.join(LOCAL)}, or addresses (http://host:port/v1), got {choice!r:.80}")
    return TokenServers(urls=urls, weights=weights)


def check_common_sampling(engine: str, sampling: Sampling) -> None:
    """Refuses options that engines of others apply in another order than this project.

    Raises:
        ValueError: min_p together with top_p.
    """
    if sampling.min_p > 0 and sampling.top_p < 1:
        raise ValueError(
            f"engine {engine}: expected min_p or top_p, got both ({sampling.min_p:g}, {sampling.top_p:g}): they are "
            "applied in another order there, so log-probabilities would be those of another distribution; leave one "
            "out, or use engine='exact'"
        )


def finite(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
