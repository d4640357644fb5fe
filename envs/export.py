"""Stores in the formats that other tools read: Parquet, and chat messages for SFT and DPO trainers.

Every function streams, writes to a temporary file in the same folder and renames it at the end, never replaces a file
that exists, and leaves invalid trajectories out unless asked for them. Those formats cannot hold lone surrogates; each
becomes U+FFFD.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from polyturn.envs.extras import how_to_install
from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.returns import at_least
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.store import Corrupt, read, read_groups
from polyturn.envs.tools.calls import TOOLS
from polyturn.envs.trajectory import Trajectory

_ROWS = 256


class ExportError(ValueError):
    """The trajectories cannot be written in this format."""


def export_parquet(
    store: str | os.PathLike[str], out: str | os.PathLike[str], *, invalid: bool = True, corrupt: Corrupt = "raise"
) -> int:
    """Writes one row a trajectory; `datasets.load_dataset("parquet", data_files=out)` reads it.

    Columns: the fields of `Trajectory` (`env_options` and `info` as JSON text), `valid`, `total_reward`, and `turns`, a
    list of the fields of `Turn` with `info` as JSON text, tokens as int32 and log-probs as float32; `structure` is
    `messages` and `reply` as JSON text, or null.

    Args:
        store: What to export.
        out: The new file.
        invalid: Whether to include trajectories that failed; the column `valid` marks them.
        corrupt: What to do at a damaged record; as `polyturn.envs.read`.

    Returns:
        Rows written.

    Raises:
        ImportError: pyarrow is missing; it comes with the extra `data`.
        FileExistsError: `out` exists.
        StoreError: The store cannot be read.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"Parquet needs pyarrow; install it with: {how_to_install('data')}") from error
    turn = pa.struct(
        {
            "observation": pa.large_string(),
            "action": pa.large_string(),
            "reward": pa.float64(),
            "context_ids": pa.list_(pa.int32()),
            "action_ids": pa.list_(pa.int32()),
            "logps": pa.list_(pa.float32()),
            "info": pa.large_string(),
            "structure": pa.large_string(),
        }
    )
    text = ("env_id", "task_id", "agent", "policy_version", "error", "final_observation", "env_options", "info")
    schema = pa.schema(
        [(name, pa.large_string()) for name in text]
        + [("seed", pa.int64()), ("member", pa.int64()), ("total_reward", pa.float64())]
        + [(name, pa.bool_()) for name in ("terminated", "truncated", "valid")]
        + [("turns", pa.list_(turn)), ("segment_starts", pa.list_(pa.int64()))]
    )
    rows = (_row(trajectory) for trajectory in read(store, corrupt=corrupt) if invalid or trajectory.valid)
    count = 0
    with _new_file(out) as file, pq.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS)):
            try:
                table = pa.Table.from_pylist(batch, schema)
            except (pa.ArrowInvalid, OverflowError) as error:
                raise ExportError(
                    f"rows {count + 1} to {count + len(batch)}: expected values that Parquet holds, got {error} "
                    "(seeds are 64-bit integers there)"
                ) from error
            writer.write_table(table)
            count += len(batch)
    return count


def export_sft(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    min_return: float | None = None,
    corrupt: Corrupt = "raise",
) -> int:
    """Writes JSON lines `{"messages": [{"role", "content"}, ...], ...}`, one segment of a valid trajectory each.

    Beside the messages stand `env_id`, `seed`, `task_id`, `policy_version` and `return`.

    Args:
        store: What to export.
        out: The new file.
        min_return: Only trajectories with at least this total reward, for example to imitate winners.
        corrupt: What to do at a damaged record; as `polyturn.envs.read`.

    Returns:
        Lines written.

    Raises:
        FileExistsError: `out` exists.
        StoreError: The store cannot be read.
    """
    if min_return is not None:
        check_range("export_sft(min_return)", min_return, -math.inf)
    count = 0
    with _new_file(out) as file:
        for trajectory in read(store, corrupt=corrupt):
            if trajectory.valid and (min_return is None or at_least(trajectory.total_reward, min_return)):
                for part in trajectory.segments:
                    row = {
                        "messages": _messages(replace(trajectory, turns=part, segment_starts=())),
                        **_provenance(trajectory),
                        "return": _finite(trajectory.total_reward),
                    }
                    count += _write_line(file, row)
    return count


def export_dpo(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    annotate: Annotator = by_return,
    pairs_per_group: int | None = None,
    corrupt: Corrupt = "raise",
) -> int:
    """Writes JSON lines `{"prompt": [...], "chosen": [...], "rejected": [...], ...}`, one pair of a group each.

    `prompt` is the longest beginning that both trajectories share and that ends with the environment speaking; `chosen`
    and `rejected` are the rest, so each begins with the agent and may hold several turns of either side. A trainer that
    does not mask the environment's turns inside a completion will train on them: for multi-turn data, polyturn's own
    losses do. Pairs without any difference in text are left out.

    Args:
        store: What to export.
        out: The new file.
        annotate: Prefers members of a group; called with the valid members only.
        pairs_per_group: At most this many pairs of a group, in index order; None for all.
        corrupt: What to do at a damaged record; as `polyturn.envs.read`.

    Returns:
        Lines written.

    Raises:
        FileExistsError: `out` exists.
        ExportError: Two trajectories of a group begin with different observations, or one has several segments, which
            no pair of conversations can hold.
        StoreError: The store cannot be read.
    """
    check_count("export_dpo(pairs_per_group)", pairs_per_group, optional=True)
    count = 0
    with _new_file(out) as file:
        for group in read_groups(store, corrupt=corrupt):
            valid = group.valid
            if valid is None:
                continue
            written = 0
            for winner, loser in annotate(valid).pairs():
                if written == pairs_per_group:
                    break
                written += _write_pair(file, valid[winner], valid[loser])
            count += written
    return count


def _write_pair(file: IO[bytes], winner: Trajectory, loser: Trajectory) -> int:
    chosen, rejected = _messages(winner), _messages(loser)
    if winner.segment_starts or loser.segment_starts:
        raise ExportError(
            f"group of {winner.env_id}, seed {winner.seed}, task {winner.task_id!r}: expected trajectories of one "
            "segment, got one whose history was rewritten; train on the store itself, or export it as Parquet"
        )
    if chosen == rejected or not chosen or not rejected:
        return 0
    if chosen[0] != rejected[0]:
        raise ExportError(
            f"group of {winner.env_id}, seed {winner.seed}, task {winner.task_id!r}: expected trajectories that begin "
            f"with the same observation, got {chosen[0]['content'][:60]!a} and {rejected[0]['content'][:60]!a}; "
            "the environment does not reproduce its start (see polyturn check-env)"
        )
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    # Both completions begin with the agent. Where one trajectory is the beginning of the other, its last action is
    # given back so that both completions have one. What stands before the first action is one observation.
    while shared > 1 and any(shared >= len(said) or said[shared]["role"] != "assistant" for said in (chosen, rejected)):
        shared -= 1
    row = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    scores = {"chosen_return": _finite(winner.total_reward), "rejected_return": _finite(loser.total_reward)}
    return _write_line(file, {**row, **_provenance(winner), **scores})


def _provenance(trajectory: Trajectory) -> dict[str, Any]:
    names = ("env_id", "seed", "task_id", "policy_version")
    tools = {"tools": trajectory.info[TOOLS]} if TOOLS in trajectory.info else {}
    return {name: getattr(trajectory, name) for name in names} | tools


def _messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [{name: _cleaned(value) for name, value in message.items()} for message in trajectory.messages()]


def _cleaned(value: Any) -> Any:
    """A JSON value without lone surrogates in its texts."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {_clean(name): _cleaned(each) for name, each in value.items()}
    return [_cleaned(each) for each in value] if isinstance(value, list | tuple) else value


def _row(trajectory: Trajectory) -> dict[str, Any]:
    turns = [
        {
            "observation": _clean(turn.observation),
            "action": _clean(turn.action),
            "reward": turn.reward,
            "context_ids": turn.context_ids,
            "action_ids": turn.action_ids,
            "logps": turn.logps,
            "info": json.dumps(dict(turn.info)),
            "structure": json.dumps(turn.structure) if turn.structure else None,
        }
        for turn in trajectory.turns
    ]
    row = {name: getattr(trajectory, name) for name in Trajectory.__dataclass_fields__}
    row = {name: _clean(value) if isinstance(value, str) else value for name, value in row.items()}
    json_text = {name: json.dumps(dict(row[name])) for name in ("env_options", "info")}
    return row | json_text | {"turns": turns, "valid": trajectory.valid, "total_reward": trajectory.total_reward}


def _finite(number: float) -> float | None:
    """JSON knows no nan and no infinities."""
    return number if math.isfinite(number) else None


def _clean(text: str) -> str:
    """Text without lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return text


def _write_line(file: IO[bytes], row: dict[str, Any]) -> int:
    # ASCII escapes: some line-based readers split at U+2028 and its like.
    file.write(json.dumps({k: _clean(v) if isinstance(v, str) else v for k, v in row.items()}).encode() + b"\n")
    return 1


@contextlib.contextmanager
def _new_file(out: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    path = Path(out)
    if path.exists():
        raise FileExistsError(
            errno.EEXIST, "will not replace an existing file; choose another name or remove it", str(path)
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
        partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno).lower()}; nothing of it is left; free some space, or choose another place",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
