"""Policy gradients on samples that were not drawn at temperature 1: scored as they were drawn, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents import CollectOptions, MixtureAgent, Sampling, TransformerAgent, collect
from polyturn.agents.transformer.agent import SampledAs
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import IPO, ActorCritic, iterate, minibatches, online, train
from polyturn.algorithms.methods import table
from polyturn.algorithms.training.options import TrainOptions
from polyturn.cli import main
from polyturn.envs.preference import by_score
from polyturn.envs.trajectory import Trajectory

torch.set_num_threads(1)
ENV = "polyturn/Guess-v0"
GRADIENTS = ["reinforce", "rloo", "grpo", "ppo", "mtpo", "nash_pg"]


def policy(**options: Any) -> Policy:
    made = {"hidden": 32, "layers": 2, "heads": 2, "context": 256, "init": 0.4, **options}
    return tiny_policy(["My number is higher than 3."], seed=0, **made)


def reward(trajectory: Trajectory) -> float:
    return float(sum(len(turn.action_ids) for turn in trajectory.turns) % 3)


def options(**changed: Any) -> TrainOptions:
    return TrainOptions(**{"lr": 1e-6, "cpu": True, **changed})


def collecting(**sampling: Any) -> CollectOptions:
    return CollectOptions(groups=2, group_size=4, sampling=Sampling(max_new_tokens=8, **sampling), slots=8)


def first_step(name: str, collect: CollectOptions, **changed: Any) -> dict[str, Any]:
    own = policy()
    method = table.make(name, **({"kl": 0.1} if name in ("ppo", "grpo", "rloo", "reinforce") else {}))
    trained = ActorCritic(own) if method.needs.values else own
    source = online(own, ENV, reward=reward, collect=collect, seed=0)
    result = train(method, trained, own.copy(), source, steps=1, options=options(**changed), progress=False)
    return result.history[-1]


@pytest.mark.parametrize("temperature", [0.5, 0.85, 1.6])
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_policy_is_scored_at_the_temperature_it_sampled_at(name: str, temperature: float) -> None:
    """On the first step nothing has moved: no ratio to what sampled, and no KL to the policy itself."""
    record = first_step(name, collecting(temperature=temperature))
    assert record.get("clipped", 0.0) == 0.0
    for key in ("kl", "logratio"):
        assert abs(record.get(key, 0.0)) < 1e-4


@pytest.mark.parametrize("cut", [{"tokens_per_micro_batch": 24}, {"accumulate": 2}, {"cache_reference": True}], ids=str)
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_no_way_of_reading_rows_forgets_the_temperature(name: str, cut: dict[str, Any]) -> None:
    whole, parts = (first_step(name, collecting(temperature=0.6), **more) for more in ({}, cut))
    assert parts["clipped"] == 0.0
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-3, abs=1e-6)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def test_scores_at_a_temperature_are_those_of_divided_logits() -> None:
    own = policy()
    ids = torch.tensor([[5, 9, 17, 30], [7, 9, 2, 2]])
    from polyturn.agents.transformer.rows import Rows

    found = own.scorer(Rows.of(ids, ids > 0), temperature=0.7)["logps"]
    logits = own.model(input_ids=ids).logits / 0.7
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-5, atol=1e-5)


REFUSED = {
    "top_p": ({"top_p": 0.9}, "top_p 0.9"),
    "top_k": ({"top_k": 5}, "top_k 5"),
    "greedy": ({"temperature": 0.0}, "temperature 0"),
    "both": ({"temperature": 0.5, "top_p": 0.5}, "top_p 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", GRADIENTS)
def test_what_has_no_log_probability_is_refused_before_anything_is_drawn(
    name: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling, message = REFUSED[case]

    def no_draw(*_: Any, **__: Any) -> None:
        raise AssertionError("the policy acted")

    monkeypatch.setattr(TransformerAgent, "act", no_draw)
    with pytest.raises(ValueError, match=rf"{name}: expected samples of the policy's own.*{message}"):
        first_step(name, collecting(**sampling))
    with pytest.raises(ValueError, match=message):
        iterate(table.make(name), policy(), ENV, out=tmp_path / "run", collect=collecting(**sampling), progress=False)


@pytest.mark.parametrize("name", GRADIENTS)
def test_stored_samples_of_another_kind_are_refused_too(name: str) -> None:
    own = policy()
    method, rng = table.make(name), np.random.default_rng(0)

    def examples(agent: TransformerAgent) -> list[Any]:
        groups = collect(agent, ENV, groups=2, group_size=3, seed=0, progress=False)
        scored = [by_score(np.arange(float(len(group)))) for group in groups]
        found = [method.examples(g, preference, rng) for g, preference in zip(groups, scored, strict=True)]
        return [example for example in found if example is not None]

    def learn(found: list[Any]) -> None:
        trained = ActorCritic(own) if method.needs.values else own
        train(method, trained, own.copy(), minibatches(found, 8, seed=0), steps=1, options=options(), progress=False)

    cold, warm = (
        examples(TransformerAgent(own, sampling=Sampling(max_new_tokens=4, temperature=t), slots=4)) for t in (0.5, 1.5)
    )
    mixed = MixtureAgent(own, own.copy(version="other"), beta=0.5, sampling=Sampling(max_new_tokens=4), slots=4)
    with pytest.raises(ValueError, match=r"samples of one temperature in a step, got \[0.5, 1.5\]"):
        learn(cold + warm)
    with pytest.raises(ValueError, match="those of a mixture with another"):
        learn(examples(mixed))
    learn(cold)


def test_methods_that_compare_pairs_take_samples_of_any_kind() -> None:
    own = policy()
    source = online(own, ENV, reward=reward, collect=collecting(temperature=0.7, top_p=0.9), seed=0)
    result = train(IPO(), own, own.copy(), source, steps=1, options=options(), progress=False)
    assert result.steps == 1


def test_dropout_is_refused_where_the_policy_must_be_scored_as_it_sampled() -> None:
    own = policy()
    own.model.config.attention_dropout = 0.1
    source = online(own, ENV, reward=reward, collect=collecting(), seed=0)
    with pytest.raises(ValueError, match=r"grpo: expected dropout=False.*attention_dropout"):
        train(table.make("grpo"), own, None, source, steps=1, options=options(dropout=True), progress=False)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.123456789, 1e-5, 7.25e-9])
def test_names_tell_how_tokens_were_drawn(temperature: float) -> None:
    own = policy()
    sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=4)
    assert SampledAs.of(TransformerAgent(own, sampling=sampling).name) == SampledAs(temperature, 0.95)
    mixture = MixtureAgent(own, own.copy(version="r"), beta=0.25, sampling=sampling)
    assert SampledAs.of(mixture.name) == SampledAs(temperature, 0.95, mixed=True)
    cut = Sampling(temperature=temperature, top_k=7, min_p=0.05, max_new_tokens=4)
    assert SampledAs.of(TransformerAgent(own, sampling=cut).name) == SampledAs.by(cut)
    assert SampledAs.by(cut) == SampledAs(temperature, 1.0, top_k=7, min_p=0.05)
    for name in ("TabularPolicy", "gpt-4o", "ServerAgent(temperature=warm)", ""):
        assert SampledAs.of(name) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top-p", "0.9"], "train rloo: expected samples of the policy's own distribution"),
        (["--temperature", "0"], "train rloo: expected samples of the policy's own distribution"),
        (["--actor", "mixture:0.5"], "train rloo: expected samples of the policy itself"),
    ],
)
def test_the_command_refuses_before_it_loads_a_model(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "rloo", "--model", str(tmp_path / "none"), "--env", ENV, "--out", str(tmp_path / "out")]
    assert main([*command, "--online", "2", *flags]) == 2
    assert message in capsys.readouterr().err
