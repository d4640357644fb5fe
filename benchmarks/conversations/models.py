"""What every method of the conversation studies starts from: the SFT policy, and models fitted to judged comparisons.

Every result is kept in its own folder, resumes where it was interrupted, and is made once, however many cells of a
suite need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from polyturn.agents.collecting.collect import collect
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.feedback.reward_models import Annotations, PreferenceModel, RewardModel, fit
from polyturn.algorithms.feedback.single_turns import turn_feedback
from polyturn.algorithms.protocols.warmup import imitation_options, warm_start
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.conversations.setting import Experiment
from polyturn.benchmarks.running.suite import write_json
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group, Trajectory

Unit = Literal["whole", "end"]
"""What a reward model scores: whole conversations, or single turns by how the conversation ends after them."""


def make_once(folder: Path, make: Callable[[], None]) -> None:
    """Runs `make` unless it has finished before; other processes that need the folder wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            make()
            (folder / "done").touch()


def sft_policy(run: Experiment) -> Policy:
    """The policy that imitates the demonstrator."""
    folder = run.folder("sft")

    def make() -> None:
        setting = run.setting
        # Conversations of the scripted demonstrator.
        with Store(folder / "demonstrations.jsonl") as store:
            groups = collect(
                run.task.demonstrator(),
                run.task.env,
                groups=setting.demonstrations,
                seed=run.seed,
                env_options=run.env_options(),
                store=store,
                progress=False,
            )
        demonstrations = [group[0] for group in groups]
        policy = _untrained(run, demonstrations)
        # Imitation of the demonstrator's turns.
        warm_start(
            policy,
            demonstrations,
            steps=setting.sft_steps,
            options=imitation_options(
                setting.sft_steps,
                lr=setting.sft_lr,
                save_every=max(1, setting.sft_steps // 2),
                keep=1,
                **setting.training,
            ),
            seed=run.seed,
            out=folder / "train",
            resume=True,
            progress=False,
        )
        policy.save_pretrained(folder / "policy")

    make_once(folder, make)
    return run.load(folder / "policy")


def _untrained(run: Experiment, demonstrations: list[Trajectory]) -> Policy:
    """The given model, or a small transformer with random weights and a vocabulary of the demonstrations' words."""
    setting = run.setting
    if setting.model is not None:
        return Policy.from_pretrained(setting.model)
    texts = [turn.observation + turn.action for trajectory in demonstrations[:800] for turn in trajectory.turns]
    return tiny_policy(
        texts,
        seed=run.seed,
        vocab_size=setting.vocabulary,
        hidden=setting.hidden,
        layers=setting.layers,
        # A preference model reads two conversations at once, and a text that is tokenized again may have more tokens
        # than were sampled.
        context=4 * setting.max_tokens,
    )


def comparisons(run: Experiment, *, branched: bool = False) -> list[Group]:
    """Groups of conversations of the SFT policy.

    Args:
        run: The seed of the study.
        branched: Conversations of a group share their turns up to a random one; otherwise they share their start.
    """
    setting, policy = run.setting, sft_policy(run)
    name = f"{'branches' if branched else 'pairs'}-seed{run.seed}"
    turns = np.random.default_rng([run.seed, 7]).integers(setting.turns, size=setting.comparisons)
    with FileLock(run.work / f"{name}.lock"), Store(run.work / f"{name}.jsonl") as store:
        return collect(
            run.agent(policy, slots=64),
            run.task.env,
            groups=setting.comparisons,
            group_size=setting.compared,
            seed=run.seed + 1_000,
            env_options=run.env_options(),
            branch_at=(lambda group: int(turns[group])) if branched else None,
            store=store,
            progress=False,
        )


def judged_comparisons(run: Experiment, unit: Unit) -> Annotations:
    """Comparisons and the exact judge's preferences on them; groups with an invalid conversation are left out."""
    groups = comparisons(run, branched=unit == "end")
    if unit == "end":
        return turn_feedback(groups, run.task.judge, look="end")
    return [(group, run.task.judge(group)) for group in groups if all(member.valid for member in group)]


def reward_model(run: Experiment, unit: Unit) -> RewardModel:
    """A Bradley-Terry model, fitted once to the judge's preferences on conversations of the SFT policy."""
    model = _fitted(RewardModel, run, unit)
    assert isinstance(model, RewardModel)
    return model


def preference_model(run: Experiment) -> PreferenceModel:
    """A model of P(first beats second), fitted once to the judge's preferences on conversations of the SFT policy."""
    model = _fitted(PreferenceModel, run, "whole")
    assert isinstance(model, PreferenceModel)
    return model


def _fitted(
    model_class: type[RewardModel] | type[PreferenceModel], run: Experiment, unit: Unit
) -> RewardModel | PreferenceModel:
    folder = run.folder(f"{model_class.__name__}-{unit}")

    def make() -> None:
        setting = run.setting
        annotated = judged_comparisons(run, unit)
        # A fifth is held out, with all comparisons that share a start with it.
        fifth = max(1, len(annotated) // 5)
        held_out_starts = {group[0].start for group, _ in annotated[:fifth]}
        rest = [(group, preference) for group, preference in annotated[fifth:] if group[0].start not in held_out_starts]
        model = model_class(sft_policy(run))
        fitted = fit(
            model,
            rest,
            annotated[:fifth],
            steps=setting.fit_steps,
            batch_size=8,
            options=TrainOptions(lr=setting.fit_lr, seed=run.seed, **setting.training),
            seed=run.seed,
            progress=False,
        )
        model.save_pretrained(folder / "model")
        write_json(folder / "fit.json", {"before": asdict(fitted.before), "after": asdict(fitted.after)})

    make_once(folder, make)
    return model_class.from_pretrained(folder / "model", device=run.setting.device)


def fit_quality(run: Experiment) -> dict[str, Any]:
    """Accuracy and log loss on held-out starts of every model that was fitted with this seed."""
    quality = {}
    for path in sorted(run.work.glob(f"*Model-*-seed{run.seed}/fit.json")):
        quality[path.parent.name.removesuffix(f"-seed{run.seed}")] = json.loads(path.read_text("utf-8"))["after"]
    return quality
