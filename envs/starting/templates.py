"""The files of a new package; `NAME` is its name, `TITLE` the name of its class."""

from __future__ import annotations

ENV = '''"""TITLE: the agent must say a word that it is shown, backwards."""

from __future__ import annotations

from typing import Any

import gymnasium

from polyturn.envs import UnicodeText

WORDS = ("river", "lantern", "copper", "violin", "meadow")


class TITLE(gymnasium.Env[str, str]):
    """A start for an environment of your own; `polyturn check-env NAME/TITLE-v0` holds it to the contract.

    Args:
        turns: Attempts allowed.
    """

    blocking = False  # it never waits for anything; take this line out where yours does
    metadata: dict[str, Any] = {"render_modes": []}
    reward_bounds = (0.0, 1.0)
    success_return = 1.0

    def __init__(self, turns: int = 3) -> None:
        if not isinstance(turns, int) or turns < 1:
            raise ValueError(f"TITLE(turns): expected a whole number of at least 1, got {turns!r}")
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.turns, self._left, self._word = turns, 0, ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)  # all randomness comes from self.np_random
        self._word = WORDS[int(self.np_random.integers(len(WORDS)))]
        self._left = self.turns
        return f"Say {self._word!r} backwards.", {"task_id": self._word}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._left == 0:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() first")
        self._left -= 1
        right = action.strip().lower() == self._word[::-1]
        if right:
            self._left = 0
        said = "Right." if right else "Not quite." if self._left else f"It was {self._word[::-1]}."
        return said, float(right), self._left == 0, False, {}

    def snapshot(self) -> dict[str, Any]:
        return {"word": self._word, "left": self._left}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._word, self._left = snapshot["word"], snapshot["left"]


def register() -> None:
    """Called by polyturn through the entry point in pyproject.toml."""
    if "NAME/TITLE-v0" not in gymnasium.registry:
        gymnasium.register("NAME/TITLE-v0", "NAME:TITLE", order_enforce=False, disable_env_checker=True)
'''
ENV_TEST = """from NAME import TITLE

from polyturn.agents import ScriptedAgent, collect
from polyturn.envs import check_text_env, make


def test_the_contract_of_text_environments_holds() -> None:
    assert check_text_env(TITLE, seeds=range(5), max_turns=6).turns > 0


def test_it_is_found_by_its_id() -> None:
    assert "backwards" in make("NAME/TITLE-v0").reset(seed=0)[0]


def test_episodes_are_collected() -> None:
    groups = collect(ScriptedAgent(["revir"]), "NAME/TITLE-v0", groups=4, group_size=2, seed=0, progress=False)
    assert len(groups) == 4
    assert all(member.valid for group in groups for member in group)
"""
ENV_README = """\
polyturn envs
polyturn check-env NAME/TITLE-v0
polyturn rollout NAME/TITLE-v0 --agent random --groups 2 --show 2"""

AGENT = '''"""TITLE: guesses the middle of what is left, in polyturn/Guess-v0."""

from __future__ import annotations

from polyturn.agents import Episode


class TITLE:
    """A start for an agent of your own: `act` gives text for what the environment just said.

    It keeps nothing between episodes; random numbers come from `episode.rng`.
    """

    name = "NAME"

    def act(self, episode: Episode) -> str:
        low, high = 1, 100
        for turn, answer in zip(episode.turns, [t.observation for t in episode.turns[1:]] + [episode.observation]):
            guess = int(turn.action)
            low, high = (guess + 1, high) if "higher than" in answer else (low, guess - 1)
        return str((low + high) // 2)
'''
AGENT_TEST = """from NAME import TITLE

from polyturn.agents import collect


def test_it_finds_every_number() -> None:
    groups = collect(TITLE(), "polyturn/Guess-v0", groups=10, group_size=1, seed=0, progress=False)
    assert all(member.valid and member.total_reward == 1.0 for group in groups for member in group)
"""
AGENT_README = """\
polyturn rollout polyturn/Guess-v0 --agent NAME --groups 2 --show 2
polyturn eval --agent NAME --env polyturn/Guess-v0"""

METHOD = '''"""TITLE: the winner's log-ratio above the loser's by a margin, one pair at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms import Batch, Example, Loss, Needs, pairs_by_outcome
from polyturn.envs import Group, Preference


@dataclass(frozen=True)
class TITLE:
    """A start for a method of your own: a hinge on h, the winner's log-ratio to the reference minus the loser's.

    Attributes:
        margin: h, in nats, beyond which a pair teaches nothing.
    """

    margin: float = 1.0
    name: ClassVar[str] = "NAME"
    needs: ClassVar[Needs] = Needs(reference=True)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """What is taken of a group: four random pairs of which one is better, and the rows that are in them."""
        pairs = pairs_by_outcome(group, preference, rng, pairs_per_group=4)
        rows, places = np.unique(pairs, return_inverse=True)
        return Example(tuple(group[row] for row in rows), places.reshape(-1, 2)) if len(rows) else None

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """`[P]` the hinge of each pair; `logps` and `reference` are `[N, T]`, 0 where the agent wrote nothing."""
        assert reference is not None
        ratio = ((logps - reference) * (batch.turn_ids >= 0)).sum(1)
        h = ratio[batch.pairs[:, 0]] - ratio[batch.pairs[:, 1]]
        metrics: dict[str, Any] = {"h": h.detach()}
        return Loss(torch.relu(self.margin - h) * batch.weight, batch.weight, metrics)
'''

METHOD_TEST = """import numpy as np
from NAME import TITLE

from polyturn.agents import tiny_policy
from polyturn.algorithms import TrainOptions, minibatches, train
from polyturn.envs import Group, Trajectory, Turn, by_return


def row(reward: float, *tokens: int) -> Trajectory:
    turn = Turn("o", "a", reward, context_ids=np.array([5, 6], np.int32), action_ids=np.array(tokens, np.int32))
    return Trajectory("Toy-v0", 0, (turn,), terminated=True)


def test_winners_gain_on_losers() -> None:
    group = Group((row(1.0, 20, 21), row(0.0, 30, 31, 32)))
    method, policy = TITLE(), tiny_policy(["x"], seed=0)
    example = method.examples(group, by_return(group), np.random.default_rng(0))
    assert example is not None
    data = minibatches([example], 1, seed=0)
    options = TrainOptions(lr=1e-3)
    history = train(method, policy, policy.copy(), data, steps=10, options=options, progress=False).history
    assert history[0]["loss"] == method.margin  # the policy is the reference
    assert history[-1]["loss"] < 0.5 * method.margin
"""
METHOD_README = """\
polyturn train --help
polyturn train NAME --model my/model --data store.jsonl --out runs/NAME"""

SUITE = '''"""TITLE: does halving beat guessing at random? A start for a benchmark of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.agents import RandomAgent, ScriptedAgent, collect
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, mean_interval, table


def cells(quick: bool, seeds: int) -> Sequence[Cell]:
    groups = 10 if quick else 100
    return [Cell(way, seed, {"groups": groups}) for way in ("always fifty", "random") for seed in range(seeds)]


def run(cell: Cell, folder: Path) -> Mapping[str, Any]:
    agent = ScriptedAgent(["50"]) if cell.name == "always fifty" else RandomAgent()
    found = collect(agent, "polyturn/Guess-v0", groups=cell.options["groups"], seed=cell.seed, progress=False)
    returns = [member.total_reward for group in found for member in group if member.valid]
    return {"mean return": sum(returns) / len(returns)}


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    rows = []
    for way in dict.fromkeys(outcome.cell.name for outcome in outcomes):
        values = [outcome.result["mean return"] for outcome in outcomes if outcome.cell.name == way]
        mean, low, high = mean_interval(values)
        rows.append([way, f"{mean:.3f}", f"[{low:.3f}, {high:.3f}]"])
    return "# NAME\\n\\n" + table(["way", "mean return", "95% over seeds"], rows) + "\\n"


SUITE = Suite(name="NAME", summary="a suite to begin with", cells=cells, run=run, report=report, seeds=3)
'''
SUITE_TEST = """from pathlib import Path

from NAME import SUITE

from polyturn.benchmarks.running.suite import load, run_suite


def test_it_runs_and_reports(tmp_path: Path) -> None:
    run_suite(SUITE, tmp_path, quick=True, progress=False)
    assert "mean return" in (tmp_path / "report.md").read_text("utf-8")


def test_it_is_found_by_its_name() -> None:
    assert load("NAME").name == "NAME"
"""
SUITE_README = "polyturn bench NAME --quick"

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["polyturn"]

[project.entry-points."polyturn.GROUP"]
NAME = "POINT"

[tool.setuptools]
py-modules = ["NAME"]
"""
README = """\
# NAME

Made by `polyturn new KIND NAME`. `NAME.py` is where to go on; polyturn finds it through the entry point in
`pyproject.toml`.

```bash
pip install -e .     # into the environment that has polyturn
pytest
COMMANDS
```
"""
CI = """\
name: tests
on: [push, pull_request]
jobs:
  tests:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: { python-version: "3.12" }
      # polyturn has no release yet: name the checkout or the wheel that you use.
      - run: pip install "${{ vars.POLYTURN }}" pytest && pip install -e . && pytest
"""
