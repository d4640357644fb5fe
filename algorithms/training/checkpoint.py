"""Checkpoints that are either whole or not there: safetensors and JSON, never pickle.

A checkpoint is a folder `step-00000100` that holds the model as `save_pretrained` writes it (so it loads anywhere), the
optimizer's tensors, `state.json` (step, method, settings, position in the data), and `digests.json`, by which damage is
found before anything is loaded. It is written under another name, flushed to disk, and renamed; a process killed at any
moment leaves the previous checkpoints untouched.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyturn.agents.transformer.adapters import has_adapters, load_adapters_into
from polyturn.algorithms.training.optimizers import flatten_state, unflatten_state
from polyturn.algorithms.training.sharding import load_whole_state
from polyturn.envs.files import digest, flush

_FORMAT = 1
_TEMPORARY = ".tmp-"
DIGESTS = "digests.json"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was damaged after it was written, and an earlier one is used."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not belong to this run."""


class Saveable(Protocol):
    """A policy that can be written to a folder and read back."""

    @property
    def model(self) -> Any:
        """The network."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights and everything else that the policy needs."""
        ...

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> Saveable:
        """Reads them back."""
        ...


def name_of_step(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def checkpoints(out: str | Path) -> list[Path]:
    """Whole checkpoints under `out`, oldest first."""
    return sorted(path.parent for path in Path(out).glob("checkpoints/step-*/state.json"))


def latest(out: str | Path) -> Path | None:
    """The newest whole and undamaged checkpoint under `out`, or None where there is none at all.

    A damaged one is passed over with a `DamagedCheckpointWarning`.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    found = checkpoints(out)
    broken: list[str] = []
    for folder in reversed(found):
        if damage := damage_of(folder):
            broken.append(f"{folder.name}: {damage}")
            continue
        if broken:
            warnings.warn(
                f"{str(out)!r}: going on from {folder.name}, because later checkpoints are damaged: "
                f"{'; '.join(broken)}",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
        return folder
    if broken:
        raise CheckpointError(
            f"expected an undamaged checkpoint in {str(out)!r}, got none: {'; '.join(broken)}; restore the files from "
            "a backup, or pass another out to begin anew"
        )
    return None


def damage_of(folder: Path) -> str:
    """What is wrong with a checkpoint's files, or ""."""
    try:
        known: dict[str, str] = json.loads((folder / DIGESTS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        return f"{DIGESTS} cannot be read ({error})"
    for name, expected in known.items():
        try:
            found = digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected:
            return f"{name} is not what was written (digest {found}, expected {expected})"
    return ""


def prepare(out: Path, *, size: int, saves: int, keep: int) -> None:
    """Makes sure, before any work, that `out` can be written and has room.

    Args:
        out: The run's folder; made if missing.
        size: Bytes of one checkpoint.
        saves: How many checkpoints the run will still write.
        keep: How many stay.

    Raises:
        CheckpointError: It cannot be written, or the disk is too full.
    """
    folder = out / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(stale)
        probe = folder / f"{_TEMPORARY}probe"
        probe.mkdir()
        with (probe / "probe").open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(probe)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(
            f"expected a folder to write checkpoints to, got {str(out)!r}: {error.strerror or error}; pass another out"
        ) from error
    # One more than are kept: an old checkpoint goes only after the new one is whole.
    needed = size * max(0, min(keep + 1, len(checkpoints(out)) + saves) - len(checkpoints(out)))
    if free < needed:
        raise CheckpointError(
            f"expected {_human(needed)} free in {str(out)!r} for its checkpoints ({_human(size)} each), got "
            f"{_human(free)}; free some space, save less often, keep fewer, or pass another out"
        )


def save(
    out: Path,
    step: int,
    *,
    policy: Saveable,
    optimizer: str,
    optimizer_state: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Writes a whole checkpoint, then removes the oldest beyond `keep`.

    Args:
        out: The run's folder.
        step: Training steps done.
        policy: What was trained.
        optimizer: Name of its optimizer's class.
        optimizer_state: The optimizer's whole state, as its `state_dict` gives it.
        state: JSON values that `load_state` gives back.
        keep: How many checkpoints to leave.
        tensors: More to keep, by the name of a file and of a tensor; `load_tensors` gives it back.

    Returns:
        The checkpoint's folder; written already if it stood there.

    Raises:
        CheckpointError: It could not be written. Earlier checkpoints are intact.
    """
    folder = out / "checkpoints" / name_of_step(step)
    if not (folder / "state.json").exists():
        _write_whole(folder, lambda place: _fill(place, step, policy, optimizer, optimizer_state, state, tensors or {}))
    for old in checkpoints(out)[:-keep]:
        # Renamed first: a process killed here must not leave half a checkpoint under a checkpoint's name.
        gone = old.with_name(_TEMPORARY + old.name)
        old.rename(gone)
        shutil.rmtree(gone)
    return folder


def load_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as `state`, with "step" and "parameters" (name to shape).

    Raises:
        CheckpointError: Unreadable, or written by a newer version.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected a checkpoint, got {str(folder)!r}: {error}") from error
    if state.get("format") != _FORMAT:
        raise CheckpointError(f"{str(folder)!r}: expected format {_FORMAT}, got {state.get('format')}; update polyturn")
    return state


def check_same_run(folder: Path, policy: Saveable, method: Mapping[str, Any]) -> None:
    """Refuses to continue another architecture's or another method's run.

    Raises:
        CheckpointError: It names the first difference.
    """
    state = load_state(folder)
    remedy = "pass another out, or resume with what the run was started with"
    mine, theirs = parameters(policy.model), state["parameters"]
    for name in [*theirs, *mine]:
        if mine.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{str(folder)!r} is of another architecture: its parameter {name!r} is {_shape(theirs.get(name))}, "
                f"this model's is {_shape(mine.get(name))}; {remedy}"
            )
    for name in [*state["method"], *method]:
        if state["method"].get(name) != method.get(name):
            raise CheckpointError(
                f"{str(folder)!r} is of another method: its {name} is {state['method'].get(name)!r}, "
                f"this one's is {method.get(name)!r}; {remedy}"
            )


def load_weights(folder: Path, policy: Saveable) -> None:
    """Puts a checkpoint's weights into the policy's model, in place, bit for bit.

    Raises:
        CheckpointError: The files are damaged or do not fit.
    """
    try:
        if has_adapters(policy.model):
            load_adapters_into(policy.model, folder / "model")
            return
        loaded = type(policy).from_pretrained(folder / "model", device="cpu")
        policy.model.load_state_dict(loaded.model.state_dict())
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{str(folder)!r}: the saved weights cannot be loaded: {error}") from error


def load_tensors(folder: Path, name: str) -> dict[str, Tensor] | None:
    """What `save` was given in `tensors` under this name, or None.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = folder / f"{name}.safetensors"
    try:
        return load_file(file) if file.is_file() else None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(file)!r} cannot be read: {error}") from error


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's optimizer state into `optimizer`, whose parameters must be in the same order.

    The optimizer keeps its weight decay, a setting of the call that resumes; its other options are the saved ones.

    Raises:
        CheckpointError: The files are damaged or of another optimizer.
    """
    groups = optimizer.param_groups
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        description = json.loads((folder / "optimizer.json").read_text("utf-8"))
        state = {int(index): values for index, values in unflatten_state(tensors, description["state"]).items()}
        if description["class"] != type(optimizer).__name__:
            raise ValueError(f"expected {type(optimizer).__name__}, got the state of {description['class']}")
        # The decay is a setting of this call; the rate is set at every step, in the kind of number that is there.
        names = ("weight_decay", "lr")
        mine: list[dict[str, Any]] = [{name: group[name] for name in names if name in group} for group in groups]
        load_whole_state(optimizer, {"state": state, "param_groups": description["param_groups"]})
        for group, kept in zip(optimizer.param_groups, mine, strict=True):
            group.update(kept)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{str(folder)!r}: the optimizer's state cannot be loaded: {error}") from error


def parameters(model: nn.Module) -> dict[str, list[int]]:
    """Shape of every parameter by name."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def size_of(model: nn.Module) -> int:
    """Bytes of a checkpoint of `model` with Adam's two moments."""
    adapters = hasattr(model, "peft_config")
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    return (trained if adapters else whole) + 2 * trained


def _fill(
    place: Path,
    step: int,
    policy: Saveable,
    optimizer: str,
    saved: Mapping[str, Any],
    state: Mapping[str, Any],
    more: Mapping[str, Mapping[str, Tensor]],
) -> None:
    policy.save_pretrained(place / "model")
    for name, kept in more.items():
        save_file({key: value.contiguous() for key, value in kept.items()}, place / f"{name}.safetensors")
    tensors, described = flatten_state(saved["state"])
    save_file(_apart(tensors), place / "optimizer.safetensors")
    groups = [{name: float(v) if isinstance(v, Tensor) else v for name, v in g.items()} for g in saved["param_groups"]]
    description = {"class": optimizer, "param_groups": groups, "state": described}
    (place / "optimizer.json").write_text(json.dumps(description, indent=1), "utf-8")
    whole = {"format": _FORMAT, "step": step, "parameters": parameters(policy.model), **state}
    (place / "state.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies where two share memory, which safetensors refuses: quantized states have one table for all."""
    seen: set[int] = set()
    made = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        made[name] = value.clone() if place in seen else value
        seen.add(place)
    return made


def _write_whole(folder: Path, fill: Callable[[Path], None]) -> None:
    temporary = folder.with_name(_TEMPORARY + folder.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        known = {path.relative_to(temporary).as_posix(): digest(path) for path in files}
        (temporary / DIGESTS).write_text(json.dumps(known, indent=1) + "\n", "utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        temporary.rename(folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not write {str(folder)!r}: {error}; earlier checkpoints are intact, so make room and resume"
        ) from error


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else str(shape)


def _human(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
