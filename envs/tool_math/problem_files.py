"""Reading problems from JSONL files and from `datasets`, with errors that name the row."""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from polyturn.envs.extras import how_to_install
from polyturn.envs.grading.boxed import extract_answer
from polyturn.envs.tool_math.problem_set import Problem, ProblemFileError, Problems

_FIELDS = ("id", "question", "answer", "solution", "level", "topic")
_MOST_DIGITS = 1000
_EXAMPLE = 'mapping={"question": "...", "answer": "..."}'
Row = Mapping[str, Any]
Reader = Callable[[Row], dict[str, str]]


class _RowError(ValueError):
    """What is wrong with a row; the caller adds where it stands."""


def read_jsonl(path: Path, *, limit: int | None, mapping: Mapping[str, str] | None) -> Problems:
    """Reads one JSON object a line; blank lines are passed over.

    Raises:
        ProblemFileError: The file cannot be read, holds no problem, or one of its lines is broken.
    """

    def rows() -> Iterable[tuple[str, Row]]:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"line {number}", _parse_line(f"{path}, line {number}", line, first=number == 1)
        except OSError as error:
            raise ProblemFileError(f"{path}: cannot be read: {error.strerror or error}") from error

    return _read(rows(), str(path), path.stem, source=path.name, limit=limit, mapping=mapping)


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; at most {_MOST_DIGITS} are read")
    return int(digits)


def _parse_line(place: str, line: bytes, *, first: bool) -> Row:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        row = json.loads(text, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise ProblemFileError(
            f"{place}: expected UTF-8, got byte {line[error.start]:#04x} at column {error.start + 1}; "
            "convert the file (iconv -t utf-8)"
        ) from error
    except (ValueError, RecursionError) as error:
        shown = line[:60].decode("utf-8", "replace").rstrip()
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        why = "nested too deep" if isinstance(error, RecursionError) else why
        raise ProblemFileError(
            f"{place}: expected one JSON object a line, got {shown!r} ({why}); repair or delete the line"
        ) from error
    if not isinstance(row, dict):
        raise ProblemFileError(
            f"{place}: expected one JSON object a line, got a {type(row).__name__}; "
            'write each problem on its own line as {"question": ..., "answer": ...}'
        )
    return row


def read_dataset(
    source: str, *, split: str, limit: int | None, mapping: Mapping[str, str] | None, local: bool
) -> Problems:
    """Reads one split of a local `datasets` folder or of a data set on the Hub.

    Raises:
        ImportError: The package `datasets` is not installed.
        ProblemFileError: The data set or the split is not there, or a row is broken.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source}: reading a data set needs the package `datasets`; install it with: {how_to_install('data')}"
        ) from error
    # The table: from disk, or by its name and configuration.
    name, _, configuration = (source, "", "") if local else source.partition(":")
    try:
        if local and any((Path(name) / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            table = datasets.load_from_disk(name)
        elif configuration or local:
            table = datasets.load_dataset(name, configuration or None)
        else:
            choices = datasets.get_dataset_config_names(name)
            preferred = [choice for choice in ("main", "default") if choice in choices] or choices
            if len(preferred) > 1 and len(choices) > 1 and preferred is choices:
                raise ProblemFileError(
                    f"{name}: has the configurations {', '.join(choices)}; name one, for example {name}:{choices[0]}"
                )
            table = datasets.load_dataset(name, preferred[0])
    except ProblemFileError:
        raise
    except Exception as error:  # the package and the network under it raise errors of many unrelated kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ProblemFileError(
            f"{source}: cannot be loaded as a data set: {first}; check the name, or pass a JSONL file"
        ) from error
    # The split, and what the ids of its problems begin with.
    if isinstance(table, Mapping):
        if split not in table:
            raise ProblemFileError(f"{source}: has no split {split!r}; it has {', '.join(map(str, table))}")
        table = table[split]
        prefix = f"{name}/{split}" if not configuration else f"{name}/{configuration}/{split}"
    else:
        prefix = name
    if local:
        prefix = Path(prefix).name if prefix == name else f"{Path(name).name}/{split}"
    rows = ((f"row {index}", row) for index, row in enumerate(table))
    return _read(rows, source, prefix, source=Path(name).name if local else name, limit=limit, mapping=mapping)


def _read(
    rows: Iterable[tuple[str, Row]],
    place: str,
    prefix: str,
    *,
    source: str,
    limit: int | None,
    mapping: Mapping[str, str] | None,
) -> Problems:
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    reader: Reader | None = None
    if mapping is not None:
        reader = _mapped(place, mapping)
    for where, row in itertools.islice(rows, limit):
        try:
            reader = reader or _recognise(row)
            fields = {"id": f"{prefix}/{len(problems)}"} | reader(row)
            if fields["id"] in seen:
                raise _RowError(f"expected ids that differ, got {fields['id']!r} again (first in {seen[fields['id']]})")
        except _RowError as error:
            raise ProblemFileError(f"{place}, {where}: {error}") from None
        seen[fields["id"]] = where
        problems.append(Problem(source=source, info={}, **fields))
    if not problems and limit != 0:
        raise ProblemFileError(f"{place}: expected at least one problem, got none")
    return Problems(problems, name=prefix)


def _recognise(row: Row) -> Reader:
    """Which data set's shape a row has; decided once, on the first row, so that a broken later row is an error."""
    question = next((key for key in ("question", "problem") if key in row), None)
    if question == "question" and isinstance(row.get("answer"), str) and "####" in row["answer"]:
        return _gsm8k
    if question is not None and "answer" in row:
        return lambda row: {
            "question": _text(row, question),
            "answer": _text(row, "answer"),
            "solution": _optional(row, "solution"),
            "level": _optional(row, "level"),
            "topic": _optional(row, "type") or _optional(row, "subject"),
        }
    if question is not None and "solution" in row:
        return lambda row: _math(row, question)
    raise _RowError(
        "expected the keys question and answer (GSM8K) or problem and solution (MATH), "
        f"got {_keys(row)}; say which keys to read with {_EXAMPLE}"
    )


def _gsm8k(row: Row) -> dict[str, str]:
    worked = _text(row, "answer")
    return {"question": _text(row, "question"), "answer": _after_hashes(worked), "solution": worked}


def _math(row: Row, question: str) -> dict[str, str]:
    solution = _text(row, "solution")
    return {
        "question": _text(row, question),
        "answer": _boxed(solution),
        "solution": solution,
        "level": _optional(row, "level"),
        "topic": _optional(row, "type") or _optional(row, "subject"),
    }


def _mapped(place: str, mapping: Mapping[str, str]) -> Reader:
    for name in mapping:
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ProblemFileError(
                f"{place}: mapping names the unknown field {name!r}; known: {', '.join(_FIELDS)}{hint}"
            )
    if missing := {"question", "answer"} - set(mapping):
        raise ProblemFileError(f"{place}: mapping lacks {', '.join(sorted(missing))}; for example {_EXAMPLE}")

    def read(row: Row) -> dict[str, str]:
        fields = {name: _text(row, key) for name, key in mapping.items()}
        worked = fields["answer"]
        # A key that holds a worked solution is as good as one that holds the bare answer.
        if "####" in worked:
            fields = {"solution": worked} | fields | {"answer": _after_hashes(worked)}
        elif "\\boxed" in worked or "\\fbox" in worked:
            fields = {"solution": worked} | fields | {"answer": _boxed(worked)}
        return fields

    return read


def _after_hashes(worked: str) -> str:
    _, hashes, answer = worked.rpartition("####")
    if not hashes or not answer.strip():
        raise _RowError(
            f"expected a solution that ends in '#### answer', got one that ends in {worked[-40:]!r}; "
            "append the final answer after ####"
        )
    return answer.strip()


def _boxed(solution: str) -> str:
    answer = extract_answer(solution)
    if not answer:
        raise _RowError(
            f"expected a solution with its answer in \\boxed{{...}}, got one that ends in {solution[-40:]!r}; "
            "box the final answer, or give it under the key answer"
        )
    return answer


def _text(row: Row, key: str) -> str:
    if key not in row:
        close = difflib.get_close_matches(key, list(row), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise _RowError(f"expected the key {key!r}, got {_keys(row)}{hint}; name the keys with {_EXAMPLE}")
    value = row[key]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _RowError(f"expected text under {key!r}, got {value!r:.60}; fill it in or delete the row")
    return value


def _optional(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value)


def _keys(row: Row) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "no keys"
