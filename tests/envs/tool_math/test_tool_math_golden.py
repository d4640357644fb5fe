"""ToolMath's transcripts: what an agent sees and is paid, compared with digests of the first release's environment."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest

from polyturn.envs.registration import make

TURNS = (
    "```python\nx = 3\nprint(x * 14)\n```",
    "Think.\n  ```py\n  x += 1\n  print(x)\n  ```\nand ~~~python\nprint('two')\n~~~",
    "```python\n1 / 0\n```",
    "```python\nimport random\nprint(random.random())\n```",
    "```python\nprint('y' * 5000)\n```",
    "```python\n'a value'\n```",
    "```python\nimport os; os._exit(1)\n```",
    "```python\nprint('\\x1b[2J \\u202e')\n```",
    "```python\ndef f(:\n```",
    "```python\nwhile True: pass\n```",
    "```python\nprint(1)\n``` so it is \\boxed{42}",
    "\\boxed{\\frac{1}{2}}",
    "```json\n{}\n```",
    "no answer",
    "",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"prompt": "plain", "max_turns": 3, "problems": "generated:1:16"},
    "short": {"output_limit": 64, "prompt": "Q: {question}", "split": "test", "problems": "generated:3:32"},
}
DIGESTS = {
    "default": "2ca3c855d1aa9b21665f6ef8419bc578ce421d5fa998cf6da827088e35f97dd3",
    "plain": "bb0156f321de2556ab646de19e0853f6cbe8b18457d63b459ffafd0901d052af",
    "short": "cafe3cf8124a55870e463c30b0b0c85f1a9f2299b79fe7990f5c0f2115748690",
}


def digest(options: dict[str, Any]) -> str:
    """SHA-256 of 12 episodes as JSON: resets, steps and what rendering gives, one line each."""
    env = make("polyturn/ToolMath-v0", sandbox="local", time_limit_s=0.5, render_mode="ansi", **options)
    lines = []
    for seed in range(12):
        rng = random.Random(seed)
        lines.append(json.dumps(env.reset(seed=seed)))
        over = False
        while not over:
            result = env.step(rng.choice(TURNS))
            over = result[2] or result[3]
            lines.append(json.dumps(result, sort_keys=True))
        lines.append(json.dumps(env.render()))  # type: ignore[attr-defined]
    env.close()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", OPTIONS)
def test_transcripts_are_those_of_the_first_release(name: str) -> None:
    assert digest(OPTIONS[name]) == DIGESTS[name]
