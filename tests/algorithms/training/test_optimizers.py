"""Optimizers by name: as good as AdamW, smaller, and resumed bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import MDPO, Example, TrainOptions, latest, minibatches, train
from polyturn.algorithms.training.optimizers import flatten_state, make_optimizer, set_rate, unflatten_state
from polyturn.envs.preference import by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
QUANTIZED = ["adamw_8bit", "adamw_4bit", "paged_adamw_8bit"]


def trajectory(reward: float, *action: int) -> Trajectory:
    turn = Turn("o", "a", reward, context_ids=np.array([100, 50], np.int32), action_ids=np.array(action, np.int32))
    return Trajectory("Toy-v0", 0, (turn,), terminated=True)


def data() -> list[Example]:
    group = Group((trajectory(1.0, 7, 8, 9), trajectory(0.0, 9, 7, 3, 4)))
    example = MDPO().examples(group, by_return(group), np.random.default_rng(0))
    assert example is not None
    return [example]


def trained(name: str, steps: int, **more: Any) -> tuple[Policy, list[dict[str, Any]]]:
    policy = tiny_policy(["abcdefg 0123456789"], seed=0, hidden=64, layers=1)
    options = TrainOptions(lr=1e-3, weight_decay=0.01, optimizer=name, warmup=3)
    batches = minibatches(data(), 1, seed=0)
    result = train(MDPO(), policy, policy.copy(), batches, steps=steps, options=options, progress=False, **more)
    return policy, result.history


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_optimizer_learns_as_adamw_does_in_less_memory(name: str, tmp_path: Path) -> None:
    _, plain = trained("adamw", 8, out=tmp_path / "plain")
    _, small = trained(name, 8, out=tmp_path / "small")
    assert small[-1]["loss"] < 0.9 * small[0]["loss"]
    assert abs(small[-1]["loss"] - plain[-1]["loss"]) < 0.1 * abs(plain[0]["loss"] - plain[-1]["loss"])

    def size(run: str) -> int:
        folder = latest(tmp_path / run)
        assert folder is not None
        return (folder / "optimizer.safetensors").stat().st_size

    assert size("small") < 0.5 * size("plain")


@pytest.mark.parametrize("name", [*QUANTIZED, "paged_adamw"])
def test_a_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, _ = trained(name, 5)
    trained(name, 2, out=tmp_path)
    with pytest.warns(UserWarning, match="steps was 2, is 5"):
        resumed, _ = trained(name, 5, out=tmp_path, resume=True)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_of_nested_values_is_read_back(tmp_path: Path) -> None:
    state = {0: {"step": 3, "deep": {"a": torch.arange(3), "b": None}}, 1: {"m": torch.ones(2), "name": "x"}}
    tensors, rest = flatten_state(state)
    assert set(tensors) == {"0.deep.a", "1.m"}
    found = unflatten_state(tensors, rest)
    assert found["0"]["step"] == 3
    assert found["0"]["deep"]["b"] is None
    assert torch.equal(found["0"]["deep"]["a"], torch.arange(3))
    assert found["1"]["name"] == "x"


def test_a_class_that_is_not_written_here_is_never_looked_up() -> None:
    with pytest.raises(KeyError):
        unflatten_state({}, {"m": {"class": "Popen", "parts": [], "context": []}})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ImportError, match=r'optimizer="?\'?adamw_8bit.* needs torchao, of the extra "quantized"'):
        make_optimizer("adamw_8bit", [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3, "weight_decay": 0.0}])
    with pytest.raises(ValueError, match=r"optimizer: expected one of adamw, adamw_8bit, .* got 'adamv'"):
        TrainOptions(optimizer="adamv")


def test_rates_are_set_in_the_kind_of_number_that_is_there() -> None:
    group: dict[str, Any] = {"lr": torch.tensor(1e-3)}
    kept = group["lr"]
    set_rate(group, 5e-4)
    assert group["lr"] is kept
    assert float(kept) == pytest.approx(5e-4)


def test_tables_that_states_share_are_written_whole(tmp_path: Path) -> None:
    """torchao keeps one table for all parameters; safetensors refuses tensors that share memory."""
    trained("adamw_4bit", 1, out=tmp_path)
    folder = latest(tmp_path)
    assert folder is not None
    tables = [value for name, value in load_file(folder / "optimizer.safetensors").items() if name.endswith(".qmap")]
    assert len(tables) > 1
    assert all(table.numel() == 16 for table in tables)
