"""Weights through a shared folder: all of them, as they were published, or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyturn.agents.transformer.engines import weights
from polyturn.agents.transformer.engines.weights import WeightsError, load_published, publish
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


@pytest.fixture
def policy() -> Policy:
    return tiny_policy(WORDS, seed=0)


def test_readers_have_the_weights_name_and_prompt_that_were_published(policy: Policy, tmp_path: Path) -> None:
    policy.version = "step-7"
    first = publish(policy, tmp_path)
    written = (Path(first.folder) / "model.safetensors").stat().st_mtime_ns
    read = load_published(first)
    assert (read.fingerprint(), read.version, read.chat.system) == (policy.fingerprint(), "step-7", policy.chat.system)
    ids = torch.arange(1, 9)[None]
    assert torch.equal(read.logps(ids, torch.ones_like(ids)), policy.logps(ids, torch.ones_like(ids)))
    assert publish(policy, tmp_path) == first
    assert (Path(first.folder) / "model.safetensors").stat().st_mtime_ns == written  # equal weights are written once
    policy.model.get_input_embeddings().weight.data.mul_(2)
    second = publish(policy, tmp_path)
    assert second.folder != first.folder
    assert load_published(first).fingerprint() == first.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "polyturn.json"])
def test_damaged_files_are_found_before_anything_acts_on_them(policy: Policy, tmp_path: Path, name: str) -> None:
    published = publish(policy, tmp_path)
    path = Path(published.folder) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match=f"{name}: expected SHA-256 .*publish the weights again"):
        load_published(published)
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match=f"{name}: expected {len(whole)} bytes, got {len(whole) - 1}"):
        load_published(published)
    path.unlink()
    with pytest.raises(WeightsError, match=r"every node sees under the same path"):
        load_published(published)


def test_a_writer_that_dies_leaves_nothing_that_a_reader_takes(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(weights.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "the disk failed")))
        with pytest.raises(OSError, match="the disk failed"):
            publish(policy, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert load_published(publish(policy, tmp_path)).fingerprint() == policy.fingerprint()
