"""Problems: files, data sets, the generator, and what is said about broken input."""

from __future__ import annotations

import builtins
import json
import re
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from polyturn.envs.tool_math.problems import LEVELS, Problem, ProblemFileError, Problems, load_problems, word_problems
from polyturn.envs.tool_math.word_problems import OPERATIONS, run_steps, signature_split

GSM8K = {"question": "Ann has 48 clips, half as many in May?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"}
MATH = {
    "problem": "What is $x$?",
    "level": "Level 3",
    "type": "Algebra",
    "solution": r"We get $x=\boxed{1}$, no: $\boxed{\frac{1}{2}}$.",
}

PINNED = (
    "Leo has 57 books. Leo finds 38 more. Then Kai takes 3 books away. How many books does Leo have now?",
    "92",
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


# Files


def test_gsm8k_rows_give_the_number_after_the_hashes(tmp_path: Path) -> None:
    problems = load_problems(write(tmp_path / "gsm.jsonl", GSM8K, GSM8K | {"answer": "It is easy.\n#### 1,080"}))
    assert [p.answer for p in problems] == ["24", "1,080"]
    assert [p.id for p in problems] == ["gsm/0", "gsm/1"]
    assert problems[0].question == GSM8K["question"]
    assert problems[0].solution == GSM8K["answer"]
    assert problems[0].source == "gsm.jsonl"


def test_math_rows_give_the_last_box(tmp_path: Path) -> None:
    (problem,) = load_problems(str(write(tmp_path / "math.jsonl", MATH)))
    assert (problem.answer, problem.level, problem.topic) == (r"\frac{1}{2}", "Level 3", "Algebra")


def test_rows_with_a_plain_answer_need_no_mapping(tmp_path: Path) -> None:
    rows = [{"problem": "1+1?", "answer": 2, "solution": "clear"}, {"problem": "2+2?", "answer": "4"}]
    problems = load_problems(write(tmp_path / "plain.jsonl", *rows))
    assert [(p.answer, p.solution) for p in problems] == [("2", "clear"), ("4", "")]


def test_a_mapping_names_the_keys_of_any_other_file(tmp_path: Path) -> None:
    row = {"uid": "q7", "prompt": "1+1?", "target": "2", "grade": "easy"}
    mapping = {"id": "uid", "question": "prompt", "answer": "target", "level": "grade"}
    (problem,) = load_problems(write(tmp_path / "own.jsonl", row), mapping=mapping)
    assert (problem.id, problem.question, problem.answer, problem.level) == ("q7", "1+1?", "2", "easy")


def test_a_mapped_worked_solution_gives_its_final_answer(tmp_path: Path) -> None:
    rows = [{"q": "?", "a": GSM8K["answer"]}, {"q": "?", "a": MATH["solution"]}]
    problems = load_problems(write(tmp_path / "own.jsonl", *rows), mapping={"question": "q", "answer": "a"})
    assert [p.answer for p in problems] == ["24", r"\frac{1}{2}"]
    assert problems[0].solution == GSM8K["answer"]


def test_blank_lines_a_byte_order_mark_and_unicode_are_read(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GSM8K | {"question": "Ünï 日本"}).encode() + b"\n\n  \r\n")
    assert [p.question for p in load_problems(path)] == ["Ünï 日本"]


def test_limit_reads_no_further_than_it_must(tmp_path: Path) -> None:
    path = write(tmp_path / "gsm.jsonl", GSM8K, GSM8K, "{broken")
    assert len(load_problems(path, limit=2)) == 2
    assert len(load_problems(path, limit=0)) == 0
    with pytest.raises(ValueError, match="limit >= 0"):
        load_problems(path, limit=-1)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ('{"question": "1+1?", "answer": "#### 2"', "expected one JSON object a line"),
        ("[1, 2]", "got a list"),
        ('{"question": "1+1?"}', "expected the key 'answer', got 'question'"),
        ('{"question": "1+1?", "answer": "no final answer"}', "ends in '#### answer'"),
        ('{"question": "", "answer": "#### 2"}', "expected text under 'question', got ''"),
        ('{"question": null, "answer": "#### 2"}', "expected text under 'question', got None"),
        ("[" * 100_000, "expected one JSON object a line"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, bad: str, expected: str) -> None:
    """Two good lines and a blank one stand before it, so the broken one is line 4."""
    path = write(tmp_path / "gsm.jsonl", GSM8K, GSM8K, "", bad)
    with pytest.raises(ProblemFileError, match=re.escape(f"{path}, line 4: ")) as caught:
        load_problems(path)
    assert expected in str(caught.value)


def test_bytes_that_are_no_utf8_are_named_with_their_column(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GSM8K).encode() + b'\n{"question": "caf\xe9"}\n')
    with pytest.raises(ProblemFileError, match=r"line 2: expected UTF-8, got byte 0xe9 at column 18"):
        load_problems(path)


def test_unknown_keys_are_listed_with_an_example_of_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", {"prompt": "1+1?", "target": "2"})
    with pytest.raises(ProblemFileError, match=r"line 1: .*'prompt', 'target'.*mapping=\{\"question\""):
        load_problems(path)
    with pytest.raises(
        ProblemFileError, match=r"expected the key 'promt', got 'prompt', 'target'; did you mean 'prompt'"
    ):
        load_problems(path, mapping={"question": "promt", "answer": "target"})
    with pytest.raises(ProblemFileError, match=r"unknown field 'questoin'.*did you mean 'question'"):
        load_problems(path, mapping={"questoin": "prompt", "answer": "target"})
    with pytest.raises(ProblemFileError, match="mapping lacks answer"):
        load_problems(path, mapping={"question": "prompt"})


def test_a_math_row_without_a_box_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match=r"line 2: expected a solution with its answer in \\boxed"):
        load_problems(write(tmp_path / "math.jsonl", MATH, MATH | {"solution": "so x = 2"}))


def test_ids_that_repeat_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", *[{"n": 1, "question": "?", "answer": "2"}] * 2)
    with pytest.raises(ProblemFileError, match=r"line 2: expected ids that differ, got '1' again \(first in line 1\)"):
        load_problems(path, mapping={"id": "n", "question": "question", "answer": "answer"})


def test_a_file_without_problems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match="at least one problem"):
        load_problems(write(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./nowhere", "gsm8k", "generate:1"])
def test_a_source_that_is_not_there_lists_the_forms(source: str) -> None:
    with pytest.raises(ProblemFileError, match=re.escape(source) + ".*generated:2:512"):
        load_problems(source)


def test_problems_given_as_such_pass_through() -> None:
    mine = [Problem("a", "1+1?", "2"), Problem("b", "2+2?", "4")]
    assert list(load_problems(mine)) == mine
    assert list(load_problems(mine, limit=1)) == mine[:1]


# Gold answers that cannot be read


def test_gold_answers_that_cannot_be_read_are_counted_in_one_warning(tmp_path: Path) -> None:
    golds = ["5", r"\sum_{k=1}^n k", "18 ways", "5 4.6", "(1, 2", "(3, 4"]
    path = write(tmp_path / "own.jsonl", *[{"question": "?", "answer": gold} for gold in golds])
    with pytest.warns(UserWarning, match="gold answers") as caught:
        problems = load_problems(path)
    assert len(problems) == 6
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith("own: 4 of 6 gold answers cannot be read as mathematics; only the same text")
    assert f"own/1: {golds[1]!r} (a sum whose bounds are no whole numbers)" in message
    assert "own/3: '5 4.6' (two numbers side by side)" in message
    assert "own/4: '(1, 2' (expected ) or ], got 'the end'); ..." in message
    assert "own/5" not in message
    assert warning.filename == __file__


def test_a_limit_counts_only_what_is_loaded_and_given_problems_are_read_too(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": gold} for gold in ("5", "1 2", "1 2")]
    with pytest.warns(UserWarning, match="own: 1 of 2 gold answers"):
        load_problems(write(tmp_path / "own.jsonl", *rows), limit=2)
    with pytest.warns(UserWarning, match="problems: 1 of 1 gold answers .* a: '1 2' "):
        load_problems([Problem("a", "?", "1 2")])


def test_readable_gold_answers_and_generated_ones_warn_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_problems(write(tmp_path / "math.jsonl", MATH))
        load_problems("generated:1:3")


def test_a_long_gold_answer_is_shortened_in_the_warning() -> None:
    with pytest.warns(UserWarning, match="1 of 1") as caught:
        load_problems([Problem("a", "?", "1 2 " * 500)])
    assert len(str(caught[0].message)) < 400


# Data sets


def test_a_missing_datasets_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for source in (tmp_path, "openai/gsm8k"):
        with pytest.raises(ImportError, match=r"pip install .*\[data\]"):
            load_problems(source)


def test_data_sets_saved_to_disk_are_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    train = datasets.Dataset.from_list([GSM8K, GSM8K])
    test = datasets.Dataset.from_list([GSM8K | {"answer": "#### 7"}])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "both"))
    train.save_to_disk(str(tmp_path / "one"))
    assert [p.id for p in load_problems(tmp_path / "both")] == ["both/train/0", "both/train/1"]
    assert [p.answer for p in load_problems(tmp_path / "both", split="test")] == ["7"]
    assert len(load_problems(tmp_path / "one", limit=1)) == 1
    with pytest.raises(ProblemFileError, match="no split 'dev'; it has train, test"):
        load_problems(tmp_path / "both", split="dev")


def test_folders_of_parquet_and_jsonl_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("parquet", "jsonl"):
        (tmp_path / name).mkdir()
    datasets.Dataset.from_list([MATH]).to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    write(tmp_path / "jsonl" / "train.jsonl", MATH, MATH)
    assert [p.answer for p in load_problems(tmp_path / "parquet")] == [r"\frac{1}{2}"]
    assert len(load_problems(tmp_path / "jsonl")) == 2


def test_a_hub_id_chooses_its_main_configuration_and_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    asked: list[tuple[str, str | None]] = []

    def load(name: str, configuration: str | None) -> Mapping[str, Any]:
        asked.append((name, configuration))
        return {"train": [GSM8K]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["main", "socratic"])
    assert [p.id for p in load_problems("openai/gsm8k")] == ["openai/gsm8k/train/0"]
    assert [p.id for p in load_problems("openai/gsm8k:socratic")] == ["openai/gsm8k/socratic/train/0"]
    assert asked == [("openai/gsm8k", "main"), ("openai/gsm8k", "socratic")]
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["algebra", "geometry"])
    with pytest.raises(ProblemFileError, match=r"algebra, geometry; name one, for example some/math:algebra"):
        load_problems("some/math")

    def fail(name: str) -> list[str]:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_config_names", fail)
    with pytest.raises(ProblemFileError, match="some/math: cannot be loaded as a data set: no network"):
        load_problems("some/math")


# The collection


def test_problems_slice_and_shuffle_as_views() -> None:
    problems = Problems([Problem(str(i), f"{i}?", str(i)) for i in range(10)], name="ten")
    assert [p.id for p in problems[2:8][1::2]] == ["3", "5", "7"]
    assert problems[-1].id == "9"
    assert problems[3] is problems[3:][0]
    assert problems[:4].name == "ten"
    shuffled = problems.shuffled(3)
    assert sorted(p.id for p in shuffled) == [p.id for p in problems]
    assert shuffled == problems.shuffled(3)
    assert shuffled != problems
    assert shuffled != problems.shuffled(4)
    assert {p.id for p in shuffled[:5]} | {p.id for p in shuffled[5:]} == set("0123456789")
    with pytest.raises(IndexError):
        problems[10]


# The generator


@pytest.mark.parametrize("level", LEVELS)
def test_train_and_test_share_no_signature_at_any_seed_or_level(level: int) -> None:
    """Drawn from different seeds on purpose: the split is a function of the signature, not of the draw."""
    train = {
        json.dumps(p.info["steps"])
        for seed in (0, 1)
        for p in word_problems(level, split="train", seed=seed, size=1500)
    }
    for other in LEVELS:
        test = {json.dumps(p.info["steps"]) for p in word_problems(other, split="test", seed=0, size=400)}
        assert not train & test
        assert all(signature_split(json.loads(steps)) == "test" for steps in test)


@pytest.mark.parametrize("level", LEVELS)
def test_generated_answers_follow_from_the_steps_and_are_positive_integers(level: int) -> None:
    """The answer recomputed with Python's own division must be the same whole number: every division is exact."""
    for problem in word_problems(level, split="train", seed=5, size=300):
        steps = problem.info["steps"]
        assert problem.answer == str(run_steps(steps))
        x: float = 0
        for name, *numbers in steps:
            x = eval(OPERATIONS[name].format(*numbers).replace("//", "/"), {"x": x})
            assert x == int(x) >= 1
        assert x == int(problem.answer)


@pytest.mark.parametrize("level", LEVELS)
def test_every_number_of_the_steps_stands_in_the_question(level: int) -> None:
    for problem in word_problems(level, split="test", seed=2, size=200):
        told = sorted(int(number) for number in re.findall(r"\d+", problem.question))
        assert told == sorted(number for _, *numbers in problem.info["steps"] for number in numbers)


def test_problem_i_depends_on_seed_split_level_and_i_only() -> None:
    assert (
        list(word_problems(2, split="train", seed=1, size=5))
        == list(word_problems(2, split="train", seed=1, size=50))[:5]
    )
    base = word_problems(2, split="train", seed=1, size=20)
    assert base != word_problems(2, split="train", seed=2, size=20)
    assert [p.question for p in base] != [p.question for p in word_problems(2, split="test", seed=1, size=20)]
    assert (
        len({p.id for level in LEVELS for s in ("train", "test") for p in word_problems(level, split=s, size=9)}) == 72
    )


def test_generated_problems_stay_the_same_between_versions() -> None:
    problem = word_problems(2, split="train", size=3)[2]
    assert problem.id == "generated/2/0/train/2"
    assert problem.question == PINNED[0]
    assert problem.answer == PINNED[1]


def test_the_easiest_level_has_a_small_vocabulary_short_questions_and_small_numbers() -> None:
    problems = word_problems(1, split="train", size=2000)
    words = {word for p in problems for word in re.findall(r"[A-Za-z]+", p.question)}
    assert len(words) <= 40
    assert max(len(p.question.split()) for p in problems) <= 30
    assert max(int(number) for p in problems for number in re.findall(r"\d+", p.question)) < 100
    assert all(1 <= int(p.answer) < 100 for p in problems)
    assert max(len(p.question.split()) for p in word_problems(2, split="train", size=2000)) <= 45


def test_levels_grow_in_steps_and_operations() -> None:
    def steps(level: int) -> float:
        problems = word_problems(level, split="train", size=300)
        return sum(len(p.info["steps"]) for p in problems) / len(problems)

    means = [steps(level) for level in LEVELS]
    assert all(harder > easier + 0.25 for easier, harder in pairwise(means))
    assert {name for p in word_problems(4, split="train", size=600) for name, *_ in p.info["steps"]} == set(OPERATIONS)
    assert {name for p in word_problems(1, split="train", size=300) for name, *_ in p.info["steps"]} == {
        "set",
        "add",
        "sub",
    }


def test_generated_sources_name_level_size_and_seed() -> None:
    assert load_problems("generated:2:7") == word_problems(2, split="train", size=7)
    assert load_problems("generated:3:7:5", split="test", limit=4) == word_problems(3, split="test", seed=5, size=4)
    assert len(load_problems("generated:1")) == 1024


@pytest.mark.parametrize(
    "source", ["generated", "generated:9", "generated:x", "generated:1:-5", "generated:1:2:3:4", "generated:"]
)
def test_wrong_generated_sources_say_what_was_expected(source: str) -> None:
    with pytest.raises(ProblemFileError, match="expected"):
        load_problems(source)


def test_wrong_arguments_of_the_generator_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="level among 1, 2, 3, 4, got 9"):
        word_problems(9, split="train", size=1)
    with pytest.raises(ValueError, match="seed >= 0"):
        word_problems(1, split="train", seed=-1, size=1)
    with pytest.raises(ProblemFileError, match="split train or test, got 'dev'"):
        load_problems("generated:1", split="dev")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_file_breaks_the_reader_in_any_other_way(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    path.write_bytes(content)
    with pytest.raises(ProblemFileError, match=r"any\.jsonl"):
        load_problems(path)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("NaN", "expected text under 'answer', got nan"),
        ("-Infinity", "expected text under 'answer', got -inf"),
        ("1" * 5000, "a number of 5000 digits"),
        ("[" * 100_000, "nested too deep"),
    ],
    ids=["nan", "infinity", "digits", "depth"],
)
def test_numbers_that_are_no_answers_are_named_at_loading(value: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "q", "answer": 5}\n{"question": "q", "answer": ' + value + "}\n")
    with pytest.raises(ProblemFileError, match=why):
        load_problems(str(path))
