"""Chat formats: append-only tokens for templates of many shapes, and observations that cannot forge a turn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from transformers import PreTrainedTokenizerFast

from polyturn.agents.transformer.tiny import CHAT_TEMPLATE, END, PAD, TURN, tiny_tokenizer
from polyturn.agents.transformer.tokens import ChatFormat, ChatTemplateError, HistoryRewrittenWarning
from polyturn.envs.trajectory import Trajectory, Turn

WORDS = ["the user said hello to the assistant and the model thought about system 1 2 3\n"] * 20

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_CLOSER = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "

Shape = tuple[str, list[str], list[str], str | None, str | None]
SHAPES: dict[str, Shape] = {  # template, special tokens, other added tokens, eos, what ends a turn
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], [], "<|endoftext|>", "<|im_end|>"),
    "llama3": (LLAMA3, ["<|bos|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eos|>"], [], "<|eos|>",
               "<|eot_id|>"),
    "gemma": (GEMMA, ["<|bos|>", "<start_of_turn>", "<end_of_turn>", "<eos>"], [], "<eos>", "<end_of_turn>"),
    "mistral": (MISTRAL, ["<|bos|>", "[INST]", "[/INST]", "</s>"], [], "</s>", "</s>"),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"], "<|im_end|>", "<|im_end|>"),
    "no closer": (NO_CLOSER, ["<|user|>", "<|assistant|>", "<|eos|>"], [], "<|eos|>", "<|user|>"),
    "plain text": (PLAIN, ["<|eos|>"], [], "<|eos|>", "<|eos|>"),
    "own": (CHAT_TEMPLATE, [PAD, TURN, END], [], END, END),
}  # fmt: skip


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    template, special, added, eos, _ = SHAPES[name]
    made = tiny_tokenizer(WORDS, vocab_size=300)
    made.add_special_tokens(
        {"additional_special_tokens": [token for token in special if token not in (PAD, TURN, END)]}
    )
    made.add_tokens(added)
    made.eos_token = eos
    if "<|bos|>" in special:
        made.bos_token = "<|bos|>"
    made.chat_template = template
    return made


def chat(name: str, **options: Any) -> ChatFormat:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoryRewrittenWarning)
        return ChatFormat(tokenizer(name), **options)


def decoded(format_: ChatFormat, ids: Any) -> str:
    return str(format_._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", SHAPES)
def test_appended_tokens_spell_what_the_template_renders(name: str) -> None:
    """With trimmed texts, turn by turn: the pieces joined are the template's own rendering of the conversation."""
    form, closes = chat(name), SHAPES[name][4]
    written = form.written(
        Trajectory("e", 0, (Turn("hello", "the model"), Turn("2 3", "1"), Turn("said", "")), terminated=True)
    )
    assert decoded(form, [form.end_id]) == closes
    assert form.end_id in form.stop_ids
    messages = [*written.messages()[:4], {"role": "user", "content": "said"}]
    rendered = form._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pieces = [piece for turn in written.turns for piece in (turn.context_ids, turn.action_ids)][:-1]
    joined = decoded(form, np.concatenate(pieces))
    if name == "plain text":  # its turns end with a token that the template does not write
        joined = joined.replace("<|eos|>", "")
    if name == "mistral":  # the space before </s> belongs to no turn once the agent ends its turn itself
        joined, rendered = joined.replace(" </s>", "</s>"), rendered.replace(" </s>", "</s>")
        joined, rendered = (text.replace("[/INST] ", "[/INST]") for text in (joined, rendered))
    assert joined == rendered


@pytest.mark.parametrize("name", SHAPES)
def test_a_turn_never_changes_what_stands(name: str) -> None:
    """Whatever was sampled: a turn's tokens are a prefix of the next turn's, and no header is the agent's."""
    form = chat(name)
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, len(form._tokenizer), size=n).astype(np.int32) for n in (3, 1, 8)]
    turns: list[Turn] = []
    for index, action in enumerate(actions):
        context = form.context(f"said {index}", turns[-1].action_ids if turns else None)
        turns.append(Turn(f"said {index}", form.text(action), context_ids=context, action_ids=action))
    for count in (1, 2):
        shorter, longer = (Trajectory("e", 0, tuple(turns[:n])).tokens[0] for n in (count, count + 1))
        assert np.array_equal(longer[: len(shorter)], shorter)
    ids, owner = Trajectory("e", 0, tuple(turns)).tokens
    assert np.array_equal(ids[owner >= 0], np.concatenate(actions))


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "qwen3", "own", "no closer"])
def test_the_end_of_a_turn_stands_once(name: str) -> None:
    """Sampled by the agent: not again. Cut by a limit, or ended by another stop token: put there by the template."""
    form = chat(name, stop_ids=frozenset([7]))
    word = form.plain("hello")
    ended = form.context("next", np.append(word, form.end_id))
    cut, other = form.context("next", word), form.context("next", np.append(word, 7))
    assert {form.end_id, 7} <= form.stop_ids
    assert np.array_equal(cut, other)
    assert np.array_equal(cut[-len(ended) :], ended)
    assert int((cut == form.end_id).sum()) == int((ended == form.end_id).sum()) + 1


@pytest.mark.parametrize("name", SHAPES)
def test_text_never_becomes_a_special_token(name: str) -> None:
    """Special tokens, added tokens that the template names, nested and broken spellings, and many of them."""
    form = chat(name)
    _, special, added, _, _ = SHAPES[name]
    forbidden = {form._tokenizer.convert_tokens_to_ids(token) for token in special + added}
    for token in special + added:
        middle = len(token) // 2
        for text in (token, f"a{token}b", token * 3, token[:middle] + token + token[middle:], f" {token}\n{token} "):
            ids = form.plain(text)
            assert not forbidden & set(ids.tolist()), text
            assert decoded(form, ids) == text
    many = "".join(special + added) * 500
    assert decoded(form, form.plain(many)) == many


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.text(max_size=40), st.sampled_from(["chatml", "qwen3"]))
def test_any_text_comes_back(text: str, name: str) -> None:
    form = _cached(name)
    assert decoded(form, form.plain(text)) == text


def test_halves_of_surrogate_pairs_become_question_marks() -> None:
    assert decoded(chat("own"), chat("own").plain("a\ud800b\udfff")) == "a?b?"


@pytest.mark.parametrize("name", SHAPES)
def test_templates_that_rewrite_history_are_reported(name: str) -> None:
    """Only Qwen's takes reasoning out of earlier turns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ChatFormat(tokenizer(name))
    rewrites = [warning for warning in caught if issubclass(warning.category, HistoryRewrittenWarning)]
    assert len(rewrites) == (name == "qwen3")


def test_a_system_prompt_stands_first_or_is_refused() -> None:
    form = chat("chatml", system="be brief")
    assert decoded(form, form.context("hello")).startswith(
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello"
    )
    with pytest.raises(ChatTemplateError, match=r"a system prompt and .* System role not supported"):
        chat("gemma", system="be brief")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "expected a tokenizer with a chat template, got one without"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "renders it 2 times"),
        ("{{ messages[0]['content'] }}", "renders it 0 times"),
        ("{{ raise_exception('never') }}", "it said: never"),
        ("{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}{{ messages | length }}", "opens every"),
    ],
)  # fmt: skip
def test_templates_that_cannot_serve_are_refused(template: str | None, message: str) -> None:
    made = tokenizer("own")
    made.chat_template = template
    with pytest.raises(ChatTemplateError, match=message):
        ChatFormat(made)


def test_a_tokenizer_without_any_end_is_refused() -> None:
    made = tokenizer("plain text")
    made.eos_token = None
    with pytest.raises(ChatTemplateError, match="end-of-turn or end-of-text token"):
        ChatFormat(made)


def test_what_was_sampled_is_never_tokenized_again() -> None:
    sampled = Trajectory("e", 0, (Turn("o", "a", action_ids=np.array([3], np.int32)),), terminated=True)
    with pytest.raises(ValueError, match="got one that was sampled"):
        chat("own").written(sampled)


def _cached(name: str, cache: dict[str, ChatFormat] = {}) -> ChatFormat:  # noqa: B006
    if name not in cache:
        cache[name] = chat(name)
    return cache[name]
