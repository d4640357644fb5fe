"""Collections on a Ray cluster of two nodes: what one process would give, whoever is killed. Run by `make ray`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_agents import Counting, Killer, Unsendable, Waiting

from polyturn.agents import (
    AgentPartner,
    CollectError,
    CollectOptions,
    MixtureAgent,
    RayCluster,
    Sampling,
    TransformerAgent,
    collect,
    tiny_policy,
)
from polyturn.agents.collecting.collect import derived_seed
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Group

pytestmark = pytest.mark.ray
WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of two CPUs; this process is connected to the first."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        started.add_node(num_cpus=1)
        ray.init(address=started.address, log_to_driver=False, configure_logging=False)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def cluster(nodes: Any) -> Iterator[RayCluster]:
    with RayCluster() as made:
        yield made


def told(groups: list[Group]) -> list[dict[str, Any]]:
    return [member.to_json() for group in groups for member in group]


def stored(path: Path) -> list[dict[str, Any]]:
    found = [trajectory.to_json() for trajectory in read(path)]
    return sorted(found, key=lambda record: (record["group"], record["member"]))


def test_models_give_the_same_tokens_and_probabilities_as_in_one_process(cluster: RayCluster, tmp_path: Path) -> None:
    """Two members of one policy, one of a mixture; weights change between two collections with the same workers."""
    policy, reference = tiny_policy(WORDS, seed=0), tiny_policy(WORDS, seed=1)
    settings = {"sampling": Sampling(max_new_tokens=6, temperature=0.8), "max_tokens": 600, "slots": 4}
    agent = TransformerAgent(policy, **settings)  # type: ignore[arg-type]
    mixed = MixtureAgent(policy, reference, beta=0.3, **settings)  # type: ignore[arg-type]
    for seed in range(2):
        plan: dict[str, Any] = {"groups": 5, "group_size": 3, "seed": seed, "progress": False}
        here = collect([agent, agent, mixed], "polyturn/Guess-v0", **plan)
        with Store(tmp_path / f"{seed}.jsonl") as store:
            there = collect([agent, agent, mixed], "polyturn/Guess-v0", on=cluster, store=store, **plan)
        assert told(here) == told(there)
        assert any(turn.logps.size for group in there for member in group for turn in member.turns)
        weights = {record["agent"]: record["info"]["weights"] for record in stored(tmp_path / f"{seed}.jsonl")}
        assert weights == {agent.name: agent.fingerprint(), mixed.name: mixed.fingerprint()}
        policy.model.get_input_embeddings().weight.data.mul_(1.5)


def test_training_on_the_draw_before_is_reproducible(cluster: RayCluster) -> None:
    from polyturn.algorithms import GRPO, TrainOptions, online, train

    def run() -> tuple[list[float], list[float], str]:
        policy = tiny_policy(["Prompt 1."], seed=0, vocab_size=262, hidden=16, layers=1, heads=2, context=64)
        options = CollectOptions(
            groups=4, group_size=4, sampling=Sampling(max_new_tokens=2), max_tokens=60, env_options={"prompts": 4}
        )
        source = online(
            policy,
            "polyturn/TokenLength-v0",
            collect=options,
            reward=lambda trajectory: float(sum(turn.action_ids.sum() for turn in trajectory.turns) % 97),
            on=cluster,
            staleness=1,
        )
        settings = TrainOptions(lr=1e-2, cpu=True)
        history = train(GRPO(kl=0.0), policy, None, source, steps=4, options=settings, progress=False).history
        return [r["sample/lag"] for r in history], [r["loss"] for r in history], policy.fingerprint()

    first = run()
    assert first[0] == [0, 1, 1, 1]
    assert run() == first


def test_branches_partners_and_both_stores(cluster: RayCluster, tmp_path: Path) -> None:
    def run(name: str, on: RayCluster | None) -> tuple[list[dict[str, Any]], ...]:
        partner = AgentPartner(TransformerAgent(tiny_policy(WORDS, seed=2), sampling=Sampling(max_new_tokens=5)))
        paths = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-partner.jsonl"
        with Store(paths[0]) as store, Store(paths[1]) as partner_store:
            groups = collect(
                Counting(),
                "polyturn/CarDealer-v0",
                groups=4,
                group_size=2,
                branch_at=lambda group: group % 3,
                env_options={"buyer": partner},
                concurrency=1,
                on=on,
                store=store,
                partner_store=partner_store,
                progress=False,
            )
        return told(groups), stored(paths[0]), stored(paths[1])

    assert run("here", None) == run("there", cluster)


def test_trees(cluster: RayCluster, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"groups": 3, "group_size": 2, "branch_at": "every", "progress": False}
    with Store(tmp_path / "runs.jsonl") as store:
        there = collect(Counting(), "polyturn/Guess-v0", on=cluster, store=store, **plan)
    assert told(there) == told(collect(Counting(), "polyturn/Guess-v0", **plan))
    assert stored(tmp_path / "runs.jsonl") == told(there)


def test_a_store_is_gone_on_with_here_and_there(cluster: RayCluster, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"groups": 9, "group_size": 2, "seed": 4, "progress": False}
    whole = collect(Counting(), "polyturn/Guess-v0", **plan)
    with Store(tmp_path / "runs.jsonl") as store:
        collect(Counting(), "polyturn/Guess-v0", **(plan | {"groups": 3}), store=store)
        assert told(collect(Counting(), "polyturn/Guess-v0", on=cluster, store=store, **plan)) == told(whole)
        assert told(collect(Counting(), "polyturn/Guess-v0", store=store, **plan)) == told(whole)
    assert len(stored(tmp_path / "runs.jsonl")) == 18


def test_killed_workers_lose_nothing(cluster: RayCluster, tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    plan: dict[str, Any] = {"groups": 12, "group_size": 2, "seed": 5, "progress": False}
    whole = collect(Killer(lives), "polyturn/Guess-v0", **plan)
    for number in range(3):
        (lives / str(number)).touch()
    with Store(tmp_path / "runs.jsonl") as store:
        assert told(collect(Killer(lives), "polyturn/Guess-v0", on=cluster, store=store, **plan)) == told(whole)
    assert not list(lives.iterdir())
    assert stored(tmp_path / "runs.jsonl") == told(whole)  # each once


def test_a_group_that_kills_every_worker_ends_the_collection_with_a_reason(nodes: Any, tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    for number in range(9):
        (lives / str(number)).touch()
    agent = Killer(lives, seed=derived_seed(0, 2))
    with RayCluster(replays=1) as cluster, Store(tmp_path / "runs.jsonl") as store:
        with pytest.raises(
            CollectError, match=r"group 2, played alone, lost its worker 2 times.*run the same command again"
        ):
            collect(agent, "polyturn/Guess-v0", groups=8, on=cluster, store=store, progress=False)
        for life in lives.iterdir():
            life.unlink()
        again = collect(agent, "polyturn/Guess-v0", groups=8, on=cluster, store=store, progress=False)
    assert told(again) == told(collect(agent, "polyturn/Guess-v0", groups=8, progress=False))


def test_a_killed_node_loses_nothing(nodes: Any, tmp_path: Path) -> None:
    node = nodes.add_node(num_cpus=1)
    agent = Waiting(tmp_path, node.node_id)

    def kill() -> None:
        while not (tmp_path / node.node_id).exists():
            time.sleep(0.05)
        nodes.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    with RayCluster() as cluster:
        there = collect(agent, "polyturn/Guess-v0", groups=12, on=cluster, progress=False)
    killer.join()
    assert told(there) == told(collect(agent, "polyturn/Guess-v0", groups=12, progress=False))


DRIVER = """
import sys
from cluster_agents import Counting
from polyturn.agents import RayCluster, collect
from polyturn.envs.store import Store
with Store(sys.argv[1]) as store:
    collect(Counting(0.1), "polyturn/Guess-v0", groups=400, on=RayCluster("local", workers=2, cpus=0.5), store=store)
"""


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_a_dead_driver_or_head_leaves_a_store_that_is_gone_on_with(victim: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "3", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(path)], env=environment) as driver:
        try:
            while not path.exists() or len(stored(path)) < 3:
                assert driver.poll() is None
                time.sleep(0.1)
            os.kill(driver.pid if victim == "driver" else head_of(driver.pid), signal.SIGKILL)
            assert driver.wait(120) != 0
        finally:
            driver.kill()
    plan: dict[str, Any] = {"groups": 400, "progress": False}
    before = stored(path)
    assert 3 <= len(before) < 400
    with Store(path) as store:
        assert told(collect(Counting(), "polyturn/Guess-v0", store=store, **plan)) == told(
            collect(Counting(), "polyturn/Guess-v0", **plan)
        )
    assert len(stored(path)) == 400


def head_of(driver: int) -> int:
    """The process of a local cluster's head that a driver has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == driver and b"gcs_server" in (folder / "cmdline").read_bytes().split(b"\0")[0]:
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise AssertionError("no head")


def test_what_cannot_be_done_is_refused(cluster: RayCluster) -> None:
    with pytest.raises(ValueError, match=r"expected agents, options and an environment that can be pickled.*ship"):
        collect(Unsendable(), "polyturn/Guess-v0", on=cluster, progress=False)
    with pytest.raises(ValueError, match=r"expected a node with .*'GPU': 8"), RayCluster(gpus=8) as greedy:
        collect(Counting(), "polyturn/Guess-v0", on=greedy, progress=False)


def test_errors_in_workers_are_those_of_one_process(cluster: RayCluster) -> None:
    class Broken:
        max_concurrency = 2

        def act(self, episode: object) -> str:
            raise OSError("the simulator is not running")

    with pytest.raises(CollectError, match="every episode failed, the last with OSError: the simulator is not running"):
        collect(Broken(), "polyturn/Guess-v0", groups=3, on=cluster, progress=False)
    with pytest.raises(CollectError, match="16 episodes in a row failed"):
        collect(Broken(), "polyturn/Guess-v0", groups=100, on=cluster, progress=False)

    def misspelt() -> Any:
        raise TypeError("expected a level")

    with pytest.raises(TypeError, match="expected a level") as caught:
        collect(Counting(), misspelt, on=cluster, progress=False)
    assert any("worker" in note for note in caught.value.__notes__)


def test_each_worker_runs_programs_in_a_sandbox_of_its_own(cluster: RayCluster) -> None:
    from polyturn.agents import GoldAgent
    from polyturn.envs.tool_math.problems import load_problems

    problems = load_problems("generated:1:6")
    plan: dict[str, Any] = {
        "groups": 6,
        "tasks": range(6),
        "env_options": {"problems": problems, "sandbox": "local"},
        "progress": False,
    }
    there = collect(GoldAgent(problems), "polyturn/ToolMath-v0", on=cluster, **plan)
    assert all(member.valid for group in there for member in group)
    assert told(there) == told(collect(GoldAgent(problems), "polyturn/ToolMath-v0", **plan))


def test_from_the_command_line(nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polyturn.cli import main

    command = ["rollout", "polyturn/Guess-v0", "--agent", "random", "--groups", "5", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "there.jsonl"), "--ray", nodes.address]) == 0
    assert main([*command, "--out", str(tmp_path / "here.jsonl")]) == 0
    assert stored(tmp_path / "there.jsonl") == stored(tmp_path / "here.jsonl")
