"""Weights on their way to other processes: whole folders with digests, under a root that all of them see.

    ROOT/5f0c2a91.../            named after the fingerprint of the weights, so equal weights are written once
        model.safetensors ...    what `Policy.save_pretrained` writes
        manifest.json            version, fingerprint, and size and SHA-256 of every file

A folder is written under another name, forced to the disk and then renamed, so that a reader finds all of it or
nothing. Readers check every file before they load it: nothing but what was published acts.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyturn.agents.transformer.adapters import has_adapters
from polyturn.agents.transformer.policy import Policy

_MANIFEST = "manifest.json"


class WeightsError(RuntimeError):
    """Published weights are not there, or not as they were published."""


@dataclass(frozen=True)
class Published:
    """Where weights lie, and which they are.

    Attributes:
        folder: Holds them; its name is the fingerprint.
        fingerprint: As `Policy.fingerprint`.
        version: What the policy was called when they were published.
        system: Its system prompt.
        attention: The attention that the model had been given.
    """

    folder: str
    fingerprint: str
    version: str
    system: str | None = None
    attention: str | None = None


def publish(policy: Policy, root: str | os.PathLike[str]) -> Published:
    """Writes a policy's present weights under a root that others read; those that are there already stay.

    Args:
        policy: Whose.
        root: A folder that all readers see under the same path; made if it is missing.

    Raises:
        OSError: It cannot be written.
    """
    fingerprint = policy.fingerprint()
    folder = Path(root).absolute() / fingerprint
    attention = getattr(policy.model.config, "_attn_implementation", None)
    made = Published(str(folder), fingerprint, policy.version, policy.chat.system, attention)
    if (folder / _MANIFEST).is_file():
        return made
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{fingerprint}.{secrets.token_hex(4)}")
    try:
        policy.save_pretrained(partial)
        files = {}
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
        manifest = {"version": policy.version, "fingerprint": fingerprint, "files": files}
        with (partial / _MANIFEST).open("x", encoding="utf-8") as written:
            json.dump(manifest, written, indent=1)
            written.flush()
            os.fsync(written.fileno())
        _fsync_folder(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / _MANIFEST).is_file():  # else another writer of the same weights came first
                raise
        _fsync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def load_published(published: Published, *, device: str | torch.device | None = None) -> Policy:
    """The policy that was published, checked to the last byte.

    Raises:
        WeightsError: Its folder is missing, or a file is not as it was written; or, with adapters, their base is
            another than the one they were published with.
    """
    folder = Path(published.folder)
    check_published(folder)
    options: dict[str, Any] = {} if published.attention is None else {"attn_implementation": published.attention}
    policy = Policy.from_pretrained(
        folder, version=published.version, system=published.system, device=device, **options
    )
    if has_adapters(policy.model) and (found := policy.fingerprint()) != published.fingerprint:
        raise WeightsError(
            f"expected weights {published.fingerprint} from {folder}, got {found}: the base model that these adapters "
            "name is another one here; put the same base on every node"
        )
    return policy


def check_published(folder: Path) -> None:
    """Compares every file of a published folder with its digest.

    Raises:
        WeightsError: One is missing or differs.
    """
    try:
        files = json.loads((folder / _MANIFEST).read_text("utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if (size := path.stat().st_size) != expected["bytes"]:
                raise WeightsError(f"{path}: expected {expected['bytes']} bytes, got {size}; publish the weights again")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected["sha256"]:
                raise WeightsError(
                    f"{path}: expected SHA-256 {expected['sha256'][:16]}..., got {digest[:16]}...; the file is "
                    "damaged: remove the folder and publish the weights again"
                )
    except FileNotFoundError as error:
        raise WeightsError(
            f"expected published weights at {folder}, got no {error.filename}; the folder given as weights must be one "
            "that every node sees under the same path"
        ) from error


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
