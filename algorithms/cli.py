"""Adds the commands of this floor to the parser of `polyturn`."""

from __future__ import annotations

from typing import Any

from polyturn.algorithms.commands import evaluate, fit, train, weigh


def add_commands(subparsers: Any) -> None:
    """Adds `train`, `fit`, `eval` and `weigh`."""
    train.add_command(subparsers)
    fit.add_command(subparsers)
    evaluate.add_command(subparsers)
    weigh.add_command(subparsers)
