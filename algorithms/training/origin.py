"""What a run was started with beside its settings: weights and data, by which a resumed run is held to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyturn.agents.transformer.adapters import weights_digest
from polyturn.algorithms.training.checkpoint import CheckpointError
from polyturn.algorithms.training.data_source import Source, source_fingerprint
from polyturn.algorithms.training.scoring import Scorable
from polyturn.envs.settings import changes


def origin_of(policy: Scorable, reference: Scorable | None, batches: Source) -> dict[str, Any]:
    """Digests of the policy's and the reference's weights, and what the source says of its data; JSON values.

    Args:
        policy: As it is given, before a checkpoint's weights take the place of its own.
        reference: As it is given; None where there is none, or where it is the policy as it was at the start.
        batches: Where the data comes from.
    """
    return {
        "policy": _digest(policy),
        "reference": None if reference is None else _digest(reference),
        "data": source_fingerprint(batches),
    }


def check_origin(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], *, latest: str) -> list[str]:
    """Holds a resumed run to what it was started with.

    Another reference is refused, as it is another objective. Another policy's weights are replaced by the checkpoint's,
    and other data may be meant, so those are named.

    Args:
        folder: The checkpoint.
        then: `origin_of` at the start; empty for runs of earlier versions.
        now: `origin_of` now.
        latest: Digest of the weights in the checkpoint: a policy that is already there is no other.

    Returns:
        What differs and is not refused, each as a phrase.

    Raises:
        CheckpointError: Another reference.
    """
    if not then:
        return []
    if then["reference"] != now["reference"]:
        raise CheckpointError(
            f"{str(folder)!r} was trained against another reference: its weights had the digest {then['reference']}, "
            f"this one's have {now['reference']}; pass the reference that the run was started with (the starting "
            "policy's copy, not the newest checkpoint's), or another out"
        )
    found = []
    if now["policy"] not in (then["policy"], latest):
        found.append(f"policy: the run was started from other weights ({then['policy']}), the checkpoint's are used")
    mine, theirs = (each["data"] or {} for each in (now, then))
    return found + [f"data: {change}" for change in changes(_flat(theirs), _flat(mine))]


def _digest(scorable: Scorable) -> str:
    known = getattr(scorable, "fingerprint", None)
    return str(known() if known is not None else weights_digest(dict(scorable.model.named_parameters())))


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with dotted names."""
    flat: dict[str, Any] = {}
    for name, each in value.items():
        inner = _flat(each) if isinstance(each, Mapping) else {"": each}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return flat
