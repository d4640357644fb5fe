"""TRL's `environment_factory`, with real steps of its GRPOTrainer: our environments there, its classes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyturn.agents import tiny_policy
from polyturn.envs import ToolEnv, as_trl, make

pytestmark = pytest.mark.peer(name="trl")


class Counter:
    """Written for TRL: reset and tools with docstrings in Google's style, and a reward of its own."""

    def reset(self, **row: Any) -> str:
        self.total = 0
        return f"Bring the total to {row['goal']}."

    def increment(self, by: int) -> int:
        """
        Adds to the total.

        Args:
            by: How much.
        """
        self.total += by
        return self.total

    async def get_reward(self) -> float:
        return float(self.total == 4)


class Forced:
    """Replaces what is sampled by texts, one for each row and generation; all else is the trainer's and the model's."""

    def __init__(self, tokenizer: Any, texts: list[list[str]]) -> None:
        self._tokenizer, self._left = tokenizer, list(texts)

    def __call__(self, generate: Any) -> Any:
        from transformers import LogitsProcessor, LogitsProcessorList

        def forced(**arguments: Any) -> Any:
            rows = [self._tokenizer(text + "<|im_end|>")["input_ids"] for text in self._left.pop(0)]
            start = arguments["input_ids"].shape[1]

            class Scripted(LogitsProcessor):  # type: ignore[misc]
                def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                    place = ids.shape[1] - start
                    only = torch.full_like(scores, float("-inf"))
                    for row, tokens in enumerate(rows):
                        only[row, tokens[min(place, len(tokens) - 1)]] = 0.0
                    return only

            return generate(**arguments, logits_processor=LogitsProcessorList([Scripted()]))

        return forced


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def stepped(factory: Any, row: dict[str, Any], texts: list[list[str]], folder: Path) -> Any:
    """One step of GRPOTrainer with two generations of one prompt: the trainer, and how far the weights moved."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    policy = tiny_policy(["tool_call name arguments message"], seed=0, hidden=16, layers=1, heads=2, context=4096)
    tokenizer = policy.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", qwen3_chat_template
    policy.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    policy.model.config.eos_token_id = policy.model.generation_config.eos_token_id = tokenizer.eos_token_id
    trainer = GRPOTrainer(
        policy.model,
        args=GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], save_strategy="no", max_steps=1,
            per_device_train_batch_size=2, num_generations=2, max_completion_length=300, learning_rate=1e-3,
            logging_steps=1, disable_tqdm=True, seed=0, chat_template_kwargs={"enable_thinking": False},
        ),
        train_dataset=Dataset.from_list([row]),
        processing_class=tokenizer,
        environment_factory=factory,
    )  # fmt: skip
    trainer.model.generate = Forced(tokenizer, texts)(trainer.model.generate)
    before = [weights.detach().clone() for weights in trainer.model.parameters()]
    trainer.train()
    after = trainer.model.parameters()
    return trainer, sum(float((new.detach() - old).abs().sum()) for new, old in zip(after, before, strict=True))


def test_our_environment_in_a_real_step(tmp_path: Path) -> None:
    """One generation guesses right, one wrong and then speaks after the end of nothing: rewards 1 and 0."""
    seed = 3
    number = int(make("polyturn/Guess-v0", high=10).reset(seed=seed)[1]["task_id"].rpartition("-")[2])
    wrong = 1 if number != 1 else 2
    texts = [[call("act", message=str(number)), call("act", message=str(wrong))], ["I won.", "I give up."]]
    row = {"prompt": [{"role": "user", "content": "Play.\n"}], "seed": seed}
    trainer, moved = stepped(as_trl("polyturn/Guess-v0", high=10), row, texts, tmp_path)
    logged = trainer.state.log_history[0]
    assert logged["rewards/Guess_v0/mean"] == 0.5
    assert logged["tools/call_frequency"] == 1.0
    assert logged["tools/failure_frequency"] == 0.0
    assert moved > 0.0


def test_a_class_written_for_trl_is_the_same_there_and_in_tool_env(tmp_path: Path) -> None:
    texts = [[call("increment", by=4), call("increment", by=3)], ["Done.", "Done."]]
    row = {"prompt": [{"role": "user", "content": "Count. "}], "goal": 4}
    trainer, moved = stepped(Counter, row, texts, tmp_path)
    assert trainer.state.log_history[0]["rewards/Counter/mean"] == 0.5
    assert moved > 0.0

    for place, reward in ((0, 1.0), (1, 0.0)):
        env = ToolEnv([row], Counter, "environment")
        assert env.reset(seed=0)[0].endswith("Bring the total to 4.")
        env.step(texts[0][place])
        assert env.step(texts[1][place])[1] == reward


def test_an_episode_that_failed_has_no_reward_and_teaches_nothing(tmp_path: Path) -> None:
    lost = as_trl("polyturn/Guess-v0", high=10)

    class Lost(lost):  # type: ignore[misc, valid-type]
        def reset(self, **row: Any) -> Any:
            observation = super().reset(**row)

            def gone(action: str) -> Any:
                raise ConnectionError("the server is gone")

            self._env.step = gone
            return observation

    texts = [[call("act", message="1"), call("act", message="2")], ["Done.", "Done."]]
    row = {"prompt": [{"role": "user", "content": "Play.\n"}], "seed": 0}
    trainer, _ = stepped(Lost, row, texts, tmp_path)
    assert [each.get_reward() for each in trainer.environments] == [None, None]
    assert trainer.state.log_history[0]["tools/failure_frequency"] == 1.0
