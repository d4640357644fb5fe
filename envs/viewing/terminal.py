"""Trajectories for a terminal: who said what, in colour where the terminal shows it, with tokens on request."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from typing import Literal, TextIO

from polyturn.envs.trajectory import Trajectory, Turn
from polyturn.envs.viewing.book import Pieces
from polyturn.envs.viewing.text import printable, roles
from polyturn.envs.viewing.trained_on import TrainedOn

Colour = Literal["auto", "always", "never"]
_CODES = {"head": "1", "env": "36", "agent": "1;34", "reward": "32", "error": "1;31", "outside": "2", "special": "35"}
# Probabilities that part the shades of tokens, the likely ones plain.
_SHADES = ((0.5, ""), (0.1, "33"), (0.01, "38;5;208"), (0.0, "31"))


def wants_colour(choice: Colour, stream: TextIO) -> bool:
    """Whether to write colour codes: asked for, or a terminal that has not refused them (https://no-color.org)."""
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_trajectory(
    trajectory: Trajectory, number: int, *, colour: bool = False, tokens: bool = False, pieces: Pieces | None = None
) -> None:
    """Prints a trajectory for a person to read, each turn under the name of who spoke.

    Args:
        trajectory: What is printed. Nothing in it reaches the terminal but printable characters.
        number: Its position in the store.
        colour: Write colour codes.
        tokens: Print the tokens of every turn: those from outside in brackets, the agent's with their log-probs, and
            where `polyturn weigh` wrote them their log-ratio (r) and weight in the loss (w).
        pieces: The text of tokens; without it their ids.
    """
    end = "terminated" if trajectory.terminated else "truncated" if trajectory.truncated else "not ended"
    facts = [
        f"seed {trajectory.seed}",
        f"member {trajectory.member}",
        f"task {trajectory.task_id}" if trajectory.task_id else "",
        " ".join(part for part in (trajectory.agent, trajectory.policy_version) if part),
        f"return {trajectory.total_reward:g}" if trajectory.valid else "INVALID",
        end,
    ]
    head = printable(f"=== {number}: {trajectory.env_id}, {', '.join(fact for fact in facts if fact)}")
    write(_painted(head, "head", colour))
    env, agent = roles(trajectory)
    for turn in trajectory.turns:
        _block(env, turn.observation, "env" if colour else "")
        _block(agent, turn.action, "agent" if colour else "")
        if tokens:
            _label("tokens", " ".join(_tokens(turn, pieces, colour)) or "none recorded", "outside" if colour else "")
        if turn.reward:
            write(_painted(f"  reward: {turn.reward:g}", "reward", colour))
    if trajectory.final_observation:
        _block(env, trajectory.final_observation, "env" if colour else "")
    if trajectory.error is not None:
        _block("error", trajectory.error, "error" if colour else "")
    write("")


def write(text: str) -> None:
    """Prints a line on terminals of any encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _tokens(turn: Turn, pieces: Pieces | None, colour: bool) -> Iterator[str]:
    trained = TrainedOn.of(turn)
    for ids, logps in ((turn.context_ids, None), (turn.action_ids, turn.logps)):
        numbers = [int(token) for token in ids]
        named = list(pieces(numbers)) if pieces is not None else [(str(token), False) for token in numbers]
        for at, (text, special) in enumerate(named):
            # A line end inside a token would break the line that it is shown in.
            shown = printable(text or f"#{numbers[at]}").replace("\n", "\\n").replace("\t", "\\t")
            if logps is None:
                if trained is not None and trained.outside[at]:
                    shown += f"(w{trained.outside[at]:+.2g})"
                yield _painted(f"[{shown}]", "special" if special else "outside", colour)
                continue
            more = "" if trained is None else _trained(trained, at)
            if not len(logps):
                yield f"{shown}(?{more})"
                continue
            logp = float(logps[at])
            code = next((code for least, code in _SHADES if math.exp(min(logp, 0.0)) >= least), "31")
            text = f"{shown}({logp:.2f}{more})"
            yield f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def _trained(trained: TrainedOn, at: int) -> str:
    ratio = trained.log_ratio[at]
    return f" r{'?' if math.isnan(ratio) else f'{ratio:+.2f}'} w{trained.weight[at]:+.2g}"


def _painted(text: str, kind: str, colour: bool) -> str:
    return f"\x1b[{_CODES[kind]}m{text}\x1b[0m" if colour else text


def _block(name: str, text: str, kind: str) -> None:
    _label(name, printable(text), kind)


def _label(name: str, text: str, kind: str) -> None:
    for place, line in enumerate(text.split("\n")):
        label = f"{name if place == 0 else '':>7} |"
        write(f"{_painted(label, kind, True) if kind else label} {line}")
