"""Supervised warm start: a policy imitates recorded conversations before any preference is learned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.methods.imitation import SFT
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training.data_source import minibatches, steps_of
from polyturn.algorithms.training.loop import TrainResult, train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.trajectory import Trajectory


def demonstrations(policy: Policy, trajectories: Iterable[Trajectory]) -> list[Example]:
    """One example for each valid trajectory; text that has no tokens yet gets the policy's own.

    Raises:
        ValueError: No trajectory is valid.
    """
    examples = [
        Example((trajectory if any(len(t.action_ids) for t in trajectory.turns) else policy.chat.written(trajectory),))
        for trajectory in trajectories
        if trajectory.valid and trajectory.turns
    ]
    if not examples:
        raise ValueError("demonstrations: expected valid trajectories with turns, got none")
    return examples


def warm_start(
    policy: Policy,
    trajectories: Iterable[Trajectory],
    *,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 32,
    options: TrainOptions | None = None,
    version: str = "sft",
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> TrainResult:
    """Trains the policy in place on conversations, only on the tokens of the agent's turns.

    Args:
        policy: What is trained.
        trajectories: Demonstrations; invalid ones are left out.
        steps: Updates; default `epochs` passes over the data.
        epochs: Passes, where `steps` is not given.
        batch_size: Conversations an update.
        options: How it trains; default `imitation_options(steps)`.
        version: Name of the resulting weights.
        out: Folder for checkpoints and metrics.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        seed: Order of the data.
        progress: Show a progress bar.

    Raises:
        ValueError: No trajectory is valid.
    """
    examples = demonstrations(policy, trajectories)
    total = steps_of(len(examples), batch_size, epochs=epochs) if steps is None else steps
    policy.version = version
    return train(
        SFT(),
        policy,
        None,
        minibatches(examples, batch_size, seed=seed),
        steps=total,
        options=imitation_options(total) if options is None else options,
        out=out,
        resume=resume,
        progress=progress,
    )


def imitation_options(steps: int, **changed: Any) -> TrainOptions:
    """Usual options for imitation: 2e-5 on a cosine, after a rise over a tenth of the steps, at most 40.

    Args:
        steps: Of the whole run.
        **changed: Options that are to be others.
    """
    return TrainOptions(**{"lr": 2e-5, "schedule": "cosine", "warmup": min(40, max(1, steps // 10)), **changed})
