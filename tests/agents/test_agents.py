"""Agents without a model, and the transformer agent's tokens across turns."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyturn.agents.agent import Action, Agent, ContextFull, Episode, HumanAgent, RandomAgent, ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.trajectory import Trajectory, Turn

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


def policy(seed: int = 0, **options: Any) -> Policy:
    return tiny_policy(WORDS, seed=seed, **{"vocab_size": 280, "hidden": 32, "layers": 2, "heads": 2, **options})


def episode(observation: str = "hello", turns: Sequence[Turn] = (), seed: int = 0) -> Episode:
    return Episode("test", 0, "", 0, np.random.default_rng(seed), observation, list(turns))


class Chatter(gymnasium.Env[str, str]):
    """Says something new each turn, of a length that varies, and never looks at the answer."""

    def __init__(self, turns: int = 4) -> None:
        self.turns, self.said = turns, 0
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.said = 0
        return self._say(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said += 1
        return self._say(), 0.0, self.said == self.turns, False, {}

    def _say(self) -> str:
        return "the cat " * int(self.np_random.integers(1, 6))


def test_scripted_agents_repeat_their_last_line_or_ask_a_function() -> None:
    agent = ScriptedAgent(["a", "b"])
    turn = Turn("", "")
    assert [agent.act(episode(turns=[turn] * n)) for n in range(4)] == ["a", "b", "b", "b"]
    assert ScriptedAgent(lambda e: e.observation.upper()).act(episode("hi")) == "HI"
    with pytest.raises(ValueError, match="at least one action"):
        ScriptedAgent([])
    assert isinstance(agent, Agent)


def test_random_agents_draw_only_from_the_episodes_generator() -> None:
    for agent in (RandomAgent(), RandomAgent(["x", "y", "z"])):
        said = [agent.act(episode(seed=seed)) for seed in range(20)]
        assert said == [agent.act(episode(seed=seed)) for seed in range(20)]
        assert len(set(said)) > 2
    with pytest.raises(ValueError, match="at least one action"):
        RandomAgent([])


def test_a_person_sees_control_characters_as_escapes_and_leaves_with_the_end_of_input() -> None:
    screen = io.StringIO()
    agent = HumanAgent(io.StringIO("\nfirst\nline\n\nsecond\n"), screen)
    assert agent.act(episode("\x1b[2Jdanger\u202e\n\tok")) == "first\nline"
    assert agent.act(episode("next")) == "second"
    assert "\x1b" not in screen.getvalue()
    assert "\\u001b[2Jdanger\\u202e\n\tok" in screen.getvalue()
    with pytest.raises(KeyboardInterrupt, match="end of input"):
        agent.act(episode("again"))


@pytest.mark.parametrize("limit", [3, 40])
def test_a_turn_appends_what_is_new_and_the_model_read_exactly_the_trajectory(limit: int) -> None:
    """With actions cut by their limit and with actions that ended: scoring the whole trajectory gives its log-probs."""
    actor = policy()
    with torch.no_grad():  # likely enough to stop that both ends occur
        actor.model.get_output_embeddings().weight[actor.chat.end_id] *= 3
    agent = TransformerAgent(actor, sampling=Sampling(max_new_tokens=limit), max_tokens=600, slots=4)
    runs = [m for group in collect(agent, Chatter, groups=3, group_size=2, progress=False) for m in group]
    cut = {len(t.action_ids) == limit and t.action_ids[-1] != actor.chat.end_id for r in runs for t in r.turns}
    assert (limit == 3) in cut
    for run in runs:
        assert run.valid
        ids, owner = run.tokens
        scored = actor.logps(torch.from_numpy(ids[None]).long(), torch.ones(1, len(ids), dtype=torch.bool))[0]
        sampled = np.concatenate([turn.logps for turn in run.turns])
        assert np.abs(scored.detach().numpy()[owner >= 0] - sampled).max() < 1e-4
        for index, turn in enumerate(run.turns):
            assert actor.chat.text(turn.action_ids) == turn.action
            before = run.turns[index - 1].action_ids if index else None
            ended = before is not None and before[-1] == actor.chat.end_id
            # The end of a turn stands there once: sampled by the agent, or else put there by the template.
            assert (turn.context_ids[0] == actor.chat.end_id) == (index > 0 and not ended)


def test_a_full_context_truncates_the_episode() -> None:
    agent = TransformerAgent(policy(), sampling=Sampling(max_new_tokens=8), max_tokens=90, slots=2)
    (group,) = collect(agent, lambda: Chatter(turns=50), progress=False)
    run = group[0]
    assert run.valid
    assert run.truncated
    assert not run.terminated
    assert run.info["truncated_by"] == "context"
    assert "the limit is 90" in run.info["context"]
    assert 1 <= len(run.tokens[0]) <= 90
    (empty,) = collect(TransformerAgent(policy(), max_tokens=8, slots=1), Chatter, progress=False)
    assert empty[0].truncated
    assert empty[0].turns == ()


def test_a_stop_text_ends_an_action_with_the_token_that_completes_it() -> None:
    """A text out of an unhindered action, over a token's border where there is one: the same tokens up to there, with
    the same log-probabilities, and the episode goes on."""
    actor = policy()
    free = TransformerAgent(actor, sampling=Sampling(max_new_tokens=24), max_tokens=600, slots=1)
    (group,) = collect(free, lambda: Chatter(turns=2), seed=3, progress=False)
    first = group[0].turns[0]
    text = first.action[3:6]
    assert len(text) == 3
    stopping = TransformerAgent(actor, sampling=Sampling(max_new_tokens=24, stop=("\0", text)), max_tokens=600, slots=1)
    assert stopping.name != free.name
    (group,) = collect(stopping, lambda: Chatter(turns=2), seed=3, progress=False)
    short = group[0].turns[0]
    assert text in short.action
    assert text not in actor.chat.text(short.action_ids[:-1])
    assert first.action_ids[: len(short.action_ids)].tolist() == short.action_ids.tolist()
    assert first.logps[: len(short.logps)].tobytes() == short.logps.tobytes()
    assert len(group[0].turns) == 2


def test_an_episode_ends_where_its_budget_does() -> None:
    """10 tokens, at most 4 a turn, none of which ends early: turns of 4, 4 and 2, then the episode is cut."""
    actor = policy()
    object.__setattr__(actor.chat, "stop_ids", frozenset())
    sampling = Sampling(max_new_tokens=4, max_episode_tokens=10)
    (group,) = collect(
        TransformerAgent(actor, sampling=sampling, max_tokens=600, slots=1), lambda: Chatter(turns=9), progress=False
    )
    assert [len(turn.action_ids) for turn in group[0].turns] == [4, 4, 2]
    assert group[0].truncated
    assert "the budget is 10" in group[0].info["context"]


def test_an_episode_begun_by_another_is_read_from_its_start() -> None:
    """The same turns, whether the engine read them as they came or all at once: the same tokens come next."""
    actor = policy()
    agent = TransformerAgent(actor, sampling=Sampling(max_new_tokens=6), slots=2)
    (group,) = collect(agent, Chatter, progress=False)
    run = group[0]
    last = run.turns[-1]
    begun = episode(last.observation, run.turns[:-1])
    begun.rng = np.random.Generator(np.random.Philox(0))
    fresh = asyncio.run(_act(agent, begun))
    assert np.array_equal(fresh.context_ids, last.context_ids)
    ids = np.concatenate(
        [*(p for t in run.turns[:-1] for p in (t.context_ids, t.action_ids)), fresh.context_ids, fresh.action_ids]
    )
    scored = actor.logps(torch.from_numpy(ids[None]).long(), torch.ones(1, len(ids), dtype=torch.bool))[0].detach()
    assert np.abs(scored.numpy()[-len(fresh.action_ids) :] - fresh.logps).max() < 1e-4
    written = actor.chat.written(Trajectory("e", 0, (Turn("hello", "yes"),), terminated=True))
    assert len(asyncio.run(_act(agent, episode("go on", written.turns))).action_ids)
    with pytest.raises(ValueError, match="turns have tokens"):
        asyncio.run(_act(agent, episode("go on", [Turn("hello", "yes")])))


def test_every_slot_is_free_again_after_episodes_that_fail() -> None:
    agent = TransformerAgent(policy(), sampling=Sampling(max_new_tokens=4), max_tokens=60, slots=2)
    for _ in range(3):
        with pytest.raises(ValueError, match="turns have tokens"):
            asyncio.run(_act(agent, episode("go on", [Turn("hello", "yes")])))
    with pytest.raises(ContextFull, match="the limit is 60"):
        asyncio.run(_act(agent, episode("the cat " * 40)))
    assert len(asyncio.run(_act(agent, episode())).action_ids) > 0
    assert agent._slots == {}


def test_a_name_says_how_it_samples_so_that_stores_are_not_mixed() -> None:
    greedy = TransformerAgent(policy(), sampling=Sampling(temperature=0), slots=1)
    assert greedy.name == "LlamaForCausalLM(temperature=0, top_p=1, max_new_tokens=512, max_tokens=1024)"
    assert greedy.version == "random"


async def _act(agent: TransformerAgent, running: Episode) -> Action:
    try:
        return await agent.act(running)
    finally:
        agent.release(running)
