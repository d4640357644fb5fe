"""Tasksets of `verifiers` (v1) as agent programs: its harness owns the loop, our server answers its model calls."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from polyturn.agents.serving.programs import AgentProgram, Endpoint, ProgramError, ProgramOutcome, Task
from polyturn.envs.adapters.quiet import logging_kept
from polyturn.envs.adapters.replayed import global_numbers_kept

_REMEDY = "verifiers_program needs the package verifiers: pip install verifiers==0.4.0"
_numbers = itertools.count()


def verifiers_program(
    taskset: str,
    *,
    env: Mapping[str, Any] | None = None,
    tasks: int | None = None,
    timeout: float = 600.0,
) -> AgentProgram:
    """A taskset of verifiers with its harness, as what `collect`, `iterate` and `online` take for an environment.

    A run is one episode with one agent. Every model call goes to the served policy and is kept with its tokens; the
    reward of the run is the sum of the trace's rewards. An episode that verifiers does not call "ok" is invalid, never
    a reward of 0. Seeds belong to the policy's samples alone: what a task or a harness draws at random is its own.

    Args:
        taskset: Id of an installed taskset, the name of its module.
        env: Further settings of the environment, as in the section `env` of verifiers' files; unless it says
            otherwise, the harness runs in a process of this machine, not in a remote box.
        tasks: How many tasks to take; None for all, which an endless taskset refuses.
        timeout: Seconds of a run.

    Raises:
        ImportError: verifiers is not installed.
        ValueError: No such taskset, settings that do not fit, or no end of tasks.
    """
    try:
        with global_numbers_kept(), logging_kept():
            import verifiers.v1  # noqa: F401
            from verifiers.v1.utils.loaders import load_environment, resolve_env_config
    except ImportError as error:
        raise ImportError(_REMEDY) from error
    settings = {**(env or {}), "taskset": {**dict((env or {}).get("taskset", {})), "id": taskset}}
    settings["agent"] = {"runtime": {"type": "subprocess"}, **dict(settings.get("agent", {}))}
    try:
        with global_numbers_kept(), logging_kept():
            made = load_environment(resolve_env_config(settings))
            every = made.taskset if tasks is None else made.taskset.take(tasks)
            if not every.bounded:
                raise ValueError("expected a number of tasks for a taskset without an end; give tasks=")
            listed = list(every)
    except (ModuleNotFoundError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"verifiers_program({taskset!r}): {error}") from error
    rows = [{"id": str(task.data.id or task.data.name or place), "index": place} for place, task in enumerate(listed)]
    return AgentProgram(_Runs(made, listed), rows, _reward, timeout, f"verifiers:{taskset}")


class _Runs:
    """Plays one episode of verifiers a call."""

    def __init__(self, env: Any, tasks: list[Any]) -> None:
        self._env, self._tasks = env, tasks

    async def __call__(self, task: Task, endpoint: Endpoint) -> dict[str, Any]:
        from verifiers.v1 import EvalClientConfig, ModelContext

        # verifiers reads a key from a variable only. Each run has one, and verifiers itself keeps those with API_KEY in
        # their name from the programs that it starts.
        variable = f"POLYTURN_VERIFIERS_API_KEY_{next(_numbers)}"
        os.environ[variable] = endpoint.api_key
        try:
            context = ModelContext(
                model="policy", client=EvalClientConfig(base_url=endpoint.base_url, api_key_var=variable)
            )
            async with self._env.serving():
                episode = await self._env.run_episode(self._tasks[task["index"]], context)
        finally:
            del os.environ[variable]
        problems = [*episode.errors, *(each for trace in episode.traces for each in trace.errors)]
        if not episode.ok:
            said = "; ".join(f"{each.type}: {each.message}" for each in problems[:3])
            raise ProgramError(f"verifiers did not finish the episode: {said or 'it gives no reason'}")
        if len(episode.traces) != 1:
            raise ProgramError(f"expected an episode of one agent, got {len(episode.traces)} traces")
        (trace,) = episode.traces
        rewards = {name: None if each is None else each.value for name, each in trace.rewards.items()}
        return {"reward": float(trace.reward), "rewards": rewards}


def _reward(outcome: ProgramOutcome) -> float:
    return float(outcome.result["reward"])
