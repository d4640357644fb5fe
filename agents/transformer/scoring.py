"""From token rows to the log-probability of every token: one seam for every kind of policy.

A scorer says what it predicts after each token (`predict`); log-probabilities, divergences from another model's
predictions, and whatever else it has to say of each token (`outputs`) follow from that in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyturn.agents.transformer.prediction import Prediction, divergence
from polyturn.agents.transformer.token_logps import soft_cap


class TokenScorer(nn.Module):
    """Log-probabilities of given tokens; what a trainer wraps for distribution. A subclass says what it predicts."""

    def predict(self, ids: Tensor, mask: Tensor) -> Prediction:
        """What is predicted after every token of `ids [N, T]`, as little of it as there is a need to keep."""
        raise NotImplementedError

    def outputs(self, ids: Tensor, mask: Tensor, prediction: Prediction) -> Mapping[str, Tensor]:
        """What else is said of each token, `[N, T]` by name, such as "values"; nothing by default."""
        return {}

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        token_mask: Tensor | None = None,
        *,
        against: Prediction | None = None,
        reference_first: bool = True,
    ) -> Tensor | dict[str, Tensor]:
        """Log-probability of every wanted token given the tokens before it.

        Args:
            ids: `[N, T]` int64, right padded.
            mask: `[N, T]` bool, True on real tokens.
            token_mask: `[N, T]` bool, tokens whose log-probability is wanted; default all real ones.
            against: Another model's prediction of the same rows, to be compared with over the whole vocabulary.
            reference_first: Direction of that comparison: KL(other || this), or KL(this || other).

        Returns:
            `[N, T]` float32 (or wider, as the model) in nats: entry (n, t) is log p(ids[n, t] | ids[n, :t]) where
            wanted, 0 elsewhere and at t = 0. Where there is more to say, a dictionary of these, "logps", the divergence
            "kl" `[N, T]` with `against`, and the scorer's own `outputs`.
        """
        prediction = self.predict(ids, mask)
        wanted = wanted_tokens(mask, token_mask)
        result = {"logps": prediction.logps(ids, wanted), **self.outputs(ids, mask, prediction)}
        if against is not None:
            result["kl"] = divergence(prediction, against, wanted, reference_first=reference_first)
        return result if len(result) > 1 else result["logps"]


class ModelScorer(TokenScorer):
    """A causal language model as a scorer.

    Only the positions asked for go through the vocabulary projection, a chunk at a time, wherever logits are the
    projection of the last hidden states, soft-capped or not. Other architectures are scored from their full logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._direct_head: bool | None = None

    def predict(self, ids: Tensor, mask: Tensor) -> Prediction:
        """See `TokenScorer.predict`: hidden states and the head that reads them where the head is plain."""
        attention = None if bool(mask.all()) else mask.long()
        if not self._head_is_direct():
            return Prediction(self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits)
        inner = base_model(self.model)
        hidden = inner.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        head = cast("nn.Linear", inner.get_output_embeddings())
        return Prediction(hidden, head.weight, head.bias, final_cap(inner))

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


def wanted_tokens(mask: Tensor, token_mask: Tensor | None) -> Tensor:
    """`[N, T]` bool: real tokens that are asked for and that something predicts (never the first of a row)."""
    wanted = (mask if token_mask is None else token_mask & mask).clone()
    wanted[:, 0] = False
    return wanted


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


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under peft's wrapper, adapters still in place."""
    base = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", base() if base is not None else model)


def final_cap(model: PreTrainedModel) -> float | None:
    return cast("float | None", getattr(model.config.get_text_config(), "final_logit_softcapping", None))
