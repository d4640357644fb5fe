"""Suite `unpaired`: learning from single answers that were accepted, rejected or scored, without pairs.

PMPO (arXiv 2410.04166) over its weight of accepted answers, alpha, and its weight of the KL, beta; DRO-V
(arXiv 2405.19107) over its temperature, compared with KTO, RWR and imitation of the better half. First on tables of
logits, where the optimum is known in closed form; then on a small transformer and a token bandit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.algorithms.exact.closed_forms import dro_optimum, kl, pmpo_optimum
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.methods.imitation import RWR, SFT
from polyturn.algorithms.methods.unpaired import DROV, MKTO, PMPO, standardised
from polyturn.algorithms.networks.value import ActorCritic
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training.data_source import minibatches
from polyturn.algorithms.training.loop import train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.running.plots import BLUE, COLOURS, NOT_NEGATIVE, RUNS, SHARE, picture
from polyturn.benchmarks.running.reporting import by_name, compare, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.benchmarks.token_policies import (
    Array,
    Evaluator,
    Task,
    at_the_end,
    evaluations,
    one_thread,
    over_training,
    rewards,
    start_policy,
    trainable_copy,
    win_rate,
)
from polyturn.envs.games.bandits import data_policy, reward_table
from polyturn.envs.preference import by_return
from polyturn.envs.trajectory import Group

ALPHAS = (1.0, 0.5, 0.0)
BETAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
TRANSFORMER_BETAS = (0.0, 0.5, 1.0, 2.0)
TAUS = (0.1, 1.0, 5.0)
ARMS, TOKENS, LENGTH = 20, 10, 5
SCALAR: Mapping[str, Method] = {
    "DRO-V .1": DROV(tau=0.1),
    "DRO-V 1": DROV(tau=1.0),
    "DRO-V 5": DROV(tau=5.0),
    "DRO-V 1, shared": DROV(tau=1.0),
    "KTO": MKTO(beta=0.1),
    "RWR": RWR(beta=1.0),
    "SFT on the better half": SFT(best=None),
}
"""Methods on the same scored answers. Shared: the value network reads the policy's hidden states."""


# Tables of logits.


def accepted_and_rejected(
    policy: Array, reward: Array, *, groups: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Frequencies `[A]` of the best two and of the other two answers in groups of four samples.

    Equal rewards are put in a random order.
    """
    drawn = rng.choice(len(policy), size=(groups, 4), p=policy)
    order = np.argsort(-reward[drawn] + 1e-9 * rng.random(drawn.shape), axis=1)
    ranked = np.take_along_axis(drawn, order, axis=1)
    accepted, rejected = (np.bincount(part.ravel(), minlength=len(policy)) for part in (ranked[:, :2], ranked[:, 2:]))
    return accepted / accepted.sum(), rejected / rejected.sum()


def fit_pmpo(
    accepted: Array, rejected: Array, reference: Array, *, alpha: float, beta: float, steps: int, lr: float
) -> Array:
    """The policy `[A]` that minimises `losses.pmpo` on a table of logits: full-batch Adam from the reference, its rate
    falling to 0."""
    weights = torch.tensor(np.stack([accepted, rejected]))
    prior = torch.tensor(reference)
    logits = prior.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr)
    none = torch.zeros((), dtype=torch.float64)
    sides = torch.tensor([[True], [False]])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        logps = torch.log_softmax(logits, dim=0)
        divergence = (prior * (prior.log() - logps)).sum()
        # Each side is weighted by its frequencies, which sum to 1; the KL is added once.
        loss = (weights * losses.pmpo(logps[None], sides, none, alpha=alpha, beta=beta)).sum() + beta * divergence
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    return np.asarray(torch.softmax(logits.detach(), dim=0).numpy(), np.float64)


def pmpo_table(*, groups: int, steps: int, lr: float, rounds: int, seed: int) -> dict[str, Any]:
    """PMPO on a bandit for every alpha and beta: the first round against the closed form, and several rounds.

    Returns:
        By "alpha beta": the expected reward before and after each round ("rewards"); after the first round the largest
        distance of a probability to the closed form ("distance", None where there is no optimum), the smallest
        coefficient of log pi ("smallest") and the sum of the coefficients ("sum").
    """
    reference = data_policy(ARMS)
    reward = reward_table("R1", contexts=1, arms=ARMS)[0]
    found: dict[str, Any] = {}
    first = accepted_and_rejected(reference, reward, groups=groups, rng=np.random.default_rng(seed))
    for alpha in ALPHAS:
        for beta in BETAS:
            rng = np.random.default_rng([seed, int(100 * alpha), int(100 * beta)])
            # The first round, against the closed form where there is one.
            policy = fit_pmpo(*first, reference, alpha=alpha, beta=beta, steps=steps, lr=lr)
            coefficients = alpha * first[0] - (1.0 - alpha) * first[1] + beta * reference
            distance = None
            if np.all(coefficients >= 0) and coefficients.sum() > 0:
                distance = float(np.abs(policy - pmpo_optimum(*first, reference, alpha=alpha, beta=beta)).max())
            policy = _samplable(policy)
            earned = [float(reference @ reward), float(policy @ reward)]
            # Further rounds: fresh samples of the last policy, which is also the reference.
            for _ in range(rounds - 1):
                sides = accepted_and_rejected(policy, reward, groups=groups, rng=rng)
                policy = _samplable(fit_pmpo(*sides, policy, alpha=alpha, beta=beta, steps=steps, lr=lr))
                earned.append(float(policy @ reward))
            found[f"{alpha} {beta}"] = {
                "rewards": np.round(earned, 5).tolist(),
                "distance": distance,
                "smallest": float(coefficients.min()),
                "sum": float(coefficients.sum()),
            }
    return found


def _samplable(policy: Array) -> Array:
    """Keeps a little probability on every arm, because the next round takes the logarithm of this reference."""
    floored = np.maximum(policy, 1e-12)
    return np.asarray(floored / floored.sum(), np.float64)


def dro_table(*, steps: int, lr: float, seed: int) -> dict[str, Any]:
    """DRO's policy and value by descent against their closed form, and KTO and imitation, on a random bandit.

    Rewards are standard normal; the data is the exact distribution of a random behaviour policy, which is not the
    reference.

    Returns:
        By "DRO tau": the largest distance to pi* and |V - V*|. By every method: expected "reward" and "kl" to the
        reference.
    """
    rng = np.random.default_rng([seed, 5])
    reference, behaviour = rng.dirichlet(np.ones(ARMS)), rng.dirichlet(np.full(ARMS, 2.0))
    reward = rng.standard_normal(ARMS)
    prior, weight, r = (torch.tensor(each) for each in (reference, behaviour, reward))
    good = r > torch.tensor(float(behaviour @ reward))

    # The losses in expectation over the data. Parameters: a log-ratio for each arm, and DRO's value.
    def logratio(parameters: Tensor) -> Tensor:
        return torch.log_softmax(prior.log() + parameters[:ARMS], dim=0) - prior.log()

    def dro(parameters: Tensor, tau: float) -> Tensor:
        policy_loss, value_loss = losses.dro(r, parameters[ARMS], logratio(parameters), tau=tau)
        return (weight * (policy_loss + value_loss)).sum()

    def kto(parameters: Tensor) -> Tensor:
        g = logratio(parameters)
        z0 = ((g + prior.log()).exp() * g).sum().clamp(min=0.0)
        return (weight * losses.kto(g, good, beta=0.1, z0=z0)).sum()

    def imitation(parameters: Tensor) -> Tensor:
        return (weight * good * losses.nll(logratio(parameters) + prior.log())).sum()

    def descend(loss: Callable[[Tensor], Tensor], size: int) -> tuple[Array, Array]:
        """Adam with a falling rate from the reference: the policy and the parameters at the end."""
        parameters = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([parameters], lr=lr)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
            optimizer.zero_grad()
            torch.autograd.backward([loss(parameters)])
            optimizer.step()
        end = np.asarray(parameters.detach().numpy(), np.float64)
        policy = np.asarray(torch.softmax(prior.log() + torch.tensor(end[:ARMS]), dim=0).numpy(), np.float64)
        return policy, end

    def measured(policy: Array) -> dict[str, float]:
        return {"reward": float(policy @ reward), "kl": float(kl(policy, reference))}

    found: dict[str, Any] = {}
    for tau in TAUS:
        policy, parameters = descend(lambda parameters, tau=tau: dro(parameters, tau), ARMS + 1)  # type: ignore[misc]
        best, value = dro_optimum(reference, reward, tau=tau)
        found[f"DRO {tau}"] = {
            **measured(policy),
            "distance": float(np.abs(policy - best).max()),
            "value error": abs(float(parameters[ARMS]) - value),
        }
    found["KTO"] = measured(descend(kto, ARMS)[0])
    found["SFT on the better half"] = measured(descend(imitation, ARMS)[0])
    found["reference"] = {"reward": float(reference @ reward), "kl": 0.0}
    return found


# A small transformer.


def random_tokens(rng: np.random.Generator) -> str:
    """An answer of the data policy: digits."""
    mass = data_policy(TOKENS)
    return " ".join(str(token) for token in rng.choice(TOKENS, size=LENGTH, p=mass / mass.sum()))


TASK = Task(
    "polyturn/TokenBandit-v0",
    {"reward": "R1", "vocabulary": TOKENS, "length": LENGTH},
    random_tokens,
    4 * LENGTH,
    lambda turn: turn.info.get("valid_tokens") == LENGTH,
)


def scored(groups: Sequence[Group]) -> list[Example]:
    """Every group with standardised scores; scores above their median are desirable. Data for all of `SCALAR`."""
    middle = float(np.median(rewards(groups)))
    examples = []
    for group in groups:
        score = rewards([group]).astype(np.float32)
        examples.append(Example(tuple(group), scores=score, desirable=(score > middle).astype(np.float32)))
    return standardised(examples)


def train_transformer(name: str, options: Mapping[str, Any], work: Path, seed: int) -> dict[str, Any]:
    """One method on stored answers of the reference: its evaluations, and the rewards of its last answers."""
    reference = start_policy(TASK, work / f"start-seed{seed}", seed=seed, **options["start"]).copy()
    policy = trainable_copy(reference)
    groups = TASK.collect(TASK.agent(reference), groups=options["stored"], group_size=4, seed=seed + 40_000)
    if name.startswith("PMPO"):
        alpha, beta = map(float, name.split()[1:])
        method: Method = PMPO(alpha=alpha, beta=beta)
        rng = np.random.default_rng(seed)
        found = [PMPO().examples(group, by_return(group), rng) for group in groups]
        examples = [example for example in found if example is not None]
    else:
        method, examples = SCALAR[name], scored(groups)
    evaluate = Evaluator(TASK, reference, samples=options["samples"], seed=seed)
    result = train(
        method,
        ActorCritic(policy, shared="shared" in name) if isinstance(method, DROV) else policy,
        reference,
        minibatches(examples, options["groups"], seed=seed),
        steps=options["steps"],
        options=TrainOptions(lr=options["lr"], evaluate_every=max(2, options["steps"] // 6), cpu=True),
        evaluate=evaluate,
        progress=False,
    )
    return {**evaluations(result.history), "answers": np.round(evaluate.rewards, 4).tolist()}


def _cells(quick: bool, seeds: int) -> list[Cell]:
    pmpo_options = {"groups": 2000, "steps": 30 if quick else 300, "lr": 0.1, "rounds": 2 if quick else 8}
    dro_options = {"steps": 200 if quick else 2000, "lr": 0.2}
    transformer = {
        "start": {"demonstrations": 512 if quick else 2048, "steps": 120 if quick else 300, "lr": 3e-3},
        "stored": 12 if quick else 256,
        "groups": 4 if quick else 16,
        "samples": 16 if quick else 128,
        "steps": 2 if quick else 90,
        "lr": 3e-4,
    }
    names = [f"PMPO {alpha} {beta}" for alpha in ALPHAS for beta in TRANSFORMER_BETAS] + list(SCALAR)
    return [
        cell
        for seed in range(seeds)
        for cell in (
            Cell("table PMPO", seed, pmpo_options),
            Cell("table DRO", seed, dro_options),
            *(Cell(name, seed, transformer) for name in names),
        )
    ]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    if cell.name == "table PMPO":
        return pmpo_table(**cell.options, seed=cell.seed)
    if cell.name == "table DRO":
        return dro_table(**cell.options, seed=cell.seed)
    with one_thread():
        return train_transformer(cell.name, cell.options, work, cell.seed)


# The report.

Results = Mapping[str, list[Mapping[str, Any]]]
"""The results of all seeds by the cell's name."""
FIGURES = ("reward", "win_rate", "kl", "proper")
FIGURE_NAMES = ("reward", "win rate over the reference", "KL(pi, ref), nats", "valid answers")


def _steady_from(values: Mapping[float, Sequence[float]], base: Sequence[float]) -> str:
    """From which beta on all larger betas are above the reference's reward, by the interval over seeds."""
    steady = None
    for beta in sorted(values, reverse=True):
        if not compare("a", values[beta], "b", base).startswith("a is above"):
            break
        steady = beta
    if steady is None:
        return "not above the reference even at the largest beta"
    return f"above the reference from beta {steady:g} on"


def _pmpo_tables(found: Results) -> list[str]:
    """PMPO over alpha and beta: the table of logits, then the transformer."""
    runs = found["table PMPO"]

    def table_row(alpha: float, beta: float) -> list[str]:
        cells = [run[f"{alpha} {beta}"] for run in runs]
        distances = [cell["distance"] for cell in cells if cell["distance"] is not None]
        if len(distances) < len(cells):
            why = (
                "the sum of the coefficients" if max(cell["sum"] for cell in cells) <= 1e-9 else "an arm's coefficient"
            )
            exact = f"no optimum for {len(cells) - len(distances)} of {len(cells)} seeds: {why} is not above 0"
        else:
            exact = f"{max(distances):.0e}"
        first, last = ([cell["rewards"][place] for cell in cells] for place in (1, -1))
        return [f"{alpha:g}", f"{beta:g}", plus_minus(first), plus_minus(last), exact]

    def transformer_row(alpha: float, beta: float) -> list[str]:
        cells = found[f"PMPO {alpha} {beta}"]
        return [f"{alpha:g}", f"{beta:g}", *(plus_minus(at_the_end(cells, figure)) for figure in FIGURES)]

    start, rounds = runs[0]["1.0 0.0"]["rewards"][0], len(runs[0]["1.0 0.0"]["rewards"]) - 1
    return [
        f"\n## PMPO, table of {ARMS} logits; the reference earns {start:.3f}, the best arm 1\n",
        table(
            ["alpha", "beta", "one round", f"{rounds} rounds", "distance to the closed form"],
            [table_row(alpha, beta) for alpha in ALPHAS for beta in BETAS],
        ),
        "\n## PMPO, transformer\n",
        table(
            ["alpha", "beta", *FIGURE_NAMES],
            [transformer_row(alpha, beta) for alpha in ALPHAS for beta in TRANSFORMER_BETAS],
        ),
    ]


def _over_beta(name: str, values: Mapping[float, Sequence[float]], base: Sequence[float]) -> str:
    """From which beta on rewards are above the reference, and their lowest and highest mean over beta."""
    means = {beta: float(np.mean(each)) for beta, each in values.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return (
        f"- {name}: {_steady_from(values, base)}; rewards over beta from {means[low]:.3f} "
        f"(beta {low:g}) to {means[high]:.3f} (beta {high:g})."
    )


def _pmpo_sentences(found: Results) -> list[str]:
    """What the intervals support about alpha and beta."""
    runs = found["table PMPO"]
    text = []
    for alpha in ALPHAS:
        for place, when in ((1, "one round"), (-1, "all rounds")):
            values = {beta: [run[f"{alpha} {beta}"]["rewards"][place] for run in runs] for beta in BETAS}
            base = [run[f"{alpha} 0.0"]["rewards"][0] for run in runs]
            text.append(_over_beta(f"Table, alpha {alpha:g}, {when}", values, base))
    for alpha in ALPHAS:
        ends = {beta: at_the_end(found[f"PMPO {alpha} {beta}"], "reward") for beta in TRANSFORMER_BETAS}
        base = [run["reward"][0] for run in found[f"PMPO {alpha} 0.0"]]
        text.append(_over_beta(f"Transformer, alpha {alpha:g}", ends, base))
        text.append(f"- Transformer, alpha {alpha:g}: {compare('beta 2', ends[2.0], 'beta 0', ends[0.0])}")
    at_two = {alpha: at_the_end(found[f"PMPO {alpha} 2.0"], "reward") for alpha in ALPHAS}
    for a, b in ((0.5, 1.0), (0.0, 0.5)):
        text.append(f"- Transformer, beta 2: {compare(f'alpha {a:g}', at_two[a], f'alpha {b:g}', at_two[b])}")
    return text


def _scalar_part(found: Results) -> list[str]:
    """Methods on scored answers: DRO's table, the transformer, and what the intervals support."""
    runs = found["table DRO"]
    dro_rows = [
        [
            name,
            *(plus_minus([run[name][figure] for run in runs]) for figure in ("reward", "kl")),
            *(
                f"{max(run[name][figure] for run in runs):.0e}" if figure in runs[0][name] else ""
                for figure in ("distance", "value error")
            ),
        ]
        for name in runs[0]
    ]
    rows = [[name, *(plus_minus(at_the_end(found[name], figure)) for figure in FIGURES)] for name in SCALAR]
    text = [
        f"\n## DRO, table of {ARMS} logits; rewards are standard normal, the data is not the reference's\n",
        table(
            ["method", "expected reward", "KL(pi, ref), nats", "largest error of pi", "largest error of V"], dro_rows
        ),
        "\n## Scored answers, transformer\n",
        table(["method", *FIGURE_NAMES], rows),
        "\n## Findings: scored answers\n",
    ]
    # Win rates over KTO, on the last answers of the same seeds.
    for name in ("DRO-V .1", "DRO-V 1", "DRO-V 5", "RWR", "SFT on the better half"):
        against_kto = [
            win_rate(np.array(a["answers"]), np.array(b["answers"]))
            for a, b in zip(found[name], found["KTO"], strict=True)
        ]
        text.append(f"- Win rate: {compare(f'{name} over KTO', against_kto, 'one half', [0.5] * len(runs))}")
    for a, b in (("DRO-V .1", "DRO-V 1"), ("DRO-V 1", "DRO-V 5"), ("DRO-V 1", "DRO-V 1, shared"), ("KTO", "RWR")):
        sentence = compare(a, at_the_end(found[a], "reward"), b, at_the_end(found[b], "reward"))
        text.append(f"- Reward at the end: {sentence}")
    return text


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    found = by_name(outcomes)
    options = next(outcome.cell.options for outcome in outcomes if outcome.cell.name == "KTO")
    text = [
        "# unpaired: accepted, rejected or scored answers, and no pairs\n",
        f"{len(found['KTO'])} seeds, mean with the 95% Student interval. PMPO: the best two of each group of four "
        "samples are accepted, the other two rejected. Table: full-batch descent of the loss; each further round has "
        "fresh samples of the last policy, which is also its reference. Transformer (2 layers, width 32, trained from "
        f"random weights): `polyturn/TokenBandit-v0`, {LENGTH} tokens out of {TOKENS}, reward R1; {options['stored']} "
        f"stored groups of four answers of the reference, {options['steps']} AdamW steps at {options['lr']} on "
        f"{options['groups']} groups. Scores are standardised; for KTO and SFT, scores above the median are good. An "
        "answer is valid if it has as many valid tokens as the task asks for.\n",
        "Claims: alpha 1 is insensitive to beta, alpha 0 needs beta above 1, alpha 1/2 needs beta of about 1/2 or more "
        "(arXiv 2410.04166); DRO-V is ahead of KTO, tau 1 is ahead of .1 and 5, and a separate value network is ahead "
        "of a shared one (arXiv 2405.19107).\n",
        *_pmpo_tables(found),
        "\n## Findings: PMPO\n",
        *_pmpo_sentences(found),
        *_scalar_part(found),
        "\n![PMPO over beta](pmpo.svg)\n",
        "\n![reward of methods on scored answers](scalar.svg)\n",
    ]
    _draw_pmpo(found, out)
    _draw_scalar(found, out)
    return "\n".join(text)


def _draw_pmpo(found: Results, out: Path) -> None:
    """Reward over beta: one row an alpha; the table after one round and after all, and the transformer."""
    titles = ("table, one round", "table, all rounds", "transformer")
    note = f"{RUNS} Dotted: the reference."
    with picture(out / "pmpo", len(ALPHAS), 3, width=2.9, height=1.9, note=note, share_y=False) as grid:
        for alpha, row, colour in zip(ALPHAS, grid, COLOURS, strict=False):
            for panel, place in zip(row, (1, -1), strict=False):
                runs = [run[f"{alpha} {beta}"]["rewards"] for run in found["table PMPO"] for beta in BETAS]
                values = np.array([rewards[place] for rewards in runs]).reshape(-1, len(BETAS))
                panel.level(runs[0][0])
                panel.curve(BETAS, values, colour=colour, bounds=SHARE)
            transformer = [found[f"PMPO {alpha} {beta}"] for beta in TRANSFORMER_BETAS]
            row[2].level(transformer[0][0]["reward"][0])
            ends = np.array([at_the_end(runs, "reward") for runs in transformer]).T
            row[2].curve(TRANSFORMER_BETAS, ends, colour=colour, bounds=SHARE)
            for panel, title, top in zip(row, titles, (0.16, 1.0, 0.16), strict=True):
                panel.words(title=f"alpha {alpha:g}: {title}", x="beta", y="expected reward" if panel is row[0] else "")
                panel.limits(y=(0.0, top))


def _draw_scalar(found: Results, out: Path) -> None:
    """Reward over training, one panel a method; then the mean reward against the mean KL."""
    means = {name: over_training(found[name], "reward").mean(axis=0).tolist() for name in SCALAR}
    note = f"{RUNS} Grey: the other methods."
    with picture(out / "scalar", 2, 4, width=2.6, height=2.1, note=note) as grid:
        panels = [panel for row in grid for panel in row]
        for panel, name in zip(panels, SCALAR, strict=False):
            steps = found[name][0]["step"]
            for other in SCALAR:
                panel.context(steps, means[other])
            panel.curve(steps, over_training(found[name], "reward"), colour=BLUE, bounds=SHARE)
            panel.words(title=name, x="step", y="expected reward" if panel in (grid[0][0], grid[1][0]) else "")
        for name, colour in zip(("DRO-V .1", "KTO"), COLOURS, strict=False):
            spent = over_training(found[name], "kl").mean(axis=0).tolist()
            panels[-1].line(spent, means[name], colour=colour, label=name, marker="o")
        panels[-1].axes.set_xscale("symlog", linthresh=1.0)
        panels[-1].words(title="means", x="KL to the reference, nats")
        grid[1][0].axes.sharey(grid[0][0].axes)
        grid[0][0].limits(y=NOT_NEGATIVE)


SUITE = Suite(
    name="unpaired",
    summary="no pairs: PMPO over alpha and beta, DRO-V over tau, KTO, RWR, with closed forms",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=3,
)
