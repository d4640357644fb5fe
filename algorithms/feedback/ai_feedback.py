"""Online AI feedback (arXiv 2402.04792): an annotator that is any agent with instructions, asked in both orders."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyturn.agents.agent import Agent
from polyturn.agents.judging import PromptedJudge
from polyturn.envs.preference import Judged, Pair, PairJudge
from polyturn.envs.trajectory import Group

HELPFUL = "Two assistants answered the same user. Judge which of them was more helpful, honest and to the point."


def ai_feedback(
    agent: Agent,
    instructions: str = HELPFUL,
    *,
    speakers: tuple[str, str] = ("user", "assistant"),
    **options: Any,
) -> Judged:
    """An annotator for `online`: OAIF is `train(GPO(), policy, reference, online(policy, env, preference=this))`.

    Every pair is shown in both orders and P(a beats b) is the mean of P(a, b) and 1 - P(b, a), so a liking for the
    first place cancels. "0" is a tie. An answer that is none of these leaves the pair unasked (nan), and no method
    learns from it. The instructions steer it: asked for short answers, it prefers short ones, and the policy follows.

    Args:
        agent: The judge: a transformer, an API's model, anything with `act`; or with `choice_logps`, as
            `polyturn.agents.transformer.choosing.PolicyChooser` has, whose probabilities then make soft labels.
        instructions: What to judge by.
        speakers: What the environment's and the agent's turns are called in the prompt.
        options: Further arguments of `polyturn.agents.judging.PromptedJudge`: concurrency, retries, seed.
    """
    return Judged(PromptedJudge(agent, instructions, speakers=speakers, **options))


def position_bias(judge: PairJudge, groups: Sequence[Group]) -> float:
    """How much likelier a judge finds the conversation that is shown first: the mean of P(a, b) + P(b, a) - 1, in [-1,
    1].

    0 is a judge without bias (or with none on average), 1 one that always says the first. Averaging both orders, as
    `ai_feedback` does, removes it from the preference but not the information it cost.

    Args:
        judge: For example `ai_feedback(agent).judge`.
        groups: Every pair of valid members is asked about, in both orders.

    Raises:
        ValueError: No pair was answered in both orders.
    """
    pairs: list[Pair] = []
    for group in groups:
        pairs += itertools.permutations([member for member in group if member.valid], 2)
    answers = dict(zip(((id(a), id(b)) for a, b in pairs), judge(pairs), strict=True)) if pairs else {}
    sums = [answers[id(a), id(b)] + answers[id(b), id(a)] - 1.0 for a, b in pairs]
    known = [value for value in sums if not math.isnan(value)]
    if not known:
        raise ValueError("position_bias: expected pairs answered in both orders, got none")
    return float(np.mean(known))
