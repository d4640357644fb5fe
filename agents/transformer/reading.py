"""A model reads rows: packed into a forest where it can, one leaf after another where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyturn.agents.transformer.forest import pack, spread
from polyturn.agents.transformer.forest_attention import ForestMask, attending
from polyturn.agents.transformer.positions import check_length, length_limit
from polyturn.agents.transformer.rows import Rows, leaf_batches

_PACKS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_LONGEST_PROBE = 512


class PackingWarning(UserWarning):
    """A model cannot read a forest; its rows are read one by one, which takes longer and gives the same."""


def carry_probes(original: nn.Module, copied: nn.Module) -> None:
    """What was found out about the parts of a module holds for those of its copy."""
    for mine, its in zip(original.modules(), copied.modules(), strict=True):
        if mine in _PACKS:
            _PACKS[its] = _PACKS[mine]


class Reader(nn.Module):
    """A transformers model, or the decoder inside one, as a function from rows to what it says after every token.

    Args:
        model: The model; adapters may be inside it.
        output: Name of the output that is wanted: "last_hidden_state" of a decoder, "logits" of a whole model.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self._output = model, output

    def forward(self, rows: Rows) -> Tensor:
        """`[P, D]` what is said after each of the rows' distinct tokens.

        Raises:
            LengthError: A row is longer than the model reads as it reads others.
        """
        self._check_length(rows)
        return self._packed(rows) if self.packs() else self._by_leaves(rows)

    def _check_length(self, rows: Rows) -> None:
        width = int(rows.mask.shape[1])
        limit = length_limit(self.model) if isinstance(self.model, PreTrainedModel) else None
        if limit is not None and width > limit:  # padding alone is no reason
            check_length(self.model, int(rows.mask.sum(1).max()), what="scoring")

    def packs(self) -> bool:
        """Whether the model reads a forest as it reads rows; tried out once, on its own forward pass."""
        if self.model not in _PACKS:
            _PACKS[self.model] = self._tried()
        return _PACKS[self.model]

    @contextmanager
    def attending(self) -> Iterator[None]:
        """What must hold from a forward pass to the end of its backward pass, in which activations are made again."""
        with attending(cast("PreTrainedModel", self.model)) if self.packs() else nullcontext():
            yield

    def _call(self, **inputs: Any) -> Tensor:
        found: Tensor = getattr(self.model(use_cache=False, **inputs), self._output)
        return found

    def _packed(self, rows: Rows) -> Tensor:
        with attending(cast("PreTrainedModel", self.model)):
            return self._call(
                input_ids=rows.ids[None], position_ids=rows.depth[None], attention_mask=ForestMask.of(rows.plan)
            )[0]

    def _by_leaves(self, rows: Rows) -> Tensor:
        forest = rows.forest
        source = np.empty(len(forest), np.int64)
        said: list[Tensor] = []
        offset = 0
        for leaves in leaf_batches(forest):
            place = forest.place[leaves]
            width = int((place >= 0).sum(1).max())
            place = place[:, :width]
            # Right padding needs no mask in a causal model: nothing real comes after it.
            ids = np.where(place >= 0, forest.ids[place], 0)
            found = self._call(input_ids=torch.from_numpy(ids).to(rows.device))
            said.append(found.flatten(0, 1))
            # A token that several leaves share is read from the last of them: one source, so one gradient.
            row, column = np.nonzero(place >= 0)
            source[place[row, column]] = offset + row * width + column
            offset += len(said[-1])
        return torch.cat(said).index_select(0, torch.from_numpy(source).to(rows.device))

    @torch.no_grad()
    def _tried(self) -> bool:
        """Reads a small forest both ways.

        Architectures that place tokens, mask keys or carry state along the row differently would otherwise be
        scored wrongly, without an error.
        """
        model = self.model
        if not isinstance(model, PreTrainedModel):
            return False
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None) or 0
        length = min(max(12, window + 6), _LONGEST_PROBE, getattr(config, "max_position_embeddings", _LONGEST_PROBE))
        tokens = np.arange(1, length + 1) * 7 % max(config.vocab_size - 1, 1)
        other = (tokens + 3) % max(config.vocab_size - 1, 1)
        half = length // 2
        # Branches early and late, and a row that shares nothing.
        lines = [tokens, np.concatenate([tokens[:half], other[half:]]), np.concatenate([tokens[:-2], other[:1]]), other]
        rows = Rows.on(pack(*spread(lines)), next(model.parameters()).device)
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            whole = self._by_leaves(rows).float()
            try:
                packed = self._packed(rows).float()
                exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
                difference, size = float((packed - whole).abs().max()), float(whole.abs().max())
                if difference <= size * (1e-3 if exact else 0.05):
                    return True
                why = f"differs by {difference:.3g} of {size:.3g}"
            except (
                TypeError,
                ValueError,
                RuntimeError,
                IndexError,
                KeyError,
                AttributeError,
                NotImplementedError,
            ) as error:
                why = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            for module in training:
                module.training = True
        warnings.warn(
            f"{type(model).__name__} cannot read several rows packed as a tree ({why}); they are read one by one, "
            "which takes longer and gives the same",
            PackingWarning,
            stacklevel=2,
        )
        return False
