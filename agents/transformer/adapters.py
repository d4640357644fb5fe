"""Adapters (peft): continued, merged or stacked, and saved so that they come back as they were.

An adapter's folder names its base model only where loading that name gives the base in memory, to the last bit.
Otherwise (edited in memory, merged, resized, cast, never stored) the base is written into the folder, and buffers that
a model computes for itself where they are not what it computes. What was written is read back before it counts as
saved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, acting, base_model
from polyturn.envs.extras import how_to_install
from polyturn.envs.settings import check_choice, check_count

BASE = "base"
"""Folder, inside an adapter's, of a base model that is stored nowhere else in this form."""
_NOTE, _BUFFERS = "adapters.json", "buffers.safetensors"
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DEFAULT = "default"
# Of a configuration: where it came from and how it computes, not what.
_UNTOLD = (
    "_name_or_path", "_commit_hash", "transformers_version", "_attn_implementation", "_attn_implementation_internal",
    "_experts_implementation", "_experts_implementation_internal", "use_cache", "architectures", "dtype", "torch_dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "base_model_name_or_path", "revision", "inference_mode",
)  # fmt: skip

Existing = Literal["continue", "merge", "stack"]
"""What new training does with adapters that are there: go on with them, merge them into the base, or keep them."""


class AdapterError(ValueError):
    """Adapters that cannot be trained as asked, or would not come back from a folder as they are."""


@dataclass(frozen=True)
class _Saved:
    """How a model is written: whether its base is inside, and its buffers; and what its structure is."""

    structure: str
    base: bool
    buffers: bool = False


@dataclass(frozen=True)
class _Difference:
    """What differs between a model and what its folder gives, and what could be written to mend that."""

    text: str
    remedy: Literal["base", "buffers"] | None = None


# How each model was written when its folder last came back right.
_verified: weakref.WeakKeyDictionary[nn.Module, _Saved] = weakref.WeakKeyDictionary()


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a peft model."""
    return bool(getattr(model, "peft_config", None)) and hasattr(model, "get_base_model")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters rather than a whole model."""
    return (folder / _CONFIG).is_file() or (folder / _NOTE).is_file()


def check_adapters(model: nn.Module) -> None:
    """Refuses what cannot be trained, saved and loaded here.

    Raises:
        AdapterError: Virtual tokens, or adapters wrapped around a model that has some already.
    """
    for config in getattr(model, "peft_config", {}).values():
        if getattr(config, "is_prompt_learning", False):
            raise AdapterError(
                f"expected adapters that change weights, such as LoRA, got {type(config).__name__}: its virtual tokens "
                "stand in no trajectory"
            )
    if has_adapters(model) and has_adapters(base_model(model)):
        raise AdapterError(
            "expected one peft model around a plain one, got a peft model around another, of which only the outer "
            "adapters act; use policy.with_adapters(rank, existing=...) with 'continue', 'merge' or 'stack'"
        )


def with_lora(model: Any, rank: int, *, existing: Existing = "continue", seed: int = 0) -> PreTrainedModel:
    """A model whose low-rank adapters (LoRA) are trained; see `Policy.with_adapters`."""
    check_count("rank", rank)
    check_choice("existing", existing, get_args(Existing))
    peft = _peft("training adapters")
    if has_adapters(model) and existing == "continue":
        ranks = {name: getattr(model.peft_config[name], "r", None) for name in model.active_adapters}
        if set(ranks.values()) != {rank}:
            raise AdapterError(
                f"expected rank {' and '.join(map(str, ranks.values()))}, that of the adapters to continue "
                f"({', '.join(ranks)}), got {rank}; pass that rank, or merge them into the base or stack new ones on "
                "them (existing='merge' or 'stack'; on the command line --adapter merge or stack)"
            )
        return cast("PreTrainedModel", model)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not has_adapters(model):
            return cast("PreTrainedModel", peft.get_peft_model(model, config))
        if existing == "merge":
            _check_mergeable(model)
            return cast("PreTrainedModel", peft.get_peft_model(model.merge_and_unload(), config))
        below = list(model.active_adapters)
        taken = model.peft_config
        name = next(f"stacked-{n}" for n in range(1, len(taken) + 2) if f"stacked-{n}" not in taken)
        model.add_adapter(name, config)
        _activate(model, [*below, name], [name])
    return cast("PreTrainedModel", model)


def _check_mergeable(model: Any) -> None:
    """Refuses adapters on a weight that other layers share: added to it, they would act in those layers too.

    Raises:
        AdapterError: There are such, as on the output head of a model that ties it to its embeddings.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name)
    for name, module in model.named_modules():
        weight = getattr(getattr(module, "base_layer", None), "weight", None)
        if isinstance(weight, Tensor) and len(shared := owners.get(weight.data_ptr(), [])) > 1:
            raise AdapterError(
                f"expected adapters on weights of their own to merge, got some on {name}, whose weight is also that of "
                f"another layer ({', '.join(shared[:2])}): merged, they would act in both; continue them, or stack new "
                "ones on them (existing='continue' or 'stack'; on the command line --adapter)"
            )


def save_adapters(model: Any, folder: Path, load: Callable[..., PreTrainedModel]) -> None:
    """Writes all adapters of a model, and its base unless that is stored elsewhere in this form; then reads them back.

    The first time, and whenever anything but the adapters' weights has changed, the whole model is loaded again and
    compared with the present one: weights bit for bit, settings, and the log-probabilities of a few tokens.
    Otherwise the adapters' files are.

    Args:
        model: A peft model.
        folder: Where to.
        load: From a base's place and options to the base.

    Raises:
        AdapterError: What was written does not give back the model; the message says what differs.
    """
    merged = [name for name, module in model.named_modules() if getattr(module, "merged", False) is True]
    if merged:
        raise AdapterError(
            f"cannot save adapters merged into their base in place ({merged[0]} and {len(merged) - 1} others), "
            "as the base would hold them twice; call model.unmerge_adapter(), or make a plain model of both with "
            "model.merge_and_unload()"
        )
    digest = weights_digest(base_weights(model))
    structure = _structure(model, digest)
    known = _verified.get(model)
    how = _Saved(structure, base=_place(base_model(model)) is None)
    if known is not None and known.structure == structure:
        how = known
    while True:
        _write(model, folder, digest, how)
        found = _files_differ(model, folder) if known == how else _reloaded_differs(model, folder, load)
        if found is None:
            _verified[model] = how
            return
        if found.remedy is None or getattr(how, found.remedy):
            raise AdapterError(
                f"the policy was written to {str(folder)!r}, but what comes back from there is another one: "
                f"{found.text}; save a plain model (model.merge_and_unload()), or undo what was changed in memory"
            )
        how = replace(how, base=how.base or found.remedy == "base", buffers=how.buffers or found.remedy == "buffers")


def load_adapted(folder: Path, load: Callable[..., PreTrainedModel], **options: Any) -> PreTrainedModel:
    """Loads a base with all of its adapters; those that were trained are to be trained again.

    Args:
        folder: Written by `save_adapters`, or by peft.
        load: From a base's place and options to the base.
        options: Of the base; its type of number is the saved one where `dtype` is "auto".

    Raises:
        AdapterError: The base is not there any more, or has other weights than when the adapters were saved.
    """
    peft = _peft(f"{folder} holds adapters;")
    note = json.loads((folder / _NOTE).read_text("utf-8")) if (folder / _NOTE).is_file() else {}
    names: list[str] = note.get("adapters", [_DEFAULT])
    first = json.loads((_subfolder(folder, names[0]) / _CONFIG).read_text("utf-8"))
    described = note.get("base", {})
    inside = (folder / BASE).is_dir()
    place = str(folder / BASE) if inside else described.get("name") or first.get("base_model_name_or_path")
    if not place:
        raise AdapterError(f"expected adapters that name their base model, got {str(folder)!r}, which name none")
    if options.get("dtype") == "auto" and described.get("dtype"):
        options = {**options, "dtype": getattr(torch, described["dtype"])}
    revision = described.get("revision") or first.get("revision")
    if revision and not Path(place).is_dir():
        options = {"revision": revision, **options}
    base: Any = load(place, **options)
    if inside:
        base.config._name_or_path = base.name_or_path = ""  # it is stored nowhere else
    if (folder / _BUFFERS).is_file():
        for name, value in load_file(folder / _BUFFERS).items():
            module, _, buffer = name.rpartition(".")
            base.get_submodule(module)._buffers[buffer] = value
    if (folder / "generation_config.json").is_file():
        base.generation_config = GenerationConfig.from_pretrained(str(folder))
    kept = {"dtype": str(base.dtype).removeprefix("torch."), "digest": weights_digest(base.state_dict())}
    if described.get("digest") and kept["dtype"] == described["dtype"] and kept["digest"] != described["digest"]:
        raise AdapterError(
            f"expected at {place!r} the base model that the adapters in {str(folder)!r} were trained over (weights "
            f"{described['digest']}), got other weights ({kept['digest']}): it was written over since; restore it"
        )
    with warnings.catch_warnings():
        # peft warns of a second adapter as of one by mistake.
        warnings.filterwarnings("ignore", message=".*(multiple adapters|modify a model with PEFT for a second).*")
        model: Any = peft.PeftModel.from_pretrained(
            base, str(_subfolder(folder, names[0])), adapter_name=names[0], is_trainable=True
        )
        for name in names[1:]:
            model.load_adapter(str(_subfolder(folder, name)), adapter_name=name, is_trainable=True)
    _activate(model, note.get("active", names[:1]), note.get("trained", note.get("active", names[:1])))
    _cast(model, folder, names)
    return cast("PreTrainedModel", model)


def load_adapters_into(model: Any, folder: Path) -> None:
    """Puts a folder's adapters, and its base where that is inside, into a model of the same structure, in place.

    Raises:
        AdapterError: The model's base is not the one that the adapters were saved over.
    """
    from peft import set_peft_model_state_dict

    note = json.loads((folder / _NOTE).read_text("utf-8")) if (folder / _NOTE).is_file() else {}
    described = note.get("base", {})
    if (folder / BASE).is_dir():
        saved = {k: v for file in sorted((folder / BASE).glob("*.safetensors")) for k, v in load_file(file).items()}
        mine = base_weights(model)
        with torch.no_grad():
            for name, value in saved.items():
                mine[name].copy_(value)
    if described.get("digest") and (mine_is := weights_digest(base_weights(model))) != described["digest"]:
        raise AdapterError(
            f"expected a model over the base that the adapters in {str(folder)!r} were trained over (weights "
            f"{described['digest']}), got another base ({mine_is})"
        )
    for name in note.get("adapters", [_DEFAULT]):
        set_peft_model_state_dict(model, load_file(_subfolder(folder, name) / _WEIGHTS), adapter_name=name)


def base_weights(model: Any) -> dict[str, Tensor]:
    """Weights and buffers under the adapters, with the names that they had before; a plain model's own."""
    if not has_adapters(model):
        plain: dict[str, Tensor] = model.state_dict()
        return plain
    inner = base_model(model)
    return _unwrapped(inner, inner.state_dict())


def _unwrapped(inner: nn.Module, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that belong to the base, with the names that they had before adapters were put around its layers."""
    wrapped = _wrapped(inner)
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if all(name.startswith(whole) for layer, whole in wrapped if name.startswith(layer)):
            found[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = value
    return found


def _computed(model: Any) -> dict[str, Tensor]:
    """Buffers that no file holds, as a model computes them for itself."""
    inner = base_model(model)
    stored = inner.state_dict().keys()
    return _unwrapped(inner, {name: value for name, value in inner.named_buffers() if name not in stored})


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A digest of tensors by name, type, shape and every bit."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        plain = value.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _peft(what: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f'{what} needs the extra "peft": {how_to_install("peft")}') from error
    return peft


def _subfolder(folder: Path, name: str) -> Path:
    """Where peft puts an adapter."""
    return folder if name == _DEFAULT else folder / name


def _place(inner: PreTrainedModel) -> tuple[str, str | None] | None:
    """Where a base was loaded from, absolute if it is a folder, and which revision it was; None if from nowhere."""
    name = str(inner.config._name_or_path or "")
    if not name:
        return None
    folder = Path(name).expanduser()
    return (str(folder.absolute()), None) if folder.is_dir() else (name, getattr(inner.config, "_commit_hash", None))


def _wrapped(inner: nn.Module) -> list[tuple[str, str]]:
    """Layers that peft has wrapped: their prefix, and the prefix of what was there before."""
    return [
        (f"{name}.", f"{name}.{child}.")
        for name, module in inner.named_modules()
        for child in ("base_layer", "original_module")
        if type(module).__module__.partition(".")[0] == "peft" and child in module._modules
    ]


def _adapter_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of an adapter, with the adapter's name."""
    inner = base_model(model)
    wrapped = _wrapped(inner)
    for name, parameter in inner.named_parameters():
        for layer, whole in wrapped:
            if name.startswith(layer) and not name.startswith(whole):
                parts = name[len(layer) :].split(".")
                yield from ((adapter, parameter) for adapter in model.peft_config if adapter in parts)
                break


def _activate(model: Any, active: Sequence[str], trained: Sequence[str]) -> None:
    """Lets several adapters act together, and some of them learn."""
    model.base_model.set_adapter(list(active))
    for adapter, parameter in _adapter_parameters(model):
        parameter.requires_grad_(adapter in trained)


def _trained(model: Any) -> list[str]:
    """Adapters of which something is trained."""
    learning = {adapter for adapter, parameter in _adapter_parameters(model) if parameter.requires_grad}
    return [adapter for adapter in model.peft_config if adapter in learning]


def _cast(model: Any, folder: Path, names: Sequence[str]) -> None:
    """Gives adapters the types of number that they were saved in; peft widens half precision."""
    from peft import get_peft_model_state_dict

    for name in names:
        file = _subfolder(folder, name) / _WEIGHTS
        if not file.is_file():
            continue
        saved = load_file(file)
        mine = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        places = {value.data_ptr(): key for key, value in mine.items()}
        for parameter in model.parameters():
            kept = saved.get(places.get(parameter.data_ptr(), ""))
            if kept is not None and kept.dtype != parameter.dtype:
                parameter.data = kept.to(parameter.device)


def _structure(model: Any, digest: str) -> str:
    """All that a folder must give back besides the adapters' weights."""
    configs = {name: _told(config.to_dict()) for name, config in model.peft_config.items()}
    types = sorted({str(p.dtype) for p in model.parameters()})
    settings = _told(base_model(model).config.to_dict())
    parts = (digest, settings, configs, list(model.active_adapters), _trained(model), types)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(settings.items()) if name not in _UNTOLD}


def _write(model: Any, folder: Path, digest: str, how: _Saved) -> None:
    inner = base_model(model)
    place = None if how.base else _place(inner)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    for name in model.peft_config:
        # peft records the place as it was given, which is another one from another working directory.
        file = _subfolder(folder, name) / _CONFIG
        config = json.loads(file.read_text("utf-8"))
        config["base_model_name_or_path"] = None if place is None else place[0]
        config["revision"] = None if place is None else place[1]
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    shutil.rmtree(folder / BASE, ignore_errors=True)
    if how.base:
        weights = {name: value.contiguous() for name, value in base_weights(model).items()}
        inner.save_pretrained(str(folder / BASE), state_dict=weights)
    (folder / _BUFFERS).unlink(missing_ok=True)
    if how.buffers:
        save_file({name: value.cpu().contiguous() for name, value in _computed(model).items()}, folder / _BUFFERS)
    note = {
        "adapters": list(model.peft_config),
        "active": list(model.active_adapters),
        "trained": _trained(model),
        "base": {
            "name": None if place is None else place[0],
            "revision": None if place is None else place[1],
            "dtype": str(inner.dtype).removeprefix("torch."),
            "digest": digest,
        },
    }
    (folder / _NOTE).write_text(json.dumps(note, indent=1) + "\n", "utf-8")
    if inner.generation_config is not None:
        inner.generation_config.save_pretrained(str(folder))


def _files_differ(model: Any, folder: Path) -> _Difference | None:
    """What is wrong with the adapters' files, or None."""
    from peft import get_peft_model_state_dict

    for name in model.peft_config:
        saved = load_file(_subfolder(folder, name) / _WEIGHTS)
        mine = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        for key in sorted(saved.keys() | mine.keys()):
            if key not in saved or key not in mine or not torch.equal(saved[key], mine[key].detach().cpu()):
                return _Difference(f"{key} of adapter {name!r} is not what was written")
    return None


def _reloaded_differs(model: Any, folder: Path, load: Callable[..., PreTrainedModel]) -> _Difference | None:
    """What differs between a model and what its folder gives, or None."""
    inner = base_model(model)
    # Code that came with the weights was trusted when the model was loaded.
    custom = {"trust_remote_code": True} if type(inner).__module__.startswith("transformers_modules") else {}
    try:
        other: Any = load_adapted(folder, load, dtype="auto", **custom)
    except Exception as error:  # of any kind: the folder cannot be used
        reason = str(error).splitlines()[0] if str(error) else ""
        return _Difference(f"loading it fails with {type(error).__name__}: {reason}", "base")
    cast("nn.Module", other).eval()
    # First, as some positional embeddings go back to what they were at a short pass.
    apart = float((_probe(model) - _probe(other)).abs().max())
    if text := _first_difference(base_weights(model), base_weights(other)):
        return _Difference(f"the base's {text}", "base")
    ours, its = (_told(each.config.to_dict()) for each in (inner, base_model(other)))
    for name in sorted(ours.keys() | its.keys()):
        if repr(ours.get(name)) != repr(its.get(name)):
            text = f"{name!r} is {ours.get(name)!r} in memory and {its.get(name)!r} when loaded"
            return _Difference(f"the base's setting {text}", "base")
    if text := _first_difference(_computed(model), _computed(other)):
        return _Difference(f"the buffer {text}", "buffers")
    if found := _files_differ(other, folder) or _files_differ(model, folder):
        return found
    for (name, one), two in zip(model.named_modules(), other.modules(), strict=False):
        for what in ("scaling", "disable_adapters"):
            mine, theirs = getattr(one, what, None), getattr(two, what, None)
            if repr(mine) != repr(theirs):
                return _Difference(f"{what} of {name} is {mine} in memory and {theirs} when loaded")
    # On another device, or in half precision, the same weights give log-probabilities that differ by rounding.
    exact = next(model.parameters()).device.type == "cpu" and inner.dtype in (torch.float32, torch.float64)
    if not apart <= (1e-4 if exact else 0.3):
        return _Difference(
            f"the log-probabilities of a few tokens differ by {apart:.3g} nats, though all weights are the same", "base"
        )
    return None


def _first_difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The first tensor that differs, and how; "" if all are equal bit for bit."""
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs:
            return f"{name!r} is {'not saved' if name in mine else 'new'}"
        if mine[name].dtype != theirs[name].dtype:
            return f"{name!r} is {mine[name].dtype} in memory and {theirs[name].dtype} when loaded"
        if not torch.equal(mine[name].detach().cpu(), theirs[name].detach().cpu()):
            return f"{name!r} has other values in memory than when loaded"
    return ""


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """`[1, 12]` log-probabilities of a few tokens."""
    device = next(model.parameters()).device
    embeddings: Any = base_model(model).get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    ids = (torch.arange(1, 13, device=device) * 7919 % size)[None]
    with acting(model):
        found = ModelScorer(model)(Rows.of(ids, torch.ones_like(ids, dtype=torch.bool)))
    return cast("Tensor", found["logps"]).float().cpu()
