"""What others wrote: by `module:attribute` on every command, and by entry points of installed packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyturn.agents.scripted import gold
from polyturn.algorithms.feedback.annotators import annotator
from polyturn.algorithms.methods import table
from polyturn.cli import main
from polyturn.envs.plugins import PluginError, attribute, is_reference, loaded

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from polyturn.algorithms import Loss, Needs
from polyturn.envs import by_score


class Guesser:
    """Guesses 5."""

    name = "guesser"

    def act(self, episode):
        return "5"


ready = Guesser()


@dataclass(frozen=True)
class Push:
    """Raises what was sampled."""

    strength: float = 1.0
    name: ClassVar[str] = "push"
    needs: ClassVar[Needs] = Needs(reference=False, preference=False)

    def loss(self, logps, reference, batch):
        return Loss(-self.strength * logps.sum(1))


def shortest(group):
    return by_score(np.array([-float(len(member.turns)) for member in group]))


class Wrong:
    pass
'''
POINTS = """[polyturn.agents]
acme-guesser = acme_plugin:Guesser
acme-broken = acme_broken:agent
[polyturn.methods]
acme-push = acme_plugin:Push
acme-gone = acme_plugin:Nowhere
[polyturn.preferences]
acme-shortest = acme_plugin:shortest
"""


@pytest.fixture(autouse=True)
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package, of whose entry points two do not load."""
    (tmp_path / "acme_plugin.py").write_text(MODULE)
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('half installed')")
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("who", ["acme_plugin:Guesser", "acme_plugin:ready", "acme-guesser"])
def test_an_agent_of_ones_own_is_collected_and_evaluated(who: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert main(["rollout", "polyturn/Guess-v0", "--agent", who, "--groups", "2", "--quiet"]) == 0
    arguments = ["--env", "polyturn/Guess-v0", "--limit", "3", "--quiet", "--json", str(figures)]
    assert main(["eval", "--agent", who, *arguments]) == 0
    assert json.loads(figures.read_text())


@pytest.mark.parametrize("name", ["acme_plugin:Push", "acme-push"])
def test_a_method_of_ones_own_takes_its_options(name: str) -> None:
    method = table.make(name, strength=2.0)
    assert method.name == "push"
    assert method.strength == 2.0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="strenth"):
        table.make(name, strenth=2.0)


def test_help_lists_the_methods_that_load_and_names_the_others() -> None:
    with pytest.warns(RuntimeWarning, match="'acme-gone' of polyturn.methods cannot be used"):
        lines = table.summaries()
    assert "Raises what was sampled." in lines
    assert "acme-gone" not in lines


def test_a_preference_of_ones_own_by_either_name() -> None:
    assert annotator("acme-shortest") is annotator("acme_plugin:shortest")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout", "polyturn/Guess-v0", "--agent", "acme-broken"], "RuntimeError: half installed"),
        (["rollout", "polyturn/Guess-v0", "--agent", "acme_plugin:Gueser"], "Did you mean 'Guesser'?"),
        (["rollout", "polyturn/Guess-v0", "--agent", "acme_plugin:Wrong"], "anything with act(episode), got Wrong"),
        (["rollout", "polyturn/Guess-v0", "--agent", "acme_nowhere:x"], "Install the package"),
        (["eval", "--env", "polyturn/Guess-v0"], "either --model or --agent, got neither"),
        (["train", "acme_plugin:Wrong", "--model", "m", "--out", "o"], "Wrong without name, needs, loss"),
        (
            ["train", "mdpo", "--model", "m", "--out", "o", "--tasks", "t"],
            "expected --program COMMAND to go",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_only_names_of_python_are_references() -> None:
    assert is_reference("acme.agents:Haggler.small")
    for name in ("org/model", "server:gpt-4o", "C:/models", "a:", ":b", "1a:b", "a:b c"):
        assert not is_reference(name)
    with pytest.raises(PluginError, match="expected a score as module:attribute"):
        attribute("nothing", "a score")
    assert attribute("polyturn.agents.scripted.gold:GoldAgent", "an agent") is gold.GoldAgent
    assert loaded("polyturn.nothing") == {}
