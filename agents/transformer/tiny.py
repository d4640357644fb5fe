"""A small transformer and its tokenizer made from nothing: for quickstarts, tests and studies on a CPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyturn.agents.transformer.policy import Policy

PAD, TURN, END = "<|pad|>", "<|turn|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""A plain chat template: `<|turn|>role`, a line break, the content, `<|end|>`."""


def tiny_tokenizer(texts: Iterable[str], *, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on texts; every Unicode string can be written in it.

    Args:
        texts: What to train on.
        vocab_size: Largest vocabulary; at least the 256 bytes and 3 special tokens are kept.
    """
    tokenizer = Tokenizer(models.BPE())
    # Numbers are cut into single digits first, so that every number is written the same way in every place.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE
    )


def tiny_policy(
    texts: Iterable[str],
    *,
    seed: int,
    vocab_size: int = 512,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 1024,
    init: float = 0.05,
    version: str = "random",
) -> Policy:
    """A Llama-shaped model with random weights and a tokenizer trained on `texts`.

    The same seed gives the same weights; no global generator is touched. `init` is the standard deviation of the
    weights: the customary 0.02 suits widths of thousands, and a narrow model takes far longer from there to learn to
    copy what it reads.
    """
    tokenizer = tiny_tokenizer(texts, vocab_size=vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=init,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return Policy(model.eval(), tokenizer, version=version)
