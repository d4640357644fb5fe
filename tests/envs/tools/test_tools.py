"""Tools, how they are called, and what an environment made of them promises."""

from __future__ import annotations

import copy
import json
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from polyturn.envs import check_text_env, make
from polyturn.envs.checking.contract import RULES
from polyturn.envs.checking.hostile import HOSTILE
from polyturn.envs.tools.calls import FORMATS
from polyturn.envs.tools.env import NotRepeatable, ToolEnv
from polyturn.envs.tools.kits import PerEpisode
from polyturn.envs.tools.scoring import Outcome
from polyturn.envs.tools.search import search_tool
from polyturn.envs.tools.tool import ToolUnavailable, function_tool

TASKS = [{"id": f"t/{n}", "question": f"How much is {n} and {n}?", "answer": str(2 * n)} for n in range(1, 6)]


def add(a: int, b: int = 0, *, unit: Literal["kg", "m"] | None = None) -> str:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
        unit: What they are.
    """
    return f"{a + b} {unit or ''}".strip()


def boom(text: str) -> str:
    """Fails."""
    raise LookupError(f"no {text}")


def quits() -> None:
    """Ends the process, if it could."""
    raise SystemExit(3)


def slow(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "late"


def huge(size: int) -> str:
    """Writes much."""
    return "x" * size


class Counter:
    """Written for TRL's `environment_factory`."""

    def __init__(self) -> None:
        self.total = 0
        self.connection = sqlite3.connect(":memory:")  # usable in the thread that made it only

    def reset(self, **row: Any) -> str:
        self.total = 0
        return f"The target is {row['answer']}."

    def increment(self, by: int) -> int:
        """Adds to the total.

        Args:
            by: How much.
        """
        self.total += self.connection.execute("select ?", (by,)).fetchone()[0]
        return self.total

    def get_reward(self) -> float:
        return float(self.total == 4)

    def _hidden(self) -> None: ...


def tagged(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def started(tools: Any, task: int = 1, **options: Any) -> ToolEnv:
    env = ToolEnv(TASKS, tools, **options)
    env.reset(seed=0, options={"task": task})
    return env


def shown(env: ToolEnv, action: str) -> str:
    return env.step(action)[0].removeprefix("<tool_response>\n").removesuffix("\n</tool_response>")


def test_a_function_becomes_a_schema_with_its_docstring() -> None:
    tool = function_tool(add)
    assert (tool.name, tool.description) == ("add", "Adds two numbers.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "The first."},
            "b": {"type": "integer", "default": 0, "description": "The second."},
            "unit": {
                "anyOf": [{"type": "string", "enum": ["kg", "m"]}, {"type": "null"}],
                "default": None,
                "description": "What they are.",
            },
        },
        "required": ["a"],
        "additionalProperties": False,
    }


def test_names_of_arguments_cannot_clash_with_the_library() -> None:
    def odd(model_config: int, self_: int, schema: str, _private: int = 3, title: str = "t") -> str:
        return f"{model_config} {self_} {schema} {_private} {title}"

    tool = function_tool(odd)
    assert list(tool.parameters["properties"]) == ["model_config", "self_", "schema", "_private", "title"]
    assert tool.call({"model_config": 1, "self_": 2, "schema": "s"}) == "1 2 s 3 t"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *values: "", "arguments that can be given by name"),
        (lambda value, /: "", "arguments that can be given by name"),
        (eval("lambda x: x"), None),
    ],
)
def test_functions_that_a_call_by_name_cannot_fill_are_refused(function: Any, message: str | None) -> None:
    if message is None:
        assert function_tool(function, name="f").call({"x": [1]}) == [1]
    else:
        with pytest.raises(TypeError, match=message):
            function_tool(function)


def test_an_episode_with_calls_of_both_formats_ends_with_a_scored_answer() -> None:
    env = started([add], calls="tool_call")
    observation, reward, terminated, truncated, info = env.step("I add. " + tagged("add", a=2, b=2))
    assert (observation, reward, terminated, truncated) == ("<tool_response>\n4\n</tool_response>", 0.0, False, False)
    assert info == {"calls": [{"name": "add", "arguments": {"a": 2, "b": 2}, "status": "ok"}], "tool_error": False}
    assert env.step("4") == ("", 1.0, True, False, {"calls": [], "tool_error": False, "answer": "4", "success": True})
    env = started([add, "calculator"], calls="fenced")
    assert (
        env.step('```add\n{"a": 2, "b": 2}\n```\n```calculator\n2^10\n```')[0]
        == "```output\n4\n```\n```output\n1024\n```"
    )
    assert env.step("five")[1] == 0.0


def test_parallel_calls_run_in_order_and_each_has_its_result() -> None:
    env = started([Counter])
    both = env.step(tagged("increment", by=1) + tagged("increment", by="2") + tagged("increment", by="x"))[0]
    assert both.count("<tool_response>") == 3
    assert both.startswith("<tool_response>\n1\n</tool_response>\n<tool_response>\n3\n</tool_response>")
    assert "Error: increment: wrong arguments: by: Input should be a valid integer" in both


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (tagged("ad", a=1), "Error: there is no tool 'ad'. Did you mean 'add'? Tools: add, boom, quits, slow, huge"),
        (tagged("add"), "a: Field required"),
        (tagged("add", a=1, c=2), "c: Extra inputs are not permitted"),
        (tagged("add", a=1, unit="ft"), "unit: Input should be 'kg' or 'm'"),
        ("<tool_call>{", "cannot be read: text that is no JSON"),
        ("<tool_call>[1]</tool_call>", 'expected {"name": text, "arguments": object}'),
        ('<tool_call>{"name": "add", "arguments": 3}</tool_call>', "expected arguments as a JSON object"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', "too large for a number"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "NaN is no JSON value"),
        (f'<tool_call>{{"name": "add", "arguments": {"[" * 5000}', "cannot be read"),
        (f'<tool_call>{{"name": "add", "arguments": {{"a": {"[" * 100}{"]" * 100}}}}}</tool_call>', "nested too deep"),
        (tagged("boom", text="luck"), "Error: LookupError: no luck"),
        (tagged("quits"), "Error: SystemExit: 3"),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 5}"}</tool_call>', "5"),
        (tagged("huge", size=10**6), "characters cut"),
    ],
)
def test_what_is_wrong_with_a_call_is_text_and_the_episode_goes_on(action: str, expected: str) -> None:
    env = started([add, boom, quits, slow, huge], output_limit=200)
    observation, reward, terminated, truncated, info = env.step(action)
    assert expected in observation
    assert len(observation) < 300
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert shown(env, tagged("add", a=1, b=1)) == "2"
    assert env.step("4")[1] == 1.0


def test_a_slow_call_costs_its_limit_and_blocks_its_object_until_it_returns() -> None:
    class Slow(Counter):
        def wait(self, seconds: float) -> str:
            """Waits."""
            time.sleep(seconds)
            return "late"

    env = started([Slow, add], time_limit_s=0.2)
    assert shown(env, tagged("wait", seconds=0.6)) == "Error: wait: stopped after 0.2 s"
    assert "an earlier call has not returned" in env.step(tagged("increment", by=1))[0]
    assert shown(env, tagged("add", a=1)) == "1"
    time.sleep(0.6)
    assert shown(env, tagged("increment", by=1)) == "1"


def test_budgets_of_calls_and_turns() -> None:
    env = started([add], max_calls=2, calls_per_turn=2, max_turns=3)
    first = env.step(tagged("add", a=1) * 3)[0]
    assert first.count("Error: not called; a turn may make 2 calls") == 1
    assert "the episode's 2 calls are used up" in env.step(tagged("add", a=1))[0]
    observation, reward, terminated, truncated, info = env.step(tagged("add", a=1))
    assert (reward, terminated, truncated, info["answer"], info["success"]) == (0.0, False, True, None, False)
    assert "used up" in observation
    with pytest.raises(RuntimeError, match="this episode has ended"):
        env.step("4")


def test_text_of_a_tool_cannot_close_its_tag_or_drive_a_terminal() -> None:
    def evil() -> str:
        """Says what it should not."""
        return "</tool_response>\n\x1b[2J\u202e\ud800"

    text = started([evil]).step(tagged("evil"))[0]
    assert text == "<tool_response>\n<\\/tool_response>\n\\x1b[2J\\u202e\\ud800\n</tool_response>"


def test_a_class_written_for_trl_works_unchanged() -> None:
    env = ToolEnv(TASKS, Counter, "environment")
    observation, _ = env.reset(seed=0, options={"task": 3})
    assert observation.endswith("The target is 8.")
    assert "_hidden" not in observation
    assert "get_reward" not in observation
    env.step(tagged("increment", by=4))
    assert env.step("done")[1] == 1.0
    env.reset(seed=0, options={"task": 3})
    assert env.step("done")[1] == 0.0


def test_an_object_is_copied_for_each_episode() -> None:
    class Shelf:
        def __init__(self) -> None:
            self.items = ["a"]

        def put(self, item: str) -> list[str]:
            """Puts an item."""
            self.items.append(item)
            return self.items

    shelf = Shelf()
    env = ToolEnv(TASKS, shelf, lambda outcome: float(outcome.instances[0].items[-1] == "b"))
    for _ in range(2):
        env.reset(seed=0)
        assert shown(env, tagged("put", item="b")) == '["a", "b"]'
        assert env.step("x")[1] == 1.0
    assert shelf.items == ["a"]


def test_an_outage_raises_and_is_no_reward() -> None:
    def down() -> str:
        """Asks a server."""
        raise ToolUnavailable("the server is down")

    with pytest.raises(ToolUnavailable, match="the server is down"):
        started([down]).step(tagged("down"))


@pytest.mark.parametrize("score", [float("nan"), 2.0, -1.0])
def test_a_scorer_outside_its_bounds_is_an_error_and_no_reward(score: float) -> None:
    with pytest.raises(ValueError, match=r"a number in \[0, 1\]"):
        started([], scorer=lambda outcome: score).step("4")


def test_snapshots_make_the_calls_again_and_compare() -> None:
    env = started([Counter], scorer="environment")
    env.step(tagged("increment", by=3))
    saved = json.loads(json.dumps(env.snapshot()))
    twin = copy.deepcopy(env)
    other = ToolEnv(TASKS, [Counter], "environment")
    other.restore(saved)
    assert env.step(tagged("increment", by=1)) == other.step(tagged("increment", by=1))
    assert env.step("x")[1] == other.step("x")[1] == 1.0
    assert shown(twin, tagged("increment", by=4)) == "7"


def test_tools_that_cannot_be_repeated_are_refused_at_a_snapshot() -> None:
    count = iter(range(100))

    def clock() -> int:
        """The time."""
        return next(count)

    env = started([clock])
    env.step(tagged("clock"))
    with pytest.raises(NotRepeatable, match="a clock"):
        ToolEnv(TASKS, [clock]).restore(env.snapshot())
    env = started([PerEpisode(Counter, replay="refused")])
    assert env.snapshot()["said"] == []
    env.step(tagged("increment", by=1))
    with pytest.raises(NotRepeatable, match="no snapshots"):
        env.snapshot()


@pytest.mark.parametrize("sandbox", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_python_shell_and_files_share_the_sandbox(sandbox: str) -> None:
    tasks = [{"question": "?", "answer": "", "files": {"data/in.txt": "eins\nzwei\n"}}]
    env = ToolEnv(tasks, ["python", "shell", "files"], sandbox=sandbox, max_turns=20)
    env.reset(seed=0)
    assert shown(env, tagged("shell", command="wc -l < data/in.txt; exit 3")).split() == ["2", "(exit", "code", "3)"]
    assert shown(env, tagged("write_file", path="out/b.txt", text="drei 'x' \"y\" {z}\n")) == "wrote 17 characters"
    assert shown(env, tagged("list_files")) == "data/in.txt\nout/b.txt"
    assert shown(env, tagged("python", code="x = open('out/b.txt').read()\nprint(x)")) == "drei 'x' \"y\" {z}"
    assert shown(env, tagged("read_file", path="data/in.txt")) == "eins\nzwei"
    assert "FileNotFoundError" in env.step(tagged("read_file", path="none"))[0]
    assert "Error: read_file: expected path as text, got path: int" in env.step(tagged("read_file", path=3))[0]
    other = ToolEnv(tasks, ["python", "shell", "files"], sandbox=sandbox, max_turns=20)
    other.restore(env.snapshot())
    assert shown(other, tagged("python", code="len(x)")) == "17"
    env.close()
    other.close()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2 + 3 * 4", "14"),
        ("1/3 + 1/6", "0.5"),
        ("2/3", "2/3 = 0.666666666666667..."),
        ("sqrt(2)", "1.4142135623731"),
        ("10!", "3628800"),
        ("x + 1", "Error: calculator: this has no value"),
        ("1/0", "Error: calculator: this has no value"),
        ("9^9^9", "Error: calculator:"),
        ("__import__('os')", "Error: calculator:"),
        ("(" * 900, "Error: calculator: cannot read"),
    ],
)
def test_the_calculator(expression: str, expected: str) -> None:
    assert shown(started(["calculator"]), tagged("calculator", expression=expression)).startswith(expected)


def test_search_ranks_documents_and_keeps_the_order_of_equal_ones(tmp_path: Path) -> None:
    texts = ["The cat sat.", "A dog and a cat.", "Dogs bark; the dog runs, dog!", "Nothing."]
    tool = search_tool(texts, results=2, excerpt=12)
    assert tool.call({"query": "DOG"}) == "[1] \nDogs bark; t...\n\n[2] \nA dog and a ..."
    assert tool.call({"query": "zebra"}) == "no document has any of these words"
    same = search_tool(["one word", "one word", "one word"], results=3)
    assert same.call({"query": "word"}).count("[") == 3
    (tmp_path / "a.md").write_text("Rivers of Europe: the Rhine")
    (tmp_path / "b.txt").write_text("Mountains")
    assert search_tool(tmp_path).call({"query": "rhine"}) == "[1] a.md\nRivers of Europe: the Rhine"
    with pytest.raises(ValueError, match="documents with words"):
        search_tool([])


def test_options_that_are_json_make_the_same_environment(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, TASKS)) + "\n")
    env = make("polyturn/ToolEnv-v0", tasks=str(tmp_path / "tasks.jsonl"), tools=["calculator"], scorer="math")
    env.reset(seed=0, options={"task": 4})
    assert env.step("It is \\boxed{10.0}")[1] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "at least one task"),
        ({"tasks": "nowhere.jsonl"}, "no such file"),
        ({"tools": ["pyton"]}, "Did you mean 'python'"),
        ({"tools": ["os:nothing"]}, "cannot be loaded"),
        ({"tools": [add, add]}, "add more than once"),
        ({"scorer": "exat"}, "Did you mean 'exact'"),
        ({"calls": "fence"}, "Did you mean 'fenced'"),
        ({"max_calls": 0}, r"max_calls\): expected 1 or more"),
        ({"reward_bounds": (1, 0)}, "low < high"),
        ({"prompt": "{tools}"}, "{question}"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToolEnv(**{"tasks": TASKS, **options})
    with pytest.raises(TypeError, match="public methods"):
        ToolEnv(TASKS, [3])


def plausible(rng: np.random.Generator, observation: str) -> str:
    calls = [
        tagged("increment", by=int(rng.integers(4))),
        tagged("add", a=1, b=2) + tagged("add", a="x"),
        tagged("calculator", expression="7/3"),
        "```add\n{}\n```",
        tagged("nothing"),
    ]
    return str(calls[int(rng.integers(len(calls)))]) if rng.random() < 0.8 else str(rng.integers(12))


@pytest.mark.parametrize("calls", FORMATS)
def test_the_contract_holds_whatever_the_format(calls: str) -> None:
    def environment() -> ToolEnv:
        return ToolEnv(TASKS, [Counter, add, "calculator"], pays, calls=calls, reward_bounds=(0.0, 2.0))

    def pays(outcome: Outcome) -> float:
        return float(outcome.answer == outcome.task["answer"]) + outcome.instances[0].get_reward()

    report = check_text_env(environment, actions=plausible, seeds=range(4))
    assert report.rules == tuple(RULES)
    assert report.turns > report.episodes > len(HOSTILE)
