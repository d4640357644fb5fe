"""Which environments there are, and making one by its id.

Built-in environments are registered with Gymnasium under `polyturn/...` when `polyturn` is imported; their code is
imported when one is made. An installed package adds its own through an entry point in its pyproject.toml, which is
loaded when the functions below are first asked for an id:

    [project.entry-points."polyturn.envs"]
    acme = "acme.environments"          # importing it calls gymnasium.register("acme/Haggle-v0", ...)

The entry point's name is the namespace of its ids; a warning says where it is not. It names a module, or a function
without arguments (`module:function`) that registers them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry

from polyturn.envs.suggest import did_you_mean
from polyturn.envs.text_env import TextEnv
from polyturn.envs.wrappers import TurnLimit

ENTRY_POINT_GROUP = "polyturn.envs"
_BUILT_IN = {
    "polyturn/Bandit-v0": "polyturn.envs.games.bandits:Bandit",
    "polyturn/CarDealer-v0": "polyturn.envs.car_dealer.env:CarDealer",
    "polyturn/EducationDialogue-v0": "polyturn.envs.education.env:EducationDialogue",
    "polyturn/Gem-v0": "polyturn.envs.adapters.gem:Gem",
    "polyturn/GymnasiumText-v0": "polyturn.envs.adapters.numbered:GymnasiumText",
    "polyturn/Guess-v0": "polyturn.envs.games.guess:Guess",
    "polyturn/MatrixGame-v0": "polyturn.envs.games.matrix_games:MatrixGame",
    "polyturn/OpenEnv-v0": "polyturn.envs.adapters.openenv:OpenEnv",
    "polyturn/PairedBandit-v0": "polyturn.envs.games.paired_bandit:PairedBandit",
    "polyturn/PettingZoo-v0": "polyturn.envs.adapters.numbered:PettingZoo",
    "polyturn/ReasoningGym-v0": "polyturn.envs.adapters.reasoning_gym:ReasoningGym",
    "polyturn/TabularGame-v0": "polyturn.envs.games.tabular_env:TabularGameEnv",
    "polyturn/TextArena-v0": "polyturn.envs.adapters.textarena:TextArena",
    "polyturn/TokenBandit-v0": "polyturn.envs.games.token_tasks:TokenBandit",
    "polyturn/TokenLength-v0": "polyturn.envs.games.token_tasks:TokenLength",
    "polyturn/ToolEnv-v0": "polyturn.envs.tools.env:ToolEnv",
    "polyturn/ToolMath-v0": "polyturn.envs.tool_math.env:ToolMath",
}
_namespaces = {"polyturn"}
_tried: set[tuple[str, str]] = set()


class UnknownEnv(ValueError):
    """No environment is registered under this id."""


class EnvOptionError(ValueError):
    """An environment was asked for with options it does not have, or without ones it needs."""


def register_built_in() -> None:
    """Registers the built-in environments with Gymnasium; may be called again."""
    for env_id, entry_point in _BUILT_IN.items():
        if env_id not in registry:
            # Wrappers that check every step and enforce its order cost more than a scripted environment itself, and
            # lose their state at `restore`; `check_text_env` demands both once and for all.
            gymnasium.register(env_id, entry_point, order_enforce=False, disable_env_checker=True)


def register_plugins() -> None:
    """Loads the plug-ins of installed packages, which register their environments; may be called again."""
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        if (plugin.name, plugin.value) in _tried:
            continue
        _tried.add((plugin.name, plugin.value))
        before = set(registry)
        try:
            loaded = plugin.load()
            if callable(loaded):
                loaded()
        except Exception as error:  # a broken package of others must not take every environment away
            warnings.warn(
                f"environments of the plug-in {plugin.name} = {plugin.value!r} cannot be used: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _namespaces.add(plugin.name)
            made = sorted(set(registry) - before)
            if not any(spec.namespace == plugin.name for spec in registry.values()):
                others = f"only {', '.join(made[:5])}" if made else "none"
                warnings.warn(
                    f"the plug-in {plugin.name} = {plugin.value!r}: expected it to register environments "
                    f"{plugin.name}/..., got {others}; they can be made but are not listed; give the entry point "
                    "the name of their namespace",
                    RuntimeWarning,
                    stacklevel=2,
                )


def registered() -> list[str]:
    """Ids of the built-in environments and of the plug-ins', sorted."""
    register_built_in()
    register_plugins()
    return sorted(env_id for env_id, spec in registry.items() if spec.namespace in _namespaces)


def env_spec(env_id: str) -> EnvSpec:
    """Gymnasium's specification of an environment, `module:id` included.

    Raises:
        UnknownEnv: Nothing is registered under the id; the message suggests what was meant.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            raise UnknownEnv(
                f"expected module:id with a module that can be imported, got {env_id!r}: {error}. Install the package, "
                "or run from the folder that holds it."
            ) from error
    if name not in registry:
        register_built_in()
        register_plugins()
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        # A namespace alone is near to its shortest name only by accident.
        near = "" if name.endswith("/") else did_you_mean(name, [*registered(), *registry])
        hint = near or f" Known: {', '.join(registered())}."
        raise UnknownEnv(
            f"expected the id of a registered environment, got {env_id!r}.{hint} "
            "Your own need gymnasium.register, or the form module:id."
        ) from error


def make(env_id: str, **options: Any) -> TextEnv:
    """Makes an environment for multi-turn use.

    Like `gymnasium.make`, without the wrappers that check every step, and with a limit on turns (the registration's
    `max_episode_steps`) that a snapshot includes.

    Args:
        env_id: The id.
        **options: Keyword arguments of the environment.

    Raises:
        UnknownEnv: Nothing is registered under the id.
        EnvOptionError: An option is unknown, missing or of another type.
    """
    spec = check_options(env_id, options)
    bare = dataclasses.replace(spec, max_episode_steps=None, order_enforce=False, disable_env_checker=True)
    try:
        env: gymnasium.Env[str, str] = gymnasium.make(bare, **options)
    except TypeError as error:
        if not options:
            raise
        shown = ", ".join(f"{name}={value!r:.60}" for name, value in options.items())
        raise EnvOptionError(f"{env_id} cannot be made with {shown}: {error}; check the options' types") from error
    if spec.max_episode_steps is not None:
        env = TurnLimit(env, spec.max_episode_steps)
    # An environment that breaks the protocol is for `check_text_env` to report, with a remedy.
    return cast(TextEnv, env)


def creator(spec: EnvSpec) -> Any:
    """The class or function that makes the environment, imported if need be."""
    return load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point


def check_options(env_id: str, options: Mapping[str, Any]) -> EnvSpec:
    """Gymnasium's specification of an environment that takes these options.

    Raises:
        UnknownEnv: Nothing is registered under the id.
        EnvOptionError: An option is unknown or missing.
    """
    spec = env_spec(env_id)
    signature = inspect.signature(creator(spec))
    try:
        signature.bind(**{**spec.kwargs, **options})
    except TypeError as error:
        names = [
            name for name, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD
        ]
        unknown = [name for name in options if name not in names]
        hint = did_you_mean(unknown[0], names) if unknown else ""
        raise EnvOptionError(f"{spec.id}: {error}.{hint} Its options: {', '.join(names) or 'none'}.") from error
    return spec
