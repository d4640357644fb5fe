"""A real vLLM on this machine's CPU as an engine: our scorer's numbers, weights changed under it, a kill in the middle.

Run by `make vllm`, in an environment of its own (scripts/vllm.sh). Three servers are started once, which takes minutes:
two whose weights are replaced, and one for adapters.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.engines.settings import EngineChoice, TokenServers
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.protocols.iterate import iterate
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.trajectory import Trajectory

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20
_STARTING_S = 900


class Chat(gymnasium.Env[str, str]):
    """Three turns; what pays is the share of letters from A to Z in an answer."""

    on_step: Any = None  # called at every step

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 3
        return f"the cat counted {self.np_random.integers(1000)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if type(self).on_step is not None:
            type(self).on_step()
        self.left -= 1
        plain = sum(letter.isascii() and letter.isalpha() for letter in action)
        return f"and {self.left} times", plain / max(1, len(action)), self.left == 0, False, {}


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def policy(seed: int = 0) -> Policy:
    return tiny_policy(WORDS, seed=seed, vocab_size=280, hidden=128, layers=2, heads=2, init=0.1, version=f"w{seed}")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("vllm")
    policy().save_pretrained(folder / "policy")
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started: list[Server] = []
    for number in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "policy"),
            "--served-model-name", "policy", "--dtype", "float32", "--max-model-len", "400", "--enforce-eager",
            "--logprobs-mode", "processed_logprobs", *(["--enable-lora"] if number == 2 else []),
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        with open(folder / f"server-{number}.log", "wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        started.append(Server(f"http://127.0.0.1:{port}/v1", process))
    try:
        for number, server in enumerate(started):
            _await(server, folder / f"server-{number}.log")
        yield started
    finally:
        for server in started:
            if server.process.poll() is None:
                server.kill()


def _await(server: Server, log: Path) -> None:
    end = time.monotonic() + _STARTING_S
    while True:
        assert server.process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(server.url.removesuffix("/v1") + "/health", timeout=5):
                return
        except OSError:
            time.sleep(1)


def agent(engine: EngineChoice, of: Policy, **how: Any) -> Any:
    sampling = Sampling(**{"max_new_tokens": 12, **how})
    return TransformerAgent(of, sampling=sampling, max_tokens=300, slots=8, engine=engine)


def played(by: TransformerAgent, **options: Any) -> list[Trajectory]:
    groups = collect(by, Chat, **{"groups": 4, "group_size": 2, "seed": 5, "progress": False, **options})
    return [member for group in groups for member in group]


def said(members: list[Trajectory]) -> list[list[int]]:
    return [turn.action_ids.tolist() for member in members for turn in member.turns]


def furthest(of: Policy, sampling: Sampling, members: list[Trajectory]) -> float:
    """The largest difference of recorded log-probabilities from those of our scorer, in nats."""
    worst = 0.0
    for member in members:
        ids, turn = member.tokens
        row = torch.from_numpy(ids[None].astype(np.int64))
        with torch.no_grad():
            logps = sampling.log_probs(of.model(input_ids=row).logits[0, :-1])
        own = logps.gather(1, row[0, 1:, None])[:, 0].numpy()[turn[1:] >= 0]
        worst = max(worst, float(np.abs(np.concatenate([each.logps for each in member.turns]) - own).max()))
    return worst


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.7},
        {"min_p": 0.02},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.9},
        {"stop": tuple("aeiou")},
    ],
    ids=str,
)
def test_log_probabilities_are_our_scorers(servers: list[Server], how: dict[str, Any]) -> None:
    mine = policy()
    acting = agent(servers[0].url, mine, **how)
    members = played(acting)
    assert all(member.valid for member in members)
    assert furthest(mine, acting.sampling, members) < 1e-3
    if "stop" in how:
        decode = mine.tokenizer.decode
        assert not any(text in decode(ids[:-1]) for ids in said(members) for text in how["stop"])


def test_greedy_tokens_are_the_exact_engines(servers: list[Server]) -> None:
    mine = policy()
    found = said(played(agent(servers[0].url, mine, temperature=0.0)))
    assert found == said(played(agent("exact", mine, temperature=0.0)))


def test_weights_are_changed_under_it(servers: list[Server]) -> None:
    mine = policy(1)
    handed = TokenServers(urls=tuple(server.url for server in servers[:2]), weights="handed")
    acting = agent(handed, mine, temperature=0.0)
    for _ in range(3):
        assert said(played(acting)) == said(played(agent("exact", mine, temperature=0.0)))
        with torch.no_grad():
            for parameter in mine.model.parameters():
                parameter.mul_(1.15)


def test_an_adapter_is_loaded_for_every_change(servers: list[Server]) -> None:
    handed = TokenServers(urls=(servers[2].url,), weights="handed")
    mine = policy().with_adapters(4)
    acting = agent(handed, mine, temperature=0.0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in mine.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05
        assert said(played(acting)) == said(played(agent("exact", mine, temperature=0.0)))


def test_a_policy_learns_from_its_tokens(servers: list[Server], tmp_path: Path) -> None:
    """As from the exact engine's. VLLM_SEEDS=3,4,5 makes several runs of each, to compare their means."""
    engines: dict[str, EngineChoice] = {"exact": "exact", "vllm": servers[0].url}
    before = np.array([member.total_reward for member in played(agent("exact", policy()), groups=48)])
    print(f"before {before.mean():.3f}")
    for seed in map(int, os.environ.get("VLLM_SEEDS", "3").split(",")):
        after: dict[str, float] = {}
        for name, engine in engines.items():
            mine = policy()
            records = iterate(
                MDPO(beta=0.1), mine, _registered(), out=tmp_path / f"{name}-{seed}", iterations=3,
                collect=CollectOptions(
                    groups=24, group_size=4, sampling=Sampling(max_new_tokens=12), max_tokens=300, engine=engine,
                    slots=16,
                ),
                batch_size=12, epochs=3.0, options=TrainOptions(lr=2e-3, cpu=True), seed=seed, progress=False,
            )  # fmt: skip
            assert [record.invalid for record in records[1:]] == [0, 0, 0]
            rewards = [member.total_reward for member in played(agent("exact", mine), groups=48)]
            after[name] = float(np.mean(rewards))
        print(f"seed {seed}: exact {after['exact']:.3f}, vLLM {after['vllm']:.3f}")
        assert sum(after.values()) / len(after) > before.mean() + 0.05


def test_a_server_of_ones_own_is_started_given_weights_and_started_again_when_it_dies() -> None:
    mine = policy(1)
    acting = agent("vllm", mine, temperature=0.0)
    expected = said(played(agent("exact", mine, temperature=0.0)))
    assert said(played(acting)) == expected
    with torch.no_grad():
        for parameter in mine.model.parameters():
            parameter.mul_(1.15)
    expected = said(played(agent("exact", mine, temperature=0.0)))
    again = agent("vllm", mine, temperature=0.0)  # another agent goes on with the same server
    assert again.engine._own is acting.engine._own
    assert said(played(again)) == expected
    process = again.engine._own._process
    os.killpg(process.pid, signal.SIGKILL)
    assert said(played(again)) == expected
    assert again.engine._own._process is not process
    running = again.engine._own._process
    del acting, again, mine
    gc.collect()
    assert running.wait(timeout=30) is not None


def _registered() -> str:
    name = "polyturn-tests/Letters-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=Chat)
    return name


def test_it_is_killed_in_the_middle(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conversations go on with the other server, which is given the weights: nothing is lost. The last test."""
    mine, steps = policy(2), 0

    def count() -> None:
        nonlocal steps
        steps += 1
        if steps == 9:
            servers[0].kill()

    monkeypatch.setattr(Chat, "on_step", staticmethod(count))
    handed = TokenServers(urls=tuple(server.url for server in servers[:2]), weights="handed", backoff=0.1)
    acting = agent(handed, mine)
    members = played(acting, groups=8)
    assert all(member.valid and len(member.turns) == 3 for member in members)
    assert furthest(mine, acting.sampling, members) < 1e-3
    where = [[turn.info["agent"]["server"] for turn in member.turns] for member in members]
    assert any(each == [servers[0].url] * 3 or each[0] == servers[0].url for each in where)
    assert any(each[0] != each[-1] for each in where)
