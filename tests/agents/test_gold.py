"""The gold agent and the demonstrator: environment, tool and grading agree with the data sets' own solutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.agents.agent import Episode
from polyturn.agents.collecting.collect import collect
from polyturn.agents.scripted.demonstrator import Demonstrator, Habits
from polyturn.agents.scripted.gold import GoldAgent
from polyturn.envs.tool_math.problems import Problem, Problems, load_problems
from polyturn.envs.trajectory import Trajectory

DATA = next((p / "shared" / "data" for p in Path(__file__).resolve().parents if (p / "shared" / "data").is_dir()), None)
NEVER = {"in_the_head": 0.0, "slip": 0.0, "no_print": 0.0, "wrong_name": 0.0, "misread": 0.0, "repair": 1.0}


def run(agent: Any, problems: Problems, *, sandbox: str = "local", seed: int = 0) -> list[Trajectory]:
    groups = collect(
        agent,
        "polyturn/ToolMath-v0",
        tasks=range(len(problems)),
        seed=seed,
        env_options={"problems": problems, "sandbox": sandbox},
        progress=False,
    )
    return [member for group in groups for member in group]


@pytest.mark.parametrize("sandbox", ["local", pytest.param("docker", marks=pytest.mark.docker)])
@pytest.mark.parametrize("level", [1, 3])
def test_generated_problems_are_solved_by_their_programs(sandbox: str, level: int) -> None:
    runs = run(GoldAgent(problems := load_problems(f"generated:{level}:12")), problems, sandbox=sandbox)
    assert [member.total_reward for member in runs] == [1.0] * 12
    assert all(len(member.turns) == 2 and not member.turns[0].info["tool_error"] for member in runs)


@pytest.mark.skipif(DATA is None, reason="GSM8K and MATH are not here")
@pytest.mark.parametrize("name", ["gsm8k_test_a", "gsm8k_train", "math_test_a"])
def test_gold_solutions_of_published_data_grade_right(name: str) -> None:
    """A sample spread over the file; the whole files: polyturn rollout polyturn/ToolMath-v0 --agent gold --problems."""
    assert DATA is not None
    problems = load_problems(DATA / f"{name}.jsonl")
    sample = problems[:: len(problems) // 60]
    runs = run(GoldAgent(problems), sample)
    missed = [member.task_id for member in runs if not member.valid or member.total_reward < 1]
    assert not missed
    if name.startswith("gsm8k"):
        assert np.mean([len(member.turns) == 2 for member in runs]) > 0.9


def test_a_gold_answer_without_a_program_is_boxed_at_once() -> None:
    problems = Problems([Problem("m/0", "Which points?", "(0,1)", "Look at the \\boxed{(0,1)}.")])
    (member,) = run(GoldAgent(problems), problems)
    assert member.total_reward == 1.0
    assert len(member.turns) == 1


def test_a_tool_that_says_nothing_is_no_answer() -> None:
    """The gold agent boxes what the tool printed, so a broken tool cannot grade right."""
    problems = load_problems("generated:2:1")
    episode = Episode("E", 0, problems[0].id, 0, np.random.default_rng(0), "q")
    agent = GoldAgent(problems)
    assert agent.act(episode).startswith("```python\n")
    episode.turns.append(object())  # type: ignore[arg-type]
    for said in ("```output\n\n```", "nothing", "```output\n7\n```\nmore"):
        episode.observation = said
        assert "\\boxed{}" in agent.act(episode)
    episode.observation = "```output\n 17 \n```"
    assert "\\boxed{17}" in agent.act(episode)


def test_a_careful_demonstrator_is_always_right_and_a_hurried_one_is_not() -> None:
    problems = load_problems("generated:2:40")
    careful = run(Demonstrator(problems, Habits(**NEVER)), problems)
    assert all(member.total_reward == 1.0 and len(member.turns) == 2 for member in careful)
    hurried = run(Demonstrator(problems), problems)
    share = np.mean([member.total_reward for member in hurried])
    assert 0.1 < share < 0.7
    assert run(Demonstrator(problems), problems) == hurried
    assert run(Demonstrator(problems), problems, seed=1) != hurried


@pytest.mark.parametrize(
    ("habit", "expected"),
    [
        ({"in_the_head": 1.0, "head_right": 1.0}, 1.0),
        ({"in_the_head": 1.0, "head_right": 0.0}, 0.0),
        ({"no_print": 1.0}, 1.0),
        ({"wrong_name": 1.0}, 1.0),
        ({"wrong_name": 1.0, "repair": 0.0}, 0.0),
    ],
)
def test_habits_do_what_they_say(habit: dict[str, float], expected: float) -> None:
    """A missing print or an unknown name is repaired by printing the variable, which is still there."""
    problems = load_problems("generated:2:10")
    runs = run(Demonstrator(problems, Habits(**{**NEVER, **habit})), problems)
    assert [member.total_reward for member in runs] == [expected] * 10
    errors = [any(turn.info["tool_error"] for turn in member.turns) for member in runs]
    assert errors == ["wrong_name" in habit] * 10
