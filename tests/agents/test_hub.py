"""Uploads to the Hub, against a server on this machine that speaks its HTTP, and folders that other libraries load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub

from polyturn.agents import Policy, ScriptedAgent, collect, tiny_policy
from polyturn.agents.hub import Made, data_card, model_card, push_policy
from polyturn.envs import Store

MADE = Made(
    "mdpo", "my/base", "polyturn/Guess-v0", "polyturn train mdpo --model my/base | tee x", {"lr": 1e-3},
    {"mean return": 0.51234567, "steps": 3}, system="Be <|kind|> ```",
)  # fmt: skip
# The endpoint is read when the library is imported, so an upload runs in a process of its own.
PUSH = "import sys; from polyturn.agents.hub import push; print(push(sys.argv[1], sys.argv[2]))"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(["a town by the sea"], seed=3, hidden=32, layers=2, heads=2, version="v1")


def run(hub: FakeHub, *command: str, token: str = "hf_test") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_policy_is_uploaded_whole_with_its_card(policy: Policy, tmp_path: Path) -> None:
    """Every file of the folder, to the byte; the card names method, data, command and results; private by default."""
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(MADE, "me/kind"))
    with FakeHub() as hub:
        for _ in range(2):  # a repository that is there is written to again
            done = run(hub, sys.executable, "-c", PUSH, str(folder), "me/kind")
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == f"{hub.url}/me/kind"
    assert hub.made["me/kind"]["visibility"] == "private"
    assert {n: (folder / n).read_bytes() for n in hub.files["me/kind"]} == hub.files["me/kind"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "polyturn.json", "README.md"} <= set(
        hub.files["me/kind"]
    )


def test_a_card_says_how_the_policy_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import ModelCard

    text = model_card(MADE, "me/kind")
    card = ModelCard(text)
    assert card.data.base_model == "my/base"
    assert card.data.library_name == "transformers"
    assert "mdpo" in card.data.tags
    for said in (
        "| learned from | polyturn/Guess-v0 |",
        "polyturn train mdpo --model my/base | tee x",
        "0.5123",
        '"lr": 0.001',
    ):
        assert said in text
    assert "````text\nBe <|kind|> ```\n````" in text  # nothing in a prompt ends its block
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "here").mkdir(parents=True)  # a folder is no repository
    assert ModelCard(model_card(Made("sft", "runs/here", "d", "c"), "n", adapters=True)).data.base_model is None


def test_trajectories_are_uploaded_as_parquet_and_messages(tmp_path: Path) -> None:
    """The data set in the Hub's layout loads with `datasets`, as does the folder itself."""
    from datasets import load_dataset

    with Store(tmp_path / "s.jsonl") as store:
        groups = collect(ScriptedAgent(["50", "7"]), "polyturn/Guess-v0", groups=3, store=store, progress=False)
    with FakeHub() as hub:
        done = run(hub, sys.executable, "-c", PUSH, str(tmp_path / "s.jsonl"), "me/data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/datasets/me/data"
    place = tmp_path / "hub"
    place.mkdir()
    for name, content in hub.files["me/data"].items():
        (place / name).write_bytes(content)
    rows = load_dataset(str(place), "trajectories", split="train", cache_dir=str(tmp_path / "cache"))
    assert [len(row["turns"]) for row in rows] == [len(group[0].turns) for group in groups]
    said = load_dataset(str(place), "messages", split="train", cache_dir=str(tmp_path / "cache"))
    found = [{"role": each["role"], "content": each["content"]} for each in said[0]["messages"]]
    assert found == groups[0][0].messages()
    assert "| polyturn/Guess-v0 | scripted |  | 3 |" in (place / "README.md").read_text()


def test_what_cannot_be_uploaded_is_refused_before_any_upload(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a policy's folder"):
        push_policy(tmp_path, "me/x")
    policy.save_pretrained(tmp_path / "p")
    with pytest.raises(ValueError, match="expected a card"):
        push_policy(tmp_path / "p", "me/x")
    with pytest.raises(ValueError, match="USER/NAME"):
        push_policy(tmp_path / "p", "x", card="c")
    with Store(tmp_path / "s.jsonl"), pytest.raises(ValueError, match="got none"):
        data_card(tmp_path / "s.jsonl", "n")
    with FakeHub() as hub:
        done = run(hub, sys.executable, "-c", PUSH, str(tmp_path / "p"), "me/x", token="hf_wrong")
    assert "PermissionError: me/x: " in done.stderr
    assert "hf auth login" in done.stderr
    assert "hf_wrong" not in done.stderr
    assert hub.files == {}


def test_training_pushes_what_it_made(policy: Policy, tmp_path: Path) -> None:
    """`polyturn train --push`: one command from data to a repository, and none of it without a login."""
    policy.save_pretrained(tmp_path / "base")
    rows = [{"prompt": "a", "chosen": "sea", "rejected": "town"}] * 2
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable, "-m", "polyturn", "train", "ipo", "--model", str(tmp_path / "base"), "--data",
        str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run"), "--quiet", "--push", "me/trained",
    ]  # fmt: skip
    with FakeHub() as hub:
        refused = run(hub, *command, token="hf_wrong")
        assert refused.returncode == 1
        assert not (tmp_path / "run" / "policy").exists()
        done = run(hub, *command)
        assert done.returncode == 0, done.stderr
        assert f"{hub.url}/me/trained" in done.stdout
    card = hub.files["me/trained"]["README.md"].decode()
    assert "polyturn train ipo" in card
    assert "| method | ipo |" in card
    assert "pairs.jsonl" in card
    assert "| loss |" in card
    assert (tmp_path / "run" / "policy" / "README.md").read_text() == card


def test_a_saved_policy_loads_in_plain_transformers(policy: Policy, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy.save_pretrained(tmp_path / "p")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "p"),
        AutoTokenizer.from_pretrained(tmp_path / "p"),
    )
    mine, theirs = policy.model.state_dict(), model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    messages = [{"role": "user", "content": "where?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(ids) == policy.chat.context("where?").tolist()


def test_saved_adapters_load_in_plain_peft(policy: Policy, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    policy.save_pretrained(tmp_path / "base")
    adapted = Policy.from_pretrained(tmp_path / "base", device="cpu").with_adapters(2, seed=1)
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapted")
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapted")
    ids = torch.tensor([adapted.chat.context("where?").tolist()])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, adapted.model(ids).logits, atol=1e-6)
