"""Faults that users of other trainers have reported, on rows where they would show here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyturn.agents import Sampling, TransformerAgent, collect
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import Example, collate, train
from polyturn.algorithms.estimators import group_normalised
from polyturn.algorithms.methods import table
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.trajectory import Trajectory, Turn

torch.set_num_threads(1)


def row(said: list[int], member: int = 0) -> Trajectory:
    ids = np.array(said, np.int32)
    turn = Turn("o", "a", 1.0, np.array([5], np.int32), ids, np.full(len(ids), -1.0, np.float32))
    return Trajectory("Toy-v0", 0, (turn,), member=member, terminated=True)


def policy(context: int = 64) -> Policy:
    return tiny_policy(["x"], seed=0, hidden=32, layers=1, heads=2, context=context, init=0.3)


@pytest.mark.parametrize("pad", [0, 2, 7])
def test_a_padding_token_that_is_also_an_end_or_a_word_hides_nothing(pad: int) -> None:
    """Masks made by comparing ids with the padding token lose real tokens where the two are one."""
    example = Example((row([7, 2, 2]), row([7], 1)), np.array([[0, 1]]))
    own, batch = policy(), collate([example], pad_id=pad)
    assert batch.mask.sum(1).tolist() == [4, 2]
    alone = [torch.tensor([ids]) for ids in ([5, 7, 2, 2], [5, 7])]
    expected = sum(float(own.logps(ids, ids >= 0).sum()) for ids in alone)
    assert float(own.logps(batch.ids, batch.mask).sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spread", [1e-5, 1e-3, 10.0])
def test_small_differences_of_scores_that_are_no_rounding_are_kept(spread: float) -> None:
    made = group_normalised(torch.tensor([1.0, 1.0 + spread, 1.0 + 2 * spread]), torch.zeros(3, dtype=torch.int64))
    assert made[2] > 1.0
    assert made[0] < -1.0


def test_grpo_without_a_divergence_trains_without_a_reference() -> None:
    example = Example((row([7, 2, 2]), row([7], 1)), scores=np.array([1.0, 0.0]))
    method, options = table.make("grpo", kl=0.0), TrainOptions(cpu=True)
    assert train(method, policy(), None, [[example]], steps=1, options=options, progress=False).steps == 1


def test_an_action_that_was_cut_off_keeps_its_own_last_token() -> None:
    """No end is forced on it; the template's end stands in the next turn's context, which is not learned from."""
    own = policy(context=900)
    agent = TransformerAgent(own, sampling=Sampling(max_new_tokens=3), slots=2)
    ((member,),) = collect(agent, "polyturn/Guess-v0", seed=0, progress=False)
    first, second = member.turns[:2]
    assert len(first.action_ids) == 3
    assert int(first.action_ids[-1]) not in own.chat.stop_ids
    assert int(second.context_ids[0]) in own.chat.stop_ids


def test_what_generate_would_use_changes_neither_sampling_nor_scores() -> None:
    """A repetition penalty in generation_config.json: sampled with, and scored without, in other trainers."""
    own = policy(context=600)
    for name, value in {"repetition_penalty": 1.3, "temperature": 0.3, "top_k": 5, "do_sample": True}.items():
        setattr(own.model.generation_config, name, value)
    ((member,),) = collect(
        TransformerAgent(own, sampling=Sampling(max_new_tokens=8), slots=2), "polyturn/Guess-v0", progress=False
    )
    ids, turn = (torch.tensor(each)[None].long() for each in member.tokens)
    scored = own.logps(ids, ids >= 0, turn >= 0)[turn >= 0]
    sampled = torch.tensor(np.concatenate([step.logps for step in member.turns]))
    torch.testing.assert_close(scored, sampled, rtol=1e-4, atol=1e-4)


def test_a_head_that_was_untied_in_memory_comes_back_as_it_is(tmp_path: object) -> None:
    """The configuration still says that head and embeddings are one; loading must not make them one again."""
    own = policy()
    head = own.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * 1.3)
    changed = Policy(own.model, own.tokenizer)
    changed.save_pretrained(str(tmp_path))
    ids = torch.tensor([[5, 9, 17, 30]])
    assert torch.equal(Policy.from_pretrained(str(tmp_path)).logps(ids, ids > 0), changed.logps(ids, ids > 0))
