"""What the studies of conversations share: a policy that imitates scripted speakers, and the ways to improve it.

Every step (imitation, comparisons, fitted models, each way's training) is kept in a folder of its own, resumes where it
was interrupted, and is done once however many cells ask for it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.feedback.dueling import Rivals
from polyturn.algorithms.feedback.reward_models import Annotations, PreferenceModel, RewardModel, fit
from polyturn.algorithms.feedback.single_turns import turn_feedback
from polyturn.algorithms.methods.actor_critic import MTPO, PPO
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.networks.value import ActorCritic
from polyturn.algorithms.protocols.online import online
from polyturn.algorithms.protocols.warmup import imitation_options, warm_start
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.suite import write_json
from polyturn.envs.preference import Annotator
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group, Trajectory

Kind = Literal["whole", "end"]
"""What a reward model learned to score: whole conversations, or single turns by how the conversation ends."""


@dataclass(frozen=True)
class Setting:
    """Sizes of a study.

    Attributes:
        turns: Of the agent in a conversation.
        topics: How many things there are to talk about, where the environment has topics.
        demonstrations: Conversations to imitate.
        hidden: Width of the transformer.
        layers: Its layers.
        vocabulary: Of its tokenizer.
        sft_steps: Updates of the imitation.
        sft_lr: Its highest learning rate.
        comparisons: Starts whose conversations reward and preference models are fitted to.
        compared: Conversations from each of them; all pairs are judged.
        fit_steps: Their updates.
        fit_lr: Their learning rate.
        steps: Updates of every way to improve.
        groups: Starts an update.
        group_size: Conversations of the policy from each.
        lr: Learning rate of the policy.
        value_lr: The value network's, over the policy's.
        value_warmup: Steps in which the value alone learns.
        alpha: Weight of the KL in units of preference (MTPO).
        alpha_tau: The same with the mixture as opponent.
        mixing: The reference's share in that mixture.
        kl: Weight of the KL in units of reward (the log-odds of a reward model), for RLHF.
        kl_reward: Weight of the KL where exact effects or the environment's own reward are maximised.
        beta: Of M-DPO.
        evaluate_every: Steps between points of the learning curve.
        starts: Conversations of each at a point.
        duels: Starts of the final comparison of all with all.
        max_tokens: Tokens of a conversation.
        max_new_tokens: Tokens of a turn.
        model: Folder or Hub id of a policy to start from; None makes a small one from nothing.
    """

    turns: int = 5
    topics: int = 6
    demonstrations: int = 2500
    hidden: int = 96
    layers: int = 2
    vocabulary: int = 1024
    sft_steps: int = 200
    sft_lr: float = 3e-3
    comparisons: int = 160
    compared: int = 6
    fit_steps: int = 80
    fit_lr: float = 3e-4
    steps: int = 45
    groups: int = 12
    group_size: int = 2
    lr: float = 3e-4
    value_lr: float = 3.0
    value_warmup: int = 8
    alpha: float = 0.005
    alpha_tau: float = 0.0025
    mixing: float = 0.125
    kl: float = 0.025
    kl_reward: float = 0.005
    beta: float = 0.1
    evaluate_every: int = 15
    starts: int = 24
    duels: int = 120
    max_tokens: int = 400
    max_new_tokens: int = 48
    model: str | None = None

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(max_new_tokens=self.max_new_tokens)


QUICK: dict[str, Any] = {
    "demonstrations": 300, "sft_steps": 40, "hidden": 48, "comparisons": 12, "compared": 3, "fit_steps": 8, "steps": 4,
    "groups": 4, "value_warmup": 1, "evaluate_every": 4, "starts": 6, "duels": 10, "turns": 4, "topics": 4,
}  # fmt: skip
"""A small form of the sizes."""


@dataclass(frozen=True)
class Task:
    """What is talked about, and who says how well it went.

    Attributes:
        env: Registered id.
        options: From the setting to the environment's options.
        demonstrator: Whom the policy imitates first.
        judge: The exact preference over whole conversations.
        effect: From a trajectory to `[H]`, how much good each of its turns did, exactly; None where nobody knows.
    """

    env: str
    options: Callable[[Setting], dict[str, Any]]
    demonstrator: Callable[[], Agent]
    judge: Annotator
    effect: Callable[[Trajectory], NDArray[np.float64]] | None = None


def supervised(task: Task, setting: Setting, seed: int, work: Path) -> Policy:
    """The policy that imitates the demonstrator; made once."""
    folder = work / f"sft-seed{seed}"

    def make() -> None:
        with Store(folder / "demonstrations.jsonl") as store:
            groups = collect(
                task.demonstrator(),
                task.env,
                groups=setting.demonstrations,
                seed=seed,
                env_options=task.options(setting),
                store=store,
                progress=False,
            )
        shown = [group[0] for group in groups]
        texts = [turn.observation + turn.action for trajectory in shown[:800] for turn in trajectory.turns]
        if setting.model is None:
            policy = tiny_policy(
                texts,
                seed=seed,
                vocab_size=setting.vocabulary,
                hidden=setting.hidden,
                layers=setting.layers,
                # A preference model reads two conversations at once, and text that is read anew may take more tokens
                # than were sampled.
                context=4 * setting.max_tokens,
            )
        else:
            policy = Policy.from_pretrained(setting.model)
        warm_start(
            policy,
            shown,
            steps=setting.sft_steps,
            options=imitation_options(
                setting.sft_steps,
                lr=setting.sft_lr,
                save_every=max(1, setting.sft_steps // 2),
                keep=1,
                **_training(setting),
            ),
            seed=seed,
            out=folder / "train",
            resume=True,
            progress=False,
        )
        policy.save_pretrained(folder / "policy")

    _once(folder, make)
    return _load(setting, folder / "policy")


def comparisons(task: Task, setting: Setting, seed: int, work: Path, *, branched: bool = False) -> list[Group]:
    """Conversations of the SFT policy from the same starts, or that part at a random turn."""
    sft = supervised(task, setting, seed, work)
    name = f"{'branches' if branched else 'pairs'}-seed{seed}"
    turns = np.random.default_rng([seed, 7]).integers(setting.turns, size=setting.comparisons)
    with FileLock(work / f"{name}.lock"), Store(work / f"{name}.jsonl") as store:
        return collect(
            TransformerAgent(sft, sampling=setting.sampling, max_tokens=setting.max_tokens),
            task.env,
            groups=setting.comparisons,
            group_size=setting.compared,
            seed=seed + 1_000,
            env_options=task.options(setting),
            branch_at=(lambda group: int(turns[group])) if branched else None,
            store=store,
            progress=False,
        )


def judged(task: Task, setting: Setting, seed: int, work: Path, kind: Kind) -> Annotations:
    """Comparisons and what the exact judge says of them."""
    groups = comparisons(task, setting, seed, work, branched=kind != "whole")
    if kind != "whole":
        return turn_feedback(groups, task.judge, look="end")
    return [(group, task.judge(group)) for group in groups if all(member.valid for member in group)]


def reward_model(task: Task, setting: Setting, seed: int, work: Path, kind: Kind) -> RewardModel:
    """A Bradley-Terry model of the judge, fitted once to the SFT policy's conversations."""
    model = _fitted(RewardModel, task, setting, seed, work, kind)
    assert isinstance(model, RewardModel)
    return model


def preference_model(task: Task, setting: Setting, seed: int, work: Path) -> PreferenceModel:
    """A model of who beats whom, fitted once to the SFT policy's conversations."""
    model = _fitted(PreferenceModel, task, setting, seed, work, "whole")
    assert isinstance(model, PreferenceModel)
    return model


def _fitted(
    kind_of: type[RewardModel] | type[PreferenceModel], task: Task, setting: Setting, seed: int, work: Path, kind: Kind
) -> RewardModel | PreferenceModel:
    folder = work / f"{kind_of.__name__}-{kind}-seed{seed}"

    def make() -> None:
        annotated = judged(task, setting, seed, work, kind)
        fifth = max(1, len(annotated) // 5)
        starts = {group[0].start for group, _ in annotated[:fifth]}
        rest = [(group, preference) for group, preference in annotated[fifth:] if group[0].start not in starts]
        made = kind_of(supervised(task, setting, seed, work))
        found = fit(
            made,
            rest,
            annotated[:fifth],
            steps=setting.fit_steps,
            batch_size=8,
            options=TrainOptions(lr=setting.fit_lr, seed=seed, **_training(setting)),
            seed=seed,
            progress=False,
        )
        made.save_pretrained(folder / "model")
        write_json(folder / "fit.json", {"before": asdict(found.before), "after": asdict(found.after)})

    _once(folder, make)
    return kind_of.from_pretrained(folder / "model", device=_device(setting))


@dataclass(frozen=True)
class Way:
    """A way to improve on the SFT policy.

    Attributes:
        method: From the setting.
        source: What `online` takes besides the policy, the environment and sizes: who compares, whom it is compared
            with. From (task, setting, policy, sft, seed, work).
        values: Whether a value network is trained beside the policy.
    """

    method: Callable[[Setting], Method]
    source: Callable[[Task, Setting, Policy, Policy, int, Path], dict[str, Any]]
    values: bool = True


def by_judge(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """The exact judge compares the policy's own conversations."""
    return {"preference": task.judge}


def against_mixture(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """The exact judge compares with conversations of the geometric mixture of policy and reference."""
    mixture = MixtureAgent(
        policy,
        sft,
        beta=setting.mixing,
        sampling=setting.sampling,
        max_tokens=setting.max_tokens,
        slots=setting.group_size * setting.groups,
    )
    return {"preference": task.judge, "opponent": mixture}


def by_reward_model(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """A Bradley-Terry model scores whole conversations."""
    return {"preference": reward_model(task, setting, seed, work, "whole")}


def by_preference_model(
    task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path
) -> dict[str, Any]:
    """A model that was fitted to comparisons stands in for the judge."""
    return {"preference": preference_model(task, setting, seed, work)}


def by_environment(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """The environment's own reward."""
    return {}


def by_effect(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """Every turn is paid the good that it did at once, exactly."""
    effect = task.effect
    if effect is None:
        raise ValueError(f"{task.env}: expected a task that knows the effect of a turn")
    return {"turn_reward": lambda group: [effect(member) for member in group]}


def by_turn_model(task: Task, setting: Setting, policy: Policy, sft: Policy, seed: int, work: Path) -> dict[str, Any]:
    """A Bradley-Terry model, fitted to how conversations end after one turn or another, scores every turn by itself."""
    model = reward_model(task, setting, seed, work, "end")
    return {"turn_reward": lambda group: model.turn_scores(list(group))}


def _rlhf(setting: Setting) -> Method:
    return PPO(over="turn", kl=setting.kl, value_weight=1.0, value_warmup=setting.value_warmup)


def _single_turn(setting: Setting, kl: float) -> Method:
    return PPO(
        over="turn",
        reward="turns",
        discount=0.0,
        kl=kl,
        value_weight=1.0,
        value_warmup=setting.value_warmup,
    )


def _mtpo(setting: Setting) -> Method:
    return MTPO(kl=setting.alpha, value_warmup=setting.value_warmup)


def _mtpo_tau(setting: Setting) -> Method:
    return MTPO(kl=setting.alpha_tau, value_warmup=setting.value_warmup)


def _reward(setting: Setting) -> Method:
    return PPO(over="turn", kl=setting.kl_reward, value_weight=1.0, value_warmup=setting.value_warmup)


def _mdpo(setting: Setting) -> Method:
    return MDPO(beta=setting.beta, soft_labels=True, pairs_per_group=None)


WAYS: Mapping[str, Way] = {
    "RLHF-reward": Way(lambda setting: _single_turn(setting, setting.kl_reward), by_effect),
    "RLHF-value": Way(lambda setting: _single_turn(setting, setting.kl), by_turn_model),
    "RLHF-multi": Way(_rlhf, by_reward_model),
    "MTPO": Way(_mtpo, by_judge),
    "MTPO-tau": Way(_mtpo_tau, against_mixture),
    "MTPO-model": Way(_mtpo, by_preference_model),
    "RL": Way(_reward, by_environment),
    "M-DPO": Way(_mdpo, by_judge, values=False),
}
"""The ways by the name in the tables.

"RLHF-reward" maximises the immediate effect of single turns, which it is told exactly; "RLHF-value" a model's score of
single turns, fitted to how conversations end; "RLHF-multi" a model's score of whole conversations; MTPO asks the judge
about the policy's own conversations; "MTPO-model" a fitted preference model; "RL" maximises the environment's reward;
M-DPO is direct preference optimisation on fresh pairs.
"""


def improved(task: Task, setting: Setting, name: str, seed: int, work: Path) -> tuple[Policy, list[dict[str, Any]]]:
    """The policy that one of `WAYS` makes of the SFT policy, and the run's records; made once."""
    folder = work / f"{name}-seed{seed}"
    way = WAYS[name]

    def make() -> None:
        sft = supervised(task, setting, seed, work)
        policy = sft.copy(version=name, trainable=True)
        options = task.options(setting)
        source = online(
            policy,
            task.env,
            collect=CollectOptions(
                groups=setting.groups,
                group_size=setting.group_size,
                env_options=options,
                sampling=setting.sampling,
                max_tokens=setting.max_tokens,
                slots=setting.group_size * setting.groups,
            ),
            seed=seed,
            **way.source(task, setting, policy, sft, seed, work),
        )
        curve = Rivals(
            sft.copy(),
            task.env,
            task.judge,
            starts=setting.starts,
            seed=seed + 2_000,
            env_options=options,
            sampling=setting.sampling,
            max_tokens=setting.max_tokens,
            slots=setting.starts,
        )
        result = train(
            way.method(setting),
            ActorCritic(policy, lr_scale=setting.value_lr) if way.values else policy,
            sft,
            source,
            steps=setting.steps,
            options=TrainOptions(
                lr=setting.lr,
                save_every=max(1, setting.steps // 4),
                keep=1,
                evaluate_every=setting.evaluate_every,
                seed=seed,
                **_training(setting),
            ),
            out=folder / "train",
            resume=True,
            evaluate=curve,
            progress=False,
        )
        policy.save_pretrained(folder / "policy")
        write_json(folder / "history.json", {"history": result.history})

    _once(folder, make)
    history = json.loads((folder / "history.json").read_text("utf-8"))["history"]
    return _load(setting, folder / "policy"), history


def everybody(task: Task, setting: Setting, names: Sequence[str], seed: int, work: Path) -> dict[str, Policy]:
    """The SFT policy and what each of the ways made of it, by name."""
    found = {"SFT": supervised(task, setting, seed, work)}
    return found | {name: improved(task, setting, name, seed, work)[0] for name in names}


def fits(seed: int, work: Path) -> dict[str, Any]:
    """How accurate the models fitted with a seed are on held-out starts, by the name of the model's folder."""
    found = {}
    for path in sorted(work.glob(f"*Model-*-seed{seed}/fit.json")):
        found[path.parent.name.removesuffix(f"-seed{seed}")] = json.loads(path.read_text("utf-8"))["after"]
    return found


def agent(setting: Setting, policy: Policy) -> TransformerAgent:
    """A policy as it acts in the study."""
    return TransformerAgent(policy, sampling=setting.sampling, max_tokens=setting.max_tokens, slots=32)


def with_model(setting: Setting, options: Mapping[str, Any]) -> Setting:
    """The setting of a cell. A given model keeps its own sizes and is moved by small steps."""
    made = replace(setting, **options)
    if made.model is None:
        return made
    return replace(made, sft_lr=2e-5, fit_lr=1e-5, lr=1e-6, max_tokens=4096, max_new_tokens=256)


def _training(setting: Setting) -> dict[str, Any]:
    return {
        "optimizer": functools.partial(torch.optim.AdamW, betas=(0.9, 0.98)),
        "tokens_per_micro_batch": 8192,
        "cpu": setting.model is None,
    }


def _device(setting: Setting) -> str | None:
    return "cpu" if setting.model is None else None


def _load(setting: Setting, folder: Path) -> Policy:
    return Policy.from_pretrained(folder, device=_device(setting))


def _once(folder: Path, make: Callable[[], None]) -> None:
    """Runs `make` unless it has finished before; processes that ask meanwhile wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            make()
            (folder / "done").touch()
