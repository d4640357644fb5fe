"""Recorded data: every layout into groups, tokens whose prompts are not the agent's, and training from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.agents import Policy, tiny_policy
from polyturn.algorithms import IPO, MDPO, MKTO, RLOO, SFT, collate
from polyturn.algorithms.protocols.offline import LeftOutWarning, offline_examples, with_tokens
from polyturn.cli import main
from polyturn.envs.recorded import DataError, Recorded, read_recorded


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(["a town by the sea"], seed=3, hidden=16, layers=1, heads=2, context=256)


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(tmp_path: Path, *rows: Any) -> list[Recorded]:
    return read_recorded(written(tmp_path, *rows))


PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "conversational": {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    "implicit prompt": {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
    "ultrafeedback": {
        "prompt": "q", "prompt_id": "x", "messages": [user("q"), assistant("good")], "score_chosen": 8.0,
        "score_rejected": 5.5, "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")],
    },
    "sharegpt": {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
        "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", PAIRS)
def test_every_layout_of_pairs_is_the_same_group(layout: str, tmp_path: Path) -> None:
    (found,) = loaded(tmp_path, PAIRS[layout])
    assert [[(t.observation, t.action) for t in m.turns] for m in found.group] == [[("q", "good")], [("q", "bad")]]
    assert found.preference is not None
    assert found.preference.pairs().tolist() == [[0, 1]]
    if layout == "ultrafeedback":
        assert found.preference.scores is not None
        assert found.preference.scores.tolist() == [8.0, 5.5]


def test_pairs_of_one_prompt_are_one_group_and_only_the_given_ones_are_compared(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "r", "chosen": "c", "rejected": "d"},
        {"prompt": "q", "chosen": "e", "rejected": "f"},
    ]
    first, second = loaded(tmp_path, *rows)
    assert len(first.group) == 4
    assert len(second.group) == 2
    assert first.preference is not None
    assert first.preference.pairs().tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("other"), assistant("b")]},
            "different prompts cannot be compared",
        ),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]}, "different prompts"),
        (
            {"chosen": [SYSTEM, user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            "different prompts",
        ),
        ({"prompt": "q", "chosen": [assistant("a"), assistant("b")], "rejected": "x"}, "user and assistant in turn"),
        ({"messages": [user("q")]}, "user and assistant in turn"),
        ({"messages": [user("q"), {"role": "tool", "content": "1"}]}, "messages of system, user and assistant"),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "label: expected true or false"),
        ({"prompt": "q", "completion": "a", "score": float("nan")}, "score: expected a finite number"),
        ({"question": "q"}, "rows with chosen and rejected; prompt, completion"),
        ({"prompt": [user("q"), assistant("a")], "completion": [user("r")]}, "expected"),
    ],
)
def test_what_cannot_be_read_or_compared_is_refused_with_its_row(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        loaded(tmp_path, PAIRS["texts"], row)
    assert "row 2" in str(refused.value)


def test_parquet_and_saved_data_sets_read_as_lines_do(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [PAIRS["conversational"], {**PAIRS["conversational"], "prompt": [user("second")]}]
    plain = loaded(tmp_path, *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "folder"))
    for path in (tmp_path / "data.parquet", tmp_path / "folder"):
        assert [each.group for each in read_recorded(path)] == [each.group for each in plain]


def test_a_prompts_own_answers_and_its_system_message_are_read_and_not_learned(policy: Policy, tmp_path: Path) -> None:
    """The whole conversation is the template's rendering; only the last answer, and its end, are the agent's."""
    prompt = [SYSTEM, user("a"), assistant("b"), user("c")]
    (found,) = loaded(tmp_path, {"prompt": prompt, "chosen": [assistant("by")], "rejected": [assistant("at")]})
    chosen = with_tokens(policy, found.group)[0]
    ids, owner = chosen.tokens
    whole = policy.tokenizer.apply_chat_template([*prompt, assistant("by")], tokenize=False)
    assert policy.tokenizer.decode(ids) == whole
    assert policy.tokenizer.decode(ids[owner >= 0]) == "by<|end|>"


def test_ratings_of_several_completions_compare_all_of_them(tmp_path: Path) -> None:
    row = {
        "instruction": "q",
        "completions": [{"response": r, "overall_score": s} for r, s in zip("abc", (3, 1, 3), strict=True)],
    }
    (found,) = loaded(tmp_path, row)
    assert found.preference is not None
    assert sorted(map(tuple, found.preference.pairs().tolist())) == [(0, 1), (2, 1)]


def test_labels_are_unpaired_rows_for_mkto_and_pairs_within_a_prompt_for_others(policy: Policy, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "r", "completion": "b", "label": False},
        {"prompt": "q", "completion": [assistant("c")], "label": False},
    ]
    data = loaded(tmp_path, *rows)
    batch = collate(offline_examples(MKTO(), policy, data))
    assert batch.desirable.tolist() == [1.0, 0.0, 0.0]
    with pytest.warns(LeftOutWarning, match="left out 1 of 2 groups"):
        (pair,) = offline_examples(MDPO(), policy, data)
    assert pair.pairs.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="own samples"):
        offline_examples(RLOO(), policy, data)


def test_conversations_are_for_imitation_only(policy: Policy, tmp_path: Path) -> None:
    data = loaded(tmp_path, {"messages": [user("q"), assistant("a"), user("r"), assistant("b")]})
    (example,) = offline_examples(SFT(), policy, data)
    assert len(example.trajectories[0].turns) == 2
    with pytest.raises(ValueError, match="got conversations without any; sft imitates those"):
        offline_examples(IPO(), policy, data)


@pytest.mark.parametrize("method", ["mdpo", "ipo", "dro_v", "mkto", "sft"])
def test_the_command_learns_from_a_file(method: str, policy: Policy, tmp_path: Path) -> None:
    """The policy's answers move towards what was chosen and away from what was not."""
    import torch

    policy.save_pretrained(tmp_path / "policy")
    rows = [{"prompt": f"q{n}", "chosen": "good", "rejected": "bad", "score_chosen": 1, "score_rejected": 0}
            for n in range(4)]  # fmt: skip
    path = written(tmp_path, *rows)
    shape = ["--lr", "0.01", "--epochs", "5", "--batch-size", "4", "--quiet", "--model", str(tmp_path / "policy")]
    assert main(["train", method, "--data", str(path), "--out", str(tmp_path / "run"), *shape]) == 0
    after = Policy.from_pretrained(tmp_path / "run" / "policy")
    batch = collate(offline_examples(MDPO(), policy, read_recorded(path)))

    def margin(each: Policy) -> float:
        with torch.no_grad():
            totals = torch.where(batch.turn_ids >= 0, each.scorer(batch.rows())["logps"], 0.0).sum(1)
        return float((totals[batch.pairs[:, 0]] - totals[batch.pairs[:, 1]]).mean())

    assert margin(after) > margin(policy) + 0.1


def test_a_store_is_offline_data_too(policy: Policy, tmp_path: Path) -> None:
    from polyturn.envs import Store

    (found,) = loaded(tmp_path, PAIRS["texts"])
    policy.save_pretrained(tmp_path / "policy")
    with Store(tmp_path / "s.jsonl") as store:
        for member, reward in zip(with_tokens(policy, found.group), (1.0, 0.0), strict=True):
            from dataclasses import replace

            store.append(replace(member, turns=(replace(member.turns[0], reward=reward),)))
    arguments = ["--model", str(tmp_path / "policy"), "--data", str(tmp_path / "s.jsonl"), "--quiet"]
    assert main(["train", "mdpo", *arguments, "--out", str(tmp_path / "run")]) == 0
    assert np.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["loss"])


def test_a_data_set_in_the_hub_s_layout_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as the Hub has it; an id names configuration and split, and says what there is instead."""
    import datasets

    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(rows[1:]).to_parquet(folder / "test-00000-of-00001.parquet")
    plain = read_recorded(written(tmp_path, *rows))
    assert [each.group for each in read_recorded(tmp_path / "set")] == [each.group for each in plain]
    asked: list[Any] = []
    real = datasets.load_dataset

    def load(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        return real(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [each.group[0].turns for each in read_recorded("me/pairs")] == [each.group[0].turns for each in plain]
    (only,) = read_recorded("me/pairs:small@test")
    assert only.group[0].turns == plain[1].group[0].turns
    assert asked == [("me/pairs", None), ("me/pairs", "small")]
    with pytest.raises(DataError, match="one of the splits test, train; name it: me/pairs@SPLIT"):
        read_recorded("me/pairs@dev")
    with pytest.raises(FileNotFoundError):
        read_recorded("me/pairs.jsonl")
