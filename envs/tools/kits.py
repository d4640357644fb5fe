"""Where an episode's tools come from: each episode opens every toolkit anew, so that none sees another's state."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from polyturn.envs.tools.limited import Caller
from polyturn.envs.tools.tool import Tool, function_tool, method_tools

Replay = Literal["checked", "trusted", "refused"]
"""Whether a snapshot may be restored by running the calls again.

"checked": yes, and the results are compared with those of the first time; "trusted": yes, without comparing, as the
results of a program may hold a time or an address and its state be right all the same; "refused": calls are not
repeatable, so there are no snapshots.
"""


@dataclass(frozen=True)
class Kept:
    """The state of one toolkit's tools, kept for a snapshot.

    Attributes:
        open: Opens tools that go on from the state; may be called again and again, one call at a time.
        close: Lets go of it.
    """

    open: Callable[[], Opened]
    close: Callable[[], None]


@dataclass
class Opened:
    """The tools of one episode.

    Attributes:
        tools: What can be called.
        note: What the agent is told at the start, or "".
        instance: The object whose methods they are, which a scorer may look at; None for other tools.
        close: Ends what was opened.
        keep: Keeps the present state for a snapshot without disturbing it, or gives None where that cannot be done, as
            where a program has started threads; by default it cannot.
    """

    tools: Sequence[Tool]
    note: str = ""
    instance: Any = None
    close: Callable[[], None] = field(default=lambda: None, repr=False)
    keep: Callable[[], Kept | None] = field(default=lambda: None, repr=False)


@runtime_checkable
class Toolkit(Protocol):
    """Opens the tools of an episode.

    Attributes:
        replay: See `Replay`.
    """

    @property
    def replay(self) -> Replay: ...

    def open(self, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
        """Opens them.

        Args:
            task: The episode's task.
            seed: Same number, same behaviour.
            caller: The thread for code that limits its own time, which the calls will use too.
            limit_s: Seconds for what is called here.

        Raises:
            ToolUnavailable: A server or the like cannot be reached; the episode is invalid.
        """


@dataclass(frozen=True)
class Functions:
    """Tools without state between calls."""

    tools: tuple[Tool, ...]
    replay: Replay = "checked"

    def open(self, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
        """The same tools for every episode."""
        same = Opened(self.tools)
        return replace(same, keep=lambda: Kept(lambda: same, lambda: None))


@dataclass(frozen=True)
class PerEpisode:
    """Tools that are the public methods of an object made for each episode; TRL's `environment_factory` is one.

    The object's `reset(**task)`, where it has one, starts the episode: it may return text, which is added to the first
    observation. Its `get_reward()`, where it has one, is what the scorer "environment" pays.

    Attributes:
        make: Makes the object: a class or a function without arguments.
        replay: "checked" for objects that do the same when called the same way, "refused" for others.
    """

    make: Callable[[], Any]
    replay: Replay = "checked"

    def open(self, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
        """Makes the object and resets it with the task's fields."""

        def started() -> tuple[Any, Any]:
            instance = self.make()
            reset = getattr(instance, "reset", None)
            return instance, reset(**task) if callable(reset) else None

        instance, note = caller.run(started, limit_s)
        return Opened(method_tools(instance), _note(note), instance)


def _note(said: Any) -> str:
    """What `reset` returned as text; TRL also takes a list of content parts."""
    if said is None:
        return ""
    if not isinstance(said, list):
        return str(said)
    kinds = {part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in said}
    if kinds - {"text"}:
        raise TypeError(f'reset: expected text or parts of type "text", got {", ".join(sorted(map(str, kinds)))}')
    return "\n".join(str(part.get("text", "")) for part in said)


def toolkits(tools: Any, built_in: Mapping[str, Callable[[], Any]]) -> list[Toolkit]:
    """The toolkits that a user's list of tools stands for.

    Args:
        tools: Of each: the name of a built-in tool, "module:attribute", a typed function, a `Tool`, a class or an
            object with public methods, or a `Toolkit`. An object is copied for each episode.
        built_in: What makes the built-in ones, by name.

    Raises:
        ValueError: An unknown name, or two tools of one name.
        TypeError: Something that is no tool.
    """
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        tools = [tools]
    kits = [_toolkit(resolve(each, "tools", built_in) if isinstance(each, str) else each) for each in tools]
    names = [tool.name for kit in kits if isinstance(kit, Functions) for tool in kit.tools]
    unique(names)
    return kits


def unique(names: Sequence[str]) -> None:
    """Refuses two tools of one name.

    Raises:
        ValueError: A name that occurs twice.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tools: expected different names, got {', '.join(twice)} more than once; rename one of them")


def resolve(name: str, what: str, built_in: Mapping[str, Callable[[], Any]]) -> Any:
    """What a name stands for: something built in, or "module:attribute".

    Raises:
        ValueError: Neither.
    """
    from polyturn.envs.suggest import did_you_mean

    if name in built_in:
        return built_in[name]()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"{what}: expected one of {', '.join(built_in)} or module:attribute, got {name!r}."
            f"{did_you_mean(name, built_in)}"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: {name!r} cannot be loaded: {error}. Install its package, or correct it") from error
    return found


def _toolkit(value: Any) -> Toolkit:
    if isinstance(value, Tool):
        return Functions((value,))
    if inspect.isclass(value):
        return PerEpisode(value)
    if isinstance(value, Toolkit):
        return value
    if inspect.isroutine(value) or (callable(value) and hasattr(value, "__wrapped__")):
        return Functions((function_tool(value),))
    method_tools(value)  # says at once what is wrong with it
    return PerEpisode(_Copied(value))


@dataclass(frozen=True)
class _Copied:
    """Makes a copy of an object as it was given, so that an episode cannot change what the next one starts from."""

    original: Any

    def __call__(self) -> Any:
        return copy.deepcopy(self.original)
