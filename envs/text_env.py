"""What a multi-turn text environment is: a Gymnasium environment whose observations and actions are text.

`polyturn.envs.check_text_env` holds an environment to all of this. Beyond `gymnasium.Env`:

- `reset(seed=s)` fixes everything that follows: the same seed and the same actions give byte-identical observations,
  rewards, flags and infos, in any instance, independent of what was played before or is played at the same time.
  Randomness comes from `self.np_random` only; an environment that is the same for every seed says so:
  `metadata["deterministic"] = True`. Where there are several tasks, the info of `reset` names the one drawn:
  `"task_id": str`.
- `step` answers *any* text, however long, broken or hostile. Text that means nothing costs the agent its turn or ends
  the episode; it is never an exception, and never the best return.
- An exception in `step` or `reset` says that something outside the agent failed (a sandbox died, a server is down):
  the episode is then recorded as invalid. Such a failure is never returned as a reward of zero.
- `terminated` means that the task itself ended, a limit that the agent knows included; `truncated` that a limit
  outside the task cut it off. Never both. A step after the end, or before the first reset, raises.
- `reward_bounds` are the smallest and the largest total reward that an episode can have.
- An environment in which an episode succeeds or fails says which: `success_return` is the total reward from which one
  is a success, or the last info holds `"success": bool`. Without either, reports give the mean return and no success.
- Infos hold JSON values only (no numpy, no tuples, no nan), freshly made at every call.
- Any method may wait. `collect` plays many episodes at once: it awaits a `reset` or `step` that is a coroutine, and
  calls all others, the constructor and `close` included, in a thread that this instance has for itself, so that
  what may only be used in the thread that opened it works. An environment that never waits says `blocking = False` and
  is called in the event loop, which saves about 0.1 ms a call.
- `snapshot()` gives the state between two turns as a JSON value, and `restore(snapshot)`, in any instance made with the
  same options, reset or not, goes on from there exactly as the original would have. Taking one changes nothing.
- `forget(snapshot)`, where there is one, lets go of what the process keeps for a snapshot besides its value, such as a
  session of the sandbox; the snapshot can still be restored.
- An environment whose noise can be drawn apart from its start says `takes_noise = True`. Then `reset(options={"noise":
  n})` gives the identical start with other noise for another n, n = 0 being the noise of the seed only, and
  `renew_noise(n)` draws what is left of a running episode's noise anew. `collect` gives each member of a group its own.
"""

from __future__ import annotations

from typing import Any, Protocol, SupportsFloat, runtime_checkable


@runtime_checkable
class TextEnv(Protocol):
    """A `gymnasium.Env[str, str]` that can be snapshotted; the module's page says what the methods promise.

    Attributes:
        reward_bounds: `(low, high)`, the range of the total reward of an episode.
    """

    @property
    def reward_bounds(self) -> tuple[float, float]: ...

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]: ...

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]: ...

    def snapshot(self) -> Any: ...

    def restore(self, snapshot: Any) -> None: ...

    def close(self) -> None: ...
