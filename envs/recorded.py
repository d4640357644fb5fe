"""Data that people have, as groups: preference pairs, scored or labelled completions, conversations to imitate.

Rows are read from JSON lines, Parquet, a folder that `datasets` saved, or a data set of the Hub (its id, or a folder in
the same layout); their layout is told by their fields:

    chosen, rejected [, prompt]            a pair: texts or messages; TRL's and UltraFeedback's (binarized) layouts
    prompt, completion, label              a thumb up or down (KTO's layout)
    prompt, completion, score | reward     a completion with a score
    instruction, completions               UltraFeedback's own layout: completions with an overall score
    messages | conversations [, label...]  a whole conversation, of which every answer is the agent's
    prompt, completion                     a completion to imitate

Completions of the same prompt are one group, and nothing else is ever compared: a row whose two answers belong to
different prompts is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from polyturn.envs.extras import how_to_install
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group, Trajectory, Turn

ENV_ID = "data"
"""What trajectories of recorded data have as `env_id`."""
Kind = Literal["pair", "label", "score", "plain"]
_LAYOUTS = (
    "chosen and rejected; prompt, completion and label or score; instruction and completions; messages; or prompt and "
    "completion"
)
# What `save_to_disk` leaves: of one split, of several.
_SAVED = ("state.json", "dataset_dict.json")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w-][\w.-]*?)(?::(?P<configuration>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
_FILES = (".jsonl", ".json", ".parquet", ".txt", ".csv")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Messages = list[tuple[str, str]]


class DataError(ValueError):
    """A row that cannot be read, or that compares what cannot be compared."""


@dataclass(frozen=True)
class Recorded:
    """Completions of one prompt.

    Attributes:
        group: Trajectories without tokens; `info["prompt_turns"]` is how many first turns belong to the prompt, which
            the agent did not write.
        preference: Over the group; its scores are labels (1 and 0) or scores where there are any, else nan. None for
            conversations to imitate.
        kind: What the rows said of them.
    """

    group: Group
    preference: Preference | None
    kind: Kind


def read_recorded(path: str | os.PathLike[str]) -> list[Recorded]:
    """Reads a file, a folder or a data set of the Hub; groups in order of first appearance.

    Args:
        path: A file of JSON lines or Parquet; a folder, written by `save_to_disk` or holding a data set's files; or
            `user/name[:configuration][@split]` on the Hub. Without a split it is "train", or the only one.

    Raises:
        DataError: A row that is in no known layout, holds no conversation of alternating sides, or compares answers to
            different prompts; the message names it.
        ImportError: Parquet without pyarrow, or a folder without datasets.
    """
    places: dict[tuple[Kind, str], int] = {}
    found: list[tuple[Kind, list[Trajectory], list[float], list[tuple[int, int]]]] = []
    for number, row in enumerate(_rows(Path(path)), 1):
        try:
            kind, members, scores = _read(row)
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: row {number}: {error}") from None
        place = places.setdefault((kind, members[0].task_id), len(found))
        if place == len(found):
            found.append((kind, [], [], []))
        _, group, known, pairs = found[place]
        if kind == "pair":
            pairs.append((len(group), len(group) + 1))
        group += members
        known += scores
    if not found:
        raise DataError(f"{os.fspath(path)}: expected at least one row, got none")
    return [_recorded(*each) for each in found]


def _recorded(kind: Kind, members: list[Trajectory], scores: list[float], pairs: list[tuple[int, int]]) -> Recorded:
    named = tuple(Trajectory(**{**_fields(each), "member": place}) for place, each in enumerate(members))
    if kind == "plain":
        return Recorded(Group(named), None, kind)
    known = np.array(scores, np.float64)
    if kind == "pair":
        matrix = np.full((len(named), len(named)), np.nan)
        for winner, loser in pairs:
            matrix[winner, loser], matrix[loser, winner] = 1.0, 0.0
    else:
        difference = known[:, None] - known[None, :]
        matrix = np.where(difference == 0, 0.5, (difference > 0).astype(np.float64))
    return Recorded(Group(named), Preference(matrix, "human", known), kind)


def _fields(trajectory: Trajectory) -> dict[str, Any]:
    return {name: getattr(trajectory, name) for name in Trajectory.__dataclass_fields__}


def _on_hub(name: str, configuration: str | None, split: str | None) -> Iterator[Mapping[str, Any]]:
    """Rows of a data set of the Hub, or of a folder with the files of one.

    Raises:
        DataError: It is not there, has several configurations or splits, or not the one asked for.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"data sets need datasets; install it with: {how_to_install('data')}") from error
    try:
        loaded = datasets.load_dataset(name, configuration)
    except Exception as error:  # the library raises whatever its readers do
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise DataError(f"{name}: expected a data set, got: {reason}") from error
    chosen = split or ("train" if "train" in loaded else min(loaded) if len(loaded) == 1 else "")
    if chosen not in loaded:
        raise DataError(f"{name}: expected one of the splits {', '.join(sorted(loaded))}; name it: {name}@SPLIT")
    yield from loaded[chosen]


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists() and path.suffix not in _FILES and (found := _HUB_ID.fullmatch(str(path))):
        yield from _on_hub(found["name"], found["configuration"], found["split"])
    elif path.is_dir() and not any((path / name).exists() for name in _SAVED):
        yield from _on_hub(str(path), None, None)
    elif path.is_dir():
        try:
            from datasets import load_from_disk
        except ImportError as error:
            raise ImportError(f"data set folders need datasets; install it with: {how_to_install('data')}") from error
        loaded = load_from_disk(str(path))
        if not hasattr(loaded, "column_names") or isinstance(loaded, Mapping):
            raise DataError(f"{path}: expected one split, got {sorted(loaded)}; name the folder of one of them")
        yield from loaded
    elif path.suffix == ".parquet":
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(f"Parquet needs pyarrow; install it with: {how_to_install('data')}") from error
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    else:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}: line {number}: expected a JSON object, got {error}") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: expected a JSON object, got {type(row).__name__}")
                yield row


def _read(row: Mapping[str, Any]) -> tuple[Kind, list[Trajectory], list[float]]:
    """The trajectories of a row, all from one prompt, and a score for each (nan where there is none)."""
    have = {name for name, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= have:
        conversations = [_whole(row.get("prompt"), row[name], name) for name in ("chosen", "rejected")]
        shared = _shared(*conversations) if "prompt" not in have else len(_messages(row["prompt"], "prompt", "user"))
        prompts = [conversation[: max(shared, _opening(conversation))] for conversation in conversations]
        if prompts[0] != prompts[1]:
            raise DataError(
                f"expected two answers to one prompt, got {_shown(prompts[0])} and {_shown(prompts[1])}; answers to "
                "different prompts cannot be compared"
            )
        scores = [_number(row, f"score_{name}", default=float("nan")) for name in ("chosen", "rejected")]
        return "pair", [_trajectory(each, len(prompts[0])) for each in conversations], scores
    if {"instruction", "completions"} <= have:
        prompt = [("user", str(row["instruction"]))]
        rated = [c for c in row["completions"] if isinstance(c.get("overall_score"), int | float)]
        if not rated:
            raise DataError("expected completions with an overall_score, got none")
        members = [_trajectory([*prompt, ("assistant", str(c["response"]))], 1) for c in rated]
        return "score", members, [float(c["overall_score"]) for c in rated]
    if "completion" in have:
        conversation = _whole(row.get("prompt"), row["completion"], "completion")
        start = len(_messages(row["prompt"], "prompt", "user")) if "prompt" in have else _opening(conversation)
        member = _trajectory(conversation, start)
    elif "messages" in have or "conversations" in have:
        conversation = _messages(row.get("messages") or row.get("conversations"), "messages", "user")
        member = _trajectory(conversation, _opening(conversation))
    else:
        raise DataError(
            f"expected a store of trajectories, or rows with {_LAYOUTS}, got {', '.join(sorted(row)) or 'nothing'}"
        )
    if "label" in have:
        if not isinstance(row["label"], bool | np.bool_) and row["label"] not in (0, 1):
            raise DataError(f"label: expected true or false, got {str(row['label'])[:40]!r}")
        return "label", [member], [float(row["label"])]
    for name in ("score", "reward"):
        if name in have:
            return "score", [member], [_number(row, name)]
    return "plain", [member], [float("nan")]


def _whole(prompt: Any, completion: Any, name: str) -> Messages:
    """A prompt and what follows, where the completion may hold the prompt again."""
    answer = _messages(completion, name, "assistant")
    if prompt is None:
        return answer
    before = _messages(prompt, "prompt", "user")
    opening = _opening(answer)
    if not opening:
        return [*before, *answer]
    without = [message for message in answer if message[0] != "system"]
    if answer[: len(before)] == before:
        return answer
    if without[: len(before)] == before:  # UltraFeedback's prompt is the text of the first message
        return answer
    raise DataError(
        f"{name}: expected an answer to the prompt, got a conversation that begins with {_shown(answer[:opening])} "
        f"where the prompt is {_shown(before)}; answers to different prompts cannot be compared"
    )


def _messages(value: Any, name: str, role: str) -> Messages:
    """Text, or messages, as pairs of role and text."""
    if isinstance(value, str):
        return [(role, value)]
    if not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise DataError(f"{name}: expected text or a list of messages, got {type(value).__name__}")
    found: Messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise DataError(f"{name}: expected messages with role and content, got {type(message).__name__}")
        who, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if who not in _ROLES or not isinstance(text, str):
            raise DataError(
                f"{name}: expected messages of system, user and assistant with text, got {str(who)[:40]!r} with "
                f"{type(text).__name__}"
            )
        found.append((_ROLES[who], text))
    return found


def _trajectory(conversation: Messages, start: int) -> Trajectory:
    """A conversation whose first `start` messages are the prompt."""
    system = conversation[0][1] if conversation and conversation[0][0] == "system" else None
    spoken = conversation[system is not None :]
    roles = [role for role, _ in spoken]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(f"expected user and assistant in turn, the assistant last, got {', '.join(roles)[:80]}")
    prompt = conversation[:start]
    key = hashlib.blake2b(json.dumps(prompt).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    turns = tuple(Turn(spoken[i][1], spoken[i + 1][1]) for i in range(0, len(spoken), 2))
    before = sum(role == "assistant" for role, _ in prompt)
    if before >= len(turns):
        raise DataError("expected an answer after the prompt, got none")
    options = {} if system is None else {"system": system}
    return Trajectory(
        ENV_ID, 0, turns, task_id=key, terminated=True, env_options=options, info={"prompt_turns": before}
    )


def _opening(conversation: Messages) -> int:
    """Messages before the first answer."""
    return next((place for place, (role, _) in enumerate(conversation) if role == "assistant"), len(conversation))


def _shared(chosen: Messages, rejected: Messages) -> int:
    """Messages of the longest common beginning that ends with the user's words; 0 where the first ones differ."""
    same = 0
    for mine, other in zip(chosen, rejected, strict=False):
        if mine != other:
            break
        same += 1
    while same and chosen[same - 1][0] != "user":
        same -= 1
    return same


def _number(row: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise DataError(f"{name}: expected a finite number, got {str(value)[:40]!r}")
    return float(value)


def _shown(messages: Messages) -> str:
    return repr(" / ".join(text for _, text in messages)[:80])
