"""Weights cut over all processes (FSDP2): each keeps a part, and layers are put together while they compute.

What is trained is a copy of the policy's scorer, cut layer by layer, so that the policy itself stays a whole model that
acts, is evaluated and is saved as ever; after every update its trained weights are brought up to date. The mathematics
is that of one process: weights are put together in their own precision and computed under autocast, gradients are
averaged in theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polyturn.agents.transformer.reading import carry_probes
from polyturn.agents.transformer.snapshot import copy_as_acting


class ShardedModule:
    """A module's copy, cut over the processes of a mesh.

    Every call of `module` is made by all processes together, and so is every method here.

    Attributes:
        module: The cut copy; called as the original is.

    Args:
        original: What is copied; it stays whole.
        mesh: The processes.
    """

    def __init__(self, original: nn.Module, mesh: Any) -> None:
        self._original, self._mesh = original, mesh
        self.module = copy.deepcopy(original)
        carry_probes(original, self.module)
        layers = _layers(self.module)
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        # Embeddings, norms and heads, which a scorer reads at the end of its own pass, are one more part.
        fully_shard(self.module, mesh=mesh)
        self._pairs = [
            (whole, part)
            for (_, whole), (_, part) in zip(
                original.named_parameters(), self.module.named_parameters(), strict=True
            )
        ]  # fmt: skip

    def parts_of(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """The cut parameters that stand for those of the original.

        Raises:
            ValueError: One is not in the module.
        """
        known = {id(whole): part for whole, part in self._pairs}
        if any(id(parameter) not in known for parameter in parameters):
            raise ValueError(
                "expected a policy whose trained parameters are all in its scorer, which is what is cut over the "
                "processes, got some outside; pass fully_sharded=False"
            )
        return [known[id(parameter)] for parameter in parameters]

    @torch.no_grad()
    def pull(self) -> None:
        """Brings the original's trained weights up to date."""
        for whole, part in self._pairs:
            if whole.requires_grad:
                whole.copy_(_whole(part))


def shard_reference(scoring: nn.Module, mesh: Any) -> nn.Module:
    """A frozen copy, cut; of a reference that shares weights with a policy, the copy is as that reference acts."""
    return ShardedModule(copy_as_acting(scoring).requires_grad_(False), mesh).module


def make_mesh(device: torch.device) -> Any:
    """All processes in one row."""
    return init_device_mesh(device.type, (dist.get_world_size(),))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with every tensor whole, as one process would have it; made by all processes together."""
    state = optimizer.state_dict()
    return {**state, "state": _mapped(state["state"])}


def load_whole_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Puts a whole state into an optimizer of cut parameters, each process its own part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {
        index: {
            name: _cut(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def clip(parameters: list[nn.Parameter], largest: float) -> float:
    """Clips gradients together, whole or cut; returns their norm before."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The blocks that transformers names as not to be split, from the inside out."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in names]


def _mapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _mapped(inner) for name, inner in value.items()}
    return _whole(value) if isinstance(value, Tensor) else value


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _cut(value: Tensor, parameter: Tensor) -> Tensor:
    """The parts of a state that is as large as its parameter; steps and the like are whole everywhere."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    whole = value.to(parameter.device, parameter.dtype)
    # Every process has read the same file, so none sends anything.
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
