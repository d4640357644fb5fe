"""Floor 2: who acts, and how trajectories are collected.

The names below are loaded when first used, so that importing this package does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnwise.agents.agent import (
        Action,
        Agent,
        AgentFailed,
        ContextFull,
        Episode,
        HumanAgent,
        RandomAgent,
        ScriptedAgent,
    )
    from turnwise.agents.api import BadAnswer, ServerAgent, ServerChooser, ServerError, ServerRefused, ServerUnreachable
    from turnwise.agents.choosing import PolicyChooser
    from turnwise.agents.collecting import CollectError, collect
    from turnwise.agents.demonstrator import Demonstrator, Habits
    from turnwise.agents.generation import GenerationError, Sampling
    from turnwise.agents.gold import GoldAgent
    from turnwise.agents.judging import PromptedJudge, agent_judge, human_judge
    from turnwise.agents.mixture import MixtureAgent
    from turnwise.agents.policy import Policy, PolicyLoadError
    from turnwise.agents.roles import AgentPartner, other_side, other_sides
    from turnwise.agents.sellers import ScriptedSeller, SellingHabits
    from turnwise.agents.tabular import TabularPolicy, mlp_policy, table_policy
    from turnwise.agents.teachers import ScriptedTeacher, TeachingHabits
    from turnwise.agents.tiny import tiny_policy
    from turnwise.agents.tokens import ChatFormat, ChatTemplateError, HistoryRewrittenWarning
    from turnwise.agents.transformer import TransformerAgent

_HOME = {
    "agent": ("Action", "Agent", "AgentFailed", "ContextFull", "Episode", "HumanAgent", "RandomAgent", "ScriptedAgent"),
    "api": ("BadAnswer", "ServerAgent", "ServerChooser", "ServerError", "ServerRefused", "ServerUnreachable"),
    "choosing": ("PolicyChooser",),
    "collecting": ("CollectError", "collect"),
    "demonstrator": ("Demonstrator", "Habits"),
    "generation": ("GenerationError", "Sampling"),
    "gold": ("GoldAgent",),
    "judging": ("PromptedJudge", "agent_judge", "human_judge"),
    "mixture": ("MixtureAgent",),
    "policy": ("Policy", "PolicyLoadError"),
    "roles": ("AgentPartner", "other_side", "other_sides"),
    "sellers": ("ScriptedSeller", "SellingHabits"),
    "tabular": ("TabularPolicy", "mlp_policy", "table_policy"),
    "teachers": ("ScriptedTeacher", "TeachingHabits"),
    "tiny": ("tiny_policy",),
    "tokens": ("ChatFormat", "ChatTemplateError", "HistoryRewrittenWarning"),
    "transformer": ("TransformerAgent",),
}

__all__ = [
    "Action",
    "Agent",
    "AgentFailed",
    "AgentPartner",
    "BadAnswer",
    "ChatFormat",
    "ChatTemplateError",
    "CollectError",
    "ContextFull",
    "Demonstrator",
    "Episode",
    "GenerationError",
    "GoldAgent",
    "Habits",
    "HistoryRewrittenWarning",
    "HumanAgent",
    "MixtureAgent",
    "Policy",
    "PolicyChooser",
    "PolicyLoadError",
    "PromptedJudge",
    "RandomAgent",
    "Sampling",
    "ScriptedAgent",
    "ScriptedSeller",
    "ScriptedTeacher",
    "SellingHabits",
    "ServerAgent",
    "ServerChooser",
    "ServerError",
    "ServerRefused",
    "ServerUnreachable",
    "TabularPolicy",
    "TeachingHabits",
    "TransformerAgent",
    "agent_judge",
    "collect",
    "human_judge",
    "mlp_policy",
    "other_side",
    "other_sides",
    "table_policy",
    "tiny_policy",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
