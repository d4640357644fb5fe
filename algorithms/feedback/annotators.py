"""Annotators by the names that the command line knows."""

from __future__ import annotations

from typing import Any

from polyturn.envs.plugins import PluginError, named, plugins
from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.suggest import did_you_mean

KINDS = (
    "return",
    "education",
    "reward_model:FOLDER",
    "preference_model:FOLDER",
    "judge:MODEL",
    "server:MODEL",
    "module:attribute",
)
_NAMES = ("return", "education", "reward_model", "preference_model", "judge", "server")


def annotator(name: str, *, question: str | None = None) -> Annotator:
    """From a name to an annotator.

    Args:
        name: "return": by total reward. "education": the exact oracle of Education Dialogue's scripted student.
            "reward_model:FOLDER" and "preference_model:FOLDER": fitted models (`polyturn fit`). "judge:MODEL": a
            language model with a prompt, asked in both orders; "server:MODEL": one of the OpenAI-compatible
            server at OPENAI_BASE_URL. "module:attribute", or a name of the entry-point group "polyturn.preferences":
            your own.
        question: What a "judge" or "server" is asked to judge by.

    Raises:
        ValueError: No such kind, or a question for an annotator that takes none.
    """
    kind, _, rest = name.partition(":")
    if question is not None and kind not in ("judge", "server"):
        raise ValueError(f"expected a question only for judge:MODEL or server:MODEL, got one for {name!r}")
    if kind == "return" and not rest:
        return by_return
    if kind == "education" and not rest:
        from polyturn.envs.education.oracle import EducationOracle

        return EducationOracle()
    if kind in ("reward_model", "preference_model") and rest:
        from polyturn.algorithms.feedback.reward_models import PreferenceModel, RewardModel

        return (RewardModel if kind == "reward_model" else PreferenceModel).from_pretrained(rest)
    if kind == "judge" and rest:
        from polyturn.agents.transformer.choosing import PolicyChooser
        from polyturn.agents.transformer.policy import Policy
        from polyturn.algorithms.feedback.ai_feedback import HELPFUL, ai_feedback

        return ai_feedback(PolicyChooser(Policy.from_pretrained(rest)), question or HELPFUL)
    if kind == "server" and rest:
        from polyturn.agents.api import ServerAgent
        from polyturn.algorithms.feedback.ai_feedback import HELPFUL, ai_feedback

        return ai_feedback(ServerAgent(rest, temperature=0.0, max_tokens=16), question or HELPFUL)
    if (rest and kind not in _NAMES) or name in plugins("polyturn.preferences"):
        return _own(name)
    raise ValueError(f"expected an annotator out of {', '.join(KINDS)}, got {name!r}.{did_you_mean(kind, _NAMES)}")


def _own(name: str) -> Annotator:
    try:
        found: Any = named(name, "polyturn.preferences", "a preference")
    except PluginError as error:
        raise PluginError(f"{error}{did_you_mean(name.partition(':')[0], _NAMES)}") from error
    made = found() if isinstance(found, type) else found
    if not callable(made):
        raise ValueError(f"expected a function of a group at {name}, got {type(made).__name__}")
    annotate: Annotator = made
    return annotate
