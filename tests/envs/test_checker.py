"""Every registered environment keeps the contract, and every rule of the contract can be broken and is then named."""

from __future__ import annotations

import inspect
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from polyturn.envs import ContractViolation, UnicodeText, check_text_env, make, registered
from polyturn.envs.checking.contract import RULES
from polyturn.envs.checking.hostile import HOSTILE
from polyturn.envs.games.guess import Guess


def tool_calls(rng: np.random.Generator, observation: str) -> str:
    """Mostly programs that use a variable of the turn before, some with errors, sometimes an answer."""
    programs = [
        "x = 1\nprint(x + 1)",
        "x += 1\nprint(x)",
        "import random\nprint(random.random())",
        "1 / 0",
        "print('\\ud800')",
    ]
    if rng.random() < 0.75:
        return f"```python\n{programs[int(rng.integers(len(programs)))]}\n```"
    return f"So it is \\boxed{{{rng.integers(100)}}}."


# What needs packages that not every installation has; tests/envs/tools/test_adapters.py holds them to the contract.
OF_OTHER_PACKAGES = (
    "polyturn/Gem-v0",
    "polyturn/OpenEnv-v0",
    "polyturn/PettingZoo-v0",
    "polyturn/ReasoningGym-v0",
    "polyturn/TextArena-v0",
)
# Options that keep an environment cheap here, and actions that reach its deep states.
OPTIONS: dict[str, dict[str, Any]] = {
    "polyturn/ToolEnv-v0": {
        "tasks": [{"question": f"What is {n} times 3?", "answer": str(3 * n)} for n in range(8)],
        "tools": ["calculator", "python"],
        "sandbox": "local",
        "calls": "fenced",
    },
    "polyturn/ToolMath-v0": {"sandbox": "local", "problems": "generated:2:64"},
}
ACTIONS: dict[str, Callable[[np.random.Generator, str], str]] = {
    "polyturn/Guess-v0": lambda rng, observation: f"I say {rng.integers(1, 101)}",
    "polyturn/GymnasiumText-v0": lambda rng, observation: str(rng.integers(4)),
    "polyturn/ToolEnv-v0": tool_calls,
    "polyturn/ToolMath-v0": tool_calls,
}


@pytest.mark.parametrize("env_id", [env_id for env_id in registered() if env_id not in OF_OTHER_PACKAGES])
def test_every_registered_environment_keeps_the_contract(env_id: str) -> None:
    report = check_text_env(env_id, actions=ACTIONS.get(env_id), **OPTIONS.get(env_id, {}))
    assert report.name == env_id
    assert report.rules == tuple(RULES)
    assert report.turns > report.episodes > len(HOSTILE)


@pytest.mark.parametrize("env_id", [env_id for env_id in registered() if env_id not in OF_OTHER_PACKAGES])
def test_every_registered_environment_passes_gymnasiums_check_without_a_warning(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the category of Gymnasium's
        warnings.filterwarnings("ignore", ".*No render fps")  # text has no frame rate
        check_env(gymnasium.make(env_id, **OPTIONS.get(env_id, {})).unwrapped)


def test_a_short_registration_is_made_with_a_limit_that_keeps_the_contract() -> None:
    gymnasium.register("contract/Short-v0", Guess, max_episode_steps=2, kwargs={"turns": 9})
    try:
        assert check_text_env("contract/Short-v0", actions=ACTIONS["polyturn/Guess-v0"], high=30).episodes > 0
    finally:
        del gymnasium.registry["contract/Short-v0"]


def test_the_plausible_actions_are_used() -> None:
    seen: list[str] = []

    def actions(rng: np.random.Generator, observation: str) -> str:
        seen.append(observation)
        return "50"

    check_text_env(Guess, actions=actions, turns=2)
    assert any("higher" in text for text in seen)


# Environments that each break one rule. All are Guess but for one thing.

Step = tuple[Any, Any, Any, Any, Any]


class Declared(Guess):
    """Guess with its return type opened up, so that its children may break it."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)

    def step(self, action: str) -> Any:
        return super().step(action)

    def snapshot(self) -> Any:
        return super().snapshot()

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot)


class NoEnv:
    def __init__(self) -> None:
        self.inner = Guess()


class WarpedReset(Declared):
    """Gymnasium's check wants `reset` to seed `np_random`; this one seeds another generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        rng = np.random.default_rng(seed)
        self._secret, self._left = int(rng.integers(1, self.high + 1)), self.turns
        return "Guess.", {}


class NoTextSpace(Guess):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Text(20)


class ObservationOutside(Guess):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = UnicodeText(10)


class NoBounds(Guess):
    reward_bounds = None


class OneBound(Guess):
    reward_bounds = (1.0, 1.0)


class InfiniteBounds(Guess):
    reward_bounds = (0.0, float("inf"))


class TooSmallBounds(Guess):
    reward_bounds = (0.5, 1.0)


class StepsBeforeReset(Declared):
    def step(self, action: str) -> Any:
        return super().step(action) if self._left or self._secret else ("?", 0.0, True, False, {})


class StepsAfterEnd(Declared):
    def step(self, action: str) -> Any:
        return super().step(action) if self._left or not self._secret else ("?", 0.0, True, False, {})


class ResetWithoutInfo(Declared):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class ResetBytes(Declared):
    def reset(self, **kwargs: Any) -> Any:
        return b"bytes", super().reset(**kwargs)[1]


class ResetRaises(Declared):
    def reset(self, **kwargs: Any) -> Any:
        raise RuntimeError("no tasks")


class FourTuple(Declared):
    def step(self, action: str) -> Any:
        return super().step(action)[:4]


class NoText(Declared):
    def step(self, action: str) -> Any:
        return (None, *super().step(action)[1:])


class NanReward(Declared):
    def step(self, action: str) -> Any:
        observation, _, *rest = super().step(action)
        return (observation, float("nan"), *rest)


class BoolReward(Declared):
    def step(self, action: str) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, bool(reward), *rest)


class NumpyFlags(Declared):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, np.bool_(terminated), truncated, info


class ListInfo(Declared):
    def step(self, action: str) -> Any:
        return (*super().step(action)[:4], [])


class NumpyInfo(Declared):
    def step(self, action: str) -> Any:
        return (*super().step(action)[:4], {"left": np.int64(self._left)})


class TupleInfo(Declared):
    def step(self, action: str) -> Any:
        return (*super().step(action)[:4], {"left": (self._left,)})


class NanInfo(Declared):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], {"x": float("nan")}


class NumberAsTask(Declared):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], {"task_id": 7}


class OneInfo(Declared):
    """Hands out the same dict at every call."""

    def reset(self, **kwargs: Any) -> Any:
        self.info: dict[str, Any] = {}
        return super().reset(**kwargs)[0], {}

    def step(self, action: str) -> Any:
        result = super().step(action)[:4]
        self.info["left"] = self._left
        return (*result, self.info)


class PythonNumbers(Declared):
    """`int` refuses long digit strings, and `isdigit` holds for digits it refuses."""

    def step(self, action: str) -> Any:
        if action.isdigit():
            int(action)
        return super().step(action)


class RefusesEmpty(Declared):
    def step(self, action: str) -> Any:
        if not action:
            raise ValueError("empty action")
        return super().step(action)


class Endless(Declared):
    def step(self, action: str) -> Any:
        observation, _, _, _, info = super().step("no number")
        self._left += 1
        return observation, 0.0, False, False, info


class BothEnds(Declared):
    def step(self, action: str) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, terminated, info


class Unseeded(Declared):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(seed=None)


class Clock(Declared):
    """What an observation that tells the time amounts to."""

    ticks = itertools.count()

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        return (f"{observation} t={next(self.ticks)}", *rest)


class Leaking(Declared):
    """Remembers the last episode's guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[str] = []

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        self.fresh = not self.history
        return observation, info

    def step(self, action: str) -> Any:
        result = super().step(action)
        if result[2]:
            self.history.clear()
        else:
            self.history.append(action)
        return (result[0] + ("" if self.fresh else " again"), *result[1:])

    def snapshot(self) -> Any:
        return super().snapshot() | {"history": list(self.history), "fresh": self.fresh}

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot)
        self.history, self.fresh = list(snapshot["history"]), snapshot["fresh"]


class SharedState(Declared):
    """Keeps the secret on the class."""

    shared = 0

    def reset(self, **kwargs: Any) -> Any:
        result = super().reset(**kwargs)
        SharedState.shared = self._secret
        return result

    def step(self, action: str) -> Any:
        self._secret = SharedState.shared
        return super().step(action)

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot)
        SharedState.shared = self._secret


class SeedsGlobally(Declared):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, _ = super().reset(seed=seed)
        random.seed(seed)
        self._secret = random.randint(1, self.high)
        return observation, {}


class DrawsNumpyGlobally(Declared):
    def reset(self, **kwargs: Any) -> Any:
        np.random.random()  # noqa: NPY002
        return super().reset(**kwargs)


class IgnoresSeed(Declared):
    def reset(self, **kwargs: Any) -> Any:
        observation, _ = super().reset(**kwargs)
        self._secret = 50
        return observation, {}


class FalselyDeterministic(Guess):
    metadata = Guess.metadata | {"deterministic": True}


class RewardsSilence(Declared):
    """Saying nothing until the end gets everything."""

    def step(self, action: str) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated and not action), terminated, truncated, info


class RewardsGarbage(Declared):
    def step(self, action: str) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated and "guess" not in info), terminated, truncated, info


class NoSnapshot(Guess):
    snapshot = None


class NoRestore(Guess):
    restore = None


class TupleSnapshot(Declared):
    def snapshot(self) -> Any:
        return self._secret, self._left


class ObjectSnapshot(Declared):
    def snapshot(self) -> Any:
        return {"rng": self.np_random}


class LiveSnapshot(Declared):
    """The snapshot is the state itself and changes with it."""

    def snapshot(self) -> Any:
        self.state: dict[str, int] = getattr(self, "state", {})
        self.state.update(super().snapshot())
        return self.state


class CostlySnapshot(Declared):
    """Taking a snapshot costs a turn."""

    def snapshot(self) -> Any:
        self._left = max(1, self._left - 1)
        return super().snapshot()


class ForgetsTurns(Declared):
    def restore(self, snapshot: Any) -> None:
        self._secret = snapshot["secret"]
        self._left = self.turns


class ForgetsInOthers(Declared):
    """The secret is restored only in the instance it came from."""

    def snapshot(self) -> Any:
        self.secrets = [*getattr(self, "secrets", []), self._secret]
        return {"place": len(self.secrets) - 1, "left": self._left}

    def restore(self, snapshot: Any) -> None:
        self._left = snapshot["left"]
        self._secret = self.secrets[snapshot["place"]] if hasattr(self, "secrets") else 1


class RestoreNeedsReset(Declared):
    def restore(self, snapshot: Any) -> None:
        if self._secret == 0:
            raise RuntimeError("reset first")
        super().restore(snapshot)


class MendsText(Declared):
    """Says again what was said before, and its snapshot replaces lone surrogates."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def reset(self, **kwargs: Any) -> Any:
        self.said = ""
        return super().reset(**kwargs)

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        before, self.said = self.said, action[:50]
        return (f"{observation} Before: {before}", *rest)

    def snapshot(self) -> Any:
        return super().snapshot() | {"said": self.said.encode(errors="replace").decode()}

    def restore(self, snapshot: Any) -> None:
        super().restore(snapshot)
        self.said = snapshot["said"]


class SnapshotRaises(Declared):
    def snapshot(self) -> Any:
        raise NotImplementedError("later")


class ClosesOnce(Guess):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True


BROKEN: list[tuple[str, type]] = [
    ("gymnasium", NoEnv),
    ("gymnasium", WarpedReset),
    ("spaces", NoTextSpace),
    ("spaces", ObservationOutside),
    ("reward-bounds", NoBounds),
    ("reward-bounds", OneBound),
    ("reward-bounds", InfiniteBounds),
    ("reward-bounds", TooSmallBounds),
    ("before-reset", StepsBeforeReset),
    ("reset", ResetWithoutInfo),
    ("reset", ResetBytes),
    ("reset", ResetRaises),
    ("step", FourTuple),
    ("step", NoText),
    ("step", NanReward),
    ("step", BoolReward),
    ("step", NumpyFlags),
    ("info", ListInfo),
    ("info", NumpyInfo),
    ("info", TupleInfo),
    ("info", NanInfo),
    ("info", NumberAsTask),
    ("fresh-info", OneInfo),
    ("any-text", PythonNumbers),
    ("any-text", RefusesEmpty),
    ("ends", Endless),
    ("one-end", BothEnds),
    ("after-end", StepsAfterEnd),
    ("reproducible", Unseeded),
    ("reproducible", Clock),
    ("no-leak", Leaking),
    ("independent", SharedState),
    ("global-rng", SeedsGlobally),
    ("global-rng", DrawsNumpyGlobally),
    ("seeds-differ", IgnoresSeed),
    ("seeds-differ", FalselyDeterministic),
    ("invalid-agent", RewardsSilence),
    ("invalid-agent", RewardsGarbage),
    ("snapshot", NoSnapshot),
    ("snapshot", TupleSnapshot),
    ("snapshot", ObjectSnapshot),
    ("snapshot", SnapshotRaises),
    ("snapshot", LiveSnapshot),
    ("snapshot", CostlySnapshot),
    ("restore", NoRestore),
    ("restore", ForgetsTurns),
    ("restore", ForgetsInOthers),
    ("restore", RestoreNeedsReset),
    ("restore", MendsText),
    ("close", ClosesOnce),
]


@pytest.mark.parametrize(("rule", "broken"), BROKEN, ids=[f"{rule}-{broken.__name__}" for rule, broken in BROKEN])
def test_each_broken_rule_is_named(rule: str, broken: type) -> None:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with pytest.raises(ContractViolation, match=f"^{rule}: expected .*, got .*; ") as caught:
            check_text_env(broken, actions=ACTIONS["polyturn/Guess-v0"])
        assert caught.value.rule == rule
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def test_every_broken_rule_is_reported_with_its_own_breach() -> None:
    """Five faults in one class, of different parts of the check: five breaches, each with what to do."""

    class Many(RewardsSilence, ClosesOnce):
        reward_bounds = (1.0, 0.0)

        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            return observation, info | {"task_id": 3, "seen": {1, 2}}

        def snapshot(self) -> Any:
            return super().snapshot(), {1}

    with pytest.raises(ContractViolation) as caught:
        check_text_env(Many, actions=ACTIONS["polyturn/Guess-v0"])
    broken = {breach.rule: str(breach.args[0]) for breach in caught.value.breaches}
    assert {"reward-bounds", "info", "snapshot", "close"} <= set(broken)
    assert "reads back equal" in broken["info"]
    assert "finite, low < high" in broken["reward-bounds"]
    assert caught.value.rule == next(iter(broken))
    assert all(text in str(caught.value).splitlines() for text in broken.values())
    assert set(caught.value.unchecked) == {"restore"}  # nothing can be restored from such a snapshot
    assert "not checked: restore" in str(caught.value)


def test_a_rule_is_called_unchecked_only_where_a_breach_hides_it() -> None:
    with pytest.raises(ContractViolation) as caught:
        check_text_env(Endless, actions=ACTIONS["polyturn/Guess-v0"])
    assert [breach.rule for breach in caught.value.breaches] == ["ends"]
    assert {"after-end", "reproducible", "snapshot", "restore"} <= set(caught.value.unchecked)
    assert not {"spaces", "before-reset", "close"} & set(caught.value.unchecked)


def test_every_rule_is_broken_by_some_environment_above() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


def test_the_parent_of_the_broken_environments_is_whole() -> None:
    """So each of them is caught for what it changes."""
    check_text_env(Declared, actions=ACTIONS["polyturn/Guess-v0"])


def test_a_deterministic_environment_may_say_so() -> None:
    class Always50(IgnoresSeed):
        metadata = Guess.metadata | {"deterministic": True}

    check_text_env(Always50, actions=ACTIONS["polyturn/Guess-v0"])


def test_the_message_shows_where_transcripts_part() -> None:
    with pytest.raises(
        ContractViolation, match=r"reproducible: expected at turn 1 .*t=\d+.*, got .*t=\d+.*; draw everything"
    ):
        check_text_env(Clock)


def test_what_an_action_broke_is_shown_and_chained() -> None:
    with pytest.raises(
        ContractViolation, match=r"ValueError: .*empty action.* after the hostile text 'nothing'"
    ) as caught:
        check_text_env(RefusesEmpty, actions=ACTIONS["polyturn/Guess-v0"])
    assert isinstance(caught.value.__cause__, ValueError)


def test_instances_are_closed_even_if_a_rule_is_broken() -> None:
    closed = []

    class Counted(Endless):
        def close(self) -> None:
            closed.append(self)

    with pytest.raises(ContractViolation, match="ends"):
        check_text_env(Counted)
    assert closed


def test_wrong_use_is_no_violation() -> None:
    with pytest.raises(ValueError, match="at least two different seeds"):
        check_text_env(Guess, seeds=[3, 3])
    with pytest.raises(ValueError, match="Did you mean 'polyturn/Guess-v0'"):
        check_text_env("polyturn/Gues-v0")


def test_hostile_texts_are_what_they_are_called() -> None:
    assert len(HOSTILE["100 kB"]) > 100_000
    assert "\0" in HOSTILE["NUL"]
    with pytest.raises(UnicodeEncodeError):
        HOSTILE["lone surrogates"].encode()
    for text in HOSTILE["digits that int() refuses"].split()[:2]:
        assert text.isdigit()
        with pytest.raises(ValueError, match="invalid literal"):
            int(text)


def test_the_arguments_of_the_check_are_those_the_command_keeps_apart() -> None:
    """`polyturn check-env` refuses options that would pass for arguments of the check."""
    names = [p.name for p in inspect.signature(check_text_env).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert set(names) == {"env", "actions", "seeds", "max_turns"}


def test_a_made_environment_can_be_checked_as_a_factory() -> None:
    assert check_text_env(lambda: make("polyturn/Guess-v0", high=5), max_turns=7).turns > 0
