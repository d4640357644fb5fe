"""Policies and data sets of trajectories on the Hugging Face Hub, each with a card that says how it was made."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polyturn.envs.export import export_parquet, export_sft
from polyturn.envs.store import is_store, read

Kind = Literal["model", "dataset"]
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Made:
    """How a policy was made, for its card.

    Attributes:
        method: The method, such as "mdpo".
        settings: Its settings and those of the training; JSON values.
        base: What it was started from: a Hub id, or a folder.
        data: What it learned from: an environment with its options, a file, a program with its tasks.
        command: The command line, or the call, that made it.
        results: What came out, by name.
        system: The system prompt that it was trained with, or None.
    """

    method: str
    base: str
    data: str
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float | int | str] = field(default_factory=dict)
    system: str | None = None


def model_card(made: Made, name: str, *, adapters: bool = False) -> str:
    """The card of a policy as Markdown with the Hub's metadata.

    Args:
        made: How it was made.
        name: What to call it.
        adapters: Whether only adapters were saved, which peft puts on their base.
    """
    from huggingface_hub import ModelCardData

    named = _REPOSITORY.fullmatch(made.base) is not None and not Path(made.base).exists()
    data = ModelCardData(
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        base_model=made.base if named else None,
        tags=["polyturn", "preference-learning", "multi-turn", made.method],
    )
    rows = [f"| {_cell(key)} | {_cell(_number(value))} |" for key, value in made.results.items()]
    settings = json.dumps(made.settings, indent=1, sort_keys=True, default=str)
    lines = [
        "---", data.to_yaml(), "---", "", f"# {_cell(name)}", "",
        f"A policy trained with polyturn's `{made.method}` over whole multi-turn trajectories.", "",
        "| | |", "|---|---|", f"| method | {_cell(made.method)} |", f"| started from | {_cell(made.base)} |",
        f"| learned from | {_cell(made.data)} |", "", "## Command", "", _fenced(made.command, "sh"), "",
        "## Results", "",
        *(["| | |", "|---|---|", *rows] if rows else ["None were recorded."]), "", "## Settings", "",
        _fenced(settings, "json"), "", "## Use", "",
        _fenced(
            "from polyturn.agents import TransformerAgent\n\n"
            f"agent = TransformerAgent.from_pretrained({name!r})", "python"
        ),
    ]  # fmt: skip
    if made.system is not None:
        lines += ["", "It was trained with this system prompt:", "", _fenced(made.system, "text")]
    return "\n".join(lines) + "\n"


def data_card(store: Path, name: str) -> str:
    """The card of a data set of trajectories: where they come from, by environment, agent and policy.

    Raises:
        ValueError: The store holds no trajectory.
    """
    from huggingface_hub import DatasetCardData

    found: dict[tuple[str, str, str], list[float]] = {}
    invalid = 0
    for trajectory in read(store):
        invalid += not trajectory.valid
        if trajectory.valid:
            key = (trajectory.env_id, trajectory.agent, trajectory.policy_version)
            found.setdefault(key, []).append(trajectory.total_reward)
    if not found:
        raise ValueError(f"{str(store)!r}: expected valid trajectories to push, got none")
    configs = [
        {"config_name": "trajectories", "data_files": "trajectories.parquet", "default": True},
        {"config_name": "messages", "data_files": "messages.parquet"},
    ]
    data = DatasetCardData(tags=["polyturn", "trajectories", "multi-turn"], configs=configs)
    rows = [
        f"| {_cell(env)} | {_cell(agent)} | {_cell(version)} | {len(returns)} | {sum(returns) / len(returns):.4g} |"
        for (env, agent, version), returns in sorted(found.items())
    ]
    return "\n".join([
        "---", data.to_yaml(), "---", "", f"# {_cell(name)}", "",
        "Trajectories collected with polyturn: tokens exactly as they were sampled, with the log-probabilities they "
        "were drawn with (`trajectories`), and the same conversations as chat messages (`messages`).", "",
        "| environment | agent | policy | valid | mean return |", "|---|---|---|---|---|", *rows, "",
        f"{invalid} episodes that failed for reasons outside the agent are left out.", "",
    ])  # fmt: skip


def check_repository(repository: str) -> None:
    """Refuses what is no name of a repository.

    Raises:
        ValueError: It is none.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise ValueError(f"push: expected USER/NAME, got {repository!r}")


def make_repository(repository: str, kind: Kind = "model", *, private: bool = True) -> None:
    """Makes a repository, or finds that it is there, so that a missing login is known before any work.

    Raises:
        ValueError: It is no name of a repository.
        PermissionError: No account is logged in, or it may not write there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_repository(repository)
    try:
        HfApi().create_repo(repository, repo_type=kind, private=private, exist_ok=True)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PermissionError(f"{repository}: {reason}; log in with `hf auth login`, or set HF_TOKEN") from error


def push_policy(folder: str | Path, repository: str, *, card: str | None = None, private: bool = True) -> str:
    """Uploads a folder that `Policy.save_pretrained` wrote and returns its address.

    Args:
        folder: The policy's.
        repository: USER/NAME; made where it does not exist.
        card: Its README.md; None takes the folder's own.
        private: Whether a new repository is private.

    Raises:
        ValueError: The folder holds no policy, or no card.
        PermissionError: No account is logged in, or it may not write there.
    """
    path = Path(folder)
    if not (path / "polyturn.json").is_file():
        raise ValueError(f"push: expected a policy's folder (with polyturn.json) or a store, got {str(path)!r}")
    if card is not None:
        (path / "README.md").write_text(card, "utf-8")
    if not (path / "README.md").is_file():
        raise ValueError(
            f"push: expected a card, {str(path / 'README.md')!r}, which `polyturn train` writes; write one"
        )
    return _upload(path, repository, "model", private)


def push_trajectories(store: str | Path, repository: str, *, private: bool = True) -> str:
    """Uploads a store as a data set, as Parquet and as chat messages, and returns its address.

    Args:
        store: The store.
        repository: USER/NAME; made where it does not exist.
        private: Whether a new repository is private.

    Raises:
        ValueError: The store holds no valid trajectory.
        PermissionError: No account is logged in, or it may not write there.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "README.md").write_text(data_card(Path(store), repository), "utf-8")
        export_parquet(store, folder / "trajectories.parquet")
        _messages(Path(store), folder / "messages.parquet")
        return _upload(folder, repository, "dataset", private)


def push(path: str | Path, repository: str, *, private: bool = True) -> str:
    """Uploads a policy's folder or a store, whichever it is."""
    if Path(path).is_file() and is_store(path):
        return push_trajectories(path, repository, private=private)
    return push_policy(path, repository, private=private)


def _upload(folder: Path, repository: str, kind: Kind, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    make_repository(repository, kind, private=private)
    api = HfApi()
    try:
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, commit_message="Upload with polyturn")
    except HfHubHTTPError as error:
        raise PermissionError(f"{repository}: {str(error).strip().splitlines()[0]}") from error
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def _messages(store: Path, out: Path) -> None:
    """Conversations as Parquet; tools and calls of them as JSON text, so that all rows have one type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = ("role", "content", "name", "tool_call_id", "reasoning_content")
    message = pa.struct({name: pa.large_string() for name in (*plain, "tool_calls")})
    schema = pa.schema([
        ("messages", pa.list_(message)), ("tools", pa.large_string()), ("env_id", pa.large_string()),
        ("seed", pa.int64()), ("task_id", pa.large_string()), ("policy_version", pa.large_string()),
        ("return", pa.float64()),
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        lines = Path(made) / "messages.jsonl"
        export_sft(store, lines)
        with lines.open(encoding="utf-8") as file, pq.ParquetWriter(out, schema) as writer:
            for line in file:
                row = json.loads(line)
                row["messages"] = [
                    {name: each.get(name) for name in plain} | {"tool_calls": _json(each.get("tool_calls"))}
                    for each in row["messages"]
                ]
                row["tools"] = _json(row.get("tools"))
                writer.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _number(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _fenced(text: str, language: str) -> str:
    """Text as a block of code that nothing in it can end."""
    longest: Sequence[str] = re.findall(r"`{3,}", text)
    fence = "`" * max(3, *(len(found) + 1 for found in longest), 3)
    return f"{fence}{language}\n{text}\n{fence}"
