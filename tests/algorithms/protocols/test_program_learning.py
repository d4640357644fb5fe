"""A policy inside an agent program improves by preferences over whole runs, whose history the program rewrites."""

from __future__ import annotations

import httpx2
import numpy as np
import pytest

from polyturn.agents import (
    AgentProgram,
    CollectOptions,
    Endpoint,
    ProgramOutcome,
    Sampling,
    TransformerAgent,
    tiny_policy,
)
from polyturn.agents.serving.programs import Task
from polyturn.algorithms import MDPO, METHODS, ActorCritic, AnnotatedGroup, TrainOptions, online, train
from polyturn.envs import by_score


async def harness(task: Task, endpoint: Endpoint) -> str:
    """Asks, then lets a second conversation, with a system message, continue a summary of the first."""
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {endpoint.api_key}"}, timeout=60) as http:

        async def ask(*messages: tuple[str, str]) -> str:
            body = {"messages": [{"role": role, "content": text} for role, text in messages]}
            answer = (await http.post(f"{endpoint.base_url}/chat/completions", json=body)).json()
            return str(answer["choices"][0]["message"]["content"])

        first = await ask(("user", task["say"]))
        return first + await ask(("system", "go on"), ("user", first[:4]))


def letters(outcome: ProgramOutcome) -> float:
    return float(np.mean([character in "aeiou" for character in outcome.result] or [0.0]))


def test_a_policy_learns_what_a_program_scores() -> None:
    policy = tiny_policy([], seed=0, vocab_size=259, hidden=32, layers=1, heads=2, context=128)
    reference = policy.copy(version="reference")
    program = AgentProgram(harness, [{"say": "a"}, {"say": "b"}], letters)
    options = CollectOptions(groups=4, group_size=8, sampling=Sampling(max_new_tokens=6), max_tokens=100, slots=32)
    source = online(policy, program, collect=options, seed=1)
    trained = train(
        MDPO(beta=0.05, pairs_per_group=None),
        policy,
        reference,
        source,
        steps=20,
        options=TrainOptions(lr=0.01, clip=1.0),
        progress=False,
    )
    returns = [entry["sample/return"] for entry in trained.history]
    start, end = float(np.mean(returns[:3])), float(np.mean(returns[-3:]))
    assert start < 0.1
    assert end > start + 0.2, f"{start:.3f} to {end:.3f}"
    agent = TransformerAgent(policy, sampling=options.sampling, max_tokens=100, slots=8)
    (group,) = program.collect([agent] * 8, groups=1, progress=False)
    assert {len(member.segments) for member in group} == {2}


@pytest.mark.parametrize("name", ["mdpo", "mkto", "mtpo", "rloo", "grpo", "sft"])
def test_methods_train_on_runs_of_several_segments_unchanged(name: str) -> None:
    """Preferences, thumbs, values over turns, advantages with the log-probabilities as sampled, imitation."""
    policy = tiny_policy([], seed=0, vocab_size=259, hidden=16, layers=1, heads=2, context=128)
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=100, slots=8)
    program = AgentProgram(harness, [{"say": "a"}, {"say": "b"}], letters)
    groups = program.collect([agent] * 4, seed=3, progress=False)
    scores = [np.arange(4.0)] * 2
    source = [
        [AnnotatedGroup(g, by_score(s), (0, place)) for place, (g, s) in enumerate(zip(groups, scores, strict=True))]
    ]
    method = METHODS[name]()
    before = {key: value.detach().clone() for key, value in policy.model.named_parameters()}
    trained = ActorCritic(policy) if method.needs.values else policy
    reference = policy.copy(version="reference")
    train(method, trained, reference, source, steps=1, options=TrainOptions(lr=0.01), progress=False)
    changed = max(float((value.detach() - before[key]).abs().max()) for key, value in policy.model.named_parameters())
    assert 0 < changed < 1
