"""Suite `stochastic_bias`: with random replies M-DPO is biased and MTPO is not.

First without sampling: the policies that the library's losses reach in expectation on small two-turn games, against the
exact optimum that each method claims. Then with samples, through the training loop: a small transformer plays the
gamble, and its exact probabilities are measured by the same oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyturn.agents.collecting.options import CollectOptions
from polyturn.algorithms.exact.tabular_games import exploitability, regularised_nash, uniform_policy
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.suite import Cell, Suite
from polyturn.benchmarks.stochastic_bias.games import (
    GambleEnv,
    PaidGame,
    Plays,
    bradley_terry,
    by_history,
    exact_policy,
    gamble,
    noisy_game,
    reward_optimum,
)
from polyturn.benchmarks.stochastic_bias.report import report
from polyturn.benchmarks.stochastic_bias.variants import (
    BETA,
    NOISE_LEVELS,
    SPREADS,
    TRAINED,
    VARIANTS,
    method_of,
    regret_figures,
)
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group

if TYPE_CHECKING:
    from polyturn.agents.transformer.policy import Policy

DEMONSTRATED = {"start": 0.5, "safe": 0.2, "lucky": 0.8, "unlucky": 0.8}
"""Probability of answer 1 in the demonstrations, which favour the worse end of every room.

Uniform demonstrations teach a small transformer that rooms do not matter, which takes very long to unlearn.
"""
INVALID_REWARD = -4.0
"""Reward of an episode without a valid answer: lower than that of every ending."""


def _exact(games: Sequence[PaidGame], *, beta: float, steps: int, lr: float) -> dict[str, Any]:
    """The policies that every variant reaches in expectation, measured by the variant's own claim."""
    plays, result = Plays(games), {}
    for name, variant in VARIANTS.items():
        if variant.claim == "reward" and games[0].reward is None:
            continue
        method = method_of(name, beta=beta, sampled=False)
        policies, gradient = plays.descend(method, pairs=variant.pairs, ties=variant.ties, steps=steps, lr=lr)
        numbers = [
            regret_figures(variant.claim, paid, policy, uniform_policy(paid.game), beta)
            for paid, policy in zip(games, policies, strict=True)
        ]
        regret, left, divergence = np.array(numbers).T.tolist()
        result[name] = {
            "regret": regret,
            "left": left,
            "kl": divergence,
            "gradient": gradient,
            "second_answer": [float(policy[0][0, 1]) for policy in policies],
        }
    return result


def _rewarded(paid: PaidGame) -> Callable[[Group], Preference]:
    """Bradley-Terry preferences on the rewards of endings; the rewards are also the scores."""
    assert paid.reward is not None
    reward = paid.reward

    def annotate(group: Group) -> Preference:
        ends = [member.info.get("final_state") for member in group]
        scores = np.array([INVALID_REWARD if end is None else reward[int(end)] for end in ends])
        return Preference(bradley_terry(scores), "oracle", scores)

    return annotate


def _reference(paid: PaidGame, *, sft_steps: int, seed: int) -> Policy:
    """A small transformer that imitates the demonstrations."""
    from polyturn.agents.agent import Episode, ScriptedAgent
    from polyturn.agents.collecting.collect import collect
    from polyturn.agents.transformer.tiny import tiny_policy
    from polyturn.algorithms.protocols.warmup import imitation_options, warm_start

    def demonstrate(episode: Episode) -> str:
        return str(int(episode.rng.random() < DEMONSTRATED[episode.observation]))

    agent = ScriptedAgent(demonstrate)
    groups = collect(agent, lambda: GambleEnv(games=paid.game), groups=800, seed=seed, progress=False)
    demonstrations = [group[0] for group in groups]
    spoken = [text for each in demonstrations[:50] for turn in each.turns for text in (turn.observation, turn.action)]
    # With the template's words, which the tokenizer would otherwise split into bytes.
    texts = [*spoken, *["user\n", "assistant\n"] * 50]
    # Large initial weights: with small ones the rooms look alike, and the first updates remove the difference.
    policy = tiny_policy(texts, seed=seed, vocab_size=320, hidden=48, layers=1, heads=4, context=64, init=0.4)
    options = imitation_options(sft_steps, lr=4e-3, cpu=True)
    warm_start(policy, demonstrations, steps=sft_steps, batch_size=64, options=options, seed=seed, progress=False)
    return policy


def _learned(cell: Cell) -> dict[str, Any]:
    """One transformer trained by every variant, from the same reference, on equally many episodes."""
    from polyturn.agents.transformer.generation import Sampling
    from polyturn.algorithms import ActorCritic, online, train

    # The game, the reference, and both optima for this reference.
    options, beta = cell.options, BETA["gamble"]
    paid = gamble(options["spread"])
    remembered = PaidGame(by_history(paid.game), paid.reward)
    start = _reference(paid, sft_steps=options["sft_steps"], seed=cell.seed)
    anchor, mass = exact_policy(start, paid)
    result: dict[str, Any] = {"reference_gambles": float(anchor[0][0, 1]), "reference_mass": mass}
    best = reward_optimum(remembered.game, paid.reward, anchor, beta=beta)[0]  # type: ignore[arg-type]
    nash = regularised_nash(remembered.game, anchor, alpha=beta / 4.0)
    result["optimum_gambles"] = {"reward": float(best[0][0, 1]), "preference": float(nash[0][0, 1])}
    # Every variant from the same reference, with the same number of fresh episodes.
    for name in TRAINED:
        policy = start.copy()
        policy.model.requires_grad_(True)
        method = method_of(name, beta=beta, sampled=True)
        critic = name in ("multi-turn RLHF", "MTPO")
        trained = ActorCritic(policy) if critic else policy
        source = online(
            policy,
            lambda: GambleEnv(games=paid.game),
            preference=_rewarded(paid),
            collect=CollectOptions(
                groups=options["groups"],
                group_size=options["group_size"],
                sampling=Sampling(max_new_tokens=3),
                max_tokens=64,
            ),
            seed=cell.seed,
        )
        curve: list[dict[str, float]] = []

        def evaluate(
            _: Any, done: int, *, policy: Policy = policy, curve: list[dict[str, float]] = curve
        ) -> Mapping[str, float]:
            answers, mass = exact_policy(policy, paid)
            record = {"step": float(done), "gambles": float(answers[0][0, 1]), "mass": mass}
            for claim in ("reward", "preference"):
                regret, left, divergence = regret_figures(claim, remembered, answers, anchor, beta)
                record |= {f"{claim}_regret": regret, f"{claim}_left": left, f"{claim}_kl": divergence}
            record["exploitability"] = exploitability(remembered.game, answers)
            curve.append(record)
            return record

        train(
            method,
            trained,
            start.copy(),
            source,
            steps=options["steps"],
            options=TrainOptions(
                lr=options["lr"], warmup=5, schedule="linear", evaluate_every=options["every"], cpu=True, seed=cell.seed
            ),
            evaluate=evaluate,
            progress=False,
        )
        result[name] = curve
    return result


def _cells(quick: bool, seeds: int) -> list[Cell]:
    exact = {"steps": 200 if quick else 1000, "lr": 0.1}
    games = 2 if quick else 12
    noise_levels = (0.0, 0.4) if quick else NOISE_LEVELS
    cells = [Cell("gamble", 0, exact)]
    cells += [Cell(f"noise {noise}", 0, {**exact, "games": games, "noise": noise}) for noise in noise_levels]
    if not quick:
        cells += [
            Cell(f"noise .4 {w}", 0, {**exact, "games": games, "noise": 0.4, "where": w}) for w in ("first", "last")
        ]
    for noise in (0.4,) if quick else (0.0, 0.4):
        cells.append(Cell(f"no order {noise}", 0, {**exact, "games": games, "noise": noise, "transitive": False}))
    learning = {
        "sft_steps": 20 if quick else 100,
        "steps": 8 if quick else 60,
        "every": 8 if quick else 10,
        "lr": 3e-3,
        "groups": 4 if quick else 16,
        "group_size": 4 if quick else 8,
    }
    for seed in range(seeds):
        cells += [Cell(f"transformer {spread}", seed, {**learning, "spread": spread}) for spread in (0.0, 1.0)]
    return cells


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    options = dict(cell.options)
    if "spread" in options:
        return _learned(cell)
    steps, lr = options.pop("steps"), options.pop("lr")
    if cell.name == "gamble":
        return _exact([gamble(spread) for spread in SPREADS], beta=BETA["gamble"], steps=steps, lr=lr)
    games = [noisy_game(seed, **options) for seed in range(options.pop("games"))]
    return _exact(games, beta=BETA["random"], steps=steps, lr=lr)


SUITE = Suite(
    name="stochastic_bias",
    summary="with random replies: the bias of M-DPO against MTPO and multi-turn RLHF, exact and sampled",
    cells=_cells,
    run=_run,
    report=report,
    seeds=3,
)
