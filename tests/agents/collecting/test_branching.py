"""Branching: a group shares its first k turns to the bit, parts there, and everything still follows from the seed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyturn.agents.agent import ContextFull, Episode, RandomAgent, ScriptedAgent
from polyturn.agents.collecting.collect import CollectError, collect
from polyturn.agents.collecting.playing import prefix_rng
from polyturn.agents.collecting.roles import AgentPartner, other_sides
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.envs.education.env import EducationDialogue
from polyturn.envs.education.teacher import WAYS, lesson
from polyturn.envs.education.topics import BY_ID
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import Store, read, read_groups
from polyturn.envs.trajectory import Group, Trajectory, group_by_start

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20
EDUCATION = "polyturn/EducationDialogue-v0"


class Diary(gymnasium.Env[str, str]):
    """Five turns; says what was written so far, which is all its state. Waits in threads if `blocking`."""

    def __init__(self, blocking: bool = False, turns: int = 5) -> None:
        self.blocking, self.turns = blocking, turns
        self.observation_space = self.action_space = UnicodeText()
        self.pages: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.pages = [f"start {int(self.np_random.integers(100))}"]
        return self.pages[0], {"task_id": "diary", "first": self.pages[0]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.pages.append(action[:8])
        return " ".join(self.pages), float(len(action) % 5), len(self.pages) > self.turns, False, {"last": action[:3]}

    def snapshot(self) -> dict[str, Any]:
        return {"pages": self.pages}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.pages = snapshot["pages"]  # writes into what it was given, as an environment may


def words(episode: Episode) -> str:
    return " ".join(str(n) for n in episode.rng.integers(1000, size=3))


def model_agent(seed: int = 0, words: list[str] = WORDS) -> TransformerAgent:
    policy = tiny_policy(words, seed=seed, vocab_size=280, hidden=32, layers=2, heads=2, version=f"weights-{seed}")
    return TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=400, slots=4)


def tokens(turns: Any) -> list[tuple[bytes, bytes, bytes]]:
    return [(turn.context_ids.tobytes(), turn.action_ids.tobytes(), turn.logps.tobytes()) for turn in turns]


def test_members_share_the_prefix_to_the_last_bit_and_then_part() -> None:
    groups = collect(model_agent(), Diary, groups=3, group_size=4, seed=5, branch_at=2, progress=False)
    for group in groups:
        assert group.branched_at == 2
        assert all(member.valid and len(member.turns) == 5 for member in group)
        assert all(member.turns[:2] == group[0].turns[:2] for member in group)
        assert {tuple(tokens(member.turns[:2])) for member in group} == {tuple(tokens(group[0].turns[:2]))}
        assert len({member.turns[2].action for member in group}) == 4
        assert {member.turns[2].observation for member in group} == {group[0].turns[2].observation}
        assert group[0].turns[2].observation.split()[:2] == group[0].info["first"].split()
    assert len({group[0].turns[0].action for group in groups}) == 3


def test_what_is_sampled_after_the_branch_was_sampled_in_the_whole_context() -> None:
    """Scoring a member's tokens from the very start gives the recorded log-probs, before and after the branch."""
    agent = model_agent()
    (group,) = collect(agent, Diary, group_size=3, branch_at=2, progress=False)
    for member in group:
        ids, owner = member.tokens
        batch = torch.as_tensor(ids, dtype=torch.long)[None]
        with torch.no_grad():
            scored = agent.policy.logps(batch, torch.ones_like(batch, dtype=torch.bool))[0].numpy()
        recorded = np.concatenate([turn.logps for turn in member.turns])
        np.testing.assert_allclose(scored[owner >= 0], recorded, atol=1e-4)


@pytest.mark.parametrize("blocking", [False, True])
def test_concurrency_changes_nothing(blocking: bool) -> None:
    def run(concurrency: int) -> list[Group]:
        return collect(
            model_agent(),
            lambda: Diary(blocking),
            groups=4,
            group_size=3,
            seed=1,
            branch_at=lambda group: group,
            concurrency=concurrency,
            progress=False,
        )

    expected = run(1)
    assert [group.branched_at for group in expected] == [0, 1, 2, 3]
    for concurrency in (3, 64):
        assert run(concurrency) == expected


def test_the_random_numbers_of_prefix_and_members_are_their_own() -> None:
    (group,) = collect(ScriptedAgent(words), Diary, group_size=2, seed=7, branch_at=1, progress=False)
    assert group[0].turns[0].action == " ".join(str(n) for n in prefix_rng(7, 0).integers(1000, size=3))
    (plain,) = collect(ScriptedAgent(words), Diary, group_size=2, seed=7, progress=False)
    assert [m.turns[1].action for m in group] == [m.turns[0].action for m in plain]
    assert group[0].turns[0].action not in [m.turns[0].action for m in plain]


@pytest.mark.parametrize(("asked", "parted"), [(0, 0), (4, 4), (5, 4), (99, 4)])
def test_a_shared_prefix_that_ends_before_is_left_at_its_last_turn(asked: int, parted: int) -> None:
    """Five turns: after the fifth the episode is over, so the last that can be taken anew is turn 4."""
    (group,) = collect(ScriptedAgent(words), Diary, group_size=3, branch_at=asked, progress=False)
    assert group.branched_at == parted
    assert all(len(member.turns) == 5 and member.valid for member in group)
    assert len({member.turns[parted].action for member in group}) == 3


def test_a_shared_prefix_that_fills_the_context_is_left_at_its_last_turn() -> None:
    class Forgetful:
        def act(self, episode: Episode) -> str:
            if len(episode.turns) == 2:
                raise ContextFull("two turns is all it holds")
            return words(episode)

    (group,) = collect(Forgetful(), Diary, group_size=2, branch_at=3, progress=False)
    assert group.branched_at == 1
    assert all(member.truncated and len(member.turns) == 2 for member in group)
    (at_once,) = collect([ScriptedAgent(["x"])], Diary, branch_at=3, prefix_agent=Full(), progress=False)
    assert at_once.branched_at == 0
    assert at_once[0].terminated


class Full:
    def act(self, episode: Episode) -> str:
        raise ContextFull("no room at all")


def test_another_agent_may_play_the_shared_prefix() -> None:
    """By default the first member's; each member still answers for itself afterwards."""
    a, b, root = (ScriptedAgent([name], name=name) for name in ("a", "b", "root"))
    (group,) = collect([a, b], Diary, group_size=2, branch_at=2, progress=False)
    assert [[turn.action for turn in m.turns] for m in group] == [list("aaaaa"), list("aabbb")]
    (group,) = collect([a, b], Diary, group_size=2, branch_at=2, prefix_agent=root, progress=False)
    assert [m.turns[1].action for m in group] == ["root", "root"]
    assert [m.agent for m in group] == ["a", "b"]
    assert group[0].info["shared_prefix"]["agent"] == "root"
    old, new = model_agent(seed=1), model_agent(seed=2)
    (group,) = collect([old, new], Diary, group_size=2, branch_at=1, prefix_agent=old, progress=False)
    assert [m.policy_version for m in group] == ["weights-1", "weights-2"]
    assert tokens(group[0].turns[:1]) == tokens(group[1].turns[:1])


def test_what_cannot_branch_is_said_once_and_before_any_work() -> None:
    began: list[str] = []

    class NoSnapshot(gymnasium.Env[str, str]):
        def reset(self, **given: Any) -> tuple[str, dict[str, Any]]:
            began.append("reset")
            return "", {}

    with pytest.raises(ValueError, match=r"NoSnapshot without snapshot and restore; add them"):
        collect(ScriptedAgent(["x"]), NoSnapshot, groups=9, branch_at=1, progress=False)
    assert began == []

    class Noisy(Diary):
        takes_noise = True

    with pytest.raises(ValueError, match="Noisy without renew_noise"):
        collect(ScriptedAgent(["x"]), Noisy, branch_at=1, progress=False)
    assert collect(ScriptedAgent(["x"]), Noisy, branch_at=1, same_noise=True, progress=False)[0].valid
    wrongs: list[Any] = [-1, 1.5, True, "2"]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="0 or more, got"):
            collect(ScriptedAgent(["x"]), Diary, branch_at=wrong, progress=False)
    with pytest.raises(ValueError, match="branch_at to go with prefix_agent"):
        collect(ScriptedAgent(["x"]), Diary, prefix_agent=ScriptedAgent(["y"]), progress=False)
    foreign = model_agent(words=["zzz yyy xxx qqq " * 9])
    with pytest.raises(ValueError, match="share one tokenizer"):
        collect([model_agent(), foreign], Diary, group_size=2, branch_at=1, progress=False)


def test_a_shared_prefix_that_fails_twice_takes_its_group_and_no_other() -> None:
    tries: list[int] = []

    def act(episode: Episode) -> str:
        if episode.observation.startswith(first) and len(episode.turns) == 1:
            tries.append(1)
            raise ConnectionError("down")
        return words(episode)

    first = collect(ScriptedAgent(words), Diary, seed=3, progress=False)[0][0].turns[0].observation
    groups = collect(ScriptedAgent(act), Diary, groups=3, group_size=3, seed=3, branch_at=2, progress=False)
    assert [m.error for m in groups[0]] == ["ConnectionError: down"] * 3
    assert len(tries) == 2
    assert groups[0].branched_at is None
    assert [group.branched_at for group in groups[1:]] == [2, 2]
    with pytest.raises(CollectError, match="ConnectionError: down"):
        collect(ScriptedAgent(act), Diary, groups=1, group_size=3, seed=3, branch_at=2, progress=False)


def test_a_member_that_fails_after_the_branch_starts_from_it_again() -> None:
    failed: list[int] = []

    def act(episode: Episode) -> str:
        if episode.member == 1 and len(episode.turns) == 3 and not failed:
            failed.append(1)
            raise ConnectionError("down")
        return words(episode)

    (group,) = collect(ScriptedAgent(act), Diary, group_size=3, branch_at=2, progress=False)
    assert failed
    assert [group] == collect(ScriptedAgent(words), Diary, group_size=3, branch_at=2, progress=False)


def test_a_killed_collection_goes_on_from_the_same_prefixes(tmp_path: Path) -> None:
    """Seven of 24 episodes were stored: two groups and one member of the third, whose shared prefix is not played
    again."""
    cut = tmp_path / "cut.jsonl"
    expected, _ = _run(None)
    child = subprocess.run([sys.executable, __file__, str(cut)], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert len(list(read(cut))) == 7
    with Store(cut) as store:
        again, prefixes = _run(store)
    assert again == expected
    assert prefixes == 8 - 3
    assert len(list(read(cut))) == 24
    assert sorted(map(_key, read_groups(cut))) == sorted(map(_key, expected))


def test_a_store_keeps_branched_and_other_groups_apart(tmp_path: Path) -> None:
    with Store(tmp_path / "s.jsonl") as store:

        def run(**options: Any) -> int:
            before = len(list(read(store.path)))
            collect(ScriptedAgent(words), Diary, group_size=2, store=store, progress=False, **options)
            return len(list(read(store.path))) - before

        assert run() == 2
        assert run(branch_at=2) == 2
        assert run(branch_at=3) == 2
        assert run(branch_at=2) == run() == 0
        assert run(branch_at=2, prefix_agent=ScriptedAgent(["x"], name="x")) == 2
    kept = list(read_groups(store.path))
    assert [group.branched_at for group in kept] == [None, 2, 2, 3]
    assert group_by_start(read(store.path)) == kept
    assert all(len(group) == 2 for group in kept)


def teach(episode: Episode) -> str:
    """A sound lesson in which nothing is random."""
    turn = len(episode.turns)
    topic = BY_ID[episode.task_id]
    return lesson([WAYS[turn % len(WAYS)]], topic, turn // 2 % len(topic.concepts), np.random.default_rng(turn))


def outcomes(group: Group) -> set[str]:
    return {str(member.info["outcome"]) for member in group}


def test_members_have_luck_of_their_own_from_the_identical_start() -> None:
    """The teacher says the same to all: only the student's noise can differ. Member 0 has the seed's own."""
    teacher = ScriptedAgent(teach)

    def run(**options: Any) -> Group:
        (group,) = collect(teacher, EDUCATION, group_size=6, progress=False, **options)
        assert all(m.turns[: group.branched_at or 0] == group[0].turns[: group.branched_at or 0] for m in group)
        assert len({m.turns[0].observation for m in group}) == 1
        return group

    assert len(outcomes(run())) == 6
    assert len(outcomes(run(branch_at=3))) == 6
    assert len(outcomes(run(same_noise=True))) == len(outcomes(run(branch_at=3, same_noise=True))) == 1
    (alone,) = collect(teacher, EDUCATION, progress=False)
    assert alone[0].turns == run()[0].turns == run(same_noise=True)[3].turns
    assert [m.info["noise"] for m in run()] == [0, 1, 2, 3, 4, 5]


def test_luck_is_renewed_for_the_turns_that_are_left() -> None:
    env = EducationDialogue()

    def rest(noise: int) -> list[Any]:
        _, info = env.reset(seed=4)
        topic, rng = BY_ID[info["task_id"]], np.random.default_rng(0)
        before = [env.step(lesson(WAYS[:1], topic, 0, rng)) for _ in range(2)]
        env.renew_noise(noise)
        return [before, [env.step(lesson(WAYS[1:2], topic, concept, rng)) for concept in range(3)]]

    assert rest(1) == rest(1)
    assert rest(1)[0] == rest(2)[0]
    assert rest(1)[1] != rest(2)[1]


def test_an_agent_on_the_other_side_shares_the_prefix_too() -> None:
    options = {"student": AgentPartner(RandomAgent()), "turns": 4}
    (group,) = collect(
        ScriptedAgent(["Go on."]), EDUCATION, group_size=4, branch_at=2, env_options=options, progress=False
    )
    (sides,) = other_sides([group])
    assert sides.branched_at == 2
    assert len({side.turns[2].action for side in sides}) == 4
    assert group_by_start(sides) == [sides]


def test_programs_of_the_shared_prefix_are_there_in_every_member_and_no_others() -> None:
    """x is 1 after the shared prefix; each member adds its own number to its own copy and prints that."""

    def act(episode: Episode) -> str:
        if len(episode.turns) == 0:
            return "```python\nx = 1\nprint(x)\n```"
        if len(episode.turns) == 1:
            return f"```python\nx += {10 * (episode.member + 1)}\nprint(x)\n```"
        return "```python\nprint('now', x)\n```" if len(episode.turns) == 2 else "\\boxed{1}"

    (group,) = collect(
        ScriptedAgent(act),
        "polyturn/ToolMath-v0",
        group_size=3,
        branch_at=1,
        env_options={"problems": "generated:1:4", "sandbox": "local"},
        progress=False,
    )
    assert group.branched_at == 1
    assert [m.turns[3].observation for m in group] == [f"```output\nnow {n}\n```" for n in (11, 21, 31)]


def _key(group: Group) -> tuple[int, list[Any], int | None]:
    return group[0].seed, sorted(str(member.to_json()) for member in group), group.branched_at


def _run(store: Store | None) -> tuple[list[Group], int]:
    prefixes: list[int] = []

    def act(episode: Episode) -> str:
        if not episode.turns:
            prefixes.append(1)
        return words(episode)

    found = collect(
        ScriptedAgent(act), Diary, groups=8, group_size=3, seed=3, branch_at=2, concurrency=1, store=store,
        progress=False,
    )  # fmt: skip
    return found, len(prefixes)


class _Mortal(Store):
    """Ends its process the hard way after seven trajectories."""

    def append(self, trajectory: Trajectory) -> None:
        super().append(trajectory)
        if len(list(read(self.path))) == 7:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with _Mortal(sys.argv[1]) as opened:
        _run(opened)
