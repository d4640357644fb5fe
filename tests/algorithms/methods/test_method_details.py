"""What each method reports, and the parts of its loss that the simple cases leave out: weights, turns, segments."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyturn.algorithms import GPO, GRPO, IPO, METHODS, MTPO, PPO, RLOO, RWR, NashPG, Needs, collate
from polyturn.algorithms.batch import Batch
from polyturn.algorithms.methods.base import Hooks, clipped, hooks_of
from polyturn.algorithms.methods.imitation import SFT
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.methods.policy_gradient import REINFORCE
from polyturn.algorithms.methods.unpaired import MKTO, PMPO
from polyturn.algorithms.pairing import Example
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn


def trajectory(
    *actions: list[int], seed: int = 0, reward: float = 0.0, starts: tuple[int, ...] = (), error: bool = False
) -> Trajectory:
    turns = tuple(
        Turn(
            "o", "a", reward if h == len(actions) - 1 else 0.0,
            context_ids=np.array([100 + seed, 50 + h], np.int32), action_ids=np.array(action, np.int32),
            logps=np.full(len(action), -1.0, np.float32),
            info={"tool_error": error} if h == len(actions) - 1 else {},
        )
        for h, action in enumerate(actions)
    )  # fmt: skip
    return Trajectory("Toy-v0", seed, turns, terminated=True, segment_starts=starts)


def two() -> Example:
    """Winner [1, 2] then [3], score 1; loser [4] then [5, 6], score 0."""
    rows = (trajectory([1, 2], [3], reward=1.0), trajectory([4], [5, 6]))
    return Example(rows, np.array([[0, 1]]), scores=np.array([1.0, 0.0]))


def scored(batch: Batch, values: tuple[float, ...] = (-1.0, -2.0)) -> Tensor:
    """`[N, T]` the same log-probability for every token of a row."""
    return torch.tensor(values, dtype=torch.float64)[:, None].expand(batch.ids.shape).clone()


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (SFT(), {"tokens_per_row"}),
        (RWR(), {"score"}),
        (REINFORCE(), {"score", "advantage"}),
        (RLOO(kl=0.1), {"score", "advantage", "logratio"}),
        (GRPO(), {"score", "clipped"}),
        (GRPO(kl=0.1), {"score", "clipped", "kl"}),
        (NashPG(), {"win_rate", "logratio"}),
        (MDPO(), {"margin", "accuracy", "chosen_logratio", "rejected_logratio"}),
        (GPO(), {"margin", "accuracy", "chosen_logratio", "rejected_logratio"}),
        (IPO(), {"margin", "accuracy", "chosen_logratio", "rejected_logratio"}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_metrics_have_these_names_and_no_gradient(method: Any, names: set[str]) -> None:
    batch = collate([two()])
    logps = scored(batch).requires_grad_()
    metrics = method.loss(logps, scored(batch, (-1.5, -1.75)), batch).metrics
    assert set(metrics) == names
    assert not any(value.requires_grad for value in metrics.values())


def test_metrics_have_the_values_by_hand() -> None:
    """Log-ratios of a token: .5 in the winner, -.25 in the loser, 3 tokens each. k3 of r = .5: e^-.5 - 1 + .5."""
    batch = collate([two()])
    logps, reference = scored(batch), scored(batch, (-1.5, -1.75))
    pairwise = MDPO().loss(logps, reference, batch).metrics
    assert {name: value.tolist() for name, value in pairwise.items()} == {
        "margin": [2.25], "accuracy": [1.0], "chosen_logratio": [1.5], "rejected_logratio": [-0.75],
    }  # fmt: skip
    assert SFT().loss(logps, None, batch).metrics["tokens_per_row"].tolist() == [3.0]
    assert NashPG().loss(logps, reference, batch).metrics["logratio"].tolist() == [1.5, -0.75]
    assert REINFORCE(kl=0.1).loss(logps, reference, batch).metrics["logratio"].tolist() == [1.5, -0.75]
    k3 = [3 * (math.exp(-r) - 1 + r) for r in (0.5, -0.25)]
    assert GRPO(kl=0.1).loss(logps, reference, batch).metrics["kl"].tolist() == pytest.approx(k3)


def test_the_advantage_of_each_baseline() -> None:
    """Scores 1 and 0: less the other's, 1 and -1; less the mean, 1/2 and -1/2, not scaled; as they are."""
    batch = collate([two()])
    for baseline, wanted in (("leave_one_out", [1.0, -1.0]), ("group", [0.5, -0.5]), ("none", [1.0, 0.0])):
        method = REINFORCE(baseline=baseline)  # type: ignore[arg-type]
        assert method.loss(scored(batch), None, batch).metrics["advantage"].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("method", [MDPO(), GPO(), IPO()], ids=lambda method: method.name)
def test_weights_of_pairs_multiply_and_are_counted(method: Any) -> None:
    batch = collate([two(), replace(two(), weight=np.array([1.0]))])
    logps, reference = scored(batch, (-1.0, -2.0) * 2), scored(batch, (-1.5, -1.75) * 2)
    plain = method.loss(logps, reference, batch)
    weighted = method.loss(logps, reference, replace(batch, weight=torch.tensor([0.5, 2.0])))
    assert weighted.values.tolist() == pytest.approx((plain.values * torch.tensor([0.5, 2.0])).tolist())
    assert weighted.count.tolist() == [0.5, 2.0]


def test_smoothed_labels_are_taken_to_be_wrong_with_that_share() -> None:
    """h = 2.25, beta 1: p = .9 * .75 + .1 * .25 = .7; .7 log(1 + e^-2.25) + .3 log(1 + e^2.25)."""
    batch = replace(collate([two()]), probability=torch.tensor([0.75]))
    loss = GPO(beta=1.0, label_smoothing=0.1).loss(scored(batch), scored(batch, (-1.5, -1.75)), batch)
    wanted = 0.7 * math.log1p(math.exp(-2.25)) + 0.3 * math.log1p(math.exp(2.25))
    assert loss.values.item() == pytest.approx(wanted, rel=1e-6)
    GPO(label_smoothing=0.0)
    for wrong in (0.5, 0.6, -0.01):
        with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 0.5\)"):
            GPO(label_smoothing=wrong)


def test_the_winners_nll_is_that_of_the_counted_turns() -> None:
    """The winner's last turn is one token at -3, its first two at -1: mean NLL 5/3, of the last turn 3."""
    batch = collate([two()])
    logps = scored(batch, (-1.0, -2.0))
    logps[0, batch.turn_ids[0] == 1] = -3.0
    for turns, nll in (("all", 5 / 3), ("last", 3.0)):
        method = MDPO(turns=turns, nll_weight=2.0)  # type: ignore[arg-type]
        assert method.loss(logps, logps, batch).values.item() == pytest.approx(math.log(2) + 2 * nll)


def test_the_last_turn_only_is_looked_at_where_asked() -> None:
    batch = collate([two()])
    last = batch.turn_ids == 1
    for method in (SFT(turns="last"), MDPO(turns="last"), IPO(turns="last"), GPO(turns="last")):
        assert torch.equal(hooks_of(method).token_mask(batch), last), method.name
    logps = torch.where(last, -2.0, -50.0)
    loss = SFT(turns="last").loss(logps, None, batch)
    assert loss.values.tolist() == [2.0]
    assert loss.count is not None
    assert loss.count.tolist() == [1.0]


def test_unmasked_counts_each_segment_from_its_first_action() -> None:
    """Two segments: 2 context + 2 action + 2 context + 1 action, then 2 context + 2 action + 2 context + 1 action."""
    row = trajectory([1, 2], [3], [4, 5], [6], starts=(2,))
    batch = collate([Example((row, trajectory([7], seed=0)))])
    wanted = hooks_of(MDPO(mask="all")).token_mask(batch)
    assert wanted[0].tolist() == [False] * 2 + [True] * 5 + [False] * 2 + [True] * 5
    assert wanted[1].tolist() == [False] * 2 + [True] + [False] * 11
    assert hooks_of(MDPO()).token_mask(batch)[0].sum() == 6


def test_pairwise_examples_take_as_many_pairs_as_asked() -> None:
    group = Group(tuple(trajectory([n], reward=float(n < 2)) for n in range(4)))
    preference = by_return(group)
    error = Group((trajectory([0], reward=1.0, error=True), trajectory([1])))
    rng = np.random.default_rng(0)

    def pairs(method: Any, of: Group = group) -> int:
        found = method.examples(of, by_return(of), rng)
        return 0 if found is None else len(found.pairs)

    assert [pairs(MDPO(pairs_per_group=count)) for count in (1, 3, None)] == [1, 3, 4]
    assert [pairs(IPO(pairs_per_group=count)) for count in (1, 3, None)] == [1, 3, 6]
    assert (pairs(MDPO(), error), pairs(MDPO(drop_error_winners=False), error)) == (0, 1)
    drawn = [MDPO().examples(group, preference, np.random.default_rng(seed)) for seed in (5, 5)]
    soft = [IPO(pairs_per_group=1).examples(group, preference, np.random.default_rng(seed)) for seed in (5, 5)]
    for first, second in (drawn, soft):
        assert first is not None
        assert second is not None
        assert first.trajectories == second.trajectories


def test_rows_that_win_no_pair_are_no_demonstrations() -> None:
    """Group 0: 0 beats 1 with .3, so 1 wins. Group 1: a tie, which nobody wins. Group 2 has no pairs: all its rows."""
    rows = (trajectory([1]), trajectory([2]))
    judged = [Example(rows, np.array([[0, 1]]), probability=np.array([p])) for p in (0.3, 0.5)]
    batch = collate([*judged, Example(rows)])
    loss = SFT().loss(torch.arange(6.0)[:, None].expand(batch.ids.shape) * -1.0, None, batch)
    assert loss.values.tolist() == [1.0, 4.0, 5.0]


def test_mkto_takes_labelled_rows_only_and_errors_as_it_is_told() -> None:
    """Rows without a label, which groups of other methods leave, are in no loss; z0 is not of them either."""
    rows = tuple(trajectory([n], seed=seed) for seed in (0, 1) for n in (1, 2))
    labelled = Example(rows[:2], desirable=np.array([1.0, np.nan]))
    batch = collate([labelled, Example(rows[2:], desirable=np.array([0.0, np.nan]))], mismatched=True)
    loss = MKTO().loss(scored(batch, (-1.0,) * len(batch)), scored(batch, (-1.0,) * len(batch)), batch)
    assert loss.values.tolist() == [0.5, 0.5]
    assert [name for name, value in loss.metrics.items() if len(value) != 1] == []
    error = Group((trajectory([0], reward=1.0, error=True), trajectory([1])))
    rng = np.random.default_rng(0)
    assert MKTO().examples(error, by_return(error), rng) is None
    kept = MKTO(drop_error_winners=False).examples(error, by_return(error), rng)
    assert kept is not None
    assert kept.desirable.tolist() == [1.0, 0.0]
    last = collate([two(), replace(two(), trajectories=(trajectory([9], seed=1), trajectory([8], seed=1)))])
    assert torch.equal(hooks_of(MKTO(turns="last")).token_mask(last)[:2], last.turn_ids[:2] == 1)


def test_pmpo_reports_both_sides_and_takes_no_kl() -> None:
    """Both rows have 3 tokens: log-probabilities -3 and -6."""
    batch = replace(collate([two()]), desirable=torch.tensor([1.0, 0.0]))
    batch = replace(batch, outputs={"kl": torch.zeros(batch.ids.shape)})
    loss = PMPO(beta=0.0).loss(scored(batch), None, batch)
    assert loss.metrics["accepted_logp"].tolist() == [-3.0]
    assert loss.metrics["rejected_logp"].tolist() == [-6.0]
    assert set(loss.metrics) == {"kl", "accepted_logp", "rejected_logp"}
    with pytest.raises(ValueError, match=r"PMPO\.beta: expected 0 or more, got -0\.1"):
        PMPO(beta=-0.1)


def test_the_kl_of_a_turn_is_over_the_rows_that_have_it() -> None:
    """Rows of 2, 2 and 1 turns; as sampled, -1 a token; the reference -1.5 and -1.75: log-ratios .5 and .75 a token."""
    batch = collate([two(), Example((trajectory([7], seed=1),), scores=np.array([0.0]))])
    batch = replace(batch, outputs={"values": torch.zeros(batch.ids.shape, dtype=torch.float64)})
    logps, reference = scored(batch, (-1.0, -1.0, -1.0)), scored(batch, (-1.5, -1.75, -1.0))
    metrics = MTPO(kl=0.1).loss(logps, reference, batch).metrics
    assert metrics["kl_turn_1"].tolist() == [1.0, 0.75, 0.0]
    assert metrics["kl_turn_2"].tolist() == [0.5, 1.5]
    assert metrics["kl"].tolist() == [1.5, 2.25, 0.0]
    assert not [name for name in PPO().loss(logps, None, batch).metrics if name.startswith("kl")]


@pytest.mark.parametrize(("scores", "wanted"), [((1.0, 0.0), (-1.0, 1.0)), ((0.7, 0.7), (0.0, 0.0))])
def test_advantages_are_scaled_to_a_deviation_of_one_and_equal_ones_to_nothing(
    scores: tuple[float, float], wanted: tuple[float, float]
) -> None:
    """Two rows of one token, values 0 and ratio 1: the surrogate is minus the advantage, (s - mean) / deviation."""
    rows = (trajectory([1]), trajectory([2]))
    batch = collate([Example(rows, scores=np.array(scores))])
    batch = replace(batch, outputs={"values": torch.zeros(batch.ids.shape, dtype=torch.float64)})
    loss = PPO(value_weight=0.0, lam=1.0, value_warmup=0).loss(scored(batch, (-1.0, -1.0)), None, batch)
    assert loss.values.tolist() == pytest.approx(wanted, abs=1e-6)
    assert loss.metrics["score"].tolist() == pytest.approx(scores)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_needs_and_is_read(name: str) -> None:
    method: Any = METHODS[name]()
    hooks = hooks_of(method)
    assert isinstance(hooks, Hooks)
    assert isinstance(hooks.needs, Needs)
    assert (hooks.name, hooks.loss, hooks.examples) == (name, method.loss, getattr(method, "examples", None))
    for part in ("token_mask", "step_statistics", "row_statistics"):
        assert getattr(hooks, part) == getattr(method, part, getattr(hooks, part))


def test_a_part_that_cannot_be_called_is_named() -> None:
    class Broken:
        name = "broken"
        needs = Needs()
        loss = 3

    with pytest.raises(ValueError, match="broken: expected loss to be a method, got 3"):
        hooks_of(Broken())  # type: ignore[arg-type]


def test_the_share_of_clipped_tokens() -> None:
    """Ratios 1.22, .90, 1.11 and .74 with a clip of .2: the first and the last are outside."""
    own, before = torch.tensor([0.2, -0.1, 0.1, -0.3]), torch.zeros(4)
    assert clipped(own, before, 0.2).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert clipped(own + 5.0, before + 5.0, 0.2).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_preference_that_was_not_asked_makes_no_pair() -> None:
    group = Group((trajectory([1]), trajectory([2])))
    nothing = Preference(np.full((2, 2), np.nan), "judge")
    assert MDPO().examples(group, nothing, np.random.default_rng(0)) is None
    assert IPO().examples(group, nothing, np.random.default_rng(0)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SFT().examples(group, nothing, np.random.default_rng(0)) is None


def test_as_many_pairs_as_there_are_need_no_draw() -> None:
    group = Group((trajectory([1], reward=1.0), trajectory([2])))
    for method in (MDPO(pairs_per_group=1), IPO(pairs_per_group=1), SFT(best=1)):
        rng = np.random.default_rng(3)
        assert method.examples(group, by_return(group), rng) is not None
        assert rng.random() == np.random.default_rng(3).random(), method.name
