"""Training on trees: pairs about one step each, in one pass over what the tree shares, iterated and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.batch import collate
from polyturn.algorithms.feedback.single_turns import turn_feedback
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.protocols.iterate import iterate
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import AtBranches, by_return
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import read_groups
from polyturn.envs.trajectory import Group

torch.set_num_threads(1)


class Vowels(gymnasium.Env[str, str]):
    """Three turns; each pays a tenth for every vowel in it."""

    reward_bounds = (0.0, 3.0)

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"cat {int(self.np_random.integers(9))}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        vowels = min(10, sum(letter in "aeiou" for letter in action))
        return "more", vowels / 10, self.turn == 3, False, {}

    def snapshot(self) -> int:
        return self.turn

    def restore(self, snapshot: int) -> None:
        self.turn = snapshot


gymnasium.register("polyturn-tests/TreeVowels-v0", entry_point=lambda **options: Vowels(**options))
COLLECT = CollectOptions(
    groups=2, group_size=3, branch_at="every", sampling=Sampling(max_new_tokens=4), max_tokens=200, slots=8
)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Adam's first step is the sign of the gradient, in which rounding of a zero is a whole step."""
    return torch.optim.SGD(parameters, lr=1.0)


def learner() -> Policy:
    return tiny_policy(["the cat sat on the mat"], seed=0, hidden=32, layers=2, heads=2)


@pytest.fixture(scope="module")
def trees() -> list[Group]:
    agent = TransformerAgent(learner(), sampling=Sampling(max_new_tokens=4), max_tokens=200, slots=8)
    return collect(agent, Vowels, groups=2, group_size=3, branch_at="every", progress=False)


def test_a_tree_is_read_once_and_cut_anywhere_with_the_same_update(trees: list[Group]) -> None:
    """One pass over the whole tree, and pieces of a pair each: equal weights after a step, to rounding."""
    method = MDPO(pairs_per_group=None)
    examples = [method.examples(tree, AtBranches()(tree), np.random.default_rng(0)) for tree in trees]
    kept = [example for example in examples if example is not None]
    assert sum(len(example.pairs) for example in kept) > 6
    found = []
    for tokens in (1 << 20, 1):
        policy = learner()
        options = TrainOptions(lr=1.0, cpu=True, tokens_per_micro_batch=tokens, optimizer=sgd, warmup=0)
        train(method, policy, policy.copy(), [kept], steps=1, options=options, progress=False)
        found.append(torch.cat([weight.detach().flatten() for weight in policy.model.parameters()]))
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.equal(found[0], torch.cat([w.detach().flatten() for w in learner().model.parameters()]))


def test_what_a_pair_shares_does_not_count_in_its_margin(trees: list[Group]) -> None:
    """The agent's tokens before the turn where two members part are the same tokens after the same context."""
    for tree in trees:
        for at, group in enumerate(tree.branches()):
            ids = [np.concatenate([np.r_[t.context_ids, t.action_ids] for t in m.turns[:at]] or [[]]) for m in group]
            assert all(np.array_equal(ids[0], other) for other in ids)
            cut = [group.branched_at for group, _ in turn_feedback([tree], by_return, look="end")]
        assert cut == [0, 1, 2]
    (example,) = [MDPO().examples(trees[0], AtBranches()(trees[0]), np.random.default_rng(1))]
    assert example is not None
    assert collate([example]).ids.shape[0] == 2


def test_iterate_grows_trees_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Twice one iteration is one run of two, to the bit; the store holds one tree a group."""

    def run(out: Path, iterations: int) -> Policy:
        policy = learner()
        records = iterate(
            MDPO(pairs_per_group=None), policy, "polyturn-tests/TreeVowels-v0", out=out, iterations=iterations,
            collect=COLLECT, preference=AtBranches(), options=TrainOptions(lr=1e-3, cpu=True), progress=False,
        )  # fmt: skip
        assert [record.episodes for record in records[1:]] == [2 * (1 + 3 * 2)] * iterations
        return policy

    whole, once = run(tmp_path / "whole", 2), run(tmp_path / "parts", 1)
    twice = run(tmp_path / "parts", 2)
    assert whole.fingerprint() == twice.fingerprint() != once.fingerprint()
    stored = list(read_groups(tmp_path / "whole" / "iteration-1" / "trajectories.jsonl"))
    assert [len(tree.branches()) for tree in stored] == [3, 3]
