"""One causal language model as a policy: load, save, and score tokens. Sampling is in `generation.py`."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from turnwise.agents.tokens import ChatFormat

# Logits of this many positions are alive at a time while scoring; bounds memory at vocabulary x chunk.
_SCORE_CHUNK = 2048


class PolicyLoadError(ValueError):
    """A folder or Hub id that does not hold a usable causal language model with a chat template."""


class Scorer(nn.Module):
    """The model as a function from tokens to log-probabilities; what a trainer wraps for distribution.

    Only the positions asked for go through the vocabulary projection, a chunk at a time, and a chunk's logits are
    recomputed in the backward pass rather than kept.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._direct_head: bool | None = None

    def forward(self, ids: Tensor, mask: Tensor, where: Tensor | None = None) -> Tensor:
        """Log-probability of every wanted token given the tokens before it.

        Args:
            ids: `[N, T]` int64, right padded.
            mask: `[N, T]` bool, True on real tokens.
            where: `[N, T]` bool, tokens whose log-probability is wanted; default all real ones.

        Returns:
            `[N, T]` float32 in nats: entry (n, t) is log p(ids[n, t] | ids[n, :t]) where wanted, 0 elsewhere and
            at t = 0.
        """
        wanted = (mask if where is None else where & mask).clone()
        wanted[:, 0] = False
        target = ids[wanted]
        before = torch.zeros_like(wanted)
        before[:, :-1] = wanted[:, 1:]
        attention = None if bool(mask.all()) else mask.long()
        if self._head_is_direct():
            body = _inner(self.model).get_decoder()
            hidden = body(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state[before]
            picked = self._pick(hidden, target)
        else:
            logits = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[before]
            picked = _log_prob(logits, target)
        return torch.zeros(ids.shape, dtype=torch.float32, device=ids.device).masked_scatter(wanted, picked)

    def _pick(self, hidden: Tensor, target: Tensor) -> Tensor:
        head = _inner(self.model).get_output_embeddings()
        cap = getattr(_inner(self.model).config.get_text_config(), "final_logit_softcapping", None)

        def chunk(part: Tensor, wanted: Tensor) -> Tensor:
            return _log_prob(_softcap(head(part), cap), wanted)

        if len(target) <= _SCORE_CHUNK:
            return chunk(hidden, target)
        parts = [
            checkpoint(chunk, h, t, use_reentrant=False) if torch.is_grad_enabled() else chunk(h, t)
            for h, t in zip(hidden.split(_SCORE_CHUNK), target.split(_SCORE_CHUNK), strict=True)
        ]
        return torch.cat(cast("list[Tensor]", parts))

    @torch.no_grad()
    def _head_is_direct(self) -> bool:
        """Whether logits are exactly head(hidden), soft-capped if the config says so; probed once on three tokens.

        Some architectures scale or bias logits after the head. For those the whole forward pass is used instead.
        """
        if self._direct_head is None:
            inner = _inner(self.model)
            training = inner.training
            inner.eval()
            ids = torch.tensor([[1, 2, 3]], device=next(inner.parameters()).device)
            hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
            mine = _softcap(inner.get_output_embeddings()(hidden), cap)
            theirs = inner(input_ids=ids, use_cache=False).logits
            inner.train(training)
            self._direct_head = bool(torch.allclose(mine.float(), theirs.float(), atol=1e-3, rtol=1e-3))
        return self._direct_head


class Policy:
    """A causal language model, its tokenizer and its chat format.

    Attributes:
        model: Any `transformers` causal language model (or a peft model around one).
        tokenizer: Its tokenizer; must have a chat template.
        chat: How conversations become tokens.
        version: Name of the weights, recorded in every trajectory it samples.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        version: str = "",
        system: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.version = version
        self.chat = ChatFormat(tokenizer, system=system, stop_ids=_stop_ids(model))
        self.scorer = Scorer(model)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        version: str | None = None,
        system: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        **model_options: Any,
    ) -> Policy:
        """Loads a local folder or Hub id.

        Args:
            source: Folder written by `save_pretrained`, or a Hub id.
            version: Name of the weights; default the one saved beside them, else `source`.
            system: System prompt put before every conversation.
            device: Where to put the model; default the accelerator if there is one.
            dtype: Weights' type; "auto" takes the saved one.
            model_options: Passed to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            PolicyLoadError: No model there, no tokenizer, or no chat template.
        """
        folder = Path(source)
        if not folder.is_dir() and (folder.is_absolute() or str(source).startswith((".", "~")) or folder.exists()):
            raise PolicyLoadError(f"expected a model folder, got {str(source)!r}, which is not a folder")
        try:
            AutoConfig.from_pretrained(str(source))
            tokenizer = AutoTokenizer.from_pretrained(str(source))
            model = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, **model_options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise PolicyLoadError(
                f"expected a causal language model with its tokenizer at {str(source)!r}; loading said: {reason}"
            ) from error
        note = folder / "turnwise.json"
        saved = json.loads(note.read_text("utf-8")) if note.is_file() else {}
        cast("nn.Module", model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(
            model.eval(),
            tokenizer,
            version=str(saved.get("version", source)) if version is None else version,
            system=saved.get("system") if system is None else system,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes safetensors weights, config, tokenizer, and the version and system prompt beside them."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))
        note = {"version": self.version, "system": self.chat.system}
        (path / "turnwise.json").write_text(json.dumps(note, indent=1) + "\n", "utf-8")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def logps(self, ids: Tensor, mask: Tensor, where: Tensor | None = None) -> Tensor:
        """Log-probabilities of given tokens; see `Scorer.forward`."""
        return cast("Tensor", self.scorer(ids, mask, where))

    def copy(self, *, version: str | None = None) -> Policy:
        """An independent, frozen copy, for use as a reference or an opponent."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        name = self.version if version is None else version
        return Policy(model, self.tokenizer, version=name, system=self.chat.system)


def _inner(model: nn.Module) -> PreTrainedModel:
    """The transformers model under peft's wrapper, adapters still in place."""
    base = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", base() if base is not None else model)


def _softcap(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _log_prob(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.float()
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)


def _stop_ids(model: PreTrainedModel) -> frozenset[int]:
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    return frozenset([eos] if isinstance(eos, int) else eos or [])
