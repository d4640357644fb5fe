"""Other kernels for norms and feed-forward blocks: the same update, taken back afterwards, refused where missing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import MDPO, Example, KernelError, TrainOptions, minibatches, train
from polyturn.algorithms.networks.compound import Compound
from polyturn.algorithms.training.kernels import use_kernels
from polyturn.envs.trajectory import Trajectory, Turn


def example(seed: int) -> Example:
    context = np.arange(10 + seed, 20 + seed, dtype=np.int32)
    actions = [np.array([token] * (4 + seed), np.int32) for token in (20, 30)]
    rows = [Turn("o", "a", 0.0, context_ids=context, action_ids=action) for action in actions]
    return Example(
        tuple(Trajectory("Toy-v0", seed, (row,), terminated=True) for row in rows), np.array([[0, 1]])
    )  # fmt: skip


def policy() -> Any:
    return tiny_policy(["x"], seed=0, hidden=16, layers=1, heads=2, context=64)


def trained(kernels: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    start = policy()
    data = minibatches([example(seed) for seed in range(3)], 3, seed=0)
    options = TrainOptions(lr=1e-3, kernels=kernels, cpu=True, gradient_checkpointing=True)
    history = train(MDPO(), start, start.copy(), data, steps=3, options=options, progress=False).history
    assert not [module for module in start.model.modules() if module._compiled_call_impl is not None]
    assert not any(getattr(module, "gradient_checkpointing", False) for module in start.model.modules())
    return [entry["loss"] for entry in history], dict(start.model.named_parameters())


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and does not generate code, which takes a minute; `make gpu` generates it."""
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **given: real(self, backend="eager", **given))


@pytest.mark.usefixtures("_traced")
def test_compiled_kernels_take_the_same_steps_and_are_taken_back() -> None:
    losses, weights = trained("eager")
    compiled_losses, compiled = trained("compiled")
    assert losses[0] != losses[-1]
    assert compiled_losses == pytest.approx(losses, abs=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(compiled[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_kernels_that_give_other_numbers_are_refused_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: nn.Module, **_: Any) -> None:
        self._compiled_call_impl = lambda x: self.forward(x) * 1.01  # type: ignore[method-assign]

    monkeypatch.setattr(nn.Module, "compile", wrong)
    model = policy().model
    with pytest.raises(KernelError, match=r'kernels="compiled": expected logits within 0.0001 .* use kernels="eager"'):
        use_kernels(model, "compiled")
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, **_: Any) -> None:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(nn.Module, "compile", broken)
    with pytest.raises(KernelError, match=r'no C\+\+ compiler; kernels="eager" needs nothing'):
        use_kernels(policy().model, "compiled")


def test_liger_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy().model
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(KernelError, match='needs liger-kernel, of the extra "liger"'):
        use_kernels(model, "liger")
    there = ModuleType("liger_kernel")
    there.__spec__ = __spec__
    monkeypatch.setitem(sys.modules, "liger_kernel", there)
    with pytest.raises(KernelError, match='expected a model on a GPU, got one on the CPU; use kernels="compiled"'):
        use_kernels(model, "liger")


@pytest.mark.usefixtures("_traced")
def test_what_is_no_transformer_is_refused_and_every_member_of_several_is_served() -> None:
    with pytest.raises(KernelError, match="expected a model of transformers, got Linear"):
        use_kernels(nn.Linear(2, 2), "compiled")
    members = Compound(policy().model, value=policy().model, head=nn.Linear(2, 2))

    def compiled(model: nn.Module) -> int:
        return sum(module._compiled_call_impl is not None for module in model.modules())

    undo = use_kernels(members, "compiled")
    assert compiled(members.policy) == compiled(members.value) == 3  # two norms and a feed-forward block
    undo()
    assert compiled(members) == 0
