"""Floor 2: who acts, and how trajectories are collected.

The names below are loaded when first used, so that importing this package does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyturn.agents.agent import (
        Action,
        Agent,
        AgentFailed,
        ContextFull,
        Episode,
        HumanAgent,
        RandomAgent,
        ScriptedAgent,
    )
    from polyturn.agents.api import BadAnswer, ServerAgent, ServerChooser, ServerError, ServerRefused, ServerUnreachable
    from polyturn.agents.choosing import PolicyChooser
    from polyturn.agents.collecting import CollectError, collect
    from polyturn.agents.demonstrator import Demonstrator, Habits
    from polyturn.agents.generation import GenerationError, Sampling
    from polyturn.agents.gold import GoldAgent
    from polyturn.agents.judging import PromptedJudge, agent_judge, human_judge
    from polyturn.agents.mixture import MixtureAgent
    from polyturn.agents.policy import Policy, PolicyLoadError
    from polyturn.agents.roles import AgentPartner, other_side, other_sides
    from polyturn.agents.sellers import ScriptedSeller, SellingHabits
    from polyturn.agents.tabular import TabularPolicy, mlp_policy, table_policy
    from polyturn.agents.teachers import ScriptedTeacher, TeachingHabits
    from polyturn.agents.tiny import tiny_policy
    from polyturn.agents.tokens import ChatFormat, ChatTemplateError, HistoryRewrittenWarning
    from polyturn.agents.transformer import TransformerAgent

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
