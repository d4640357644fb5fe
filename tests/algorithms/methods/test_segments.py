"""Trajectories of several segments: one row of a batch, read apart by the model; stored and exported whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from polyturn.agents.transformer.scoring import ModelScorer
from polyturn.algorithms import METHODS, TrainOptions, collate, drop_long, train
from polyturn.algorithms.estimators import sequence_logratio
from polyturn.algorithms.pairing import Example
from polyturn.envs import Store, Trajectory, Turn, export_dpo, export_parquet, export_sft, read, read_groups
from polyturn.envs.export import ExportError

SHAPE: dict[str, Any] = {
    "vocab_size": 47, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip


def model(kind: str, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            made: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
        else:
            small = {"n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
            made = GPT2LMHeadModel(GPT2Config(vocab_size=47, n_positions=64, **small))
    return made.eval()


class Scored:
    """The least that `train` takes."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.model = model(kind, seed)
        self.scorer = ModelScorer(self.model)


def turn(context: list[int], action: list[int], reward: float = 0.0) -> Turn:
    return Turn("o", "a", reward, np.array(context), np.array(action), np.full(len(action), -1.0, np.float32))


def trajectory(*turns: Turn, starts: tuple[int, ...] = (), member: int = 0, seed: int = 1) -> Trajectory:
    return Trajectory("e", seed, turns, member=member, terminated=True, segment_starts=starts)


FIRST = (turn([1, 2, 3], [4, 5]), turn([6], [7, 8, 9]))
SECOND = (turn([1, 2, 3, 4, 5, 20, 21], [22, 23]),)  # shares a prefix with the first segment
THIRD = (turn([30], [31, 32], 1.0), turn([33, 34], [35]))
WHOLE = trajectory(*FIRST, *SECOND, *THIRD, starts=(2, 3))


def logratio(policy: Scored, reference: Scored, *rows: Trajectory) -> Tensor:
    batch = collate([Example(rows)])
    with torch.no_grad():
        before = reference.scorer(batch.rows())["logps"]
    return sequence_logratio(policy.scorer(batch.rows())["logps"], before, batch.turn_ids)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_log_ratio_and_gradient_of_segments_are_those_of_a_row_for_each_segment(kind: str) -> None:
    policy, reference = Scored(kind), Scored(kind, seed=1)
    joined = logratio(policy, reference, WHOLE)
    joined.square().sum().backward()
    gradients = {name: value.grad.clone() for name, value in policy.model.named_parameters()}
    policy.model.zero_grad()
    apart = logratio(policy, reference, trajectory(*FIRST), trajectory(*SECOND), trajectory(*THIRD))
    assert float(apart.detach().abs().min()) > 1e-3
    torch.testing.assert_close(joined, apart.sum(0, keepdim=True), atol=1e-5, rtol=1e-5)
    apart.sum().square().backward()
    for name, value in policy.model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_read_as_one_long_row_the_same_tokens_have_another_log_ratio() -> None:
    """What the segments guard against: the second segment would see the first."""
    policy, reference = Scored("llama"), Scored("llama", seed=1)
    long = replace(WHOLE, segment_starts=())
    difference = logratio(policy, reference, WHOLE) - logratio(policy, reference, long)
    assert abs(float(difference)) > 1e-4


def test_what_segments_share_is_read_once() -> None:
    batch = collate([Example((WHOLE,))])
    assert batch.tokens == 24
    assert len(batch.rows().ids) == 24 - 5


OPTIONS: dict[str, dict[str, Any]] = {"mdpo": {"mask": "all"}}


@pytest.mark.parametrize("name", ["mdpo", "ipo", "mkto", "pmpo", "rloo"])
@pytest.mark.parametrize("tokens", [None, 20], ids=["whole", "in pieces"])
def test_a_step_on_segments_is_the_step_on_any_order_of_rows_and_pieces(name: str, tokens: int | None) -> None:
    """Micro-batches, pieces and the cache of the reference leave the update as it is."""

    def updated(**options: Any) -> dict[str, Tensor]:
        policy = Scored("llama")
        other = trajectory(turn([1, 2, 3], [9, 8]), turn([30], [31, 35]), starts=(1,), member=1)
        plain = trajectory(turn([1, 2, 3], [9, 9]), turn([4], [40]), member=2)
        labels = {"desirable": np.array([1.0, 0.0, 1.0]), "scores": np.array([1.0, 0.0, 0.5])}
        pairs = np.array([[0, 1], [2, 1], [0, 2]])
        seconds = tuple(
            replace(row, seed=2, turns=(turn([5, 6], [7]), *row.turns[1:])) for row in (WHOLE, other, plain)
        )
        examples = [Example((WHOLE, other, plain), pairs, **labels), Example(seconds, pairs, **labels)]
        method = METHODS[name](**OPTIONS.get(name, {}))
        settings = TrainOptions(lr=1e-2, clip=None, optimizer=lambda groups: torch.optim.SGD(groups), **options)
        train(method, policy, Scored("llama", seed=1), [examples] * 2, steps=2, options=settings, progress=False)
        return {key: value.detach().clone() for key, value in policy.model.named_parameters()}

    start = dict(model("llama").named_parameters())
    plain = updated(cache_reference=False)
    assert any(float((plain[key] - value).abs().max()) > 1e-6 for key, value in start.items())
    for key, value in updated(cache_reference=True, tokens_per_micro_batch=tokens).items():
        torch.testing.assert_close(value, plain[key], atol=1e-6, rtol=1e-5, msg=key)


def test_a_saved_batch_and_a_selection_keep_segments(tmp_path: Path) -> None:
    plain = trajectory(turn([1, 2, 3], [9, 9]), member=2)
    batch = collate([Example((plain, WHOLE))])
    batch.save(tmp_path / "b")
    again = type(batch).load(tmp_path / "b")
    assert batch.segments is not None
    assert again.segments is not None
    assert torch.equal(again.segments, batch.segments)
    assert batch.select(torch.tensor([0])).segments is None
    kept = batch.select(torch.tensor([1]))
    assert kept.segments is not None
    assert kept.segments.dtype == torch.int16
    assert kept.segments.tolist() == [[0] * 9 + [1] * 9 + [2] * 6]


def test_rows_of_one_segment_have_no_segment_numbers_and_rows_of_two_have() -> None:
    assert collate([Example((trajectory(*FIRST),))]).segments is None
    two = collate([Example((trajectory(*FIRST, *SECOND, starts=(2,)),))]).segments
    assert two is not None
    assert two.tolist() == [[0] * 9 + [1] * 9]


def test_a_mismatched_row_has_the_other_prompt_in_its_first_segment_only() -> None:
    """The prompt of 1 token takes the place of one of 3; the segments after the first keep their lengths."""
    other = trajectory(turn([40], [41, 42]), seed=2)
    batch = collate([Example((other,)), Example((WHOLE,))], mismatched=True)
    assert batch.segments is not None
    row = int((batch.mismatched & (batch.group == 0)).nonzero()[0, 0])
    assert batch.ids[row, : int(batch.mask[row].sum())].tolist()[:4] == [40, 4, 5, 6]
    assert batch.segments[row].tolist()[: int(batch.mask[row].sum())] == [0] * 7 + [1] * 9 + [2] * 6


def test_a_length_limit_is_about_the_longest_segment() -> None:
    """24 tokens, of which the model reads 9 at once."""
    assert len(drop_long([Example((WHOLE,))], 9)) == 1
    with pytest.warns(UserWarning, match="longer than 8"):
        assert drop_long([Example((WHOLE,))], 8) == []


@pytest.mark.parametrize("starts", [(0,), (5,), (2, 2), (3, 2), (-1,)])
def test_segments_that_begin_nowhere_are_refused(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rising indices of turns from 1 to 4"):
        replace(WHOLE, segment_starts=starts)


def test_stores_and_exports_keep_segments(tmp_path: Path) -> None:
    store = tmp_path / "s.jsonl"
    other = replace(trajectory(turn([1], [2])), member=1)
    with Store(store) as file:
        file.append(WHOLE)
        file.append(other)
    assert list(read(store)) == [WHOLE, other]
    assert next(read_groups(store))[0].segments == (FIRST, SECOND, THIRD)
    assert Trajectory.from_json(json.loads(json.dumps(WHOLE.to_json()))) == WHOLE
    assert export_sft(store, tmp_path / "sft.jsonl") == 4
    lengths = [len(json.loads(line)["messages"]) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert lengths == [4, 2, 4, 2]
    with pytest.raises(ExportError, match="one segment"):
        export_dpo(store, tmp_path / "dpo.jsonl")
    export_parquet(store, tmp_path / "s.parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "s.parquet")["segment_starts"].to_pylist() == [[2, 3], []]
