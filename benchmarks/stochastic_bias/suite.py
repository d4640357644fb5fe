"""Suite `stochastic_bias`: where replies are left to chance M-DPO is biased and MTPO is not.

First without sampling: where the losses that users train with end in expectation on small two-turn games, beside the
exact optimum that each method claims. Then with samples, through the training loop: a small transformer plays the
hand-made gamble, and its probabilities are read off and judged by the same oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyturn.algorithms.exact.tabular_games import exploitability, regularised_nash, uniform_policy
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import compare, line, panels, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.stochastic_bias.games import (
    GambleEnv,
    PaidGame,
    Plays,
    blurred,
    bradley_terry,
    by_history,
    gamble,
    preference_regret,
    read_off,
    response_regret,
    reward_optimum,
    reward_regret,
)
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group

if TYPE_CHECKING:
    from polyturn.agents.transformer.policy import Policy
    from polyturn.algorithms.methods.base import Method

Claim = Literal["reward", "response", "preference"]

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6)
"""Chance that a reply of a random game is replaced by a uniformly random one."""
SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the gamble."""
BETA = {"random": 1.0, "gamble": 0.25}
"""Weight of the KL in units of reward; in units of preference it is a quarter of that, the slope of sigmoid at 0."""
LEANS = {"start": 0.5, "safe": 0.2, "lucky": 0.8, "unlucky": 0.8}
"""Chance of answer 1 in the demonstrations, which lean to the worse end of every room.

Uniform demonstrations teach a small transformer that rooms do not matter, which it takes very long to unlearn.
"""
INVALID = -4.0
"""Reward of an episode without a valid answer: less than any ending's."""


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        claim: What its optimum is: "reward", the largest E[r] - beta KL; "response", the largest
            P(it beats the reference) - alpha KL; "preference", the equilibrium regularised with alpha.
        pairs: As in `Plays.descend`.
        ties: As there.
    """

    claim: Claim
    pairs: Literal["own", "reference"] = "own"
    ties: bool = True


WAYS: Mapping[str, Way] = {
    "M-DPO, reference's pairs": Way("reward", "reference"),
    "M-DPO": Way("reward"),
    "M-DPO without ties": Way("reward", ties=False),
    "multi-turn RLHF": Way("reward"),
    "M-IPO, reference's pairs": Way("response", "reference"),
    "M-IPO": Way("preference"),
    "MTPO": Way("preference"),
}
TRAINED = ("M-DPO", "multi-turn RLHF", "M-IPO", "MTPO")
"""Those that the transformer learns with."""


def method_of(name: str, *, beta: float, sampled: bool) -> Method:
    """The loss of a way to train; sampled ones have a value network that warms up, exact ones need none."""
    from polyturn.algorithms import GPO, IPO, MTPO, PPO

    alpha = beta / 4.0
    exact: dict[str, Any] = {"lam": 1.0, "whiten": False, "value_weight": 0.0}
    options = {"value_warmup": 5, "value_weight": 1.0} if sampled else exact
    if name == "MTPO":
        return MTPO(kl=alpha, **options)
    if name == "multi-turn RLHF":
        return PPO(kl=beta, over="turn", **options)
    if name.startswith("M-IPO"):
        return IPO(tau=alpha)
    return GPO(beta=beta, soft_labels=True, pairs_per_group=None)


def judged(claim: Claim, paid: PaidGame, policy: Sequence[Any], reference: Sequence[Any], beta: float) -> list[float]:
    """Regret, the share of the reference's regret that this is, and KL(optimum || policy), by the claim."""

    def regret(policy: Sequence[Any]) -> tuple[float, float]:
        if claim == "reward":
            return reward_regret(paid, policy, reference, beta=beta)
        if claim == "response":
            return response_regret(paid, policy, reference, alpha=beta / 4.0)
        return preference_regret(paid, policy, reference, alpha=beta / 4.0)

    found, divergence = regret(policy)
    return [found, found / regret(reference)[0], divergence]


def _exact(games: Sequence[PaidGame], *, beta: float, steps: int, lr: float) -> dict[str, Any]:
    plays, result = Plays(games), {}
    for name, way in WAYS.items():
        if way.claim == "reward" and games[0].reward is None:
            continue
        method = method_of(name, beta=beta, sampled=False)
        policies, gradient = plays.descend(method, pairs=way.pairs, ties=way.ties, steps=steps, lr=lr)
        numbers = [
            judged(way.claim, paid, policy, uniform_policy(paid.game), beta)
            for paid, policy in zip(games, policies, strict=True)
        ]
        regret, left, divergence = np.array(numbers).T.tolist()
        result[name] = {
            "regret": regret, "left": left, "kl": divergence, "gradient": gradient,
            "second_answer": [float(policy[0][0, 1]) for policy in policies],
        }  # fmt: skip
    return result


def _rewarded(paid: PaidGame) -> Callable[[Group], Preference]:
    """Bradley-Terry on the rewards of endings, which are the scores too."""
    assert paid.reward is not None
    reward = paid.reward

    def annotate(group: Group) -> Preference:
        ends = [member.info.get("final_state") for member in group]
        scores = np.array([INVALID if end is None else reward[int(end)] for end in ends])
        return Preference(bradley_terry(scores), "oracle", scores)

    return annotate


def _reference(paid: PaidGame, *, sft_steps: int, seed: int) -> Policy:
    """A small transformer that imitates demonstrations."""
    from polyturn.agents.agent import Episode, ScriptedAgent
    from polyturn.agents.collecting.collect import collect
    from polyturn.agents.transformer.tiny import tiny_policy
    from polyturn.algorithms.protocols.warmup import warm_start
    from polyturn.algorithms.training.options import TrainOptions

    def demonstrate(episode: Episode) -> str:
        return str(int(episode.rng.random() < LEANS[episode.observation]))

    agent = ScriptedAgent(demonstrate)
    groups = collect(agent, lambda: GambleEnv(games=paid.game), groups=800, seed=seed, progress=False)
    demonstrations = [group[0] for group in groups]
    spoken = [text for each in demonstrations[:50] for turn in each.turns for text in (turn.observation, turn.action)]
    # The template's own words too, or the tokenizer would spell them byte by byte.
    texts = [*spoken, *["user\n", "assistant\n"] * 50]
    # Wide random weights: with narrow ones rooms look alike at first, and the first updates wipe out the difference.
    policy = tiny_policy(texts, seed=seed, vocab_size=320, hidden=48, layers=1, heads=4, context=64, init=0.4)
    warm_start(
        policy, demonstrations, steps=sft_steps, batch_size=64, seed=seed, progress=False,
        options=TrainOptions(lr=4e-3, schedule="cosine", warmup=min(40, max(1, sft_steps // 10)), cpu=True),
    )  # fmt: skip
    return policy


def _learned(cell: Cell) -> dict[str, Any]:
    """One transformer by every trained way, from the same reference, on as many episodes."""
    from polyturn.agents import CollectOptions, Sampling
    from polyturn.algorithms import ActorCritic, TrainOptions, online, train

    options, beta = cell.options, BETA["gamble"]
    paid = gamble(options["spread"])
    remembered = PaidGame(by_history(paid.game), paid.reward)
    start = _reference(paid, sft_steps=options["sft_steps"], seed=cell.seed)
    anchor, mass = read_off(start, paid)
    result: dict[str, Any] = {"reference_gambles": float(anchor[0][0, 1]), "reference_mass": mass}
    best = reward_optimum(remembered.game, paid.reward, anchor, beta=beta)[0]  # type: ignore[arg-type]
    nash = regularised_nash(remembered.game, anchor, alpha=beta / 4.0)
    result["optimum_gambles"] = {"reward": float(best[0][0, 1]), "preference": float(nash[0][0, 1])}
    for name in TRAINED:
        policy = start.copy()
        policy.model.requires_grad_(True)
        method = method_of(name, beta=beta, sampled=True)
        critic = name in ("multi-turn RLHF", "MTPO")
        trained = ActorCritic(policy) if critic else policy
        source = online(
            policy, lambda: GambleEnv(games=paid.game), preference=_rewarded(paid), seed=cell.seed,
            collect=CollectOptions(
                groups=options["groups"], group_size=options["group_size"], sampling=Sampling(max_new_tokens=3),
                max_tokens=64,
            ),
        )  # fmt: skip
        curve: list[dict[str, float]] = []

        def evaluate(
            _: Any, done: int, *, policy: Policy = policy, curve: list[dict[str, float]] = curve
        ) -> Mapping[str, float]:
            answers, mass = read_off(policy, paid)
            record = {"step": float(done), "gambles": float(answers[0][0, 1]), "mass": mass}
            for claim in ("reward", "preference"):
                regret, left, divergence = judged(claim, remembered, answers, anchor, beta)
                record |= {f"{claim}_regret": regret, f"{claim}_left": left, f"{claim}_kl": divergence}
            record["exploitability"] = exploitability(remembered.game, answers)
            curve.append(record)
            return record

        train(
            method, trained, start.copy(), source, steps=options["steps"], evaluate=evaluate, progress=False,
            options=TrainOptions(
                lr=options["lr"], warmup=5, schedule="linear", evaluate_every=options["every"], seed=cell.seed,
                cpu=True,
            ),
        )  # fmt: skip
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
        "sft_steps": 20 if quick else 100, "steps": 8 if quick else 60, "every": 8 if quick else 10, "lr": 3e-3,
        "groups": 4 if quick else 16, "group_size": 4 if quick else 8,
    }  # fmt: skip
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
    games = [blurred(seed, **options) for seed in range(options.pop("games"))]
    return _exact(games, beta=BETA["random"], steps=steps, lr=lr)


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    exact = {o.cell.name: o.result for o in outcomes if "spread" not in o.cell.options}
    learned = {spread: [o.result for o in outcomes if o.cell.options.get("spread") == spread] for spread in (0.0, 1.0)}
    options = next(o.cell.options for o in outcomes if "spread" in o.cell.options)
    noise_levels = [
        float(name.removeprefix("noise ")) for name in exact if name.startswith("noise ") and len(name.split()) == 2
    ]
    games = len(exact["noise 0.0"]["MTPO"]["left"])
    text = [
        *_setting(games, len(learned[1.0]), options),
        *_exact_tables(exact, noise_levels),
        *_exact_words(exact, noise_levels),
    ]
    text += [*_learned_table(learned), *_learned_words(learned)]
    text.append("\n![bias over noise, the gamble, the transformer](bias.svg)\n")
    _draw(exact, learned, noise_levels, out)
    return "\n".join(text)


def _setting(games: int, seeds: int, options: Mapping[str, Any]) -> list[str]:
    return [
        "# stochastic_bias: what noise in the replies does to M-DPO and to MTPO\n",
        "Claim: M-DPO's derivation drops a term that is zero only where replies are certain, so noise biases it; "
        "MTPO's gradient assumes nothing about the replies.\n",
        "Every way to train is measured against the optimum that it itself claims, and in shares of the regret that "
        "the reference has in that objective (`left`: 0 at the optimum, 1 no better than the reference):\n",
        "- M-DPO (soft labels, every pair of a group, ties as even) and multi-turn RLHF (policy gradient on the "
        "reward): the largest E[r] - beta KL(pi || reference). Labels are Bradley-Terry in r, on the endings reached.",
        "- MTPO and M-IPO (the squared loss of IPO on sums over turns) on the policy's own pairs: the equilibrium of "
        "the preference regularised with alpha = beta / 4. Regret there is what the best KL-paying response gains.",
        "- M-IPO on the reference's pairs: the largest P(it beats the reference) - alpha KL.\n",
        "`M-DPO` alone stands for fresh pairs of the policy's own. `without ties` leaves out pairs with the same "
        "ending, as the class `MDPO` does.\n",
        f"Exact part: expected losses on {games} random two-turn games (3 answers, 3 states, 4 endings, rewards of "
        f"standard deviation 3, beta {BETA['random']:g}) and on one made by hand (beta {BETA['gamble']:g}); uniform "
        "reference; no sampling. A reply is uniformly random with probability `noise`, else certain.\n",
        f"Transformer part: {seeds} seeds, {options['steps']} updates of {options['groups']} x "
        f"{options['group_size']} fresh episodes for every way alike, learning rate {options['lr']} falling to 0. "
        "Intervals are 95% Student, over games in the exact part and over seeds in the other.\n",
    ]


def _left(found: Mapping[str, Any], name: str) -> list[float]:
    return _plain(found[name]["left"])


def _plain(values: Sequence[float]) -> list[float]:
    """Without the rounding errors, of either sign, that stand for zero."""
    return [round(value, 7) + 0.0 for value in values]


def _exact_tables(exact: Mapping[str, Any], noise_levels: Sequence[float]) -> list[str]:
    columns = [f"noise {noise}" for noise in noise_levels] + [name for name in exact if name.startswith("noise .4")]
    rows = [[name, *(plus_minus(_left(exact[column], name), 4) for column in columns)] for name in WAYS]
    divergence = [[name, *(plus_minus(_plain(exact[column][name]["kl"]), 4) for column in columns)] for name in WAYS]
    gradients = [run["gradient"] for found in exact.values() for run in found.values()]
    gambles = exact["gamble"]
    cyclic = [name for name in exact if name.startswith("no order")]
    return [
        "\n## Exact: share of the reference's regret that is left, random games\n",
        table(["way", *columns], rows),
        "\n`noise .4 first` and `last`: only that reply is left to chance.\n",
        "\n## Exact: KL(optimum || policy), nats\n",
        table(["way", *columns], divergence),
        "\n## Exact: games whose preference no reward explains\n",
        table(
            ["way", *(f"noise {name.split()[-1]}" for name in cyclic)],
            [[way, *(plus_minus(_left(exact[name], way), 4) for name in cyclic)] for way in exact[cyclic[0]]],
        ),
        "\n## Exact: the gamble\n",
        "The gamble is worth 1/2 on average whatever its spread, the safe answer 0; but at spread 1 it wins 6.5 with "
        "chance 1/5 and else loses 1, so it beats the safe answer in only 41.5% of comparisons. Chance to gamble, "
        "and in brackets the share of the reference's regret that is left:\n",
        table(
            ["way", *(f"spread {spread:g}" for spread in SPREADS)],
            [
                [
                    name,
                    *(
                        f"{p:.3f} ({left:.3f})"
                        for p, left in zip(run["second_answer"], _plain(run["left"]), strict=True)
                    ),
                ]
                for name, run in gambles.items()
            ],
        ),
        f"\nThe largest entry of any gradient where the descents were stopped: {max(gradients):.1e}. What is left at "
        "noise 0 is what Adam had not yet descended: with own pairs the loss is flat where the policy hardly goes.\n",
    ]


def _exact_words(exact: Mapping[str, Any], noise_levels: Sequence[float]) -> list[str]:
    text = ["\n## What the exact figures say\n"]
    for noise in noise_levels:
        found = exact[f"noise {noise}"]
        for a, b in (("M-DPO", "multi-turn RLHF"), ("M-DPO, reference's pairs", "multi-turn RLHF"), ("M-IPO", "MTPO")):
            text.append(f"- Noise {noise}, share left: {compare(a, _left(found, a), b, _left(found, b), 4)}")
    worst = {name: max(max(run[name]["left"]) for run in exact.values() if name in run) for name in WAYS}
    listed = ", ".join(f"{name} {share:.4f}" for name, share in worst.items())
    return [
        *text,
        f"- Largest share left in any game at any noise: {listed}.",
        "- Why M-IPO on the policy's own pairs goes where MTPO goes: the gradient of (h - (2p - 1) / (2 alpha))^2 over "
        "two independent plays of the policy itself is, up to a factor, that of P - alpha KL, because the score of "
        "an answer has mean zero whatever was replied before. Its target is linear in p, so noise averages out. With "
        "other pairs than the policy's own, or with the logistic link of M-DPO, it does not.",
        "- So noise does not bias every loss on margins: it biases those that are not, in expectation, a policy "
        "gradient.",
    ]


def _last(runs: Sequence[Mapping[str, Any]], name: str, what: str) -> list[float]:
    return [float(run[name][-1][what]) for run in runs]


def _learned_table(learned: Mapping[float, Sequence[Mapping[str, Any]]]) -> list[str]:
    text = []
    for spread, runs in learned.items():
        optimum = {claim: [run["optimum_gambles"][claim] for run in runs] for claim in ("reward", "preference")}
        text += [
            f"\n## Transformer: the gamble at spread {spread:g}"
            + (", where noise changes nothing (control)\n" if spread == 0 else "\n"),
            table(
                ["way", "claims", "left: reward", "left: preference", "KL", "gambles", "optimum", "exploitability"],
                [
                    [
                        name,
                        WAYS[name].claim,
                        plus_minus(_last(runs, name, "reward_left")),
                        plus_minus(_last(runs, name, "preference_left")),
                        plus_minus(_last(runs, name, f"{WAYS[name].claim}_kl")),
                        plus_minus(_last(runs, name, "gambles")),
                        plus_minus(optimum[WAYS[name].claim]),
                        plus_minus(_last(runs, name, "exploitability")),
                    ]
                    for name in TRAINED
                ],
            ),
        ]
    masses = [each["mass"] for runs in learned.values() for run in runs for name in TRAINED for each in run[name]]
    return [
        *text,
        "\n`left: reward` and `left: preference` judge every way by both objectives; the claim says which is its own; "
        "KL (of its optimum from it) and optimum (chance to gamble) go by its claim. "
        "Optima are those for the transformer's own reference, over policies that remember both replies and answers; "
        "probabilities are read off the model exactly. The smallest chance of a valid answer in any state at any "
        f"evaluation was {min(masses):.3f}; shares are among valid answers.\n",
    ]


def _learned_words(learned: Mapping[float, Sequence[Mapping[str, Any]]]) -> list[str]:
    text = ["\n## What the transformer's figures say\n"]
    own = {
        spread: {name: _last(runs, name, f"{WAYS[name].claim}_left") for name in TRAINED}
        for spread, runs in learned.items()
    }
    for spread, left in own.items():
        for a, b in (("M-DPO", "multi-turn RLHF"), ("M-DPO", "MTPO"), ("M-IPO", "MTPO")):
            text.append(f"- Spread {spread:g}, share left: {compare(a, left[a], b, left[b])}")
    text += [
        f"- {name}, share left: {compare('spread 1', own[1.0][name], 'spread 0', own[0.0][name])}" for name in TRAINED
    ]
    for a in ("M-DPO", "multi-turn RLHF"):
        sentence = compare(a, _last(learned[1.0], a, "preference_left"), "MTPO", own[1.0]["MTPO"])
        text.append(f"- Spread 1, share left of the preference's regret, which {a} does not claim: {sentence}")
    for name in TRAINED:
        claim = WAYS[name].claim
        best = [run["optimum_gambles"][claim] for run in learned[1.0]]
        sentence = compare(name, _last(learned[1.0], name, "gambles"), "the optimum it claims", best)
        text.append(f"- Spread 1, chance to gamble: {sentence}")
    return text


def _draw(
    exact: Mapping[str, Any],
    learned: Mapping[float, Sequence[Mapping[str, Any]]],
    noise_levels: Sequence[float],
    out: Path,
) -> None:
    colours = {name: f"C{k}" for k, name in enumerate(WAYS)}
    with panels(16, 4.2, 3) as (canvas, axes):
        for name in WAYS:
            runs = np.array([_left(exact[f"noise {noise}"], name) for noise in noise_levels]).T
            dashed = "--" if name == "MTPO" else "-"
            style = {"color": colours[name], "linestyle": dashed, "marker": "o", "markersize": 3}
            line(axes[0], noise_levels, runs, label=name, **style)
        axes[0].set(title="exact, random games", xlabel="noise of a reply", ylabel="share of the regret left")
        axes[0].legend(frameon=False, fontsize=7)
        for name, run in exact["gamble"].items():
            dashed = "--" if name == "MTPO" else "-"
            axes[1].plot(
                SPREADS, run["second_answer"], dashed, color=colours[name], label=name, marker="o", markersize=3
            )
        axes[1].set(title="exact, the gamble", xlabel="spread of the gamble", ylabel="chance to gamble", ylim=(0, 1))
        axes[1].legend(frameon=False, fontsize=7)
        for name in TRAINED:
            curves = np.array([[each["gambles"] for each in run[name]] for run in learned[1.0]])
            steps = [each["step"] for each in learned[1.0][0][name]]
            line(axes[2], steps, curves, label=name, color=colours[name])
            axes[2].axhline(exact["gamble"][name]["second_answer"][-1], color=colours[name], linestyle=":", linewidth=1)
        axes[2].set(
            title="transformer, the gamble at spread 1; dotted: exact", xlabel="update", ylabel="chance to gamble",
            ylim=(0, 1),
        )  # fmt: skip
        axes[2].legend(frameon=False, fontsize=7)
        save(canvas, out / "bias")


SUITE = Suite(
    name="stochastic_bias",
    summary="where replies are left to chance: M-DPO's bias against MTPO and multi-turn RLHF, exact and sampled",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=3,
)
