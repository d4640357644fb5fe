"""Environments as classes for TRL's `environment_factory`, without TRL; with it in tests/envs/peers/test_trl.py."""

from __future__ import annotations

import inspect

import pytest
from transformers.utils import get_json_schema

from polyturn.envs import EnvOptionError, ToolEnv, as_trl, make
from polyturn.envs.adapters.trl import OVER


def test_an_episode_is_the_environments_own() -> None:
    theirs, ours = as_trl("polyturn/Guess-v0", high=10)(), make("polyturn/Guess-v0", high=10)
    observation, info = ours.reset(seed=3)
    number = info["task_id"].rpartition("-")[2]
    for _ in range(2):  # instances are used again
        assert theirs.reset(prompt=[], seed=3) == observation
        wrong = "1" if number != "1" else "2"
        ours.reset(seed=3)
        assert theirs.act(wrong) == ours.step(wrong)[0]
        assert theirs.get_reward() == 0.0
        assert theirs.act(number).endswith(OVER)
        assert theirs.act(wrong) == OVER
        assert theirs.get_reward() == 1.0


def test_its_one_tool_has_a_schema_and_nothing_else_is_public() -> None:
    made = as_trl("polyturn/Guess-v0")
    public = [name for name, _ in inspect.getmembers(made, inspect.isfunction) if not name.startswith("_")]
    assert public == ["act", "get_reward", "reset"]
    schema = get_json_schema(made().act)["function"]
    assert schema["name"] == "act"
    assert schema["parameters"]["required"] == ["message"]


def test_rows_without_a_seed_and_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match='expected a column "seed" in the data set, got prompt'):
        as_trl("polyturn/Guess-v0")().reset(prompt=[])
    with pytest.raises(EnvOptionError, match="hi"):
        as_trl("polyturn/Guess-v0", hi=3)


def test_a_failure_outside_is_no_reward() -> None:
    theirs = as_trl("polyturn/Guess-v0")()
    theirs.reset(seed=0)
    theirs._env.step = None
    with pytest.raises(TypeError):
        theirs.act("1")
    assert theirs.get_reward() is None
    theirs.reset(seed=0)
    assert theirs.get_reward() == 0.0


class Parts:
    def reset(self, **row: object) -> list[dict[str, str]]:
        return [{"type": row["kind"], "text": "Begin."}]  # type: ignore[dict-item]

    def do(self) -> str:
        """Does it."""
        return "done"

    async def get_reward(self) -> float:
        return 1.0


def test_parts_of_text_and_rewards_that_must_be_awaited() -> None:
    env = ToolEnv([{"prompt": "p", "kind": "text"}], Parts, "environment")
    assert env.reset(seed=0)[0].endswith("Begin.")
    assert env.step("over")[1] == 1.0
    with pytest.raises(TypeError, match='parts of type "text", got image'):
        ToolEnv([{"prompt": "p", "kind": "image"}], Parts, "environment").reset(seed=0)
