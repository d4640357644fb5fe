"""Chat templates with tools, of the shapes that published model families have."""

# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Callable

from families import _IM, _LLAMA3, byte_level, sentencepiece
from transformers import PreTrainedTokenizerFast

_CALLS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_HEAD = (
    "{%- if tools -%}{{- '<|im_start|>system\n' -}}{%- if messages[0].role == 'system' -%}"
    "{{- messages[0].content + '\n\n' -}}{%- endif -%}{{- '# Tools\n\n<tools>' -}}{%- for tool in tools -%}"
    "{{- '\n' -}}{{- tool | tojson -}}{%- endfor -%}{{- '\n</tools>\n\nCall: <tool_call></tool_call><|im_end|>\n' -}}"
    "{%- elif messages[0].role == 'system' -%}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}{%- endif -%}"
)
_CALLING = (
    "{{- '<|im_start|>assistant' -}}{%- if m.content -%}{{- '\n' + m.content -}}{%- endif -%}"
    '{%- for call in m.tool_calls -%}{%- set f = call.function -%}{{- \'\n<tool_call>\n{"name": "\' -}}{{- f.name -}}'
    "{{- '\", \"arguments\": ' -}}{{- f.arguments | tojson -}}{{- '}\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
)
_END = "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
# Results that follow one another stand in one turn of the user.
QWEN25 = (
    _HEAD + "{%- for m in messages -%}{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- elif m.role == 'assistant' -%}"
    + _CALLING
    + "{%- elif m.role == 'tool' -%}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}"
    "{{- '<|im_start|>user' -}}{%- endif -%}{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}{%- endif -%}"
    + _END
)
# A role of its own for results, with the tool's name.
HERMES = (
    _HEAD + "{%- for m in messages -%}{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) -%}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}{%- elif m.role == 'assistant' -%}"
    + _CALLING
    + "{%- elif m.role == 'tool' -%}{{- '<|im_start|>tool\n<tool_response>\n{\"name\": \"' + m.name + '\", \"content\": ' -}}"
    "{{- m.content | tojson -}}{{- '}\n</tool_response><|im_end|>\n' -}}{%- endif -%}" + _END
)
LLAMA31 = (
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'tool' -%}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' -}}{{- m.content | tojson -}}{{- '<|eot_id|>' -}}"
    "{%- elif m.tool_calls -%}{%- if m.tool_calls | length != 1 -%}{{- raise_exception('one call at once') -}}{%- endif -%}"
    "{%- set f = m.tool_calls[0].function -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}"
    "{{- '{\"name\": \"' + f.name + '\", \"parameters\": ' -}}{{- f.arguments | tojson -}}{{- '}' -}}"
    "{{- '<|eom_id|>' if eom else '<|eot_id|>' -}}{%- else -%}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' -}}{%- if loop.first and tools -%}"
    "{{- 'Functions:\n' -}}{%- for tool in tools -%}{{- tool | tojson(indent=4) -}}{{- '\n\n' -}}{%- endfor -%}{%- endif -%}"
    "{{- m.content | trim -}}{{- '<|eot_id|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
# Tools stand before the last question; ids of calls have nine letters; there is no header before an answer.
MISTRAL3 = (
    "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}{{- bos_token -}}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- if tools and m == users[-1] -%}{{- '[AVAILABLE_TOOLS] [' -}}"
    "{%- for tool in tools -%}{{- tool | tojson -}}{{- ', ' if not loop.last -}}{%- endfor -%}{{- '] [/AVAILABLE_TOOLS]' -}}"
    "{%- endif -%}{{- '[INST] ' + m.content + '[/INST]' -}}{%- elif m.tool_calls -%}{{- '[TOOL_CALLS] [' -}}"
    "{%- for call in m.tool_calls -%}{%- if call.id | length != 9 -%}{{- raise_exception('nine letters') -}}{%- endif -%}"
    '{{- \'{"name": "\' + call.function.name + \'", "arguments": \' -}}{{- call.function.arguments | tojson -}}'
    "{{- ', \"id\": \"' + call.id + '\"}' -}}{{- ', ' if not loop.last -}}{%- endfor -%}{{- ']' + eos_token -}}"
    "{%- elif m.role == 'tool' -%}{{- '[TOOL_RESULTS] {\"content\": ' + m.content | string + ', \"call_id\": \"' -}}"
    "{{- m.tool_call_id + '\"}[/TOOL_RESULTS]' -}}{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
_MISTRAL_MARKS = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                  "[/TOOL_RESULTS]")  # fmt: skip


def _llama31(*, eom: bool) -> PreTrainedTokenizerFast:
    template = LLAMA31.replace("'<|eom_id|>' if eom else '<|eot_id|>'", f"'<|{'eom' if eom else 'eot'}_id|>'")
    return byte_level(template, _LLAMA3, words=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


TOOL_FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen2.5": lambda: byte_level(QWEN25, _IM, _CALLS, words=True, eos_token="<|im_end|>"),
    "hermes": lambda: byte_level(HERMES, _IM, words=True, eos_token="<|im_end|>"),
    "llama3.1": lambda: _llama31(eom=False),
    "llama3.1, other end": lambda: _llama31(eom=True),
    "mistral": lambda: sentencepiece(MISTRAL3, _MISTRAL_MARKS),
    "mistral, legacy": lambda: sentencepiece(MISTRAL3, _MISTRAL_MARKS, space="legacy"),
}
"""A tokenizer of each family whose template has tools, by name."""
