"""Small tokenizers and chat templates of the shapes that published model families have, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The tool says 42 and the user asks for more. What is 2 + 2? It is 4. Hello there, how are you today?",
    "print(1+1) Result: 2\nTry again please.\n\nOK, done. I think the answer is seven. user assistant system",
    "a bc def 0 1 2 3 4 5 6 7 8 9 , . ! ? < > | / _ [ ] think tool call inst im start end INST [INST] [/INST] <s>",
] * 3
_WORDS = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Only turns after the last question keep their reasoning, and those always have some.
QWEN3 = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}{%- set c = m.content -%}{%- set r = '' -%}"
    "{%- if m.role == 'assistant' -%}"
    "{%- if '</think>' in c -%}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}{%- set c = '<think>\n' + r + '\n</think>\n\n' + c -%}{%- endif -%}{%- endif -%}"
    "{{- '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') "
    "+ '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GPT2 = (
    "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def byte_level(
    template: str, special: Sequence[str], added: Sequence[str] = (), *, words: bool = False, **named: str
) -> PreTrainedTokenizerFast:
    """Bytes as letters, as in GPT-2; with `words` cut by a pattern before, as in Llama 3 and Qwen."""
    made = Tokenizer(models.BPE(ignore_merges=words))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)
    cut = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, plain]) if words else plain
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **named)


def sentencepiece(
    template: str,
    special: Sequence[str | AddedToken] = (),
    added: Sequence[str] = (),
    *,
    space: str = "first",
    **named: str,
) -> PreTrainedTokenizerFast:
    """Spaces as letters, unknown letters as bytes, merges over word boundaries, as converted SentencePiece models.

    `space` says where a space is put before a text: "legacy" before every stretch between marks, by the normaliser, as
    in Llama 2 and Mistral as published; "first" at the start only; "always" before every stretch; "gemma" nowhere.
    """
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, special_tokens=reserved, show_progress=False))
    # Trained word by word, then used without cutting.
    whole = json.loads(made.to_str())
    made = Tokenizer.from_str(json.dumps(whole | {"added_tokens": [], "pre_tokenizer": None}))
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if space == "gemma":
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        parts.append(decoders.Strip(" ", 1, 0))
        if space == "legacy":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    made.decoder = decoders.Sequence(parts)
    marks = ["<unk>", "<s>", "</s>", *special]
    made.add_special_tokens([AddedToken(m, special=True, normalized=False) if isinstance(m, str) else m for m in marks])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **named)


def unigram(template: str, *, letters: bool = False, space: str = "always") -> PreTrainedTokenizerFast:
    """A unigram model, whose vocabulary holds its marks as words; with `letters` it has one of every byte."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    marks = ["<unk>", "<s>", "</s>", "<think>", "</think>"]
    reserved = [*marks, *(f"<0x{byte:02X}>" for byte in range(256))] if letters else marks
    trainer = trainers.UnigramTrainer(
        vocab_size=200 + 300 * letters, special_tokens=reserved, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    if letters:
        whole = json.loads(made.to_str())
        whole["model"]["byte_fallback"] = True
        made = Tokenizer.from_str(json.dumps(whole | {"added_tokens": []}))
        made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in marks])
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space)
        parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence(parts if space == "never" else [*parts, decoders.Strip(" ", 1, 0)])
    else:
        made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=template, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_pieces(template: str, special: Sequence[str], *, lower: bool, **named: str) -> PreTrainedTokenizerFast:
    """Words cut into a beginning and continuations, as in BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, unk_token="[UNK]", **named)


def bytes_cut_by(
    template: str, special: Sequence[str], cuts: Sequence[Any], normalizer: Any = None, **named: str
) -> PreTrainedTokenizerFast:
    """Bytes as letters, after cuts of any kind, as in DeepSeek, StarCoder and the o200k encoding."""
    made = Tokenizer(models.BPE())
    if normalizer is not None:
        made.normalizer = normalizer
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, plain])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **named)


def llama(*, legacy: bool) -> Any:
    """The class that Llama 2's tokenizers are loaded as, which makes its own normaliser or cuts."""
    from transformers import LlamaTokenizer

    model = json.loads(sentencepiece(LLAMA2, space="legacy").backend_tokenizer.to_str())["model"]
    made = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], legacy=legacy)
    made.chat_template = LLAMA2
    return made


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
           "<|python_tag|>")  # fmt: skip
# These swallow the spaces and line breaks that follow them.
_PHI3 = tuple(
    AddedToken(f"<|{name}|>", special=True, normalized=False, rstrip=True)
    for name in ("user", "assistant", "system", "end", "endoftext")
)

FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(CHATML, _IM, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
    "gpt2": lambda: byte_level(GPT2, ("<|endoftext|>",), eos_token="<|endoftext|>"),
    "qwen2": lambda: byte_level(CHATML, _IM, words=True, eos_token="<|im_end|>"),
    "qwen3": lambda: byte_level(
        QWEN3, _IM, ("<think>", "</think>", "<tool_call>", "</tool_call>"), words=True, eos_token="<|im_end|>"
    ),
    "llama3": lambda: byte_level(LLAMA3, _LLAMA3, words=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"),
    "llama2": lambda: sentencepiece(LLAMA2, space="legacy"),
    "llama2, space first": lambda: sentencepiece(LLAMA2),
    "mistral": lambda: sentencepiece(MISTRAL, space="legacy"),
    "mistral, marks": lambda: sentencepiece(MISTRAL, ("[INST]", "[/INST]", "[TOOL_CALLS]")),
    "gemma2": lambda: sentencepiece(
        GEMMA, ("<start_of_turn>", "<end_of_turn>"), ("\n\n", "\n\n\n", "<table>", "</table>", "<b>"), space="gemma"
    ),
    "phi3": lambda: sentencepiece(PHI3, _PHI3, space="legacy", eos_token="<|endoftext|>"),
    "zephyr": lambda: sentencepiece(ZEPHYR, space="legacy"),
    "zephyr, space always": lambda: sentencepiece(ZEPHYR, space="always"),
    "unigram": lambda: unigram(ZEPHYR),
}
"""A tokenizer of each family's shape, by name."""

_END = {"eos_token": "<|im_end|>"}
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = [
    pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
    pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
    pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
    pre_tokenizers.Digits(individual_digits=True),
]
OTHER_SHAPES: dict[str, Callable[[], Any]] = {
    "unigram, letters, space first": lambda: unigram(ZEPHYR, letters=True, space="first"),
    "unigram, letters, space never": lambda: unigram(ZEPHYR, letters=True, space="never"),
    "word pieces, lower case": lambda: word_pieces(CHATML, _IM, lower=True, **_END),
    "word pieces": lambda: word_pieces(CHATML, _IM, lower=False, **_END),
    "o200k": lambda: bytes_cut_by(CHATML, _IM, [pre_tokenizers.Split(Regex(_O200K), "isolated")], **_END),
    "deepseek": lambda: bytes_cut_by(CHATML, _IM, _DEEPSEEK, **_END),
    "words merged with the space before": lambda: bytes_cut_by(
        CHATML, _IM, [pre_tokenizers.Split(" ", "merged_with_next")], normalizers.NFKC(), **_END
    ),
    "metaspace never": lambda: sentencepiece(MISTRAL, ("[INST]", "[/INST]"), space="never"),
    "llama legacy": lambda: llama(legacy=True),
    "llama not legacy": lambda: llama(legacy=False),
}
"""Further kinds of tokenizers, some of which lose letters: what the template gives is asked of them all the same."""
