"""One causal language model as a policy: load, save, and score tokens. Sampling is in `generation.py`."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from polyturn.agents.transformer.adapters import (
    AdapterError,
    Existing,
    check_adapters,
    has_adapters,
    is_adapter,
    load_adapted,
    save_adapters,
    weights_digest,
    with_lora,
)
from polyturn.agents.transformer.positions import position_limit as position_limit, restore_frequencies
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, base_model
from polyturn.agents.transformer.snapshot import Snapshot, WithoutAdapters
from polyturn.agents.transformer.tokens import ChatFormat


class EndTokenWarning(UserWarning):
    """The model's settings end a text at a token that is ordinary text for the tokenizer."""


class PolicyLoadError(ValueError):
    """A folder or Hub id that does not hold a usable causal language model with a chat template."""


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    """An attention that takes a mask of any shape; kernels that know only their own masks come back afterwards."""
    inner = base_model(model)
    before = inner.config._attn_implementation
    if before in ("sdpa", "eager"):
        yield
        return
    inner.set_attn_implementation("eager" if _attention_cap(inner) is not None else "sdpa")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


class Policy:
    """A causal language model, its tokenizer and its chat format.

    Attributes:
        model: Any `transformers` causal language model (or a peft model around one).
        tokenizer: Its tokenizer; must have a chat template.
        chat: How conversations become tokens.
        version: Name of the weights, recorded in every trajectory it samples.

    Raises:
        ChatTemplateError: The tokenizer's chat template is missing or cannot serve conversations.
        VocabularyError: Conversations need tokens that the model has no embedding for.
        AdapterError: Adapters that add virtual tokens (prompt or prefix tuning), as the tokens would not be all there
            is; or a peft model around another.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        version: str = "",
        system: str | None = None,
    ) -> None:
        check_adapters(model)
        _honour_attention_cap(model)
        restore_frequencies(model)
        self.model = model
        self.tokenizer = tokenizer
        self.version = version
        self.chat = ChatFormat(
            tokenizer, system=system, stop_ids=_stop_ids(model, tokenizer), vocabulary=_embeddings(model)
        )
        self.scorer = ModelScorer(model)

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
            version: Name of the weights; default the one saved with them, else `source`.
            system: System prompt put before every conversation.
            device: Where to put the model; default the accelerator if there is one.
            dtype: Weights' type; "auto" takes the saved one.
            model_options: Passed to `AutoModelForCausalLM.from_pretrained`.

        Raises:
            PolicyLoadError: No model there, no tokenizer, or no chat template.
        """
        folder = Path(source).expanduser()
        named = str(source).startswith((".", "~")) or folder.is_absolute() or len(Path(source).parts) > 2
        if not folder.is_dir() and (named or folder.exists()):
            raise PolicyLoadError(f"expected a model folder, got {str(source)!r}, which is not a folder")
        place = str(folder) if folder.is_dir() else str(source)
        hub = {
            k: model_options[k] for k in ("revision", "token", "trust_remote_code", "cache_dir") & model_options.keys()
        }
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **hub)
            model = _load_model(place, dtype=dtype, **model_options)
        except PolicyLoadError:
            raise
        except AdapterError as error:
            raise PolicyLoadError(str(error)) from error
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = "" if folder.is_dir() else "; there is no such folder here, so it was taken for a Hub id"
            raise PolicyLoadError(
                f"expected a causal language model with its tokenizer at {str(source)!r}{hint}; loading said: {reason}"
            ) from error
        note = folder / "polyturn.json"
        saved = json.loads(note.read_text("utf-8")) if note.is_file() else {}
        cast("nn.Module", model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(
            model.eval(),
            tokenizer,
            version=str(saved.get("version", source)) if version is None else version,
            system=saved.get("system") if system is None else system,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes safetensors weights, config, tokenizer, and the version and system prompt.

        Of a peft model its adapters are written, and where their base is to be found; a base that is not, to the last
        bit, what loading it from there gives (edited in memory, merged, resized, cast, never stored) is written into
        the folder too. What was written is loaded again and compared, weights and log-probabilities.

        Raises:
            AdapterError: A peft model that would not come back as it is.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        if rounded := _rounded_frequencies(self.model):
            warnings.warn(
                f"{rounded} is in half precision, as after model.half() or model.to(torch.bfloat16), and loading the "
                "saved weights gives it in float32: the loaded policy will not score as this one does. Cast the model "
                "before Policy(...), which keeps the frequencies whole, or load it with dtype=torch.bfloat16",
                stacklevel=2,
            )
        if has_adapters(self.model):
            save_adapters(self.model, path, _load_model)
        else:
            self.model.save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))
        note = {"version": self.version, "system": self.chat.system}
        (path / "polyturn.json").write_text(json.dumps(note, indent=1) + "\n", "utf-8")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """A digest of all weights: equal for equal weights, whatever their version is called."""
        return weights_digest(dict(self.model.named_parameters()))

    def logps(self, ids: Tensor, mask: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of given tokens; see `TokenScorer.forward`."""
        return cast("Tensor", self.scorer(Rows.of(ids, mask), token_mask)["logps"])

    def copy(self, *, version: str | None = None, trainable: bool = False) -> Policy:
        """An independent copy: frozen, for use as a reference or an opponent, unless it is to be trained."""
        model = copy.deepcopy(self.model).eval().requires_grad_(trainable)
        name = self.version if version is None else version
        return self._around(model, name)

    def snapshot(self) -> Policy | Snapshot:
        """The policy as it is now, for a reference: of a peft model a copy of only what is trained, else a `copy`."""
        return Snapshot(self.model, self.scorer) if has_adapters(self.model) else self.copy()

    def bare(self) -> WithoutAdapters:
        """A peft model's base without its adapters, for a reference.

        Raises:
            AdapterError: There are no adapters.
        """
        if not has_adapters(self.model):
            raise AdapterError("expected a policy with adapters, got one without; it is its own base")
        return WithoutAdapters(self.model, self.scorer)

    def with_adapters(self, rank: int, *, existing: Existing = "continue", seed: int = 0) -> Policy:
        """The policy with low-rank adapters (LoRA) to train, all else frozen. This object is not to be used any more.

        Args:
            rank: Of the adapters; alpha is twice that.
            existing: What is done with adapters that the policy has already: "continue" trains them further; "merge"
                adds them to the base's weights, which are then saved with the policy, and trains new ones; "stack"
                keeps them frozen in place and trains new ones on top.
            seed: Of new adapters' weights.

        Raises:
            AdapterError: Adapters of another rank to continue.
        """
        return self._around(with_lora(self.model, rank, existing=existing, seed=seed), self.version)

    def _around(self, model: PreTrainedModel, version: str) -> Policy:
        made = Policy.__new__(Policy)
        # The format is shared: it is a function of the tokenizer, and what it warned of was said once.
        made.model, made.tokenizer, made.version, made.chat = model, self.tokenizer, version, self.chat
        made.scorer = ModelScorer(model)
        return made


def _load_model(place: str, **options: Any) -> PreTrainedModel:
    """The model of a folder or Hub id, adapters included.

    Raises:
        PolicyLoadError: Weights are missing; transformers would start those at random.
    """
    if is_adapter(Path(place)):
        return load_adapted(Path(place), _load_model, **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    model, found = loaded
    missing = sorted(found["missing_keys"]) + [str(key[0]) for key in found.get("mismatched_keys", ())]
    if missing:
        raise PolicyLoadError(
            f"expected at {place!r} the weights that its config.json describes, got none (or others) for "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; the files are of different models"
        )
    return cast("PreTrainedModel", model)


def _honour_attention_cap(model: Any) -> None:
    """Fused attention cannot soft-cap its logits (Gemma 2, arXiv 2408.00118), and some versions leave that unsaid."""
    inner = base_model(model)
    if _attention_cap(inner) is not None and inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation("eager")


def _attention_cap(model: PreTrainedModel) -> float | None:
    return cast("float | None", getattr(model.config.get_text_config(), "attn_logit_softcapping", None))


def _rounded_frequencies(model: nn.Module) -> str:
    """The first rotary frequencies in half precision, or "".

    Those are no weights: they are not saved, and made in float32 when a model is loaded.
    """
    half = (torch.float16, torch.bfloat16)
    return next((n for n, b in model.named_buffers() if n.endswith("inv_freq") and b.dtype in half), "")


def _embeddings(model: PreTrainedModel) -> int | None:
    """Tokens that the model can read, or None where it does not say."""
    weight = getattr(base_model(model).get_input_embeddings(), "weight", None)
    return None if weight is None else int(weight.shape[0])


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The model's end tokens, less those that are letters or words for the tokenizer."""
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    ends = frozenset([eos] if isinstance(eos, int) else eos or [])
    # A configuration that names no end has its class's default, which may be any letter here.
    declared = tokenizer.added_tokens_decoder.keys() | {tokenizer.eos_token_id}
    wrong = sorted(number for number in ends - declared if number < tokenizer.vocab_size)
    if wrong:
        named = ", ".join(f"{number} ({tokenizer.convert_ids_to_tokens(number)!r})" for number in wrong)
        warnings.warn(
            f"the model's settings end a text at token {named}, which is ordinary text for its tokenizer; left out of "
            f"the end tokens. Set model.generation_config.eos_token_id to the tokenizer's ({tokenizer.eos_token_id}), "
            "or, to end there on purpose, make it the tokenizer's eos_token",
            EndTokenWarning,
            stacklevel=3,
        )
    return ends - frozenset(wrong)
