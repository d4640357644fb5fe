"""Templates and tokenizers that do not fit: each gives the right prompt, or is refused by name."""

from __future__ import annotations

import datetime
import json
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import CHATML, FAMILIES, ZEPHYR, byte_level
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyturn.agents.transformer.policy import EndTokenWarning, Policy
from polyturn.agents.transformer.template import TEMPLATE_DATE
from polyturn.agents.transformer.tokens import ChatFormat, ChatTemplateError, VocabularyError
from polyturn.envs.trajectory import Trajectory, Turn

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    return byte_level(template, IM, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def turns(content: str = "m['content']", header: str = "'<|im_start|>assistant\n'") -> str:
    """A template with another expression for a message's content, or for the opening of a prompt."""
    opening = f"{{% if add_generation_prompt %}}{{{{ {header} }}}}{{% endif %}}" if header else ""
    start, end = "'<|im_start|>' + m['role'] + '\n'", "'<|im_end|>\n'"
    return f"{{% for m in messages %}}{{{{ {start} + ({content}) + {end} }}}}{{% endfor %}}{opening}"


def text(form: ChatFormat, ids: Any) -> str:
    return str(form._tokenizer.decode(ids))


@pytest.fixture
def strict() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_template_that_opens_no_turn_is_opened_as_its_own_assistant_turns_are(strict: Any) -> None:
    """Without an effect of `add_generation_prompt` the model would have to write its own header."""
    form = ChatFormat(tokenizer(turns(header="")))
    assert text(form, form.context("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (turn, other) = form.written(Trajectory("e", 0, (Turn("Hi", "Yo"), Turn("More", "OK")), terminated=True)).turns
    assert text(form, turn.action_ids) == "Yo<|im_end|>"
    whole = form._tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["Hi", "Yo", "More", "OK"], strict=True)],
        return_dict=False,
    )
    ids = np.concatenate([turn.context_ids, turn.action_ids, other.context_ids, other.action_ids]).tolist()
    assert ids == list(whole)[: len(ids)]


CONTENTS = {
    "as JSON": ("m['content'] | tojson if m['role'] == 'user' else m['content']", json.dumps),
    "in capitals": ("m['content'] | upper if m['role'] == 'user' else m['content']", str.upper),
    "trimmed": ("m['content'] | trim", str.strip),
    "in tags": ("'<doc>' + m['content'] + '</doc>' if m['role'] == 'user' else m['content']", "<doc>{}</doc>".format),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_observations_are_what_the_template_makes_of_them(name: str, strict: Any) -> None:
    expression, change = CONTENTS[name]
    form = ChatFormat(tokenizer(turns(expression)))
    for said in (' a "b"\n<|im_end|> c ', "", "31415926535897"):
        first, later = form.context(said), form.context(said, np.array([form.end_id]))
        opened = f"<|im_start|>user\n{change(said)}<|im_end|>\n<|im_start|>assistant\n"
        assert text(form, first) == opened
        assert text(form, later) == f"\n{opened}"
        assert first.tolist().count(form.end_id) == 1


@pytest.mark.parametrize("expression", ["m['content'] | upper", "m['content'] | tojson", "m['content'] | lower",
                                        "m['content'] | replace('\n', ' ')"])  # fmt: skip
def test_a_template_that_changes_what_an_assistant_said_is_refused(expression: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"writes what an assistant said as it was said, got one that renders"):
        ChatFormat(tokenizer(turns(expression)))


def test_an_observation_that_upsets_the_template_stands_as_it_is() -> None:
    """A hostile text must not make the template drop a turn, or end an episode."""
    picky = "{% if m['content'] == 'drop' %}{% elif m['content'] == 'fail' %}{{ raise_exception('no') }}{% else %}"
    form = ChatFormat(tokenizer("{% for m in messages %}" + picky + turns().removeprefix("{% for m in messages %}")
                                .replace("{% endfor %}", "{% endif %}{% endfor %}")))  # fmt: skip
    for said in ("drop", "fail"):
        assert text(form, form.context(said)) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"


DATED = "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML


def test_a_template_s_date_is_the_same_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed tomorrow must read the prompt that it read today; so must another machine's."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(2031, 1, 2)

    before = ChatFormat(tokenizer(DATED)).context("Hi").tolist()
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Tomorrow)
    form = ChatFormat(tokenizer(DATED))
    assert form.context("Hi").tolist() == before
    assert f"Today: {TEMPLATE_DATE:%d %b %Y}<|im_end|>" in text(form, before)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (DATED.replace("'%d %b %Y'", "'%d' ~ ' %Y'"), "computes the format"),
        ("{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}" * 9 + CHATML,
         "renders the same every time"),
    ],
)  # fmt: skip
def test_templates_of_clocks_and_chance_are_refused(template: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatFormat(tokenizer(template))


def model(vocabulary: int, **settings: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **{**sizes, **settings})).eval()


def test_end_tokens_that_are_letters_for_the_tokenizer_are_left_out_by_name() -> None:
    """LlamaConfig ends texts at token 2 unless it is told otherwise; here that is a letter, which ended actions."""
    made = byte_level(CHATML, IM, eos_token="<|im_end|>")
    letter = made.convert_ids_to_tokens(2)
    with pytest.warns(EndTokenWarning, match=rf"token 2 \('{letter}'\), which is ordinary text"):
        policy = Policy(model(len(made)), made)
    assert policy.chat.stop_ids == {made.eos_token_id}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Ends that are marks, or that the tokenizer itself ends with, count; so do several.
        several = model(len(made), eos_token_id=[made.eos_token_id, made.convert_tokens_to_ids("<|endoftext|>")])
        assert Policy(several, made).chat.stop_ids == {made.eos_token_id, made.convert_tokens_to_ids("<|endoftext|>")}
        made.eos_token = letter
        assert 2 in Policy(model(len(made)), made).chat.stop_ids


@pytest.mark.parametrize(("missing", "named"), [(1, "<|im_end|>"), (2, "<|im_start|>"), (40, "assistant")])
def test_tokens_without_an_embedding_are_refused_before_any_pass(missing: int, named: str) -> None:
    """Marks were added to the tokenizer, or it belongs to another model; scoring would end in an IndexError."""
    made = tokenizer(CHATML)
    with pytest.raises(VocabularyError, match=rf"{re.escape(named)}' \(\d+\).*resize_token_embeddings"):
        Policy(model(len(made) - missing, eos_token_id=made.eos_token_id), made)


def test_a_mark_that_the_model_cannot_read_and_no_conversation_needs_does_no_harm() -> None:
    """Some text models come with their larger siblings' tokenizer, which has a token for images at the end."""
    made = tokenizer(CHATML)
    size = len(made)
    made.add_tokens(["<image_soft_token>"], special_tokens=True)
    policy = Policy(model(size, eos_token_id=made.eos_token_id), made)
    said = policy.chat.written(Trajectory("e", 0, (Turn("<image_soft_token>", "a <image_soft_token>"),)))
    assert int(said.tokens[0].max()) < size
    ids = torch.from_numpy(said.tokens[0].astype(np.int64))[None]
    assert bool(torch.isfinite(policy.logps(ids, torch.ones_like(ids, dtype=torch.bool))).all())


def test_every_family_is_served_without_a_word() -> None:
    """No warning for any but the one that rewrites history; a template's own end is always among the ends."""
    for name, make in FAMILIES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            form = ChatFormat(make())
        assert len(caught) == (name == "qwen3"), name
        assert form.end_id in form.stop_ids
    assert "add_generation_prompt" in ZEPHYR
