"""What a tool is, and making one from a typed Python function or from the public methods of an object.

Schemas and checks of arguments come from pydantic, which transformers already installs, and descriptions from
docstrings through docstring_parser: environments import no transformers, whose `get_json_schema` does half of this.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_NOT_TOOLS = ("reset", "get_reward")
"""Public methods that the environment calls itself; TRL's `environment_factory` reserves the same names."""


class ToolError(Exception):
    """A call that cannot be answered: the agent reads the message and the episode goes on."""


class ToolUnavailable(RuntimeError):
    """Something outside the agent failed, such as a server: the episode is invalid, its agent is not to blame."""


@dataclass(frozen=True)
class Output:
    """What a call gave: the text for the agent, and how the call ended.

    Attributes:
        text: What the agent reads.
        status: "ok", "error", "timeout" or, for programs, a status of the sandbox.
    """

    text: str
    status: str = "ok"


@dataclass(frozen=True)
class Tool:
    """Something an agent can call by name.

    Attributes:
        name: A name that matches `[A-Za-z_][A-Za-z0-9_-]*`.
        description: What it does, for the agent.
        parameters: JSON schema of the arguments, an object.
        call: Takes the arguments by name and gives a result; `ToolError` says what is wrong with them.
        text: The argument that the whole text of a fenced block stands for, or "".
        bounded: Whether the call limits its own time, as a sandbox does; other calls run in a thread with a limit.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[Mapping[str, Any]], Any] = field(repr=False)
    text: str = ""
    bounded: bool = False


def function_tool(function: Callable[..., Any], *, name: str = "") -> Tool:
    """A tool from a function with type hints and a docstring in any common style.

    Args:
        function: May be a coroutine function; takes its arguments by name.
        name: What to call it instead of the function's name.

    Raises:
        TypeError: It has positional-only or variable arguments, which a call by name cannot fill, or type hints that
            cannot be resolved or checked.
    """
    called = name or getattr(function, "__name__", type(function).__name__)
    checked = _checker(function, called)
    summary, described = _documented(function)
    schema = _plain(checked.model_json_schema(by_alias=True))
    schema.setdefault("properties", {})
    for argument, entry in schema["properties"].items():
        if described.get(argument):
            entry["description"] = described[argument]
    properties = schema["properties"]
    only_text = len(properties) == 1 and next(iter(properties.values())).get("type") == "string"
    fields = {info.alias or place: place for place, info in checked.model_fields.items()}

    def call(arguments: Mapping[str, Any]) -> Any:
        from pydantic import ValidationError

        try:
            values = checked.model_validate(dict(arguments))
        except ValidationError as error:
            raise ToolError(_complaint(called, error, list(properties))) from None
        given = {
            argument: getattr(values, place) for argument, place in fields.items() if place in values.model_fields_set
        }
        result = function(**given)
        if inspect.isawaitable(result):
            return asyncio.run(_awaited(result))
        return result

    return Tool(called, summary, schema, call, next(iter(properties)) if only_text else "")


def method_tools(instance: Any) -> list[Tool]:
    """The public methods of an object's class as tools, without `reset` and `get_reward`, sorted by name.

    These are TRL's rules for an `environment_factory`.

    Raises:
        TypeError: As `function_tool`, or there is no such method.
    """
    names = [
        name
        for name, _ in inspect.getmembers(type(instance), inspect.isfunction)
        if not name.startswith("_") and name not in _NOT_TOOLS
    ]
    if not names:
        raise TypeError(
            f"expected a function, a tool, or an object with public methods, got {type(instance).__name__}; "
            f"methods that are tools have names without an underscore, other than {' and '.join(_NOT_TOOLS)}"
        )
    return [function_tool(getattr(instance, name), name=name) for name in names]


def as_text(value: Any) -> str:
    """A result as text for the agent: text as it is, JSON values as JSON, other values as `str` gives them.

    Raises:
        ToolError: The text of the value would be its address in memory, which is another one in each run.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        if object.__repr__(value) == str(value):
            raise ToolError(f"the tool returned a {type(value).__name__}, which has no text") from None
        return str(value)


async def _awaited(result: Any) -> Any:
    return await result


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of each argument."""
    from docstring_parser import DocstringStyle, ParseError, parse

    text = inspect.getdoc(function) or ""
    try:
        doc = parse(text, DocstringStyle.AUTO)
    except ParseError:
        return " ".join(text.split()), {}
    whole = f"{doc.short_description or ''} {doc.long_description or ''}"
    return " ".join(whole.split()), {each.arg_name: " ".join((each.description or "").split()) for each in doc.params}


def _checker(function: Callable[..., Any], called: str) -> Any:
    """A pydantic model of a function's arguments; fields have neutral names, so that no argument's name can clash."""
    from pydantic import ConfigDict, Field, create_model
    from pydantic.errors import PydanticUserError

    signature = inspect.signature(function)
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError) as error:
        raise TypeError(
            f"tool {called}: expected type hints that can be resolved where it is defined, got {error}"
        ) from error
    fields: dict[str, Any] = {}
    for place, parameter in enumerate(signature.parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"tool {called}: expected arguments that can be given by name, got {parameter}; name each of them"
            )
        default: Any = ... if parameter.default is parameter.empty else parameter.default
        fields[f"argument_{place}"] = (hints.get(parameter.name, Any), Field(default, alias=parameter.name))
    try:
        return create_model(called, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)
    except PydanticUserError as error:
        raise TypeError(f"tool {called}: expected type hints of JSON values, got {error.message}") from error


def _plain(schema: Any) -> Any:
    """A schema without the titles that repeat names; a property that is called "title" stays."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: {name: _plain(entry) for name, entry in value.items()} if key in ("properties", "$defs") else _plain(value)
        for key, value in schema.items()
        if key != "title"
    }
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in kept.items()
    }


def _complaint(called: str, error: Any, known: list[str]) -> str:
    problems = []
    for each in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(str(part) for part in each["loc"]) or "arguments"
        problems.append(f"{place}: {each['msg']}"[:300])
    return f"{called}: wrong arguments: {'; '.join(problems)}. Expected: {', '.join(known) or 'none'}"
