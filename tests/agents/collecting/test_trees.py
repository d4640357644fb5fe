"""Trees: one episode is played through, others part from it at each of its turns, and pairs are about one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.agents.agent import Episode, ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.envs.preference import AtBranches, by_return
from polyturn.envs.store import Store, read, read_groups
from polyturn.envs.tools.env import ToolEnv
from polyturn.envs.trajectory import Group, GroupError

TASKS = [{"question": "Bring the total to 4.", "id": "four"}, {"question": "Bring the total to 5.", "id": "five"}]


class Total:
    """A counter that an agent brings to a number."""

    def reset(self, **task: Any) -> None:
        self.total, self.wanted = 0, 4 if task["id"] == "four" else 5

    def add(self, by: int) -> int:
        """Adds."""
        self.total += by
        return self.total

    def get_reward(self) -> float:
        return float(self.total == self.wanted)


def env() -> ToolEnv:
    return ToolEnv(TASKS, Total, "environment", calls="fenced", max_turns=6)


def act(episode: Episode) -> str:
    """Adds 1 or 2 by chance, three times."""
    if len(episode.turns) == 3:
        return "done"
    return f'```add\n{{"by": {int(episode.rng.integers(1, 3))}}}\n```'


def trees(**options: Any) -> list[Group]:
    options = {"groups": 3, "group_size": 3} | options
    return collect(ScriptedAgent(act), env, branch_at="every", progress=False, **options)


def test_a_tree_parts_at_every_turn_of_its_first_member() -> None:
    """T turns and group_size - 1 parting at each: the first k turns are the trunk's, to the last field."""
    for tree in trees():
        trunk = tree[0]
        assert len(tree) == 1 + len(trunk.turns) * 2 == 9
        assert tree.parted == (None, 0, 0, 1, 1, 2, 2, 3, 3)
        for member, at in zip(tree, tree.parted, strict=True):
            assert member.valid
            assert member.turns[:at] == trunk.turns[:at]
        assert [len(group) for group in tree.branches()] == [3, 3, 3, 3]
        assert [group.branched_at for group in tree.branches()] == [0, 1, 2, 3]
        assert len({member.member for member in tree}) == 9
    (plain,) = collect(ScriptedAgent(act), env, progress=False)
    assert plain.parted == ()
    with pytest.raises(GroupError, match="expected a tree"):
        plain.branches()


def test_trees_are_the_same_at_any_concurrency() -> None:
    assert trees(concurrency=1) == trees(concurrency=16)
    assert trees(seed=1) != trees(seed=2)


def test_pairs_are_of_members_that_part_at_one_turn() -> None:
    """By hand: known where both part at k, or one is the trunk; what parts elsewhere is not compared."""
    tree = trees()[0]
    whole, steps = by_return(tree), AtBranches()(tree)
    for i, first in enumerate(tree.parted):
        for j, second in enumerate(tree.parted):
            if first == second or None in (first, second):
                assert repr(steps.matrix[i, j]) == repr(whole.matrix[i, j])
            else:
                assert np.isnan(steps.matrix[i, j])
    assert len(steps.pairs())
    (plain,) = collect(ScriptedAgent(act), env, group_size=3, progress=False)
    assert AtBranches()(plain).matrix.tobytes() == by_return(plain).matrix.tobytes()


def test_a_store_gives_trees_back_and_a_killed_collection_goes_on_with_them(tmp_path: Path) -> None:
    """Cut after the n-th record, at any n: the same trees, and no episode is played twice."""
    wanted = trees()
    with Store(tmp_path / "whole.jsonl") as store:
        assert trees(store=store, concurrency=1) == wanted
    assert [group.parted for group in read_groups(tmp_path / "whole.jsonl")] == [group.parted for group in wanted]
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 4, 12, len(lines) - 1):
        place = tmp_path / f"{kept}.jsonl"
        place.write_bytes(b"".join(lines[: kept + 1]))
        with Store(place) as store:
            assert trees(store=store) == wanted
        assert len(list(read(place))) == sum(map(len, wanted))


def test_a_trunk_that_fails_makes_a_tree_of_itself_alone() -> None:
    def failing(episode: Episode) -> str:
        if episode.seed % 2 and episode.turns:
            raise OSError("no answer")
        return act(episode)

    seeds = [tree[0].seed % 2 for tree in trees(groups=6)]
    found = collect(ScriptedAgent(failing), env, groups=6, group_size=2, branch_at="every", progress=False)
    assert [len(tree) for tree in found] == [1 if odd else 5 for odd in seeds]
    assert 0 < sum(seeds) < 6


def test_each_agent_has_its_place_in_a_tree() -> None:
    agents = [ScriptedAgent(act, name=name) for name in ("trunk", "first", "second")]
    for tree in collect(agents, env, group_size=3, branch_at="every", progress=False):
        assert [member.agent for member in tree] == ["trunk", *["first", "second"] * 4]


def test_what_makes_no_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size of 2 or more"):
        trees(group_size=1)
    with pytest.raises(ValueError, match="no prefix_agent"):
        trees(prefix_agent=ScriptedAgent(act))
    with pytest.raises(ValueError, match="expected 'every' or"):
        collect(ScriptedAgent(act), env, branch_at="all", progress=False)  # type: ignore[arg-type]
