"""Trajectories as a web page for a person to read; everything a model or a tool wrote is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from polyturn.envs.outcomes import success_of
from polyturn.envs.trajectory import Trajectory
from polyturn.envs.viewing.text import printable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1b1f24 }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem } .row { display: flex; gap: 1rem; flex-wrap: wrap }
.episode { flex: 1 1 20rem; border: 1px solid #d5dae1; border-radius: 8px; padding: .75rem; min-width: 0 }
.episode h3 { font-size: .9rem; margin: 0 0 .5rem } .right h3 { color: #12733a } .wrong h3 { color: #b3261e }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; padding: .5rem; border-radius: 6px;
  font-size: .85rem }
pre.agent { background: #eef4ff } pre.environment { background: #f4f4f2 }
@media (prefers-color-scheme: dark) { body { background: #15181c; color: #e3e6ea } .episode { border-color: #3a4149 }
pre.agent { background: #1e2a3d } pre.environment { background: #23262a }
.right h3 { color: #6fd39a } .wrong h3 { color: #f2a19b } }
""".strip()


def comparison_page(path: Path, title: str, note: str, columns: Sequence[tuple[str, Sequence[Trajectory]]]) -> None:
    """Writes a page with one row a problem and one column a policy.

    Over each episode stands "right" or "wrong" where its environment says what success is, else its return.

    Args:
        path: The HTML file.
        title: Heading of the page.
        note: One paragraph under it.
        columns: Each policy's name and its trajectories, the same starts in the same order.

    Raises:
        ValueError: The columns do not show the same starts.
    """
    starts = [[trajectory.start for trajectory in shown] for _, shown in columns]
    if any(start != starts[0] for start in starts):
        raise ValueError("comparison_page: expected the same starts in the same order in every column")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{_safe(title)}</title><style>{_STYLE}</style><h1>{_safe(title)}</h1><p>{_safe(note)}</p>",
    ]
    for row, (first, *_rest) in enumerate(zip(*(shown for _, shown in columns), strict=True)):
        question = first.turns[0].observation if first.turns else ""
        parts.append(f"<h2>{row + 1}. {_safe(question)}</h2><div class=row>")
        parts += [_episode(name, shown[row]) for name, shown in columns]
        parts.append("</div>")
    path.write_text("\n".join(parts) + "\n", "utf-8")


def _episode(name: str, trajectory: Trajectory) -> str:
    outcome = success_of(trajectory) if trajectory.valid else None
    kind = "" if outcome is None else "right" if outcome else "wrong"
    verdict = kind or (f"return {trajectory.total_reward:g}" if trajectory.valid else f"invalid: {trajectory.error}")
    said = []
    for number, turn in enumerate(trajectory.turns):
        if number:
            said.append(f"<pre class=environment>{_safe(turn.observation)}</pre>")
        said.append(f"<pre class=agent>{_safe(turn.action)}</pre>")
    return f"<div class='{f'episode {kind}'.strip()}'><h3>{_safe(name)}: {_safe(verdict)}</h3>{''.join(said)}</div>"


def _safe(text: str) -> str:
    return escape(printable(text))
