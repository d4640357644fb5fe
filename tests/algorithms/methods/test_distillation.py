"""Distillation: the loss against sums over the vocabulary by hand, soft caps included; training towards a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from polyturn.agents import Sampling, ScriptedAgent, collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy, tiny_tokenizer
from polyturn.algorithms import SFT, Distillation, Example, minibatches, online, train
from polyturn.algorithms.batch import Batch, collate
from polyturn.algorithms.protocols.warmup import demonstrations
from polyturn.algorithms.training.options import TrainOptions
from polyturn.cli import main
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Trajectory, Turn

TEXTS = ["guess a number from 1 to 9", "higher lower yes", "the number is 3"]


def gemma(hidden: int, seed: int) -> Policy:
    """A Gemma 2 of two layers, one local and one global, whose caps bend what it says."""
    tokenizer = tiny_tokenizer(TEXTS, vocab_size=300)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=6,
        attn_logit_softcapping=1.0, final_logit_softcapping=0.7, initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma2ForCausalLM(config)
    return Policy(model.eval(), tokenizer, version=f"gemma-{hidden}")


@pytest.fixture(scope="module")
def shown() -> list[Trajectory]:
    """Conversations of several turns, so that observations stand between what the agent wrote."""
    agent = ScriptedAgent(["5", "3", "7"])
    groups = collect(agent, "polyturn/Guess-v0", groups=2, seed=0, progress=False)
    return [group[0] for group in groups]


def batch_of(policy: Policy, shown: list[Trajectory]) -> Batch:
    return collate(demonstrations(policy, shown))


def by_hand(student: Policy, teacher: Policy, batch: Batch, first: str) -> Tensor:
    """Mean over the agent's tokens of the divergence, from the models' own (capped) logits, one token at a time."""
    found = []
    s, t = (torch.log_softmax(p.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.double(), -1)
            for p in (student, teacher))  # fmt: skip
    for row, column in torch.nonzero(batch.turn_ids >= 0).tolist():
        own, other = s[row, column - 1], t[row, column - 1].detach()
        a, b = (other, own) if first == "teacher" else (own, other)
        found.append((a.exp() * (a - b)).sum())
    return torch.stack(found).mean()


@pytest.mark.parametrize("first", ["teacher", "student"])
def test_the_loss_is_the_sum_over_the_vocabulary_at_only_the_agents_tokens(first: Any, shown: list[Trajectory]) -> None:
    """Two Gemmas of different width; one update by SGD is minus the gradient of the sums written out by hand."""
    student, teacher = gemma(16, 0), gemma(32, 1)
    batch = batch_of(student, shown)
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    expected = by_hand(student, teacher, batch, first)
    gradient = torch.autograd.grad(expected, list(student.model.parameters()))
    value = float(expected.detach())
    result = train(
        Distillation(first=first), student, teacher, [batch], steps=1, progress=False,
        options=TrainOptions(lr=1.0, clip=None, optimizer=torch.optim.SGD, cpu=True),
    )  # fmt: skip
    assert result.history[0]["loss"] == pytest.approx(value, rel=1e-4)
    for (name, parameter), slope in zip(student.model.named_parameters(), gradient, strict=True):
        assert torch.allclose(parameter - before[name], -slope.float(), atol=2e-5), name


def test_metrics_are_means_over_a_rows_tokens() -> None:
    """A row of three tokens and one of one: divergence 0.5 a token, log-probability -2 a token."""

    def row(tokens: list[int]) -> Trajectory:
        turn = Turn("o", "a", 0.0, np.array([9], np.int32), np.array(tokens, np.int32))
        return Trajectory("Toy-v0", 0, (turn,), terminated=True)

    batch = collate([Example((row([1, 2, 3]), row([1])))])
    batch = replace(batch, outputs={"kl": torch.full(batch.ids.shape, 0.5)})
    loss = Distillation(likelihood=0.25).loss(torch.full(batch.ids.shape, -2.0), None, batch)
    assert loss.metrics["divergence"].tolist() == [0.5, 0.5]
    assert loss.metrics["nll"].tolist() == [2.0, 2.0]
    assert loss.values.tolist() == [3 * 0.5 + 0.25 * 6, 0.5 + 0.25 * 2]
    assert loss.count is not None
    assert loss.count.tolist() == [3.0, 1.0]
    with pytest.raises(ValueError, match=r'batch.outputs\["kl"\]'):
        Distillation().loss(torch.zeros(batch.ids.shape), None, replace(batch, outputs={}))


def test_teacher_first_has_the_gradient_of_gemmas_cross_entropy(shown: list[Trajectory]) -> None:
    """-sum P_T log P_S differs from the divergence by the teacher's entropy, which no weight of the student moves."""
    student, teacher = gemma(16, 0), gemma(16, 1)
    batch = batch_of(student, shown)
    divergence = by_hand(student, teacher, batch, "teacher")
    logits = [p.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits for p in (student, teacher)]
    own, other = (torch.log_softmax(each.double(), -1) for each in logits)
    rows, columns = torch.nonzero(batch.turn_ids >= 0, as_tuple=True)
    cross = -(other[rows, columns - 1].detach().exp() * own[rows, columns - 1]).sum(-1).mean()
    weights = list(student.model.parameters())
    for a, b in zip(torch.autograd.grad(divergence, weights), torch.autograd.grad(cross, weights), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert float(cross.detach()) > float(divergence.detach())


@pytest.mark.parametrize("first", ["teacher", "student"])
def test_a_student_of_the_teachers_shape_becomes_the_teacher(first: Any, shown: list[Trajectory]) -> None:
    teacher = gemma(16, 1)
    student = gemma(16, 0)
    weights = {name: p.clone() for name, p in teacher.model.named_parameters()}
    source = minibatches(demonstrations(student, shown), 2, seed=0)
    result = train(
        Distillation(first=first), student, teacher, source, steps=80, progress=False,
        options=TrainOptions(lr=2e-2, schedule="linear", cpu=True),
        )  # fmt: skip
    assert result.history[0]["divergence"] > 0.1
    assert result.history[-1]["divergence"] < 0.1 * result.history[0]["divergence"]
    assert all(torch.equal(weights[name], p) for name, p in teacher.model.named_parameters())


def test_likelihood_is_added_and_by_itself_is_imitation(shown: list[Trajectory]) -> None:
    """A teacher that is the student itself costs nothing, so what is left is SFT's loss times the weight."""
    student = gemma(16, 0)
    batch = batch_of(student, shown)
    losses = [
        train(
            method,
            student.copy(trainable=True),
            student.copy(),
            [batch],
            steps=1,
            options=TrainOptions(lr=0.0, cpu=True),
            progress=False,
        )
        for method in (Distillation(likelihood=0.5), SFT())
    ]
    distilled, imitated = (result.history[0]["loss"] for result in losses)
    assert distilled == pytest.approx(0.5 * imitated, rel=1e-5)
    assert losses[0].history[0]["divergence"] == pytest.approx(0.0, abs=1e-6)


def test_a_student_learns_on_its_own_conversations(shown: list[Trajectory]) -> None:
    student, teacher = gemma(16, 0), gemma(16, 1)
    source = online(
        student, "polyturn/Guess-v0", seed=0,
        collect=CollectOptions(groups=2, group_size=1, sampling=Sampling(max_new_tokens=6), max_tokens=1024),
    )  # fmt: skip
    result = train(
        Distillation(first="student"),
        student,
        teacher,
        source,
        steps=12,
        options=TrainOptions(lr=2e-2, cpu=True),
        progress=False,
    )
    divergence = [record["divergence"] for record in result.history]
    assert np.mean(divergence[-3:]) < 0.7 * np.mean(divergence[:3])


def test_models_of_different_vocabularies_are_refused(shown: list[Trajectory]) -> None:
    student, other = gemma(16, 0), tiny_policy(["abc def"] * 3, seed=0, vocab_size=280, hidden=16, layers=1)
    with pytest.raises(ValueError, match=r"distillation compares whole predictions: .* got \d+ and \d+ tokens"):
        train(
            Distillation(),
            student,
            other,
            [batch_of(student, shown)],
            steps=1,
            progress=False,
            options=TrainOptions(cpu=True),
        )


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Distillation\.first: expected one of teacher, student, got 'techer'"):
        Distillation(first="techer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 or more"):
        Distillation(likelihood=-1.0)


def test_the_command_distils_from_a_store_and_refuses_what_does_not_fit(
    tmp_path: Path, shown: list[Trajectory], capsys: pytest.CaptureFixture[str]
) -> None:
    gemma(16, 0).save_pretrained(tmp_path / "student")
    gemma(32, 1).save_pretrained(tmp_path / "teacher")
    tiny_policy(["abc"], seed=0, hidden=16, layers=1).save_pretrained(tmp_path / "stranger")
    with Store(tmp_path / "shown.jsonl") as store:
        for trajectory in shown:
            store.append(trajectory)
    start = ["train", "distillation", "--model", str(tmp_path / "student"), "--out", str(tmp_path / "out"), "--quiet"]
    data = ["--data", str(tmp_path / "shown.jsonl")]
    assert main([*start, *data, "--teacher", str(tmp_path / "teacher"), "--epochs", "2", "--batch-size", "3"]) == 0
    assert "nats a token; the policy is in" in capsys.readouterr().out
    assert Policy.from_pretrained(tmp_path / "out" / "policy").model.config.hidden_size == 16
    for wrong, why in (
        (data, "expected --teacher MODEL"),
        (["--teacher", str(tmp_path / "teacher")], "either --data STORE or --online STEPS"),
        ([*data, "--teacher", str(tmp_path / "stranger")], "expected a teacher with the tokenizer of"),
    ):
        assert main([*start[:-2], str(tmp_path / "other"), *wrong]) != 0
        assert why in capsys.readouterr().err
