"""Environments by id: what is there, what was meant, and packages that bring their own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import registry
from gymnasium.error import ResetNeeded

from polyturn.envs import EnvOptionError, TextEnv, TurnLimit, UnknownEnv, make, registered, registration as under_test
from polyturn.envs.games.guess import Guess


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Installs modules under entry points, registers them, and takes everything back afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before, namespaces, modules = dict(registry), set(under_test._namespaces), set(sys.modules)

    def install(name: str, value: str, code: str) -> None:
        (tmp_path / f"{value.partition(':')[0]}.py").write_text(code)
        point = EntryPoint(name, value, under_test.ENTRY_POINT_GROUP)
        monkeypatch.setattr(under_test, "entry_points", lambda group: [point] if group == "polyturn.envs" else [])
        under_test.register_plugins()

    yield install
    registry.clear()
    registry.update(before)
    under_test._namespaces.clear()
    under_test._namespaces.update(namespaces)
    under_test._tried.clear()
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def test_importing_registers_without_importing_environments() -> None:
    code = (
        "import sys, gymnasium, polyturn\n"
        "print('polyturn.envs.games.guess' in sys.modules, 'torch' in sys.modules, 'pyarrow' in sys.modules)\n"
        "for name in ('polyturn/Guess-v0', 'polyturn:polyturn/Guess-v0'):\n"
        "    print(gymnasium.make(name, high=3).reset(seed=0)[0][:40])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False False", *["I am thinking of a whole number from 1 t"] * 2]


def test_registered_lists_built_ins_and_not_gymnasiums_own() -> None:
    assert {"polyturn/Guess-v0", "polyturn/ToolMath-v0"} <= set(registered())
    assert registered() == sorted(registered())
    assert "CartPole-v1" not in registered()


def test_made_environments_are_text_environments_with_their_options() -> None:
    env = make("polyturn/Guess-v0", high=3, turns=1)
    assert isinstance(env, TextEnv)
    assert "from 1 to 3" in env.reset(seed=0)[0]
    assert type(env) is Guess  # no wrapper costs time at every step


def test_the_same_seed_is_the_same_start_in_plain_gymnasium() -> None:
    assert make("polyturn/Guess-v0").reset(seed=5) == gymnasium.make("polyturn/Guess-v0").reset(seed=5)


@pytest.mark.parametrize("wrong", ["polyturn/Gess-v0", "Guess-v0", "guess", "polyturn/guess-v0", "polyturn/Guess-v7"])
def test_unknown_ids_suggest_what_was_meant(wrong: str) -> None:
    with pytest.raises(UnknownEnv, match=rf"got '{wrong}'. Did you mean 'polyturn/Guess-v0'"):
        make(wrong)


@pytest.mark.parametrize("wrong", ["", "zzzzzzzz", "polyturn/", "a b/c d"])
def test_ids_far_from_everything_list_what_there_is(wrong: str) -> None:
    with pytest.raises(UnknownEnv, match="polyturn/Guess-v0"):
        make(wrong)


@pytest.mark.parametrize("wrong", ["no.such.module:acme/X-v0", ":x", ".relative:x"])
def test_a_module_that_cannot_be_imported_is_named(wrong: str) -> None:
    with pytest.raises(UnknownEnv, match=f"got '{wrong}'"):
        make(wrong)


def test_module_and_id(plugins: Any, tmp_path: Path) -> None:
    plugins("other", "other_plugin", "")
    (tmp_path / "my_environments.py").write_text(PLUGIN + "\nregister()\n")
    assert isinstance(make("my_environments:acme/Haggle-v0", high=3), TurnLimit)


def test_unknown_options_suggest_what_was_meant() -> None:
    with pytest.raises(EnvOptionError, match=r"'turn'. Did you mean 'turns'\? Its options: high, turns"):
        make("polyturn/Guess-v0", turn=3)
    with pytest.raises(ValueError, match=r"Guess\(high\): expected a whole number of at least 2, got 1"):
        make("polyturn/Guess-v0", high=1)


PLUGIN = """
import gymnasium
from polyturn.envs.games.guess import Guess

def register():
    gymnasium.register("acme/Haggle-v0", entry_point=Guess, kwargs={"turns": 20}, max_episode_steps=3)
    gymnasium.register("elsewhere/X-v0", entry_point=Guess)
"""


def test_a_plugin_registers_through_a_function(plugins: Any) -> None:
    plugins("acme", "acme_plugin:register", PLUGIN)
    assert "acme/Haggle-v0" in registered()
    assert "elsewhere/X-v0" not in registered()
    with pytest.raises(UnknownEnv, match="Did you mean 'acme/Haggle-v0'"):
        make("acme/Hagle-v0")


def test_a_plugin_registers_by_being_imported(plugins: Any) -> None:
    plugins("acme", "acme_module", PLUGIN + "\nregister()\n")
    assert "acme/Haggle-v0" in registered()


def test_a_broken_plugin_is_named_and_takes_nothing_away(plugins: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"plug-in broken = 'broken_plugin'.*ZeroDivisionError"):
        plugins("broken", "broken_plugin", "1 / 0\n")
    assert "polyturn/Guess-v0" in registered()


def test_registering_again_changes_nothing() -> None:
    before = dict(registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        under_test.register_plugins()
    assert dict(registry) == before


def test_a_limit_on_turns_truncates_and_is_part_of_the_snapshot(plugins: Any) -> None:
    """Three turns allowed by the registration, twenty by the game."""
    plugins("acme", "acme_plugin:register", PLUGIN)
    env = make("acme/Haggle-v0")
    assert isinstance(env, TurnLimit)
    assert isinstance(env, TextEnv)
    assert env.reward_bounds == (0.0, 1.0)
    env.reset(seed=0)
    assert env.step("no number")[2:4] == (False, False)
    state = env.snapshot()
    other = make("acme/Haggle-v0")
    other.restore(state)
    for each in (env, other):
        assert each.step("no number")[2:4] == (False, False)
        assert each.step("no number")[2:4] == (False, True)
        with pytest.raises(ResetNeeded):
            each.step("no number")


def test_an_end_on_the_last_turn_is_no_truncation() -> None:
    env = TurnLimit(Guess(), 1)
    with pytest.raises(ResetNeeded):
        env.step("1")
    _, info = env.reset(seed=0)
    assert env.step(info["task_id"].removeprefix("number-"))[1:4] == (1.0, True, False)
    with pytest.raises(ResetNeeded):
        env.step("1")
    with pytest.raises(ValueError, match="at least one turn"):
        TurnLimit(Guess(), 0)


# The game itself


def test_guess_is_won_by_halving_and_lost_by_waiting() -> None:
    """Seven guesses always find one of a hundred numbers, as 2**7 > 100."""
    env = Guess()
    for seed in range(50):
        env.reset(seed=seed)
        low, high, reward, over = 1, 100, 0.0, False
        while not over:
            middle = (low + high) // 2
            observation, reward, over, truncated, info = env.step(f"Between {low} and {high}, so I say {middle}.")
            assert info == {"guess": middle}
            assert not truncated
            low, high = (middle + 1, high) if "higher" in observation else (low, middle - 1)
        assert reward == 1.0
    env.reset(seed=0)
    outcomes = [env.step("hm") for _ in range(7)]
    assert [over for _, _, over, _, _ in outcomes] == [False] * 6 + [True]
    assert "You have 1 guess left." in outcomes[-2][0]
    assert "You lose" in outcomes[-1][0]


def test_guess_reads_ascii_digits_only() -> None:
    env = Guess(turns=20)
    env.reset(seed=0)
    for text in ("\u0665\u0660", "\u00b2", "9" * 10_000):
        assert env.step(text)[4] == {}
    assert env.step("not 7 but -12")[4] == {"guess": 12}


def test_a_plugin_whose_name_is_no_namespace_is_named(plugins: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"plug-in akme = 'akme_plugin:register'.*got only acme/Haggle-v0"):
        plugins("akme", "akme_plugin:register", PLUGIN)
    assert make("acme/Haggle-v0").reset(seed=0)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("Guess", {"high": None}), ("Guess", {"turns": 1.5}), ("Guess", {"turns": True}), ("Bandit", {"arms": "ten"}),
        ("Bandit", {"contexts": float("nan")}), ("PairedBandit", {"temperature": float("inf")}),
        ("TokenBandit", {"length": []}), ("TokenLength", {"mode": None}), ("TabularGame", {"count": -1}),
        ("MatrixGame", {"rounds": 0.5}), ("ToolMath", {"max_turns": None, "sandbox": "local"}),
        ("EducationDialogue", {"turns": "4"}), ("CarDealer", {"turns": -1}), ("TabularGame", {"states": 3}),
    ],
)  # fmt: skip
def test_options_of_a_wrong_type_or_size_are_refused_by_name(env_id: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(f"polyturn/{env_id}-v0", **options)


OWN = ("Bandit", "CarDealer", "EducationDialogue", "Guess", "MatrixGame", "PairedBandit", "TabularGame", "TokenBandit")


@pytest.mark.parametrize("env_id", [f"polyturn/{name}-v0" for name in (*OWN, "TokenLength")])
def test_a_mistyped_option_of_reset_is_refused(env_id: str) -> None:
    env = make(env_id)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="'tsak'"):
        env.reset(seed=0, options={"tsak": 1})
