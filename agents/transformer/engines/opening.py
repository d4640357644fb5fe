"""From an engine's name to the engine."""

from __future__ import annotations

from polyturn.agents.transformer.engines.exact import ExactEngine
from polyturn.agents.transformer.engines.interface import Engine
from polyturn.agents.transformer.engines.settings import EngineChoice, TokenServers, chosen_engine
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy


def open_engine(choice: EngineChoice, policy: Policy, sampling: Sampling, *, slots: int, capacity: int) -> Engine:
    """Makes an engine for a policy.

    Args:
        choice: Its name, addresses of servers, or `TokenServers`.
        policy: Whose weights sample.
        sampling: How tokens are drawn.
        slots: Conversations at once.
        capacity: Tokens that a conversation may have in all.

    Raises:
        ValueError: There is no such engine, or it does not have an option of the sampling.
    """
    chosen = chosen_engine(choice)
    if isinstance(chosen, TokenServers):
        from polyturn.agents.transformer.engines.served import ServedEngine

        return ServedEngine(policy, sampling, chosen, slots=slots, capacity=capacity)
    if chosen == "vllm":
        import torch

        from polyturn.agents.transformer.engines.own_server import URL, own_server
        from polyturn.agents.transformer.engines.served import ServedEngine

        whole = policy.model.dtype in (torch.float32, torch.float64)
        handed = TokenServers(urls=(URL,), weights="handed", tolerance=0.02 if whole else 0.3)
        own = own_server(policy, slots=slots, capacity=capacity)
        return ServedEngine(policy, sampling, handed, slots=slots, capacity=capacity, own=own)
    if chosen == "transformers":
        from polyturn.agents.transformer.engines.continuous import ContinuousEngine

        return ContinuousEngine(policy, sampling, slots=slots, capacity=capacity)
    return ExactEngine(policy.model, policy.chat.stop_ids, sampling, slots=slots, capacity=capacity)
