"""Where problems come from: files, `datasets` folders, the Hugging Face Hub, or the seeded generator."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from polyturn.envs.grading import unreadable
from polyturn.envs.tool_math.problem_files import read_dataset, read_jsonl
from polyturn.envs.tool_math.problem_set import Problem, ProblemFileError, Problems
from polyturn.envs.tool_math.word_problems import LEVELS, word_problems

__all__ = ["LEVELS", "Problem", "ProblemFileError", "Problems", "load_problems", "word_problems"]

_FORMS = (
    'a JSONL file ("problems.jsonl"), a local `datasets` folder, a Hub id ("openai/gsm8k" or, naming a configuration, '
    '"openai/gsm8k:main"), or the generator ("generated:LEVEL[:SIZE[:SEED]]", for example "generated:2:512")'
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_EXAMPLES = 3
_LONGEST_EXAMPLE = 80
_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".txt", ".csv", ".parquet")


def load_problems(
    source: str | Path | Sequence[Problem],
    *,
    split: str = "train",
    limit: int | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Problems:
    """Problems from a file, a data set on the Hub, or a generator.

    GSM8K rows (question, answer ending in `#### x`) and MATH rows (problem, solution with a last box, level, type)
    are recognised by their keys; so are rows with question or problem and a plain answer. Anything else needs a
    mapping.

    Gold answers that the grader cannot read (only the very same text is graded right against them) are counted in one
    `UserWarning`, which shows some of them and the reasons.

    Args:
        source: A JSONL path; a local `datasets` folder (written by `save_to_disk`, or holding Parquet or JSONL
            files); a Hub id such as "openai/gsm8k", followed by ":configuration" if the set has several;
            "generated:LEVEL[:SIZE[:SEED]]" for the seeded generator; or problems, which are passed through.
        split: Which split of a data set or of the generator; a single JSONL file has none and ignores it.
        limit: Largest number of problems to load, from the start.
        mapping: Names of the row's keys, for example `{"question": "prompt", "answer": "target"}`; may also name
            "id", "solution", "level" and "topic".

    Raises:
        ProblemFileError: The source is not there, is no known form, or a row of it is broken; the message names the
            file and the line.
        ValueError: `limit` is negative.
        ImportError: A data set was asked for and the package `datasets` is not installed.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"load_problems: expected limit >= 0 or None, got {limit}")
    if isinstance(source, str) and source.startswith("generated"):
        return _generated(source, split, limit)
    problems = _loaded(source, split, limit, mapping)
    _warn_of_unreadable(problems)
    return problems


def _loaded(
    source: str | Path | Sequence[Problem], split: str, limit: int | None, mapping: Mapping[str, str] | None
) -> Problems:
    if not isinstance(source, str | Path):
        problems = source if isinstance(source, Problems) else Problems(source, name="problems")
        return problems if limit is None else problems[:limit]
    path = Path(source).expanduser()
    if path.is_dir():
        return read_dataset(str(path), split=split, limit=limit, mapping=mapping, local=True)
    if path.exists():
        return read_jsonl(path, limit=limit, mapping=mapping)
    text = str(source)
    looks_like_file = path.suffix in _FILE_SUFFIXES or text.startswith((".", "/", "~"))
    if looks_like_file or not _HUB_ID.fullmatch(text):
        raise ProblemFileError(f"{text}: no such file or folder; expected {_FORMS}")
    return read_dataset(text, split=split, limit=limit, mapping=mapping, local=False)


def _warn_of_unreadable(problems: Problems) -> None:
    """One warning with the number of gold answers that cannot be read, and the first of them."""
    found = [(problem, reason) for problem in problems if (reason := unreadable(problem.answer))]
    if not found:
        return
    examples = "; ".join(
        f"{problem.id}: {_shortened(problem.answer)!r} ({_shortened(reason)})" for problem, reason in found[:_EXAMPLES]
    )
    warnings.warn(
        f"{problems.name or 'problems'}: {len(found)} of {len(problems)} gold answers cannot be read as mathematics; "
        f"only the same text is graded right: {examples}{'; ...' if len(found) > _EXAMPLES else ''}. Rewrite them "
        "(a number, an expression, a list, a few words), or drop these problems",
        stacklevel=3,  # where load_problems was called
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_EXAMPLE else text[: _LONGEST_EXAMPLE - 3] + "..."


def _generated(source: str, split: str, limit: int | None) -> Problems:
    parts = source.split(":")[1:]
    if not 1 <= len(parts) <= 3 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ProblemFileError(
            f'{source!r}: expected "generated:LEVEL[:SIZE[:SEED]]" with whole numbers, for example "generated:2:512"; '
            f"levels are {', '.join(map(str, LEVELS))}"
        )
    level, size, seed = (*map(int, parts), *(1024, 0)[len(parts) - 1 :])
    if level not in LEVELS:
        raise ProblemFileError(f"{source!r}: expected a level among {', '.join(map(str, LEVELS))}, got {level}")
    if split not in ("train", "test"):
        raise ProblemFileError(f"{source!r}: expected split train or test, got {split!r}")
    side: Literal["train", "test"] = "train" if split == "train" else "test"
    return word_problems(level, split=side, seed=seed, size=size if limit is None else min(size, limit))
