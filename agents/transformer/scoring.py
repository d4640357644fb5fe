"""From token rows to the log-probability of every token: one seam for every kind of policy.

Rows are packed into the forest of their distinct tokens. A scorer says what it predicts after each of those
(`predict`); log-probabilities, divergences from another model's predictions, and its other outputs
(`outputs`) belong to the edges of the forest, are computed once for every edge that some row asks for, and are read
back into rows. Gradients of rows that share an edge add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyturn.agents.transformer.positions import base_model as base_model
from polyturn.agents.transformer.prediction import Prediction, divergence
from polyturn.agents.transformer.reading import Reader
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.token_logps import soft_cap


class TokenScorer(nn.Module):
    """Log-probabilities of given tokens; what a trainer wraps for distribution. A subclass says what it predicts."""

    def predict(self, rows: Rows) -> Prediction:
        """What is predicted after every packed token, as little of it as there is a need to keep."""
        raise NotImplementedError

    def outputs(self, rows: Rows, prediction: Prediction) -> Mapping[str, Tensor]:
        """What else is said BEFORE each packed token, `[P]` by name, such as "values"; nothing by default."""
        return {}

    def engaged(self) -> AbstractContextManager[None]:
        """What must hold from a forward pass to the end of its backward pass; nothing by default."""
        return nullcontext()

    def packs(self) -> bool:
        """Whether what rows share is read only once."""
        return True

    def forward(
        self,
        rows: Rows,
        token_mask: Tensor | None = None,
        *,
        against: Prediction | None = None,
        reference_first: bool = True,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """Log-probability of every wanted token given the tokens before it.

        Args:
            rows: N rows of at most T tokens.
            token_mask: `[N, T]` bool, tokens whose log-probability is wanted; default all real ones.
            against: Another model's prediction of the same rows, to be compared with over the whole vocabulary.
            reference_first: Direction of that comparison: KL(other || this), or KL(this || other).
            temperature: Divides the logits before log-probabilities are taken, as a sampler does; the comparison over
                the whole vocabulary is at temperature 1.

        Returns:
            `[N, T]` by name, float32 (or wider, as the model). "logps": entry (n, t) is log p(ids[n, t] | ids[n, :t])
            in nats where wanted, 0 elsewhere and at t = 0. "kl": the divergence, with `against`. And the scorer's own
            `outputs`, at every real token but the first.
        """
        prediction = self.predict(rows)
        edges = rows.edges(token_mask)
        before = rows.parent[edges]

        def read_back(values: Tensor) -> Tensor:
            packed = values.new_zeros(len(rows.ids)).index_put((edges,), values)
            return rows.to_rows(packed, token_mask)

        result = {"logps": read_back(prediction.logps(before, rows.ids[edges], temperature=temperature))}
        result |= {name: rows.to_rows(packed) for name, packed in self.outputs(rows, prediction).items()}
        if against is not None:
            kl = divergence(prediction, against, before, reference_first=reference_first)
            result["kl"] = read_back(kl)
        return result


class ModelScorer(TokenScorer):
    """A causal language model as a scorer.

    Only the tokens asked for go through the vocabulary projection, a chunk at a time, wherever logits are the
    projection of the last hidden states, soft-capped or not. Other architectures are scored from their full logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._direct_head: bool | None = None

    def predict(self, rows: Rows) -> Prediction:
        """Hidden states and the head that reads them where the head is plain, else logits."""
        inner = base_model(self.model)
        if not self._head_is_direct():
            return Prediction(self._reader()(rows))
        head = cast("nn.Linear", inner.get_output_embeddings())
        return Prediction(self._reader()(rows), head.weight, head.bias, final_cap(inner))

    def engaged(self) -> AbstractContextManager[None]:
        """The model attends over forests until its backward pass is done."""
        return self._reader().attending()

    def packs(self) -> bool:
        """Whether the architecture reads forests."""
        return self._reader().packs()

    def _reader(self) -> Reader:
        inner = base_model(self.model)
        if self._head_is_direct():
            return Reader(inner.get_decoder(), "last_hidden_state")
        return Reader(inner, "logits")

    @torch.no_grad()
    def _head_is_direct(self) -> bool:
        """Whether logits are exactly head(hidden), soft-capped if the config says so; probed once on three tokens.

        Some architectures scale or shift logits after the head, and adapters may sit on the head itself: those that
        start as the identity would pass the probe, so the head must be a plain linear layer to begin with.
        """
        if self._direct_head is None:
            inner = base_model(self.model)
            head = inner.get_output_embeddings()
            self._direct_head = False
            if type(head) is nn.Linear:
                with acting(self.model):
                    ids = torch.tensor([[1, 2, 3]], device=head.weight.device) % head.out_features
                    hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
                    mine = soft_cap(head(hidden), final_cap(inner)).float()
                    theirs = self.model(input_ids=ids, use_cache=False).logits.float()
                # Relative to the spread: a random model's logits are so small that scaling them hides in a constant.
                self._direct_head = bool((mine - theirs).abs().max() <= 1e-3 * theirs.abs().max())
        return self._direct_head


@contextmanager
def acting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every part of a model; afterwards each part has the mode it had."""
    changed = [module for module in model.modules() if module.training]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True


def final_cap(model: PreTrainedModel) -> float | None:
    """c of the soft cap on a model's final logits, or None."""
    return cast("float | None", getattr(model.config.get_text_config(), "final_logit_softcapping", None))
