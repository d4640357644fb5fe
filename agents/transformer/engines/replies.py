"""What a server that samples says, read as if it were hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyturn.agents.transformer.engines.settings import finite
from polyturn.envs.trajectory import Logps, TokenIds

# Rounding may leave the log-probability of what is certain a little above zero.
_ROUNDING = 1e-3


class NoTokens(ValueError):
    """A server that answers, but not with token ids and their log-probabilities."""


class BadReply(ValueError):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Reply:
    """Tokens as a server sampled them.

    Attributes:
        ids: `[A]` int32.
        logps: `[A]` float32, in nats.
        model: What sampled, in the server's words.
    """

    ids: TokenIds
    logps: Logps
    model: str


def read_json(content: bytes) -> Any:
    """A JSON value.

    Raises:
        BadReply: It is none.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadReply(f"expected JSON, got {type(error).__name__}") from None


def read_reply(content: bytes, prompt: Sequence[int], most: int, vocabulary: int) -> Reply:
    """Reads one completion.

    Args:
        content: The answer's body.
        prompt: What was sent.
        most: Tokens that were asked for, at most.
        vocabulary: Tokens that there are.

    Raises:
        NoTokens: It holds a text where tokens were asked for.
        BadReply: It is no completion of this prompt.
    """
    answer = read_json(content)
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise BadReply("expected one choice")
    choice = choices[0]
    ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
    if ids is None:
        raise NoTokens("no token ids (return_token_ids)")
    logps = logprobs.get("token_logprobs") if isinstance(logprobs, Mapping) else None
    if logps is None:
        raise NoTokens("no log-probabilities (logprobs)")
    if not isinstance(ids, list) or not all(type(number) is int and 0 <= number < vocabulary for number in ids):
        raise BadReply(f"expected token ids from 0 to {vocabulary - 1}")
    if not 0 < len(ids) <= most:
        raise BadReply(f"expected 1 to {most} tokens, got {len(ids)}")
    if not isinstance(logps, list) or len(logps) != len(ids) or not all(map(finite, logps)):
        raise BadReply(f"expected {len(ids)} finite log-probabilities")
    if max(logps) > _ROUNDING:
        raise BadReply(f"expected log-probabilities of at most 0, got {max(logps):g}")
    read = choice.get("prompt_token_ids")
    if read is not None and read != list(prompt):
        raise BadReply("another prompt was read than was sent")
    values = np.minimum(np.asarray(logps, np.float64), 0.0).astype(np.float32)
    return Reply(np.asarray(ids, np.int32), values, str(answer.get("model", "")))
