"""The page that shows episodes side by side: verdicts by the environment's own rule, and everything escaped."""

from __future__ import annotations

from pathlib import Path

from polyturn.benchmarks.running.pages import comparison_page
from polyturn.envs.trajectory import Trajectory, Turn


def episode(env: str, reward: float, **fields: object) -> Trajectory:
    return Trajectory(env, 0, (Turn("2 + 2 <b>?", "<script>", reward),), terminated=True, **fields)  # type: ignore[arg-type]


def test_verdicts_are_those_of_the_environment(tmp_path: Path) -> None:
    def shown(env: str, *rewards: float) -> str:
        columns = [(f"policy {n}", [episode(env, reward)]) for n, reward in enumerate(rewards)]
        comparison_page(tmp_path / "page.html", "Title", "Note", columns)
        return (tmp_path / "page.html").read_text("utf-8")

    math = shown("polyturn/ToolMath-v0", 1.0, 0.0)
    assert "<div class='episode right'><h3>policy 0: right</h3>" in math
    assert "<div class='episode wrong'><h3>policy 1: wrong</h3>" in math
    assert "<script>" not in math.split("</style>")[1]
    # A price is neither right nor wrong, be it positive or none.
    price = shown("polyturn/CarDealer-v0", 0.7, 0.0)
    assert "<div class='episode'><h3>policy 0: return 0.7</h3>" in price
    assert "<div class='episode'><h3>policy 1: return 0</h3>" in price


def test_an_invalid_episode_is_neither(tmp_path: Path) -> None:
    lost = episode("polyturn/ToolMath-v0", 0.0, error="SandboxLost: <gone>")
    comparison_page(tmp_path / "page.html", "Title", "Note", [("policy", [lost])])
    assert "<h3>policy: invalid: SandboxLost: &lt;gone&gt;</h3>" in (tmp_path / "page.html").read_text("utf-8")
