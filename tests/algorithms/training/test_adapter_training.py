"""Training adapters: the reference is the policy as it was at the start, after a resume too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import MDPO, PMPO, PPO, ActorCritic, minibatches, train, warm_start
from polyturn.algorithms.methods.base import Needs
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training.options import TrainOptions
from polyturn.cli import main
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn

peft = pytest.importorskip("peft")
torch.set_num_threads(1)
WORDS = ["What is 1 + 2 + 3 + 4 + 5 + 6 + 7? It is 4. I think the answer is seven. OK, done.\n"] * 10
OPTIONS = TrainOptions(lr=1e-2, cpu=True)


def start(**options: Any) -> Policy:
    made = {"seed": 0, "vocab_size": 280, "hidden": 16, "layers": 2, "heads": 2, "init": 0.2, **options}
    return tiny_policy(WORDS, **made)


def written(policy: Policy, seed: int, text: str, member: int, reward: float) -> Trajectory:
    turn = Turn(f"What is {seed} + 2?", text, reward)
    return policy.chat.written(Trajectory("x", seed, (turn,), member=member, terminated=True))


def examples(policy: Policy) -> list[Example]:
    def pair(i: int) -> Example:
        rows = written(policy, i, "It is 4.", 0, 1.0), written(policy, i, "I think the answer is seven.", 1, 0.0)
        scores, labels = np.array([1.0, 0.0], np.float32), np.array([1, 0], np.float32)
        return Example(rows, np.array([[0, 1]]), scores=scores, desirable=labels)

    return [pair(i) for i in range(4)]


def imitated(policy: Policy) -> Policy:
    """After supervised training of its adapters, which moved it far from its base."""
    demos = [Trajectory("x", i, (Turn(f"What is {i} + 2?", "OK, done."),), terminated=True) for i in range(4)]
    warm_start(policy, demos, steps=8, options=OPTIONS, progress=False)
    return policy


def fitted(policy: Policy, *, steps: int, reference: Any = None, method: Any = None, **more: Any) -> list[Any]:
    """Margins of each step."""
    data, method = minibatches(examples(policy), 4, seed=0), MDPO() if method is None else method
    reference = policy.bare() if reference == "bare" else reference
    result = train(method, policy, reference, data, steps=steps, options=OPTIONS, progress=False, **more)
    return result.history


def test_the_reference_of_a_warm_started_adapter_is_that_warm_start() -> None:
    """Log-ratios at the first step are 0, the loss log 2; to the bare base they are several nats, if that is asked."""
    policy = imitated(start().with_adapters(4))
    first = fitted(policy, steps=3)
    assert first[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first[0]["chosen_logratio"] == pytest.approx(0.0, abs=1e-5)
    assert first[2]["margin"] > 0.5
    to_base = fitted(imitated(start().with_adapters(4)), steps=1, reference="bare")
    assert abs(to_base[0]["chosen_logratio"]) > 1.0


def fitted_margins(policy: Policy, **more: Any) -> list[float]:
    return [record["margin"] for record in fitted(policy, **more)]


@pytest.mark.parametrize("given", ["fresh", "trained on"])
def test_a_resumed_run_keeps_its_reference(given: str, tmp_path: Path) -> None:
    """Whether the policy is made anew or goes on in the same process: the numbers of one uninterrupted run."""
    whole = fitted_margins(imitated(start().with_adapters(4)), steps=6)
    policy = imitated(start().with_adapters(4))
    fitted(policy, steps=3, out=tmp_path)
    again = imitated(start().with_adapters(4)) if given == "fresh" else policy
    assert fitted_margins(again, steps=6, out=tmp_path, resume=True) == whole
    kept = tmp_path / "checkpoints" / "step-00000006" / "reference.safetensors"
    assert kept.stat().st_size < 40_000


def test_a_policy_with_a_value_network_is_anchored_by_itself() -> None:
    """PPO's KL to the start is 0 at its first step; the value network is no part of what is kept."""
    policy = imitated(start().with_adapters(2))

    def sampled(row: Trajectory) -> Trajectory:
        ids = torch.from_numpy(row.tokens[0].astype(np.int64))[None]
        with torch.no_grad():
            found = policy.logps(ids, torch.ones_like(ids, dtype=torch.bool))[0].numpy()
        (turn,) = row.turns
        logps = found[len(turn.context_ids) :].astype(np.float32)
        return Trajectory(
            "x", row.seed, (Turn("", "", 0.0, turn.context_ids, turn.action_ids, logps),), terminated=True
        )

    rows = [Example((sampled(written(policy, i, "It is 4.", 0, 1.0)),), scores=np.array([i % 2])) for i in range(4)]
    both = ActorCritic(policy)
    data = minibatches(rows, 4, seed=0)
    result = train(PPO(kl=0.1), both, None, data, steps=2, options=OPTIONS, progress=False)
    assert result.history[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert result.history[0]["clipped"] == 0.0
    assert result.history[1]["clipped"] > 0.0


def test_whole_predictions_are_compared_with_the_start_too() -> None:
    """The KL over the vocabulary reads the head's weights, which are trained here, after the start's were put back."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    policy = Policy(peft.get_peft_model(start().model, config), start().tokenizer)
    history = fitted(policy, steps=3, method=PMPO(beta=0.5))
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert history[2]["kl"] > 1e-2


def test_a_method_of_one_s_own_has_the_start_as_its_reference() -> None:
    seen: list[float] = []

    class Own:
        name, needs = "own", Needs()

        def loss(self, logps: Any, reference: Any, batch: Any) -> Any:
            seen.append(float((logps.detach() - reference).abs().max()))
            return MDPO().loss(logps, reference, batch)

    fitted(imitated(start().with_adapters(2)), steps=2, method=Own())
    assert seen[0] == pytest.approx(0.0, abs=1e-5)
    assert seen[1] > 1e-2


def test_adapters_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SFT with adapters, then preferences with adapters on the result: nothing is lost, and every policy loads."""
    start(context=512).save_pretrained(tmp_path / "base")
    said = "I am thinking of a whole number from 1 to 2. You have 1 guess."
    with Store(tmp_path / "demos.jsonl") as store:
        for i in range(8):
            store.append(Trajectory("x", i, (Turn(said, str(1 + i % 2)),), terminated=True))

    def run(*command: str) -> tuple[int, str]:
        code = main([*command, "--quiet"])
        return code, "".join(capsys.readouterr())

    sft = ("train", "sft", "--model", str(tmp_path / "base"), "--data", str(tmp_path / "demos.jsonl"), "--lora", "4",
           "--out", str(tmp_path / "sft"), "--lr", "1e-2", "--epochs", "30", "--batch-size", "8")  # fmt: skip
    assert run(*sft)[0] == 0
    ids = torch.arange(5, 45)[None]
    ones = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        wanted = Policy.from_pretrained(tmp_path / "sft" / "policy").logps(ids, ones)
        assert float((wanted - start(context=512).logps(ids, ones)).abs().max()) > 0.1

    def learn(out: str, rank: str, *more: str) -> tuple[int, str]:
        where = (
            "--model",
            str(tmp_path / "sft" / "policy"),
            "--out",
            str(tmp_path / out),
            "--env",
            "polyturn/Guess-v0",
        )
        game = ("-o", "high=2", "-o", "turns=1", "--max-new-tokens", "4", "--max-tokens", "500", "--slots", "8")
        size = ("--iterations", "1", "--groups", "8", "--group-size", "4", "--lr", "1e-2")
        return run("train", "mdpo", *where, *game, *size, "--lora", rank, *more)

    for out, rank, more in (("a", "4", ()), ("b", "2", ("--adapter", "merge")), ("c", "2", ("--adapter", "stack"))):
        code, shown = learn(out, rank, *more)
        assert code == 0, shown
        with torch.no_grad():
            begun, ended = (
                Policy.from_pretrained(tmp_path / out / f"iteration-{n}" / "policy").logps(ids, ones) for n in (0, 1)
            )
        assert torch.allclose(begun, wanted, atol=1e-4), out
        assert not torch.equal(ended, begun)
    code, shown = learn("d", "2")
    assert code == 2
    assert "expected rank 4, that of the adapters to continue" in shown
    assert "--adapter merge or stack" in shown
    code, shown = run("train", "mdpo", "--model", "x", "--out", str(tmp_path / "e"), "--adapter", "merge")
    assert code == 2
    assert "expected --lora RANK to go with --adapter merge" in shown
