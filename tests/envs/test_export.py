"""What other tools get: Parquet that `datasets` loads, and chat messages as SFT and DPO trainers read them."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.envs import Group, Preference, Store, Trajectory, Turn, export_dpo, export_parquet, export_sft
from polyturn.envs.export import ExportError
from polyturn.envs.store import CorruptRecord


def episode(seed: int, member: int, *exchanges: tuple[str, str, float], **fields: Any) -> Trajectory:
    turns = tuple(Turn(observation, action, reward) for observation, action, reward in exchanges)
    return Trajectory(**{"env_id": "e", "seed": seed, "turns": turns, "member": member, "terminated": True} | fields)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def write(path: Path, *trajectories: Trajectory) -> Path:
    with Store(path) as opened:
        for trajectory in trajectories:
            opened.append(trajectory)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# SFT


def test_sft_lines_are_conversations(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "sft.jsonl"
    write(
        store,
        episode(1, 0, ("q", "a", 0.0), ("r", "b", 1.0), policy_version="v", task_id="t"),
        episode(1, 1, ("q", "bad", 0.0)),
        episode(1, 2, ("q", "lost", 1.0), error="SandboxLost"),
    )
    assert export_sft(store, out) == 2
    first = {"messages": [user("q"), assistant("a"), user("r"), assistant("b")], "env_id": "e", "seed": 1}
    assert lines(out)[0] == first | {"task_id": "t", "policy_version": "v", "return": 1.0}
    winners = tmp_path / "winners.jsonl"
    assert export_sft(store, winners, min_return=1.0) == 1
    assert lines(winners)[0]["messages"][1]["content"] == "a"


def test_text_that_breaks_readers_is_harmless(store: Path, tmp_path: Path) -> None:
    """U+2028 must not split a line for any reader; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
    out = tmp_path / "out.jsonl"
    write(store, episode(1, 0, ("a\u2028b\x85c\0", "\ud800 \U0001f600", 1.0), task_id="\udfff"))
    export_sft(store, out)
    assert len(out.read_text().splitlines()) == 1
    (row,) = lines(out)
    assert row["messages"] == [user("a\u2028b\x85c\0"), assistant("\ufffd \U0001f600")]
    assert row["task_id"] == "\ufffd"


def test_a_return_that_json_cannot_hold_is_null(store: Path, tmp_path: Path) -> None:
    write(store, episode(1, 0, ("q", "a", float("inf"))), episode(1, 1, ("q", "b", 0.0)))
    export_sft(store, tmp_path / "sft")
    export_dpo(store, tmp_path / "dpo")
    assert lines(tmp_path / "sft")[0]["return"] is None
    assert lines(tmp_path / "dpo")[0]["chosen_return"] is None


# DPO


def test_dpo_prompt_is_the_longest_shared_beginning(store: Path, tmp_path: Path) -> None:
    """The first two messages are common and the third differs, so the second action is where the trajectories part."""
    out = tmp_path / "dpo.jsonl"
    write(
        store,
        episode(1, 0, ("q", "same", 0.0), ("r", "wrong", 0.0)),
        episode(1, 1, ("q", "same", 0.0), ("r", "right", 0.5), ("s", "more", 0.5)),
    )
    assert export_dpo(store, out) == 1
    (row,) = lines(out)
    assert row["prompt"] == [user("q"), assistant("same"), user("r")]
    assert row["chosen"] == [assistant("right"), user("s"), assistant("more")]
    assert row["rejected"] == [assistant("wrong")]
    assert (row["chosen_return"], row["rejected_return"], row["seed"]) == (1.0, 0.0, 1)


@pytest.mark.parametrize(
    ("winner", "loser", "prompt", "chosen", "rejected"),
    [
        # Parted by the environment's answer: the completions still begin with the agent.
        ([("q", "a", 0.0), ("good", "b", 1.0)], [("q", "a", 0.0), ("bad", "b", 0.0)],
         ["q"], ["a", "good", "b"], ["a", "bad", "b"]),
        # One is the beginning of the other: its last action is its completion.
        ([("q", "a", 1.0)], [("q", "a", 0.0), ("r", "b", 0.0)], ["q"], ["a"], ["a", "r", "b"]),
        ([("q", "a", 0.0), ("r", "b", 1.0)], [("q", "a", 0.0)], ["q"], ["a", "r", "b"], ["a"]),
    ],
)  # fmt: skip
def test_dpo_completions_always_begin_with_the_agent(
    store: Path, tmp_path: Path, winner: Any, loser: Any, prompt: Any, chosen: Any, rejected: Any
) -> None:
    out = tmp_path / "dpo.jsonl"
    write(store, episode(1, 0, *winner), episode(1, 1, *loser))
    assert export_dpo(store, out) == 1
    (row,) = lines(out)
    for name, expected in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        assert [message["content"] for message in row[name]] == expected
    assert row["prompt"][-1]["role"] == "user"
    assert row["chosen"][0]["role"] == row["rejected"][0]["role"] == "assistant"


def test_dpo_pairs_within_groups_and_never_with_invalid_members(store: Path, tmp_path: Path) -> None:
    """Seed 1: returns 1, 0, 0 and a failure make 2 pairs; seed 2: a tie makes none; seed 3: no member is valid."""
    write(
        store,
        episode(1, 0, ("q", "right", 1.0)),
        episode(2, 0, ("q", "x", 1.0)),
        episode(1, 1, ("q", "wrong", 0.0)),
        episode(1, 2, ("q", "worse", 0.0)),
        episode(1, 3, ("q", "lost", 9.0), error="SandboxLost"),
        episode(2, 1, ("q", "y", 1.0)),
        episode(3, 0, ("q", "z", 1.0), error="SandboxLost"),
    )
    assert export_dpo(store, tmp_path / "all") == 2
    assert [row["rejected"][0]["content"] for row in lines(tmp_path / "all")] == ["wrong", "worse"]
    assert export_dpo(store, tmp_path / "one", pairs_per_group=1) == 1


def test_dpo_pairs_of_equal_text_are_left_out(store: Path, tmp_path: Path) -> None:
    write(store, episode(1, 0, ("q", "a", 1.0)), episode(1, 1, ("q", "a", 0.0)), episode(1, 2, ("q", "b", 0.0)))
    assert export_dpo(store, tmp_path / "out", pairs_per_group=1) == 1
    assert lines(tmp_path / "out")[0]["rejected"] == [assistant("b")]


def test_dpo_takes_any_annotator(store: Path, tmp_path: Path) -> None:
    def shortest(group: Group) -> Preference:
        lengths = np.array([len(member.turns[0].action) for member in group])
        return Preference(np.where(lengths[:, None] == lengths, 0.5, lengths[:, None] < lengths), "judge")

    write(store, episode(1, 0, ("q", "long answer", 1.0)), episode(1, 1, ("q", "no", 0.0)))
    export_dpo(store, tmp_path / "out", annotate=shortest)
    assert lines(tmp_path / "out")[0]["chosen"] == [assistant("no")]


def test_dpo_names_a_group_whose_start_is_not_reproducible(store: Path, tmp_path: Path) -> None:
    write(store, episode(1, 0, ("q at 12:00", "a", 1.0)), episode(1, 1, ("q at 12:01", "b", 0.0)))
    with pytest.raises(ExportError, match=r"seed 1, .* same observation, got 'q at 12:00' and 'q at 12:01'"):
        export_dpo(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Parquet


def test_parquet_holds_everything_and_datasets_loads_it(store: Path, tmp_path: Path) -> None:
    import datasets

    turn = Turn("\u6211\ud800", "a", 0.5, [1], [2, 3], np.array([-0.1, -np.inf], np.float32), {"guess": 7})
    full = Trajectory(
        "e", 5, (turn, turn), "t", "agent", "v1", 2, "end", True, False, None, {"high": 3}, {"task_id": "t"}
    )
    write(store, full, episode(6, 0, error="SandboxLost", terminated=False), *(episode(s, 0) for s in range(600)))
    assert export_parquet(store, tmp_path / "runs.parquet") == 602
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "runs.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 602
    row = loaded[0]
    assert {name: row[name] for name in ("env_id", "seed", "task_id", "agent", "policy_version", "member")} == {
        "env_id": "e", "seed": 5, "task_id": "t", "agent": "agent", "policy_version": "v1", "member": 2
    }  # fmt: skip
    assert (row["terminated"], row["truncated"], row["valid"], row["error"]) == (True, False, True, None)
    assert (row["total_reward"], row["final_observation"]) == (1.0, "end")
    assert json.loads(row["env_options"]) == {"high": 3}
    assert len(row["turns"]) == 2
    stored = row["turns"][1]
    assert (stored["observation"], stored["action"], stored["reward"]) == ("\u6211\ufffd", "a", 0.5)
    assert (stored["context_ids"], stored["action_ids"]) == ([1], [2, 3])
    assert np.array(stored["logps"], np.float32).tobytes() == turn.logps.tobytes()
    assert json.loads(stored["info"]) == {"guess": 7}
    assert (loaded[1]["valid"], loaded[1]["error"], loaded[1]["turns"]) == (False, "SandboxLost", [])
    assert export_parquet(store, tmp_path / "valid.parquet", invalid=False) == 601


def test_chat_lines_load_in_datasets(store: Path, tmp_path: Path) -> None:
    import datasets

    write(store, episode(1, 0, ("q\u2028", "a\0", 1.0)), episode(1, 1, ("q\u2028", "\ud800", 0.0)))
    export_sft(store, tmp_path / "sft.jsonl")
    export_dpo(store, tmp_path / "dpo.jsonl")
    for name, columns in (("sft", {"messages"}), ("dpo", {"prompt", "chosen", "rejected"})):
        loaded = datasets.load_dataset(
            "json", data_files=str(tmp_path / f"{name}.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert columns <= set(loaded.column_names)
        assert loaded[0]["prompt" if name == "dpo" else "messages"][0] == user("q\u2028")


def test_a_seed_that_parquet_cannot_hold_is_named(store: Path, tmp_path: Path) -> None:
    write(store, episode(2**70, 0, ("q", "a", 1.0)))
    with pytest.raises(ExportError, match=r"rows 1 to 1: .*64-bit"):
        export_parquet(store, tmp_path / "out")


def test_a_missing_extra_is_named(store: Path, tmp_path: Path) -> None:
    write(store)
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"from polyturn.envs import export_parquet\nexport_parquet({str(store)!r}, {str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert '[data]"' in done.stderr.splitlines()[-1]


# Every format


EXPORTS = {"parquet": export_parquet, "sft": export_sft, "dpo": export_dpo}


@pytest.mark.parametrize("name", EXPORTS)
def test_nothing_that_exists_is_replaced_least_of_all_the_store(store: Path, name: str) -> None:
    content = write(store, episode(1, 0, ("q", "a", 1.0))).read_bytes()
    with pytest.raises(FileExistsError, match="will not replace"):
        EXPORTS[name](store, store)
    assert store.read_bytes() == content


@pytest.mark.parametrize("name", EXPORTS)
def test_a_failed_export_leaves_no_file(store: Path, tmp_path: Path, name: str) -> None:
    write(store, episode(1, 0, ("q", "a", 1.0)), episode(1, 1, ("q", "b", 0.0)))
    store.write_bytes(store.read_bytes().replace(b'"b"', b'"c"'))
    with pytest.raises(CorruptRecord, match="record 2"):
        EXPORTS[name](store, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]
    with pytest.warns(RuntimeWarning, match="skipped"):
        EXPORTS[name](store, tmp_path / "out", corrupt="skip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs.jsonl"]


@pytest.mark.parametrize("name", EXPORTS)
def test_an_empty_store_gives_an_empty_file(store: Path, tmp_path: Path, name: str) -> None:
    assert EXPORTS[name](write(store), tmp_path / "out") == 0
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("name", EXPORTS)
def test_a_full_disk_is_named_with_a_remedy(
    store: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step fails here, as a write would."""

    def full(self: Path, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    write(store, episode(1, 0, ("q", "a", 1.0)))
    with pytest.raises(OSError, match="no space left on device; nothing of it is left; free some space") as caught:
        EXPORTS[name](store, tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


def test_limits_that_mean_nothing_are_refused(store: Path, tmp_path: Path) -> None:
    write(store, episode(1, 0, ("q", "a", 1.0)))
    for wrong in (-1, 0, 1.5):
        with pytest.raises(ValueError, match="pairs_per_group"):
            export_dpo(store, tmp_path / "out", pairs_per_group=wrong)  # type: ignore[arg-type]
    for bound in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="min_return"):
            export_sft(store, tmp_path / "out", min_return=bound)
