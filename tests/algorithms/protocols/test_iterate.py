"""The iterative protocol: what it learns from, and that kill -9 anywhere leads to the same weights."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from flat_settings import flat

from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.methods.imitation import RAFT, SFT
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.protocols.iterate import Iteration, NothingToLearn, iterate, tasks_of
from polyturn.algorithms.protocols.warmup import demonstrations, warm_start
from polyturn.algorithms.training.checkpoint import CheckpointError
from polyturn.algorithms.training.data_source import steps_of
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_return, by_score
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import read
from polyturn.envs.trajectory import Group, Trajectory, Turn
from polyturn.sandbox.sandbox import SandboxLost

torch.set_num_threads(1)
ENV = "polyturn-tests/Vowels-v0"
WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


class Vowels(gymnasium.Env[str, str]):
    """Two turns; 1 point if the second action has more vowels than the first. `trouble` makes some episodes fail."""

    def __init__(self, reward: float | None = None, trouble: bool = False, delay: float = 0.0) -> None:
        self.reward, self.trouble, self.delay = reward, trouble, delay
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.said: list[int] = []
        task = (options or {}).get("task", int(self.np_random.integers(9)))
        return f"cat {task}", {"task_id": str(task)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.delay)
        self.said.append(len([letter for letter in action if letter in "aeiou"]))
        if self.trouble and len(action) % 4 == 3:
            raise SandboxLost("gone")
        over = len(self.said) == 2
        won = float(self.said[-1] > self.said[0]) if self.reward is None else self.reward
        return "the mat", won if over else 0.0, over, False, {}


gymnasium.register(ENV, entry_point=Vowels)


def policy(seed: int = 0, hidden: int = 32) -> Policy:
    return tiny_policy(WORDS, seed=seed, vocab_size=280, hidden=hidden, layers=1, heads=2, version="start")


def go(out: Path, start: Policy | None = None, method: Any = None, **options: Any) -> tuple[Policy, list[Iteration]]:
    learner = policy() if start is None else start
    settings: dict[str, Any] = {
        "iterations": 2, "groups": 6, "group_size": 4, "from_previous": 1, "slots": 8, "max_tokens": 120,
        "batch_size": 2, "sampling": Sampling(max_new_tokens=8), "lr": 1e-3, "progress": False, "cpu": True,
        "seed": 5, **options,
    }  # fmt: skip
    return learner, iterate(
        MDPO() if method is None else method, learner, ENV, out=out, **flat(settings, train=True, collect=True)
    )


def bits(model: Policy) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in model.model.parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[Iteration]]:
    out = tmp_path_factory.mktemp("whole")
    learner, records = go(out, evaluate=_evaluate)
    return out, bits(learner), records


def test_every_iteration_is_saved_and_reported(whole: tuple[Path, bytes, list[Iteration]]) -> None:
    out, final, records = whole
    assert [record.number for record in records] == [0, 1, 2]
    assert all(record.episodes == 24 and record.invalid == 0 and record.examples > 0 for record in records[1:])
    assert math.isnan(records[0].mean_return)
    assert [record.evaluation["version"] for record in records] == ["start", "iteration-1", "iteration-2"]
    assert bits(Policy.from_pretrained(out / records[0].policy)) == bits(policy())
    assert bits(Policy.from_pretrained(out / records[2].policy)) == final != bits(policy())
    assert Policy.from_pretrained(out / records[1].policy).version == "iteration-1"
    runs = list(read(out / "iteration-1" / "trajectories.jsonl"))
    assert np.mean([run.total_reward for run in runs]) == pytest.approx(records[1].mean_return)


def test_current_and_previous_policies_act(whole: tuple[Path, bytes, list[Iteration]]) -> None:
    """One of four members by the previous iterate, from the second iteration on."""
    for number, expected in ((1, ["start"] * 4), (2, ["iteration-1"] * 3 + ["start"])):
        runs = list(read(whole[0] / f"iteration-{number}" / "trajectories.jsonl"))
        for run in runs:
            assert run.policy_version == expected[run.member]


def test_an_epoch_has_its_last_batch_too(whole: tuple[Path, bytes, list[Iteration]], tmp_path: Path) -> None:
    """n examples in batches of n - 1 make two updates that see them all; n / (n - 1), rounded, would be one."""
    count = whole[2][1].examples
    assert count > 2
    go(tmp_path, iterations=1, batch_size=count - 1)
    records = (tmp_path / "iteration-1" / "train" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1, 2]


MOMENTS = ("iteration-1/trajectories", "iteration-1/train", "iteration-2/trajectories", "iteration-2/policy")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_anywhere_it_ends_with_the_same_weights(
    moment: str, whole: tuple[Path, bytes, list[Iteration]], tmp_path: Path
) -> None:
    """Signal 9 while collecting, while training, between iterations, while saving; then the same call again."""
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path), moment], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert child.wait(timeout=120) == -signal.SIGKILL
    assert not (tmp_path / "iteration-2" / "done.json").exists()
    learner, records = go(tmp_path, evaluate=_evaluate)
    assert bits(learner) == whole[1]
    assert json.dumps([r.__dict__ for r in records]) == json.dumps([r.__dict__ for r in whole[2]])


def test_a_finished_run_is_read_and_may_be_lengthened(
    whole: tuple[Path, bytes, list[Iteration]], tmp_path: Path
) -> None:
    """Also with a policy object that was trained already: the run goes on from what it saved."""
    learner, records = go(tmp_path, iterations=1)
    assert len(records) == 2
    learner, records = go(tmp_path, start=learner, iterations=2)
    assert bits(learner) == whole[1]
    again, _ = go(tmp_path, iterations=2)
    assert bits(again) == whole[1]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "[]"), ("start.json", ""), ("start.json", "{}"), ("iteration-1/done.json", '{"number": 1'),
        ("iteration-0/done.json", "{}"), ("iteration-2/done.json", "null"),
    ],
)  # fmt: skip
def test_damaged_small_files_are_named_with_a_remedy(
    file: str, text: str, whole: tuple[Path, bytes, list[Iteration]], tmp_path: Path
) -> None:
    run = shutil.copytree(whole[0], tmp_path / "run")
    (run / file).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{file}' is damaged .*restore it.*pass another out"):
        go(run, evaluate=_evaluate)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_weights_that_changed_since_they_were_written_are_refused(
    number: int, whole: tuple[Path, bytes, list[Iteration]], tmp_path: Path
) -> None:
    """One flipped bit in the middle of a weight loads, and would be trained on."""
    run = shutil.copytree(whole[0], tmp_path / "run")
    weights = run / f"iteration-{number}" / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"policy/model\.safetensors is not what was written.*remove done.json"):
        go(run, evaluate=_evaluate)


def test_adapters_are_iterated_and_resumed(tmp_path: Path) -> None:
    """Only adapters are written; stopped after one iteration and gone on with, the same adapters come out."""
    peft = pytest.importorskip("peft")

    def adapted() -> Policy:
        start = policy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = peft.get_peft_model(start.model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        return Policy(model, start.tokenizer, version="start")

    whole_run, _ = go(tmp_path / "whole", start=adapted())
    go(tmp_path / "cut", start=adapted(), iterations=1)
    resumed, _ = go(tmp_path / "cut", start=adapted())
    assert bits(resumed) == bits(whole_run) != bits(adapted())
    place = tmp_path / "cut" / "iteration-2" / "policy"
    assert not (place / "model.safetensors").exists()
    assert bits(Policy.from_pretrained(place)) == bits(resumed)
    with pytest.raises(ValueError, match="expected the weights that the run in"):
        go(tmp_path / "cut", start=policy())


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    go(tmp_path, iterations=1)
    with pytest.raises(ValueError, match=r"collect.group_size was 4, is 5; pass the same, or another out"):
        go(tmp_path, group_size=5)
    with pytest.raises(ValueError, match=r"method.beta was 0.1, is 0.3"):
        go(tmp_path, method=MDPO(beta=0.3))
    for name, value in {"lr": 2e-3, "weight_decay": 0.1, "annotate": worst_first}.items():
        shown = (
            "preference was 'by_return', is 'worst_first'" if callable(value) else rf"options.{name} was .*, is {value}"
        )
        with pytest.raises(ValueError, match=shown):
            go(tmp_path, **{name.replace("annotate", "preference"): value})
    for start in (policy(hidden=48), policy(seed=1)):
        with pytest.raises(ValueError, match=r"expected the weights that the run in .* was started from \('start', "):
            go(tmp_path, start=start)
    assert len(go(tmp_path, iterations=1)[1]) == 2


def worst_first(group: Group) -> Preference:
    return by_score(np.array([-member.total_reward for member in group]))


def test_the_reference_is_the_previous_iterate_or_the_first(tmp_path: Path) -> None:
    """At an iteration's first step policy and previous iterate are one: the margin is 0, the loss log 2."""
    losses = {}
    for reference in ("previous", "first"):
        out = tmp_path / reference
        go(out, reference=reference, lr=3e-3)
        lines = (out / "iteration-2" / "train" / "metrics.jsonl").read_text("utf-8").splitlines()
        losses[reference] = json.loads(lines[0])["loss"]
    assert losses["previous"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses["first"] - math.log(2)) > 1e-4


def test_without_differences_there_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(
        NothingToLearn, match=r"iteration 1: expected groups with better and worse .* larger group_size"
    ):
        go(tmp_path, env_options={"reward": 1.0})
    with pytest.raises(ValueError, match=r"0 <= from_previous < group_size \(4\), got 4"):
        go(tmp_path, from_previous=4)


@pytest.mark.parametrize("method", [MDPO(pairs_per_group=None), RAFT()])
def test_failed_and_empty_episodes_are_never_learned_from(tmp_path: Path, method: Any) -> None:
    """Invalid members reach no annotator and no loss; neither do episodes whose prompt left no room for a turn."""
    seen: list[Trajectory] = []

    def annotate(group: Group) -> Preference:
        seen.extend(group)
        return by_return(group)

    _, records = go(tmp_path, method=method, env_options={"trouble": True}, preference=annotate, iterations=1)
    assert 0 < records[1].invalid < records[1].episodes
    assert len(seen) == records[1].episodes - records[1].invalid
    assert all(run.valid and run.turns for run in seen)
    with pytest.raises(NothingToLearn):
        go(tmp_path / "short", method=method, max_tokens=8, preference=annotate, iterations=1)


def test_tasks_come_round_without_repetition() -> None:
    first, second = (tasks_of(range(10), number, 5, 0) or [] for number in (1, 2))
    assert sorted(first + second) == list(range(10))
    third = tasks_of(range(10), 3, 10, 1)
    assert third is not None
    assert sorted(third) == list(range(10))
    with pytest.raises(ValueError, match="an empty sequence"):
        tasks_of([], 1, 5, 0)


def test_a_warm_start_learns_only_the_agents_tokens() -> None:
    """Written text gets the policy's tokens; invalid and empty conversations are left out."""
    learner = policy()
    said = Trajectory("E", 0, (Turn("the cat", "sat"), Turn("on", "the mat")), terminated=True)
    lost = Trajectory("E", 1, (Turn("the cat", "ran"),), terminated=True, error="x")
    never = Trajectory("E", 2, (), truncated=True)
    (example,) = demonstrations(learner, [said, lost, never])
    ids, owner = example.trajectories[0].tokens
    assert learner.chat.text(ids[owner == 0]) == "sat"
    with pytest.raises(ValueError, match="valid trajectories with turns, got none"):
        demonstrations(learner, [lost, never])
    result = warm_start(learner, [said, lost], steps=40, options=TrainOptions(lr=1e-2, cpu=True), progress=False)
    assert result.history[-1]["loss"] < 0.1 * result.history[0]["loss"]
    assert learner.version == "sft"


def test_an_epoch_of_a_warm_start_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 conversations in batches of 4 are two steps, of 3 and 2: one step would never see the other 2."""
    seen: list[int] = []
    told = [Trajectory("E", n, (Turn("the cat", "sat"),), terminated=True) for n in range(5)]
    loss = SFT.loss

    def noted(self: SFT, logps: torch.Tensor, reference: Any, batch: Any) -> Any:
        seen.append(len(batch))
        return loss(self, logps, reference, batch)

    monkeypatch.setattr(SFT, "loss", noted)
    assert warm_start(policy(), told, batch_size=4, progress=False, options=TrainOptions(cpu=True)).steps == 2
    assert seen == [3, 2]
    assert [steps_of(count, 32) for count in (1, 32, 33, 64)] == [1, 1, 2, 2]
    assert steps_of(33, 32, epochs=1.5) == 3


def _evaluate(learner: Policy) -> dict[str, Any]:
    return {
        "version": learner.version,
        "norm": float(sum(p.detach().double().norm() for p in learner.model.parameters())),
    }


def _kill_at(moment: str, out: Path) -> None:
    """Ends this process the hard way as soon as a file shows that the moment has come."""
    import polyturn.algorithms.training.loop as training
    import polyturn.envs.store as store

    name, _, what = moment.partition("/")
    if what == "trajectories":
        append = store.Store.append

        def counted(self: Any, trajectory: Trajectory) -> None:
            append(self, trajectory)
            if self.path.parent.name == name and len(list(read(self.path))) == 7:
                os.kill(os.getpid(), signal.SIGKILL)

        store.Store.append = counted  # type: ignore[method-assign]
    elif what == "train":
        step = training.Learner.step

        def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(self, *args, **kwargs)
            if len(list(out.glob("iteration-*"))) == int(name[-1]) + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        training.Learner.step = killed  # type: ignore[method-assign]
    else:
        save = Policy.save_pretrained

        def torn(self: Policy, folder: Any) -> None:
            save(self, folder)
            if Path(folder) == out / name / what:
                (Path(folder) / "model.safetensors").write_bytes(b"torn")
                os.kill(os.getpid(), signal.SIGKILL)

        Policy.save_pretrained = torn  # type: ignore[method-assign]


if __name__ == "__main__":
    _kill_at(sys.argv[2], Path(sys.argv[1]))
    go(Path(sys.argv[1]), evaluate=_evaluate)
