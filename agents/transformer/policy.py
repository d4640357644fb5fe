"""One causal language model as a policy: load, save, and score tokens. Sampling is in `generation.py` beside it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, base_model
from polyturn.agents.transformer.tokens import ChatFormat
from polyturn.envs.extras import how_to_install

_BASE = "base"
"""Folder, inside an adapter's, of a base model that stands nowhere else."""


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
        ValueError: Adapters that add virtual tokens (prompt or prefix tuning): the tokens would not be all there is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        version: str = "",
        system: str | None = None,
    ) -> None:
        _check_adapters(model)
        _honour_attention_cap(model)
        self.model = model
        self.tokenizer = tokenizer
        self.version = version
        self.chat = ChatFormat(tokenizer, system=system, stop_ids=_stop_ids(model))
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
            version: Name of the weights; default the one saved beside them, else `source`.
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
        """Writes safetensors weights, config, tokenizer, and the version and system prompt beside them.

        Of a peft model only the adapter is written, and the base's name; a base that was never loaded from anywhere
        is written into the folder too.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(path))
        if hasattr(self.model, "peft_config") and not base_model(self.model).config._name_or_path:
            _save_base(self.model, path / _BASE)
        self.tokenizer.save_pretrained(str(path))
        note = {"version": self.version, "system": self.chat.system}
        (path / "polyturn.json").write_text(json.dumps(note, indent=1) + "\n", "utf-8")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """A digest of all weights: equal for equal weights, whatever they are called."""
        return fingerprint_of(parameter for _, parameter in sorted(self.model.named_parameters()))

    def logps(self, ids: Tensor, mask: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of given tokens; see `TokenScorer.forward`."""
        return cast("Tensor", self.scorer(Rows.of(ids, mask), token_mask)["logps"])

    def copy(self, *, version: str | None = None, trainable: bool = False) -> Policy:
        """An independent copy: frozen, for use as a reference or an opponent, unless it is to be trained."""
        model = copy.deepcopy(self.model).eval().requires_grad_(trainable)
        name = self.version if version is None else version
        twin = Policy.__new__(Policy)
        # The format is shared: it is a function of the tokenizer, and what it warned of was said once.
        twin.model, twin.tokenizer, twin.version, twin.chat, twin.scorer = (
            model,
            self.tokenizer,
            name,
            self.chat,
            ModelScorer(model),
        )
        return twin


def fingerprint_of(parameters: Iterable[Tensor]) -> str:
    """A digest of tensors in order, by type, shape and every bit."""
    found = hashlib.blake2b(digest_size=16)
    for parameter in parameters:
        value = parameter.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load_model(place: str, **options: Any) -> PreTrainedModel:
    """The model of a folder or Hub id, adapters included.

    Raises:
        PolicyLoadError: Weights are missing; transformers would start those at random.
    """
    if (Path(place) / "adapter_config.json").is_file():
        return _load_adapted(Path(place), **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    model, found = loaded
    missing = sorted(found["missing_keys"]) + [str(key[0]) for key in found.get("mismatched_keys", ())]
    if missing:
        raise PolicyLoadError(
            f"expected at {place!r} the weights that its config.json describes, got none (or others) for "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; the files are of different models"
        )
    return cast("PreTrainedModel", model)


def _load_adapted(folder: Path, **options: Any) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(
            f'{folder} holds an adapter, which needs the extra "peft": {how_to_install("peft")}'
        ) from error
    described = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    base = str(folder / _BASE) if (folder / _BASE).is_dir() else described.get("base_model_name_or_path")
    if not base:
        raise PolicyLoadError(f"expected an adapter that names its base model, got {str(folder)!r}, which names none")
    model = PeftModel.from_pretrained(_load_model(base, **options), str(folder), is_trainable=True)
    return cast("PreTrainedModel", model)


def _save_base(model: Any, folder: Path) -> None:
    """Writes the weights under the adapters with the names that they had before."""
    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in model.get_base_model().state_dict().items()
        if not any(f".{prefix}" in f".{name}" for prefix in ("lora_", "modules_to_save."))
    }
    model.get_base_model().save_pretrained(
        str(folder), state_dict={name.replace(".original_module.", "."): value for name, value in weights.items()}
    )


def _check_adapters(model: Any) -> None:
    for config in getattr(model, "peft_config", {}).values():
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(
                f"expected adapters that change weights, such as LoRA, got {type(config).__name__}: its virtual tokens "
                "stand in no trajectory"
            )


def _honour_attention_cap(model: Any) -> None:
    """Fused attention cannot soft-cap its logits (Gemma 2, arXiv 2408.00118), and some versions leave that unsaid."""
    inner = base_model(model)
    if _attention_cap(inner) is not None and inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation("eager")


def _attention_cap(model: PreTrainedModel) -> float | None:
    return cast("float | None", getattr(model.config.get_text_config(), "attn_logit_softcapping", None))


def _stop_ids(model: PreTrainedModel) -> frozenset[int]:
    config = getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    return frozenset([eos] if isinstance(eos, int) else eos or [])
